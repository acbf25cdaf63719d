//! Directories a layer has no entry for, but something in.
//!
//! Some builders leave parents out. In a tree of its own the layer then needs a directory
//! it knows nothing about, and overlayfs shows that one's owner and mode, not the lower
//! layer's: `/tmp` would no longer be everybody's, `/root` no longer root's alone. Once
//! the lower layers are in place, those directories take over what they have there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, openat2,
};
use rustix::io::Errno;

use super::metadata::may_set;
use super::tree::{directory_flags, modified};
use super::{Error, printable};

/// Gives `implied` directories of the layer at `root` the owner, mode, attributes and
/// time they have in the nearest of the `lowers` that has them, the nearest first.
///
/// # Errors
/// An unreadable lower layer, or a failing change.
pub fn inherit(root: impl AsFd, lowers: &[PathBuf], implied: &[PathBuf]) -> Result<(), Error> {
    for path in implied.iter().rev() {
        let failed = |source: io::Error| Error::Inherit {
            path: printable(path.as_os_str().as_bytes()),
            source,
        };
        let Some(from) = find(lowers, path).map_err(failed)? else {
            continue;
        };
        let to = open(root.as_fd(), path).map_err(|error| failed(error.into()))?;
        copy(&from, &to).map_err(|error| failed(error.into()))?;
    }
    Ok(())
}

/// The nearest lower layer's directory of that path; `None` when something else hides it.
fn find(lowers: &[PathBuf], path: &Path) -> io::Result<Option<OwnedFd>> {
    for lower in lowers {
        match open(&File::open(lower)?, path) {
            Ok(found) => return Ok(Some(found)),
            Err(Errno::NOENT) => {}
            // A whiteout, a file or a link: what is further below does not show.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

fn open(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = directory_flags() - OFlags::NOFOLLOW;
    match openat2(&root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOSYS | Errno::PERM) => {}
        other => return other,
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(&root, c".", flags, Mode::empty())?;
    for part in path.components() {
        here = rustix::fs::openat(&here, part.as_os_str(), flags, Mode::empty())?;
    }
    rustix::fs::openat(&here, c".", directory_flags(), Mode::empty())
}

fn copy(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let stat = fstat(from)?;
    match fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    ) {
        // Not root: everything belongs to the caller anyway.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    xattrs(from, to)?;
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: modified(&stat),
    };
    futimens(to, &times)
}

fn xattrs(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let names = names[..length].split(|&byte| byte == 0);
    for name in names.filter(|name| may_set(name)) {
        let mut value = vec![0; 64 << 10];
        let length = fgetxattr(from, name, &mut value[..])?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::PERM | Errno::NOTSUP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
