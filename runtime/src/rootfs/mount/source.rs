//! What a bind mount copies.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::plan::mount::{Kind, MountStep};
use crate::sys::mount::{ATTR_IDMAP, MountAttr, mount_setattr};

/// An opened source.
#[derive(Debug)]
pub(crate) struct Source {
    /// A mount of its own, or the place it is to be copied from.
    pub(crate) fd: OwnedFd,
    /// Which of the two.
    pub(crate) is_detached: bool,
}

/// How a source is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As a mount of its own, if that can be had.
    Detached,
    /// As the place it is to be copied from.
    InPlace,
}

/// Opens the source of a step as it is wanted.
pub(crate) fn open_as(step: &MountStep, form: Form) -> Result<Source, Errno> {
    match form {
        Form::Detached => open(step),
        Form::InPlace => open_path(step).map(|fd| Source {
            fd,
            is_detached: false,
        }),
    }
}

/// Opens the source of a step as a detached copy; where that cannot be had, as it is.
pub(crate) fn open(step: &MountStep) -> Result<Source, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    if step.kind == (Kind::Bind { recursive: true }) {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(CWD, &step.source, flags) {
        Ok(fd) => Ok(Source {
            fd,
            is_detached: true,
        }),
        Err(errno) if super::is_refused(errno) => open_path(step).map(|fd| Source {
            fd,
            is_detached: false,
        }),
        Err(errno) => Err(errno),
    }
}

/// Opens the source of a step as it is.
fn open_path(step: &MountStep) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    openat(CWD, &step.source, flags, Mode::empty())
}

/// Gives a detached mount the id mapping of a user namespace. Since Linux 5.12, on file systems that can do it.
pub(crate) fn map_ids(source: &Source, users: impl AsFd, recursive: bool) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    if !source.is_detached {
        return Err(Errno::NOSYS);
    }
    let attr = MountAttr {
        attr_set: ATTR_IDMAP,
        userns_fd: u64::from(users.as_fd().as_raw_fd().unsigned_abs()),
        ..MountAttr::default()
    };
    mount_setattr(&source.fd, recursive, &attr)
}
