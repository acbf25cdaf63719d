//! Docker with the runtime under test, by either shim: what `docs/docker.md` says of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::command::{run, run_with_input};
use stack_tests::docker::Docker;
use stack_tests::needs::{Need, Test};
use stack_tests::netns::isolate;
use stack_tests::peers::Shim;
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    const DOCKER: &[Need] = &[
        Need::Root,
        Need::Host,
        Need::Program("dockerd"),
        Need::Program("docker"),
        Need::Program("containerd"),
        Need::Program("ctr"),
    ];
    const CHECKPOINTS: &[Need] = &[
        Need::Root,
        Need::Host,
        Need::Program("dockerd"),
        Need::Program("docker"),
        Need::Program("containerd"),
        Need::Program("ctr"),
        Need::Criu,
    ];
    let mut all = tests!(
        "dockerd",
        DOCKER,
        [
            containers_run_by_their_shim,
            containers_run_by_our_shim,
            limits_are_measured_changed_and_enforced,
            containers_are_started_again,
            containers_outlive_a_killed_daemon,
            a_killed_shim_is_the_end_of_its_container,
        ]
    );
    all.extend(tests!(
        "dockerd",
        CHECKPOINTS,
        [a_checkpoint_is_started_from]
    ));
    all
}

/// Docker with the test's own network, so that it may have its bridge.
fn docker(shim: Shim) -> Docker {
    isolate();
    Docker::start(shim)
}

/// Runs a line of `docker` that must succeed.
#[track_caller]
fn ok(docker: &Docker, line: &str) -> String {
    run(&mut docker.command(line)).ok().to_owned()
}

/// A process of a container.
#[track_caller]
fn pid(docker: &Docker, name: &str) -> Pid {
    Pid::from_raw(docker.inspect(name, "{{.State.Pid}}").parse().unwrap())
}

fn containers_run_by_their_shim() {
    let docker = docker(Shim::Theirs);
    runs_give_output_and_code(&docker);
    runs_are_confined(&docker);
    lives_have_all_stations(&docker);
}

fn containers_run_by_our_shim() {
    let docker = docker(Shim::Ours);
    runs_give_output_and_code(&docker);
    terminals_can_be_had(&docker);
    lives_have_all_stations(&docker);
}

fn runs_give_output_and_code(docker: &Docker) {
    let line = "run --rm bird sh -c 'echo out; echo err >&2; exit 3'";
    run(&mut docker.command(line)).code(3).out("out").err("err");
    run(&mut docker.command("run --rm bird /no/such/program"))
        .code(127)
        .err("/no/such/program");
    let mut cat = docker.command("run --rm -i bird cat");
    assert_eq!(run_with_input(&mut cat, b"piped\n").ok(), "piped");
    // Its bridge, joined by a hook.
    assert!(ok(docker, "run --rm bird ip -4 addr show eth0").contains("inet 172."));
}

fn runs_are_confined(docker: &Docker) {
    let status = ok(
        docker,
        "run --rm --user 7:8 --cap-drop ALL bird cat /proc/self/status",
    );
    for line in [
        "Uid:\t7\t7\t7\t7",
        "Gid:\t8\t8\t8\t8",
        "CapBnd:\t0000000000000000",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    // Docker's profile refuses that; anybody may do it otherwise.
    let line = "run --rm --user 7:8 bird unshare -U true";
    run(&mut docker.command(line))
        .code(1)
        .err("Operation not permitted");
    run(&mut docker.command("run --rm --read-only bird touch /a"))
        .code(1)
        .err("Read-only");
    assert_eq!(
        ok(docker, "run --rm --init bird cat /proc/1/comm"),
        "docker-init"
    );
    let script = "for i in 1 2 3 4 5 6 7; do sleep 1 & done";
    let line = format!("run --rm --pids-limit 5 bird sh -c '{script}'");
    run(&mut docker.command(&line)).err("can't fork");
}

fn lives_have_all_stations(docker: &Docker) {
    let script = "trap \"echo asked; exit 4\" TERM; echo up; while :; do sleep 0.1; done";
    ok(docker, &format!("run -d --name jay bird sh -c '{script}'"));
    let up = |times: usize| {
        until("it is up", || {
            (ok(docker, "logs jay").matches("up").count() == times).then_some(())
        });
    };
    up(1);
    run(&mut docker.command("exec jay sh -c 'echo out; echo err >&2; exit 7'"))
        .code(7)
        .out("out")
        .err("err");
    let mut cat = docker.command("exec -i jay cat");
    assert_eq!(run_with_input(&mut cat, b"piped\n").ok(), "piped");
    let missing = run(&mut docker.command("exec jay /no/such/program"));
    missing.out("/no/such/program");
    // By its version.
    assert!([126, 127].contains(&missing.code), "{}", missing.report());
    assert!(ok(docker, "top jay").contains("echo asked"));
    ok(docker, "pause jay");
    assert_eq!(docker.inspect("jay", "{{.State.Status}}"), "paused");
    ok(docker, "unpause jay");
    ok(docker, "restart --time 60 jay");
    up(2);
    // Until it ends.
    let mut follow = Pty::start(&docker.command("logs --follow jay"));
    follow.expect("asked");
    ok(docker, "stop --time 60 jay");
    follow.expect("asked");
    assert_eq!(follow.exit(), 0);
    assert_eq!(docker.inspect("jay", "{{.State.ExitCode}}"), "4");
    ok(docker, "start jay");
    let mut wait = Pty::start(&docker.command("wait jay"));
    ok(docker, "kill jay");
    wait.expect("137");
    ok(docker, "start jay");
    run(&mut docker.command("rm jay")).code(1).err("running");
    ok(docker, "rm --force jay");
    until("its shim is gone", || {
        docker.shims().is_empty().then_some(())
    });
}

fn terminals_can_be_had(docker: &Docker) {
    ok(docker, "run -d --name jay bird sleep 1000");
    for line in ["run --rm -it bird sh", "exec -it jay sh"] {
        let mut terminal = Pty::start(&docker.command(line));
        terminal.send("tty; echo $((6 * 7))\n");
        terminal.expect("/dev/pts/");
        terminal.expect("42");
        terminal
            .send("until stty size | grep -q '30 100'; do sleep 0.1; done; echo so' 'it' 'is\n");
        // Again and again: the client may not listen yet when its window changes.
        until("the new size is seen inside", || {
            terminal.resize(29, 100);
            terminal.resize(30, 100);
            std::thread::sleep(std::time::Duration::from_millis(100));
            terminal.heard().contains("so it is").then_some(())
        });
        terminal.send("exit 5\n");
        assert_eq!(terminal.exit(), 5, "{line}");
    }
    ok(docker, "rm --force jay");
}

fn limits_are_measured_changed_and_enforced() {
    let docker = docker(Shim::Ours);
    ok(&docker, "run -d --name jay --memory 32m bird sleep 1000");
    // Again where the client had no figures after the two seconds it waits for them.
    let measured = |of: &str| {
        until(&format!("its memory is measured, {of}"), || {
            let stats = ok(
                &docker,
                "stats --no-stream --format '{{.PIDs}} {{.MemUsage}}' jay",
            );
            let used = stats.strip_prefix("1 ")?.strip_suffix(of)?;
            (!used.starts_with("0B")).then_some(())
        });
    };
    measured("/ 32MiB");
    ok(&docker, "update --memory 64m --memory-swap 64m jay");
    measured("/ 64MiB");
    // Where there is swap it is no way out.
    let script = "head -c 200000000 /dev/zero | tail -c 100000000";
    let line = format!("run --name glutton --memory 16m --memory-swap 16m bird sh -c '{script}'");
    run(&mut docker.command(&line)).code(137);
    assert_eq!(docker.inspect("glutton", "{{.State.OOMKilled}}"), "true");
}

fn containers_are_started_again() {
    let docker = docker(Shim::Ours);
    ok(
        &docker,
        "run -d --name jay --restart on-failure:2 bird sh -c 'echo up; exit 3'",
    );
    ok(
        &docker,
        "run -d --name tit --restart always bird sleep 1000",
    );
    kill(pid(&docker, "tit"), Signal::SIGKILL).unwrap();
    docker.wait_until("tit", "{{.RestartCount}} {{.State.Status}}", "1 running");
    docker.wait_until(
        "jay",
        "{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}",
        "2 exited 3",
    );
    assert_eq!(ok(&docker, "logs jay"), "up\nup\nup");
}

fn containers_outlive_a_killed_daemon() {
    let mut docker = docker(Shim::Ours);
    // One for each name writes, and ends with a code.
    let script = "until [ -e /go ]; do sleep 0.1; done; echo went; until [ -e /end ]; do sleep 0.1; done; exit 6";
    for name in ["jay", "tit"] {
        ok(
            &docker,
            &format!("run -d --name {name} bird sh -c '{script}'"),
        );
    }
    let [jay, tit] = ["jay", "tit"].map(|name| pid(&docker, name));
    let touch =
        |pid: Pid, name: &str| std::fs::write(format!("/proc/{pid}/root/{name}"), "").unwrap();
    docker.kill_daemon();
    touch(jay, "go");
    touch(tit, "go");
    touch(tit, "end");
    until("one has ended", || kill(tit, None).is_err().then_some(()));
    docker.start_daemon();
    assert_eq!(pid(&docker, "jay"), jay);
    assert_eq!(ok(&docker, "exec jay echo inside"), "inside");
    docker.wait_until("tit", "{{.State.Status}} {{.State.ExitCode}}", "exited 6");
    // What the other one wrote went with it: the daemon does not ask for that.
    until("what it wrote meanwhile is there", || {
        (ok(&docker, "logs jay") == "went").then_some(())
    });
    touch(jay, "end");
    docker.wait_until("jay", "{{.State.Status}} {{.State.ExitCode}}", "exited 6");
    until("the shims are gone", || {
        docker.shims().is_empty().then_some(())
    });
}

fn a_killed_shim_is_the_end_of_its_container() {
    let docker = docker(Shim::Ours);
    ok(&docker, "run -d --name jay bird sleep 1000");
    let init = pid(&docker, "jay");
    let [shim] = docker.shims()[..] else {
        panic!("expected one shim");
    };
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    docker.wait_until("jay", "{{.State.Status}} {{.State.ExitCode}}", "exited 137");
    until("its process is gone", || {
        kill(init, None).is_err().then_some(())
    });
    ok(&docker, "start jay");
    assert_eq!(ok(&docker, "exec jay echo inside"), "inside");
}

fn a_checkpoint_is_started_from() {
    let docker = docker(Shim::Ours);
    // Counts in its memory, and says so.
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    ok(
        &docker,
        &format!("run -d --name jay --network none bird sh -c '{script}'"),
    );
    let last = || {
        let log = ok(&docker, "logs jay");
        log.lines().last().and_then(|line| line.parse::<u64>().ok())
    };
    until("it counts", || last().filter(|count| *count >= 5));
    ok(&docker, "checkpoint create jay nest");
    // Docker asks for its end with containerd's own type of runtime alone.
    ok(&docker, "stop --time 0 jay");
    let before = last().unwrap();
    docker.forget_uploads();
    let start = run(&mut docker.command("start --checkpoint nest jay"));
    // Docker 28 wants the network namespace of a process 0, with containerd's own shim as well.
    if start.stderr.contains("/proc/0/ns/net") {
        return;
    }
    start.ok();
    until("it counts on", || last().filter(|count| *count > before));
    let log = ok(&docker, "logs jay");
    assert_eq!(log.lines().filter(|line| *line == "1").count(), 1, "{log}");
    assert_eq!(ok(&docker, "exec jay echo inside"), "inside");
    ok(&docker, "rm --force jay");
}
