//! `qrun` on bundles made by hand: every operation, as an engine uses them.

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "lifecycle",
        &[Need::Root],
        [
            run_passes_output_and_exit_code_through,
            create_start_state_kill_delete,
            start_waits_until_the_container_is_created,
            delete_refuses_a_running_container_unless_forced,
            exec_joins_the_container,
            exec_detached_writes_a_pid_file,
            pause_stops_the_clock_and_resume_restarts_it,
            list_and_ps_name_what_runs,
            hooks_run_in_order_with_the_state_on_stdin,
            the_inside_is_apart_from_the_host,
            capabilities_are_those_of_the_configuration,
            a_user_and_groups_of_ones_own,
            rlimits_and_sysctls_hold,
            masked_and_read_only_paths,
            volumes_are_bound,
            file_descriptors_are_preserved_on_request_only,
            sockets_of_the_service_manager_are_passed_on,
            the_default_seccomp_profile_refuses_what_it_should,
            options_may_follow_the_id,
        ]
    )
}

/// What a script prints inside a bundle.
#[track_caller]
fn inside(bundle: Bundle, script: &str) -> String {
    let bundle = bundle.with("/process/args", json!(["sh", "-c", script]));
    Runtime::new().run_bundle(&bundle).ok().to_owned()
}

fn run_passes_output_and_exit_code_through() {
    let runtime = Runtime::new();
    let outcome = runtime.run_bundle(&Bundle::new(&[
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ]));
    outcome.code(42);
    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out\n", "err\n")
    );
}

fn create_start_state_kill_delete() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.id("a");
    let pid_file = runtime.directory().join("pid");
    runtime.leave(&format!(
        "create --bundle {} --pid-file {} {id}",
        bundle.path().display(),
        pid_file.display()
    ));
    let state = runtime.state(&id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], *id);
    let bundle_path = bundle.path().display().to_string();
    assert_eq!(state["bundle"], *bundle_path);
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert_eq!(
        state["pid"].to_string(),
        pid,
        "the pid file has the init process"
    );

    runtime.run(&format!("start {id}")).ok();
    assert_eq!(runtime.state(&id)["status"], "running");
    let again = runtime.run(&format!("start {id}"));
    assert_ne!(
        again.code,
        0,
        "a running container starts again{}",
        again.report()
    );

    runtime.run(&format!("kill {id} KILL")).ok();
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    let gone = runtime.run(&format!("state {id}"));
    gone.code(1).err("does not exist");
    runtime.assert_nothing_left();
}

/// Whoever creates a container holds its lock, and writes which process it is into a record that is there already.
fn start_waits_until_the_container_is_created() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.id("early");
    let line = format!("create --bundle {} {id}", bundle.path().display());
    runtime.leave(&line);
    let directory = runtime.root().join(&id);
    let record = directory.join("state.json");
    let whole = std::fs::read_to_string(&record).unwrap();
    let mut early: serde_json::Value = serde_json::from_str(&whole).unwrap();
    early["pid"] = 0.into();
    let lock = std::fs::File::open(&directory).unwrap();
    lock.lock().unwrap();
    std::fs::write(&record, early.to_string()).unwrap();
    let start = runtime.command(&format!("start {id}")).spawn().unwrap();
    let waits = format!("-> FLOCK ADVISORY WRITE {} ", start.id());
    until("start waits for the lock", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        let squeezed = locks.split_whitespace().collect::<Vec<_>>().join(" ");
        squeezed.contains(&waits).then_some(())
    });
    std::fs::write(&record, whole).unwrap();
    drop(lock);
    let ended = start.wait_with_output().unwrap();
    assert!(ended.status.success());
    assert_eq!(runtime.state(&id)["status"], "running");
}

fn delete_refuses_a_running_container_unless_forced() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    let refused = runtime.run(&format!("delete {id}"));
    assert_ne!(refused.code, 0, "{}", refused.report());
    assert_eq!(runtime.state(&id)["status"], "running");
    runtime.run(&format!("delete --force {id}")).ok();
    runtime.assert_nothing_left();
    runtime.run(&format!("delete --force {id}")).ok();
}

fn exec_joins_the_container() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    let outcome = runtime.run(&format!(
        "exec {id} sh -c 'hostname; cat /proc/1/cmdline; exit 7'"
    ));
    outcome.code(7).out("nest").out("sleep");
    let env = runtime.run(&format!(
        "exec --env BIRD=heron --cwd /tmp {id} sh -c 'echo $BIRD in $PWD'"
    ));
    assert_eq!(env.ok(), "heron in /tmp");
    let user = runtime.run(&format!("exec --user 1000:1001 {id} id"));
    user.code(0).out("uid=1000").out("gid=1001");
    let process = runtime.directory().join("process.json");
    let spec = json!({
        "args": ["sh", "-c", "echo $WHERE"], "cwd": "/", "env": ["PATH=/bin", "WHERE=here"],
        "user": {"uid": 0, "gid": 0}, "terminal": false,
    });
    std::fs::write(&process, spec.to_string()).unwrap();
    let from_file = runtime.run(&format!("exec --process {} {id}", process.display()));
    assert_eq!(from_file.ok(), "here");
}

fn exec_detached_writes_a_pid_file() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    let pid_file = runtime.directory().join("exec.pid");
    runtime.leave(&format!(
        "exec --detach --pid-file {} {id} sleep 999",
        pid_file.display()
    ));
    let pid = std::fs::read_to_string(pid_file).unwrap();
    until("the process has become the program", || {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        (line == "sleep\u{0}999\u{0}").then_some(())
    });
}

fn pause_stops_the_clock_and_resume_restarts_it() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "while true; do echo x >> /tmp/ticks; usleep 10000; done",
    ]);
    let runtime = Runtime::new();
    let id = runtime.started("a", &bundle);
    let ticks = || std::fs::metadata(bundle.rootfs().join("tmp/ticks")).map_or(0, |it| it.len());
    until("the container ticks", || (ticks() > 2).then_some(()));
    runtime.run(&format!("pause {id}")).ok();
    assert_eq!(runtime.state(&id)["status"], "paused");
    let before = ticks();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(ticks(), before, "it ticks while it is paused");
    runtime.run(&format!("resume {id}")).ok();
    until("the container ticks again", || {
        (ticks() > before).then_some(())
    });
}

fn list_and_ps_name_what_runs() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    let pid = runtime.state(&id)["pid"].to_string();
    runtime
        .run("list")
        .code(0)
        .out("STATUS")
        .out(&id)
        .out("running");
    assert_eq!(runtime.run("list -q").ok(), id);
    let list: serde_json::Value = serde_json::from_str(runtime.run("list -f json").ok()).unwrap();
    assert_eq!(list[0]["id"], *id);
    runtime
        .run(&format!("ps {id}"))
        .code(0)
        .out(&pid)
        .out("sleep 1000");
    let pids: serde_json::Value =
        serde_json::from_str(runtime.run(&format!("ps -f json {id}")).ok()).unwrap();
    assert_eq!(pids.to_string(), format!("[{pid}]"));
}

fn hooks_run_in_order_with_the_state_on_stdin() {
    let runtime = Runtime::new();
    let log = runtime.directory().join("hooks");
    let hook = |name: &str| {
        let script = format!(
            "echo {name} $(cat | grep -o '\"status\": *\"[a-z]*\"') >> {}",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let bundle = Bundle::new(&["true"]).with(
        "/hooks",
        json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        }),
    );
    runtime.run_bundle(&bundle).ok();
    let log = std::fs::read_to_string(log).unwrap();
    let order: Vec<_> = log
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        order,
        ["prestart", "createRuntime", "poststart", "poststop"],
        "{log}"
    );
    assert!(
        log.contains("stopped"),
        "poststop sees the state stopped: {log}"
    );

    let failing = Bundle::new(&["true"]).with(
        "/hooks",
        json!({"createRuntime": [{"path": "/bin/false", "args": ["false"]}]}),
    );
    let outcome = runtime.run_bundle(&failing);
    assert_ne!(
        outcome.code,
        0,
        "a failing hook stops the creation{}",
        outcome.report()
    );
    runtime.assert_nothing_left();
}

fn the_inside_is_apart_from_the_host() {
    let script = "hostname; ps | wc -l; ls /sys/class/net; cat /proc/self/mountinfo | grep -c ' / / '; pwd; ls -d /work 2>&1; true";
    let seen = inside(Bundle::new(&[]), script);
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[0], "nest");
    assert!(
        lines[1].parse::<u32>().unwrap() <= 5,
        "it sees other processes: {seen}"
    );
    assert_eq!(lines[2], "lo");
    assert!(seen.contains("ls: /work: No such file"), "{seen}");
}

fn capabilities_are_those_of_the_configuration() {
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"], "inheritable": [], "ambient": [],
    });
    let bundle = Bundle::new(&[]).with("/process/capabilities", sets);
    let seen = inside(bundle, "grep Cap /proc/self/status");
    assert!(seen.contains("CapBnd:\t0000000000000021"), "{seen}");
    // An exec by root fills the permitted set up from the bounding set; see capabilities(7).
    assert!(seen.contains("CapPrm:\t0000000000000021"), "{seen}");
    assert!(seen.contains("CapAmb:\t0000000000000000"), "{seen}");
}

fn a_user_and_groups_of_ones_own() {
    let user = json!({"uid": 1000, "gid": 1000, "additionalGids": [1001, 7], "umask": 0o27});
    let seen = inside(
        Bundle::new(&[]).with("/process/user", user),
        "id; umask; touch /etc/x 2>&1; true",
    );
    assert!(seen.contains("uid=1000(bird) gid=1000(bird)"), "{seen}");
    assert!(
        seen.contains("1001(song)") && seen.contains("=7,"),
        "{seen}"
    );
    assert!(
        seen.contains("0027") && seen.contains("Permission denied"),
        "{seen}"
    );
}

fn rlimits_and_sysctls_hold() {
    let bundle = Bundle::new(&[])
        .with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]),
        )
        .with(
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"}),
        );
    let seen = inside(
        bundle,
        "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax",
    );
    assert_eq!(seen, "100\n200\n1\n4096");
}

fn masked_and_read_only_paths() {
    let seen = inside(
        Bundle::new(&[]).with("/root/readonly", json!(true)),
        "cat /proc/keys | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/panic; true",
    );
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
    let outcome = Runtime::new()
        .run_bundle(&Bundle::new(&["touch", "/x"]).with("/root/readonly", json!(true)));
    outcome.code(1).err("Read-only file system");
}

fn volumes_are_bound() {
    let runtime = Runtime::new();
    let volume = runtime.directory().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("in"), "from outside").unwrap();
    let bind = |to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": volume, "options": options});
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "cat /rw/in; echo made > /rw/out; touch /deep/ro/x",
    ])
    .with("/mounts/-", bind("/rw", &["rbind", "rw"]))
    .with("/mounts/-", bind("/deep/ro", &["rbind", "ro"]));
    let outcome = runtime.run_bundle(&bundle);
    outcome
        .code(1)
        .out("from outside")
        .err("Read-only file system");
    assert_eq!(
        std::fs::read_to_string(volume.join("out")).unwrap(),
        "made\n"
    );
}

fn file_descriptors_are_preserved_on_request_only() {
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["sh", "-c", "grep . <&5 || grep . <&3"]);
    for (flag, redirection, code) in [
        ("--preserve-fds 1", "3</etc/hostname", 0),
        ("", "3</etc/hostname", 1),
        // The last of three, and not one of them.
        ("--preserve-fds 3", "5</etc/hostname 3<&- 4<&-", 0),
        ("--preserve-fds 3", "3<&- 4<&- 5<&-", 1),
    ] {
        let id = runtime.id("fd");
        let qrun = stack_tests::programs::built("qrun");
        let script = format!(
            "{} --root {} run {flag} --bundle {} {id} {redirection}",
            qrun.display(),
            runtime.root().display(),
            bundle.path().display()
        );
        let outcome =
            stack_tests::command::run(std::process::Command::new("sh").args(["-c", &script]));
        let succeeded = outcome.code == 0;
        assert_eq!(succeeded, code == 0, "{flag}{}", outcome.report());
    }
}

/// Socket activation (sd_listen_fds(3)): the container's process gets what was meant for the runtime, before what the
/// command line asks for.
fn sockets_of_the_service_manager_are_passed_on() {
    let runtime = Runtime::new();
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "echo \"$LISTEN_FDS,$LISTEN_PID\"; cat <&3 && cat <&4",
    ]);
    let file = |name: &str| {
        let path = runtime.directory().join(name);
        std::fs::write(&path, format!("{name}\n")).unwrap();
        path.display().to_string()
    };
    let (one, two) = (file("one"), file("two"));
    for (environment, flag, code, said) in [
        (
            "LISTEN_FDS=1 LISTEN_PID=$$",
            "--preserve-fds 1",
            0,
            "1,1\none\ntwo\n",
        ),
        ("LISTEN_FDS=2 LISTEN_PID=$$", "", 0, "2,1\none\ntwo\n"),
        ("LISTEN_FDS=1 LISTEN_PID=$$", "", 1, "1,1\none\n"),
        // Meant for another process.
        ("LISTEN_FDS=2 LISTEN_PID=1", "", 1, ",\n"),
    ] {
        let id = runtime.id("listens");
        let script = format!(
            "export {environment}; exec {} --root {} run {flag} --bundle {} {id} 3<{one} 4<{two}",
            stack_tests::programs::built("qrun").display(),
            runtime.root().display(),
            bundle.path().display()
        );
        let mut command = std::process::Command::new("sh");
        let outcome = stack_tests::command::run(command.args(["-c", &script]));
        assert_eq!(
            outcome.stdout,
            said,
            "{environment} {flag}{}",
            outcome.report()
        );
        assert_eq!(
            outcome.code,
            code,
            "{environment} {flag}{}",
            outcome.report()
        );
    }
}

fn the_default_seccomp_profile_refuses_what_it_should() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
             "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
        ],
    });
    let bundle = Bundle::new(&[]).with("/linux/seccomp", profile);
    let script = "mkdir /tmp/d 2>&1; kill -USR1 1 2>&1; kill -0 1 && echo allowed; grep Seccomp: /proc/self/status";
    let seen = inside(bundle, script);
    assert!(seen.contains("not supported"), "{seen}");
    assert!(
        seen.contains("not permitted") && seen.contains("allowed"),
        "{seen}"
    );
    assert!(seen.contains("Seccomp:\t2"), "{seen}");
}

fn options_may_follow_the_id() {
    let (runtime, bundle) = (Runtime::new(), Bundle::new(&["echo", "after"]));
    let id = runtime.id("late");
    let outcome = runtime.run(&format!("run {id} --bundle {}", bundle.path().display()));
    assert_eq!(outcome.ok(), "after");
}
