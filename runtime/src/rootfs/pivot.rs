//! Changing the root.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::mount::c_path;
use super::path::Root;
use crate::mountinfo::{self, Mount};
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::mount;

/// Makes the container's root the root, and lets go of the host's.
pub(crate) fn change_root(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    fchdir(root.fd()).at(Step::Pivot, "fchdir", "")?;
    if plan.no_pivot {
        return move_root(&plan.path);
    }
    if !plan.own_mount_namespace {
        return enter();
    }
    let old = match plan.cuts_off_the_tree() {
        true => None,
        false => Some(open_old_root()?),
    };
    // The old root ends up on top of the new one, at "/", and "." leads to it: no directory is needed to put it.
    pivot_root(c".", c".").at(Step::Pivot, "pivot_root", "")?;
    if let Some(old) = old {
        // Only umount2(2) takes "." for what is on top of it. Elsewhere it is the new root, whose mounts were given
        // their propagation already.
        fchdir(old).at(Step::Pivot, "fchdir", "")?;
        // So that unmounting it here does not unmount anything on the host.
        mount(None, c".", None, libc::MS_SLAVE | libc::MS_REC, None).at(
            Step::Pivot,
            "mount",
            "",
        )?;
    }
    unmount(c".", UnmountFlags::DETACH).at(Step::Pivot, "umount2", "")?;
    chdir(c"/").at(Step::Pivot, "chdir", "")
}

fn open_old_root() -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, c"/", flags, Mode::empty()).at(Step::Pivot, "open", "/")
}

/// For a root on the initial ramdisk, which cannot be pivoted: the mount is moved on top of it. Weaker, because what was
/// there before stays underneath.
fn move_root(path: &Path) -> Result<(), Fault> {
    // As long as one is reachable whole, a process with CAP_SYS_ADMIN in a user namespace of its own may mount another, in
    // which nothing is masked.
    for place in whole_proc_and_sys(path)? {
        let name = place.to_string_lossy();
        // So that unmounting it here does not unmount anything on the host.
        match mount(None, &place, None, libc::MS_SLAVE | libc::MS_REC, None) {
            // What it lay on has been taken away.
            Err(Errno::INVAL | Errno::NOENT) => continue,
            other => other.at(Step::Pivot, "mount", &name)?,
        }
        match unmount(&place, UnmountFlags::DETACH) {
            // A mount of another user namespace's cannot be taken away, but covered.
            Err(Errno::INVAL | Errno::PERM) => {
                mount(Some(c"tmpfs"), &place, Some(c"tmpfs"), 0, None).at(
                    Step::Pivot,
                    "mount",
                    &name,
                )?;
            }
            other => other.at(Step::Pivot, "umount2", &name)?,
        }
    }
    mount(Some(c"."), c"/", None, libc::MS_MOVE, None).at(Step::Pivot, "mount", "")?;
    enter()
}

/// Makes the current directory the root.
fn enter() -> Result<(), Fault> {
    chroot(c".").at(Step::Pivot, "chroot", "")?;
    chdir(c"/").at(Step::Pivot, "chdir", "")
}

/// Where a procfs or a sysfs is mounted from its top, outside of the container's root.
fn whole_proc_and_sys(root: &Path) -> Result<Vec<CString>, Fault> {
    let mounts = mountinfo::read().at(Step::Pivot, "read", "mountinfo")?;
    let whole = mounts.iter().filter(|mount| is_whole(mount, root));
    Ok(whole
        .filter_map(|mount| c_path(&mount.point).ok())
        .collect())
}

/// Whether a mount is what [`whole_proc_and_sys`] looks for.
fn is_whole(mount: &Mount, root: &Path) -> bool {
    matches!(mount.kind.as_str(), "proc" | "sysfs")
        && mount.root == Path::new("/")
        && !mount.point.starts_with(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_to_be_out_of_the_way() {
        let root = Path::new("/bundle/rootfs");
        for (line, expected) in [
            ("22 28 0:21 / /proc rw,nosuid - proc proc rw", true),
            ("23 28 0:22 / /sys rw shared:7 - sysfs sysfs rw", true),
            ("25 28 0:22 /sys /ro rw - proc none rw", false),
            ("26 28 0:22 / /bundle/rootfs/proc rw - proc none rw", false),
            ("27 28 8:1 / / rw - ext4 /dev/sda1 rw", false),
        ] {
            let [mount] = mountinfo::parse(line.as_bytes()).try_into().unwrap();
            assert_eq!(is_whole(&mount, root), expected, "{line}");
        }
    }
}
