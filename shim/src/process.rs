//! Processes: starting the runtime, what exit statuses mean, pid files.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::{Pid, WaitStatus};

use crate::error::Error;

/// First argument of the helper start that only rewrites LISTEN_PID.
pub(crate) const LAUNCH: &str = "--launch";

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) i32);

impl ExitStatus {
    /// The number a shell would show: 128 and the signal after a signal.
    pub(crate) fn of(status: WaitStatus) -> Option<Self> {
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            .map(Self)
    }
}

/// The standard streams a runtime is started with.
#[derive(Debug)]
pub(crate) struct Streams {
    /// `None` leaves the monitor's own in place.
    pub(crate) stdin: Option<OwnedFd>,
    /// As above.
    pub(crate) stdout: Option<OwnedFd>,
    /// As above.
    pub(crate) stderr: Option<OwnedFd>,
}

/// Starts the runtime.
pub(crate) fn start_runtime(
    words: &[OsString],
    streams: Streams,
    replace_listen_pid: bool,
) -> Result<Pid, Error> {
    let launch = must_rewrite_listen_pid(replace_listen_pid);
    let mut command = if launch {
        let mut command = Command::new("/proc/self/exe");
        command.arg(LAUNCH).args(words);
        command
    } else {
        let (program, arguments) = words
            .split_first()
            .ok_or_else(|| Error::Usage("--runtime is missing".into()))?;
        let mut command = Command::new(program);
        command.args(arguments);
        command
    };
    for name in ["_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE"] {
        command.env_remove(name);
    }
    if let Some(stdin) = streams.stdin {
        command.stdin(Stdio::from(stdin));
    }
    if let Some(stdout) = streams.stdout {
        command.stdout(Stdio::from(stdout));
    }
    if let Some(stderr) = streams.stderr {
        command.stderr(Stdio::from(stderr));
    }
    let runtime = words.first().cloned().unwrap_or_default();
    let child =
        spawn_unblocked(&mut command).map_err(Error::path("start runtime", Path::new(&runtime)))?;
    pid_of(&child)
}

/// Starts a program with no signal blocked: it inherits the mask, and ours
/// blocks what we take from the signalfd.
///
/// For as long as the start takes, those signals have their default effect
/// here. What ends us then ends us before anything depends on us.
pub(crate) fn spawn_unblocked(command: &mut Command) -> std::io::Result<Child> {
    let mask = SigSet::empty().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let child = command.spawn();
    mask.thread_set_mask()?;
    child
}

/// Whether socket activation (sd_listen_fds(3)) was meant for us and has to be
/// passed on: the pid in LISTEN_PID must be the receiver's.
fn must_rewrite_listen_pid(always: bool) -> bool {
    std::env::var_os("LISTEN_PID").is_some_and(|value| {
        let ours = rustix::process::getpid().as_raw_nonzero().to_string();
        always || value.to_str() == Some(ours.as_str())
    })
}

/// Becomes the program `words`, with LISTEN_PID set to the pid it will have.
/// Returns only when that fails.
pub(crate) fn launch(words: &[OsString]) -> Error {
    let Some((program, arguments)) = words.split_first() else {
        return Error::Usage(format!("{LAUNCH} needs a program"));
    };
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_PID", std::process::id().to_string())
        .exec();
    Error::path("execute", Path::new(program))(error)
}

/// The pid of a child that was just started.
pub(crate) fn pid_of(child: &Child) -> Result<Pid, Error> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Runtime(format!("child with impossible pid {}", child.id())))
}

/// Reads the pid file that a runtime wrote.
pub(crate) fn read_pidfile(path: &Path) -> Result<Pid, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::path("read pid file", path))?;
    text.trim()
        .parse()
        .ok()
        // No container's process is the machine's first, and Pid takes no
        // negative number.
        .filter(|&number| number > 1)
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Runtime(format!("pid file {}: no pid in it", path.display())))
}

/// Writes a pid file so that a reader finds all of it or none.
pub(crate) fn write_pidfile(path: &Path, pid: Pid) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let fresh = Path::new(&name);
    let write = || {
        let mut file = File::create(fresh)?;
        file.write_all(pid.as_raw_nonzero().to_string().as_bytes())?;
        std::fs::rename(fresh, path)
    };
    write().map_err(Error::path("write pid file", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        assert!(read_pidfile(&path).is_err());
        write_pidfile(&path, Pid::from_raw(4321).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"4321");
        assert_eq!(read_pidfile(&path).unwrap().as_raw_nonzero().get(), 4321);
        for bad in ["", "x", "0", "-4", "1"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read_pidfile(&path).is_err(), "{bad}");
        }
    }
}
