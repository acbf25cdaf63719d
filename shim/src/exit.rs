//! The end: the exit code on disk, and the exit command.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;

use crate::diag;
use crate::error::Error;
use crate::plan::{ExitCommand, Plan};
use crate::process;

/// How long publishing is tried again on a full disk before the exit command
/// runs without it. It is tried further after that.
const FULL_DISK_PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(500);

/// A file that tells an exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ExitFile {
    directory: PathBuf,
    name: String,
}

/// The exit files of a container that do not exist yet.
#[derive(Debug)]
pub(crate) struct Unpublished {
    files: Vec<ExitFile>,
    /// Directories with new names that may not have reached the disk.
    unsynced: Vec<PathBuf>,
    text: String,
    sync: bool,
}

impl Unpublished {
    /// The exit files that the plan asks for, with the code they are to tell.
    pub(crate) fn new(plan: &Plan, code: i32) -> Self {
        let mut files = Vec::new();
        // The durable one first: who watches the other finds both, unless the
        // disk of the durable one is full.
        if let Some(directory) = plan.persist_dir.clone() {
            files.push(ExitFile {
                directory,
                name: "exit".into(),
            });
        }
        if let Some(directory) = plan.exit_dir.clone() {
            files.push(ExitFile {
                directory,
                name: plan.cid.clone(),
            });
        }
        Self {
            files,
            unsynced: Vec::new(),
            text: code.to_string(),
            sync: plan.sync_exit,
        }
    }

    /// Publishes, trying again while the disk is full, for half a minute.
    pub(crate) fn publish(&mut self) {
        let deadline = Instant::now() + FULL_DISK_PATIENCE;
        while !self.try_publish() && Instant::now() < deadline {
            std::thread::sleep(RETRY);
        }
    }

    /// Brings the files' names to the disk. Not part of publishing, for whoever
    /// waits for the exit code need not wait for this.
    pub(crate) fn sync(&mut self) {
        for directory in self.unsynced.drain(..) {
            if let Err(error) = File::open(&directory).and_then(|file| file.sync_all()) {
                diag::warning!("sync {}: {error}", directory.display());
            }
        }
    }

    /// Goes on trying until the exit code is written, or can't ever be.
    pub(crate) fn insist(&mut self) {
        while !self.try_publish() {
            std::thread::sleep(RETRY);
        }
        self.sync();
    }

    /// Writes what is missing. `false`: something could not be written now but
    /// may be later.
    fn try_publish(&mut self) -> bool {
        let (text, unsynced) = (&self.text, &mut self.unsynced);
        let sync = self.sync;
        self.files.retain(|file| {
            match write_whole(&file.directory, &file.name, text.as_bytes(), sync) {
                Ok(()) => {
                    if sync {
                        unsynced.push(file.directory.clone());
                    }
                    false
                }
                Err(error) => {
                    diag::error!(
                        "write exit code {text} to {}/{}: {error}",
                        file.directory.display(),
                        file.name
                    );
                    is_temporary(&error)
                }
            }
        });
        self.files.is_empty()
    }
}

fn is_temporary(error: &io::Error) -> bool {
    [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::NFILE,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Writes a file such that whenever it has its name, with `sync` even after a
/// power failure, it is complete.
fn write_whole(directory: &Path, name: &str, data: &[u8], sync: bool) -> io::Result<()> {
    // Hidden: who watches the directory takes names for container ids.
    let fresh = directory.join(format!(".{name}.tmp"));
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(data)?;
        if sync {
            file.sync_all()?;
        }
        std::fs::rename(&fresh, directory.join(name))
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })
}

/// Starts the exit command.
pub(crate) fn start_command(command: &ExitCommand) -> Result<Pid, Error> {
    // Its own daemons, if it leaves any, are not for us to wait for.
    if let Err(errno) = rustix::process::set_child_subreaper(None) {
        diag::warning!("prctl(PR_SET_CHILD_SUBREAPER, 0): {errno}");
    }
    let mut words = vec![command.path.clone().into_os_string()];
    words.extend(command.arguments.iter().map(Into::into));
    process::spawn(&words, &process::Streams::null()?, std::env::vars_os())
        .map_err(Error::path("run exit command", &command.path))
}

/// The monitor's own exit code: the container's, as conmon.
pub(crate) fn code(result: Result<i32, Error>) -> Result<ExitCode, Error> {
    result.map(|status| ExitCode::from(u8::try_from(status & 0xff).unwrap_or(u8::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_files_appear_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut unpublished = Unpublished {
            files: vec![
                ExitFile {
                    directory: directory.path().to_owned(),
                    name: "exit".into(),
                },
                ExitFile {
                    directory: directory.path().join("missing"),
                    name: "id".into(),
                },
            ],
            unsynced: Vec::new(),
            text: "137".into(),
            sync: true,
        };
        // What can never be written is given up.
        unpublished.insist();
        let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(
            std::fs::read(directory.path().join("exit")).unwrap(),
            b"137"
        );
    }

    #[test]
    fn a_full_disk_is_temporary() {
        assert!(is_temporary(&Errno::NOSPC.into()));
        assert!(!is_temporary(&Errno::NOENT.into()));
    }
}
