//! Owners, modes, extended attributes and times.
//!
//! The order matters: `chown(2)` clears set-id bits and file capabilities, so
//! it comes before both; writing changes the time, so the time comes last. Calls
//! whose effect is there already are left out: a layer is mostly files of root
//! with an ordinary mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod, chownat, fchmod,
    fchown, flistxattr, fremovexattr, fsetxattr, futimens, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::tree::Directory;
use super::{Applier, Entry, Error, Place, split};
use crate::rooted::proc_path;

/// What is set on a directory when everything below it is done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Late {
    pub(super) mtime: Option<Timespec>,
    /// A mode that would keep us out of the directory ourselves.
    pub(super) mode: Option<u32>,
}

/// What the kernel gives to new files by itself.
pub(super) struct Process {
    uid: u32,
    gid: u32,
    umask: u32,
}

impl Process {
    pub(super) fn current() -> Process {
        Process {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            // Unknown counts as "takes everything away": modes are then always set.
            umask: umask().unwrap_or(0o777),
        }
    }
}

impl Process {
    /// Whether the group is the one new files get.
    pub(super) fn gives_group(&self, gid: u32) -> bool {
        self.gid == gid
    }
}

/// Reads the umask; `umask(2)` can not without changing it for all threads.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(value.trim(), 8).ok()
}

/// How far a fresh node still is from what its entry says.
#[derive(Clone, Copy)]
struct Missing {
    owner: bool,
    mode: bool,
}

impl Applier<'_> {
    /// What the making of a node in `parent` left undone.
    fn missing(&self, entry: &Entry, parent: &Directory) -> Missing {
        let process = &self.process;
        let same_owner = entry.uid == process.uid && entry.gid == process.gid && parent.plain;
        let same_mode = entry.mode & (0o7000 | process.umask) == 0 && parent.plain;
        Missing {
            owner: self.options.ownership && !same_owner,
            mode: !same_mode,
        }
    }

    /// Everything of a new regular file but its content.
    pub(super) fn finish_file(
        &self,
        fd: BorrowedFd<'_>,
        entry: &Entry,
        place: &Place<'_>,
    ) -> Result<(), Error> {
        let missing = self.missing(entry, &place.parent);
        self.owner_and_mode(fd, entry, missing)
            .map_err(Error::entry("set owner and mode of", place.path))?;
        self.xattrs(entry, place.path, |name, value| {
            fsetxattr(fd, name, value, XattrFlags::empty())
        })?;
        futimens(fd, &times(mtime(entry))).map_err(Error::entry("set the time of", place.path))
    }

    /// Everything of a directory but its time; `fresh` when it was just made.
    pub(super) fn finish_directory(
        &mut self,
        directory: &Directory,
        entry: &Entry,
        fresh_in: Option<&Directory>,
    ) -> Result<(), Error> {
        let missing = match fresh_in {
            Some(parent) => self.missing(entry, parent),
            None => Missing {
                owner: self.options.ownership,
                mode: true,
            },
        };
        let mut now = entry.mode;
        let mut late = Late {
            mtime: Some(mtime(entry)),
            mode: None,
        };
        if !self.options.ownership && now & 0o700 != 0o700 {
            late.mode = Some(now);
            now |= 0o700;
        }
        let fd = directory.fd.as_fd();
        if missing.owner {
            fchown(
                fd,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            )
            .map_err(Error::entry("set the owner of", &entry.path))?;
        }
        if missing.mode {
            fchmod(fd, Mode::from_raw_mode(now))
                .map_err(Error::entry("set the mode of", &entry.path))?;
        }
        if fresh_in.is_none() {
            drop_xattrs(fd, entry).map_err(Error::entry("remove attributes of", &entry.path))?;
        }
        self.xattrs(entry, &entry.path, |name, value| {
            fsetxattr(fd, name, value, XattrFlags::empty())
        })?;
        self.late.insert(directory.path.clone(), late);
        Ok(())
    }

    /// Everything of a new link or special file, which can not be opened.
    ///
    /// `entry.mode` is set by name only for what is no link.
    pub(super) fn finish_by_name(
        &self,
        entry: &Entry,
        place: &Place<'_>,
        pinned: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let missing = self.missing(entry, &place.parent);
        let (fd, name) = (&place.parent.fd, place.name);
        if missing.owner {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(Error::entry("set the owner of", place.path))?;
        }
        if let Some(pinned) = pinned
            && (missing.mode || missing.owner)
        {
            // chmod(2) would follow a link; the descriptor can not be one.
            chmod(proc_path(pinned), Mode::from_raw_mode(entry.mode))
                .map_err(Error::entry("set the mode of", place.path))?;
        }
        if !entry.xattrs.is_empty() {
            let prefix = format!("/proc/self/fd/{}/", fd.as_raw_fd());
            let path = [prefix.as_bytes(), name].concat();
            self.xattrs(entry, place.path, |name, value| {
                lsetxattr(&path[..], name, value, XattrFlags::empty())
            })?;
        }
        utimensat(fd, name, &times(mtime(entry)), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(Error::entry("set the time of", place.path))
    }

    /// Sets the times, and what else was put off, of all directories touched, deepest first.
    pub(super) fn finish_directories(&mut self) -> Result<(), Error> {
        let late = std::mem::take(&mut self.late);
        for (path, Late { mtime, mode }) in late.iter().rev() {
            let failed = |error: io::Error| Error::entry("set the time of", path)(error);
            let (parent, name) = split(path);
            if let Some(mode) = mode {
                let directory = self.tree.open(path).map_err(failed)?.directory;
                chmod(proc_path(directory.fd.as_fd()), Mode::from_raw_mode(*mode))
                    .map_err(Error::entry("set the mode of", path))?;
            }
            let Some(mtime) = *mtime else { continue };
            if name.is_empty() {
                let root = self.tree.root();
                futimens(&root.fd, &times(mtime)).map_err(|error| failed(error.into()))?;
                continue;
            }
            let parent: Rc<Directory> = self.tree.open(parent).map_err(failed)?.directory;
            utimensat(&parent.fd, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn owner_and_mode(
        &self,
        fd: BorrowedFd<'_>,
        entry: &Entry,
        missing: Missing,
    ) -> rustix::io::Result<()> {
        if missing.owner {
            fchown(
                fd,
                Some(Uid::from_raw(entry.uid)),
                Some(Gid::from_raw(entry.gid)),
            )?;
        }
        if missing.mode {
            fchmod(fd, Mode::from_raw_mode(entry.mode))?;
        }
        Ok(())
    }

    /// Sets the attributes a layer may set, by the caller's means.
    fn xattrs(
        &self,
        entry: &Entry,
        path: &[u8],
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), Error> {
        for (name, value) in &entry.xattrs {
            if !may_set(name) {
                continue;
            }
            match set(name, value) {
                Ok(()) | Err(Errno::NOTSUP) => {}
                // Not root; or user.* on a link or device, which no file system allows.
                Err(Errno::PERM) if !self.options.ownership || name.starts_with(b"user.") => {}
                Err(error) => {
                    return Err(Error::entry("set extended attributes of", path)(error));
                }
            }
        }
        Ok(())
    }
}

/// Whether a layer may set the attribute.
///
/// Not those by which overlayfs keeps its books: they would let a layer
/// redirect a directory. Not the SELinux label, which is the host's to give.
pub(super) fn may_set(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.")
        && !name.starts_with(b"user.overlay.")
        && name != b"security.selinux"
        && !name.is_empty()
        && !name.contains(&0)
}

/// Removes what an existing directory has and its new entry has not.
fn drop_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    let mut names = Vec::with_capacity(4096);
    match flistxattr(fd, rustix::buffer::spare_capacity(&mut names)) {
        // Not readable for us, not supported, or absurdly many: leave them.
        Err(Errno::NOTSUP | Errno::BADF | Errno::RANGE) => return Ok(()),
        other => other?,
    };
    for name in names.split(|&byte| byte == 0).filter(|name| may_set(name)) {
        if entry.xattrs.iter().any(|(kept, _)| kept == name) {
            continue;
        }
        match fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA | Errno::PERM | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn mtime(entry: &Entry) -> Timespec {
    Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: i64::from(entry.mtime.1),
    }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: mtime,
    }
}
