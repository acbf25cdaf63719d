//! The cgroup mount: the hierarchies as the container may see them.
//!
//! On pure v2 one `cgroup2` mount. On v1 and hybrid hosts a small tmpfs with a directory for each hierarchy: mounted anew
//! when the container has a cgroup namespace (whose root then is its own cgroup), else bound from the container's own
//! cgroup, so that it sees nothing above it.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::fchdir;

use super::mount::{CgroupView, fd_path, set_read_only, subject};
use super::path::{Missing, Root};
use crate::cgroup::Hierarchy;
use crate::plan::mount::MountStep;
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount, mount_setattr,
};

/// Flags of every hierarchy.
const FLAGS: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Mounts what a mount of type `cgroup` asks for.
pub(super) fn mount_cgroup(
    root: &Root,
    step: &MountStep,
    view: &mut CgroupView<'_>,
) -> Result<(), Fault> {
    let joined = (view.join)()?;
    let subject = subject(step);
    let target = root.ensure(&step.destination, Missing::Directory).at(
        Step::Mount,
        "create mount point",
        &subject,
    )?;
    fchdir(&target).at(Step::Mount, "fchdir", &subject)?;
    if view.hierarchies.is_pure_v2() {
        return mount_v2(step, &joined, &subject);
    }
    let flags = step.flags & !libc::MS_RDONLY;
    mount(
        Some(c"tmpfs"),
        c".",
        Some(c"tmpfs"),
        flags,
        Some(c"mode=755"),
    )
    .at(Step::Mount, "mount", &subject)?;
    let tmpfs = root
        .resolve_with(
            &step.destination,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        )
        .at(Step::Mount, "openat2", &subject)?;
    let read_only = step.is_read_only();
    for hierarchy in view.hierarchies.list() {
        mkdirat(&tmpfs, &*hierarchy.name, Mode::from_raw_mode(0o755)).at(
            Step::Mount,
            "mkdir",
            &hierarchy.name,
        )?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(&tmpfs, &*hierarchy.name, flags, Mode::empty()).at(
            Step::Mount,
            "open",
            &hierarchy.name,
        )?;
        if view.own_namespace {
            mount_hierarchy(hierarchy, &place, step).at(Step::Mount, "mount", &hierarchy.name)?;
        } else if let Some(own) = own_directory(hierarchy, &joined) {
            bind_hierarchy(own, &place, read_only).at(Step::Mount, "open_tree", own)?;
        } else {
            show_callers(hierarchy, &place)?;
        }
        for link in &hierarchy.links {
            match symlinkat(&*hierarchy.name, &tmpfs, &**link) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).at(Step::Mount, "symlink", link),
            }
        }
    }
    if step.is_read_only() {
        set_read_only(&tmpfs, flags).at(Step::Mount, "mount_setattr", &subject)?;
    }
    Ok(())
}

/// Mounts the v2 tree on the current directory; where that is not allowed (a user namespace without a cgroup namespace),
/// binds the container's own part of it.
fn mount_v2(step: &MountStep, joined: &[(String, String)], subject: &str) -> Result<(), Fault> {
    match mount(Some(c"cgroup"), c".", Some(c"cgroup2"), step.flags, None) {
        Err(Errno::PERM | Errno::BUSY) => {
            // Without a cgroup of its own it sees what the caller sees, and changes nothing there (CVE-2023-25809).
            let (own, read_only) = match joined.first() {
                Some((_, path)) => (path.as_str(), step.is_read_only()),
                None => ("/sys/fs/cgroup", true),
            };
            let place = openat(
                CWD,
                c".",
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .at(Step::Mount, "open", subject)?;
            bind_hierarchy(own, &place, read_only).at(Step::Mount, "open_tree", own)
        }
        other => other.at(Step::Mount, "mount", subject),
    }
}

/// Mounts a hierarchy anew; its root is that of the cgroup namespace.
fn mount_hierarchy(hierarchy: &Hierarchy, place: &OwnedFd, step: &MountStep) -> Result<(), Errno> {
    let flags = FLAGS | step.flags & libc::MS_RDONLY;
    fchdir(place)?;
    match &hierarchy.mount_data {
        Some(data) => {
            let data = CString::new(data.as_str()).map_err(|_| Errno::INVAL)?;
            mount(Some(c"cgroup"), c".", Some(c"cgroup"), flags, Some(&data))
        }
        None => mount(Some(c"cgroup2"), c".", Some(c"cgroup2"), flags, None),
    }
}

/// The directory of the container's cgroup in a hierarchy.
fn own_directory<'a>(hierarchy: &Hierarchy, joined: &'a [(String, String)]) -> Option<&'a str> {
    let found = joined
        .iter()
        .find(|(_, path)| Path::new(path).starts_with(&hierarchy.mount_point));
    found.map(|(_, path)| path.as_str())
}

/// Shows a container that has no cgroup of its own in a hierarchy the caller's, which it may not change.
fn show_callers(hierarchy: &Hierarchy, place: &OwnedFd) -> Result<(), Fault> {
    let inner = hierarchy.own_path.trim_start_matches('/');
    let path = hierarchy.mount_point.join(inner);
    let path = path.to_string_lossy();
    match bind_hierarchy(&path, place, true) {
        // Out of sight from here.
        Err(Errno::NOENT) => Ok(()),
        other => other.at(Step::Mount, "open_tree", &path),
    }
}

/// Binds a directory of a hierarchy.
fn bind_hierarchy(source: &str, place: &OwnedFd, read_only: bool) -> Result<(), Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    let all_flags = FLAGS | if read_only { libc::MS_RDONLY } else { 0 };
    let tree = match open_tree(CWD, source, flags) {
        Err(Errno::NOSYS) => return bind_by_mount(source, place, all_flags),
        other => other?,
    };
    let read_only = if read_only { ATTR_RDONLY } else { 0 };
    let attr = MountAttr {
        attr_set: ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | read_only,
        ..MountAttr::default()
    };
    match mount_setattr(&tree, false, &attr) {
        Err(Errno::NOSYS) => {
            return bind_by_mount(source, place, all_flags);
        }
        other => other?,
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", place.as_fd(), c"", flags)
}

/// The same by `mount(2)` alone. Within the tmpfs just made there is nobody to change the path.
fn bind_by_mount(source: &str, place: &OwnedFd, flags: u64) -> Result<(), Errno> {
    let source = CString::new(source).map_err(|_| Errno::INVAL)?;
    let place = fd_path(place);
    mount(Some(&source), &place, None, libc::MS_BIND, None)?;
    mount(
        None,
        &place,
        None,
        libc::MS_BIND | libc::MS_REMOUNT | flags,
        None,
    )
}
