//! `qrun` beside youki's libcontainer: the same bundles, and what the process and the host see of them.
//! See [`stack_tests::differential`], and `docs/libcontainer.md` for what differs and why.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use stack_tests::bundle::config;
use stack_tests::differential::contestant::Holder;
use stack_tests::differential::explained::{check, rows};
use stack_tests::differential::{
    Case, Contestant, Sight, differences, generate, oracle, ran, subject,
};
use stack_tests::needs::{Need, Test};
use stack_tests::programs::compiled;
use stack_tests::tests;

/// The generated cases are made of these seeds.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=48;

/// So many cases must run under both, or there is too little to compare.
const ENOUGH: usize = 90;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "differential",
        &[
            Need::Root,
            Need::Host,
            Need::Cgroup1,
            Need::Program("musl-gcc")
        ],
        [every_difference_to_libcontainer_is_explained]
    )
}

fn every_difference_to_libcontainer_is_explained() {
    let directory = tempfile::Builder::new().prefix("qdiff").tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let holder = Holder::start();
    // Its C library makes few system calls of its own, which filters may be in the way of.
    let probe = compiled("musl-gcc", "tests/probe/probe.c");
    let mut cases = by_hand();
    cases.extend(SEEDS.map(generate::case));
    let compared = AtomicUsize::new(0);
    let halves = cases.split_at(cases.len() / 2);
    let compare = |name: &str, cases: &[Case]| -> Vec<_> {
        let place = directory.path().join(name);
        let (subject, oracle) = (subject(), oracle());
        let [ours, theirs] = [subject, oracle].map(|it| Contestant::new(&it, &place, &probe));
        let compare = |case: &Case| {
            let (ours, theirs) = (ours.run(case, &holder), theirs.run(case, &holder));
            assert_eq!(left_behind(&ours), "", "left by qrun in {}", case.name);
            if ran(&ours) && ran(&theirs) {
                compared.fetch_add(1, Ordering::Relaxed);
            }
            differences(&case.name, &ours, &theirs)
        };
        cases.iter().flat_map(compare).collect()
    };
    let found = std::thread::scope(|scope| {
        let first = scope.spawn(|| compare("first", halves.0));
        let mut found = compare("second", halves.1);
        found.extend(first.join().unwrap());
        found
    });
    // Runtimes leave the parents of a cgroup they made.
    stack_tests::host::remove_empty_cgroups("qdiff-parent");
    let compared = compared.into_inner();
    assert!(
        compared >= ENOUGH,
        "only {compared} containers ran under both"
    );
    let rows = rows(include_str!("../../../docs/libcontainer.md"));
    let wrong = check(&rows, &found);
    assert!(
        wrong.is_empty(),
        "{} cases; a case seedN is generate::case(N):\n{}",
        cases.len(),
        wrong.join("\n")
    );
}

/// What a runtime left on the host.
fn left_behind(seen: &Sight) -> String {
    let left = seen.iter().filter(|(key, _)| key.starts_with("left "));
    left.map(|(_, what)| what.as_str()).collect()
}

/// A container with everything usual.
fn base(name: &str) -> Case {
    let mut config = config(&[]);
    config["process"]["args"] = Value::Null;
    config["linux"]["cgroupsPath"] = format!("/qdiff-{}-{name}", std::process::id()).into();
    Case::new(name, config)
}

fn by_hand() -> Vec<Case> {
    let mut all = vec![
        base("plain"),
        base("no-cgroup-path").with("/linux/cgroupsPath", Value::Null),
    ];
    all.extend(processes());
    all.extend(namespaces());
    all.extend(files());
    all.extend(limits());
    all.extend(filters());
    all
}

/// What the process itself is given.
fn processes() -> Vec<Case> {
    let none =
        json!({"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []});
    let ambient = json!(["CAP_NET_RAW"]);
    vec![
        base("terminal").with("/process/terminal", true.into()),
        base("console-size")
            .with("/process/terminal", true.into())
            .with("/process/consoleSize", json!({"height": 33, "width": 99})),
        base("user")
            .with("/process/user", json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 6], "umask": 63})),
        base("terminal-of-user")
            .with("/process/terminal", true.into())
            .with("/process/user", json!({"uid": 1000, "gid": 1000})),
        base("no-capabilities").with("/process/capabilities", none),
        base("capabilities-missing").with("/process/capabilities", Value::Null),
        base("capabilities-of-user")
            .with("/process/user", json!({"uid": 1000, "gid": 1000}))
            .with("/process/capabilities", json!({
                "bounding": ambient, "permitted": ambient, "effective": ambient,
                "inheritable": ambient, "ambient": ambient,
            })),
        base("unknown-capability").with("/process/capabilities/bounding/-", "CAP_FUTURE".into()),
        base("new-privileges").with("/process/noNewPrivileges", false.into()),
        base("rlimits").with("/process/rlimits", json!([
            {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ])),
        base("rlimit-twice").with("/process/rlimits", json!([
            {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}, {"type": "RLIMIT_NOFILE", "soft": 6, "hard": 12},
        ])),
        base("oom-score").with("/process/oomScoreAdj", 777.into()),
        base("working-directory-made").with("/process/cwd", "/not/yet/there".into()),
        base("working-directory-relative").with("/process/cwd", "tmp".into()),
        base("no-such-program").with("/process/args", json!(["/bin/none"])),
        base("program-by-path").with("/process/args", json!(["probe"])),
        base("no-path").with("/process/env", json!(["A=b"])),
        base("same-variable-twice").with("/process/env", json!(["PATH=/bin", "A=1", "A=2", "HOME="])),
        base("scheduler").with("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 5})),
        base("io-priority").with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0})),
        base("personality").with("/linux/personality", json!({"domain": "LINUX32"})),
    ]
}

fn namespaces() -> Vec<Case> {
    let kinds = |list: &[&str]| -> Value {
        let list = list.iter().map(|kind| json!({"type": kind}));
        list.collect()
    };
    let usual = ["pid", "network", "ipc", "uts", "mount"];
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let user = |name: &str| {
        base(name)
            .with("/linux/namespaces/-", json!({"type": "user"}))
            .with("/linux/uidMappings", ids.clone())
            .with("/linux/gidMappings", ids.clone())
    };
    let join =
        |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/@pid@/ns/{file}")});
    vec![
        base("no-cgroup-namespace").with("/linux/namespaces", kinds(&usual)),
        base("no-pid-namespace").with("/linux/namespaces", kinds(&["network", "ipc", "uts", "mount"])),
        base("hosts-network").with("/linux/namespaces", kinds(&["pid", "ipc", "uts", "mount", "cgroup"])),
        user("user-namespace"),
        user("user-namespace-terminal").with("/process/terminal", true.into()),
        user("user-namespace-devices").with(
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]),
        ),
        base("joined").with("/linux/namespaces", json!([
            {"type": "pid"}, {"type": "mount"}, join("network", "net"), join("uts", "uts"), join("ipc", "ipc"), join("cgroup", "cgroup"),
        ])).with("/hostname", "".into()),
        base("joined-twice").with("/linux/namespaces/-", json!({"type": "pid"})),
        base("time-namespace")
            .with("/linux/namespaces/-", json!({"type": "time"}))
            .with("/linux/timeOffsets", json!({"monotonic": {"secs": 86400, "nanosecs": 1}})),
        base("domain-name").with("/domainname", "tree".into()),
        base("sysctls").with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"})),
        base("sysctl-of-host").with("/linux/sysctl", json!({"vm.swappiness": "1"})),
    ]
}

fn files() -> Vec<Case> {
    let mount = |to: &str, options: Value| json!({"destination": to, "type": "bind", "source": "@bundle@/data", "options": options});
    let plain = |name: &str, options: Value| base(name).with("/mounts/-", mount("/data", options));
    let hook = |name: &str| {
        let script = format!("{{ printf '{name} '; cat; echo; }} >> @bundle@/data/hooks");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]}])
    };
    vec![
        base("read-only-root").with("/root/readonly", true.into()),
        plain("bind", json!(["bind"])),
        plain("bind-read-only", json!(["bind", "ro"])),
        plain("bind-recursive", json!(["rbind", "rro", "nosuid", "noexec"])),
        plain("bind-shared", json!(["rbind", "rshared"])),
        plain("bind-slave", json!(["rbind", "rslave", "nodev"])),
        plain("bind-without-bind", json!([])),
        base("bind-relative").with(
            "/mounts/-",
            json!({"destination": "/data", "type": "bind", "source": "data", "options": ["bind"]}),
        ),
        base("tmpfs-new").with(
            "/mounts/-",
            json!({"destination": "/data", "type": "tmpfs", "source": "it", "options": ["size=1m"]}),
        ),
        base("bind-missing").with("/mounts/-", json!({"destination": "/data", "type": "bind", "source": "/no/such", "options": ["bind"]})),
        base("bind-file").with("/mounts/-", json!({"destination": "/etc/new", "type": "bind", "source": "@bundle@/data/file", "options": ["bind", "ro"]})),
        base("through-a-link").with("/mounts/-", mount("/link/x", json!(["bind"]))),
        base("tmpfs-copy-up").with("/mounts/-", json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=0750"]})),
        base("cgroup-writable").with("/mounts/6/options", json!(["nosuid", "noexec", "nodev"])),
        base("root-shared").with("/linux/rootfsPropagation", "shared".into()),
        base("root-slave").with("/linux/rootfsPropagation", "rslave".into()),
        base("unbindable-root").with("/linux/rootfsPropagation", "unbindable".into()),
        base("devices").with("/linux/devices", json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 432, "uid": 5, "gid": 6},
            {"path": "/dev/sub/null", "type": "c", "major": 1, "minor": 3},
        ])),
        base("device-outside-dev").with(
            "/linux/devices",
            json!([{"path": "/etc/null", "type": "c", "major": 1, "minor": 3, "fileMode": 292}]),
        ),
        base("device-unbuffered").with(
            "/linux/devices",
            json!([{"path": "/dev/plain", "type": "u", "major": 1, "minor": 5}]),
        ),
        base("device-that-is-there").with("/linux/devices", json!([
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384},
        ])),
        base("no-masks").with("/linux/maskedPaths", Value::Null).with("/linux/readonlyPaths", Value::Null),
        base("hooks").with("/hooks", json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "startContainer": [{"path": "/bin/probe", "args": ["probe", "hook", "/data/hooks"]}],
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        })).with("/mounts/-", mount("/data", json!(["bind"]))).with("/annotations", json!({"a": "b"})),
        base("hook-that-fails").with("/hooks", json!({"createRuntime": [{"path": "/bin/false"}]})),
    ]
}

fn limits() -> Vec<Case> {
    let with = |name: &str, part: &str, value: Value| {
        base(name).with(&format!("/linux/resources/{part}"), value)
    };
    vec![
        with(
            "memory",
            "memory",
            json!({"limit": 64 << 20, "reservation": 32 << 20, "swap": 128 << 20, "swappiness": 0}),
        ),
        with(
            "memory-unlimited",
            "memory",
            json!({"limit": -1, "swap": -1}),
        ),
        with(
            "cpu",
            "cpu",
            json!({"shares": 300, "quota": 20_000, "period": 40_000, "burst": 5000, "cpus": "0", "mems": "0"}),
        ),
        with("pids", "pids", json!({"limit": 77})),
        with("pids-zero", "pids", json!({"limit": 0})),
        with(
            "block-devices",
            "blockIO",
            json!({"throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 1_000_000}]}),
        ),
        with(
            "devices-allowed",
            "devices",
            json!([
                {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": false, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
            ]),
        ),
        with(
            "devices-all",
            "devices",
            json!([{"allow": true, "access": "rwm"}]),
        ),
        with("network-class", "network", json!({"classID": 17})),
        base("cgroup-path-deep").with("/linux/cgroupsPath", "/qdiff-parent/deep".into()),
        base("cgroup-path-relative").with("/linux/cgroupsPath", "qdiff-parent/child".into()),
    ]
}

fn filters() -> Vec<Case> {
    let with = |name: &str, profile: Value| base(name).with("/linux/seccomp", profile);
    let errno = |names: &[&str]| json!({"names": names, "action": "SCMP_ACT_ERRNO"});
    vec![
        with(
            "filter-errno",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [errno(&["mkdirat", "keyctl"])]}),
        ),
        with(
            "filter-unknown-call",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [errno(&["no_such_call", "acct"])]}),
        ),
        with(
            "filter-log-default",
            json!({"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [errno(&["bpf"])]}),
        ),
        with(
            "filter-masked",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
                "names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                "args": [{"index": 0, "value": 0x1000_0000, "valueTwo": 0x1000_0000, "op": "SCMP_CMP_MASKED_EQ"}],
            }]}),
        ),
        with(
            "filter-deny-by-default",
            json!({
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": NEEDED[..], "action": "SCMP_ACT_ALLOW"}],
            }),
        ),
        with(
            "filter-kill",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_KILL_THREAD"}, {"names": ["bpf"], "action": "SCMP_ACT_TRAP"}]}),
        ),
        with(
            "filter-two-arguments",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{
                "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
                "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}],
            }]}),
        ),
        with(
            "filter-without-new-privileges",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [errno(&["acct"])]}),
        )
        .with("/process/noNewPrivileges", false.into()),
    ]
}

/// What the probe, its C library and a runtime after it has loaded the filter cannot do without.
const NEEDED: [&str; 125] = [
    "accept",
    "accept4",
    "access",
    "arch_prctl",
    "bind",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clock_gettime",
    "clock_nanosleep",
    "clone",
    "close",
    "close_range",
    "connect",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fchown",
    "fcntl",
    "fgetxattr",
    "fork",
    "fstat",
    "fstatfs",
    "fsync",
    "futex",
    "get_mempolicy",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getsid",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "ioctl",
    "ioprio_get",
    "keyctl",
    "kill",
    "lgetxattr",
    "listen",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pause",
    "personality",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "pselect6",
    "pwrite64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_getattr",
    "sched_yield",
    "select",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setrlimit",
    "setsockopt",
    "setuid",
    "shutdown",
    "sigaltstack",
    "signalfd4",
    "socket",
    "stat",
    "statx",
    "tgkill",
    "timerfd_create",
    "times",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "wait4",
    "write",
    "writev",
];
