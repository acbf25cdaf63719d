//! Removing a cgroup's directories.
//!
//! A directory can be removed once it has neither child cgroups nor living processes. The last process of a container has
//! often just been killed, so EBUSY is waited out for a while.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Error, Result, file};

/// How long a dying process is waited for, over all hierarchies together.
const PATIENCE: Duration = Duration::from_secs(5);

/// Removes directories with all below them. Those that are gone already are fine.
pub(super) fn remove<'a>(directories: impl Iterator<Item = &'a Path>) -> Result<()> {
    let mut busy: Vec<&Path> = directories
        .filter(|path| rustix::fs::rmdir(*path).is_err())
        .collect();
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        let mut reason = Errno::BUSY;
        busy.retain(|path| match remove_tree(path) {
            Ok(()) => false,
            Err(errno) => {
                reason = errno;
                true
            }
        });
        if busy.is_empty() {
            return Ok(());
        }
        if reason != Errno::BUSY || Instant::now() > end {
            let paths = busy.into_iter().map(PathBuf::from).collect();
            return Err(Error::Left {
                paths,
                source: reason,
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn remove_tree(path: &Path) -> Result<(), Errno> {
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        // A read-only mount says so of directories that do not even exist.
        Err(errno) => {
            return if file::children(path) == Err(Errno::NOENT) {
                Ok(())
            } else {
                Err(errno)
            };
        }
    }
    let children = match file::children(path) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    if children.is_empty() {
        return Err(Errno::BUSY);
    }
    for child in children {
        remove_tree(&child)?;
    }
    match rustix::fs::rmdir(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}
