//! Clients that are processes of their own: one that is stopped while much is said, and execs with a monitor each, whose
//! children keep what they were given.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::command::{run, wait};
use stack_tests::engine::Engine;
use stack_tests::host::processes_naming;
use stack_tests::monitored::Monitored;
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::usage::times;
use stack_tests::wait::{patience, until};

use super::{end, settled};

/// `qengine attach`, with its output in files.
struct Client {
    process: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Client {
    fn attach(engine: &Engine, name: &str) -> Self {
        let path = |stream: &str| engine.directory().join(format!("{name}.{stream}"));
        let (out, err) = (path("out"), path("err"));
        let mut command = engine.command("attach --no-stdin bird");
        command
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        let process = command.spawn().unwrap();
        Self { process, out, err }
    }

    fn heard(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).unwrap();
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        stat.contains(") T ")
    }

    /// What it heard to its end, which it has with the container.
    fn ended(mut self) -> String {
        assert_eq!(wait(&mut self.process, patience()), Some(5));
        self.heard()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn a_stopped_client_stalls_nobody() {
    const MUCH: usize = 20_000_000;
    let engine = Engine::new().with_base();
    let script = format!(
        "i=0; while [ ! -e /go ]; do i=$((i+1)); echo tick $i; usleep 20000; done; \
         yes 123456789012345678901234567890123456789 | head -c {MUCH}; echo END; \
         while [ ! -e /over ]; do usleep 20000; done; echo over; exit 5"
    );
    engine.ok(&format!("run -d --name bird base sh -c '{script}'"));
    // Not before it has said something: who was there from the beginning is waited for longer.
    engine.wait_for_log("bird", "tick 1\n");
    let stopped = Client::attach(&engine, "stopped");
    let other = Client::attach(&engine, "other");
    until("both hear it", || {
        (stopped.heard().contains('\n') && other.heard().contains('\n')).then_some(())
    });
    stopped.signal(Signal::SIGSTOP);
    until("it is stopped", || stopped.is_stopped().then_some(()));
    engine.ok("exec bird touch /go");
    until("the other hears the end of much", || {
        other.heard().ends_with("END\n").then_some(())
    });
    assert!(stopped.is_stopped());
    stopped.signal(Signal::SIGCONT);
    let told = "qshim: attached too slow a reader: ";
    let missed: usize = until("it is told what it missed", || {
        let text = std::fs::read_to_string(&stopped.err).unwrap();
        let (_, rest) = text.split_once(told)?;
        rest.split_once(" bytes are missing here\n")?.0.parse().ok()
    });
    engine.ok("exec bird touch /over");
    let (stopped, other) = (stopped.ended(), other.ended());
    engine.wait_for("bird", "exited");
    let log = engine.run("logs bird").stdout;
    assert!(log.ends_with("9\nEND\nover\n"));
    assert!(log.len() > MUCH, "{} bytes in the log", log.len());
    assert!(
        log.ends_with(&other),
        "the other heard all from {:?}",
        other.lines().next()
    );
    assert!(stopped.ends_with("over\n"), "it went on");
    let first = format!("{}\n", stopped.lines().next().unwrap());
    let since = log.len() - log.find(&first).unwrap();
    assert_eq!(
        stopped.len() + missed,
        since,
        "{missed} bytes missing, from {first:?}"
    );
    engine.ok("rm bird");
}

pub(super) fn execs_whose_children_keep_the_pipe_leave_nothing() {
    let all = times(100, 1000);
    let options = "--log-path k8s-file:~/log";
    let container = Monitored::new(Runtime::new(), "sleep 1000", options);
    container.start();
    let execs = container.place().join("execs");
    std::fs::create_dir(&execs).unwrap();
    let mut early = None;
    for number in 1..=all {
        let directory = execs.join(number.to_string());
        exec(&container, &directory, number % 2 == 0);
        if number == all / 10 {
            early = Some(settled(container.pid));
        }
    }
    until("every monitor of an exec is gone", || {
        processes_naming(&execs).is_empty().then_some(())
    });
    for number in 1..=all {
        let directory = execs.join(number.to_string());
        let log = std::fs::read_to_string(directory.join("log")).unwrap();
        assert_eq!(log.lines().count(), 1, "{number}: {log}");
        assert!(
            log.trim_end().trim_end_matches('\r').ends_with(" F done"),
            "{number}: {log}"
        );
        for gone in ["attach", "ctl", "winsz"] {
            assert!(!directory.join(gone).exists(), "{gone} of {number}");
        }
    }
    early.unwrap().is_not_exceeded_by(container.pid);
    end(&container);
    assert_eq!(container.exit_code(), 137);
}

/// Leads one exec through its life, as podman does: with a directory and a monitor of its own. Its child outlives it.
fn exec(container: &Monitored, directory: &Path, terminal: bool) {
    std::fs::create_dir(directory).unwrap();
    let script = "trap '' HUP; sleep 1000 & echo done; exit 3";
    let process = serde_json::json!({
        "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
    });
    let place = directory.display();
    let file = directory.join("process");
    std::fs::write(&file, process.to_string()).unwrap();
    let line = format!(
        "--api-version 1 --cid {} --cuuid {} --full-attach --runtime {} --runtime-arg --root --runtime-arg {} \
         --bundle {place} --exec --exec-process-spec {} --persist-dir {place} --container-pidfile {place}/pid \
         --log-path k8s-file:{place}/log --log-level error{}",
        container.id,
        container.id,
        built("qrun").display(),
        container.root().display(),
        file.display(),
        if terminal { " --terminal" } else { "" },
    );
    let mut command = Command::new(built("qshim"));
    run(command.args(line.split(' ')).stdin(Stdio::null())).ok();
    until("the exec has an exit code", || {
        let code = std::fs::read_to_string(directory.join("exit")).ok()?;
        assert_eq!(code, "3");
        Some(())
    });
}
