//! The userland forwarder: published ports without the kernel's packet filter, and single mappings by hand.
//!
//! ```text
//! source      which sockets of the host lead where: what is published now, or one container's port       (source)
//! watch       inotify on the files that say so; nothing is polled                                         (watch)
//! server      one listener a port, opened, redirected and closed as the source says                       (server)
//! tcp, relay  accepted connections: two directions, half-closed as the ends do                            (tcp, relay)
//! udp         one socket a client, forgotten when idle                                                    (udp)
//! register    a file that tells other commands who listens on what, and is void once its process is gone  (register)
//! ```
//!
//! Everything runs on one thread: a relay mostly waits, and one core moves several gigabytes a second. Where the
//! kernel's own rules translate a published port, its packets never come here: the listener then only holds the port,
//! and takes over should the rules get lost.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::{Protocol, PublishedPort};

mod budget;
mod forward;
pub(crate) mod register;
mod relay;
mod server;
mod source;
mod tcp;
mod udp;
mod watch;

pub use forward::Forward;
pub use register::{Kind, Listener, Registration, list, published};
pub use server::{forward, serve};

/// What can go wrong with the forwarder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A mapping that can't be parsed.
    #[error("invalid mapping {text:?}: {reason}")]
    BadMapping {
        /// As typed.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is one for this store already.
    #[error("the published ports are forwarded already, by process {0}")]
    Running(i32),
    /// A port that is to be mapped by hand belongs to a container.
    #[error("cannot listen on {listen}: container {container} publishes that port")]
    Published {
        /// The socket.
        listen: Listen,
        /// The container's short id.
        container: String,
    },
    /// The socket can't be had.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The socket.
        listen: Listen,
        /// What the kernel said.
        source: io::Error,
    },
    /// The container a mapping leads to was removed.
    #[error("container {0} was removed")]
    Removed(String),
    /// The kernel refused something.
    #[error("cannot {action} {object}")]
    Kernel {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        object: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The container.
    #[error(transparent)]
    Container(Box<crate::container::Error>),
    /// The networks.
    #[error(transparent)]
    Network(Box<crate::network::Error>),
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

impl From<crate::network::Error> for Error {
    fn from(error: crate::network::Error) -> Error {
        Error::Network(Box::new(error))
    }
}

impl From<crate::container::Error> for Error {
    fn from(error: crate::container::Error) -> Error {
        Error::Container(Box::new(error))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was attempted, and on what, to an [`io::Error`].
trait KernelContext<T> {
    fn kernel(self, action: &'static str, object: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> KernelContext<T> for std::result::Result<T, E> {
    fn kernel(self, action: &'static str, object: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|error| Error::Kernel {
            action,
            object: object.into(),
            source: error.into(),
        })
    }
}

/// A socket of the host that is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listen {
    /// Which kind of port.
    pub protocol: Protocol,
    /// Its address and number.
    pub address: SocketAddr,
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

impl From<Listen> for PublishedPort {
    /// The port as a reservation knows it; without where it leads.
    fn from(listen: Listen) -> PublishedPort {
        PublishedPort {
            host_ip: listen.address.ip(),
            host_port: listen.address.port(),
            container_port: 0,
            protocol: listen.protocol,
        }
    }
}

/// What happens to a forwarder, for whoever wants to tell.
#[derive(Debug)]
pub enum Event<'a> {
    /// A socket leads somewhere from now on.
    Serving {
        /// The socket.
        listen: Listen,
        /// Where to; nowhere while the container does not run.
        target: Option<SocketAddr>,
        /// The container's id.
        container: &'a str,
    },
    /// A socket was closed.
    Closed(Listen),
    /// A socket can't be had; it is tried again.
    Unavailable {
        /// The socket.
        listen: Listen,
        /// What the kernel said.
        error: &'a io::Error,
    },
    /// All sockets are as they shall be for the first time.
    Ready,
    /// What there shall be could not be found out; everything stays as it is until the next attempt.
    Trouble(&'a Error),
    /// No connection can be taken for now, for want of descriptors or memory.
    Exhausted(&'a io::Error),
}

/// Who is told of events.
pub type Report = std::sync::Arc<dyn Fn(Event<'_>) + Send + Sync>;
