//! Carrying a plan out: the parent's half, the container's half, and what they say to each other.
//!
//! [`parent`] makes what must be made outside and forks; [`init`] runs in the new process up to exec. [`join`] is the
//! second process of a container, which `exec` starts. [`handshake`] has the drawing and the messages.

mod converse;
pub(crate) mod fault;
pub(crate) mod filter;
pub(crate) mod finish;
pub(crate) mod handshake;
pub(crate) mod init;
pub(crate) mod join;
pub(crate) mod made;
mod outside;
pub(crate) mod parent;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod source;
pub(crate) mod spawn;

use crate::failure::CallFailed;

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
    Map(#[from] crate::namespace::mapping::Error),
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
    /// The same of a process that joins a container, of which there is no more to say.
    #[error(transparent)]
    Joining(fault::Fault),
    /// The process inside ended without a word: killed, most likely.
    #[error("container init ended unexpectedly")]
    Died,
    /// Message that does not fit the state of things.
    #[error("unexpected message from container init")]
    Protocol,
}
