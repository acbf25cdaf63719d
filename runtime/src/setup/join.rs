//! A further process in a running container: what `exec` does.
//!
//! The parent enters the pid namespace for its children ([`crate::sys::process::setns`]) and forks; the child enters
//! the rest through one pidfd of the init process, which cannot come to mean another process in between. On cgroup v2 the
//! child is born into the container's cgroup; on v1 the parent puts it there while it joins.

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use super::Error;
use super::fault::{At, Fault, Step};
use super::finish::{self, Identity, Prepared};
use super::handshake::{self, FromInit, InitEnd, ParentEnd, ToInit};
use super::parent::{self, Report};
use super::{filter, spawn};
use crate::cgroup::Cgroup;
use crate::console;
use crate::container::Container;
use crate::failure::During;
use crate::namespace::Kind;
use crate::plan::process::ProcessPlan;
use crate::procfs::HostProc;
use crate::rootless;
use crate::seccomp::Program;
use crate::seccomp_agent;
use crate::sys::process::{Child, clone_process, set_not_dumpable, setns};

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
    pub(crate) console_socket: Option<&'a OwnedFd>,
    /// Whether it gets the container's session keyring.
    pub(crate) keyring: bool,
    /// How many descriptors after stdio it inherits.
    pub(crate) keep_fds: u32,
    /// Who is told which process it is.
    pub(crate) report: Report,
}

/// What the child needs.
struct Context<'a> {
    request: &'a Request<'a>,
    /// Init of the container.
    pidfd: &'a OwnedFd,
    /// Its namespaces one by one, for kernels where a pidfd does not do (before 5.8).
    files: Vec<(Kind, PathBuf)>,
    seccomp: Option<Program>,
    waits_for_cgroup: bool,
    /// Whether the user namespace has been joined before the child was born.
    in_user_namespace: bool,
}

/// Starts the process; it has executed its program when this returns.
pub(crate) fn join(request: &Request<'_>) -> Result<Child, Error> {
    let container = request.container;
    let pidfd = container.pidfd().ok_or(Error::Died)?;
    let cgroup = request.cgroup.unwrap_or(&container.cgroup);
    let born_inside = cgroup.clone_into();
    let mut context = Context {
        request,
        pidfd: &pidfd,
        files: namespace_files(container),
        seccomp: container
            .record
            .has_filter
            .then(|| filter::load(&container.directory))
            .transpose()?,
        waits_for_cgroup: born_inside.is_none(),
        in_user_namespace: false,
    };
    let (child, channel) = start(&mut context, born_inside)?;
    match attend(&context, cgroup, &child, &channel) {
        Ok(()) => Ok(child),
        Err(error) => {
            // What fails on a child that has ended is not what the user wants to know.
            let fault = channel.fault_now();
            spawn::end(&child);
            Err(fault.map_or(error, Error::Init))
        }
    }
}

/// Starts the child.
///
/// Without privileges one enters the pid namespace only as root of the user namespace it belongs to. That is not for this
/// process, which has pid files and sockets of the caller to write to: an intermediate one does it.
fn start(
    context: &mut Context<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Child, ParentEnd), Error> {
    let namespaces = context.request.container.record.namespaces;
    if namespaces & Kind::Pid.flag() != 0 {
        match enter_pid_namespace(context) {
            Err(Errno::PERM) if namespaces & Kind::User.flag() != 0 => {
                context.in_user_namespace = true;
                let context = &*context;
                let join = || {
                    // Before the namespaces, because processes in them could trace this one; the child inherits it.
                    set_not_dumpable().at(Step::User, "prctl", "")?;
                    setns(context.pidfd, Kind::User.flag()).at(Step::Namespace, "setns", "user")?;
                    enter_pid_namespace(context).at(Step::Namespace, "setns", "pid")
                };
                return spawn::spawn_after(join, 0, cgroup, |channel| run(context, &channel));
            }
            other => other.during("setns", "pid")?,
        }
    }
    let ends = || handshake::pair().during("socketpair", "exec");
    let started = match clone_process(0, cgroup, ends()?, |channel| run(context, &channel)) {
        // The container's cgroup has children and takes no processes of its own any more; or the caller may not move any there.
        Err(Errno::BUSY | Errno::ACCESS) if cgroup.is_some() => {
            context.waits_for_cgroup = true;
            clone_process(0, None, ends()?, |channel| run(context, &channel))
        }
        other => other,
    };
    Ok(started.during("clone3", "exec")?)
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
    if context.waits_for_cgroup {
        if let Err(error) = cgroup.join(child.pid) {
            match join_cgroup_of_init(record.pid, child) {
                Err(()) if request.cgroup.is_none() && rootless::forgives(record.rootless) => {
                    log::debug!("process not added to the container's cgroup: {error}");
                }
                other => other.map_err(|()| error)?,
            }
        }
        channel
            .send(&ToInit::Joined(Vec::new()))
            .during("sendmsg", "exec")?;
    }
    let in_user_namespace = record.namespaces & Kind::User.flag() != 0;
    parent::set_oom_score_adj(child.pid, request.process.oom_score_adj, in_user_namespace)?;
    loop {
        match channel.receive().during("recvmsg", "exec")? {
            Some(FromInit::Ready) => break,
            Some(FromInit::Listener(listener)) => {
                let pid = child.pid.as_raw_nonzero().get();
                seccomp_agent::hand_over(listener.as_fd(), record, pid)?;
                channel
                    .send(&ToInit::ListenerTaken)
                    .during("sendmsg", "exec")?;
            }
            Some(FromInit::Failed(fault)) => return Err(Error::Init(fault)),
            Some(_) => return Err(Error::Protocol),
            None => return Err(Error::Died),
        }
    }
    parent::report(&request.report, child)?;
    channel.send(&ToInit::Go).during("sendmsg", "exec")?;
    // The end of the conversation means that the program has been executed.
    match channel.receive().during("recvmsg", "exec")? {
        None => Ok(()),
        Some(FromInit::Failed(fault)) => Err(Error::Init(fault)),
        Some(_) => Err(Error::Protocol),
    }
}

/// The files of the namespaces of a container's init.
fn namespace_files(container: &Container) -> Vec<(Kind, PathBuf)> {
    let name = |kind: Kind| match kind {
        Kind::Network => "net",
        Kind::Mount => "mnt",
        other => other.name(),
    };
    let record = &container.record;
    let own = Kind::ALL
        .into_iter()
        .filter(|kind| record.namespaces & kind.flag() != 0);
    own.map(|kind| {
        (
            kind,
            PathBuf::from(format!("/proc/{}/ns/{}", record.pid, name(kind))),
        )
    })
    .collect()
}

/// Makes the children of this process be born in the container's pid namespace.
fn enter_pid_namespace(context: &Context<'_>) -> Result<(), Errno> {
    match setns(context.pidfd, Kind::Pid.flag()) {
        Err(Errno::INVAL) => {
            let (_, path) = context
                .files
                .iter()
                .find(|(kind, _)| *kind == Kind::Pid)
                .ok_or(Errno::INVAL)?;
            let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            setns(&file, Kind::Pid.flag())
        }
        other => other,
    }
}

/// Puts the child where the init process is, when the container's cgroup takes no process: on cgroup v2 a container that
/// manages cgroups itself has moved its processes down.
fn join_cgroup_of_init(init: i32, child: &Child) -> Result<(), ()> {
    let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).map_err(drop)?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or(())?;
    let procs = Path::new("/sys/fs/cgroup")
        .join(path.trim_start_matches('/'))
        .join("cgroup.procs");
    std::fs::write(procs, child.pid.as_raw_nonzero().to_string()).map_err(drop)
}

/// The child; returns its exit code when it could not be set up.
fn run(context: &Context<'_>, channel: &InitEnd) -> i32 {
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

/// Everything up to the moment the parent is told that the process is ready.
fn prepare(context: &Context<'_>, channel: &InitEnd) -> Result<Prepared, Fault> {
    let request = context.request;
    finish::reset_signals()?;
    // In the container's pid namespace already, where processes might look into this one.
    set_not_dumpable().at(Step::User, "prctl", "")?;
    let host_proc = HostProc::open().at(Step::PrepareRoot, "open", "/proc")?;
    rustix::process::setsid()
        .map(drop)
        .at(Step::Descriptors, "setsid", "")?;
    if context.waits_for_cgroup {
        match channel.receive().at(Step::Handshake, "recvmsg", "")? {
            ToInit::Joined(_) => {}
            _ => return Err(Errno::PROTO).at(Step::Handshake, "recvmsg", ""),
        }
    }
    enter_namespaces(context)?;
    if request.keyring {
        finish::join_keyring(&request.container.record.id)?;
    }
    if let Some(socket) = request.console_socket {
        console::attach_new(socket, request.process.console_size, false)?;
    }
    finish::reopen_null()?;
    let identity = Identity {
        process: request.process,
        host_proc,
        seccomp: context.seccomp.as_ref(),
        keep_fds: request.keep_fds,
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
    let rest = flags & !Kind::Pid.flag() & !joined;
    if rest != 0 {
        match setns(context.pidfd, rest) {
            Err(Errno::INVAL) => enter_one_by_one(context, rest)?,
            other => other.at(Step::Namespace, "setns", &names(rest))?,
        }
    }
    if flags & Kind::User.flag() != 0 {
        finish::become_namespace_root()?;
        // Another user id can have set it back.
        set_not_dumpable().at(Step::UserNamespace, "prctl", "")?;
    }
    Ok(())
}

/// The same by the files of the namespaces.
fn enter_one_by_one(context: &Context<'_>, flags: u64) -> Result<(), Fault> {
    let mut open = Vec::new();
    for (kind, path) in context
        .files
        .iter()
        .filter(|(kind, _)| flags & kind.flag() != 0)
    {
        let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        open.push((*kind, file.at(Step::Namespace, "open", kind.name())?));
    }
    for (kind, file) in &open {
        setns(file, kind.flag()).at(Step::Namespace, "setns", kind.name())?;
    }
    Ok(())
}

/// The names of namespaces by their flags, for errors.
fn names(flags: u64) -> String {
    let mut names = String::new();
    for kind in Kind::ALL
        .into_iter()
        .filter(|kind| flags & kind.flag() != 0)
    {
        // Writing to a string does not fail.
        let _ = write!(
            names,
            "{}{}",
            if names.is_empty() { "" } else { "," },
            kind.name()
        );
    }
    names
}
