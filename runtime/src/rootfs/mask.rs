//! Masked and read-only paths, and the read-only root. After the change of root: every path is the container's.
//!
//! Governing text: runtime-spec config-linux.md, "Masked Paths" and "Readonly Paths". Paths that do not exist are passed
//! over. A masked file is covered by the container's `/dev/null`, checked to be the null device (CVE-2025-31133); all
//! masked directories by one empty, read-only tmpfs.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, makedev, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use super::mount::{fd_path, is_refused, put, set_read_only};
use super::path::Root;
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::{ATTR_RDONLY, MountAttr, mount, mount_setattr};

/// A detached copy of what a descriptor refers to.
const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLOEXEC
    .union(OpenTreeFlags::OPEN_TREE_CLONE)
    .union(OpenTreeFlags::AT_EMPTY_PATH);

/// Makes paths read-only.
pub(crate) fn make_read_only(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    for path in &plan.readonly_paths {
        let place = match root.resolve(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.at(Step::ReadonlyPath, "openat2", path)?,
        };
        cover_with_read_only_self(root, path, &place).at(Step::ReadonlyPath, "mount", path)?;
    }
    Ok(())
}

/// Binds a place on itself, read-only.
fn cover_with_read_only_self(root: &Root, path: &str, place: &OwnedFd) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: ATTR_RDONLY,
        ..MountAttr::default()
    };
    let made = open_tree(place, c"", COPY | OpenTreeFlags::AT_RECURSIVE).and_then(|tree| {
        mount_setattr(&tree, false, &attr)?;
        put(&tree, place)
    });
    match made {
        Err(errno) if is_refused(errno) => {}
        other => return other,
    }
    let place = fd_path(place);
    mount(
        Some(&place),
        &place,
        None,
        libc::MS_BIND | libc::MS_REC,
        None,
    )?;
    set_read_only(&root.resolve(path)?)
}

/// Hides paths.
pub(crate) fn mask(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    let label = plan.label.as_deref();
    for path in &plan.masked {
        let place = match root.resolve(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.at(Step::MaskPath, "openat2", path)?,
        };
        let stat = fstat(&place).at(Step::MaskPath, "fstat", path)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            mask_directory(&place, &mut empty, label).at(Step::MaskPath, "mount", path)?;
            continue;
        }
        if null.is_none() {
            null = Some(open_null().at(Step::MaskPath, "open", "/dev/null")?);
        }
        if let Some(null) = &null {
            mask_file(null, &place).at(Step::MaskPath, "mount", path)?;
        }
    }
    Ok(())
}

/// Opens the container's `/dev/null`.
fn open_null() -> Result<OwnedFd, Errno> {
    let null = openat(
        CWD,
        c"/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if is_null(&fstat(&null)?) {
        Ok(null)
    } else {
        Err(Errno::NODEV)
    }
}

/// Whether a file is the null device.
pub(crate) fn is_null(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == makedev(1, 3)
}

/// Covers a file with the null device.
fn mask_file(null: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    match open_tree(null, c"", COPY).and_then(|tree| put(&tree, place)) {
        Err(errno) if is_refused(errno) => {
            let (null, place) = (fd_path(null), fd_path(place));
            mount(Some(&null), &place, None, libc::MS_BIND, None)
        }
        other => other,
    }
}

/// Covers a directory with the empty tmpfs; the first time the tmpfs itself, then copies of it.
fn mask_directory(
    place: &OwnedFd,
    empty: &mut Option<OwnedFd>,
    label: Option<&str>,
) -> Result<(), Errno> {
    if let Some(empty) = empty {
        match open_tree(&*empty, c"", COPY).and_then(|tree| put(&tree, place)) {
            Err(errno) if is_refused(errno) => {}
            other => return other,
        }
    }
    match new_empty_directory(label).and_then(|made| put(&made, place).map(|()| made)) {
        Ok(made) => {
            *empty = Some(made);
            Ok(())
        }
        Err(errno) if is_refused(errno) => mount_empty_directory(place, label),
        Err(errno) => Err(errno),
    }
}

/// Covers a directory with a tmpfs of its own.
fn mount_empty_directory(place: &OwnedFd, label: Option<&str>) -> Result<(), Errno> {
    let path = fd_path(place);
    let mount_with = |inodes: &str| {
        let label = label.map_or(String::new(), |label| format!(",context=\"{label}\""));
        let data = CString::new(format!("nr_blocks=1,nr_inodes={inodes}{label}"))
            .map_err(|_| Errno::INVAL)?;
        let tmpfs = Some(c"tmpfs");
        mount(tmpfs, &path, tmpfs, libc::MS_RDONLY, Some(&data))
    };
    match mount_with("1") {
        // Ubuntu's 5.4 wants another one.
        Err(Errno::INVAL) => mount_with("2"),
        other => other,
    }
}

/// An empty tmpfs, not yet mounted anywhere.
fn new_empty_directory(label: Option<&str>) -> Result<OwnedFd, Errno> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"source", c"tmpfs")?;
    fsconfig_set_string(&context, c"nr_blocks", c"1")?;
    match fsconfig_set_string(&context, c"nr_inodes", c"1") {
        // Ubuntu's 5.4 wants another one.
        Err(Errno::INVAL) => fsconfig_set_string(&context, c"nr_inodes", c"2")?,
        other => other?,
    }
    if let Some(label) = label {
        fsconfig_set_string(&context, c"context", label)?;
    }
    fsconfig_set_flag(&context, c"ro")?;
    fsconfig_create(&context)?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
}

/// Makes the root read-only: last of all, because what came before writes to it.
pub(crate) fn make_root_read_only() -> Result<(), Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, c"/", flags, Mode::empty()).at(Step::ReadonlyRoot, "open", "/")?;
    set_read_only(&root).at(Step::ReadonlyRoot, "mount_setattr", "/")
}
