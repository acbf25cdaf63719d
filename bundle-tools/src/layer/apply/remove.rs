//! Removes trees by descriptor, following nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, chmod, openat, unlinkat};
use rustix::io::Errno;

use super::tree::directory_flags;
use crate::rooted::proc_path;

/// What to do about directories that do not let their owner in.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Locked {
    /// They do not stop root.
    Ignore,
    /// Make them accessible on the way.
    Open,
}

/// Removes `name` in `parent` with everything in it.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8], locked: Locked) -> io::Result<()> {
    prune(parent, name, &mut Vec::new(), locked, &|_| false).map(|_| ())
}

/// Removes `name` in `parent` but for what `keep` claims, and the directories that lead there.
///
/// `path` is the path of `name`, as `keep` wants to see it. Returns whether it is gone.
pub(super) fn prune(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &mut Vec<u8>,
    locked: Locked,
    keep: &dyn Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let kept = keep(path);
    if !kept {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let directory = match open(parent, name, locked) {
        // A file that is kept.
        Err(Errno::NOTDIR | Errno::LOOP) if kept => return Ok(false),
        other => other?,
    };
    let empty = prune_children(directory.as_fd(), path, locked, keep)?;
    if kept || !empty {
        return Ok(false);
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(true)
}

/// Prunes everything in a directory, which stays itself. Returns whether it is empty.
pub(super) fn prune_children(
    directory: BorrowedFd<'_>,
    path: &mut Vec<u8>,
    locked: Locked,
    keep: &dyn Fn(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    let length = path.len();
    let mut empty = true;
    for name in names {
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        empty &= prune(directory, &name, path, locked, keep)?;
        path.truncate(length);
    }
    Ok(empty)
}

fn open(
    parent: BorrowedFd<'_>,
    name: &[u8],
    locked: Locked,
) -> rustix::io::Result<rustix::fd::OwnedFd> {
    if locked == Locked::Open {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let pinned = openat(parent, name, flags, Mode::empty())?;
        chmod(proc_path(pinned.as_fd()), Mode::RWXU)?;
    }
    openat(parent, name, directory_flags(), Mode::empty())
}
