//! Scheduling policy, CPU affinity, I/O priority and NUMA memory policy.

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

/// Lets a process run on the CPUs of the mask only, as far as its cgroup allows them; 0 is the calling thread.
pub(crate) fn sched_setaffinity(pid: libc::pid_t, mask: &[usize]) -> Result<(), Errno> {
    // SAFETY: the kernel reads as many bytes as the slice has, and no more.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            pid,
            size_of_val(mask),
            mask.as_ptr(),
        )
    })
    .map(drop)
}

/// The CPUs that the calling thread may run on, lowest first.
pub(crate) fn sched_getaffinity() -> Result<Vec<usize>, Errno> {
    // 8192 CPUs, more than any kernel can be built for; EINVAL otherwise.
    let mut mask = vec![0; 8192 / usize::BITS as usize];
    // SAFETY: the kernel writes at most as many bytes as the vector has.
    let written = check(unsafe {
        libc::syscall(
            libc::SYS_sched_getaffinity,
            0,
            mask.len() * size_of::<usize>(),
            mask.as_mut_ptr(),
        )
    })?;
    mask.truncate(usize::try_from(written).unwrap_or(0) / size_of::<usize>());
    Ok(mask)
}

/// Sets the memory policy of the calling thread, which what it executes keeps: `MPOL_*` and `MPOL_F_*` bits, nodes.
pub(crate) fn set_mempolicy(mode: libc::c_int, nodes: &[usize]) -> Result<(), Errno> {
    // The kernel takes one bit less than it is told; see BUGS in set_mempolicy(2).
    let (address, bits) = match nodes.len() * usize::BITS as usize {
        0 => (std::ptr::null(), 0),
        bits => (nodes.as_ptr(), bits + 1),
    };
    // SAFETY: the kernel reads the bits up to the last but one, all of which are in the slice, or nothing at null.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, address, bits) }).map(drop)
}
