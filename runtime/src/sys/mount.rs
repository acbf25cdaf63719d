//! `mount_setattr(2)`, and `mount(2)` with flags as they come out of a table.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null;

use rustix::io::Errno;

use super::check;

/// `MOUNT_ATTR_RDONLY`
pub(crate) const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`
pub(crate) const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`
pub(crate) const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`
pub(crate) const ATTR_NOEXEC: u64 = 0x8;
/// `MOUNT_ATTR__ATIME`: the bits of the access time setting, which go together.
pub(crate) const ATTR_ATIME_MASK: u64 = 0x70;
/// `MOUNT_ATTR_NOATIME`
pub(crate) const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`
pub(crate) const ATTR_STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`
pub(crate) const ATTR_NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_NOSYMFOLLOW`
pub(crate) const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// `MOUNT_ATTR_IDMAP`, since Linux 5.12.
pub(crate) const ATTR_IDMAP: u64 = 0x10_0000;

/// `MS_NOSYMFOLLOW`, since Linux 5.10.
pub(crate) const MS_NOSYMFOLLOW: u64 = 256;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// Attributes to switch on.
    pub(crate) attr_set: u64,
    /// Attributes to switch off.
    pub(crate) attr_clr: u64,
    /// One of `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0 to leave the propagation alone.
    pub(crate) propagation: u64,
    /// User namespace of an idmapped mount.
    pub(crate) userns_fd: u64,
}

impl MountAttr {
    /// Whether applying it would change nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes the attributes of the mount that `fd` refers to, and of those below it when `recursive`. Since Linux 5.12.
pub(crate) fn mount_setattr(fd: impl AsFd, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` a `struct mount_attr` of the size given; both are only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(done).map(drop)
}

/// `mount(2)`, for flags and data that come from a configuration.
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<(), Errno> {
    let pointer = |text: Option<&CStr>| text.map_or(null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string that outlives the call; the kernel only reads them.
    let done = unsafe {
        libc::mount(
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data).cast(),
        )
    };
    check(done.into()).map(drop)
}
