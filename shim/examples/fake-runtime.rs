//! A runtime for the monitor's tests: same command line as runc's, no container.
//!
//! What it runs is the shell script `script` in the bundle (for `create`; it
//! begins once a file `go` is there) or the file given as `--process` (for
//! `exec`). A script that begins with `#FAIL` makes it fail with the rest as its
//! message on stderr; `#LOG` with the rest in the file given as `--log`.

#![expect(clippy::unwrap_used, reason = "a test's tool fails by panicking")]

use std::fs::File;
use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

#[expect(
    clippy::zombie_processes,
    reason = "the child outlives this process, as a container does"
)]
fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = words.iter().position(|word| word == name)?;
        words.get(at + 1).map(PathBuf::from)
    };
    let exec = words.iter().any(|word| word == "exec");
    let (path, before) = if exec {
        (option("--process").unwrap(), String::new())
    } else {
        let bundle = option("--bundle").unwrap();
        let go = bundle.join("go");
        let wait = format!("while [ ! -e {} ]; do sleep 0.01; done; ", go.display());
        (bundle.join("script"), wait)
    };
    let script = std::fs::read_to_string(path).unwrap();
    if let Some(text) = script.strip_prefix("#FAIL") {
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return ExitCode::FAILURE;
    }
    if let Some(text) = script.strip_prefix("#LOG") {
        std::fs::write(option("--log").unwrap(), text).unwrap();
        return ExitCode::FAILURE;
    }
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("{before}{script}"));
    if let Some(socket) = option("--console-socket") {
        let slave = send_terminal(&UnixStream::connect(socket).unwrap());
        command
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave));
    }
    let child = command.spawn().unwrap();
    let mut pid_file = File::create(option("--pid-file").unwrap()).unwrap();
    write!(pid_file, "{}", child.id()).unwrap();
    ExitCode::SUCCESS
}

/// Makes a terminal, sends its master over `socket` and returns its slave.
fn send_terminal(socket: &UnixStream) -> OwnedFd {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let fds = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let data = [IoSlice::new(b"/dev/ptmx")];
    sendmsg(socket, &data, &mut control, SendFlags::empty()).unwrap();
    slave
}
