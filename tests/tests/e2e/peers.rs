//! The runtime driven by others: Debian's podman and containerd.

use stack_tests::command::run;
use stack_tests::needs::{Need, Test};
use stack_tests::peers::{Containerd, Podman};
use stack_tests::programs::built;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let podman = &[Need::Root, Need::Host, Need::Program("podman")];
    let containerd = &[
        Need::Root,
        Need::Host,
        Need::Program("containerd"),
        Need::Program("ctr"),
    ];
    let mut all = tests!(
        "peers",
        podman,
        [
            podman_runs_a_container,
            podman_keeps_a_container_and_execs_in_it,
        ]
    );
    all.extend(tests!(
        "peers",
        containerd,
        [containerd_runs_a_container, containerd_execs_and_kills,]
    ));
    all
}

fn podman_runs_a_container() {
    let podman = Podman::new();
    let line = "run --rm --network none --hostname nest --rootfs ~ sh -c 'hostname; exit 3'";
    let outcome = run(&mut podman.command(line));
    outcome.code(3).out("nest");
}

fn podman_keeps_a_container_and_execs_in_it() {
    let podman = Podman::new();
    let line = |line: &str| run(&mut podman.command(line)).ok().to_owned();
    line("run -d --network none --memory 64m --name bird --rootfs ~ sleep 1000");
    assert_eq!(
        line("exec bird sh -c 'cat /proc/1/cmdline | tr \"\\0\" \" \"'"),
        "sleep 1000 "
    );
    line("pause bird");
    line("unpause bird");
    line("stop --time 0 bird");
    assert_eq!(
        line("inspect --format '{{.State.Status}} {{.OCIRuntime}}' bird"),
        format!("exited {}", built("qrun").display())
    );
    line("rm bird");
}

fn containerd_runs_a_container() {
    let containerd = Containerd::start();
    let line = format!(
        "run --rm {} --rootfs ~ bird /bin/sh -c 'echo $((6 * 7)); exit 3'",
        containerd.runtime()
    );
    run(&mut containerd.ctr(&line)).code(3).out("42");
}

fn containerd_execs_and_kills() {
    let containerd = Containerd::start();
    let line = |line: &str| run(&mut containerd.ctr(line)).ok().to_owned();
    line(&format!(
        "run --detach {} --rootfs ~ bird /bin/sleep 1000",
        containerd.runtime()
    ));
    assert_eq!(
        line("task exec --exec-id 1 bird /bin/echo inside"),
        "inside"
    );
    line("task pause bird");
    assert!(line("task ls").contains("PAUSED"));
    line("task resume bird");
    line("task kill --signal SIGKILL bird");
    stack_tests::wait::until("the task has stopped", || {
        line("task ls").contains("STOPPED").then_some(())
    });
    line("task rm bird");
    line("container rm bird");
}
