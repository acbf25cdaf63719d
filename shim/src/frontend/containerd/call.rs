//! Calls of the OCI runtime: command lines, and why one failed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::message::RuncOptions;
use super::ttrpc::{Code, Refusal};
use crate::process::ExitStatus;

/// The runtime unless the options name another.
const DEFAULT: &str = "qrun";

/// Where the default runtime keeps its state, a directory a namespace. Beside runc's, not in it: a container belongs to
/// the runtime that made it.
const DEFAULT_ROOT: &str = "/run/containerd/qrun";

/// Most of a log that is looked at for an error.
const LOG_TAIL: u64 = 64 * 1024;

/// How the runtime of one container is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runtime {
    binary: String,
    root: PathBuf,
    log: PathBuf,
    systemd_cgroup: bool,
}

impl Runtime {
    /// From a container's options.
    pub(crate) fn new(options: &RuncOptions, namespace: &str, bundle: &Path) -> Self {
        let or = |text: &str, default: &str| match text {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        Self {
            binary: or(&options.binary_name, DEFAULT),
            root: Path::new(&or(&options.root, DEFAULT_ROOT)).join(namespace),
            log: bundle.join("log.json"),
            systemd_cgroup: options.systemd_cgroup,
        }
    }

    /// The program.
    pub(crate) fn binary(&self) -> &str {
        &self.binary
    }

    /// A whole command line.
    pub(crate) fn command<I: IntoIterator>(&self, words: I) -> Vec<OsString>
    where
        I::Item: Into<OsString>,
    {
        let mut line: Vec<OsString> = vec![
            self.binary.clone().into(),
            "--root".into(),
            self.root.clone().into(),
            "--log".into(),
            self.log.clone().into(),
            "--log-format".into(),
            "json".into(),
        ];
        if self.systemd_cgroup {
            line.push("--systemd-cgroup".into());
        }
        line.extend(words.into_iter().map(Into::into));
        line
    }

    /// Why a call failed, by the runtime's log.
    pub(crate) fn complaint(&self, what: &str, status: ExitStatus) -> Refusal {
        let said = tail(&self.log).and_then(|text| crate::monitor::last_error(&text));
        let text = match said {
            Some(said) => format!("{what}: {said}"),
            None => format!("{what}: {} ended with status {}", self.binary, status.0),
        };
        Refusal::new(code_of(&text), text)
    }
}

/// The end of a file.
fn tail(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// What kind of failure a runtime's words are about; containerd's clients act on it.
fn code_of(text: &str) -> Code {
    const GONE: [&str; 5] = [
        "does not exist",
        "process already finished",
        "container not running",
        "no such process",
        "not running",
    ];
    if GONE.iter().any(|words| text.contains(words)) {
        Code::NotFound
    } else {
        Code::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let mut options = RuncOptions::default();
        let line = |options: &RuncOptions| {
            let words = Runtime::new(options, "ns", Path::new("/b")).command(["start", "id"]);
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            words.join(" ")
        };
        assert_eq!(
            line(&options),
            "qrun --root /run/containerd/qrun/ns --log /b/log.json --log-format json start id"
        );
        options.binary_name = "/usr/bin/runc".into();
        options.root = "/r".into();
        options.systemd_cgroup = true;
        assert_eq!(
            line(&options),
            "/usr/bin/runc --root /r/ns --log /b/log.json --log-format json --systemd-cgroup start id"
        );
    }

    #[test]
    fn what_is_gone_is_not_found() {
        assert_eq!(code_of("container \"x\" does not exist"), Code::NotFound);
        assert_eq!(code_of("permission denied"), Code::Unknown);
    }
}
