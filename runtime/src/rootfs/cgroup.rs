//! The cgroup mount: the hierarchies as the container may see them.
//!
//! On pure v2 one `cgroup2` mount. On v1 and hybrid hosts a small tmpfs with a directory for each hierarchy: mounted anew
//! when the container has a cgroup namespace (whose root then is its own cgroup), else bound from the container's own
//! cgroup, so that it sees nothing above it.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::file_system::{New, Refusal};
use super::mount::{Outside, fd_path, is_refused, put, reopen, set_read_only, subject, target};
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
    outside: &Outside<'_>,
) -> Result<(), Fault> {
    let joined = (outside.join)()?;
    let subject = subject(step);
    let target = target::open(root, outside.host_proc, step, Missing::Directory)?.fd;
    if outside.hierarchies.is_pure_v2() {
        return mount_v2(step, joined, &target, &subject);
    }
    let flags = step.flags & !libc::MS_RDONLY;
    let tmpfs = New {
        kind: "tmpfs",
        source: "tmpfs",
        flags,
        data: "mode=755",
        label: step.label.as_deref(),
    };
    let made = tmpfs
        .put_prepared(&target, |_| Ok(()))
        .map_err(|refusal| refusal.fault(&subject))?;
    let tmpfs = match made {
        Some(tmpfs) => tmpfs,
        None => reopen(root, step, &target)?,
    };
    let read_only = step.is_read_only();
    for hierarchy in outside.hierarchies.list() {
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
        if outside.own_cgroup_namespace {
            mount_hierarchy(hierarchy, &place, step)
                .map_err(|refusal| refusal.fault(&hierarchy.name))?;
        } else if let Some(own) = own_directory(hierarchy, joined) {
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
    if read_only {
        set_read_only(&tmpfs, flags).at(Step::Mount, "mount_setattr", &subject)?;
    }
    Ok(())
}

/// Mounts the v2 tree; where that is not allowed (a user namespace without a cgroup namespace), binds the container's own
/// part of it.
fn mount_v2(
    step: &MountStep,
    joined: &[(String, String)],
    target: &OwnedFd,
    subject: &str,
) -> Result<(), Fault> {
    let new = New {
        kind: "cgroup2",
        source: "cgroup",
        flags: step.flags,
        data: &step.data,
        label: None,
    };
    match new.put_at_once(target) {
        Err(refusal) if matches!(refusal.errno, Errno::PERM | Errno::BUSY) => {
            // Without a cgroup of its own it sees what the caller sees, and changes nothing there (CVE-2023-25809).
            let (own, read_only) = match joined.first() {
                Some((_, path)) => (path.as_str(), step.is_read_only()),
                None => ("/sys/fs/cgroup", true),
            };
            bind_hierarchy(own, target, read_only).at(Step::Mount, "open_tree", own)
        }
        other => other.map_err(|refusal| refusal.fault(subject)),
    }
}

/// Mounts a hierarchy anew; its root is that of the cgroup namespace.
fn mount_hierarchy(
    hierarchy: &Hierarchy,
    place: &OwnedFd,
    step: &MountStep,
) -> Result<(), Refusal> {
    let new = New {
        kind: match hierarchy.mount_data {
            Some(_) => "cgroup",
            None => "cgroup2",
        },
        source: "cgroup",
        flags: FLAGS | step.flags & libc::MS_RDONLY,
        data: hierarchy.mount_data.as_deref().unwrap_or_default(),
        label: None,
    };
    new.put_at_once(place)
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
    let attr = MountAttr {
        attr_set: ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | if read_only { ATTR_RDONLY } else { 0 },
        ..MountAttr::default()
    };
    let made = open_tree(CWD, source, flags).and_then(|tree| {
        mount_setattr(&tree, false, &attr)?;
        put(&tree, place)
    });
    match made {
        Err(errno) if is_refused(errno) => {
            let read_only = if read_only { libc::MS_RDONLY } else { 0 };
            bind_by_mount(source, place, FLAGS | read_only)
        }
        other => other,
    }
}

/// The same by `mount(2)` alone. Within the tmpfs just made there is nobody to change the path.
fn bind_by_mount(source: &str, place: &OwnedFd, flags: u64) -> Result<(), Errno> {
    let source = CString::new(source).map_err(|_| Errno::INVAL)?;
    let path = fd_path(place);
    mount(Some(&source), &path, None, libc::MS_BIND, None)?;
    // The descriptor is of what lies below the new mount, and its name in the tmpfs leads to what lies on top.
    let on_top = rustix::fs::readlink(&path, Vec::new())?;
    mount(
        None,
        &on_top,
        None,
        libc::MS_BIND | libc::MS_REMOUNT | flags,
        None,
    )
}
