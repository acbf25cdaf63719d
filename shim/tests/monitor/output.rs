//! Output: log, attach clients, and that it is complete before the exit code.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::session::{Session, Setup};

#[test]
fn output_exit_code_and_exit_command() {
    let setup = Setup::new("echo out; echo err >&2; printf rest; exit 7");
    let done = setup.bundle().join("done");
    let command = format!("ls {} > {}", setup.bundle().display(), done.display());
    let words = ["--exit-command", "/bin/sh"];
    let arguments = ["--exit-command-arg", "-c", "--exit-command-arg", &command];
    let mut session = Session::created(setup.with(&words).with(&arguments));
    let mode = |name| session.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("attach"), mode("ctl"), mode("winsz")),
        (0o600, 0o600, 0o600)
    );
    let client = session.attach();
    session.go();
    assert_eq!(client.all(), (b"out\nrest".to_vec(), b"err\n".to_vec()));
    assert_eq!(session.exit_code(), 7);
    assert_eq!(session.read("exit"), "7");
    let logged = session.logged();
    assert!(logged.contains("stdout:out\n"), "{logged}");
    assert!(logged.contains("stderr:err\n"), "{logged}");
    assert!(logged.contains("stdout:rest"), "{logged}");
    assert_eq!(session.monitor_ended().code(), Some(7));
    // What the exit command saw.
    let seen = session.read("done");
    let seen: Vec<&str> = seen.lines().collect();
    assert!(seen.contains(&"exit") && seen.contains(&"box"), "{seen:?}");
    assert!(
        !seen.contains(&"attach") && !seen.contains(&"ctl"),
        "{seen:?}"
    );
}

#[test]
fn a_signal_is_128_and_more() {
    let session = Session::created(Setup::new("kill -9 $$"));
    session.go();
    assert_eq!(session.exit_code(), 137);
}

#[test]
fn the_last_output_is_in_the_log_before_the_exit_code_is_there() {
    for _ in 0..5 {
        let script = "i=0; while [ $i -lt 600 ]; do echo 0123456789 $i; i=$((i+1)); done";
        let session = Session::created(Setup::new(script));
        session.go();
        assert_eq!(session.exit_code(), 0);
        assert!(session.logged().ends_with("stdout:0123456789 599\n"));
    }
}

#[test]
fn a_process_left_behind_does_not_hold_the_end_up() {
    let session = Session::created(Setup::new("sleep 5 & echo over"));
    let begin = Instant::now();
    session.go();
    assert_eq!(session.exit_code(), 0);
    assert!(begin.elapsed() < Duration::from_secs(3));
    assert_eq!(session.logged(), "stdout:over\n");
}

#[test]
fn json_logs_hold_whole_lines() {
    let script = "printf 'a\"b'; sleep 0.1; echo c; head -c 40000 /dev/zero | tr '\\0' x";
    let session = Session::created(Setup::new(script).log("json-file"));
    session.go();
    assert_eq!(session.exit_code(), 0);
    let texts: Vec<String> = session
        .read("log")
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(record["stream"], "stdout");
            record["log"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(texts[0], "a\"bc\n");
    let lengths: Vec<usize> = texts[1..].iter().map(String::len).collect();
    assert_eq!(lengths, [16384, 16384, 7232]);
}

#[test]
fn logs_rotate_and_reopen() {
    let script =
        "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; sleep 0.5; echo late";
    let words = ["--log-size-max", "9000", "--log-max-files", "2"];
    let session = Session::created(Setup::new(script).with(&words));
    session.go();
    super::session::until("rotation", || session.path("log.2").exists());
    super::session::until("the last line", || {
        // Between two files there is none.
        std::fs::read_to_string(session.path("log")).is_ok_and(|log| log.contains("line 499\n"))
    });
    std::fs::rename(session.path("log"), session.path("moved")).unwrap();
    std::fs::write(session.path("ctl"), "2 0 0\n").unwrap();
    assert_eq!(session.exit_code(), 0);
    assert_eq!(session.logged(), "stdout:late\n");
    assert!(session.read("moved").ends_with("line 499\n"));
    assert!(session.path("log.1").metadata().unwrap().len() <= 9000);
    assert!(!session.path("log.3").exists());
}

#[test]
fn a_later_client_that_stalls_holds_up_neither_container_nor_others() {
    let script = "echo BEGIN; read _;
        yes 0123456789012345678901234567890123456789 | head -c 20000000; echo END";
    let session = Session::created(Setup::new(script).with(&["--stdin"]));
    let reader = session.attach();
    session.go();
    assert_eq!(reader.packet(), b"\x02BEGIN\n");
    let stalled = session.attach();
    let dead = session.attach();
    drop(dead);
    reader.send(b"go on\n");
    let (out, err) = reader.all();
    assert_eq!((out.len(), err.len()), (20_000_004, 0));
    assert_eq!(session.exit_code(), 0);
    assert!(session.logged().ends_with("END\n"));
    // It comes back after all, and learns that it has missed something.
    let (out, err) = stalled.all();
    assert!(out.len() < 20_000_000);
    let note = String::from_utf8(err).unwrap();
    assert!(note.contains("bytes are missing here"), "{note}");
}

/// However long it takes nothing: longer than there is patience with others.
#[test]
fn who_was_there_from_the_beginning_misses_nothing() {
    let script = "yes 0123456789012345678901234567890123456789 | head -c 3000000; echo END";
    let session = Session::created(Setup::new(script));
    let pager = session.attach();
    session.go();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!session.has_ended());
    let mut got = 0;
    while got < 2_500_000 {
        got += pager.packet().len() - 1;
    }
    // What is left fits into its backlog.
    assert_eq!(session.exit_code(), 0);
    let (out, err) = pager.all();
    assert!(out.ends_with(b"END\n"));
    assert_eq!((got + out.len(), err.len()), (3_000_004, 0));
}

#[test]
fn many_clients_get_everything() {
    let session = Session::created(Setup::new("seq 1 5000"));
    let clients: Vec<_> = (0..60).map(|_| session.attach()).collect();
    session.go();
    let expected: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    std::thread::scope(|scope| {
        for client in &clients {
            let expected = expected.as_bytes();
            scope.spawn(move || assert_eq!(client.all().0, expected));
        }
    });
    assert_eq!(session.exit_code(), 0);
}
