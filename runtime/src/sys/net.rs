//! Brings the loopback interface up.

use std::os::fd::AsRawFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::check;

/// `struct ifreq` with its flags member.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Sets the flags of the interface `lo` of the current network namespace to "up".
pub(crate) fn set_loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = InterfaceFlags {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // The kernel keeps IFF_LOOPBACK and computes IFF_RUNNING itself: only the flags that can be changed are taken.
    request.flags = 1; // IFF_UP
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which `request` is in size and layout.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    };
    check(done.into()).map(drop)
}
