//! From a process of ours to a process of the container: labels, limits, identity, filter, exec.
//!
//! The same for the init process and for processes that join later. Runs with the container's file system as root. What
//! gives rights away comes as late as possible, what needs rights before that.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, accessat, fchown, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Rlimit, Uid, chdir, getcwd, setrlimit, umask};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::fault::{At, Fault, Step};
use super::handshake::{InitEnd, ToInit};
use crate::cgroup::Entry;
use crate::logging;
use crate::plan::process::ProcessPlan;
use crate::procfs::HostProc;
use crate::rootfs::mask::is_null;
use crate::seccomp::Program;
use crate::sys;

/// The search path when the environment has none, as Go's `exec.LookPath` sees it in runc: nothing is found.
const NO_PATH: &[u8] = b"";

/// Who the process becomes.
pub(crate) struct Identity<'a> {
    /// The plan.
    pub(crate) process: &'a ProcessPlan,
    /// The host's `/proc`, opened before the container's root was entered.
    pub(crate) host_proc: HostProc,
    /// The system call filter.
    pub(crate) seccomp: Option<&'a Program>,
    /// How many descriptors after stdio the program inherits.
    pub(crate) keep_fds: u32,
    /// Where to wait for `start`.
    pub(crate) start_fifo: Option<&'a OwnedFd>,
}

/// What is left to do: execute this.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Path of the program.
    pub(crate) program: CString,
    /// Its environment.
    pub(crate) env: Vec<CString>,
    /// Whether the filter is yet to be installed.
    pub(crate) filter_left: bool,
}

/// What every new process begins with: it enters its cgroup, if it can, and undoes what Rust's start-up, our parent and our
/// callers did to signals.
pub(crate) fn begin(entry: Option<&Entry<'_>>) -> Result<(), Fault> {
    if let Some(Err((directory, errno))) = entry.map(Entry::pass) {
        return Err(errno).at(Step::Cgroup, "write", &directory.to_string_lossy());
    }
    sys::signal::reset_all();
    sys::signal::SignalSet::empty()
        .block()
        .map(drop)
        .at(Step::Descriptors, "sigprocmask", "")
}

/// Takes the rights of root of the user namespace that this process is in.
pub(crate) fn become_namespace_root() -> Result<(), Fault> {
    let (user, group) = (Uid::ROOT, Gid::ROOT);
    match set_thread_res_gid(group, group, group) {
        // A namespace whose id 0 is not mapped.
        Err(Errno::INVAL) => {}
        other => other.at(Step::UserNamespace, "setresgid", "")?,
    }
    match set_thread_res_uid(user, user, user) {
        Err(Errno::INVAL) => Ok(()),
        other => other.at(Step::UserNamespace, "setresuid", ""),
    }
}

/// Leaves the caller's session keyring for the container's own, `_ses.<id>`.
pub(crate) fn join_keyring(
    id: &str,
    process: &ProcessPlan,
    host_proc: &HostProc,
) -> Result<(), Fault> {
    join_keyring_by_name(id, process, host_proc).map(drop)
}

/// The same for the first process, which makes the keyring, and lets those that join it search it: its user, or,
/// in a user namespace, where their user outside is another one than the maker's, everybody.
pub(crate) fn make_keyring(
    id: &str,
    process: &ProcessPlan,
    host_proc: &HostProc,
    user_namespace: bool,
) -> Result<(), Fault> {
    /// Everything for the possessor; view, read and link for the user.
    const DEFAULT: u32 = 0x3f13_0000;
    const USER_SEARCH: u32 = 0x8_0000;
    const OTHER_SEARCH: u32 = 0x8;
    if let Some(serial) = join_keyring_by_name(id, process, host_proc)? {
        let search = if user_namespace {
            OTHER_SEARCH
        } else {
            USER_SEARCH
        };
        // Another user's keyring of that name was joined; it is what its owner made it.
        let _ = sys::process::set_key_permissions(serial, DEFAULT | search);
    }
    Ok(())
}

/// Gives the keyring's serial number; none on a kernel without keyrings. One that is made gets the process's SELinux label.
fn join_keyring_by_name(
    id: &str,
    process: &ProcessPlan,
    host_proc: &HostProc,
) -> Result<Option<libc::c_long>, Fault> {
    if let Some(label) = &process.selinux_label {
        host_proc
            .write("thread-self/attr/keycreate", label.as_bytes())
            .at(Step::Label, "write", label)?;
    }
    let name = CString::new(format!("_ses.{id}"))
        .map_err(|_| Errno::INVAL)
        .at(Step::Keyring, "keyctl", id)?;
    match sys::process::join_session_keyring(&name) {
        Err(Errno::NOSYS) => Ok(None),
        other => other.at(Step::Keyring, "keyctl join", id).map(Some),
    }
}

/// Replaces standard streams that are the host's `/dev/null` by the container's.
pub(crate) fn reopen_null() -> Result<(), Fault> {
    let mut own = None;
    for stream in 0..3 {
        let Ok(fd) = sys::process::inherited_fd(stream) else {
            continue;
        };
        if !fstat(fd).is_ok_and(|stat| is_null(&stat)) {
            continue;
        }
        if own.is_none() {
            // A container without it keeps the host's.
            let flags = OFlags::RDWR
                | OFlags::NOFOLLOW
                | OFlags::NONBLOCK
                | OFlags::NOCTTY
                | OFlags::CLOEXEC;
            let Ok(null) = openat(CWD, c"/dev/null", flags, Mode::empty()) else {
                return Ok(());
            };
            if !fstat(&null).is_ok_and(|stat| is_null(&stat)) {
                return Err(Errno::NODEV).at(Step::Descriptors, "open", "/dev/null");
            }
            own = Some(null);
        }
        if let Some(null) = &own {
            sys::process::replace_stdio(null, stream).at(Step::Descriptors, "dup2", "/dev/null")?;
        }
    }
    Ok(())
}

/// Becomes the process of the plan, all but for exec.
pub(crate) fn become_process(identity: Identity<'_>, channel: &InitEnd) -> Result<Prepared, Fault> {
    let Identity {
        process,
        host_proc,
        seccomp,
        keep_fds,
        start_fifo,
    } = identity;
    apply_labels(process, &host_proc)?;
    // From here on nobody in the container may trace this process, which still has descriptors of the host; exec ends that.
    sys::process::set_not_dumpable().at(Step::User, "prctl", "")?;
    if process.no_new_privileges {
        set_no_new_privs(true).at(Step::User, "prctl", "no_new_privs")?;
    }
    set_limits(process)?;
    // Before a filter that may not know of the call.
    close_descriptors(
        keep_fds,
        &[
            Some(channel.fd()),
            start_fifo.map(AsFd::as_fd),
            Some(host_proc.fd()),
            logging::file(),
        ],
    )?;
    let mut filter_left = seccomp.is_some();
    if let Some(program) = seccomp
        && (!process.no_new_privileges || program.listener)
    {
        // Without no_new_privs a filter takes CAP_SYS_ADMIN, so it comes before the capabilities go; a listener has to be
        // handed over while the parent is there.
        install_filter(program, channel)?;
        filter_left = false;
    }
    process
        .capabilities
        .apply_bounding()
        .at(Step::Capabilities, "prctl", "")?;
    fix_stdio_owner(process.user.uid)?;
    let there = enter_working_directory(&process.cwd)?;
    change_user(process, &host_proc)?;
    drop(host_proc);
    // Another user id can have set it back, where fs.suid_dumpable is 1.
    sys::process::set_not_dumpable().at(Step::User, "prctl", "")?;
    if !there {
        chdir(&*process.cwd).at(Step::WorkingDirectory, "chdir", &process.cwd)?;
    }
    check_working_directory()?;
    let refused = process
        .capabilities
        .apply()
        .at(Step::Capabilities, "capset", "")?;
    for (name, errno) in refused {
        let why = crate::failure::text(errno);
        log::warn!("can't raise ambient capability {name}: {why}");
    }
    if let Some(mask) = process.user.umask {
        umask(Mode::from_raw_mode(mask));
    }
    // Before the first path of the container's is looked at that is followed wherever it leads.
    logging::stop();
    let env = complete_environment(process);
    let program = find_program(process)?;
    Ok(Prepared {
        program,
        env,
        filter_left,
    })
}

/// Installs the filter if that is yet to be done.
pub(crate) fn install_rest(
    prepared: &mut Prepared,
    seccomp: Option<&Program>,
) -> Result<(), Fault> {
    if let Some(filter) = seccomp.filter(|_| prepared.filter_left) {
        sys::seccomp::install(filter).at(Step::Seccomp, "seccomp", "")?;
        prepared.filter_left = false;
    }
    Ok(())
}

/// Executes the program; returns only when that fails.
pub(crate) fn execute(
    mut prepared: Prepared,
    process: &ProcessPlan,
    seccomp: Option<&Program>,
) -> Fault {
    if let Err(fault) = install_rest(&mut prepared, seccomp) {
        return fault;
    }
    let errno = sys::process::execve(&prepared.program, &process.args, &prepared.env);
    let subject = prepared.program.to_string_lossy().into_owned();
    Fault {
        step: Step::Exec,
        call: "execve".into(),
        subject,
        errno: errno.raw_os_error(),
    }
}

/// Installs the filter; hands the listener over if there is one.
fn install_filter(program: &Program, channel: &InitEnd) -> Result<(), Fault> {
    if let Some(listener) = sys::seccomp::install(program).at(Step::Seccomp, "seccomp", "")? {
        // Filtered already: a call that asks the listener waits for ever as long as nobody holds it.
        let sent = match program.sends_ask {
            true => channel.send_listener_number(listener.as_fd()),
            false => channel.send_listener(listener.as_fd()),
        };
        sent.at(Step::Seccomp, "sendmsg", "")?;
        channel
            .expect(&ToInit::ListenerTaken)
            .at(Step::Seccomp, "recvmsg", "")?;
    }
    Ok(())
}

/// Asks the security modules for the label that exec is to give.
fn apply_labels(process: &ProcessPlan, host_proc: &HostProc) -> Result<(), Fault> {
    if let Some(profile) = &process.apparmor_profile {
        let value = format!("exec {profile}");
        let written = match host_proc.write("thread-self/attr/apparmor/exec", value.as_bytes()) {
            // Before Linux 5.8, where the modules shared one file.
            Err(Errno::NOENT) => host_proc.write("thread-self/attr/exec", value.as_bytes()),
            other => other,
        };
        written.at(Step::AppArmor, "write", profile)?;
    }
    if let Some(label) = &process.selinux_label {
        host_proc
            .write("thread-self/attr/exec", label.as_bytes())
            .at(Step::Label, "write", label)?;
    }
    Ok(())
}

/// Resource limits, scheduling, memory policy, execution domain.
fn set_limits(process: &ProcessPlan) -> Result<(), Fault> {
    for limit in &process.rlimits {
        let value = Rlimit {
            current: finite(limit.soft),
            maximum: finite(limit.hard),
        };
        let number = limit.resource as u32;
        setrlimit(limit.resource, value).at(Step::Rlimit, "setrlimit", &number.to_string())?;
    }
    let scheduling = &process.scheduling;
    if let Some(scheduler) = &scheduling.scheduler {
        match sys::sched::sched_setattr(scheduler) {
            // See ERRORS in sched_setattr(2): the deadline policy wants every CPU.
            Err(Errno::PERM) if scheduling.confined => {
                return Err(Fault {
                    step: Step::Scheduling,
                    call: String::new(),
                    subject: "process scheduler can't be used together with AllowedCPUs".into(),
                    errno: 0,
                });
            }
            other => other.at(Step::Scheduling, "sched_setattr", "scheduler")?,
        }
    }
    if let Some((mode, nodes)) = &scheduling.memory_policy {
        let set = sys::sched::set_mempolicy(*mode, nodes.words());
        set.at(Step::Scheduling, "set_mempolicy", "memoryPolicy")?;
    }
    if let Some((class, level)) = scheduling.io_priority {
        sys::sched::ioprio_set(class, level).at(Step::Scheduling, "ioprio_set", "ioPriority")?;
    }
    if let Some(persona) = scheduling.personality {
        sys::process::personality(persona).at(Step::Scheduling, "personality", "personality")?;
    }
    Ok(())
}

/// A limit as rustix has it: `RLIM_INFINITY` is none.
fn finite(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

/// Gives pipes and terminals on the standard streams to the user, so that it can open them anew.
fn fix_stdio_owner(uid: u32) -> Result<(), Fault> {
    for stream in 0..3 {
        let Ok(fd) = sys::process::inherited_fd(stream) else {
            continue;
        };
        let Ok(stat) = fstat(fd) else { continue };
        if stat.st_uid == uid
            || is_null(&stat)
            || FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        {
            continue;
        }
        match fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None) {
            // Not ours to give, a read-only file system, or an id that has no meaning there.
            Ok(()) | Err(Errno::PERM | Errno::ROFS | Errno::INVAL | Errno::NOSYS) => {}
            Err(errno) => return Err(errno).at(Step::User, "fchown", "stdio"),
        }
    }
    Ok(())
}

/// Goes to the working directory with the rights of root, which the user may lack. False when root lacks them (a network
/// file system); then the user has to try.
fn enter_working_directory(cwd: &str) -> Result<bool, Fault> {
    match chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno).at(Step::WorkingDirectory, "chdir", cwd),
    }
}

/// Checks that the working directory is in the container: a path through a leaked descriptor could lead elsewhere
/// (CVE-2024-21626). The kernel then names it without a leading slash.
fn check_working_directory() -> Result<(), Fault> {
    let fault = || {
        Fault {
        step: Step::WorkingDirectory,
        call: String::new(),
        subject: "current working directory is outside of container mount namespace root -- possible container breakout \
                  detected"
            .into(),
        errno: 0,
    }
    };
    match getcwd(Vec::new()) {
        Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
        Ok(_) | Err(Errno::NOENT) => Err(fault()),
        // The user may not read it; but it is there.
        Err(_) => Ok(()),
    }
}

/// Changes groups and user. The permitted capabilities stay until the sets are applied.
fn change_user(process: &ProcessPlan, host_proc: &HostProc) -> Result<(), Fault> {
    set_keep_capabilities(true).at(Step::User, "prctl", "keepcaps")?;
    let user = &process.user;
    if !process.keep_groups {
        change_groups(&user.additional_gids, host_proc)?;
    }
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    match set_thread_res_gid(gid, gid, gid) {
        Err(Errno::INVAL) => return Err(unmapped("gid", user.gid)),
        other => other.at(Step::User, "setgid", &user.gid.to_string())?,
    }
    match set_thread_res_uid(uid, uid, uid) {
        Err(Errno::INVAL) => return Err(unmapped("uid", user.uid)),
        other => other.at(Step::User, "setuid", &user.uid.to_string())?,
    }
    set_keep_capabilities(false).at(Step::User, "prctl", "keepcaps")
}

/// Sets the supplementary groups.
fn change_groups(gids: &[u32], host_proc: &HostProc) -> Result<(), Fault> {
    let groups: Vec<Gid> = gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match set_thread_groups(&groups) {
        // A user namespace of somebody without privileges, where groups cannot be changed. As with runc, those asked for are
        // passed over: they come from an image's /etc/group, mostly.
        Err(Errno::PERM)
            if groups_are_frozen(host_proc) || groups.is_empty() && has_no_groups() =>
        {
            Ok(())
        }
        other => other.at(Step::User, "setgroups", ""),
    }
}

/// An id that its user namespace does not have; runc's words.
fn unmapped(kind: &str, id: u32) -> Fault {
    Fault {
        step: Step::User,
        call: String::new(),
        subject: format!("cannot set{kind} to unmapped {kind} {id} in user namespace"),
        errno: 0,
    }
}

/// Whether this process's user namespace is one in which nobody may change supplementary groups; see user_namespaces(7).
fn groups_are_frozen(host_proc: &HostProc) -> bool {
    host_proc
        .read("self/setgroups")
        .is_ok_and(|text| text.trim_ascii() == b"deny")
}

/// Whether this process has no supplementary groups.
fn has_no_groups() -> bool {
    rustix::process::getgroups().is_ok_and(|groups| groups.is_empty())
}

/// The environment, with the user's home directory when it does not name one.
fn complete_environment(process: &ProcessPlan) -> Vec<CString> {
    let mut env = process.env.clone();
    if process.variable("HOME").is_none_or(<[u8]>::is_empty) {
        env.retain(|entry| !entry.to_bytes().starts_with(b"HOME="));
        let home = home_directory(process.user.uid).unwrap_or_else(|| "/".into());
        // A home directory with a NUL in it cannot come out of a line of text that had none.
        env.push(CString::new(format!("HOME={home}")).unwrap_or_else(|_| c"HOME=/".into()));
    }
    env
}

/// A user's home directory according to the container's `/etc/passwd`.
///
/// The file is the container's: it may be a fifo, a device, or without end.
fn home_directory(uid: u32) -> Option<String> {
    const MOST: u64 = 1024 * 1024;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, c"/etc/passwd", flags, Mode::empty()).ok()?;
    if FileType::from_raw_mode(fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    std::fs::File::from(file)
        .take(MOST)
        .read_to_end(&mut text)
        .ok()?;
    find_home(&String::from_utf8_lossy(&text), uid)
}

/// The sixth field of the first line whose third field is the user id.
fn find_home(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()? == uid).then(|| fields.nth(2).map(str::to_owned))?
    })
}

/// Looks the program up, with the user's rights, so that a missing one is found before the container counts as created.
fn find_program(process: &ProcessPlan) -> Result<CString, Fault> {
    let name = process.args.first().map_or(c"", CString::as_c_str);
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        check_executable(name).at(Step::Program, "stat", &shown)?;
        return Ok(name.to_owned());
    }
    let mut refused = Errno::NOENT;
    for directory in process
        .variable("PATH")
        .unwrap_or(NO_PATH)
        .split(|byte| *byte == b':')
    {
        let directory = if directory.is_empty() {
            b"."
        } else {
            directory
        };
        let Ok(candidate) = CString::new([directory, b"/", name.to_bytes()].concat()) else {
            continue;
        };
        match check_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => refused = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(refused).at(Step::Program, "exec", &shown)
}

/// Whether a file can be executed: a regular file with permission to.
fn check_executable(path: &CStr) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ACCESS);
    }
    match accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS) {
        // Before Linux 5.8, or under a seccomp filter from before that; what is left to find exec itself will tell.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::NOSYS | Errno::PERM) => Err(Errno::ACCESS),
        other => other,
    }
}

/// Closes all descriptors but stdio, what the caller asked for, and `kept`: what ends with exec and leads nowhere, a socket,
/// a fifo, and what is closed before paths are looked up in the container.
///
/// That the others are close-on-exec is not enough: exec looks its paths up while they are still open, so a program, or a
/// script's interpreter, at `/proc/self/fd/N/../…` would be one of the host's (CVE-2024-21626).
fn close_descriptors(keep: u32, kept: &[Option<BorrowedFd<'_>>]) -> Result<(), Fault> {
    let first = 3 + i32::try_from(keep).unwrap_or(0);
    for raw in 3..first {
        sys::process::keep_over_exec(raw).at(Step::Descriptors, "fcntl", &raw.to_string())?;
    }
    let kept: Vec<_> = kept.iter().copied().flatten().collect();
    sys::process::close_all_but(first, &kept).at(Step::Descriptors, "close_range", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_directories() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n1000:x:7:7::/seven:\nbroken\nuser:x:1000:1000::/home/user:/bin/sh\n";
        assert_eq!(find_home(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find_home(passwd, 1000).as_deref(), Some("/home/user"));
        assert_eq!(find_home(passwd, 5), None);
    }
}
