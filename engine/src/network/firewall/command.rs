//! Why a change of the packet filter fails; and how its commands are run, with text on their standard input.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Why a change of the packet filter failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused.
    #[error("cannot {operation}")]
    Kernel {
        /// What was attempted.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The command could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The command refused.
    #[error("{program}: {message}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// What it wrote on its standard error.
        message: String,
    },
}

impl Failure {
    /// Whether the kernel has no such packet filter at all.
    pub(super) fn is_unsupported(&self) -> bool {
        let Failure::Kernel { source, .. } = self else {
            return false;
        };
        // No netfilter sockets; or those, but no nftables behind them.
        matches!(
            source.raw_os_error(),
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
        )
    }
}

/// Where the system's programs are when `PATH` has no place for them, as in a user's shell or under cron.
fn path_of(program: &str) -> PathBuf {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&places)
        .chain(usual)
        .map(|place| place.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}

/// Runs `program`, gives it `input`, and returns what it printed.
pub(super) fn run(
    program: &'static str,
    arguments: &[&str],
    input: &str,
) -> Result<String, Failure> {
    let fail = |source| Failure::Run { program, source };
    let mut child = Command::new(path_of(program))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends early says why on its standard error; the broken pipe says nothing.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Refused {
        program,
        message: message
            .trim()
            .lines()
            .next()
            .unwrap_or("failed without a word")
            .to_owned(),
    })
}
