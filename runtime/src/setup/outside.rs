//! What the parent does to its child from outside, because the child may not, or because it would not be believed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdGetfdFlags, Rlimit, pidfd_getfd, prlimit};

use super::Error;
use super::handshake::{ParentEnd, ToInit};
use crate::failure::{CallFailed, During};
use crate::namespace::Kind;
use crate::network_device::Moved;
use crate::plan::Plan;
use crate::plan::number_list::Mask;
use crate::plan::process::ProcessPlan;
use crate::rootless;
use crate::seccomp_agent;
use crate::state::Record;
use crate::sys::process::Child;
use crate::sys::sched::sched_setaffinity;

/// Fetches a descriptor of the child by its number.
pub(super) fn fetch(number: i32, child: &Child) -> Result<OwnedFd, CallFailed> {
    let pidfd = child.pidfd.as_ref().ok_or(Errno::NOSYS);
    let flags = PidfdGetfdFlags::empty();
    pidfd
        .and_then(|pidfd| pidfd_getfd(pidfd, number, flags))
        .during("pidfd_getfd", "seccomp listener")
}

/// Gives the listener of a child's filter to the agent, and tells the child so.
pub(super) fn pass_listener(
    listener: &OwnedFd,
    record: &Record,
    channel: &ParentEnd,
    child: &Child,
) -> Result<(), Error> {
    let pid = child.pid.as_raw_nonzero().get();
    seccomp_agent::hand_over(listener.as_fd(), record, pid)?;
    channel
        .send(&ToInit::ListenerTaken)
        .during("sendmsg", "init")?;
    Ok(())
}

/// Lets a process run on every CPU that its cgroup allows, on whichever its caller was allowed to run.
pub(super) fn allow_all_cpus(pid: Pid) {
    let pid = pid.as_raw_nonzero().get();
    if let Err(errno) = sched_setaffinity(pid, Mask::all().words()) {
        log::warn!(
            "resetting the CPU affinity of pid {pid} failed -- the container process may inherit that of qrun: {}",
            crate::failure::text(errno)
        );
    }
}

/// Raises the hard limits of a process in a user namespace as far as it will want to set them, which from in there it may
/// not. It sets them itself, and says so when it cannot.
pub(super) fn raise_limits(pid: Pid, process: &ProcessPlan) {
    for limit in &process.rlimits {
        let now = rustix::process::getrlimit(limit.resource);
        let wanted = (limit.hard != u64::MAX).then_some(limit.hard);
        let higher = match (wanted, now.maximum) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wanted), Some(now)) => wanted > now,
        };
        if higher {
            let raised = Rlimit {
                current: now.current,
                maximum: wanted,
            };
            if let Err(errno) = prlimit(Some(pid), limit.resource, raised) {
                log::debug!("prlimit {}: {errno}", pid.as_raw_nonzero());
            }
        }
    }
}

/// Moves the network devices of the plan into the network namespace that the child is in, or is about to join.
pub(super) fn move_network_devices(
    plan: &Plan,
    joins: &[(Kind, OwnedFd)],
    pid: Pid,
    moved: &mut Option<Moved>,
) -> Result<(), Error> {
    let joined = joins.iter().find(|(kind, _)| *kind == Kind::Network);
    let namespace = match joined {
        Some((_, fd)) => rustix::io::fcntl_dupfd_cloexec(fd, 3).during("dup", "network")?,
        None => {
            let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).during("open", &path)?
        }
    };
    let moved = moved.insert(Moved::begin(namespace)?);
    for device in &plan.network_devices {
        moved.move_in(device)?;
    }
    Ok(())
}

/// Adjusts how gladly the OOM killer takes a process, from outside, where `/proc` is trusted.
pub(super) fn set_oom_score_adj(
    pid: Pid,
    score: Option<i32>,
    in_user_namespace: bool,
) -> Result<(), CallFailed> {
    let Some(score) = score else { return Ok(()) };
    let path = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    match std::fs::write(&path, score.to_string()) {
        // Lowering it takes a privilege that callers in user namespaces do not have; runc goes on without.
        Err(error)
            if error.kind() == std::io::ErrorKind::PermissionDenied
                && (in_user_namespace || rootless::is_other_user()) =>
        {
            log::debug!("cannot set oom_score_adj to {score}: {error}");
            Ok(())
        }
        other => other.during("write", &path),
    }
}
