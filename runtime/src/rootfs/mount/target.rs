//! Where a mount goes: opened or made within the root, and checked.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{OFlags, PROC_SUPER_MAGIC, fstatfs};
use rustix::io::Errno;

use super::subject;
use crate::plan::mount::{MountStep, is_replaceable};
use crate::procfs::HostProc;
use crate::rootfs::path::{Missing, Place, Root};
use crate::setup::fault::{At, Fault, Step};

/// An opened mount point.
#[derive(Debug)]
pub(in crate::rootfs) struct Target {
    /// What lies there.
    pub(in crate::rootfs) fd: OwnedFd,
    /// Whether it was made just now.
    pub(super) is_new: bool,
}

/// Opens the place of a mount, or makes it; it is neither the root nor a part of `/proc` that may not be replaced.
pub(in crate::rootfs) fn open(
    root: &Root,
    host_proc: &HostProc,
    step: &MountStep,
    missing: Missing,
) -> Result<Target, Fault> {
    match root.resolve(&step.destination) {
        Ok(fd) => {
            check(root, host_proc, step, &fd)?;
            Ok(Target { fd, is_new: false })
        }
        Err(Errno::NOENT) => root
            .ensure(&step.destination, missing)
            .at(Step::Mount, "create mount point", &subject(step))
            .map(|fd| Target { fd, is_new: true }),
        Err(errno) => Err(errno).at(Step::Mount, "openat2", &subject(step)),
    }
}

/// Opens the place of a `proc` or `sysfs`: a directory of the rootfs, not a link that puts the real one somewhere else
/// (CVE-2019-19921, CVE-2023-27561).
pub(super) fn open_ordinary_directory(
    root: &Root,
    step: &MountStep,
    kind: &str,
) -> Result<Target, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without "/" or "/." at the end, with which a link would be followed after all.
    let path: PathBuf = Path::new(&step.destination).components().collect();
    match root.resolve_with(&path.to_string_lossy(), flags) {
        Ok(fd) => {
            check_not_root(root, step, &fd)?;
            Ok(Target { fd, is_new: false })
        }
        Err(Errno::NOENT) => root
            .ensure(&step.destination, Missing::Directory)
            .at(Step::Mount, "create mount point", &subject(step))
            .map(|fd| Target { fd, is_new: true }),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(refused(
            step,
            format!("filesystem {kind:?} must be mounted on ordinary directory"),
        )),
        Err(errno) => Err(errno).at(Step::Mount, "openat2", &subject(step)),
    }
}

/// A fault that the kernel knows nothing of.
pub(super) fn refused(step: &MountStep, why: String) -> Fault {
    Fault {
        step: Step::Mount,
        call: why,
        subject: subject(step),
        errno: 0,
    }
}

/// The rules of [`open`].
fn check(root: &Root, host_proc: &HostProc, step: &MountStep, fd: &OwnedFd) -> Result<(), Fault> {
    check_not_root(root, step, fd)?;
    let kind = fstatfs(fd)
        .at(Step::Mount, "fstatfs", &subject(step))?
        .f_type;
    if kind != PROC_SUPER_MAGIC {
        return Ok(());
    }
    // The plan has judged the path as it is written; here is where it leads.
    let lies_at = |fd: i32| {
        host_proc
            .link(&format!("self/fd/{fd}"))
            .at(Step::Mount, "readlink", &subject(step))
    };
    let (place, top) = (lies_at(fd.as_raw_fd())?, lies_at(root.fd_number())?);
    let below = Path::new(&place)
        .strip_prefix(&top)
        .and_then(|path| path.strip_prefix("proc"));
    let Ok(below) = below else { return Ok(()) };
    let is_proc = below.components().all(|part| part == Component::CurDir);
    // What goes to `/proc` itself is checked by who mounts it, unless a link has led there.
    if is_proc && step.destination == "/proc" || is_replaceable(&below.to_string_lossy()) {
        return Ok(());
    }
    Err(refused(
        step,
        format!("{place:?} cannot be mounted because it is inside /proc"),
    ))
}

/// Whatever is mounted on the root is not seen by those who have it open, us among them.
fn check_not_root(root: &Root, step: &MountStep, fd: &OwnedFd) -> Result<(), Fault> {
    let place = Place::of(fd).at(Step::Mount, "statx", &subject(step))?;
    if place == *root.place() {
        return Err(refused(
            step,
            format!("mountpoint {:?} is on the top of rootfs", step.destination),
        ));
    }
    Ok(())
}
