//! Starting and ending the new process.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::Error;
use super::fault::{At, Fault, Step};
use super::handshake::{self, FromInit, InitEnd, ParentEnd};
use super::init::{self, Context};
use crate::cgroup::Entry;
use crate::failure::During;
use crate::namespace::Kind;
use crate::sys::process::{CLONE_PARENT, Child, clone_process, set_not_dumpable, setns};
use crate::sys::signal::{kill, pidfd_send_signal};

/// Starts the init process of a container.
///
/// With a pid or user namespace to join an intermediate process does that first, because one only enters a pid namespace
/// by being born there, and only root of a user namespace makes others that belong to it. So it does with others to join
/// when there is a user namespace to make.
pub(super) fn spawn(context: &Context<'_>) -> Result<(Child, ParentEnd), Error> {
    let cgroup = context.entry.as_ref().and_then(Entry::birth);
    let flags = context.plan.namespaces.clone_flags();
    if !context
        .joins
        .iter()
        .any(|(kind, _)| joins_early(context, *kind))
    {
        let ends = handshake::pair().during("socketpair", "init")?;
        let child = clone_process(flags, cgroup, ends, |channel| init::run(context, channel));
        return Ok(child.during("clone3", "init")?);
    }
    let join = || {
        // Before the namespaces, because processes that share them could trace this one and the one it makes, which
        // inherits this; both still have descriptors of the host.
        set_not_dumpable().at(Step::User, "prctl", "")?;
        join_early(context)
    };
    let body = |channel| init::run(context, channel);
    spawn_after(join, ("init", flags), cgroup, body)
}

/// Whether a namespace has to be joined by an intermediate process: with a user namespace nearly all, because in that the
/// rights on others may be gone. A mount namespace takes the host's paths away, so it always comes last.
pub(super) fn joins_early(context: &Context<'_>, kind: Kind) -> bool {
    match kind {
        Kind::User | Kind::Pid => true,
        Kind::Mount => false,
        _ => context.plan.namespaces.has_user(),
    }
}

/// Joins namespaces: those that belong to the caller with the caller's rights, then the user namespace, then those that
/// belong to that.
fn join_early(context: &Context<'_>) -> Result<(), Fault> {
    let early = |(kind, _): &&(Kind, OwnedFd)| joins_early(context, *kind);
    let (users, others): (Vec<_>, Vec<_>) = context
        .joins
        .iter()
        .filter(early)
        .partition(|(kind, _)| *kind == Kind::User);
    let has_user = !users.is_empty();
    let mut left = Vec::new();
    for (kind, fd) in others {
        match setns(fd, kind.flag()) {
            Err(Errno::PERM) if has_user => left.push((kind, fd)),
            other => other.at(Step::Namespace, "setns", kind.name())?,
        }
    }
    for (kind, fd) in users.into_iter().map(|(kind, fd)| (kind, fd)).chain(left) {
        setns(fd, kind.flag()).at(Step::Namespace, "setns", kind.name())?;
    }
    Ok(())
}

/// The kernel's answer if what failed is the birth of a process: EACCES and EBUSY are about its cgroup.
pub(super) fn refused_birth(error: &Error) -> Option<Errno> {
    match error {
        Error::Call(failed) if failed.call == "clone3" => Some(failed.errno),
        _ => None,
    }
}

/// Starts a process by way of an intermediate one, which runs `join` and makes the real one, a child of ours too, with these
/// flags. `what` it is is for errors.
pub(super) fn spawn_after(
    join: impl FnOnce() -> Result<(), Fault>,
    (what, flags): (&'static str, u64),
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce(InitEnd) -> i32,
) -> Result<(Child, ParentEnd), Error> {
    let ends = handshake::pair().during("socketpair", what)?;
    let (between, channel) = clone_process(0, cgroup, ends, |channel| {
        match join().and_then(|()| spawn_sibling((what, flags), &channel, body)) {
            Ok(()) => 0,
            Err(fault) => {
                // The parent may be gone already; then nobody wants to know.
                let _ = channel.send_fault(&fault);
                1
            }
        }
    })
    .during("clone3", what)?;
    let said = channel.receive().during("recvmsg", what);
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
    (what, flags): (&'static str, u64),
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
            // Not to be closed a second time after the body has closed all there is by number.
            drop(held);
            body(own)
        },
    )
    .at(Step::Namespace, "clone3", what)?;
    channel
        .send_forked(child.pid.as_raw_nonzero().get())
        .at(Step::Handshake, "sendmsg", "")
}

/// Kills a child and waits for its end.
pub(crate) fn end(child: &Child) {
    let sent = child.pidfd.as_ref();
    let killed = match sent.map(|pidfd| pidfd_send_signal(pidfd, libc::SIGKILL)) {
        None | Some(Err(Errno::NOSYS)) => kill(child.pid, libc::SIGKILL),
        Some(other) => other,
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
