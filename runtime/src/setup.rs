//! Carrying a plan out: the parent's half, the container's half, and what they say to each other.
//!
//! [`parent`] makes what must be made outside and forks; [`init`] runs in the new process up to exec. [`join`] is the
//! second process of a container, which `exec` starts. [`handshake`] has the drawing and the messages.

pub(crate) mod fault;
pub(crate) mod filter;
pub(crate) mod finish;
pub(crate) mod handshake;
pub(crate) mod init;
pub(crate) mod join;
mod outside;
pub(crate) mod parent;
pub(crate) mod source;
pub(crate) mod spawn;

use rustix::process::Pid;

use crate::failure::CallFailed;

/// Tells in the log that a process was born, in the words of runc's debug log, by which people and tests find their way.
fn tell_born(pid: Pid) {
    let pid = pid.as_raw_nonzero();
    log::debug!("nsexec container setup: made process {pid}");
    log::debug!("child process in init(): {pid}");
}

/// Why a process could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The state directory.
    #[error(transparent)]
    State(#[from] crate::state::Error),
    /// The cgroup.
    #[error("unable to apply cgroup configuration")]
    Cgroup(#[from] crate::cgroup::Error),
    /// Putting the second process of a container into a cgroup.
    #[error("error adding pid {pid} to cgroups")]
    Join {
        /// The process.
        pid: i32,
        /// Why not.
        source: crate::cgroup::Error,
    },
    /// The system call filter.
    #[error("unable to compile the seccomp profile")]
    Seccomp(#[from] crate::seccomp::Error),
    /// A hook outside.
    #[error(transparent)]
    Hook(#[from] crate::hook::Error),
    /// The id mappings.
    #[error("unable to map ids")]
    Map(#[from] crate::namespace::MapError),
    /// An id-mapped mount for a caller without privileges.
    #[error("id-mapped mounts are not supported for rootless containers")]
    RootlessIdmap,
    /// An id-mapped mount that the kernel refuses.
    #[error("failed to set MOUNT_ATTR_IDMAP on {path}: {errno}{hint}", path = path.display())]
    Idmap {
        /// Its source.
        path: std::path::PathBuf,
        /// What may be the reason.
        hint: &'static str,
        /// The kernel's answer.
        errno: String,
    },
    /// A system call outside.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The terminal or its socket.
    #[error(transparent)]
    Console(#[from] crate::console::Error),
    /// The agent that wants the seccomp listener.
    #[error(transparent)]
    Agent(#[from] crate::seccomp_agent::Error),
    /// Network devices.
    #[error("error creating network interfaces")]
    NetworkDevice(#[from] crate::network_device::Error),
    /// The shares of cache and memory bandwidth.
    #[error(transparent)]
    Resctrl(#[from] crate::resctrl::Error),
    /// Something inside.
    #[error("error during container init")]
    Init(#[source] fault::Fault),
    /// The process inside ended without a word: killed, most likely.
    #[error("container init ended unexpectedly")]
    Died,
    /// Message that does not fit the state of things.
    #[error("unexpected message from container init")]
    Protocol,
}
