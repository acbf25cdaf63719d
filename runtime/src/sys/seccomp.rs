//! `seccomp(2)`: handing a filter to the kernel.

use std::os::fd::{FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::seccomp::Program;

/// `SECCOMP_SET_MODE_FILTER`.
const SET_MODE_FILTER: libc::c_ulong = 1;

/// Installs a filter for the calling thread; returns the listener when the program has one.
///
/// Needs no_new_privs, or CAP_SYS_ADMIN in the thread's user namespace. Allocates nothing, so it may run in the child of
/// a fork. From here on the program itself is filtered.
pub(crate) fn install(program: &Program) -> Result<Option<OwnedFd>, Errno> {
    let filter = libc::sock_fprog {
        // The compiler makes no longer ones.
        len: u16::try_from(program.instructions.len()).map_err(|_| Errno::INVAL)?,
        filter: program.instructions.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` describes the vector's `len` initialised instructions, which the kernel copies during the call and
    // does not write to; the kernel checks the program itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_ulong::from(program.flags),
            &raw const filter,
        )
    };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL));
    }
    if !program.listener {
        return Ok(None);
    }
    let raw = i32::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: with NEW_LISTENER the call returns a new descriptor, which nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Whether the running kernel knows all of these flags. Nothing is installed.
pub(crate) fn knows_flags(flags: u32) -> bool {
    // SAFETY: a filter at address 0 cannot be read; the kernel says EFAULT after, and EINVAL before, it has taken the flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SET_MODE_FILTER,
            libc::c_ulong::from(flags),
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    super::check(result) == Err(Errno::FAULT)
}
