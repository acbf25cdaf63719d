//! The command line: which commands and options there are, and how what was typed is taken apart.
//!
//! One table ([`COMMANDS`], [`GLOBAL_OPTIONS`]) describes all of it. The parser below walks it directly, which takes
//! microseconds; [`crate::help`] builds help texts from the same table when somebody asks for help. As in runc,
//! one dash is as good as two (`-root`, `--root`), values follow after `=` or as the next argument, and options may stand
//! before or after the container id, except where the rest of the line belongs to another program (`exec`, `ps`).

use std::ffi::OsString;
use std::path::PathBuf;

/// An option of a command.
#[derive(Debug)]
pub(crate) struct OptionSpec {
    /// Name after two dashes.
    pub(crate) long: &'static str,
    /// One-letter name.
    pub(crate) short: Option<char>,
    /// Placeholder of the value; `None` for a switch.
    pub(crate) value: Option<&'static str>,
    /// What it does.
    pub(crate) help: &'static str,
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
        help,
    }
}

/// A switch.
const fn switch(long: &'static str, short: Option<char>, help: &'static str) -> OptionSpec {
    OptionSpec {
        long,
        short,
        value: None,
        help,
    }
}

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
        "rootless",
        None,
        "BOOL",
        "ignore cgroup permission errors: true, false or auto",
    ),
    switch("help", Some('h'), "show help"),
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
);

/// Every command.
pub(crate) const COMMANDS: &[CommandSpec] = &[
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
            ),
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
            ),
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
            value("blkio-weight", None, "N", "block I/O weight, 10 to 1000"),
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
            value("pids-limit", None, "N", "number of tasks"),
            value(
                "cpu-idle",
                None,
                "0|1",
                "run only when nothing else wants to",
            ),
        ],
    },
];

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// An argument is not UTF-8.
    #[error("argument {0:?} is not valid UTF-8")]
    NotText(OsString),
    /// No such option.
    #[error("flag provided but not defined: -{0}")]
    UnknownOption(String),
    /// An option lacks its value.
    #[error("flag needs an argument: -{0}")]
    ValueMissing(&'static str),
    /// A value that the option cannot take.
    #[error("invalid value {value:?} for flag -{option}: {expected}")]
    BadValue {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// No such command.
    #[error("No help topic for '{0}'")]
    UnknownCommand(String),
    /// Too few or too many arguments.
    #[error("qrun: {command:?} requires {expected}")]
    WrongCount {
        /// The command.
        command: &'static str,
        /// How many are right.
        expected: String,
    },
}

/// Options that were given, and the other arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    options: Vec<(&'static str, String)>,
    /// What is not an option.
    pub(crate) arguments: Vec<String>,
}

impl Parsed {
    /// The last value given for an option.
    pub(crate) fn value(&self, long: &str) -> Option<&str> {
        self.options
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// Every value given for an option.
    pub(crate) fn values<'a>(&'a self, long: &'a str) -> impl Iterator<Item = &'a str> {
        self.options
            .iter()
            .filter(move |(name, _)| *name == long)
            .map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, long: &str) -> bool {
        self.value(long).is_some_and(|value| value != "false")
    }

    /// A value as an absolute path, because the current directory changes; an empty one counts as absent.
    pub(crate) fn path(&self, long: &str) -> Option<PathBuf> {
        let value = self.value(long).filter(|value| !value.is_empty())?;
        // Without a current directory a relative path means nothing anyway.
        Some(std::path::absolute(value).unwrap_or_else(|_| value.into()))
    }

    /// A value as a number.
    pub(crate) fn number<T: std::str::FromStr>(
        &self,
        long: &'static str,
    ) -> Result<Option<T>, Error> {
        self.value(long)
            .map(|value| {
                let bad = |_| Error::BadValue {
                    option: long,
                    value: value.to_owned(),
                    expected: "expected a number",
                };
                value.parse().map_err(bad)
            })
            .transpose()
    }

    /// The first argument: the container id in every command that has one.
    pub(crate) fn id(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }
}

/// The arguments as text.
pub(crate) fn arguments(raw: impl Iterator<Item = OsString>) -> Result<Vec<String>, Error> {
    raw.map(|argument| argument.into_string().map_err(Error::NotText))
        .collect()
}

/// Takes arguments apart by a table of options; what follows the first non-option is left alone when `stops`.
///
/// Returns what was found and how many arguments were used.
pub(crate) fn parse(
    arguments: &[String],
    options: &'static [OptionSpec],
    stops: bool,
) -> Result<(Parsed, usize), Error> {
    let mut parsed = Parsed::default();
    let mut position = 0;
    while let Some(argument) = arguments.get(position) {
        let body = argument
            .strip_prefix("--")
            .or_else(|| argument.strip_prefix('-'));
        let Some(body) = body.filter(|body| !body.is_empty() || argument == "--") else {
            if stops {
                break;
            }
            parsed.arguments.push(argument.clone());
            position += 1;
            continue;
        };
        position += 1;
        if argument == "--" {
            if !stops {
                parsed.arguments.extend_from_slice(&arguments[position..]);
                position = arguments.len();
            }
            break;
        }
        let (name, attached) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let spec = find(options, name).ok_or_else(|| Error::UnknownOption(name.to_owned()))?;
        let value = match (spec.value, attached) {
            (_, Some(value)) => value,
            (None, None) => "true".to_owned(),
            (Some(_), None) => {
                let value = arguments
                    .get(position)
                    .ok_or(Error::ValueMissing(spec.long))?;
                position += 1;
                value.clone()
            }
        };
        parsed.options.push((spec.long, value));
    }
    Ok((parsed, position))
}

/// Looks an option up by its long or short name, or as `help`, which every command has.
fn find(options: &'static [OptionSpec], name: &str) -> Option<&'static OptionSpec> {
    const HELP: &OptionSpec = &switch("help", Some('h'), "show help");
    let mut letters = name.chars();
    let letter = letters.next().filter(|_| letters.next().is_none());
    let matches =
        |spec: &&OptionSpec| spec.long == name || (letter.is_some() && spec.short == letter);
    options
        .iter()
        .find(matches)
        .or_else(|| Some(HELP).filter(matches))
}

/// Looks a command up.
pub(crate) fn command(name: &str) -> Option<&'static CommandSpec> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// Parses a command's own arguments and counts those that are not options.
pub(crate) fn parse_command(
    command: &'static CommandSpec,
    arguments: &[String],
) -> Result<Parsed, Error> {
    let (mut parsed, used) = parse(arguments, command.options, command.stops)?;
    parsed.arguments.extend_from_slice(&arguments[used..]);
    let (least, most) = command.count;
    if parsed.is_on("help") || (least..=most).contains(&parsed.arguments.len()) {
        return Ok(parsed);
    }
    let expected = match (least, most) {
        (0, 0) => "exactly 0 arguments".to_owned(),
        (1, 1) => "exactly 1 argument".to_owned(),
        (least, usize::MAX) => format!("a minimum of {least} arguments"),
        (least, most) => format!("a minimum of {least} and a maximum of {most} arguments"),
    };
    Err(Error::WrongCount {
        command: command.name,
        expected,
    })
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The options before the command.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Global {
    /// Directory of container state.
    pub(crate) root: PathBuf,
    /// Log file.
    pub(crate) log: Option<PathBuf>,
    /// Log format.
    pub(crate) log_format: LogFormat,
    /// Whether debug messages are logged.
    pub(crate) debug: bool,
    /// Whether systemd makes the cgroups.
    pub(crate) systemd_cgroup: bool,
    /// Whether to show the version and end.
    pub(crate) version: bool,
    /// Whether to show help and end.
    pub(crate) help: bool,
}

/// Parses the options before the command; returns them and the rest, the command's name first.
pub(crate) fn parse_global(arguments: &[String]) -> Result<(Global, &[String]), Error> {
    let (parsed, used) = parse(arguments, GLOBAL_OPTIONS, true)?;
    let log_format = match parsed.value("log-format") {
        None | Some("text" | "") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            let (value, expected) = (other.to_owned(), "expected text or json");
            return Err(Error::BadValue {
                option: "log-format",
                value,
                expected,
            });
        }
    };
    let global = Global {
        root: parsed.path("root").unwrap_or_else(default_root),
        log: parsed.path("log"),
        log_format,
        debug: parsed.is_on("debug"),
        systemd_cgroup: parsed.is_on("systemd-cgroup"),
        version: parsed.is_on("version"),
        help: parsed.is_on("help"),
    };
    Ok((global, &arguments[used..]))
}

/// Where state is kept when nothing is said: `/run/qrun`, or the user's own run-time directory.
fn default_root() -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    match own {
        Some(directory) if !rustix::process::geteuid().is_root() => {
            PathBuf::from(directory).join("qrun")
        }
        _ => PathBuf::from("/run/qrun"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn parse_line(line: &str) -> Result<Parsed, Error> {
        let words = words(line);
        parse_command(command(&words[0]).unwrap(), &words[1..])
    }

    #[test]
    fn options_stand_before_or_after_the_id() {
        for line in [
            "create --bundle /b --no-pivot c1",
            "create c1 -bundle=/b --no-pivot",
            "create -b /b c1 -no-pivot",
        ] {
            let parsed = parse_line(line).unwrap();
            assert_eq!(parsed.id(), "c1", "{line}");
            assert_eq!(parsed.value("bundle"), Some("/b"), "{line}");
            assert!(parsed.is_on("no-pivot"), "{line}");
            assert!(!parsed.is_on("no-new-keyring"), "{line}");
        }
    }

    #[test]
    fn the_rest_of_exec_belongs_to_the_program() {
        let parsed = parse_line("exec -t --env A=1 -e B=2 c1 ls -t --all").unwrap();
        assert_eq!(parsed.arguments, ["c1", "ls", "-t", "--all"]);
        assert_eq!(parsed.values("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(parse_line("exec -- c1 -x").unwrap().arguments, ["c1", "-x"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        assert_eq!(
            parse_line("create --bunde x c1"),
            Err(Error::UnknownOption("bunde".into()))
        );
        assert_eq!(
            parse_line("create c1 --bundle"),
            Err(Error::ValueMissing("bundle"))
        );
        let wrong = parse_line("start").unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "qrun: \"start\" requires exactly 1 argument"
        );
        assert!(parse_line("kill a b c").is_err());
        let number = parse_line("create --preserve-fds x c1")
            .unwrap()
            .number::<u32>("preserve-fds");
        assert!(matches!(
            number,
            Err(Error::BadValue {
                option: "preserve-fds",
                ..
            })
        ));
    }

    #[test]
    fn global_options_end_at_the_command() {
        let words =
            words("--root /r -log=/l --log-format json --debug --systemd-cgroup run --help");
        let (global, rest) = parse_global(&words).unwrap();
        assert_eq!(global.root, PathBuf::from("/r"));
        assert_eq!(global.log, Some(PathBuf::from("/l")));
        assert_eq!(global.log_format, LogFormat::Json);
        assert!(global.debug && global.systemd_cgroup && !global.help);
        assert_eq!(rest, ["run", "--help"]);
    }

    #[test]
    fn a_switch_can_be_switched_off() {
        assert!(
            !parse_line("delete --force=false c1")
                .unwrap()
                .is_on("force")
        );
    }

    #[test]
    fn no_command_has_two_options_of_one_name() {
        for command in COMMANDS {
            for (index, option) in command.options.iter().enumerate() {
                let same = |other: &OptionSpec| {
                    other.long == option.long
                        || (other.short.is_some() && other.short == option.short)
                };
                assert!(
                    !command.options[index + 1..].iter().any(same),
                    "{} --{}",
                    command.name,
                    option.long
                );
            }
        }
    }
}
