//! What is wrong with a bundle.

use std::fmt;
use std::path::Path;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// A runtime will ignore it, or it is unwise.
    Warning,
    /// A runtime must or will refuse it.
    Error,
}

/// One finding.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// JSON pointer into `config.json`; empty for the bundle itself.
    pub path: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Checks a bundle directory against the runtime specification.
#[must_use]
pub fn validate(bundle: &Path) -> Vec<Problem> {
    let _ = bundle;
    todo!()
}
