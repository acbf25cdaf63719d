//! Building images by a Dockerfile.
//!
//! ```text
//! text ── parse ──> instructions ── plan ──> stages the target needs ── stage, step by step ──> layers, configuration
//!                                                      each step: cache, or copy / run in a container of its own
//! ```
//!
//! [`mod@parse`] and [`mod@plan`] are pure. A step starts from the file system and the configuration that the one before
//! came to, and everything its result depends on is in its key ([`cache`]): what was done once is not done again. What a
//! step writes becomes a layer as it is; only the last stage's layers are packed, when they become an image.
//!
//! Left out so far: `RUN --mount=type=ssh`, other platforms than the machine's, stages side by side.

mod cache;
pub mod change;
mod config;
mod copy;
mod digest;
mod fetch;
mod ignore;
pub mod instruction;
mod lines;
mod mount;
pub mod parse;
mod pattern;
pub mod plan;
mod run;
mod stage;
mod transfer;
mod tree;
mod word;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bundle_tools::image::Platform;

use crate::container::{self, Programs};
use crate::image::{self, Image, PullOptions, Reference, WriterGuard, pull};
use crate::network;
use crate::store::{self, Durability, Event, Kind, Store, write_atomic};

pub use cache::{cached_layers, forget};
pub use ignore::Ignore;

/// A line of a Dockerfile that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    /// Its number; 0 when no line is to blame.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// When `FROM` asks the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// For images that are not here.
    #[default]
    Missing,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to build.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How the Dockerfile is called in messages.
    pub file_name: String,
    /// Its text.
    pub text: String,
    /// The context; without one there is nothing to copy.
    pub context: Option<PathBuf>,
    /// The ignore file's text, instead of the context's own `.dockerignore`.
    pub ignore: Option<String>,
    /// The image's names.
    pub names: Vec<Reference>,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// The stage to build; the last when absent.
    pub target: Option<String>,
    /// Do everything again.
    pub no_cache: bool,
    /// When to pull.
    pub pull: PullPolicy,
    /// How to pull, and for which platform.
    pub pull_options: PullOptions,
    /// Labels beyond the file's.
    pub labels: BTreeMap<String, String>,
    /// What `RUN` is connected to.
    pub network: network::Mode,
    /// What `RUN --mount=type=secret` may see, by id.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// `HOST:ADDRESS` lines for `RUN`.
    pub add_hosts: Vec<String>,
}

/// Is told what a build does, and has the streams of its commands.
pub trait Progress {
    /// A step begins.
    fn step(&self, number: usize, total: usize, text: &str);
    /// The step was not done, but remembered.
    fn cached(&self);
    /// The step has made this layer; `None` when it changed no file.
    fn done(&self, layer: Option<&str>);
    /// Something worth knowing.
    fn warning(&self, message: &str);
    /// An image is fetched.
    fn pulling(&self, reference: &Reference) -> &dyn pull::Progress;
    /// Where the output and the errors of a command go.
    ///
    /// # Errors
    /// When they can't be had.
    fn streams(&self) -> io::Result<(OwnedFd, OwnedFd)>;
    /// Becomes readable when the build is to be given up.
    fn cancel(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line of the file.
    #[error("{file}:{line}: {message}")]
    Line {
        /// The file as it was called.
        file: String,
        /// The line.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// Something that has no line.
    #[error("{file}: {message}")]
    File {
        /// The file as it was called.
        file: String,
        /// What is wrong with it.
        message: String,
    },
    /// A step failed.
    #[error("{file}:{line}: {step}")]
    Step {
        /// The file as it was called.
        file: String,
        /// The step's line.
        line: usize,
        /// Its text.
        step: String,
        /// Why.
        source: Box<Error>,
    },
    /// A command ended with a failure.
    #[error("the command failed with exit code {0}")]
    Command(i32),
    /// The caller gave the build up.
    #[error("the build was cancelled")]
    Cancelled,
    /// Nothing to copy.
    #[error("there is no {source_path:?} in {tree}{reason}")]
    NoSource {
        /// As written.
        source_path: String,
        /// Where it was looked for.
        tree: PathBuf,
        /// What else is known.
        reason: &'static str,
    },
    /// There is no context.
    #[error("there is no context to copy from: give a directory at the end of the command line")]
    NoContext,
    /// A destination can't be what it has to be.
    #[error("{path} in the image {reason}")]
    Destination {
        /// The path in the image.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// An instruction that can't be carried out as written.
    #[error("{0}")]
    Invalid(String),
    /// An archive can't be unpacked.
    #[error("cannot unpack {path}")]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address can't be fetched.
    #[error("cannot fetch {address}")]
    Fetch {
        /// The address.
        address: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be handled.
    #[error("cannot {action} {path}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pull of an image.
    #[error(transparent)]
    Pull(Box<pull::Error>),
    /// The image side.
    #[error(transparent)]
    Image(Box<image::Error>),
    /// The container of a step.
    #[error(transparent)]
    Container(Box<container::Error>),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        Error::Image(Box::new(error))
    }
}

impl From<container::Error> for Error {
    fn from(error: container::Error) -> Error {
        Error::Container(Box::new(error))
    }
}

impl From<pull::Error> for Error {
    fn from(error: pull::Error) -> Error {
        Error::Pull(Box::new(error))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was attempted when a system call fails.
trait FileContext<T> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> FileContext<T> for std::result::Result<T, E> {
    fn doing(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::System {
            action,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}

/// Builds an image.
///
/// # Errors
/// A file that can't be understood, a step that fails. What was done until then is remembered, so that the next build
/// goes on from there; nothing else is left of it.
pub fn build(
    store: &Store,
    programs: &Programs,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Image> {
    let blame = |error: ParseError| match error.line {
        0 => Error::File {
            file: options.file_name.clone(),
            message: error.message,
        },
        line => Error::Line {
            file: options.file_name.clone(),
            line,
            message: error.message,
        },
    };
    let file = parse::parse(&options.text).map_err(blame)?;
    let platform = options.pull_options.platform.clone();
    let platform = platform.unwrap_or_else(Platform::host);
    let plan = plan::plan(
        file,
        options.target.as_deref(),
        &options.build_args,
        &platform,
    )
    .map_err(blame)?;
    container::recover::sweep(store, programs)?;
    // Until the image is written down, nobody collects what it is made of.
    let _guard = WriterGuard::take(store)?;
    let image = stage::Builder::new(store, programs, options, &plan, progress)?.build()?;
    store.emit(&Event::new(Kind::Image, "build", image.id.to_string()));
    Ok(image)
}

/// Reads a text file of a context, which may be a stranger's: no link in it leads elsewhere.
///
/// # Errors
/// When the file is there and can't be read.
pub fn read_from_context(context: &Path, name: &str) -> Result<Option<String>> {
    tree::Tree::open(context, Ignore::default())?.read_text(name)
}

/// Writes a file of which only time is lost when it is lost.
fn lay_down(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        store::make_dir(parent)?;
    }
    Ok(write_atomic(path, content, Durability::Volatile)?)
}
