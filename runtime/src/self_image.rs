//! Protects this program's own file from containers (CVE-2019-5736).
//!
//! A process that is about to enter a container runs from our file on the host, and a container that is root can find
//! ways to open `/proc/PID/exe` of it, wait for it to end, and write to the file. So commands that enter a container first
//! execute themselves again from a copy that cannot be written to: the file as a detached, read-only overlay of its
//! directory without an upper one shows it, a detached read-only bind mount of the file where there are no such overlays,
//! or, on kernels before 5.12 and without the right to mount, a sealed copy in memory. Of an overlay nothing that is done
//! to the mount makes the file writable. Each mount that goes costs the kernel a grace period, some 0.1 ms: so there is
//! only one.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, StatxAttributes,
    StatxFlags, fcntl_add_seals, fcntl_get_seals, memfd_create, openat, statx,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

use crate::failure::{CallFailed, During};
use crate::procfs::HostProc;
use crate::sys::mount::{ATTR_NOSUID, ATTR_RDONLY, MountAttr, mount_setattr};
use crate::sys::process::fexecve;
use crate::told;

const OWN_FILE: &str = "/proc/self/exe";

/// How statfs(2) shows `MOUNT_ATTR_NOSYMFOLLOW`, which nobody sets on a mount with programs: the mark of our overlay.
const ST_NOSYMFOLLOW: u64 = 0x2000;

/// The seals of a copy in memory.
const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// Whether this process was found to run from a file that cannot be written to.
static IS_SAFE: AtomicBool = AtomicBool::new(false);

/// Does what [`protect`] does for a command that will want it, before anything else: each page that a process touches costs
/// microseconds, and one that has only just started has touched few. Not when debugging, where it is told of. What fails is
/// tried again, and told, by the command.
pub(crate) fn protect_early() {
    let mut is_wanted = false;
    for word in std::env::args_os().skip(1) {
        is_wanted |= word == "run" || word == "create" || word == "exec";
        if word == "--debug" {
            return;
        }
    }
    if is_wanted {
        let _ = protect();
    }
}

/// Makes sure that this process runs from a file that cannot be written to; returns only when it does.
pub(crate) fn protect() -> Result<(), CallFailed> {
    if IS_SAFE.load(Ordering::Relaxed) {
        return Ok(());
    }
    if is_protected().during("open", OWN_FILE)? {
        IS_SAFE.store(true, Ordering::Relaxed);
        told::own_file_is_safe();
        return Ok(());
    }
    let copy = match overlay().or_else(|_| read_only_mount(&own_file()?)) {
        Ok(copy) => copy,
        Err(_) => sealed_copy()?,
    };
    let arguments: Result<Vec<CString>, _> = std::env::args_os()
        .map(|word| CString::new(word.into_vec()).map_err(|_| Errno::INVAL))
        .collect();
    let arguments = arguments.during("execveat", OWN_FILE)?;
    crate::sys::signal::reset_pipe();
    Err(fexecve(&copy, &arguments)).during("execveat", OWN_FILE)
}

/// Whether the file this process runs from is on a read-only mount or sealed.
fn is_protected() -> Result<bool, Errno> {
    // A file of that name that is not the kernel's word would be executed again and again.
    HostProc::open()?;
    let own = own_file()?;
    let mount = rustix::fs::fstatvfs(&own)?.f_flag;
    if mount.contains(StatVfsMountFlags::RDONLY)
        && (mount.bits() & ST_NOSYMFOLLOW != 0 || is_mount_root(&own)?)
    {
        return Ok(true);
    }
    if rustix::fs::fstat(&own)?.st_nlink != 0 {
        return Ok(false);
    }
    // Without a name: perhaps in memory.
    let own = openat(
        CWD,
        OWN_FILE,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SEALS)))
}

/// Whether a file is all there is of its mount, as with our bind mounts; a read-only `/usr` is one that somebody may make
/// writable for an update. Before Linux 5.8, which cannot tell, any mount will do.
fn is_mount_root(file: &OwnedFd) -> Result<bool, Errno> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(!stat
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
        || stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Opens the file this process runs from.
fn own_file() -> Result<OwnedFd, Errno> {
    openat(CWD, OWN_FILE, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// The file in an overlay of its directory that nothing can be written to. Linux 5.14 and the right to mount.
fn overlay() -> Result<OwnedFd, Errno> {
    /// Overlays without an upper directory have to have two lower ones. This one is everywhere.
    const SECOND: &str = "/dev";
    let path = rustix::fs::readlinkat(CWD, OWN_FILE, Vec::new())?;
    let path = path.to_str().map_err(|_| Errno::INVAL)?;
    let (directory, name) = path.rsplit_once('/').ok_or(Errno::INVAL)?;
    if directory.contains([':', '\\']) || directory.is_empty() {
        return Err(Errno::INVAL);
    }
    let context = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, c"lowerdir", format!("{directory}:{SECOND}"))?;
    // It would be switched on, and complained about in the kernel's log, where the two are on different file systems.
    let _ = fsconfig_set_string(&context, c"xino", c"off");
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&mounted, name, flags, Mode::empty())?;
    if !is_same_file(&file)? {
        // Replaced, as by an update, since this process was started.
        return Err(Errno::STALE);
    }
    told::own_file_in_overlay();
    Ok(file)
}

/// Whether what an overlay shows is the file this process runs from: overlays change numbers, not sizes and times.
fn is_same_file(shown: &OwnedFd) -> Result<bool, Errno> {
    let wanted = StatxFlags::SIZE | StatxFlags::MTIME | StatxFlags::CTIME;
    let of = |file: &OwnedFd| -> Result<_, Errno> {
        let stat = statx(file, c"", AtFlags::EMPTY_PATH, wanted)?;
        let times = [stat.stx_mtime, stat.stx_ctime].map(|time| (time.tv_sec, time.tv_nsec));
        Ok((stat.stx_size, times))
    };
    Ok(of(shown)? == of(&own_file()?)?)
}

/// A file on a read-only mount of its own, which is in no mount namespace.
fn read_only_mount(own: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(own, c"", flags)?;
    let attr = MountAttr {
        attr_set: ATTR_RDONLY | ATTR_NOSUID,
        ..MountAttr::default()
    };
    mount_setattr(&tree, false, &attr)?;
    Ok(tree)
}

/// A copy of the file in memory that nobody can change.
fn sealed_copy() -> Result<OwnedFd, CallFailed> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = memfd_create(c"qrun", flags).during("memfd_create", "qrun")?;
    let mut copy = File::from(copy);
    let mut own = File::open(OWN_FILE).during("open", OWN_FILE)?;
    std::io::copy(&mut own, &mut copy).during("write", "qrun")?;
    fcntl_add_seals(&copy, SEALS).during("fcntl", "qrun")?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_in_memory_cannot_be_written() {
        let copy = sealed_copy().unwrap();
        assert!(fcntl_get_seals(&copy).unwrap().contains(SEALS));
        let own = std::fs::metadata(OWN_FILE).unwrap().len();
        assert_eq!(
            u64::try_from(rustix::fs::fstat(&copy).unwrap().st_size).unwrap(),
            own
        );
        assert!(rustix::io::write(&copy, b"x").is_err());
    }
}
