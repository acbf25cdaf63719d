//! What becomes of the container's output on disk.
//!
//! [`Logs`] takes each chunk as it was read and hands it to every target of the
//! command line. The formats are pure functions ([`k8s_file`], [`json_file`]);
//! [`file`] does the writing, rotating and the counting of what a full disk
//! swallowed. Nothing in here ever waits or gives up on the container.

pub(crate) mod file;
pub(crate) mod journald;
pub(crate) mod json_file;
pub(crate) mod k8s_file;
pub(crate) mod timestamp;

use std::path::PathBuf;
use std::time::SystemTime;

use crate::error::Error;
use file::LogFile;
use journald::Journal;

/// Which of the container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, and everything on a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// The first byte of a packet to an attach client.
    pub(crate) fn packet_prefix(self) -> u8 {
        match self {
            Self::Stdout => 2,
            Self::Stderr => 3,
        }
    }

    /// Index into tables with one entry a stream.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }
}

/// One `--log-path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// A file.
    File {
        /// How lines are written.
        format: Format,
        /// Where.
        path: PathBuf,
    },
    /// The systemd journal.
    Journald,
}

/// Format of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Kubernetes' lines.
    K8s,
    /// docker's JSON lines.
    Json,
}

/// How large logs may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// Bytes of one file before it is rotated; no limit when `None`.
    pub(crate) file_size: Option<u64>,
    /// Rotated files kept beside the current one. With zero the current file is
    /// replaced by an empty one.
    pub(crate) backups: u32,
    /// Bytes written in all; what comes after is not logged.
    pub(crate) total: Option<u64>,
}

/// What journal entries say about the container besides its output, and json-file's records as far as labels go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Labels {
    /// Full id.
    pub(crate) id: String,
    /// Name, if it has one.
    pub(crate) name: Option<String>,
    /// `--log-tag`.
    pub(crate) tag: Option<String>,
    /// `--log-label`, each `LABEL=VALUE`.
    pub(crate) extra: Vec<String>,
}

/// All log targets of a container.
#[derive(Debug)]
pub(crate) struct Logs {
    files: Vec<LogFile>,
    journal: Option<Journal>,
}

impl Logs {
    /// Opens every target.
    pub(crate) fn open(targets: &[Target], limits: Limits, labels: &Labels) -> Result<Self, Error> {
        let mut logs = Self {
            files: Vec::new(),
            journal: None,
        };
        for target in targets {
            match target {
                Target::File { format, path } => {
                    let file = LogFile::open(path, *format, limits)?;
                    logs.files.push(file.with_labels(&labels.extra));
                }
                Target::Journald => logs.journal = Some(Journal::connect(labels)?),
            }
        }
        Ok(logs)
    }

    /// Logs a chunk of output.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) {
        let now = SystemTime::now();
        for file in &mut self.files {
            file.write(stream, data, now);
        }
        if let Some(journal) = &mut self.journal {
            journal.write(stream, data);
        }
    }

    /// Logs what was held back: no more output will come.
    pub(crate) fn finish(&mut self) {
        let now = SystemTime::now();
        for file in &mut self.files {
            file.finish(now);
        }
        if let Some(journal) = &mut self.journal {
            journal.finish();
        }
    }

    /// Gives back the memory that is only needed while something is written.
    pub(crate) fn settle(&mut self) {
        for file in &mut self.files {
            file.settle();
        }
    }

    /// Opens the files again by their paths, after somebody moved them.
    pub(crate) fn reopen(&mut self) {
        for file in &mut self.files {
            file.reopen();
        }
    }

    /// Brings what is written to the disk.
    pub(crate) fn sync(&self) {
        for file in &self.files {
            file.sync();
        }
    }
}
