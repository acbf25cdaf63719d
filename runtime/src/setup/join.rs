//! A further process in a running container: what `exec` does.
//!
//! The parent enters the pid namespace for its children ([`crate::sys::process::setns`]) and forks; the child enters
//! the rest through one pidfd of the init process, which cannot come to mean another process in between. The child is born
//! into the container's cgroup, or enters it by itself; where it cannot, the parent puts it there.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::{Pid, chroot, fchdir};

use super::Error;
use super::fault::{At, Fault, Step};
use super::finish::{self, Identity, Prepared};
use super::handshake::{self, FromInit, InitEnd, ParentEnd, ToInit};
use super::report::Report;
use super::{filter, outside, spawn};
use crate::cgroup::{Cgroup, Entry};
use crate::console::{self, Holder};
use crate::container::Container;
use crate::failure::{CallFailed, During};
use crate::namespace::Kind;
use crate::plan::process::ProcessPlan;
use crate::procfs::HostProc;
use crate::rootless;
use crate::seccomp::Program;
use crate::sys::process::{Child, clone_process, set_not_dumpable, setns};
use crate::sys::sched::{sched_getaffinity, sched_setaffinity};
use crate::told;

/// What is to be executed, and where.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The container.
    pub(crate) container: &'a Container,
    /// The process.
    pub(crate) process: &'a ProcessPlan,
    /// Cgroup to run it in instead of the container's own.
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// Where the terminal's master end goes.
    pub(crate) holder: Option<Holder<'a>>,
    /// How many descriptors after stdio it inherits.
    pub(crate) keep_fds: u32,
    /// Who is told which process it is.
    pub(crate) report: Report,
}

/// What the child needs.
struct Context<'a> {
    request: &'a Request<'a>,
    /// Init of the container; nothing on kernels without pidfds (before 5.3).
    pidfd: Option<&'a OwnedFd>,
    /// The files of its namespaces, for kernels without pidfds.
    files: Vec<(Kind, OwnedFd)>,
    seccomp: Option<Program>,
    /// The way into the cgroup, unless the parent has to put it there.
    entry: Option<Entry<'a>>,
    /// Whether it waits for the parent's word that it is there, and may set its limits.
    waits: bool,
    /// Whether the user namespace has been joined before the child was born.
    in_user_namespace: bool,
    /// The CPUs it is on until it enters the cgroup, where some were asked for; its own look might come after the entry.
    begins_on: Option<Vec<usize>>,
}

/// Starts the process; it has executed its program when this returns.
pub(crate) fn join(request: &Request<'_>) -> Result<Child, Error> {
    let container = request.container;
    let pidfd = container.pidfd();
    let files = match pidfd {
        Some(_) => Vec::new(),
        None => open_all(container)?,
    };
    // Looked at after they were opened: now the id cannot mean another process.
    if pidfd.is_none() && container.pid().is_none() {
        return Err(Error::Died);
    }
    let cgroup = request.cgroup.unwrap_or(&container.cgroup);
    // Initial CPUs are those it has before it enters the cgroup, final ones those it has afterwards; before Linux 6.2 the
    // entry makes it forget what it had. So we have to know when that is.
    let scheduling = &request.process.scheduling;
    let entry = match (&scheduling.initial_cpus, &scheduling.final_cpus) {
        (None, None) => cgroup.entry(),
        _ => None,
    };
    let mut context = Context {
        request,
        pidfd: pidfd.as_ref(),
        files,
        seccomp: container
            .record
            .has_filter
            .then(|| filter::load(&container.directory))
            .transpose()?,
        waits: entry.is_none()
            || container.record.namespaces & Kind::User.flag() != 0
                && !request.process.rlimits.is_empty(),
        entry,
        in_user_namespace: false,
        begins_on: None,
    };
    if let Some(program) = &context.seccomp {
        told::filter_flags(program);
    }
    let (child, channel) = start_on_initial_cpus(&mut context)?;
    told::born(child.pid);
    match attend(&context, cgroup, &child, &channel) {
        Ok(()) => Ok(child),
        Err(error) => {
            // What fails on a child that has ended is not what the user wants to know.
            let fault = channel.fault_now();
            spawn::end(&child);
            Err(fault.map_or(error, Error::Joining))
        }
    }
}

/// Starts the child on the CPUs that the process is to have until it enters the cgroup: it inherits them from this process,
/// which has its own again afterwards.
fn start_on_initial_cpus(context: &mut Context<'_>) -> Result<(Child, ParentEnd), Error> {
    let Some(cpus) = &context.request.process.scheduling.initial_cpus else {
        return start(context);
    };
    let own = sched_getaffinity().during("sched_getaffinity", "exec")?;
    sched_setaffinity(0, cpus.words()).during("sched_setaffinity", "initial CPU affinity")?;
    context.begins_on = sched_getaffinity().ok();
    let started = start(context);
    if let Err(errno) = sched_setaffinity(0, &own) {
        // Slower for the rest of its life, no more.
        log::debug!("sched_setaffinity: {errno}");
    }
    started
}

/// Sets the CPUs that the process has from now on: what was asked for; else whatever its cgroup allows. Where only initial
/// ones were asked for, the kernel decides: since Linux 6.2 they are kept.
fn set_final_cpus(context: &Context<'_>, child: &Child) -> Result<(), CallFailed> {
    let scheduling = &context.request.process.scheduling;
    match (&scheduling.final_cpus, &scheduling.initial_cpus) {
        (Some(cpus), _) => {
            let pid = child.pid.as_raw_nonzero().get();
            sched_setaffinity(pid, cpus.words())
                .during("sched_setaffinity", "final CPU affinity")?;
        }
        (None, Some(_)) => {}
        (None, None) => outside::allow_all_cpus(child.pid),
    }
    Ok(())
}

/// Starts the child in its cgroup; where it cannot be born there, outside.
///
/// Without privileges one enters the pid namespace only as root of the user namespace it belongs to. That is not for this
/// process, which has pid files and sockets of the caller to write to: an intermediate one does it.
fn start(context: &mut Context<'_>) -> Result<(Child, ParentEnd), Error> {
    let namespaces = context.request.container.record.namespaces;
    if namespaces & Kind::Pid.flag() != 0 {
        match enter_one(context, Kind::Pid) {
            Err(Errno::PERM) if namespaces & Kind::User.flag() != 0 => {
                context.in_user_namespace = true;
            }
            other => other.during("setns", "pid")?,
        }
    }
    let started = start_by_entry(context);
    if !spawn::is_refused_birth(&started, context.entry.as_ref()) {
        return started;
    }
    context.entry = None;
    context.waits = true;
    start_by_entry(context)
}

/// Starts the child by the way into the cgroup that there is.
fn start_by_entry(context: &Context<'_>) -> Result<(Child, ParentEnd), Error> {
    let cgroup = context.entry.as_ref().and_then(Entry::birth);
    let body = |channel: InitEnd| run(context, &channel);
    if context.in_user_namespace {
        let join = || {
            // Before the namespaces, because processes in them could trace this one; the child inherits it.
            set_not_dumpable().at(Step::User, "prctl", "")?;
            enter_one(context, Kind::User).at(Step::Namespace, "setns", "user")?;
            enter_one(context, Kind::Pid).at(Step::Namespace, "setns", "pid")
        };
        return spawn::spawn_after(join, ("exec", 0), cgroup, body);
    }
    let ends = handshake::pair().during("socketpair", "exec")?;
    Ok(clone_process(0, cgroup, ends, body).during("clone3", "exec")?)
}

/// The parent's side of the conversation.
fn attend(
    context: &Context<'_>,
    cgroup: &Cgroup,
    child: &Child,
    channel: &ParentEnd,
) -> Result<(), Error> {
    let request = context.request;
    let record = &request.container.record;
    let in_user_namespace = record.namespaces & Kind::User.flag() != 0;
    if context.entry.is_none()
        && let Err(error) = cgroup.join(child.pid)
    {
        let pid = child.pid.as_raw_nonzero().get();
        let error = Error::Join { pid, source: error };
        if request.cgroup.is_some() {
            // Asked for by name: that one or none.
            return Err(error);
        }
        let init = Pid::from_raw(record.pid);
        match init.map(|init| cgroup.join_beside(init, child.pid)) {
            Some(Ok(())) => {}
            _ if rootless::forgives(record.rootless) => {
                log::debug!("{}", crate::failure::chain(&error));
            }
            _ => return Err(error),
        }
    }
    set_final_cpus(context, child)?;
    if let Some(group) = &record.resctrl {
        group.add(child.pid.as_raw_nonzero().get())?;
    }
    if in_user_namespace {
        outside::raise_limits(child.pid, request.process);
    }
    if context.waits {
        channel
            .send(&ToInit::Joined(Vec::new()))
            .during("sendmsg", "exec")?;
    }
    outside::set_oom_score_adj(child.pid, request.process.oom_score_adj, in_user_namespace)?;
    let goes_ahead = request.report.is_empty();
    if goes_ahead {
        channel.send(&ToInit::Go).during("sendmsg", "exec")?;
    }
    loop {
        match channel.receive().during("recvmsg", "exec")? {
            Some(FromInit::Ready) => {
                told::exec_is_ready();
                break;
            }
            Some(FromInit::Listener(listener)) => {
                outside::pass_listener(&listener, record, channel, child)?;
            }
            Some(FromInit::ListenerAt(number)) => {
                let listener = outside::fetch(number, child)?;
                outside::pass_listener(&listener, record, channel, child)?;
            }
            Some(FromInit::Failed(fault)) => return Err(Error::Joining(fault)),
            Some(_) => return Err(Error::Protocol),
            None => return Err(Error::Died),
        }
    }
    request.report.tell(child)?;
    if !goes_ahead {
        channel.send(&ToInit::Go).during("sendmsg", "exec")?;
    }
    // The end of the conversation means that the program has been executed.
    match channel.receive().during("recvmsg", "exec")? {
        None => Ok(()),
        Some(FromInit::Failed(fault)) => Err(Error::Joining(fault)),
        Some(_) => Err(Error::Protocol),
    }
}

/// Opens the files of all namespaces of a container's init.
fn open_all(container: &Container) -> Result<Vec<(Kind, OwnedFd)>, CallFailed> {
    let record = &container.record;
    let open = |kind| {
        let file = open_namespace(record.pid, kind);
        Ok((kind, file.during("open", path_of(record.pid, kind))?))
    };
    Kind::among(record.namespaces).map(open).collect()
}

/// Opens the file of a process's namespace.
fn open_namespace(pid: i32, kind: Kind) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, path_of(pid, kind), flags, Mode::empty())
}

/// The file of a process's namespace.
fn path_of(pid: i32, kind: Kind) -> String {
    format!("/proc/{pid}/ns/{}", kind.file_name())
}

/// Enters one namespace of the container; the pid namespace: makes the children of this process be born there.
fn enter_one(context: &Context<'_>, kind: Kind) -> Result<(), Errno> {
    match context.pidfd.map(|pidfd| setns(pidfd, kind.flag())) {
        // Before Linux 5.8.
        Some(Err(Errno::INVAL)) => {
            let file = open_namespace(context.request.container.record.pid, kind)?;
            setns(&file, kind.flag())
        }
        Some(other) => other,
        None => {
            let mut files = context.files.iter();
            let found = files.find(|(known, _)| *known == kind);
            setns(&found.ok_or(Errno::INVAL)?.1, kind.flag())
        }
    }
}

/// The child; returns its exit code when it could not be set up.
fn run(context: &Context<'_>, channel: &InitEnd) -> i32 {
    log_beginning(context);
    let prepared = prepare(context, channel);
    let fault = match prepared {
        Ok(prepared) => {
            // Without the parent's word nobody wants the process any more.
            if channel.expect(&ToInit::Go).is_err() {
                return 255;
            }
            finish::execute(prepared, context.request.process, context.seccomp.as_ref())
        }
        Err(fault) => fault,
    };
    // The parent may be gone already; then nobody wants to know.
    let _ = channel.send_fault(&fault);
    255
}

/// Tells on which CPUs the process is when it begins.
fn log_beginning(context: &Context<'_>) {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    let mask = context.begins_on.clone().map_or_else(sched_getaffinity, Ok);
    if let Ok([first, ..]) = mask.as_deref() {
        told::affinity(*first);
    }
}

/// Everything up to the moment the parent is told that the process is ready.
fn prepare(context: &Context<'_>, channel: &InitEnd) -> Result<Prepared, Fault> {
    let request = context.request;
    // First of all: it is in the container's pid namespace already, where processes might look into this one.
    set_not_dumpable().at(Step::User, "prctl", "")?;
    finish::begin(context.entry.as_ref())?;
    let host_proc = HostProc::open().at(Step::PrepareRoot, "open", "/proc")?;
    rustix::process::setsid()
        .map(drop)
        .at(Step::Descriptors, "setsid", "")?;
    if context.waits {
        match channel.receive().at(Step::Handshake, "recvmsg", "")? {
            ToInit::Joined(_) => {}
            _ => return Err(Errno::PROTO).at(Step::Handshake, "recvmsg", ""),
        }
    }
    enter_namespaces(context)?;
    if !request.container.record.inherited.no_new_keyring {
        let id = &request.container.record.id;
        finish::join_keyring(id, request.process, &host_proc)?;
    }
    if let Some(holder) = request.holder {
        console::attach_new(holder, request.process.console_size, false)?;
    }
    finish::reopen_null()?;
    let identity = Identity {
        process: request.process,
        host_proc,
        seccomp: context.seccomp.as_ref(),
        keep_fds: request.keep_fds,
        start_fifo: None,
    };
    let prepared = finish::become_process(identity, channel)?;
    channel.send_ready().at(Step::Handshake, "sendmsg", "")?;
    Ok(prepared)
}

/// Joins every namespace of the container but the pid namespace, in which this process was born.
fn enter_namespaces(context: &Context<'_>) -> Result<(), Fault> {
    let flags = context.request.container.record.namespaces;
    let joined = if context.in_user_namespace {
        Kind::User.flag()
    } else {
        0
    };
    // A container in the caller's mount namespace has but another root there.
    let root = match flags & Kind::Mount.flag() {
        0 => Some(root_of(context).at(Step::Namespace, "open", "root")?),
        _ => None,
    };
    let rest = flags & !Kind::Pid.flag() & !joined;
    if rest != 0 {
        match context.pidfd.map(|pidfd| setns(pidfd, rest)) {
            None | Some(Err(Errno::INVAL)) => enter_one_by_one(context, rest)?,
            Some(other) => other.at(Step::Namespace, "setns", &names(rest))?,
        }
    }
    if let Some(root) = root {
        fchdir(&root).at(Step::Namespace, "fchdir", "root")?;
        chroot(c".").at(Step::Namespace, "chroot", "root")?;
    }
    if flags & Kind::User.flag() != 0 {
        finish::become_namespace_root()?;
        // Another user id can have set it back.
        set_not_dumpable().at(Step::UserNamespace, "prctl", "")?;
    }
    Ok(())
}

/// The root of the container's init.
fn root_of(context: &Context<'_>) -> Result<OwnedFd, Errno> {
    let container = context.request.container;
    let path = format!("/proc/{}/root", container.record.pid);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())?;
    // Looked at after it was opened: now the id cannot mean another process.
    container.pid().map(|_| root).ok_or(Errno::SRCH)
}

/// Joins namespaces by their files.
fn enter_one_by_one(context: &Context<'_>, flags: u64) -> Result<(), Fault> {
    let mut opened = Vec::new();
    if context.pidfd.is_some() {
        // All before the first is joined, because from in there they may not be found any more.
        for kind in Kind::among(flags) {
            let file = open_namespace(context.request.container.record.pid, kind);
            opened.push((kind, file.at(Step::Namespace, "open", kind.name())?));
        }
    }
    let files = opened.iter().chain(&context.files);
    for (kind, file) in files.filter(|(kind, _)| flags & kind.flag() != 0) {
        setns(file, kind.flag()).at(Step::Namespace, "setns", kind.name())?;
    }
    Ok(())
}

/// The names of namespaces by their flags, for errors.
fn names(flags: u64) -> String {
    let names: Vec<_> = Kind::among(flags).map(Kind::name).collect();
    names.join(",")
}
