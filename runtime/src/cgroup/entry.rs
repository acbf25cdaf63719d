//! The way into a cgroup for a process that is about to be born, on which nobody waits.
//!
//! To move another process the kernel takes a lock over all of them, which after an idle time costs an RCU grace period: 4
//! to 12 ms. A process that is born there needs no move (`CLONE_INTO_CGROUP`, v2 only, Linux 5.7), and a thread that moves
//! itself, by writing 0 to `tasks` (v1 only), needs no lock (Linux 5.5). A new process is one thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};

use super::Cgroup;
use crate::sys::process::{close_copy, has_clone3};

/// The open ways into a cgroup.
#[derive(Debug, Default)]
pub(crate) struct Entry<'a> {
    birth: Option<BorrowedFd<'a>>,
    doors: Vec<Door<'a>>,
}

/// A `tasks` file of a v1 hierarchy.
#[derive(Debug)]
struct Door<'a> {
    tasks: OwnedFd,
    directory: &'a Path,
}

impl Cgroup {
    /// The way in. `None` when there is none: then [`Cgroup::join`] is needed, and says what is wrong.
    pub(crate) fn entry(&self) -> Option<Entry<'_>> {
        if self.unit_of_user().is_some() {
            return None;
        }
        let mut entry = Entry::default();
        for node in &self.nodes {
            if node.is_v2() {
                let directory = self.open_unified(&node.directory).ok()?;
                entry.birth = has_clone3().then_some(directory);
                entry.birth?;
            } else {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let tasks = openat(CWD, node.directory.join("tasks"), flags, Mode::empty());
                entry.doors.push(Door {
                    tasks: tasks.ok()?,
                    directory: &node.directory,
                });
            }
        }
        Some(entry)
    }

    /// The directory in the v2 tree, open.
    fn open_unified(&self, directory: &Path) -> Result<BorrowedFd<'_>, Errno> {
        if self.leaf.get().is_none() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            // Cannot fail: the cell was found empty.
            let _ = self.leaf.set(openat(CWD, directory, flags, Mode::empty())?);
        }
        self.leaf.get().map(AsFd::as_fd).ok_or(Errno::NOENT)
    }
}

impl<'a> Entry<'a> {
    /// The directory for `CLONE_INTO_CGROUP`, if there is a v2 tree.
    pub(crate) fn birth(&self) -> Option<BorrowedFd<'a>> {
        self.birth
    }

    /// What the new process does first: it enters the v1 hierarchies, and keeps nothing open that leads there. Gives the
    /// directory that could not be entered, and why.
    pub(crate) fn pass(&self) -> Result<(), (&'a Path, Errno)> {
        for Door { tasks, directory } in &self.doors {
            write(tasks, b"0").map_err(|errno| (*directory, errno))?;
            close_copy(tasks.as_raw_fd());
        }
        Ok(())
    }
}
