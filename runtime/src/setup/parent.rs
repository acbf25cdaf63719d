//! The parent's half of creating a container.
//!
//! [`create`] is the list of steps. What can fail without leaving a trace comes first; from the moment the state
//! directory exists every failure is undone step by step, in reverse ([`Made::undo`]).

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::handshake::{FromInit, ParentEnd, ToInit};
use super::init::Context;
use super::source::{self, Users};
use super::{Error, filter, outside, spawn};
use crate::cgroup::{self, Cgroup, Hierarchies};
use crate::checkpoint;
use crate::clock;
use crate::failure::{CallFailed, During};
use crate::hook::{self, Point};
use crate::namespace::{self, Kind};
use crate::network_device::Moved;
use crate::plan::Plan;
use crate::plan::inherited::Inherited;
use crate::plan::mount::Kind as MountKind;
use crate::readiness::Relay;
use crate::resctrl;
use crate::rootfs::mount::source::{Form, Source};
use crate::seccomp::{self, Program};
use crate::seccomp_agent;
use crate::spec::linux::{IdMapping, Linux};
use crate::spec::{Hooks, Spec};
use crate::state::{self, Directory, Record, START_FIFO, Store};
use crate::sys::process::{Child, has_clone3};

/// What is to be created, and for whom.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Where state is kept.
    pub(crate) store: &'a Store,
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// The spec it was made from.
    pub(crate) spec: &'a Spec,
    /// Whether cgroup paths are systemd's.
    pub(crate) systemd_cgroup: bool,
    /// Whether the process waits for `start`.
    pub(crate) wait_for_start: bool,
    /// Where the terminal's master end goes.
    pub(crate) console_socket: Option<&'a OwnedFd>,
    /// Where the process id goes, and a pidfd.
    pub(crate) report: Report,
}

/// Who is told which process it is.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A file for its id.
    pub(crate) pid_file: Option<PathBuf>,
    /// A socket for a pidfd.
    pub(crate) pidfd_socket: Option<PathBuf>,
}

/// A container that has been created, its process about to execute or waiting for `start`.
#[derive(Debug)]
pub(crate) struct Created {
    /// Its directory, locked.
    pub(crate) directory: Directory,
    /// Its state.
    pub(crate) record: Record,
    /// Its process.
    pub(crate) child: Child,
    /// The conversation; it ends when the process executes.
    pub(crate) channel: ParentEnd,
    /// Where the process says that it is ready, if anybody wants to know and it has not to wait for `start`.
    pub(crate) relay: Option<Relay>,
}

/// What exists so far, to be undone when something fails.
pub(crate) struct Made {
    pub(crate) directory: Directory,
    pub(crate) cgroup: Option<Cgroup>,
    resctrl: Option<resctrl::Record>,
    pub(crate) child: Option<Child>,
    channel: Option<ParentEnd>,
    devices: Option<Moved>,
    /// For the poststop hooks, if there are any; from the moment the child exists.
    record: Option<Record>,
}

impl Made {
    /// A state directory and nothing else yet.
    pub(crate) fn of(directory: Directory) -> Self {
        Self {
            directory,
            cgroup: None,
            resctrl: None,
            child: None,
            channel: None,
            devices: None,
            record: None,
        }
    }

    /// Takes everything back. Failures are logged: the one that led here is what the user is told.
    pub(crate) fn undo(self) {
        // Before the process ends, and the devices with its namespace.
        if let Some(devices) = self.devices {
            devices.undo();
        }
        if let Some(child) = &self.child {
            spawn::end(child);
        }
        if let Some(cgroup) = &self.cgroup {
            // Hooks may have left something there.
            let removed = cgroup
                .kill_all(rustix::process::Signal::KILL)
                .and_then(|()| cgroup.remove());
            if let Err(error) = removed {
                log::warn!(
                    "cannot remove the cgroup: {}",
                    crate::failure::chain(&error)
                );
            }
        }
        if let Some(Err(error)) = self.resctrl.map(|group| group.remove()) {
            log::warn!("cannot remove the resctrl group: {error}");
        }
        // A create that fails ends like a container: runtime.md "Lifecycle", steps 3 to 13.
        if let Some(record) = &self.record {
            let hooks = record.hooks.iter().flat_map(|hooks| &hooks.poststop);
            let hooks: Vec<_> = hooks.cloned().collect();
            hook::run_all(Point::Poststop, &hooks, record, None);
        }
        if let Err(error) = self.directory.remove() {
            log::warn!("cannot remove the state directory: {error}");
        }
    }
}

/// What was worked out before anything was made.
pub(crate) struct Prepared {
    pub(crate) hierarchies: Hierarchies,
    pub(crate) cgroup: Option<cgroup::Plan>,
    resctrl: Option<resctrl::Plan>,
    pub(crate) seccomp: Option<Program>,
    pub(crate) hooks: Hooks,
    pub(crate) joins: Vec<(Kind, OwnedFd)>,
    users: Users,
}

/// Creates a container.
pub(crate) fn create(request: &Request<'_>) -> Result<Created, Error> {
    let prepared = prepare(request)?;
    let directory = request.store.create(&request.plan.id)?;
    let mut made = Made::of(directory);
    match carry_out(request, prepared, &mut made) {
        Ok((record, channel, child, relay)) => Ok(Created {
            directory: made.directory,
            record,
            child,
            channel,
            relay,
        }),
        Err(error) => {
            // What fails on a child that has ended is not what the user wants to know.
            let fault = made.channel.as_ref().and_then(ParentEnd::fault_now);
            made.undo();
            Err(fault.map_or(error, Error::Init))
        }
    }
}

/// Works out what can be worked out before anything is made.
pub(crate) fn prepare(request: &Request<'_>) -> Result<Prepared, Error> {
    let no_linux = Linux::default();
    let linux = request.spec.linux.as_ref().unwrap_or(&no_linux);
    let hierarchies = Hierarchies::detect()?;
    let path = Some(linux.cgroups_path.as_str()).filter(|path| !path.is_empty());
    let mut cgroup = cgroup::Plan::new(
        &hierarchies,
        &request.plan.id,
        path,
        linux.resources.as_ref(),
        request.systemd_cgroup.then_some(&request.spec.annotations),
    )?;
    if hierarchies.is_pure_v2() && manages_its_cgroup(request.plan) {
        cgroup.set_owner(host_id(&linux.uid_mappings, request.plan.process.user.uid));
    }
    for warning in cgroup.warnings() {
        log::warn!("{warning}");
    }
    let resctrl = linux.intel_rdt.as_ref().map(|asked| {
        let root = resctrl::root();
        resctrl::Plan::new(asked, root.as_deref(), &request.plan.id)
    });
    let seccomp = linux.seccomp.as_ref().map(seccomp::compile).transpose()?;
    if let Some(program) = &seccomp {
        log::debug!("seccomp filter flags: {}", program.flags);
    }
    let mut joins = Vec::new();
    for (kind, path) in request.plan.namespaces.joined() {
        let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .during("open", path)?;
        joins.push((kind, fd));
    }
    Ok(Prepared {
        hierarchies,
        cgroup: Some(cgroup),
        resctrl: resctrl.transpose()?,
        seccomp,
        hooks: request.spec.hooks.clone().unwrap_or_default(),
        joins,
        users: Users::new(&request.plan.root)?,
    })
}

/// Whether the container is to manage its cgroup itself: it sees nothing above it and may write to what it sees.
fn manages_its_cgroup(plan: &Plan) -> bool {
    let writable = |step: &crate::plan::mount::MountStep| {
        step.kind == MountKind::Cgroup && !step.is_read_only()
    };
    plan.namespaces.makes(Kind::Cgroup) && plan.root.mounts.iter().any(writable)
}

/// What an id inside is outside; the same where it is not mapped.
fn host_id(mappings: &[IdMapping], inside: u32) -> u32 {
    let outside = |mapping: &IdMapping| {
        let offset = inside.checked_sub(mapping.container_id)?;
        (offset < mapping.size).then(|| mapping.host_id.saturating_add(offset))
    };
    mappings.iter().find_map(outside).unwrap_or(inside)
}

/// Makes everything. What exists is noted in `made` at once.
fn carry_out(
    request: &Request<'_>,
    mut prepared: Prepared,
    made: &mut Made,
) -> Result<(Record, ParentEnd, Child, Option<Relay>), Error> {
    let plan = request.plan;
    let mut record = first_record(request, &prepared);
    let fifo = if request.wait_for_start {
        Some(make_fifo(&made.directory)?)
    } else {
        None
    };
    if let Some(directory) = &plan.extra.notify_directory {
        std::fs::create_dir(directory).during("mkdir", directory)?;
    }
    let Some(cgroup_plan) = prepared.cgroup.take() else {
        return Err(Error::Protocol);
    };
    let mut cgroup_plan = Some(cgroup_plan);
    if prepared.hierarchies.is_pure_v2()
        && !cgroup_plan
            .as_ref()
            .is_some_and(|plan| plan.needs_process())
    {
        // The child is born into it, so it comes first; and the record before it, for whoever has to clear up after us.
        made.directory.write(&record)?;
        made.cgroup = cgroup_plan
            .take()
            .map(|plan| plan.create(None))
            .transpose()?;
    }
    let born_inside = made
        .cgroup
        .as_ref()
        .is_some_and(|cgroup| cgroup.clone_into().is_some() && has_clone3());
    let needs_cgroup = plan.process.scheduling.needs_cgroup()
        || plan.namespaces.makes(Kind::Cgroup)
        || plan
            .root
            .mounts
            .iter()
            .any(|step| step.kind == MountKind::Cgroup);
    // Where it would not wait for its mappings either.
    let needs_limits = plan.namespaces.is_joined(Kind::User) && !plan.process.rlimits.is_empty();
    let context = Context {
        plan,
        hierarchies: &prepared.hierarchies,
        seccomp: prepared.seccomp.as_ref(),
        hooks: &prepared.hooks,
        record: &record,
        start_fifo: fifo.as_ref(),
        console_socket: request.console_socket,
        joins: &prepared.joins,
        users: &prepared.users,
        has_privileges: rustix::process::geteuid().is_root(),
        waits_for_cgroup: needs_cgroup && !born_inside || needs_limits,
        cgroup_paths: paths_of(&record.cgroup),
        locked_directory: made.directory.fd().as_raw_fd(),
    };
    let cgroup = made.cgroup.as_ref().filter(|_| born_inside);
    let (child, channel) = spawn::spawn(&context, cgroup.and_then(Cgroup::clone_into))?;
    made.channel = Some(channel);
    let pid = child.pid;
    super::tell_born(pid);
    let waits_for_cgroup = context.waits_for_cgroup;
    made.child = Some(child);
    record.pid = pid.as_raw_nonzero().get();
    record.start_time = state::start_time(pid).ok_or(Error::Died)?.0;
    made.directory.write(&record)?;
    if record.hooks.is_some() {
        made.record = Some(record.clone());
    }
    if let Some(program) = &prepared.seccomp {
        filter::store(&made.directory, program)?;
    }
    if plan.namespaces.has_user() {
        outside::raise_limits(pid, &plan.process);
    }
    if plan.namespaces.makes(Kind::User) {
        namespace::write_id_maps(pid, &plan.namespaces)?;
        let channel = made.channel.as_ref().ok_or(Error::Protocol)?;
        channel.send(&ToInit::Mapped).during("sendmsg", "init")?;
    }
    let mut inside = born_inside;
    if let Some(cgroup_plan) = cgroup_plan {
        inside = cgroup_plan.takes_process();
        made.cgroup = Some(cgroup_plan.create(Some(pid))?);
    }
    if let Some(cgroup) = &made.cgroup
        && cgroup.record() != record.cgroup
    {
        // A rootless container does without what its user may not make.
        record.cgroup = cgroup.record();
        made.directory.write(&record)?;
    }
    if let Some(cgroup) = made.cgroup.as_ref().filter(|_| !inside) {
        cgroup.join(pid)?;
    }
    // In its cgroup, whose CPUs then are its own.
    outside::allow_all_cpus(pid);
    if let Some(resctrl) = prepared.resctrl.take() {
        record.resctrl = Some(resctrl.apply(record.pid)?);
        made.resctrl.clone_from(&record.resctrl);
        made.directory.write(&record)?;
    }
    if !plan.network_devices.is_empty() {
        outside::move_network_devices(plan, &prepared.joins, pid, &mut made.devices)?;
    }
    let (Some(channel), Some(child)) = (made.channel.as_ref(), made.child.as_ref()) else {
        return Err(Error::Protocol);
    };
    if waits_for_cgroup {
        channel
            .send(&ToInit::Joined(paths_of(&record.cgroup)))
            .during("sendmsg", "init")?;
    }
    outside::set_oom_score_adj(pid, plan.process.oom_score_adj, plan.namespaces.has_user())?;
    converse(plan, &prepared, &record, channel, child)?;
    report(&request.report, child)?;
    let relay = match request.wait_for_start {
        true => None,
        false => Relay::listen(made.directory.path())?,
    };
    channel.send(&ToInit::Go).during("sendmsg", "init")?;
    match (made.child.take(), made.channel.take()) {
        (Some(child), Some(channel)) => Ok((record, channel, child, relay)),
        _ => Err(Error::Protocol),
    }
}

/// The state as it is before there is a process.
pub(crate) fn first_record(request: &Request<'_>, prepared: &Prepared) -> Record {
    let hooks = &prepared.hooks;
    let later = Hooks {
        poststart: hooks.poststart.clone(),
        poststop: hooks.poststop.clone(),
        ..Hooks::default()
    };
    Record {
        oci_version: request.spec.oci_version.clone(),
        id: request.plan.id.clone(),
        pid: 0,
        start_time: 0,
        bundle: request.plan.bundle.clone(),
        rootfs: request.plan.root.path.clone(),
        created: clock::now_with_nanoseconds(),
        annotations: request.spec.annotations.clone(),
        cgroup: prepared
            .cgroup
            .as_ref()
            .map(cgroup::Plan::record)
            .unwrap_or_default(),
        namespaces: request.plan.namespaces.all_flags(),
        joined_namespaces: request
            .plan
            .namespaces
            .joined()
            .fold(0, |flags, (kind, _)| flags | kind.flag()),
        hooks: Some(later).filter(|hooks| *hooks != Hooks::default()),
        has_filter: prepared.seccomp.is_some(),
        agent: request
            .spec
            .linux
            .as_ref()
            .and_then(|linux| linux.seccomp.as_ref())
            .and_then(seccomp_agent::of),
        resctrl: None,
        inherited: Inherited::new(request.spec, request.plan),
        external_descriptors: checkpoint::standard_streams(request.plan.process.terminal),
        owner: rustix::process::getuid().as_raw(),
    }
}

/// A cgroup's directories by controller, as messages carry them.
fn paths_of(record: &cgroup::Record) -> Vec<(String, String)> {
    let pairs = record.paths.iter();
    pairs
        .map(|(name, path)| (name.clone(), path.to_string_lossy().into_owned()))
        .collect()
}

/// Makes the fifo on which the process will wait, and opens both of its ends: so neither side ever blocks in open.
fn make_fifo(directory: &Directory) -> Result<OwnedFd, CallFailed> {
    let path = directory.path().join(START_FIFO);
    mknodat(
        directory.fd(),
        START_FIFO,
        FileType::Fifo,
        Mode::from_raw_mode(0o600),
        0,
    )
    .during("mkfifo", &path)?;
    openat(
        directory.fd(),
        START_FIFO,
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .during("open", &path)
}

/// Runs hooks and passes descriptors on until the process is ready.
fn converse(
    plan: &Plan,
    prepared: &Prepared,
    record: &Record,
    channel: &ParentEnd,
    child: &Child,
) -> Result<(), Error> {
    loop {
        match channel.receive().during("recvmsg", "init")? {
            Some(FromInit::Ready) => {
                log::debug!("init: closing the pipe to signal completion");
                return Ok(());
            }
            Some(FromInit::OpenSource(index, form)) => {
                let source = open_source(plan, prepared, record, (index, form))?;
                channel
                    .send(&ToInit::Source(source))
                    .during("sendmsg", "init")?;
            }
            Some(FromInit::RunHooks) => {
                hook::run(
                    Point::Prestart,
                    &prepared.hooks.prestart,
                    record,
                    Some(record.pid),
                )?;
                hook::run(
                    Point::CreateRuntime,
                    &prepared.hooks.create_runtime,
                    record,
                    Some(record.pid),
                )?;
                channel.send(&ToInit::HooksDone).during("sendmsg", "init")?;
            }
            Some(FromInit::Listener(listener)) => {
                outside::pass_listener(&listener, record, channel, child)?;
            }
            Some(FromInit::ListenerAt(number)) => {
                outside::pass_listener(&outside::fetch(number, child)?, record, channel, child)?;
            }
            Some(FromInit::Failed(fault)) => return Err(Error::Init(fault)),
            Some(FromInit::Forked(_)) => return Err(Error::Protocol),
            None => return Err(Error::Died),
        }
    }
}

/// Opens the source of a mount for the process.
fn open_source(
    plan: &Plan,
    prepared: &Prepared,
    record: &Record,
    (index, form): (usize, Form),
) -> Result<Source, Error> {
    let step = plan.root.mounts.get(index).ok_or(Error::Protocol)?;
    let pid = Pid::from_raw(record.pid).ok_or(Error::Protocol)?;
    let mut joins = prepared.joins.iter();
    let joined = joins.find(|(kind, _)| *kind == Kind::User);
    let joined = joined.map(|(_, fd)| fd.as_fd());
    source::open_inside(pid, (step, form), prepared.users.of(index), joined)
}

/// Tells whoever wants to know which process it is.
pub(crate) fn report(report: &Report, child: &Child) -> Result<(), Error> {
    if let Some(path) = &report.pid_file {
        write_pid_file(path, child.pid)?;
    }
    if let Some(path) = &report.pidfd_socket {
        let socket = crate::console::connect_socket(path)?;
        let pidfd = child
            .pidfd
            .as_ref()
            .ok_or(Errno::NOSYS)
            .during("pidfd_open", path)?;
        crate::console::send_descriptor(&socket, b"pidfd", pidfd).during("sendmsg", path)?;
    }
    Ok(())
}

/// Writes a pid file, so that whoever waits for it finds it complete: in a hidden file beside it first.
fn write_pid_file(path: &Path, pid: Pid) -> Result<(), CallFailed> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = || openat(CWD, &hidden, flags, Mode::from_raw_mode(0o666));
    let file = match open() {
        Err(Errno::EXIST) => {
            // Left by somebody who was killed before the rename.
            std::fs::remove_file(&hidden).during("unlink", &hidden)?;
            open()
        }
        other => other,
    };
    let file = file.during("open", &hidden)?;
    let written = File::from(file).write_all(pid.as_raw_nonzero().to_string().as_bytes());
    let renamed = written.and_then(|()| std::fs::rename(&hidden, path));
    if renamed.is_err() {
        // The failure is told; the half file must not stay.
        let _ = std::fs::remove_file(&hidden);
    }
    renamed.during("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside() {
        let mappings = [
            IdMapping {
                container_id: 0,
                host_id: 1000,
                size: 1,
            },
            IdMapping {
                container_id: 1,
                host_id: 100_000,
                size: 10,
            },
        ];
        assert_eq!(host_id(&mappings, 0), 1000);
        assert_eq!(host_id(&mappings, 5), 100_004);
        assert_eq!(host_id(&mappings, 11), 11);
    }

    #[test]
    fn pid_files_are_complete() {
        let path = std::env::temp_dir().join(format!("qrun-pid-{}", std::process::id()));
        let hidden = path.with_file_name(format!(".qrun-pid-{}", std::process::id()));
        std::fs::write(&hidden, "half").unwrap();
        write_pid_file(&path, rustix::process::getpid()).unwrap();
        assert!(!hidden.exists());
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            std::process::id().to_string()
        );
        std::fs::remove_file(&path).unwrap();
        assert!(write_pid_file(Path::new("/nowhere/pid"), rustix::process::getpid()).is_err());
    }
}
