//! The system calls that neither rustix nor nix offers as safe functions, and the allocator.
//!
//! The only place in this program with `unsafe` code. Wrappers keep the kernel's names and return the kernel's error
//! number; deciding what an error means is left to the callers. One function forks: [`process::clone_process`].

#![expect(
    unsafe_code,
    reason = "the one place where system calls without a safe wrapper are made"
)]

pub(crate) mod alloc;
pub(crate) mod bpf;
pub(crate) mod mount;
pub(crate) mod net;
pub(crate) mod process;
pub(crate) mod sched;
pub(crate) mod seccomp;
pub(crate) mod signal;

use rustix::io::Errno;

/// Turns the return value of a raw system call into a result.
fn check(value: libc::c_long) -> Result<libc::c_long, Errno> {
    if value == -1 {
        Err(last_errno())
    } else {
        Ok(value)
    }
}

/// The error number the last failed call of this thread left behind.
fn last_errno() -> Errno {
    let raw = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Errno::from_raw_os_error(raw)
}
