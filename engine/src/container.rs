//! Containers: from what the user asked for to a process under a monitor, and back to nothing.
//!
//! A container is a directory of the store. `container.json` ([`model::Config`]) says what was asked for and never
//! changes afterwards; `changes.json` ([`model::Changes`]), there only when there is something to say, lays a newer name
//! (`rename`), newer limits, a newer restart policy (`update`), other networks (`network connect`) over it; `state.json` ([`model::State`]) says how far
//! it has come. Each change happens under the `flock` of the container's own `lock` file ([`Handle`]); readers take no
//! lock at all. The life of a container, one module a step:
//!
//! ```text
//! create ──> start: overlay, files, bundle, monitor ──> (running) ──> cleanup ──> remove
//!              ├────────── exec, attach, log, inspect, stop ──────────┤
//!              └────────────────────── restart ───────────────────────┘
//! ```
//!
//! What a killed command leaves half done is recognised by a free lock beside an unfinished status, and put right by
//! whichever command meets it next ([`recover`]).

pub mod attach;
mod bundle;
mod cgroup;
pub mod changes;
pub mod cleanup;
pub mod commit;
pub mod connect;
pub mod copy;
pub mod create;
pub mod exec;
pub mod export;
mod files;
pub mod filter;
pub mod find;
pub mod inspect;
mod live;
pub mod log;
pub mod model;
mod monitor;
mod overlay;
pub mod pause;
mod programs;
pub mod prune;
pub mod recover;
pub mod remove;
pub mod rename;
pub mod restart;
pub mod size;
pub mod start;
pub mod stats;
pub(crate) mod step;
pub mod stop;
pub mod top;
pub mod update;
pub mod volumes;
pub mod wait;

pub use bundle::check;
pub use find::Handle;
pub use live::Live;
pub use programs::Programs;

use std::io;
use std::path::PathBuf;

/// What can go wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing of that name, id or id prefix.
    #[error("no such container: {0}")]
    NotFound(String),
    /// An id prefix that several containers share.
    #[error("container id prefix {0} is ambiguous: more than one container starts with it")]
    Ambiguous(String),
    /// The name belongs to another container.
    #[error(
        "the container name {name} is already in use by container {holder}; remove or rename that container to be able to reuse the name"
    )]
    NameTaken {
        /// The name wanted.
        name: String,
        /// The id of the container that has it.
        holder: String,
    },
    /// A name that docker would refuse as well.
    #[error(
        "container name {0:?} is not valid: it takes letters, digits, `_`, `.` and `-`, and starts with a letter or digit"
    )]
    BadName(String),
    /// The operation needs another status.
    #[error("container {id} is {status}: cannot {action}")]
    WrongStatus {
        /// Short id or name.
        id: String,
        /// Its status, in docker's words.
        status: String,
        /// What was to be done.
        action: &'static str,
    },
    /// Its files can't be read, or their archive can't be written.
    #[error("cannot export container {container}")]
    Export {
        /// Its name.
        container: String,
        /// Why.
        source: bundle_tools::layer::diff::Error,
    },
    /// A combination of options that can't be meant.
    #[error("{0}")]
    Invalid(String),
    /// Neither the image nor the command line says what to run.
    #[error("no command given, and image {0} has neither an entrypoint nor a command")]
    NoCommand(String),
    /// The runtime refused; its own text follows.
    #[error("{message}")]
    Runtime {
        /// What the runtime said.
        message: String,
        /// The exit code that docker gives for it: 127 not found, 126 not executable, else 125.
        exit_code: u8,
    },
    /// A helper program is missing or can't be run.
    #[error("cannot run {program}")]
    Program {
        /// Which one.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The monitor did not do its part.
    #[error("the monitor of container {id} ended before it reported the container's process")]
    MonitorLost {
        /// Whose monitor.
        id: String,
    },
    /// A system call on a container's files or mounts failed.
    #[error("cannot {action} {path}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The store itself.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The image side.
    #[error(transparent)]
    Image(Box<crate::image::Error>),
    /// The network side.
    #[error(transparent)]
    Network(Box<crate::network::Error>),
    /// The side of volumes.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The bundle could not be generated.
    #[error("cannot generate the runtime configuration")]
    Bundle(#[from] bundle_tools::generate::Error),
}

// Boxed, since they are several times larger than everything else an operation returns.
impl From<crate::image::Error> for Error {
    fn from(error: crate::image::Error) -> Error {
        Error::Image(Box::new(error))
    }
}

impl From<crate::network::Error> for Error {
    fn from(error: crate::network::Error) -> Error {
        Error::Network(Box::new(error))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was attempted when a system call fails.
trait SystemContext<T> {
    fn system(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> SystemContext<T> for std::result::Result<T, E> {
    fn system(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|error| Error::System {
            action,
            path: path.into(),
            source: error.into(),
        })
    }
}
