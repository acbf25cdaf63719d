//! What all errors share: how a chain is told in one line, how error numbers are spelt, and the failed system call.

use std::error::Error;
use std::path::Path;

use rustix::io::Errno;

/// A system call that failed, as the user reads it: `open /etc/passwd: permission denied`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} {subject}: {}", text(*.errno))]
pub(crate) struct CallFailed {
    /// Name of the call.
    pub(crate) call: &'static str,
    /// What it was about: a path, mostly.
    pub(crate) subject: String,
    /// The kernel's answer.
    pub(crate) errno: Errno,
}

/// Names the call and its subject in the error of a system call.
pub(crate) trait During<T> {
    /// Says which call failed on what.
    fn during(self, call: &'static str, subject: impl AsRef<Path>) -> Result<T, CallFailed>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, call: &'static str, subject: impl AsRef<Path>) -> Result<T, CallFailed> {
        self.map_err(|errno| CallFailed {
            call,
            subject: subject.as_ref().display().to_string(),
            errno,
        })
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, call: &'static str, subject: impl AsRef<Path>) -> Result<T, CallFailed> {
        self.map_err(|error| errno_of(&error)).during(call, subject)
    }
}

/// The kernel's answer behind an error of the standard library; EIO for one of the library's own.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// The error and its causes, outermost first, in one line; error numbers as [`text`] spells them.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        line.push_str(": ");
        match current.downcast_ref::<Errno>() {
            Some(errno) => line.push_str(&text(*errno)),
            None => line.push_str(&current.to_string()),
        }
        cause = current.source();
    }
    line
}

/// The text of an error number in the spelling of Go programs, which engines look for in a runtime's messages.
pub(crate) fn text(errno: Errno) -> String {
    let known = match errno {
        Errno::PERM => "operation not permitted",
        Errno::NOENT => "no such file or directory",
        Errno::SRCH => "no such process",
        Errno::INTR => "interrupted system call",
        Errno::IO => "input/output error",
        Errno::NXIO => "no such device or address",
        Errno::TOOBIG => "argument list too long",
        Errno::NOEXEC => "exec format error",
        Errno::BADF => "bad file descriptor",
        Errno::CHILD => "no child processes",
        Errno::AGAIN => "resource temporarily unavailable",
        Errno::NOMEM => "cannot allocate memory",
        Errno::ACCESS => "permission denied",
        Errno::FAULT => "bad address",
        Errno::NOTBLK => "block device required",
        Errno::BUSY => "device or resource busy",
        Errno::EXIST => "file exists",
        Errno::XDEV => "invalid cross-device link",
        Errno::NODEV => "no such device",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::INVAL => "invalid argument",
        Errno::NFILE => "too many open files in system",
        Errno::MFILE => "too many open files",
        Errno::NOTTY => "inappropriate ioctl for device",
        Errno::TXTBSY => "text file busy",
        Errno::FBIG => "file too large",
        Errno::NOSPC => "no space left on device",
        Errno::SPIPE => "illegal seek",
        Errno::ROFS => "read-only file system",
        Errno::MLINK => "too many links",
        Errno::PIPE => "broken pipe",
        Errno::DOM => "numerical argument out of domain",
        Errno::RANGE => "numerical result out of range",
        Errno::NAMETOOLONG => "file name too long",
        Errno::NOSYS => "function not implemented",
        Errno::NOTEMPTY => "directory not empty",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::OVERFLOW => "value too large for defined data type",
        Errno::LIBBAD => "accessing a corrupted shared library",
        Errno::USERS => "too many users",
        Errno::NOTSOCK => "socket operation on non-socket",
        Errno::PROTOTYPE => "protocol wrong type for socket",
        Errno::OPNOTSUPP => "operation not supported",
        Errno::ADDRINUSE => "address already in use",
        Errno::CONNRESET => "connection reset by peer",
        Errno::NOTCONN => "transport endpoint is not connected",
        Errno::TIMEDOUT => "connection timed out",
        Errno::CONNREFUSED => "connection refused",
        Errno::STALE => "stale file handle",
        Errno::DQUOT => "disk quota exceeded",
        _ => "",
    };
    if known.is_empty() {
        format!("errno {}", errno.raw_os_error())
    } else {
        known.to_owned()
    }
}

/// The text of a signal in the same spelling.
pub(crate) fn signal_text(signal: i32) -> String {
    const TEXTS: [&str; 31] = [
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
        "stack fault",
        "child exited",
        "continued",
        "stopped (signal)",
        "stopped",
        "stopped (tty input)",
        "stopped (tty output)",
        "urgent I/O condition",
        "CPU time limit exceeded",
        "file size limit exceeded",
        "virtual timer expired",
        "profiling timer expired",
        "window changed",
        "I/O possible",
        "power failure",
        "bad system call",
    ];
    let index = usize::try_from(signal - 1).unwrap_or(usize::MAX);
    TEXTS
        .get(index)
        .map_or_else(|| format!("signal {signal}"), |text| (*text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_reads_as_in_go_programs() {
        let failed = Err::<(), _>(Errno::NOENT)
            .during("stat", "/bin/x")
            .unwrap_err();
        assert_eq!(failed.to_string(), "stat /bin/x: no such file or directory");
    }

    #[test]
    fn an_error_number_is_spelt_alike_wherever_it_stands() {
        let error = anyhow::Error::new(Errno::NOENT).context("cannot join");
        assert_eq!(
            chain(error.as_ref()),
            "cannot join: no such file or directory"
        );
    }

    #[test]
    fn a_chain_is_one_line() {
        let failed = Err::<(), _>(Errno::ACCESS)
            .during("open", "/x")
            .unwrap_err();
        let error = anyhow::Error::new(failed).context("cannot read it");
        assert_eq!(
            chain(error.as_ref()),
            "cannot read it: open /x: permission denied"
        );
    }
}
