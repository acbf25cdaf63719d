//! Advisory locks on single objects: `flock(2)`, released by the kernel when the holder dies, however it dies.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Context, Result};

/// A held lock; dropping it (or dying) lets it go.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for whoever has it.
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn exclusive(path: &Path) -> Result<Lock> {
        let file = open(path)?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .context("lock", path)?;
        Ok(Lock { file })
    }

    /// Takes the lock together with other readers, waiting for a writer.
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn shared(path: &Path) -> Result<Lock> {
        let file = open(path)?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockShared))
            .context("lock", path)?;
        Ok(Lock { file })
    }

    /// Takes the lock if nobody has it; `None` if somebody does.
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno).context("lock", path),
        }
    }

    /// Whether `path` is still the file that is locked, and not gone or another by now.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .context("open lock file", path)
}
