//! The root of a container that criu will fill: mount points made, and the root bound where criu wants it.
//!
//! Runs in the process that becomes criu, in its own mount namespace, before that: nothing of it reaches the host, and it is
//! gone with that process. Mount points on the rootfs are made as at a create, because whoever took the checkpoint here may
//! come with another copy of it; those on a tmpfs come back with the tmpfs.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::mount::source::{self, Form, Source};
use super::mount::{self, is_refused, lies_on};
use super::path::{Missing, Root};
use crate::plan::RootPlan;
use crate::plan::mount::{Kind, MountStep};
use crate::setup::fault::{At, Fault, Step};
use crate::sys;

/// Makes the mount points of the plan, and binds the root on `place`, a directory that nothing is mounted on.
///
/// criu wants the root to be a mount, whose parent nothing is mounted over.
pub(crate) fn prepare(plan: &RootPlan, place: &Path) -> Result<(), Fault> {
    let subject = plan.path.to_string_lossy();
    let at = |result: Result<(), Errno>, call| result.at(Step::PrepareRoot, call, &subject);
    let rootfs = mount::c_path(&plan.path).at(Step::PrepareRoot, "mount", &subject)?;
    let place = mount::c_path(place).at(Step::PrepareRoot, "mount", &subject)?;
    let (bind, slave) = (libc::MS_BIND | libc::MS_REC, libc::MS_SLAVE | libc::MS_REC);
    at(sys::mount::mount(None, c"/", None, slave, None), "mount")?;
    // On itself first, so that all that is mounted on it goes with one call.
    at(
        sys::mount::mount(Some(&rootfs), &rootfs, None, bind, None),
        "mount",
    )?;
    let root = Root::open(&plan.path).at(Step::PrepareRoot, "open", &subject)?;
    make_mount_points(&root, plan)?;
    drop(root);
    at(unmount(&*rootfs, UnmountFlags::DETACH), "umount2")?;
    at(
        sys::mount::mount(Some(&rootfs), &place, None, bind, None),
        "mount",
    )
}

/// Makes the mount points, in the order of the mounts, and binds what will be bound, so that mount points in there are
/// made as well.
fn make_mount_points(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    for step in &plan.mounts {
        // In the tmpfs of the cgroup mount on v1; and on v2 below /sys.
        if step.kind == Kind::Cgroup || is_on_tmpfs(step, &plan.mounts) {
            continue;
        }
        let subject = mount::subject(step);
        let source = match step.kind {
            Kind::Bind { .. } => Some(source::open(step).at(Step::Mount, "open", &subject)?),
            _ => None,
        };
        let missing = match &source {
            Some(source) => Missing::like(&source.fd).at(Step::Mount, "fstat", &subject)?,
            None => Missing::Directory,
        };
        let target = root.ensure(&step.destination, missing).at(
            Step::Mount,
            "create mount point",
            &subject,
        )?;
        if let Some(source) = source {
            put(source, step, &target).at(Step::Mount, "move_mount", &subject)?;
        }
    }
    Ok(())
}

/// Whether a mount is on a tmpfs of the container's.
fn is_on_tmpfs(step: &MountStep, mounts: &[MountStep]) -> bool {
    mounts
        .iter()
        .any(|other| other.is_tmpfs() && !std::ptr::eq(step, other) && lies_on(step, other))
}

/// Mounts a source, dressed as it is; by `mount(2)` on kernels without detached mounts.
fn put(source: Source, step: &MountStep, target: &OwnedFd) -> Result<(), Errno> {
    let from = match source.is_detached {
        true => match mount::put(&source.fd, target) {
            Err(errno) if is_refused(errno) => source::open_as(step, Form::InPlace)?.fd,
            other => return other,
        },
        false => source.fd,
    };
    mount::bind_by_mount(&from, target, &step.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_with_a_tmpfs() {
        let mut dev = MountStep::bind(Path::new("tmpfs"), "/dev/");
        dev.kind = Kind::FileSystem("tmpfs".into());
        let at = |destination| MountStep::bind(Path::new("/s"), destination);
        let mounts = [dev, at("/dev/pts"), at("/device"), at("/data/x")];
        let found: Vec<_> = mounts
            .iter()
            .map(|step| is_on_tmpfs(step, &mounts))
            .collect();
        assert_eq!(found, [false, true, false, false]);
    }
}
