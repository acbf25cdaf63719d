//! The root of a container that criu will fill: mount points made, and the root bound where criu wants it.
//!
//! Runs in the process that becomes criu, in its own mount namespace, before that: nothing of it reaches the host, and it is
//! gone with that process. Mount points on the rootfs are made as at a create, because whoever took the checkpoint here may
//! come with another copy of it; those on a tmpfs come back with the tmpfs.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::mount::source::{self, Source};
use super::mount::{fd_path, subject};
use super::path::{Missing, Root};
use crate::plan::RootPlan;
use crate::plan::mount::{Kind, MountStep};
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::mount;

/// Makes the mount points of the plan, and binds the root on `place`, a directory that nothing is mounted on.
///
/// criu wants the root to be a mount, whose parent nothing is mounted over.
pub(crate) fn prepare(plan: &RootPlan, place: &Path) -> Result<(), Fault> {
    let subject = plan.path.to_string_lossy();
    let at = |result: Result<(), Errno>, call| result.at(Step::PrepareRoot, call, &subject);
    let rootfs = c_path(&plan.path).at(Step::PrepareRoot, "mount", &subject)?;
    let place = c_path(place).at(Step::PrepareRoot, "mount", &subject)?;
    let (bind, slave) = (libc::MS_BIND | libc::MS_REC, libc::MS_SLAVE | libc::MS_REC);
    at(mount(None, c"/", None, slave, None), "mount")?;
    // On itself first, so that all that is mounted on it goes with one call.
    at(mount(Some(&rootfs), &rootfs, None, bind, None), "mount")?;
    let root = Root::open(&rootfs).at(Step::PrepareRoot, "open", &subject)?;
    make_mount_points(&root, plan)?;
    drop(root);
    at(unmount(&*rootfs, UnmountFlags::DETACH), "umount2")?;
    at(mount(Some(&rootfs), &place, None, bind, None), "mount")
}

fn c_path(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)
}

/// Makes the mount points, in the order of the mounts, and binds what will be bound, so that mount points in there are
/// made as well.
fn make_mount_points(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    for step in &plan.mounts {
        // In the tmpfs of the cgroup mount on v1; and on v2 below /sys.
        if step.kind == Kind::Cgroup || is_on_tmpfs(&step.destination, &plan.mounts) {
            continue;
        }
        let subject = subject(step);
        let source = match step.kind {
            Kind::Bind { .. } => Some(source::open(step).at(Step::Mount, "open", &subject)?),
            _ => None,
        };
        let missing = match &source {
            Some(source) => missing(&source.fd).at(Step::Mount, "fstat", &subject)?,
            None => Missing::Directory,
        };
        let target = root.ensure(&step.destination, missing).at(
            Step::Mount,
            "create mount point",
            &subject,
        )?;
        if let Some(source) = source {
            put(&source, &target).at(Step::Mount, "move_mount", &subject)?;
        }
    }
    Ok(())
}

/// What has to be there for a mount of this source.
fn missing(source: &OwnedFd) -> Result<Missing, Errno> {
    let kind = FileType::from_raw_mode(fstat(source)?.st_mode);
    Ok(match kind {
        FileType::Directory => Missing::Directory,
        _ => Missing::File,
    })
}

/// Whether a path is on a tmpfs of the container's.
fn is_on_tmpfs(path: &str, mounts: &[MountStep]) -> bool {
    mounts.iter().filter(|step| step.is_tmpfs()).any(|step| {
        path.strip_prefix(step.destination.trim_end_matches('/'))
            .is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
    })
}

/// Mounts a detached mount, or on kernels without those binds what was opened.
fn put(source: &Source, target: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    if source.is_detached {
        return move_mount(&source.fd, c"", target, c"", flags);
    }
    let bind = libc::MS_BIND | libc::MS_REC;
    mount(
        Some(&fd_path(&source.fd)),
        &fd_path(target),
        None,
        bind,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_with_a_tmpfs() {
        let mut dev = MountStep::bind(Path::new("tmpfs"), "/dev/");
        dev.kind = Kind::FileSystem("tmpfs".into());
        let mounts = [dev, MountStep::bind(Path::new("/s"), "/data")];
        assert!(is_on_tmpfs("/dev/pts", &mounts));
        assert!(!is_on_tmpfs("/dev", &mounts) && !is_on_tmpfs("/dev/", &mounts));
        assert!(!is_on_tmpfs("/device", &mounts) && !is_on_tmpfs("/data/x", &mounts));
    }
}
