//! Lines of the debug log that are runc's word for word: tests and people look for them.

use rustix::process::{Pid, getpid};

use crate::seccomp::Program;

/// A process was born: in runc a program of its own, "nsexec", tells of this.
pub(crate) fn born(pid: Pid) {
    let pid = pid.as_raw_nonzero();
    log::debug!("nsexec container setup: made process {pid}");
    log::debug!("child process in init(): {pid}");
}

/// On which CPUs this process is; the first word of the mask.
pub(crate) fn affinity(mask: usize) {
    log::debug!("nsexec[{}]: affinity: {mask:#x}", getpid().as_raw_nonzero());
}

/// A filter's flags.
pub(crate) fn filter_flags(program: &Program) {
    log::debug!("seccomp filter flags: {}", program.flags);
}

/// The init process is set up.
pub(crate) fn init_is_ready() {
    log::debug!("init: closing the pipe to signal completion");
}

/// An exec'd process is set up.
pub(crate) fn exec_is_ready() {
    log::debug!("setns_init: about to exec");
}

/// This process runs from a file that nobody can write to; in runc that is a copy or an overlay.
pub(crate) fn own_file_is_safe() {
    log::debug!("runc exeseal: using /proc/self/exe clone");
}

/// That file will be in an overlay.
pub(crate) fn own_file_in_overlay() {
    log::debug!("runc exeseal: using overlayfs for sealed /proc/self/exe");
}
