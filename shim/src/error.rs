//! What can go wrong before a container runs.
//!
//! Once the container runs, the monitor has nobody left to fail to: it keeps
//! going and reports through [`crate::diag`].

use std::io;
use std::path::{Path, PathBuf};

/// A failure that ends the monitor before the container has started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// An operation on a path failed.
    #[error("{action} {}", path.display())]
    Path {
        /// What was attempted, as a verb: `open log file`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call without a path failed.
    #[error("{call}")]
    Call {
        /// The call and its purpose.
        call: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The runtime, or something it was to deliver, failed. The text is meant
    /// for the caller at the other end of the sync pipe, unchanged.
    #[error("{0}")]
    Runtime(String),
}

impl Error {
    /// Makes the closure for `map_err` on a failed operation on `path`.
    pub(crate) fn path<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Path {
            action,
            path,
            source: source.into(),
        }
    }

    /// Makes the closure for `map_err` on a failed system call.
    pub(crate) fn call<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Call {
            call,
            source: source.into(),
        }
    }

    /// The message with all its causes on one line.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
