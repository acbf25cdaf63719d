//! Scheduling policy, I/O priority and NUMA memory policy of the calling thread.

use rustix::io::Errno;

use super::check;

/// `struct sched_attr` as of Linux 5.3.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    /// Size of this structure.
    pub(crate) size: u32,
    /// `SCHED_*`
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`
    pub(crate) flags: u64,
    /// Nice value, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub(crate) nice: i32,
    /// Priority, for `SCHED_FIFO` and `SCHED_RR`.
    pub(crate) priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) period: u64,
    /// Utilization clamps, unused.
    pub(crate) utilization: [u32; 2],
}

/// Sets the scheduling policy.
pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<(), Errno> {
    // SAFETY: `attr` is a `struct sched_attr` that says its own size and is only read; pid 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, std::ptr::from_ref(attr), 0) })
        .map(drop)
}

/// Sets the I/O priority: class in the upper bits, level in the lower 13.
pub(crate) fn ioprio_set(class: u32, level: u32) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: the call takes numbers only; 0 is the calling thread.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            (class << 13) | level,
        )
    })
    .map(drop)
}
