//! conmon's interface, which podman, CRI-O and `qengine` speak.
//!
//! The caller passes options ([`flags`]) and, in environment variables, the
//! numbers of up to three descriptors:
//!
//! - `_OCI_SYNCPIPE`: the monitor writes one JSON object a line to it
//!   ([`sync`]): the container's pid, or why there is none, and for an exec
//!   session its exit code.
//! - `_OCI_STARTPIPE`: nothing happens before something arrives on it (or it is
//!   closed), so that the caller can move the monitor into a cgroup first. An
//!   attached exec session waits for a second message before its process runs.
//! - `_OCI_ATTACHPIPE`: the monitor says on it that the attach socket is there.
//!
//! The first process ends at once, leaving the monitor behind as a daemon, with
//! two exceptions: `--sync`, conmon's way to stay, and `--no-daemon`, ours.
//! `--no-daemon` spares the second start for a caller that starts the monitor as
//! a child it never waits for; it also closes at once the descriptors that the
//! caller left open by accident (after the runtime's start if LISTEN_FDS or
//! `--preserve-fds` is for the runtime). conmon keeps those until the container
//! ends: podman reserves ports that way. And it leaves its caller's cgroup, where
//! podman and CRI-O put conmon where they want it.

mod check;
pub(crate) mod flags;
pub(crate) mod sync;

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::io::Errno;

use crate::error::Error;
use crate::exit;
use crate::inherited::Inherited;
use crate::monitor::{Channels, Monitor};
use crate::plan::{Detach, Plan, StdioKind};
use crate::{diag, process};
use flags::{Flags, Parsed};
use sync::SyncPipe;

/// First argument of the second start: the monitor proper.
pub(crate) const DETACHED: &str = "--detached";

/// Runs as conmon would, with the process's arguments.
pub(crate) fn run(mut inherited: Inherited, arguments: Vec<OsString>) -> Result<ExitCode, Error> {
    let mut words = arguments.iter().skip(1).cloned().peekable();
    let detached = words.next_if(|word| word == DETACHED).is_some();
    let flags = match flags::parse(words)? {
        Parsed::Run(flags) => *flags,
        Parsed::Print(text) => {
            print(&text);
            return Ok(ExitCode::SUCCESS);
        }
    };
    let mut plan = plan(flags)?;
    diag::configure(plan.log_level, plan.syslog, &plan.cid);
    if detached {
        plan.detach = Detach::Done;
    }

    let mut start = inherited
        .take_from_env("_OCI_STARTPIPE")
        .map_err(Error::call("take _OCI_STARTPIPE"))?;
    if plan.detach != Detach::Done
        && let Some(pipe) = &start
    {
        wait_for_start(pipe)?;
    }
    if plan.detach == Detach::Daemon {
        return daemonise(&plan, start, &arguments);
    }
    if plan.detach != Detach::Done
        && let Some(path) = &plan.monitor_pidfile
    {
        process::write_pidfile(path, rustix::process::getpid())?;
    }
    if !plan.is_attached_exec() {
        start = None;
    }
    let channels = Channels {
        sync: inherited
            .take_from_env("_OCI_SYNCPIPE")
            .map_err(Error::call("take _OCI_SYNCPIPE"))?
            .map(|fd| SyncPipe::new(fd, plan.api, plan.is_exec())),
        attach: attach_pipe(&mut inherited, &plan)?,
        start,
    };
    exit::code(Monitor::run(plan, channels, inherited))
}

fn plan(flags: Flags) -> Result<Plan, Error> {
    let directory = std::env::current_dir().map_err(Error::call("getcwd"))?;
    flags.into_plan(&directory)
}

#[expect(clippy::print_stdout, reason = "answers --help and --version")]
fn print(text: &str) {
    println!("{text}");
}

/// Blocks until the caller lets us go, by a message or by closing its end.
fn wait_for_start(pipe: &OwnedFd) -> Result<(), Error> {
    // As large as a message may be: on a packet socket the rest would be lost.
    let mut message = [0_u8; 8192];
    rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut message))
        .map(|_| ())
        .map_err(Error::call("read start pipe"))
}

fn attach_pipe(inherited: &mut Inherited, plan: &Plan) -> Result<Option<SyncPipe>, Error> {
    if !plan.is_attached_exec() {
        return Ok(None);
    }
    let fd = inherited
        .take_from_env("_OCI_ATTACHPIPE")
        .map_err(Error::call("take _OCI_ATTACHPIPE"))?
        .ok_or_else(|| Error::Usage("--exec-attach needs _OCI_ATTACHPIPE".into()))?;
    Ok(Some(SyncPipe::new(fd, plan.api, true)))
}

/// Starts this program again as the monitor, in the same cgroup and with the
/// same pipes, records its pid and ends.
///
/// A second start instead of a fork: it needs no unsafe code, and the monitor
/// begins with memory that parsing and waiting have not touched.
fn daemonise(
    plan: &Plan,
    start: Option<OwnedFd>,
    arguments: &[OsString],
) -> Result<ExitCode, Error> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = arguments.first() {
        command.arg0(name);
    }
    command.arg(DETACHED).args(arguments.iter().skip(1));
    if plan.stdio != StdioKind::Passthrough {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    }
    // Its original was closed when we took it, so the new number is passed on.
    let start = start.filter(|_| plan.is_attached_exec());
    match &start {
        Some(fd) => {
            clear_close_on_exec(fd).map_err(Error::call("pass the start pipe on"))?;
            let number = std::os::fd::AsRawFd::as_raw_fd(fd);
            command.env("_OCI_STARTPIPE", number.to_string());
        }
        None => {
            command.env_remove("_OCI_STARTPIPE");
        }
    }
    let child = command
        .spawn()
        .map_err(Error::call("start the monitor (/proc/self/exe)"))?;
    if let Some(path) = &plan.monitor_pidfile {
        let pid = process::pid_of(&child)?;
        if let Err(error) = process::write_pidfile(path, pid) {
            // Without its pid file the caller could never find the monitor.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            return Err(error);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn clear_close_on_exec(fd: impl AsFd) -> Result<(), Errno> {
    let flags = rustix::io::fcntl_getfd(&fd)?;
    rustix::io::fcntl_setfd(&fd, flags - rustix::io::FdFlags::CLOEXEC)
}
