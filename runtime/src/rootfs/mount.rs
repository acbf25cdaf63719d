//! The mounts of the spec.
//!
//! Every mount is prepared while it is mounted nowhere, by its descriptor, and then put on a target that was opened within
//! the root: nothing is looked up by path once it is there, so nobody can put another in between (CVE-2021-30465,
//! CVE-2025-31133). On kernels without the calls that takes, `mount(2)` does it onto opened targets, and what has to be
//! opened again is checked to be a mount that was not there before.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::cgroup;
use super::path::{Place, Root};
use crate::plan::mount::{Kind, MountStep};
use crate::procfs::HostProc;
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::{MountAttr, mount, mount_setattr};

mod attribute;
mod bind;
mod copy_up;
pub(super) mod file_system;
pub(crate) mod source;
pub(super) mod target;

use source::{Form, Source};

/// What mounts need of the world outside the container.
pub(crate) struct Outside<'a> {
    /// The host's `/proc`.
    pub(crate) host_proc: &'a HostProc,
    /// The cgroup hierarchies of the host.
    pub(crate) hierarchies: &'a crate::cgroup::Hierarchies,
    /// Whether the container has a cgroup namespace.
    pub(crate) own_cgroup_namespace: bool,
    /// Waits until the process is in its cgroup, then tells the directories by controller.
    pub(crate) join: &'a dyn Fn() -> Result<&'a [(String, String)], Fault>,
    /// Opens the source of a bind mount, which may take rights that this process lacks.
    pub(crate) source: &'a dyn Fn(usize, Form) -> Result<Source, Fault>,
}

/// Mounts that become read-only in the end, with their `MS_*` flags.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Later(Vec<(OwnedFd, u64)>);

/// Carries out all mounts in order, except that a cgroup mount nothing lies on comes last: by then the parent, which works
/// at the same time, has made the cgroups.
pub(crate) fn mount_all(
    root: &Root,
    steps: &[MountStep],
    outside: &Outside<'_>,
) -> Result<Later, Fault> {
    let mut read_only = Later::default();
    let mut late: Option<&MountStep> = None;
    for (index, step) in steps.iter().enumerate() {
        match &step.kind {
            Kind::Bind { .. } => bind::bind(root, step, index, outside)?,
            Kind::FileSystem(kind) => {
                let mounted = file_system::mount_new(root, step, kind, outside)?;
                read_only
                    .0
                    .extend(mounted.map(|mounted| (mounted, step.flags)));
            }
            Kind::Cgroup
                if late.is_none()
                    && !steps[index + 1..].iter().any(|later| lies_on(later, step)) =>
            {
                late = Some(step);
            }
            Kind::Cgroup => cgroup::mount_cgroup(root, step, outside)?,
        }
    }
    if let Some(step) = late {
        cgroup::mount_cgroup(root, step, outside)?;
    }
    Ok(read_only)
}

/// Whether a mount lies on or below another.
fn lies_on(upper: &MountStep, lower: &MountStep) -> bool {
    let lower = lower.destination.trim_end_matches('/');
    upper
        .destination
        .strip_prefix(lower)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Makes the mounts read-only that are to be so in the end, now that everything in them has been made.
pub(crate) fn finish(later: Later) -> Result<(), Fault> {
    for (mounted, flags) in later.0 {
        set_read_only(&mounted, flags).at(Step::Mount, "mount_setattr", "read-only file system")?;
    }
    Ok(())
}

/// Makes the mount a descriptor is on read-only. `flags` are its other `MS_*` flags, for kernels before 5.12.
pub(crate) fn set_read_only(mounted: &OwnedFd, flags: u64) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: crate::sys::mount::ATTR_RDONLY,
        ..MountAttr::default()
    };
    match mount_setattr(mounted, false, &attr) {
        Err(errno) if is_refused(errno) => {
            let flags = attribute::per_mount(flags);
            let flags = flags | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            mount(None, &fd_path(mounted), None, flags, None)
        }
        other => other,
    }
}

/// Sets attributes of the tree and propagation, as a step has them.
fn set_tree(mounted: &OwnedFd, step: &MountStep) -> Result<(), Errno> {
    if !step.recursive_attr.is_empty() {
        mount_setattr(mounted, true, &step.recursive_attr)?;
    }
    for (propagation, recursive) in &step.propagation {
        let attr = MountAttr {
            propagation: *propagation,
            ..MountAttr::default()
        };
        mount_setattr(mounted, *recursive, &attr)?;
    }
    Ok(())
}

/// Sets the propagation of a mount that is in place by `mount(2)`.
fn set_propagation_by_mount(mounted: &OwnedFd, step: &MountStep) -> Result<(), Errno> {
    let path = fd_path(mounted);
    for (propagation, recursive) in &step.propagation {
        let flags = propagation | if *recursive { libc::MS_REC } else { 0 };
        mount(None, &path, None, flags, None)?;
    }
    Ok(())
}

/// Puts a detached mount in place.
pub(crate) fn put(tree: &OwnedFd, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", target, c"", flags)
}

/// Whether an answer may mean that there is no such call, or that a security module or filter knows the old one only.
pub(crate) fn is_refused(errno: Errno) -> bool {
    matches!(errno, Errno::NOSYS | Errno::PERM | Errno::ACCESS)
}

/// Opens what `mount(2)` has just mounted on `target`, of which only what lies below is open. It is the root of a mount, and
/// another one than that of the target.
pub(super) fn reopen(root: &Root, step: &MountStep, target: &OwnedFd) -> Result<OwnedFd, Fault> {
    let subject = subject(step);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mounted =
        root.resolve_with(&step.destination, flags)
            .at(Step::Mount, "openat2", &subject)?;
    let (now, before) = (Place::of(&mounted), Place::of(target));
    let (now, before) = (
        now.at(Step::Mount, "statx", &subject)?,
        before.at(Step::Mount, "statx", &subject)?,
    );
    // A kernel that does not tell which mount it is has to be trusted.
    if now.is_mount_root == Some(false)
        || now.is_mount_root.is_some() && now.is_on_mount_of(&before)
    {
        let why = format!(
            "mountpoint {:?} was moved while re-opening",
            step.destination
        );
        return Err(target::refused(step, why));
    }
    Ok(mounted)
}

/// A path by which `mount(2)` finds what a descriptor refers to.
pub(crate) fn fd_path(fd: impl AsFd) -> CString {
    // A number and fixed text hold no NUL.
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}

/// How errors name a mount; runc's words.
pub(crate) fn subject(step: &MountStep) -> String {
    let source = step.source.to_string_lossy();
    format!("{source:?} to rootfs at {:?}", step.destination)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_lies_on_what() {
        let step = |destination: &str| MountStep::bind(Path::new("/s"), destination);
        assert!(lies_on(&step("/sys/fs/cgroup/x"), &step("/sys/fs/cgroup")));
        assert!(lies_on(&step("/sys/fs/cgroup"), &step("/sys/fs/cgroup/")));
        assert!(!lies_on(&step("/sys/fs/cgroups"), &step("/sys/fs/cgroup")));
        assert!(!lies_on(&step("/sys"), &step("/sys/fs/cgroup")));
    }
}
