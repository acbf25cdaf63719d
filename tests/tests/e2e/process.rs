//! What a configuration says of a process has its effect, in the container's first process and in those of `exec`.

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::Outcome;
use stack_tests::needs::{Need, Test, in_vm};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "process",
        &[Need::Root],
        [
            the_first_process_is_scheduled_as_asked,
            exec_takes_what_it_does_not_say_from_the_container,
            exec_says_for_itself,
            deadlines_and_chosen_cpus_exclude_each_other,
            exec_begins_and_ends_on_its_cpus,
            mistakes_are_refused_before_anything_is_made,
            ambient_capabilities_that_cannot_be_are_told,
            a_session_keyring_of_its_own_unless_refused,
            a_created_container_ends_when_told_to,
            a_signal_right_after_the_start_reaches_the_program,
            a_filter_that_knows_no_newer_calls_is_no_obstacle,
            sub_cgroups_are_joined_by_name_or_not_at_all,
            features_is_what_runc_prints_in_shape,
        ]
    )
}

/// A bundle of which nearly everything about scheduling is said.
fn scheduled(args: &[&str]) -> Bundle {
    Bundle::new(args)
        .with(
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 19}),
        )
        .with(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 4}),
        )
        .with("/process/user/umask", json!(0o77))
        .with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
        )
        .with("/process/oomScoreAdj", json!(77))
        .with("/linux/personality", json!({"domain": "LINUX32"}))
        .with(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}),
        )
}

/// Shows all of that. Fields 19 and 41 of proc_pid_stat(5) are the nice value and the policy, of which 3 is BATCH.
const SHOW: &str = "set -- $(cat /proc/self/stat); echo nice ${19} policy ${41}; ionice; uname -m; ulimit -n; \
                    grep Umask /proc/self/status; head -n1 /proc/self/numa_maps | cut -d' ' -f2; \
                    cat /proc/self/oom_score_adj";

fn shown(ionice: &str, oom: &str) -> String {
    format!("nice 19 policy 3\n{ionice}\ni686\n100\nUmask:\t0077\ninterleave:0\n{oom}")
}

fn the_first_process_is_scheduled_as_asked() {
    let outcome = Runtime::new().run_bundle(&scheduled(&["sh", "-c", SHOW]));
    assert_eq!(outcome.ok(), shown("best-effort: prio 4", "77"));
}

/// Runs `exec --process` with this process.
fn exec_file(runtime: &Runtime, id: &str, process: &Value) -> Outcome {
    let file = runtime.directory().join("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    runtime.run(&format!("exec --process {} {id}", file.display()))
}

fn exec_takes_what_it_does_not_say_from_the_container() {
    let runtime = Runtime::new();
    let bundle = scheduled(&["sleep", "1000"]);
    let id = runtime.started("a", &bundle);
    // What becomes of the bundle later does not count.
    let changed = bundle.with("/process/rlimits", json!([]));
    let expected = shown("best-effort: prio 4", "77");
    let process = json!({"args": ["/bin/sh", "-c", SHOW], "cwd": "/", "env": ["PATH=/bin"]});
    assert_eq!(exec_file(&runtime, &id, &process).ok(), expected);
    let by_options = runtime.run(&format!("exec {id} sh -c \"{SHOW}\""));
    assert_eq!(by_options.ok(), expected);
    let process = json!({"args": ["/bin/grep", "CapBnd", "/proc/self/status"], "cwd": "/"});
    let own = exec_file(&runtime, &id, &process);
    let outside =
        std::fs::read_to_string(format!("/proc/{}/status", runtime.state(&id)["pid"])).unwrap();
    assert!(outside.contains(own.ok()), "{outside}{}", own.report());
    drop(changed);
}

fn exec_says_for_itself() {
    let runtime = Runtime::new();
    let bundle = scheduled(&["sleep", "1000"]);
    let id = runtime.started("a", &bundle);
    let process = json!({
        "args": ["/bin/sh", "-c", SHOW], "cwd": "/", "env": ["PATH=/bin"], "oomScoreAdj": 99,
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}, "user": {"umask": 0o27},
        "scheduler": {"policy": "SCHED_OTHER", "nice": 5},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 50, "hard": 60}],
    });
    let expected = "nice 5 policy 0\nidle\ni686\n50\nUmask:\t0027\ninterleave:0\n99";
    assert_eq!(exec_file(&runtime, &id, &process).ok(), expected);
    let deadline = json!({
        "args": ["/bin/sh", "-c", "set -- $(cat /proc/$$/stat); echo ${41}"], "cwd": "/",
        "env": ["PATH=/bin"],
        "scheduler": {
            "policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000,
        },
    });
    assert_eq!(exec_file(&runtime, &id, &deadline).ok(), "6");
}

fn deadlines_and_chosen_cpus_exclude_each_other() {
    let deadline = json!({
        "policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000,
    });
    let bundle = Bundle::new(&["true"])
        .with("/process/scheduler", deadline)
        .with("/linux/resources/cpu", json!({"cpus": "0"}));
    Runtime::new()
        .run_bundle(&bundle)
        .code(1)
        .err("process scheduler can't be used together with AllowedCPUs");
}

fn exec_begins_and_ends_on_its_cpus() {
    let runtime = Runtime::new();
    let list = |outcome: &Outcome| outcome.ok().rsplit('\t').next().unwrap_or("").to_owned();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
        .unwrap()
        .to_owned();
    let bundle = Bundle::sleeper().with("/process/execCPUAffinity", json!({"final": "0"}));
    let id = runtime.started("a", &bundle);
    let look = "grep Cpus_allowed_list: /proc/self/status";
    assert_eq!(list(&runtime.run(&format!("exec {id} {look}"))), "0");
    let process = |affinity: Value| {
        let args: Vec<_> = look.split(' ').collect();
        json!({"args": args, "cwd": "/", "env": ["PATH=/bin"], "execCPUAffinity": affinity})
    };
    // Whether it stays on the CPUs that it began on is for the kernel to say.
    for (cpus, mask) in [("0", "0x1"), ("1", "0x2")] {
        let file = runtime.directory().join("begins.json");
        std::fs::write(&file, process(json!({"initial": cpus})).to_string()).unwrap();
        let outcome = runtime.run(&format!("--debug exec --process {} {id}", file.display()));
        outcome.code(0).err(&format!(": affinity: {mask}"));
    }
    let bad = exec_file(&runtime, &id, &process(json!({"initial": "0-x"})));
    bad.code(255).err("bad CPUAffinity.Initial");
    // Whatever the caller is confined to, the container is not.
    let other = runtime.id("b");
    let bundle = Bundle::new(&look.split(' ').collect::<Vec<_>>());
    let line = format!("run --bundle {} {other}", bundle.path().display());
    assert_eq!(list(&runtime.run_by("taskset 1", &line)), own);
}

fn mistakes_are_refused_before_anything_is_made() {
    let runtime = Runtime::new();
    let limit = json!({"type": "RLIMIT_CPU", "soft": 1, "hard": 1});
    for (pointer, value, message) in [
        (
            "/process/rlimits",
            json!([limit, limit]),
            "rlimit type RLIMIT_CPU is given more than once",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "invalid rlimit type: RLIMIT_X",
        ),
        (
            "/process/scheduler",
            json!({"nice": 1}),
            "scheduler policy is required",
        ),
        (
            "/process/ioPriority",
            json!({"class": "X", "priority": 1}),
            "invalid ioPriority.Class",
        ),
        ("/process/cwd", json!("tmp"), "Cwd must be an absolute path"),
        ("/process/cwd", json!(""), "Cwd property must not be empty"),
        ("/process/args", json!([]), "args must not be empty"),
        (
            "/linux/memoryPolicy",
            json!({}),
            "invalid memory policy mode",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0-9876543210"}),
            "invalid memory policy node",
        ),
        (
            "/linux/personality",
            json!({"domain": "X"}),
            "invalid personality domain",
        ),
        (
            "/linux/netDevices",
            json!({"a/b": {}}),
            "invalid network device name",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_X"}),
            "string SCMP_ACT_X is not a valid action for seccomp",
        ),
    ] {
        let outcome = runtime.run_bundle(&Bundle::new(&["true"]).with(pointer, value));
        outcome.code(1).err(message);
    }
    runtime.assert_nothing_left();
    let harmless = Bundle::new(&["true"])
        .with("/linux/seccomp", json!({}))
        .with("/linux/future", json!({"a": [1]}))
        .with("/process/user/username", json!("nobody"))
        .with(
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
        );
    runtime
        .run_bundle(&harmless)
        .code(0)
        .err("ignoring unsupported personality flags");
    let without = runtime.run_bundle(&Bundle::new(&["true"]).with("/linux/intelRdt", json!({})));
    if !std::path::Path::new("/sys/fs/resctrl/info").exists() {
        without
            .code(1)
            .err("intelRdt is specified in config, but Intel RDT is not enabled");
    }
    let profile = Bundle::new(&["true"]).with("/process/apparmorProfile", json!("no-such-profile"));
    runtime
        .run_bundle(&profile)
        .code(1)
        .err("unable to apply apparmor profile");
}

fn ambient_capabilities_that_cannot_be_are_told() {
    let bundle = Bundle::new(&["true"])
        .with("/process/capabilities/ambient", json!(["CAP_CHOWN"]))
        .with(
            "/process/capabilities/bounding",
            json!(["CAP_CHOWN", "CAP_UNKNOWN"]),
        );
    let outcome = Runtime::new().run_bundle(&bundle);
    outcome
        .code(0)
        .err("can't raise ambient capability CAP_CHOWN: operation not permitted")
        .err("ignoring unknown or unavailable capabilities: [CAP_UNKNOWN]");
}

fn a_session_keyring_of_its_own_unless_refused() {
    let runtime = Runtime::new();
    let bundle = Bundle::sleeper().with("/linux/maskedPaths", json!([]));
    let names = |id: &str| {
        let keys = runtime.run(&format!("exec {id} cat /proc/keys"));
        keys.ok().contains(&format!("_ses.{id}"))
    };
    let id = runtime.started("a", &bundle);
    assert!(names(&id), "no keyring _ses.{id}");
    let id = runtime.id("b");
    runtime.leave(&format!(
        "run -d --no-new-keyring --bundle {} {id}",
        bundle.path().display()
    ));
    assert!(!names(&id), "a keyring _ses.{id}, which was refused");
}

fn a_created_container_ends_when_told_to() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.id("a");
    runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    runtime.run(&format!("kill {id} TERM")).ok();
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

fn a_signal_right_after_the_start_reaches_the_program() {
    // A first process does not get what it has no handler for.
    let after = |rounds| {
        let script = format!(
            "i=0; while [ $i -lt {rounds} ]; do i=$((i+1)); done; trap 'exit 7' TERM; while :; do sleep 0.01; done"
        );
        Bundle::new(&["sh", "-c", &script])
    };
    let bundle = after(1000);
    // 15 ms of processor time take a third of a second.
    let slow = after(3000).with(
        "/linux/resources/cpu",
        json!({"quota": 5_000, "period": 100_000}),
    );
    let runtime = Runtime::new();
    let mut bundles = vec![("a", &bundle), ("b", &bundle)];
    if !in_vm() {
        // An emulated processor would take longer for it than the runtime waits.
        bundles.push(("slow", &slow));
    }
    for (name, bundle) in bundles {
        let id = runtime.started(name, bundle);
        runtime.run(&format!("kill {id} TERM")).ok();
        runtime.wait_for(&id, "stopped");
        runtime.run(&format!("delete {id}")).ok();
    }
}

fn a_filter_that_knows_no_newer_calls_is_no_obstacle() {
    let calls = [
        "clone3",
        "close_range",
        "faccessat2",
        "fchmodat2",
        "openat2",
        "pidfd_open",
        "pidfd_send_signal",
        "rseq",
        "statx",
    ];
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    // With no new privileges the filter comes last of all.
    for privileges in [false, true] {
        let with = |args: &[&str]| {
            Bundle::new(args)
                .with("/linux/seccomp", filter.clone())
                .with("/process/noNewPrivileges", json!(!privileges))
        };
        let runtime = Runtime::new();
        runtime.run_bundle(&with(&["true"])).ok();
        runtime.run_bundle(&with(&["/bin/true"])).ok();
        let missing = runtime.run_bundle(&with(&["no-such-program"]));
        missing.code(1).err("executable file not found in $PATH");
        let not_executable = runtime.run_bundle(&with(&["/etc/passwd"]));
        not_executable.code(1).err("permission denied");
        let sleeper = with(&["sleep", "1000"]);
        let id = runtime.started("old", &sleeper);
        runtime.run(&format!("exec {id} true")).ok();
        runtime.run(&format!("exec --user 1000 {id} true")).ok();
    }
}

fn sub_cgroups_are_joined_by_name_or_not_at_all() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    runtime.run(&format!("exec --cgroup / {id} true")).ok();
    runtime
        .run(&format!("exec --cgroup .. {id} true"))
        .code(255)
        .err("bad sub cgroup path");
    runtime
        .run(&format!("exec --cgroup nowhere {id} true"))
        .code(255)
        .err("no such file or directory");
    runtime
        .run(&format!("exec --cgroup whaaat:/ {id} true"))
        .code(255)
        .err("unknown controller");
}

fn features_is_what_runc_prints_in_shape() {
    let features: Value = serde_json::from_str(Runtime::new().run("features").ok()).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert_eq!(features["hooks"].as_array().map(Vec::len), Some(6));
    for known in [
        "/annotations/org.opencontainers.runc.version",
        "/linux/seccomp/archs",
        "/linux/seccomp/knownFlags",
        "/linux/seccomp/supportedFlags",
        "/linux/intelRdt/monitoring",
        "/linux/memoryPolicy/modes",
        "/linux/netDevices/enabled",
        "/linux/mountExtensions/idmap/enabled",
        "/potentiallyUnsafeConfigAnnotations",
    ] {
        assert!(
            features.pointer(known).is_some(),
            "no {known} in {features:#}"
        );
    }
}
