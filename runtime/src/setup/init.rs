//! The container's half: what the new process does from its birth to exec.
//!
//! [`set_up`] is the list of steps. Order matters nearly everywhere; where it is not obvious the reason stands beside it.
//! Governing text: runtime-spec runtime.md "Lifecycle" and config.md.

use std::cell::{Cell, OnceCell};
use std::convert::Infallible;
use std::os::fd::{OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::umask;

use super::fault::{At, Fault, Step};
use super::finish::{self, Identity, Prepared};
use super::handshake::{InitEnd, ToInit};
use super::source::Users;
use super::spawn;
use crate::cgroup::{Entry, Hierarchies};
use crate::console::{self, Holder};
use crate::hook::{self, Point};
use crate::namespace::Kind;
use crate::plan::Plan;
use crate::procfs::HostProc;
use crate::rootfs::mount::source::{self, Form, Source};
use crate::rootfs::mount::{Later, Outside};
use crate::rootfs::path::{Missing, Root};
use crate::rootfs::{self, device, mask, mount, pivot};
use crate::seccomp::Program;
use crate::spec::Hooks;
use crate::state::Record;
use crate::sys;
use crate::sys::signal::SignalSet;

/// Everything the new process needs; made by the parent before the fork.
pub(crate) struct Context<'a> {
    /// What to do.
    pub(crate) plan: &'a Plan,
    /// The host's cgroup hierarchies, for the container's cgroup mount.
    pub(crate) hierarchies: &'a Hierarchies,
    /// The system call filter.
    pub(crate) seccomp: Option<&'a Program>,
    /// Hooks.
    pub(crate) hooks: &'a Hooks,
    /// State as hooks inside get it.
    pub(crate) record: &'a Record,
    /// Where to wait for `start`; `None` to go on at once.
    pub(crate) start_fifo: Option<&'a OwnedFd>,
    /// Where the terminal's master end goes.
    pub(crate) holder: Option<Holder<'a>>,
    /// The way into the cgroup, unless the parent puts the process there.
    pub(crate) entry: Option<Entry<'a>>,
    /// Namespaces to join.
    pub(crate) joins: &'a [(Kind, OwnedFd)],
    /// User namespaces of id-mapped mounts.
    pub(crate) users: &'a Users,
    /// Whether the caller has privileges that the process may lack.
    pub(crate) has_privileges: bool,
    /// Whether the parent says when the process is in its cgroup.
    pub(crate) waits_for_cgroup: bool,
    /// If not: the cgroup's directories by controller.
    pub(crate) cgroup_paths: Vec<(String, String)>,
    /// The parent's lock on the container's state, which this process must not go on holding.
    pub(crate) locked_directory: RawFd,
}

/// Runs the new process; returns the exit code when it could not be set up.
pub(crate) fn run(context: &Context<'_>, channel: InitEnd) -> i32 {
    sys::process::close_copy(context.locked_directory);
    match set_up(context, channel) {
        Ok(never) => match never {},
        Err((fault, channel)) => {
            // The parent may be gone already; then nobody wants to know.
            if let Some(channel) = channel {
                let _ = channel.send_fault(&fault);
            }
            1
        }
    }
}

/// All steps up to exec. A fault comes with the conversation it can be told in, or without when that is over.
fn set_up(context: &Context<'_>, channel: InitEnd) -> Result<Infallible, (Fault, Option<InitEnd>)> {
    let prepared = match prepare(context, &channel) {
        Ok(prepared) => prepared,
        Err(fault) => return Err((fault, Some(channel))),
    };
    if let Err(errno) = channel.expect(&ToInit::Go) {
        let fault = Fault {
            step: Step::Handshake,
            call: "recvmsg".into(),
            subject: String::new(),
            errno: errno.raw_os_error(),
        };
        return Err((fault, None));
    }
    match context.start_fifo {
        None => Err((start(context, prepared), Some(channel))),
        Some(fifo) => {
            drop(channel);
            Err((wait_and_start(context, prepared, fifo), None))
        }
    }
}

/// Everything up to the moment the parent is told that the container is ready.
fn prepare(context: &Context<'_>, channel: &InitEnd) -> Result<Prepared, Fault> {
    let plan = context.plan;
    finish::begin(context.entry.as_ref())?;
    // A session of its own: no terminal of the caller's, and its signals do not reach it.
    rustix::process::setsid()
        .map(drop)
        .or_else(ignore_leader)
        .at(Step::Descriptors, "setsid", "")?;
    let host_proc = HostProc::open().at(Step::PrepareRoot, "open", "/proc")?;
    // Before the mappings of a user namespace are there, because then the caller's rights on paths are gone.
    let place = match plan.namespaces.has_user() && plan.namespaces.makes(Kind::Mount) {
        true => Some(rootfs::open_place(&plan.root)?),
        false => None,
    };
    enter_namespaces(context, channel, &host_proc)?;
    if !plan.extra.no_new_keyring {
        let user_namespace = plan.namespaces.has_user();
        finish::make_keyring(&plan.id, &plan.process, &host_proc, user_namespace)?;
    }
    if plan.namespaces.makes(Kind::Network) {
        sys::net::set_loopback_up().at(Step::Network, "ioctl", "lo")?;
    }
    // So that modes given to mkdir and mknod are what they say.
    umask(Mode::empty());
    let gate = Gate {
        context,
        channel,
        paths: OnceCell::new(),
        passed: Cell::new(false),
    };
    let (root, later) = build_root(&gate, &host_proc, place)?;
    finish_tree(context, channel, &host_proc, &root, later)?;
    // What owns a descriptor goes before all that are left are closed by number.
    drop((root, gate));
    let identity = Identity {
        process: &plan.process,
        host_proc,
        seccomp: context.seccomp,
        keep_fds: keep_fds(plan),
        start_fifo: context.start_fifo,
    };
    let prepared = finish::become_process(identity, channel)?;
    if context.start_fifo.is_some() {
        // Before anybody may send one, because until they are looked for they would be lost.
        ending_signals()
            .block()
            .at(Step::Start, "sigprocmask", "")?;
    }
    channel.send_ready().at(Step::Handshake, "sendmsg", "")?;
    Ok(prepared)
}

/// Everything from the moment the tree is put together until it is as the process sees it.
fn finish_tree(
    context: &Context<'_>,
    channel: &InitEnd,
    host_proc: &HostProc,
    root: &Root,
    later: Later,
) -> Result<(), Fault> {
    let plan = context.plan;
    if !(context.hooks.prestart.is_empty() && context.hooks.create_runtime.is_empty()) {
        channel
            .send_run_hooks()
            .at(Step::Handshake, "sendmsg", "")?;
        channel
            .expect(&ToInit::HooksDone)
            .at(Step::Handshake, "recvmsg", "")?;
    }
    if !context.hooks.create_container.is_empty() {
        // Where runc runs them, though the specification names no directory.
        rustix::process::fchdir(root.fd()).at(Step::Pivot, "fchdir", "")?;
    }
    hook::run(
        Point::CreateContainer,
        &context.hooks.create_container,
        context.record,
        Some(own_pid()),
    )
    .map_err(hook_fault)?;
    pivot::change_root(root, &plan.root)?;
    rootfs::set_propagation(&plan.root)?;
    make_working_directory(root, &plan.process.cwd)?;
    if let Some(holder) = context.holder {
        console::attach_new(holder, plan.process.console_size, plan.root.populate_dev)?;
    }
    // After the last thing that is made in them: the mount point of the console.
    mount::finish(later)?;
    set_names(plan)?;
    set_sysctls(plan, host_proc)?;
    mask::make_read_only(root, &plan.root)?;
    mask::mask(root, &plan.root)?;
    finish::reopen_null()?;
    if plan.root.readonly {
        mask::make_root_read_only()?;
    }
    Ok(())
}

/// How many descriptors after stdio the program inherits.
fn keep_fds(plan: &Plan) -> u32 {
    plan.extra.preserve_fds + plan.extra.listen_fds
}

/// A process that leads a group already, as one run by hand in tests, cannot make a session and needs none.
fn ignore_leader(errno: Errno) -> Result<(), Errno> {
    if errno == Errno::PERM {
        Ok(())
    } else {
        Err(errno)
    }
}

/// Its own process id as its pid namespace has it.
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// A hook that failed inside, as a fault.
fn hook_fault(error: hook::Error) -> Fault {
    Fault {
        step: Step::Hook,
        call: String::new(),
        subject: crate::failure::chain(&error),
        errno: 0,
    }
}

/// Joins and makes the namespaces the process was not born into, and becomes root of a user namespace.
fn enter_namespaces(
    context: &Context<'_>,
    channel: &InitEnd,
    host_proc: &HostProc,
) -> Result<(), Fault> {
    for (kind, fd) in context
        .joins
        .iter()
        .filter(|(kind, _)| !spawn::joins_early(context, *kind))
    {
        sys::process::setns(fd, kind.flag()).at(Step::Namespace, "setns", kind.name())?;
    }
    let namespaces = &context.plan.namespaces;
    if namespaces.makes(Kind::Time) {
        make_time_namespace(&namespaces.time_offsets, host_proc)?;
    }
    if namespaces.makes(Kind::User) {
        channel
            .expect(&ToInit::Mapped)
            .at(Step::Handshake, "recvmsg", "")?;
    }
    if namespaces.has_user() {
        finish::become_namespace_root()?;
        if namespaces.makes(Kind::Ipc) {
            sys::process::unshare(Kind::Ipc.flag()).at(Step::Unshare, "unshare", "ipc")?;
        }
    }
    if namespaces.is_joined(Kind::User) {
        // Others are in there; and another user id can have set it back.
        sys::process::set_not_dumpable().at(Step::UserNamespace, "prctl", "")?;
    }
    Ok(())
}

/// Makes a time namespace. Its offsets can be set until the first process enters, which is this one, at once.
fn make_time_namespace(offsets: &str, host_proc: &HostProc) -> Result<(), Fault> {
    sys::process::unshare(sys::process::CLONE_NEWTIME).at(Step::Unshare, "unshare", "time")?;
    if !offsets.is_empty() {
        host_proc
            .write("self/timens_offsets", offsets.as_bytes())
            .at(Step::Unshare, "write timens_offsets", "time")?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let made = openat(
        CWD,
        c"/proc/self/ns/time_for_children",
        flags,
        Mode::empty(),
    )
    .at(Step::Unshare, "open", "time")?;
    sys::process::setns(&made, sys::process::CLONE_NEWTIME).at(Step::Unshare, "setns", "time")
}

/// What the process gets from its parent while it mounts.
struct Gate<'a> {
    context: &'a Context<'a>,
    channel: &'a InitEnd,
    /// The cgroup's directories, where they have to be waited for.
    paths: OnceCell<Vec<(String, String)>>,
    /// Whether [`Gate::pass`] has been passed.
    passed: Cell<bool>,
}

impl Gate<'_> {
    /// The point at which the process must be in its cgroup: passed once, by whoever needs it first. Waits for the parent's
    /// word if it has to be waited for, then makes the cgroup namespace.
    fn pass(&self) -> Result<&[(String, String)], Fault> {
        if self.context.waits_for_cgroup && self.paths.get().is_none() {
            match self.channel.receive().at(Step::Handshake, "recvmsg", "")? {
                ToInit::Joined(paths) => self.told(paths),
                _ => return Err(Errno::PROTO).at(Step::Handshake, "recvmsg", ""),
            }
        }
        if !self.passed.replace(true) && self.context.plan.namespaces.makes(Kind::Cgroup) {
            sys::process::unshare(Kind::Cgroup.flag()).at(Step::Unshare, "unshare", "cgroup")?;
        }
        Ok(self.paths.get().unwrap_or(&self.context.cgroup_paths))
    }

    /// Notes the cgroup's directories, which the parent tells once.
    fn told(&self, paths: Vec<(String, String)>) {
        self.paths.get_or_init(|| paths);
    }

    /// Opens the source of a bind mount; with a user namespace, by the parent where this process lacks the rights.
    fn open_source(&self, index: usize, form: Form) -> Result<Source, Fault> {
        let plan = self.context.plan;
        let step = &plan.root.mounts[index];
        let may_ask = plan.namespaces.has_user() && self.context.has_privileges;
        if may_ask && step.idmap.is_some() {
            return self.ask_for_source(index, form);
        }
        let source = match source::open_as(step, form) {
            Err(Errno::ACCESS) if may_ask => return self.ask_for_source(index, form),
            other => other.at(Step::Mount, "open_tree", &mount::subject(step))?,
        };
        if let (Some(idmap), Some(users)) = (&step.idmap, self.context.users.of(index)) {
            super::source::map_ids(&source, users, idmap, step)?;
        }
        Ok(source)
    }

    /// Has the parent open a source.
    fn ask_for_source(&self, index: usize, form: Form) -> Result<Source, Fault> {
        self.channel
            .send_open_source(index, form)
            .at(Step::Handshake, "sendmsg", "")?;
        loop {
            match self.channel.receive().at(Step::Handshake, "recvmsg", "")? {
                ToInit::Source(source) => return Ok(source),
                ToInit::Joined(paths) => self.told(paths),
                _ => return Err(Errno::PROTO).at(Step::Handshake, "recvmsg", ""),
            }
        }
    }
}

/// Puts the tree together: root, mounts, device files. In the caller's mount namespace the parent takes it out when
/// something fails: this process may have no right to, or no end of its own.
fn build_root(
    gate: &Gate<'_>,
    host_proc: &HostProc,
    place: Option<OwnedFd>,
) -> Result<(Root, Later), Fault> {
    let context = gate.context;
    let plan = &context.plan.root;
    let root = rootfs::prepare(plan, place)?;
    let outside = Outside {
        host_proc,
        hierarchies: context.hierarchies,
        own_cgroup_namespace: context.plan.namespaces.contains(Kind::Cgroup),
        join: &|| gate.pass(),
        source: &|index, form| gate.open_source(index, form),
    };
    let later = mount::mount_all(&root, &plan.mounts, &outside)?;
    if plan.populate_dev {
        device::populate(&root, plan)?;
    }
    gate.pass()?;
    Ok((root, later))
}

/// Makes the working directory if the rootfs lacks it, as runc does. Within the root: no link leads out, those of
/// `/proc/self/fd` included.
fn make_working_directory(root: &Root, cwd: &str) -> Result<(), Fault> {
    match root.resolve(cwd) {
        Err(Errno::NOENT) => {
            root.ensure(cwd, Missing::Directory)
                .map(drop)
                .at(Step::WorkingDirectory, "mkdir", cwd)
        }
        // Others are found, and told, when the process goes there.
        _ => Ok(()),
    }
}

/// Sets host and domain name.
fn set_names(plan: &Plan) -> Result<(), Fault> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).at(Step::Hostname, "sethostname", name)?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).at(Step::Hostname, "setdomainname", name)?;
    }
    Ok(())
}

/// Sets kernel parameters: through the host's `/proc`, which the container cannot have tampered with. The kernel shows
/// everyone the parameters of their own namespaces there. Where the host's is read-only, as in a container, the
/// container's own is taken after a check.
fn set_sysctls(plan: &Plan, host_proc: &HostProc) -> Result<(), Fault> {
    for (name, value) in &plan.sysctl {
        let path = format!("sys/{name}");
        let written = match host_proc.write(&path, value.as_bytes()) {
            Err(Errno::ROFS | Errno::XDEV | Errno::ACCESS) => write_to_own_proc(&path, value),
            other => other,
        };
        written.at(Step::Sysctl, "write", &format!("{name}={value}"))?;
    }
    Ok(())
}

/// Writes below the container's `/proc`, if it is one.
fn write_to_own_proc(path: &str, value: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    HostProc::check(openat(CWD, c"/proc", flags, Mode::empty())?)?.write(path, value.as_bytes())
}

/// Waits for `start`, then takes the last steps. Returns only when something fails, after having told `start`.
fn wait_and_start(context: &Context<'_>, prepared: Prepared, fifo: &OwnedFd) -> Fault {
    // While it waits, the process holds nothing of the host but the fifo; the lock of the state directory goes too.
    let number = i32::try_from(3 + keep_fds(context.plan)).unwrap_or(3);
    let kept = match sys::process::keep_only(fifo, number).at(Step::Start, "dup3", "exec.fifo") {
        Ok(kept) => kept,
        Err(fault) => return fault,
    };
    if context.plan.extra.rootless {
        // Only so can its owner join it before the start. It has nothing of the host any more.
        let _ = sys::process::set_dumpable();
    }
    let fault = match wait_for_word(&kept) {
        Ok(()) => start(context, prepared),
        Err(fault) => fault,
    };
    // Nobody may be there to read it any more.
    let _ = rustix::io::write(&kept, &fault.encode());
    fault
}

/// The signals that end a program, and a process that waits for `start`.
fn ending_signals() -> SignalSet {
    SignalSet::of(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM])
}

/// Blocks until `start` writes to the fifo.
///
/// The signals that end a program end this process too. As the first one of a pid namespace, which the kernel shields from
/// signals it has no handler for, it has to see to that itself: they have been blocked, and are let through in the end.
fn wait_for_word(fifo: &OwnedFd) -> Result<(), Fault> {
    let ending = ending_signals();
    let signals = ending.descriptor().at(Step::Start, "signalfd", "")?;
    let mut watched = [
        PollFd::new(fifo, PollFlags::IN),
        PollFd::new(&signals, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut watched, None)).at(Step::Start, "poll", "exec.fifo")?;
    if !watched[1].revents().is_empty() {
        // As a shell counts; nobody is told more of a process that was told to end.
        let signal = ending.wait(Some(0)).unwrap_or(libc::SIGTERM);
        sys::process::exit_now(128 + signal);
    }
    rustix::io::retry_on_intr(|| rustix::io::read(fifo, &mut [0]))
        .map(drop)
        .at(Step::Start, "read", "exec.fifo")?;
    SignalSet::empty()
        .block()
        .map(drop)
        .at(Step::Start, "sigprocmask", "")
}

/// The last steps: hooks, filter, exec. Returns only when they fail.
fn start(context: &Context<'_>, mut prepared: Prepared) -> Fault {
    // Hooks in the container are filtered as it is.
    if !context.hooks.start_container.is_empty()
        && let Err(fault) = finish::install_rest(&mut prepared, context.seccomp)
    {
        return fault;
    }
    // One without an environment gets the container's, as with runc.
    match hook::run_within(
        &prepared.env,
        Point::StartContainer,
        &context.hooks.start_container,
        context.record,
        Some(own_pid()),
    ) {
        Err(error) => hook_fault(error),
        Ok(()) => finish::execute(prepared, &context.plan.process, context.seccomp),
    }
}
