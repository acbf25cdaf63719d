//! Starting: the sync pipe, daemons, failures, signals, time limits.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::session::{Session, Setup, end_of, until};
use super::skip;

#[test]
fn the_runtime_s_complaint_arrives_complete() {
    let text = format!("it \"broke\": {}", "x".repeat(20_000));
    let mut session = Setup::new(&format!("#FAIL{text}\n")).start();
    assert_eq!(session.report(), (-1, text));
    assert_eq!(session.monitor_ended().code(), Some(1));
    assert_eq!(session.names(), ["log", "monitor", "script"]);
}

#[test]
fn a_complaint_in_the_runtime_s_log_is_found() {
    let setup = Setup::new("#LOG{\"level\":\"error\",\"msg\":\"no such thing\"}\n");
    let log = setup.bundle().join("runtime-log").display().to_string();
    let words = ["--runtime-arg", "--log", "--runtime-arg", &log];
    let mut session = setup.with(&words).start();
    assert_eq!(session.report(), (-1, "no such thing".into()));
}

#[test]
fn a_log_that_cannot_be_opened_is_a_failure() {
    let mut session = Setup::new("true").with(&["-l", "/nonexistent/log"]).start();
    let (code, message) = session.report();
    assert_eq!(code, -1);
    assert!(
        message.starts_with("open log file /nonexistent/log: No such file"),
        "{message}"
    );
    assert!(!session.path("attach").exists());
}

#[test]
fn a_daemon_survives_its_caller() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let setup = Setup::new("echo alive; exit 3").daemon();
    let mut session = setup.pass("_OCI_STARTPIPE", reader).start();
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        !session.path("attach").exists(),
        "did not wait for the start"
    );
    writer.write_all(b"\0").unwrap();
    assert!(session.report().0 > 0);
    // The first process is over; the monitor is another, in its own session.
    assert_eq!(session.monitor_ended().code(), Some(0));
    let monitor = rustix::process::Pid::from_raw(session.monitor()).unwrap();
    assert_eq!(rustix::process::getsid(Some(monitor)), Ok(monitor));
    session.go();
    assert_eq!(session.exit_code(), 3);
    assert_eq!(session.logged(), "stdout:alive\n");
    until("end of the daemon", || {
        rustix::process::test_kill_process(monitor).is_err()
    });
}

#[test]
fn leaked_descriptors_are_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let session = Session::created(Setup::new("read x < /dev/null").leak(writer));
    assert_eq!(end_of(reader), b"");
    session.go();
    session.exit_code();
}

#[test]
fn signals_go_to_the_container() {
    let script = "trap 'exit 42' TERM; echo ready; while :; do sleep 0.02; done";
    let mut session = Session::created(Setup::new(script));
    let client = session.attach();
    session.go();
    assert_eq!(client.packet(), b"\x02ready\n");
    let monitor = rustix::process::Pid::from_raw(session.monitor()).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::TERM).unwrap();
    assert_eq!(session.exit_code(), 42);
    assert_eq!(session.monitor_ended().code(), Some(42));
}

#[test]
fn a_time_limit_kills() {
    let session = Session::created(Setup::new("exec sleep 60").with(&["--timeout", "1"]));
    session.go();
    assert_eq!(session.exit_code(), -1);
}

#[test]
fn the_monitor_is_one_thread_in_no_hurry() {
    let session = Session::created(Setup::new("exec sleep 60"));
    session.go();
    std::thread::sleep(Duration::from_millis(200));
    let status = || {
        let path = format!("/proc/{}/status", session.monitor());
        std::fs::read_to_string(path).unwrap()
    };
    let line = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.to_owned()
    };
    let before = status();
    assert_eq!(line(&before, "Threads:"), "Threads:\t1");
    std::thread::sleep(Duration::from_millis(500));
    let switches = "voluntary_ctxt_switches:";
    assert_eq!(line(&before, switches), line(&status(), switches));
    let pid: i32 = session.read("pid").parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(session.exit_code(), 137);
}

/// A runtime of this machine: `$QSHIM_TEST_RUNTIME`, qrun or runc.
fn real_runtime() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QSHIM_TEST_RUNTIME") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    let find = |name: &str| {
        let mut places = std::env::split_paths(&path).map(|place| place.join(name));
        places.find(|file| file.exists())
    };
    find("qrun").or_else(|| find("runc"))
}

#[test]
fn a_real_container() {
    let Some(runtime) = real_runtime() else {
        return skip("no runtime (qrun or runc) in PATH");
    };
    let busybox = Path::new("/bin/busybox");
    if !rustix::process::geteuid().is_root() || !busybox.exists() {
        return skip("needs root and /bin/busybox");
    }
    let setup = Setup::new("");
    let bundle = setup.bundle().to_owned();
    std::fs::create_dir_all(bundle.join("rootfs/bin")).unwrap();
    std::fs::create_dir_all(bundle.join("rootfs/proc")).unwrap();
    std::fs::copy(busybox, bundle.join("rootfs/bin/busybox")).unwrap();
    let id = format!("qshim-test-{}", std::process::id());
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": [],
            "args": ["/bin/busybox", "sh", "-c", "echo inside; exit 6"],
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}],
        },
    });
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let root = bundle.join("state").display().to_string();
    let words = ["--runtime-arg", "--root", "--runtime-arg", &root];
    let session = Session::created(setup.runtime(&runtime).with(&words));
    let run = |command: &[&str]| {
        let mut line = std::process::Command::new(&runtime);
        line.arg("--root").arg(&root).args(command).arg("box");
        assert!(line.status().unwrap().success(), "{command:?}");
    };
    run(&["start"]);
    assert_eq!(session.exit_code(), 6);
    assert_eq!(session.logged(), "stdout:inside\n");
    run(&["delete", "--force"]);
}
