//! The mounts of the spec.
//!
//! Bind mounts are made detached (`open_tree`), given their attributes (`mount_setattr`) and only then put in place
//! (`move_mount`), so no moment exists in which a read-only mount is writable. New file systems go through `mount(2)`
//! onto the opened target: one call instead of five. On kernels without the new calls everything goes through `mount(2)`.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags, PROC_SUPER_MAGIC, fstat, fstatfs};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::fchdir;

use super::path::{Missing, Root};
use super::{Sources, cgroup};
use crate::plan::mount::{Kind, MountStep};
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::{MountAttr, mount, mount_setattr};

mod copy_up;

/// What the cgroup mount needs to know, and when it may be made.
pub(crate) struct CgroupView<'a> {
    /// The hierarchies of the host.
    pub(crate) hierarchies: &'a crate::cgroup::Hierarchies,
    /// Whether the container has a cgroup namespace.
    pub(crate) own_namespace: bool,
    /// Waits until the process is in its cgroup, then tells the directories by controller.
    pub(crate) join: &'a mut dyn FnMut() -> Result<Vec<(String, String)>, Fault>,
}

/// Carries out all mounts in order, except that a cgroup mount nothing lies on comes last: by then the parent, which works
/// at the same time, has made the cgroups.
pub(crate) fn mount_all(
    root: &Root,
    steps: &[MountStep],
    mut sources: Sources,
    view: &mut CgroupView<'_>,
) -> Result<(), Fault> {
    sources.resize_with(steps.len(), || None);
    let mut late: Option<&MountStep> = None;
    for (index, step) in steps.iter().enumerate() {
        match &step.kind {
            Kind::Bind { recursive } => bind(root, step, *recursive, sources[index].take())?,
            Kind::FileSystem(kind) => file_system(root, step, kind)?,
            Kind::Cgroup
                if late.is_none()
                    && !steps[index + 1..].iter().any(|later| lies_on(later, step)) =>
            {
                late = Some(step);
            }
            Kind::Cgroup => cgroup::mount_cgroup(root, step, view)?,
        }
    }
    late.map_or(Ok(()), |step| cgroup::mount_cgroup(root, step, view))
}

/// Whether a mount lies on or below another.
fn lies_on(upper: &MountStep, lower: &MountStep) -> bool {
    let lower = lower.destination.trim_end_matches('/');
    upper
        .destination
        .strip_prefix(lower)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Makes the tmpfs mounts that are to be read-only so, now that everything in them has been made.
pub(crate) fn finish(root: &Root, steps: &[MountStep]) -> Result<(), Fault> {
    for step in steps
        .iter()
        .filter(|step| step.is_tmpfs() && step.is_read_only())
    {
        let subject = subject(step);
        let mounted = root
            .resolve(&step.destination)
            .at(Step::Mount, "openat2", &subject)?;
        set_read_only(&mounted, step.flags).at(Step::Mount, "mount_setattr", &subject)?;
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
        Err(Errno::NOSYS) => {
            let flags = flags | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            mount(None, &fd_path(mounted), None, flags, None)
        }
        other => other,
    }
}

/// A path by which `mount(2)` finds what a descriptor refers to.
pub(crate) fn fd_path(fd: impl AsFd) -> CString {
    // A number and fixed text hold no NUL.
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}

/// How errors name a mount; runc's words.
pub(super) fn subject(step: &MountStep) -> String {
    let source = step.source.to_string_lossy();
    format!("{source:?} to rootfs at {:?}", step.destination)
}

/// Opens the source of a bind mount as a detached copy; on kernels without detached mounts, as it is.
pub(super) fn open_source(step: &MountStep, recursive: bool) -> Result<OwnedFd, Fault> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(CWD, &step.source, flags) {
        Err(Errno::NOSYS) => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, &step.source, flags, rustix::fs::Mode::empty()).at(
                Step::Mount,
                "open",
                &subject(step),
            )
        }
        other => other.at(Step::Mount, "open_tree", &subject(step)),
    }
}

/// Makes a bind mount.
fn bind(
    root: &Root,
    step: &MountStep,
    recursive: bool,
    source: Option<OwnedFd>,
) -> Result<(), Fault> {
    let subject = subject(step);
    let tree = match source {
        Some(tree) => tree,
        None => open_source(step, recursive)?,
    };
    let stat = fstat(&tree).at(Step::Mount, "fstat", &subject)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let missing = if is_directory {
        Missing::Directory
    } else {
        Missing::File
    };
    let target =
        root.ensure(&step.destination, missing)
            .at(Step::Mount, "create mount point", &subject)?;
    if step.destination.trim_end_matches('/') == "/proc" {
        let kind = fstatfs(&tree).at(Step::Mount, "fstatfs", &subject)?.f_type;
        if kind != PROC_SUPER_MAGIC {
            return Err(Errno::PERM).at(Step::Mount, "not of type proc: fstatfs", &subject);
        }
    }
    match set_attributes(&tree, step) {
        Ok(()) => {}
        // Before Linux 5.12, or a source that is no detached mount because of a kernel before 5.2.
        Err((_, Errno::NOSYS)) => return bind_by_mount(root, step, recursive, &tree, &target),
        Err((call, errno)) => return Err(errno).at(Step::Mount, call, &subject),
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match move_mount(&tree, c"", &target, c"", flags) {
        Err(Errno::NOSYS) => bind_by_mount(root, step, recursive, &tree, &target),
        other => other.at(Step::Mount, "move_mount", &subject),
    }
}

/// Sets what a step says of a mount's attributes and propagation.
fn set_attributes(mounted: &OwnedFd, step: &MountStep) -> Result<(), (&'static str, Errno)> {
    let call = "mount_setattr";
    if step.is_bind() && !step.attr.is_empty() {
        mount_setattr(mounted, false, &step.attr).map_err(|errno| (call, errno))?;
    }
    if !step.recursive_attr.is_empty() {
        mount_setattr(mounted, true, &step.recursive_attr).map_err(|errno| (call, errno))?;
    }
    for (propagation, recursive) in &step.propagation {
        let attr = MountAttr {
            propagation: *propagation,
            ..MountAttr::default()
        };
        mount_setattr(mounted, *recursive, &attr).map_err(|errno| (call, errno))?;
    }
    Ok(())
}

/// A bind mount by `mount(2)` alone.
fn bind_by_mount(
    root: &Root,
    step: &MountStep,
    recursive: bool,
    source: &OwnedFd,
    target: &OwnedFd,
) -> Result<(), Fault> {
    let subject = subject(step);
    if !step.recursive_attr.is_empty() {
        return Err(Errno::NOSYS).at(Step::Mount, "mount_setattr", &subject);
    }
    let below = if recursive { libc::MS_REC } else { 0 };
    mount(
        Some(&fd_path(source)),
        &fd_path(target),
        None,
        libc::MS_BIND | below,
        None,
    )
    .at(Step::Mount, "mount", &subject)?;
    // The descriptor is of what lies below the new mount: open it anew.
    let mounted = root
        .resolve(&step.destination)
        .at(Step::Mount, "openat2", &subject)?;
    let path = fd_path(&mounted);
    if !step.attr.is_empty() {
        let flags = step.flags | libc::MS_BIND | libc::MS_REMOUNT;
        mount(None, &path, None, flags, None).at(Step::Mount, "mount", &subject)?;
    }
    for (propagation, recursive) in &step.propagation {
        let flags = propagation | if *recursive { libc::MS_REC } else { 0 };
        mount(None, &path, None, flags, None).at(Step::Mount, "mount", &subject)?;
    }
    Ok(())
}

/// Mounts a new file system.
fn file_system(root: &Root, step: &MountStep, kind: &str) -> Result<(), Fault> {
    let subject = subject(step);
    // A tmpfs has the mode of what it covers, as runc does it, and the kernel's own where it covers nothing.
    let takes_mode = step.is_tmpfs()
        && !step.data.split(',').any(|it| it.starts_with("mode="))
        && root.resolve(&step.destination).is_ok();
    let target = open_target(root, step, kind).at(Step::Mount, "create mount point", &subject)?;
    let mut data = step.data.clone();
    let mut flags = step.flags;
    if step.is_tmpfs() {
        // Made writable at first, for device files and mount points; see `finish`.
        flags &= !libc::MS_RDONLY;
    }
    if takes_mode {
        let mode = fstat(&target).at(Step::Mount, "fstat", &subject)?.st_mode & 0o7777;
        let comma = if data.is_empty() { "" } else { "," };
        data = format!("{data}{comma}mode={mode:o}");
    }
    let original = match step.copy_up && step.is_tmpfs() {
        true => Some(copy_up::open_directory(&target).at(Step::Mount, "open", &subject)?),
        false => None,
    };
    let text = |text: &str| CString::new(text).map_err(|_| Errno::INVAL);
    let source = text(&step.source.to_string_lossy()).at(Step::Mount, "mount", &subject)?;
    let kind = text(kind).at(Step::Mount, "mount", &subject)?;
    let data = text(&data).at(Step::Mount, "mount", &subject)?;
    let data = Some(data.as_c_str()).filter(|data| !data.is_empty());
    // "." is the target itself, however its path may have changed since it was opened.
    fchdir(&target).at(Step::Mount, "fchdir", &subject)?;
    mount(Some(&source), c".", Some(&kind), flags, data).at(Step::Mount, "mount", &subject)?;
    if original.is_none() && step.propagation.is_empty() && step.recursive_attr.is_empty() {
        return Ok(());
    }
    let mounted = root
        .resolve_with(
            &step.destination,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        )
        .at(Step::Mount, "openat2", &subject)?;
    if let Some(original) = original {
        copy_up::copy(&original, &mounted).at(Step::Mount, "tmpcopyup", &subject)?;
    }
    match set_attributes(&mounted, step) {
        Err((call, errno)) => Err(errno).at(Step::Mount, call, &subject),
        Ok(()) => Ok(()),
    }
}

/// Opens the directory a file system is mounted on, or makes it.
///
/// `/proc` and `/sys` must be directories of the rootfs, not links that put the real ones somewhere else
/// (CVE-2023-27561).
fn open_target(root: &Root, step: &MountStep, kind: &str) -> Result<OwnedFd, Errno> {
    if !matches!(kind, "proc" | "sysfs") {
        return root.ensure(&step.destination, Missing::Directory);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without "/" or "/." at the end, with which a link would be followed after all.
    let path: PathBuf = Path::new(&step.destination).components().collect();
    match root.resolve_with(&path.to_string_lossy(), flags) {
        Err(Errno::NOENT) => root.ensure(&step.destination, Missing::Directory),
        other => other,
    }
}

#[cfg(test)]
mod tests {
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
