//! One monitored session: its directory, its monitor, the pipes to it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketType, connect, recv, socket,
    sockopt::{Timeout, set_socket_timeout},
};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Descriptors that are passed on must not leak into the children of tests that
/// run at the same time.
static SPAWN: Mutex<()> = Mutex::new(());

/// A pipe from the monitor.
type Lines = BufReader<PipeReader>;

/// A monitor and what belongs to it. The directory is also the bundle.
#[derive(Debug)]
pub(crate) struct Session {
    directory: TempDir,
    bundle: PathBuf,
    id: String,
    pub(crate) child: Child,
    pub(crate) sync: Lines,
}

/// How a session is started.
#[derive(Debug)]
pub(crate) struct Setup {
    directory: TempDir,
    bundle: PathBuf,
    id: String,
    runtime: PathBuf,
    words: Vec<String>,
    log: String,
    pass: Vec<(&'static str, OwnedFd)>,
    leak: Vec<OwnedFd>,
}

impl Setup {
    /// A container that runs `script`.
    pub(crate) fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().to_owned();
        fs::write(bundle.join("script"), script).unwrap();
        Self {
            directory,
            bundle,
            id: "box".into(),
            runtime: fake_runtime(),
            words: vec!["--no-daemon".into()],
            log: "k8s-file".into(),
            pass: Vec::new(),
            leak: Vec::new(),
        }
    }

    /// Moves the bundle into a directory with a path of more than 200 bytes.
    pub(crate) fn long_path(mut self) -> Self {
        let deep = self.bundle.join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        fs::rename(self.bundle.join("script"), deep.join("script")).unwrap();
        self.bundle = deep;
        self
    }

    /// Another runtime than the fake one.
    pub(crate) fn runtime(mut self, path: &Path) -> Self {
        self.runtime = path.to_owned();
        self
    }

    /// More options.
    pub(crate) fn with(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Lets the monitor become a daemon.
    pub(crate) fn daemon(mut self) -> Self {
        self.words.retain(|word| word != "--no-daemon");
        self
    }

    /// The log driver.
    pub(crate) fn log(mut self, driver: &str) -> Self {
        self.log = driver.into();
        self
    }

    /// A descriptor announced in the environment.
    pub(crate) fn pass(mut self, name: &'static str, fd: impl Into<OwnedFd>) -> Self {
        self.pass.push((name, fd.into()));
        self
    }

    /// A descriptor left open by accident.
    pub(crate) fn leak(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.leak.push(fd.into());
        self
    }

    /// The bundle.
    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Starts the monitor.
    pub(crate) fn start(self) -> Session {
        let bundle = self.bundle.to_str().unwrap().to_owned();
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qshim"));
        command
            .args(["--api-version", "1", "-c", &self.id, "-u", &self.id])
            .args([
                "-b",
                &bundle,
                "--exit-dir",
                &bundle,
                "--persist-dir",
                &bundle,
            ])
            .args([
                "-p",
                &format!("{bundle}/pid"),
                "-P",
                &format!("{bundle}/monitor"),
            ])
            .args(["-l", &format!("{}:{bundle}/log", self.log), "--full-attach"])
            .arg("-r")
            .arg(&self.runtime)
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut pass = self.pass;
        pass.push(("_OCI_SYNCPIPE", writer.into()));
        let _guard = SPAWN.lock().unwrap_or_else(|poison| poison.into_inner());
        for (name, fd) in &pass {
            fcntl_setfd(fd, FdFlags::empty()).unwrap();
            command.env(name, fd.as_raw_fd().to_string());
        }
        for fd in &self.leak {
            fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        let child = command.spawn().unwrap();
        // Before the guard: they are inheritable until they are closed.
        drop(pass);
        drop(self.leak);
        Session {
            directory: self.directory,
            bundle: self.bundle,
            id: self.id,
            child,
            sync: BufReader::new(reader),
        }
    }
}

impl Session {
    /// A container that was created.
    pub(crate) fn created(setup: Setup) -> Self {
        let mut session = setup.start();
        let (pid, message) = session.report();
        assert!(pid > 0, "{message}");
        session
    }

    /// Lets the container's script run.
    pub(crate) fn go(&self) {
        fs::write(self.path("go"), "").unwrap();
    }

    /// A file in the bundle.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.bundle.join(name)
    }

    /// The text of a file in the bundle.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The next message on the sync pipe.
    pub(crate) fn report(&mut self) -> (i64, String) {
        report(&mut self.sync)
    }

    /// Whether there is an exit code.
    pub(crate) fn has_ended(&self) -> bool {
        self.path(&self.id).exists()
    }

    /// Waits for the exit code as a caller does.
    pub(crate) fn exit_code(&self) -> i32 {
        until("exit file", || self.has_ended());
        self.read(&self.id).parse().unwrap()
    }

    /// The monitor's pid, by its pid file.
    pub(crate) fn monitor(&self) -> i32 {
        self.read("monitor").parse().unwrap()
    }

    /// Waits until the monitor, a child of the test, has ended.
    pub(crate) fn monitor_ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("end of the monitor", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Connects to the attach socket.
    pub(crate) fn attach(&self) -> Attached {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let directory = open(&self.bundle, flags, Mode::empty()).unwrap();
        let name = format!("/proc/self/fd/{}/attach", directory.as_raw_fd());
        let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        fcntl_setfd(&fd, FdFlags::CLOEXEC).unwrap();
        connect(&fd, &SocketAddrUnix::new(name).unwrap()).unwrap();
        set_socket_timeout(&fd, Timeout::Recv, Some(LONG)).unwrap();
        Attached(fd)
    }

    /// The texts of the log's records, put together.
    pub(crate) fn logged(&self) -> String {
        self.read("log")
            .lines()
            .map(|line| {
                let mut parts = line.splitn(4, ' ').skip(1);
                let (stream, tag, text) = (parts.next(), parts.next(), parts.next());
                let end = if tag == Some("F") { "\n" } else { "" };
                format!("{}:{}{end}", stream.unwrap(), text.unwrap())
            })
            .collect()
    }

    /// Names in the bundle.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.bundle)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing may outlive a test that failed.
        for name in ["pid", "monitor"] {
            let pid = fs::read_to_string(self.bundle.join(name)).ok();
            let pid = pid
                .and_then(|text| text.parse().ok())
                .filter(|&pid| pid > 1);
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
                && std::thread::panicking()
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = self.child.wait();
        let _ = &self.directory;
    }
}

/// The next message on a sync or attach pipe.
pub(crate) fn report(lines: &mut Lines) -> (i64, String) {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let message = value["message"].as_str().unwrap_or_default().to_owned();
    (value["data"].as_i64().unwrap(), message)
}

/// A client's end of the attach socket.
#[derive(Debug)]
pub(crate) struct Attached(pub(crate) OwnedFd);

impl Attached {
    /// Sends input.
    pub(crate) fn send(&self, data: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, data), Ok(data.len()));
    }

    /// Ends the input.
    pub(crate) fn close_input(&self) {
        rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write).unwrap();
    }

    /// Receives one packet; empty at the end.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let mut buffer = vec![0; 8193];
        let (count, _) = recv(self.0.as_fd(), &mut buffer[..], RecvFlags::empty()).unwrap();
        buffer.truncate(count);
        buffer
    }

    /// Receives everything: what came on stdout and on stderr.
    pub(crate) fn all(&self) -> (Vec<u8>, Vec<u8>) {
        let mut streams: HashMap<u8, Vec<u8>> = HashMap::new();
        loop {
            let packet = self.packet();
            let Some((stream, data)) = packet.split_first() else {
                break;
            };
            streams.entry(*stream).or_default().extend_from_slice(data);
        }
        let mut take = |stream| streams.remove(&stream).unwrap_or_default();
        let both = (take(2), take(3));
        assert!(streams.is_empty(), "unknown streams: {streams:?}");
        both
    }
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The fake runtime, built beside the tests.
fn fake_runtime() -> PathBuf {
    let programs = Path::new(env!("CARGO_BIN_EXE_qshim")).parent().unwrap();
    let path = programs.join("examples/fake-runtime");
    assert!(path.exists(), "build it: cargo build --examples -p qshim");
    path
}

/// Reads a pipe to its end, which must come.
pub(crate) fn end_of(pipe: PipeReader) -> Vec<u8> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut data = Vec::new();
        let mut pipe = pipe;
        pipe.read_to_end(&mut data).unwrap();
        let _ = sender.send(data);
    });
    receiver.recv_timeout(LONG).expect("the pipe stays open")
}
