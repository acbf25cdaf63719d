//! The parent's half of creating a container.
//!
//! [`create`] is the list of steps. What can fail without leaving a trace comes first; from the moment the state
//! directory exists every failure is undone step by step, in reverse ([`Made::undo`]).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};

use super::handshake::{ParentEnd, ToInit};
use super::init::Context;
use super::made::Made;
use super::report::Report;
use super::source::Users;
use super::{Error, converse, filter, outside, record, spawn};
use crate::cgroup::{self, Cgroup, Hierarchies};
use crate::cli::CgroupManager;
use crate::console::Holder;
use crate::failure::{CallFailed, During};
use crate::namespace::{Kind, mapping};
use crate::plan::Plan;
use crate::plan::mount::Kind as MountKind;
use crate::readiness::Relay;
use crate::resctrl;
use crate::rootfs::Uncovered;
use crate::rootless;
use crate::seccomp::{self, Program};
use crate::spec::linux::{IdMapping, Linux};
use crate::spec::{Hooks, Spec};
use crate::state::{self, Directory, Record, START_FIFO, Store};
use crate::sys::process::Child;
use crate::told;

/// What is to be created, and for whom.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// Where state is kept.
    pub(crate) store: &'a Store,
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// The spec it was made from.
    pub(crate) spec: &'a Spec,
    /// Who makes the cgroup.
    pub(crate) cgroup_manager: CgroupManager,
    /// Whether a lack of rights on cgroups is passed over.
    pub(crate) rootless: rootless::Choice,
    /// Whether the process waits for `start`.
    pub(crate) wait_for_start: bool,
    /// Where the terminal's master end goes.
    pub(crate) holder: Option<Holder<'a>>,
    /// Where the process id goes, and a pidfd.
    pub(crate) report: Report,
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

/// What was worked out before anything was made.
pub(crate) struct Prepared {
    pub(crate) hierarchies: Hierarchies,
    pub(crate) cgroup: Option<cgroup::Plan>,
    pub(crate) resctrl: Option<resctrl::Plan>,
    pub(crate) seccomp: Option<Program>,
    pub(crate) hooks: Hooks,
    pub(crate) joins: Vec<(Kind, OwnedFd)>,
    pub(super) users: Users,
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
    let linux = request.spec.linux.as_deref().unwrap_or(&no_linux);
    let manager = request.cgroup_manager;
    let hierarchies = match Hierarchies::detect() {
        _ if manager == CgroupManager::Disabled => Hierarchies::none(),
        Err(cgroup::Error::NoHierarchy) if rootless::forgives(request.rootless) => {
            Hierarchies::none()
        }
        other => other?,
    };
    let has_path = !linux.cgroups_path.is_empty() && manager != CgroupManager::Disabled;
    let mut cgroup = cgroup::Plan::new(
        &hierarchies,
        &request.plan.id,
        has_path.then_some(&linux.cgroups_path),
        linux.resources.as_ref(),
        (manager == CgroupManager::Systemd).then_some(&request.spec.annotations),
    )?;
    cgroup.set_rootless(request.rootless);
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
        told::filter_flags(program);
    }
    let mut joins = Vec::new();
    for (kind, path) in request.plan.namespaces.joined() {
        let fd = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .during("open", path)?;
        if kind == Kind::User {
            mapping::check_joined(&fd, &request.plan.namespaces)?;
        }
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
    let mut record = record::first(request, &prepared);
    let fifo = if request.wait_for_start {
        Some(make_fifo(&made.directory)?)
    } else {
        None
    };
    if let Some(directory) = &plan.extra.notify_directory {
        std::fs::create_dir(directory).during("mkdir", directory)?;
    }
    let mut cgroup_plan = prepared.cgroup.take();
    if let Some(cgroup_plan) = cgroup_plan.take_if(|plan| !plan.needs_process()) {
        // The child enters it first of all, so it comes before the child; and the record before it, for whoever has to
        // clear up after us.
        made.directory.write(&record)?;
        made.cgroup = Some(cgroup_plan.create(None)?);
    }
    let needs_cgroup = plan.process.scheduling.needs_cgroup()
        || plan.namespaces.makes(Kind::Cgroup)
        || plan
            .root
            .mounts
            .iter()
            .any(|step| step.kind == MountKind::Cgroup);
    // Where it would not wait for its mappings either.
    let needs_limits = plan.namespaces.is_joined(Kind::User) && !plan.process.rlimits.is_empty();
    let entry = made.cgroup.as_ref().and_then(Cgroup::entry);
    let mut context = Context {
        plan,
        hierarchies: &prepared.hierarchies,
        seccomp: prepared.seccomp.as_ref(),
        hooks: &prepared.hooks,
        record: &record,
        start_fifo: fifo.as_ref(),
        holder: request.holder,
        waits_for_cgroup: needs_cgroup && entry.is_none() || needs_limits,
        entry,
        joins: &prepared.joins,
        users: &prepared.users,
        has_privileges: !rootless::is_other_user(),
        cgroup_paths: match &made.cgroup {
            Some(cgroup) => record::paths_of(&cgroup.record()),
            None => Vec::new(),
        },
        locked_directory: made.directory.fd().as_raw_fd(),
    };
    made.root = Uncovered::look(&plan.root)?;
    let mut started = spawn::spawn(&context);
    if spawn::is_refused_birth(&started, context.entry.as_ref()) {
        context.entry = None;
        context.waits_for_cgroup = needs_cgroup || needs_limits;
        started = spawn::spawn(&context);
    }
    let (child, channel) = started?;
    let (mut inside, waits_for_cgroup) = (context.entry.is_some(), context.waits_for_cgroup);
    // The ways in are not needed any more.
    drop(context.entry.take());
    made.channel = Some(channel);
    let pid = child.pid;
    told::born(pid);
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
    // Without privileges one moves processes of one's own only, which this one is until it takes an id of its mappings.
    let joins_first = rootless::is_other_user();
    if !joins_first {
        map_ids(plan, made)?;
    }
    if let Some(cgroup_plan) = cgroup_plan {
        inside = cgroup_plan.takes_process();
        made.cgroup = Some(cgroup_plan.create(Some(pid))?);
    }
    if let Some(cgroup) = made.cgroup.as_mut().filter(|_| !inside) {
        cgroup.join_first(pid, request.rootless)?;
    }
    if let Some(cgroup) = &made.cgroup
        && cgroup.record() != record.cgroup
    {
        // A rootless container does without what its user may not have.
        record.cgroup = cgroup.record();
        made.directory.write(&record)?;
        warn_of_strays(cgroup, plan);
    }
    if joins_first {
        map_ids(plan, made)?;
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
            .send(&ToInit::Joined(record::paths_of(&record.cgroup)))
            .during("sendmsg", "init")?;
    }
    outside::set_oom_score_adj(pid, plan.process.oom_score_adj, plan.namespaces.has_user())?;
    let goes_ahead = !request.wait_for_start
        && request.report.is_empty()
        && plan.extra.notify_directory.is_none();
    if goes_ahead {
        channel.send(&ToInit::Go).during("sendmsg", "init")?;
    }
    converse::converse(plan, &prepared, &record, channel, child)?;
    request.report.tell(child)?;
    let relay = match request.wait_for_start {
        true => None,
        false => Relay::listen(made.directory.path())?,
    };
    if !goes_ahead {
        channel.send(&ToInit::Go).during("sendmsg", "init")?;
    }
    match (made.child.take(), made.channel.take()) {
        (Some(child), Some(channel)) => Ok((record, channel, child, relay)),
        _ => Err(Error::Protocol),
    }
}

/// Gives the container's user namespace its mappings, if it makes one, and tells the process, which waits for that.
fn map_ids(plan: &Plan, made: &Made) -> Result<(), Error> {
    if plan.namespaces.makes(Kind::User) {
        let (Some(child), Some(channel)) = (&made.child, &made.channel) else {
            return Err(Error::Protocol);
        };
        mapping::write(child.pid, &plan.namespaces)?;
        channel.send(&ToInit::Mapped).during("sendmsg", "init")?;
    }
    Ok(())
}

/// Tells of a container whose processes nothing keeps together; runc's words.
fn warn_of_strays(cgroup: &Cgroup, plan: &Plan) {
    if cgroup.is_unconfigured() && !plan.namespaces.makes(Kind::Pid) {
        log::warn!(
            "Creating a rootless container with no cgroup and no private pid namespace. Such configuration is strongly \
             discouraged (as it is impossible to properly kill all container's processes) and will result in an error in a \
             future version."
        );
    }
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
}
