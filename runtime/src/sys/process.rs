//! Processes: the one function that forks, exec, descriptors, and `prctl(2)` calls.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

use rustix::io::Errno;
use rustix::process::Pid;

use super::check;

/// `struct clone_args` as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_INTO_CGROUP`, since Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_NEWTIME`, since Linux 5.6; for `unshare` and `setns` only, see there.
pub(crate) const CLONE_NEWTIME: u64 = 0x80;

/// `CLONE_PARENT`: the new process becomes a sibling instead of a child.
pub(crate) const CLONE_PARENT: u64 = 0x8000;
/// What a child sends its parent when it ends: SIGCHLD.
const EXIT_SIGNAL: u64 = 17;

/// A child, as its parent knows it.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its id in the parent's pid namespace.
    pub(crate) pid: Pid,
    /// A descriptor of it; `None` on kernels without `CLONE_PIDFD`.
    pub(crate) pidfd: Option<OwnedFd>,
}

/// Ends the process even when the child's function panics: unwinding into the parent's code would run it twice.
struct ExitGuard;

impl Drop for ExitGuard {
    fn drop(&mut self) {
        exit_now(255);
    }
}

/// Forks with `clone3(2)`: `body` runs in the child, which ends with the code it returns, or executes another program.
///
/// `flags` are `CLONE_NEW*` flags and `CLONE_PARENT`; `cgroup` is a cgroup v2 directory the child is born into. Of the two
/// ends of a conversation each side keeps its own: the other one is dropped there, so that either notices when its peer is
/// gone. The child has a copy of this process's memory, so this process must have one thread, as all of `qrun` has.
/// Every other descriptor survives in the child; that they are close-on-exec from birth keeps them from what it executes.
pub(crate) fn clone_process<P, C>(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    ends: (P, C),
    body: impl FnOnce(C) -> i32,
) -> Result<(Child, P), Errno> {
    let mut pidfd: RawFd = -1;
    let parent_wants_signal = flags & CLONE_PARENT == 0;
    let mut arguments = CloneArgs {
        flags: flags | u64::from(libc::CLONE_PIDFD.unsigned_abs()),
        pidfd: address(&raw mut pidfd),
        exit_signal: if parent_wants_signal { EXIT_SIGNAL } else { 0 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM and without a stack of its own the child continues on a copy of this thread's stack, as
    // after fork(2). There is one thread, so no lock is held by a thread that the child lacks. `pidfd` outlives the call.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    let pid = match check(pid) {
        // Before Linux 5.3, and where a seccomp filter around us refuses it. Kernels that know less of the structure take it
        // as long as what they do not know is 0.
        Err(Errno::NOSYS) if cgroup.is_none() => clone_without_clone3(flags)?,
        other => other?,
    };
    let (for_parent, for_child) = ends;
    if pid == 0 {
        let guard = ExitGuard;
        drop(for_parent);
        let code = body(for_child);
        std::mem::forget(guard);
        exit_now(code);
    }
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::CHILD)?;
    // SAFETY: the kernel has just put a new descriptor there, which nothing else owns; -1 means it did not.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    // A child that nobody has waited for keeps its id.
    let pidfd = pidfd
        .or_else(|| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    Ok((Child { pid, pidfd }, for_parent))
}

/// Whether a process can be born into a cgroup: since Linux 5.7, unless a filter around us refuses `clone3(2)`.
pub(crate) fn has_clone_into_cgroup() -> bool {
    // No descriptor has this number: who knows the field says so, and who does not refuses a structure of this length.
    let mut arguments = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        cgroup: u64::MAX,
        ..CloneArgs::default()
    };
    // SAFETY: the kernel reads the structure, which outlives the call, and makes no process of it, for its last field cannot
    // be valid.
    let answer =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) };
    matches!(check(answer), Err(Errno::INVAL | Errno::BADF))
}

/// An address as the kernel's structures hold it.
fn address<T>(pointer: *mut T) -> u64 {
    pointer as u64
}

/// The same through `clone(2)`, without a pidfd.
fn clone_without_clone3(flags: u64) -> Result<libc::c_long, Errno> {
    let signal = if flags & CLONE_PARENT == 0 {
        EXIT_SIGNAL
    } else {
        0
    };
    // SAFETY: as for clone3 above; no pointer is passed.
    check(unsafe { libc::syscall(libc::SYS_clone, flags | signal, 0, 0, 0, 0) })
}

/// Ends the process at once, without running exit handlers: those belong to the parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Null-terminated pointers to C strings, for exec.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([null()])
        .collect()
}

/// Replaces this process by another program; returns only on failure.
pub(crate) fn execve(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: `path` is a C string, both arrays hold pointers to C strings that live until the call and end in null.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    super::last_errno()
}

unsafe extern "C" {
    /// The environment, environ(7). Nothing in this program changes it.
    static environ: *const *const libc::c_char;
}

/// Replaces this process by the program `file` refers to, in the same environment; returns only on failure.
pub(crate) fn fexecve(file: impl AsFd, arguments: &[CString]) -> Errno {
    let arguments = pointers(arguments);
    // SAFETY: the path is an empty C string, both arrays hold pointers to C strings that live until the call and end in null.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environ,
            libc::AT_EMPTY_PATH,
        )
    };
    super::last_errno()
}

/// Closes a forked process's own copy of a descriptor that its parent owns.
///
/// The copy keeps the open file alive, and with it a `flock(2)` that the parent took: it would stay locked for as long as
/// the child lives.
pub(crate) fn close_copy(raw: RawFd) {
    // SAFETY: the caller is a fork that leaves by exec or `_exit`: no destructor closes the number a second time.
    unsafe { libc::close(raw) };
}

/// Closes every descriptor from `number` on but one, which gets that number.
///
/// For a process that will do nothing more but use this descriptor and execute or end: whatever else it had open is gone,
/// whoever in the program thought to own it.
pub(crate) fn keep_only(fd: &OwnedFd, number: RawFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() != number {
        // SAFETY: what is open under that number is given up, as this function says.
        check(unsafe { libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC) }.into())?;
    }
    close_range(number + 1, RawFd::MAX)?;
    // SAFETY: it is open under this number, and nothing uses the number it had before.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on but those in `kept`.
///
/// For a process that is about to execute or end: whoever in the program thought to own the others must not use them any
/// more, and what is dropped of them must not run.
pub(crate) fn close_all_but(first: RawFd, kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut from = first;
    for raw in kept {
        close_range(from, raw - 1)?;
        from = from.max(raw + 1);
    }
    close_range(from, RawFd::MAX)
}

/// Closes a descriptor whose owner is a `static`, in a process that is about to execute and does not use it any more.
pub(crate) fn close_for_good(fd: BorrowedFd<'static>) {
    // SAFETY: nothing uses it after this, as said above, and what is static is not dropped.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Closes descriptors, by `close_range(2)` since Linux 5.9 and one by one before.
fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: what is open under these numbers is given up, as the callers say.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    match check(closed) {
        Ok(_) => Ok(()),
        // PERM: a filter that is in force already has not heard of the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            for raw in first..last.saturating_add(1).min(descriptor_limit()) {
                // SAFETY: as above; a number that is no descriptor gives EBADF.
                unsafe { libc::close(raw) };
            }
            Ok(())
        }
        Err(errno) => Err(errno),
    }
}

/// Descriptors are below this number.
fn descriptor_limit() -> RawFd {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(1 << 20);
    i32::try_from(limit.min(1 << 20)).unwrap_or(1 << 20)
}

/// Whether descriptor `raw` is open.
pub(crate) fn is_open(raw: RawFd) -> bool {
    // SAFETY: F_GETFD only asks; a number that is no descriptor gives EBADF.
    unsafe { libc::fcntl(raw, libc::F_GETFD) != -1 }
}

/// Whether descriptor `raw` is open and was inherited: what this program opens is close-on-exec.
pub(crate) fn is_inherited(raw: RawFd) -> bool {
    // SAFETY: F_GETFD only asks; a number that is no descriptor gives EBADF.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// Clears close-on-exec on a descriptor inherited from the caller.
pub(crate) fn keep_over_exec(raw: RawFd) -> Result<(), Errno> {
    // SAFETY: F_SETFD only changes a flag; a number that is no descriptor gives EBADF.
    check(unsafe { libc::fcntl(raw, libc::F_SETFD, 0) }.into()).map(drop)
}

/// Makes `fd` the standard input, output or error as well.
pub(crate) fn replace_stdio(fd: impl AsFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: the targets are 0, 1 and 2, which nothing in this program owns as an `OwnedFd`.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }.into()).map(drop)
}

/// Borrows one of the caller's descriptors by its number; EBADF when it is not open.
pub(crate) fn inherited_fd(raw: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    if !is_open(raw) {
        return Err(Errno::BADF);
    }
    // SAFETY: it is open, and inherited descriptors (stdio, LISTEN_FDS, --preserve-fds) are never closed by this program.
    Ok(unsafe { BorrowedFd::borrow_raw(raw) })
}

/// `unshare(2)`.
pub(crate) fn unshare(flags: u64) -> Result<(), Errno> {
    let flags = i32::try_from(flags).map_err(|_| Errno::INVAL)?;
    // SAFETY: only CLONE_NEW* flags are passed, never CLONE_FILES or CLONE_FS: no descriptor table is split.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// `setns(2)` with a namespace file (one flag or 0) or a pidfd (several flags, since Linux 5.8).
pub(crate) fn setns(fd: impl AsFd, flags: u64) -> Result<(), Errno> {
    let flags = i32::try_from(flags).map_err(|_| Errno::INVAL)?;
    // SAFETY: the call takes no pointers; there is one thread.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) }.into()).map(drop)
}

/// `prctl(2)` with up to four numbers.
fn prctl(option: libc::c_int, arguments: [libc::c_ulong; 4]) -> Result<libc::c_long, Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: every option used in this module takes numbers only.
    check(unsafe { libc::prctl(option, a, b, c, d) }.into())
}

/// Makes this process untraceable, and its `/proc` files root's, until it executes another program.
pub(crate) fn set_not_dumpable() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, [0; 4]).map(drop)
}

/// Takes [`set_not_dumpable`] back.
pub(crate) fn set_dumpable() -> Result<(), Errno> {
    prctl(libc::PR_SET_DUMPABLE, [1, 0, 0, 0]).map(drop)
}

/// Makes this process the reaper of its orphaned descendants.
pub(crate) fn set_child_subreaper() -> Result<(), Errno> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, [1, 0, 0, 0]).map(drop)
}

/// Whether a capability is in the bounding set; EINVAL for a number the kernel does not know.
pub(crate) fn bounding_set_has(capability: u8) -> Result<bool, Errno> {
    prctl(libc::PR_CAPBSET_READ, [capability.into(), 0, 0, 0]).map(|value| value == 1)
}

/// Takes a capability out of the bounding set.
pub(crate) fn drop_from_bounding_set(capability: u8) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, [capability.into(), 0, 0, 0]).map(drop)
}

/// Puts a capability into the ambient set.
pub(crate) fn raise_ambient(capability: u8) -> Result<(), Errno> {
    let raise = libc::PR_CAP_AMBIENT_RAISE.unsigned_abs().into();
    prctl(libc::PR_CAP_AMBIENT, [raise, capability.into(), 0, 0]).map(drop)
}

/// Empties the ambient set.
pub(crate) fn clear_ambient() -> Result<(), Errno> {
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs().into();
    prctl(libc::PR_CAP_AMBIENT, [clear, 0, 0, 0]).map(drop)
}

/// `struct __user_cap_header_struct` and two `struct __user_cap_data_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Sets the effective, permitted and inheritable sets of this thread, bit by capability number.
pub(crate) fn capset(effective: u64, permitted: u64, inheritable: u64) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapabilityHeader {
        version: VERSION_3,
        pid: 0,
    };
    let half = |set: u64, shift: u32| u32::try_from((set >> shift) & 0xffff_ffff).unwrap_or(0);
    let data = [
        half(effective, 0),
        half(permitted, 0),
        half(inheritable, 0),
        half(effective, 32),
        half(permitted, 32),
        half(inheritable, 32),
    ];
    // SAFETY: version 3 reads one header and two data structures of three 32-bit words each, which is what is passed.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Joins a new session keyring of this name and returns its serial number.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<libc::c_long, Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a C string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets the permission mask of a key.
pub(crate) fn set_key_permissions(key: libc::c_long, permissions: u32) -> Result<(), Errno> {
    const KEYCTL_SETPERM: libc::c_int = 5;
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, permissions) }).map(drop)
}

/// `personality(2)`.
pub(crate) fn personality(persona: libc::c_ulong) -> Result<(), Errno> {
    // SAFETY: the call takes a number only.
    check(unsafe { libc::personality(persona) }.into()).map(drop)
}

/// Makes the terminal `fd` the controlling terminal of this session.
pub(crate) fn set_controlling_terminal(fd: impl AsFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes a number only.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSCTTY as _, 0) }.into()).map(drop)
}
