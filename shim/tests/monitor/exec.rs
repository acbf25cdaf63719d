//! Exec sessions: the three pipes, and the two messages on the sync pipe.

use std::io::{BufReader, Write as _};

use super::session::{Setup, report};

/// An exec session that runs `script`.
fn exec(script: &str) -> Setup {
    let setup = Setup::new("");
    let process = setup.bundle().join("process");
    std::fs::write(&process, script).unwrap();
    setup.with(&["--exec", "--exec-process-spec", process.to_str().unwrap()])
}

#[test]
fn pid_and_exit_code_are_reported() {
    let mut session = exec("echo hello; exit 4").start();
    assert!(session.report().0 > 0);
    assert_eq!(session.report(), (4, String::new()));
    assert_eq!(session.exit_code(), 4);
    assert_eq!(session.logged(), "stdout:hello\n");
}

#[test]
fn a_failure_is_reported_once() {
    let mut session = exec("#FAILno such file").start();
    assert_eq!(session.report(), (-1, "no such file".into()));
    assert_eq!(session.monitor_ended().code(), Some(1));
    assert!(!session.path("exit").exists());
}

#[test]
fn a_time_limit_has_a_message() {
    let mut session = exec("exec sleep 60").with(&["-T", "1"]).start();
    assert!(session.report().0 > 0);
    assert_eq!(session.report(), (-1, "command timed out".into()));
}

#[test]
fn an_attached_session_waits_for_its_client() {
    for terminal in [false, true] {
        let (start, mut starter) = std::io::pipe().unwrap();
        let (reader, attach) = std::io::pipe().unwrap();
        let mut setup = exec("read word; echo got $word; exit 9")
            .daemon()
            .with(&["--exec-attach", "--stdin"])
            .pass("_OCI_STARTPIPE", start)
            .pass("_OCI_ATTACHPIPE", attach);
        if terminal {
            setup = setup.with(&["--terminal"]);
        }
        let mut session = setup.start();
        starter.write_all(b"\0").unwrap();
        assert_eq!(report(&mut BufReader::new(reader)).0, 0);
        assert!(!session.path("pid").exists());
        let client = session.attach();
        // Before there is a process or a terminal that could take it.
        client.send(b"early\n");
        starter.write_all(b"\0").unwrap();
        assert!(session.report().0 > 0);
        let (out, _) = client.all();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("got early"), "{out}");
        assert_eq!(session.report().0, 9);
    }
}
