//! Changing the root.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::path::Root;
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::mount;

/// Makes the container's root the root, and lets go of the host's.
pub(crate) fn change_root(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    fchdir(root.fd()).at(Step::Pivot, "fchdir", "")?;
    if plan.no_pivot {
        return move_root();
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
fn move_root() -> Result<(), Fault> {
    // Without them in the way a process with CAP_SYS_ADMIN finds no host /proc or /sys to mount from.
    for (path, name) in [(c"/sys", "/sys"), (c"/proc", "/proc")] {
        // So that unmounting it here does not unmount anything on the host.
        match mount(None, path, None, libc::MS_SLAVE | libc::MS_REC, None) {
            // Nothing is mounted there.
            Err(Errno::INVAL | Errno::NOENT) => continue,
            other => other.at(Step::Pivot, "mount", name)?,
        }
        match unmount(path, UnmountFlags::DETACH) {
            // A mount of another user namespace's cannot be taken away, but covered.
            Err(Errno::INVAL | Errno::PERM) => {
                mount(Some(c"tmpfs"), path, Some(c"tmpfs"), 0, None).at(
                    Step::Pivot,
                    "mount",
                    name,
                )?;
            }
            other => other.at(Step::Pivot, "umount2", name)?,
        }
    }
    mount(Some(c"."), c"/", None, libc::MS_MOVE, None).at(Step::Pivot, "mount", "")?;
    chroot(c".").at(Step::Pivot, "chroot", "")?;
    chdir(c"/").at(Step::Pivot, "chdir", "")
}
