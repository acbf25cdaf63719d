//! Terminals: raw mode, window size, detach keys, attach.

use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "terminal",
        &[Need::Root],
        [
            run_with_a_terminal,
            exec_with_a_terminal,
            the_window_size_follows,
            detach_and_attach_again,
            control_c_reaches_the_container,
            without_a_terminal_stdin_is_passed_on,
            the_exit_code_of_a_signal,
        ]
    )
}

fn run_with_a_terminal() {
    let engine = Engine::new().with_base();
    let mut shell = Pty::start(&engine.command("run -it --name bird base sh"));
    shell.send("tty; echo pid $$\n");
    shell.expect("/dev/");
    shell.expect("pid 1");
    shell.send("exit 3\n");
    assert_eq!(shell.exit(), 3);
    assert_eq!(engine.look("bird", "/State/ExitCode"), 3);
    assert_eq!(engine.look("bird", "/Config/Tty"), true);
    engine.run("logs bird").code(0).out("pid 1");
}

fn exec_with_a_terminal() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird -e A=b base sleep 1000");
    let mut shell = Pty::start(&engine.command("exec -it bird /bin/sh"));
    shell.send("echo \"<$A>\"; stty size\n");
    shell.expect("<b>");
    shell.expect("24 80");
    shell.send("exit 9\n");
    assert_eq!(shell.exit(), 9);
}

fn the_window_size_follows() {
    let engine = Engine::new().with_base();
    let mut shell = Pty::start(&engine.command("run -it --rm base sh"));
    shell.send("stty size\n");
    shell.expect("24 80");
    shell.resize(50, 132);
    shell.send("while ! stty size | grep '50 132'; do usleep 10000; done\n");
    shell.expect("50 132\r\n");
    shell.send("exit\n");
    assert_eq!(shell.exit(), 0);
}

fn detach_and_attach_again() {
    let engine = Engine::new().with_base();
    let mut shell = Pty::start(&engine.command("run -it --name bird base sh"));
    // The prompt: what is typed before the terminal is raw is for the local line discipline.
    shell.expect("# ");
    shell.send("echo ready $((1 + 1))\n");
    shell.expect("ready 2");
    shell.send("\x10\x11");
    shell.exit();
    engine.wait_for("bird", "running");
    let mut shell = Pty::start(&engine.command("attach bird"));
    shell.send("echo back $((40 + 2))\n");
    shell.expect("back 42");
    shell.send("exit 4\n");
    assert_eq!(shell.exit(), 4);
    engine.wait_for("bird", "exited");
}

fn control_c_reaches_the_container() {
    let engine = Engine::new().with_base();
    let script = "trap \"echo caught; exit 8\" INT; echo set; while true; do usleep 10000; done";
    let mut run = Pty::start(&engine.command(&format!("run -it --rm base sh -c '{script}'")));
    run.expect("set");
    run.send("\x03");
    run.expect("caught");
    assert_eq!(run.exit(), 8);
}

fn without_a_terminal_stdin_is_passed_on() {
    let engine = Engine::new().with_base();
    let large = vec![b'x'; 300_000];
    let outcome = engine.run_with_input("run -i --rm base sh -c 'wc -c; echo err >&2'", &large);
    assert_eq!((outcome.ok(), outcome.stderr.as_str()), ("300000", "err\n"));
    engine.ok("run -d --name bird base sleep 1000");
    assert_eq!(
        engine.run_with_input("exec -i bird wc -c", &large).ok(),
        "300000"
    );
    let outcome = engine.run("exec bird sh -c 'head -c 300000 /dev/zero; echo err >&2; exit 6'");
    outcome.code(6);
    assert_eq!(
        (outcome.stdout.len(), outcome.stderr.as_str()),
        (300_000, "err\n")
    );
}

fn the_exit_code_of_a_signal() {
    let engine = Engine::new().with_base();
    engine
        .run("run --rm base sh -c 'sleep 1000 & kill -9 $!; wait $!'")
        .code(137);
    engine.ok("run -d --name bird base sh -c 'trap \"exit 11\" TERM; echo set; while true; do usleep 10000; done'");
    engine.wait_for_log("bird", "set");
    engine.ok("stop bird");
    assert_eq!(engine.look("bird", "/State/ExitCode"), 11);
}
