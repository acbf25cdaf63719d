//! Which commands and options there are: the one table that the parser and the help texts are made from.

/// An option of a command.
#[derive(Debug)]
pub(crate) struct OptionSpec {
    /// Name after two dashes.
    pub(crate) long: &'static str,
    /// One-letter name.
    pub(crate) short: Option<char>,
    /// Placeholder of the value; `None` for a switch.
    pub(crate) value: Option<&'static str>,
    /// What the value is checked to be while the line is taken apart.
    pub(crate) takes: Takes,
    /// What it does.
    pub(crate) help: &'static str,
}

impl OptionSpec {
    /// The same with another kind of value. Where runc takes text and reads it later, [`Takes::Text`] stays, and the command
    /// reads it.
    const fn taking(self, takes: Takes) -> Self {
        Self { takes, ..self }
    }
}

/// What an option's value has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Anything; the command makes sense of it.
    Text,
    /// A whole number.
    Number,
    /// A duration as Go spells it.
    Duration,
}

/// A command.
#[derive(Debug)]
pub(crate) struct CommandSpec {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it does.
    pub(crate) about: &'static str,
    /// Its arguments, for help.
    pub(crate) arguments: &'static str,
    /// Least and greatest number of arguments.
    pub(crate) count: (usize, usize),
    /// Whether options end at the first argument.
    pub(crate) stops: bool,
    /// Its options.
    pub(crate) options: &'static [OptionSpec],
}

/// An option with a value.
const fn value(
    long: &'static str,
    short: Option<char>,
    placeholder: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec {
        long,
        short,
        value: Some(placeholder),
        takes: Takes::Text,
        help,
    }
}

/// A switch.
const fn switch(long: &'static str, short: Option<char>, help: &'static str) -> OptionSpec {
    OptionSpec {
        long,
        short,
        value: None,
        takes: Takes::Text,
        help,
    }
}

/// The switch that every command has, and the program.
pub(crate) const HELP: OptionSpec = switch("help", Some('h'), "show help");

/// Options before the command.
pub(crate) const GLOBAL_OPTIONS: &[OptionSpec] = &[
    switch("debug", None, "log debug messages"),
    value("log", None, "FILE", "log to FILE instead of standard error"),
    value("log-format", None, "FORMAT", "log format: text or json"),
    value(
        "root",
        None,
        "DIR",
        "where container state is kept (default: /run/qrun, or $XDG_RUNTIME_DIR/qrun)",
    ),
    value("criu", None, "PATH", "accepted and not used"),
    switch(
        "systemd-cgroup",
        None,
        "let systemd make cgroups; cgroupsPath is then SLICE:PREFIX:NAME",
    ),
    value(
        "cgroup-manager",
        None,
        "MANAGER",
        "who makes cgroups: cgroupfs (default), systemd, or disabled: nobody",
    ),
    value(
        "rootless",
        None,
        "BOOL",
        "ignore cgroup permission errors: true, false or auto",
    ),
    HELP,
    switch("version", Some('v'), "show the version"),
];

const BUNDLE: OptionSpec = value(
    "bundle",
    Some('b'),
    "DIR",
    "path of the bundle (default: the current directory)",
);
const CONSOLE_SOCKET: OptionSpec = value(
    "console-socket",
    None,
    "PATH",
    "socket that receives the terminal's master end",
);
const PIDFD_SOCKET: OptionSpec = value(
    "pidfd-socket",
    None,
    "PATH",
    "socket that receives a pidfd of the process",
);
const PID_FILE: OptionSpec = value("pid-file", None, "FILE", "write the process id to FILE");
const NO_PIVOT: OptionSpec = switch(
    "no-pivot",
    None,
    "move the root mount instead of pivoting: for a root on a ramdisk",
);
const NO_NEW_KEYRING: OptionSpec =
    switch("no-new-keyring", None, "keep the caller's session keyring");
const PRESERVE_FDS: OptionSpec = value(
    "preserve-fds",
    None,
    "N",
    "pass N descriptors after stdio to the process",
)
.taking(Takes::Number);

const IMAGE_PATH: OptionSpec = value(
    "image-path",
    None,
    "DIR",
    "where the checkpoint is (default: ./checkpoint)",
);
const WORK_PATH: OptionSpec = value(
    "work-path",
    None,
    "DIR",
    "where criu's log goes (default: the image directory)",
);
const TCP_ESTABLISHED: OptionSpec =
    switch("tcp-established", None, "allow established TCP connections");
const EXT_UNIX_SK: OptionSpec = switch(
    "ext-unix-sk",
    None,
    "allow unix sockets whose other end is outside",
);
const SHELL_JOB: OptionSpec = switch("shell-job", None, "allow a terminal from outside");
const FILE_LOCKS: OptionSpec = switch("file-locks", None, "allow file locks");
const LAZY_PAGES: OptionSpec = switch(
    "lazy-pages",
    None,
    "fetch memory after the restore, when it is first used",
);
const AUTO_DEDUP: OptionSpec = switch(
    "auto-dedup",
    None,
    "give up memory in an earlier dump that a later one has too",
);
const MANAGE_CGROUPS: OptionSpec = value(
    "manage-cgroups-mode",
    None,
    "MODE",
    "cgroup settings to save and restore: soft (default), full, strict or ignore",
);
const EMPTY_NS: OptionSpec = value(
    "empty-ns",
    None,
    "NAMESPACE",
    "leave the content of a namespace out: network, which always is (repeatable)",
);

/// Every command.
pub(crate) const COMMANDS: &[CommandSpec] = &[
    CommandSpec {
        name: "checkpoint",
        about: "save the state of a running container, and end it",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            IMAGE_PATH,
            WORK_PATH,
            value(
                "parent-path",
                None,
                "DIR",
                "an earlier pre-dump, relative to the image directory",
            ),
            switch("leave-running", None, "let the container go on afterwards"),
            TCP_ESTABLISHED,
            switch(
                "tcp-skip-in-flight",
                None,
                "pass over TCP connections that are being made",
            ),
            switch(
                "link-remap",
                None,
                "give open files that were removed a name again",
            ),
            EXT_UNIX_SK,
            SHELL_JOB,
            LAZY_PAGES,
            value(
                "status-fd",
                None,
                "FD",
                "write a zero byte to FD once lazy pages can be fetched",
            )
            .taking(Takes::Number),
            value(
                "page-server",
                None,
                "ADDRESS:PORT",
                "send memory to a page server, or with --lazy-pages be one",
            ),
            FILE_LOCKS,
            switch(
                "pre-dump",
                None,
                "save memory only, and let the container go on",
            ),
            MANAGE_CGROUPS,
            EMPTY_NS,
            AUTO_DEDUP,
        ],
    },
    CommandSpec {
        name: "create",
        about: "create a container",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            BUNDLE,
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            PID_FILE,
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
        ],
    },
    CommandSpec {
        name: "delete",
        about: "delete a container and what it held",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[switch("force", Some('f'), "kill it first if it still runs")],
    },
    CommandSpec {
        name: "events",
        about: "show resource usage",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            value(
                "interval",
                None,
                "DURATION",
                "pause between two reports (default: 5s)",
            )
            .taking(Takes::Duration),
            switch("stats", None, "show the usage once and end"),
        ],
    },
    CommandSpec {
        name: "exec",
        about: "execute another process in a container",
        arguments: "<container-id> <command> [argument...]",
        count: (1, usize::MAX),
        stops: true,
        options: &[
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            value("cwd", None, "DIR", "working directory inside"),
            value(
                "env",
                Some('e'),
                "NAME=VALUE",
                "set a variable (repeatable)",
            ),
            switch("tty", Some('t'), "give it a terminal"),
            value("user", Some('u'), "UID[:GID]", "run as this user"),
            value(
                "additional-gids",
                Some('g'),
                "GID",
                "supplementary group (repeatable)",
            )
            .taking(Takes::Number),
            value(
                "process",
                Some('p'),
                "FILE",
                "take everything from a file with a process object",
            ),
            switch("detach", Some('d'), "do not wait for it"),
            PID_FILE,
            value("process-label", None, "LABEL", "SELinux label"),
            value("apparmor", None, "PROFILE", "AppArmor profile"),
            switch(
                "no-new-privs",
                None,
                "forbid gaining privileges by executing programs",
            ),
            value("cap", Some('c'), "CAP", "add a capability (repeatable)"),
            PRESERVE_FDS,
            value(
                "cgroup",
                None,
                "PATH",
                "run it in a child cgroup, or CONTROLLER[,…]:PATH on cgroup v1 (repeatable)",
            ),
            switch("ignore-paused", None, "do not refuse a paused container"),
        ],
    },
    CommandSpec {
        name: "features",
        about: "show what this runtime supports, as JSON",
        arguments: "",
        count: (0, 0),
        stops: false,
        options: &[],
    },
    CommandSpec {
        name: "kill",
        about: "send a signal to the container's init process (default: SIGTERM)",
        arguments: "<container-id> [signal]",
        count: (1, 2),
        stops: false,
        options: &[switch(
            "all",
            Some('a'),
            "send it to every process of the container",
        )],
    },
    CommandSpec {
        name: "list",
        about: "list containers",
        arguments: "",
        count: (0, 0),
        stops: false,
        options: &[
            value("format", Some('f'), "FORMAT", "table or json"),
            switch("quiet", Some('q'), "show ids only"),
        ],
    },
    CommandSpec {
        name: "pause",
        about: "stop all processes of a container",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[],
    },
    CommandSpec {
        name: "ps",
        about: "show the processes of a container",
        arguments: "<container-id> [ps options]",
        count: (1, usize::MAX),
        stops: true,
        options: &[value("format", Some('f'), "FORMAT", "table or json")],
    },
    CommandSpec {
        name: "restore",
        about: "make a container of a checkpoint",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            CONSOLE_SOCKET,
            IMAGE_PATH,
            WORK_PATH,
            TCP_ESTABLISHED,
            EXT_UNIX_SK,
            SHELL_JOB,
            FILE_LOCKS,
            MANAGE_CGROUPS,
            BUNDLE,
            switch(
                "detach",
                Some('d'),
                "do not wait for the container's process",
            ),
            PID_FILE,
            switch("no-subreaper", None, "do not become the reaper of orphans"),
            switch(
                "no-pivot",
                None,
                "accepted and not used: criu changes the root",
            ),
            EMPTY_NS,
            AUTO_DEDUP,
            LAZY_PAGES,
            value(
                "lsm-profile",
                None,
                "TYPE:LABEL",
                "security label of the processes instead of the saved one",
            ),
            value(
                "lsm-mount-context",
                None,
                "CONTEXT",
                "security context of mounts instead of the saved one",
            ),
        ],
    },
    CommandSpec {
        name: "resume",
        about: "let the processes of a paused container go on",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[],
    },
    CommandSpec {
        name: "run",
        about: "create and start a container",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            BUNDLE,
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            switch(
                "detach",
                Some('d'),
                "do not wait for the container's process",
            ),
            switch(
                "keep",
                None,
                "do not delete the container after its process has ended",
            ),
            PID_FILE,
            switch("no-subreaper", None, "do not become the reaper of orphans"),
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
        ],
    },
    CommandSpec {
        name: "spec",
        about: "write a config.json to start from",
        arguments: "",
        count: (0, 0),
        stops: false,
        options: &[
            value(
                "bundle",
                Some('b'),
                "DIR",
                "where to write it (default: the current directory)",
            ),
            switch(
                "rootless",
                None,
                "make it fit for a user without privileges",
            ),
        ],
    },
    CommandSpec {
        name: "start",
        about: "start the process of a created container",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[],
    },
    CommandSpec {
        name: "state",
        about: "show the state of a container, as JSON",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[],
    },
    CommandSpec {
        name: "update",
        about: "change resource limits",
        arguments: "<container-id>",
        count: (1, 1),
        stops: false,
        options: &[
            value(
                "resources",
                Some('r'),
                "FILE",
                "read a resources object from FILE, or from standard input with \"-\"",
            ),
            value("blkio-weight", None, "N", "block I/O weight, 10 to 1000").taking(Takes::Number),
            value("cpu-period", None, "MICROSECONDS", "CPU period"),
            value("cpu-quota", None, "MICROSECONDS", "CPU time per period"),
            value(
                "cpu-burst",
                None,
                "MICROSECONDS",
                "CPU time that may be saved up",
            ),
            value("cpu-share", None, "N", "CPU shares"),
            value(
                "cpu-rt-period",
                None,
                "MICROSECONDS",
                "real-time CPU period",
            ),
            value(
                "cpu-rt-runtime",
                None,
                "MICROSECONDS",
                "real-time CPU time per period",
            ),
            value("cpuset-cpus", None, "LIST", "CPUs to use"),
            value("cpuset-mems", None, "LIST", "memory nodes to use"),
            value("memory", None, "BYTES", "memory limit"),
            value("kernel-memory", None, "BYTES", "accepted and not used"),
            value("kernel-memory-tcp", None, "BYTES", "accepted and not used"),
            value("memory-reservation", None, "BYTES", "memory soft limit"),
            value(
                "memory-swap",
                None,
                "BYTES",
                "limit of memory and swap together; -1 for none",
            ),
            value("pids-limit", None, "N", "number of tasks").taking(Takes::Number),
            value(
                "l3-cache-schema",
                None,
                "SCHEMA",
                "cache allocation (Intel RDT)",
            ),
            value(
                "mem-bw-schema",
                None,
                "SCHEMA",
                "memory bandwidth allocation (Intel RDT)",
            ),
            value(
                "cpu-idle",
                None,
                "0|1",
                "run only when nothing else wants to",
            ),
        ],
    },
];
