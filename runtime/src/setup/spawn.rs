//! Starting and ending the new process.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::Error;
use super::fault::{At, Fault, Step};
use super::handshake::{self, FromInit, InitEnd, ParentEnd};
use super::init::{self, Context};
use crate::failure::During;
use crate::namespace::Kind;
use crate::sys::process::{CLONE_PARENT, Child, clone_process, setns};
use crate::sys::signal::{kill, pidfd_send_signal};

/// Starts the new process. With a pid or user namespace to join an intermediate process does that first, because one only
/// enters a pid namespace by being born there, and only root of a user namespace makes others that belong to it.
pub(super) fn spawn(
    context: &Context<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, ParentEnd), Error> {
    let flags = context.plan.namespaces.clone_flags();
    let ends = handshake::pair().during("socketpair", "init")?;
    if !context.joins.iter().any(joined_early) {
        let child = clone_process(flags, cgroup, ends, |channel| init::run(context, channel));
        return Ok(child.during("clone3", "init")?);
    }
    let (between, channel) = clone_process(0, cgroup, ends, |channel| {
        join_and_spawn(context, flags, &channel)
    })
    .during("clone3", "init")?;
    let said = channel.receive().during("recvmsg", "init");
    wait_for(between.pid);
    match said? {
        Some(FromInit::Forked(pid)) => {
            let pid = Pid::from_raw(pid).ok_or(Error::Protocol)?;
            let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok();
            Ok((Child { pid, pidfd }, channel))
        }
        Some(FromInit::Failed(fault)) => Err(Error::Init(fault)),
        _ => Err(Error::Died),
    }
}

/// Whether a namespace has to be joined by an intermediate process.
pub(super) fn joined_early((kind, _): &(Kind, OwnedFd)) -> bool {
    matches!(kind, Kind::User | Kind::Pid)
}

/// The intermediate process; returns its exit code.
fn join_and_spawn(context: &Context<'_>, flags: u64, channel: &InitEnd) -> i32 {
    match try_join_and_spawn(context, flags, channel) {
        Ok(()) => 0,
        Err(fault) => {
            // The parent may be gone already; then nobody wants to know.
            let _ = channel.send_fault(&fault);
            1
        }
    }
}

/// Joins, makes the real child, whose parent is ours, and reports it.
fn try_join_and_spawn(context: &Context<'_>, flags: u64, channel: &InitEnd) -> Result<(), Fault> {
    for (kind, fd) in context
        .joins
        .iter()
        .filter(|namespace| joined_early(namespace))
    {
        setns(fd, kind.flag()).at(Step::Namespace, "setns", kind.name())?;
    }
    let own = channel.duplicate().at(Step::Handshake, "dup", "")?;
    // The child begins when this process is gone, so that the report comes before anything the child says.
    let (held, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at(
        Step::Handshake,
        "pipe2",
        "",
    )?;
    let ends = (release, (own, held));
    let (child, _release) = clone_process(flags | CLONE_PARENT, None, ends, |(own, held)| {
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&held, &mut [0]));
        init::run(context, own)
    })
    .at(Step::Namespace, "clone3", "init")?;
    channel
        .send_forked(child.pid.as_raw_nonzero().get())
        .at(Step::Handshake, "sendmsg", "")
}

/// Kills a child and waits for its end.
pub(crate) fn end(child: &Child) {
    let killed = match &child.pidfd {
        Some(pidfd) => pidfd_send_signal(pidfd, libc::SIGKILL),
        None => kill(child.pid, libc::SIGKILL),
    };
    // It may have ended by itself; either way it is a child of ours until it is waited for.
    if let Err(errno) = killed {
        log::debug!("kill {}: {errno}", child.pid.as_raw_nonzero());
    }
    wait_for(child.pid);
}

/// Waits for the end of a child.
fn wait_for(pid: Pid) {
    // ECHILD: it has been waited for already.
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
}
