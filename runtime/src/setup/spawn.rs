//! Starting and ending the new process.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::process::{Pid, WaitOptions, waitpid};

use super::Error;
use super::fault::{At, Fault, Step};
use super::handshake::{self, FromInit, InitEnd, ParentEnd};
use super::init::{self, Context};
use crate::failure::During;
use crate::namespace::Kind;
use crate::sys::process::{CLONE_PARENT, Child, clone_process, set_not_dumpable, setns};
use crate::sys::signal::{kill, pidfd_send_signal};

/// Starts the init process of a container.
///
/// With a pid or user namespace to join an intermediate process does that first, because one only enters a pid namespace
/// by being born there, and only root of a user namespace makes others that belong to it.
pub(super) fn spawn(
    context: &Context<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, ParentEnd), Error> {
    let flags = context.plan.namespaces.clone_flags();
    if !context.joins.iter().any(joined_early) {
        let ends = handshake::pair().during("socketpair", "init")?;
        let child = clone_process(flags, cgroup, ends, |channel| init::run(context, channel));
        return Ok(child.during("clone3", "init")?);
    }
    let join = || {
        // Before the namespaces, because processes that share them could trace this one and the one it makes, which
        // inherits this; both still have descriptors of the host.
        set_not_dumpable().at(Step::User, "prctl", "")?;
        context
            .joins
            .iter()
            .filter(|namespace| joined_early(namespace))
            .try_for_each(|(kind, fd)| {
                setns(fd, kind.flag()).at(Step::Namespace, "setns", kind.name())
            })
    };
    spawn_after(join, flags, cgroup, |channel| init::run(context, channel))
}

/// Whether a namespace has to be joined by an intermediate process.
pub(super) fn joined_early((kind, _): &(Kind, OwnedFd)) -> bool {
    matches!(kind, Kind::User | Kind::Pid)
}

/// Starts a process by way of an intermediate one, which runs `join` and makes the real one, a child of ours too.
pub(super) fn spawn_after(
    join: impl FnOnce() -> Result<(), Fault>,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce(InitEnd) -> i32,
) -> Result<(Child, ParentEnd), Error> {
    let ends = handshake::pair().during("socketpair", "init")?;
    let (between, channel) = clone_process(0, cgroup, ends, |channel| {
        match join().and_then(|()| spawn_sibling(flags, &channel, body)) {
            Ok(()) => 0,
            Err(fault) => {
                // The parent may be gone already; then nobody wants to know.
                let _ = channel.send_fault(&fault);
                1
            }
        }
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

/// The intermediate process: makes the real one and reports it.
fn spawn_sibling(
    flags: u64,
    channel: &InitEnd,
    body: impl FnOnce(InitEnd) -> i32,
) -> Result<(), Fault> {
    let own = channel.duplicate().at(Step::Handshake, "dup", "")?;
    // The child begins when this process is gone, so that the report comes before anything the child says.
    let (held, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at(
        Step::Handshake,
        "pipe2",
        "",
    )?;
    let (child, _release) = clone_process(
        flags | CLONE_PARENT,
        None,
        (release, (own, held)),
        |(own, held)| {
            // An error counts as the end of the pipe, which is what is waited for.
            let _ = rustix::io::retry_on_intr(|| rustix::io::read(&held, &mut [0]));
            body(own)
        },
    )
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
