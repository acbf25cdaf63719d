//! Signals as numbers: real-time signals included, which typed wrappers leave out.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SignalSet")
    }
}

impl SignalSet {
    /// No signal.
    pub(crate) fn empty() -> Self {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: `sigemptyset` writes the whole set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        Self(unsafe { set.assume_init() })
    }

    /// Every signal.
    pub(crate) fn full() -> Self {
        let mut set = Self::empty();
        // SAFETY: the set is initialised and exclusively borrowed.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// These signals.
    pub(crate) fn of(signals: &[i32]) -> Self {
        let mut set = Self::empty();
        for signal in signals {
            // SAFETY: the set is initialised and exclusively borrowed; a number that is no signal gives EINVAL.
            unsafe { libc::sigaddset(&raw mut set.0, *signal) };
        }
        set
    }

    /// Takes a signal out of the set.
    pub(crate) fn remove(&mut self, signal: i32) {
        // SAFETY: the set is initialised and exclusively borrowed; a number that is no signal gives EINVAL.
        unsafe { libc::sigdelset(&raw mut self.0, signal) };
    }

    /// Makes this the set of blocked signals and returns the former one.
    pub(crate) fn block(&self) -> Result<Self, Errno> {
        let mut old = Self::empty();
        // SAFETY: both sets are initialised and outlive the call.
        let done =
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, &raw mut old.0) };
        if done == -1 {
            Err(super::last_errno())
        } else {
            Ok(old)
        }
    }

    /// Waits for a blocked signal of the set and takes it; `timeout` in milliseconds, `None` for ever.
    pub(crate) fn wait(&self, timeout: Option<u32>) -> Result<i32, Errno> {
        let timeout = timeout.map(|milliseconds| libc::timespec {
            tv_sec: (milliseconds / 1000).into(),
            tv_nsec: (milliseconds % 1000 * 1_000_000).into(),
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the set is initialised, no information is asked for, the time is null or valid during the call.
        let signal =
            unsafe { libc::sigtimedwait(&raw const self.0, std::ptr::null_mut(), timeout) };
        if signal == -1 {
            Err(super::last_errno())
        } else {
            Ok(signal)
        }
    }
}

impl SignalSet {
    /// A descriptor that is readable while a signal of the set is pending.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, Errno> {
        // SAFETY: the set is initialised and only read; -1 asks for a new descriptor.
        let raw = unsafe {
            libc::signalfd(
                -1,
                &raw const self.0,
                libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
            )
        };
        super::check(raw.into())?;
        // SAFETY: the kernel has just made it, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    }
}

/// Gives every signal its default action again: what a program that is executed expects, and what Rust's start-up
/// (which ignores SIGPIPE) and our callers (which may ignore more) changed.
pub(crate) fn reset_all() {
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP have no other action; 32 to 34 belong to the C library.
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32..=34) {
            continue;
        }
        set_action(signal, libc::SIG_DFL);
    }
}

/// Gives SIGPIPE, which Rust's start-up ignores, its default action.
pub(crate) fn reset_pipe() {
    set_action(libc::SIGPIPE, libc::SIG_DFL);
}

/// Sets an action that needs no code.
fn set_action(signal: i32, action: libc::sighandler_t) {
    // SAFETY: SIG_DFL runs no code of ours; an impossible signal number gives an error and changes nothing.
    unsafe { libc::signal(signal, action) };
}

/// Sends a signal by number.
pub(crate) fn kill(pid: rustix::process::Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: the call takes numbers only.
    super::check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into()).map(drop)
}

/// Sends a signal by number to the process a pidfd refers to. Since Linux 5.1.
pub(crate) fn pidfd_send_signal(pidfd: impl AsFd, signal: i32) -> Result<(), Errno> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null pointer asks for the information kill(2) would send.
    super::check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, no_info, 0) })
        .map(drop)
}
