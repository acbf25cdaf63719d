//! The shim with a runtime that takes its time or does half of what it should: a script around the one under test.

use nix::sys::signal::kill;
use nix::unistd::Pid;
use stack_tests::executable;
use stack_tests::peers::Containerd;
use stack_tests::programs::built;
use stack_tests::pty::Pty;
use stack_tests::wait::until;

use super::{RUN, listen, ok, options, remove, wait_for, wait_for_end};

/// Options with a script as the runtime. It has the runtime's command line as its own, and `qrun`, `command`: the word after
/// the global options.
fn wrapped(containerd: &Containerd, script: &str) -> String {
    let path = containerd.directory().join("runtime");
    let text = format!(
        "#!/bin/sh\nqrun={}\nfor word; do case $word in create|start|exec|delete) command=$word; break;; esac; done\n{script}\n",
        built("qrun").display()
    );
    executable::script(&path, &text);
    options(containerd, &format!("BinaryName = \"{}\"", path.display()))
}

pub(super) fn a_start_is_told_before_an_end_that_was_quicker() {
    let containerd = Containerd::start();
    // `start` is over when the process is, and has been collected.
    let script = "$qrun \"$@\" || exit\n\
                  [ \"$command\" != start ] || while [ -e /proc/$(cat init.pid) ]; do sleep 0.01; done";
    let options = wrapped(&containerd, script);
    let events = listen(&containerd);
    ok(&containerd, &format!("{RUN} -d {options} ~ bird /bin/true"));
    wait_for(&containerd, "bird", "STOPPED");
    remove(&containerd, "bird");
    events.expect("/tasks/delete");
    let heard = events.heard();
    let words = heard.split_whitespace();
    let topics: Vec<_> = words.filter(|word| word.starts_with("/tasks/")).collect();
    let expected = ["create", "start", "exit", "delete"].map(|topic| format!("/tasks/{topic}"));
    assert_eq!(topics, expected, "{heard}");
    wait_for_end(&containerd);
}

pub(super) fn a_process_without_its_terminal_is_ended() {
    let containerd = Containerd::start();
    // A process that is there, and nothing on the console socket.
    let script = "[ \"$command\" = exec ] || exec $qrun \"$@\"\n\
                  while [ \"$1\" != --pid-file ]; do shift; done\n\
                  sleep 1000 & echo $! > $2; echo $! > sleeper";
    let options = wrapped(&containerd, script);
    ok(
        &containerd,
        &format!("{RUN} -d {options} ~ bird /bin/sleep 1000"),
    );
    let line = "task exec --exec-id 1 -t bird /bin/sh";
    let mut terminal = Pty::start(&containerd.ctr(line));
    terminal.expect("the runtime did not set up a terminal");
    assert_eq!(terminal.exit(), 1);
    let sleeper = containerd.bundle("bird").join("sleeper");
    let sleeper = std::fs::read_to_string(sleeper).unwrap();
    let sleeper = Pid::from_raw(sleeper.trim().parse().unwrap());
    until("the process is gone", || {
        kill(sleeper, None).is_err().then_some(())
    });
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}
