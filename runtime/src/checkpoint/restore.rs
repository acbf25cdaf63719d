//! Making a container of saved processes.
//!
//! [`restore`] is the list of steps. As at a create the state directory comes first and everything after it is undone when
//! something fails. criu runs in the container's cgroup, so that the processes it makes are born there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::external::{self, NULL};
use super::image::Place;
use super::message::{CgroupMode, Kind as RequestKind, Options, Switch, Text};
use super::swrk::{Criu, Notice, Start};
use super::{
    Error, LEAST_VERSION, Wanted, config_file, explain, raw, standard_streams, work_directory,
};
use crate::cgroup::{self, Cgroup, Hierarchies};
use crate::cli::Parsed;
use crate::console;
use crate::failure::During;
use crate::hook::{self, Point};
use crate::namespace::Kind;
use crate::plan::Plan;
use crate::rootfs::{path::Root, restore as root_of};
use crate::setup::fault::{At, Step};
use crate::setup::made::Made;
use crate::setup::parent::{self, Prepared, Request};
use crate::setup::{Error as SetupError, filter, record};
use crate::state::{self, CRIU_ROOT, Directory, Record};
use crate::sys::process::{Child, unshare};

/// criu's log.
pub(super) const LOG: &str = "restore.log";
/// The first version in which another security label can be given.
const CHANGES_LABELS: u32 = 31_600;

/// What `restore` takes beyond what both commands take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RestoreWanted {
    /// What both take.
    pub(crate) common: Wanted,
    /// Security label of the processes instead of the saved one: `TYPE:LABEL`.
    pub(crate) lsm_profile: Option<String>,
    /// Security context of mounts that have one, instead of the saved one.
    pub(crate) lsm_mount_context: Option<String>,
}

impl RestoreWanted {
    /// Takes the options of a command line.
    pub(crate) fn parse(parsed: &Parsed) -> Result<Self, Error> {
        let text = |name| {
            parsed
                .value(name)
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        Ok(Self {
            common: Wanted::parse(parsed)?,
            lsm_profile: text("lsm-profile"),
            lsm_mount_context: text("lsm-mount-context"),
        })
    }
}

/// A container that has been restored; its processes run.
#[derive(Debug)]
pub(crate) struct Restored {
    /// Its directory, locked.
    pub(crate) directory: Directory,
    /// Its state.
    pub(crate) record: Record,
    /// Its init process.
    pub(crate) child: Child,
}

/// Restores a container from a checkpoint, with the mounts, namespaces, cgroups and hooks that the request's bundle has.
pub(crate) fn restore(request: &Request<'_>, wanted: &RestoreWanted) -> Result<Restored, Error> {
    let image = Place::open(&wanted.common.image)?;
    image.check()?;
    let streams = image.read_descriptors()?;
    let work = work_directory(&wanted.common)?;
    if let Some(work) = &work {
        work.check_work()?;
    }
    let prepared = parent::prepare(request)?;
    let mut made = Made::of(request.store.create(&request.plan.id)?);
    let mut restoring = Restoring {
        request,
        wanted,
        record: record::first(request, &prepared),
        image: &image,
        work: work.as_ref(),
        streams,
    };
    match restoring.carry_out(prepared, &mut made) {
        Ok(child) => Ok(Restored {
            directory: made.directory,
            record: restoring.record,
            child,
        }),
        Err(error) => {
            explain(&error, work.as_ref().unwrap_or(&image), LOG);
            made.undo();
            Err(error)
        }
    }
}

/// A restore that is under way.
struct Restoring<'a> {
    request: &'a Request<'a>,
    wanted: &'a RestoreWanted,
    record: Record,
    image: &'a Place,
    work: Option<&'a Place>,
    /// Streams of the saved processes that are pipes, by their names.
    streams: Vec<(u32, String)>,
}

impl Restoring<'_> {
    /// Makes everything. What exists is noted in `made` at once.
    fn carry_out(&mut self, mut prepared: Prepared, made: &mut Made) -> Result<Child, Error> {
        let plan = self.request.plan;
        // Before the cgroup, for whoever has to clear up after us.
        made.directory.write(&self.record)?;
        if let Some(directory) = &plan.extra.notify_directory {
            std::fs::create_dir(directory).during("mkdir", directory)?;
        }
        if let Some(program) = &prepared.seccomp {
            filter::store(&made.directory, program)?;
        }
        let place = make_place(&made.directory)?;
        let descriptors: Vec<OwnedFd> = prepared.joins.drain(..).map(|(_, fd)| fd).collect();
        let cgroup = prepared.cgroup.take().ok_or(Error::Protocol)?;
        let criu = self.start(cgroup, &descriptors, &place, made)?;
        let pid = criu.pid().ok_or(Error::Protocol)?;
        if let Some(resctrl) = &prepared.resctrl {
            // The processes that criu makes are born there, too.
            let applied = resctrl.apply(pid.as_raw_nonzero().get());
            self.record.resctrl = Some(applied.map_err(SetupError::from)?);
            made.resctrl.clone_from(&self.record.resctrl);
            made.directory.write(&self.record)?;
        }
        let image = self.image.as_seen_by(pid)?;
        let work = self.work.map(|work| work.as_seen_by(pid)).transpose()?;
        let mut options = self.wanted.common.options(LOG, &image, work.as_ref());
        self.describe(&mut options, &criu, &descriptors, &place)?;
        self.external_mounts(&mut options, &prepared.hierarchies)?;
        for (stream, name) in std::mem::take(&mut self.streams) {
            options.inherit(&name, stream);
        }
        for (controller, path) in cgroup::of_process(pid).map_err(SetupError::from)? {
            options.cgroup_root(&controller, &path);
        }
        let (directory, child) = (&made.directory, &mut made.child);
        criu.request(RequestKind::Restore, &options, |notice| {
            self.notice(notice, &prepared, directory, child)
        })?;
        // Nothing is mounted there but in a mount namespace that is gone.
        std::fs::remove_dir(&place).during("rmdir", &place)?;
        let child = made.child.as_ref().ok_or(Error::Protocol)?;
        self.request.report.tell(child)?;
        made.child.take().ok_or(Error::Protocol)
    }

    /// Makes the cgroup and starts criu in it.
    fn start(
        &mut self,
        cgroup_plan: cgroup::Plan,
        descriptors: &[OwnedFd],
        place: &Path,
        made: &mut Made,
    ) -> Result<Criu, Error> {
        let plan = self.request.plan;
        // A unit of systemd's cannot be without a process, others are there before it.
        let (early, late) = match cgroup_plan.needs_process() {
            true => (None, Some(cgroup_plan)),
            false => (Some(cgroup_plan), None),
        };
        if let Some(early) = early {
            let cgroup = early.create(None).map_err(SetupError::from)?;
            self.record.cgroup = cgroup.record();
            made.cgroup = Some(cgroup);
            made.directory.write(&self.record)?;
        }
        let cgroup = made.cgroup.as_ref();
        let entry = cgroup.and_then(Cgroup::entry);
        let keeps_cgroup_namespace = self.keeps_cgroup_namespace();
        let mut from_late = None;
        let started = Criu::start(
            &Start {
                own_streams: !plan.process.terminal,
                descriptors,
                entry: entry.as_ref(),
                inside: Some(&|| {
                    if keeps_cgroup_namespace {
                        let flag = Kind::Cgroup.flag();
                        unshare(flag).at(Step::Unshare, "unshare", Kind::Cgroup.name())?;
                    }
                    root_of::prepare(&plan.root, place)
                }),
            },
            LEAST_VERSION,
            |pid| {
                let outside = match late {
                    Some(late) => {
                        let inside = late.takes_process();
                        let made = late.create(Some(pid)).map_err(SetupError::from)?;
                        Some(&*from_late.insert(made)).filter(|_| !inside)
                    }
                    None => cgroup.filter(|_| entry.is_none()),
                };
                let joined = outside.map_or(Ok(()), |cgroup| cgroup.join(pid));
                Ok(joined.map_err(SetupError::from)?)
            },
        );
        drop(entry);
        if let Some(cgroup) = from_late {
            self.record.cgroup = cgroup.record();
            made.cgroup = Some(cgroup);
            made.directory.write(&self.record)?;
        }
        started
    }

    /// Whether criu has to be in the container's cgroup namespace from the beginning: it makes one only when it manages
    /// cgroups, and without one the container would see the host's.
    fn keeps_cgroup_namespace(&self) -> bool {
        self.wanted.common.cgroups == CgroupMode::Ignore
            && self.request.plan.namespaces.makes(Kind::Cgroup)
    }

    /// What criu is told.
    fn describe(
        &self,
        options: &mut Options,
        criu: &Criu,
        joins: &[OwnedFd],
        place: &Path,
    ) -> Result<(), Error> {
        options
            .text(Text::Root, &place.to_string_lossy())
            .switch(Switch::EvasiveDevices, true)
            .switch(Switch::RstSibling, true);
        if let Some(path) = config_file(&self.request.spec.annotations) {
            options.text(Text::ConfigFile, path);
        }
        for (text, option, value) in [
            (Text::LsmProfile, "lsm-profile", &self.wanted.lsm_profile),
            (
                Text::LsmMountContext,
                "lsm-mount-context",
                &self.wanted.lsm_mount_context,
            ),
        ] {
            let Some(value) = value else { continue };
            if criu.version() < CHANGES_LABELS {
                let text = format!("--{option} requires at least CRIU 3.16");
                return Err(Error::Option(text));
            }
            options.text(text, value);
        }
        namespaces(options, self.request.plan, joins)
    }

    /// Tells criu what to mount where the container has mounts that are not in the checkpoint.
    fn external_mounts(
        &self,
        options: &mut Options,
        hierarchies: &Hierarchies,
    ) -> Result<(), Error> {
        let plan = self.request.plan;
        let rootfs = Root::open(&plan.root.path).during("open", &plan.root.path)?;
        for mount in external::mounts(&rootfs, plan, hierarchies, &self.record.cgroup) {
            options.external_mount(&mount.destination, &mount.source);
        }
        if !plan.root.masked.is_empty() {
            options.external_mount(NULL, NULL);
        }
        Ok(())
    }

    /// Does what is due at a moment of the restore.
    fn notice(
        &mut self,
        notice: Notice<'_>,
        prepared: &Prepared,
        directory: &Directory,
        child: &mut Option<Child>,
    ) -> Result<(), Error> {
        match notice.moment {
            "setup-namespaces" => {
                let (hooks, pid) = (&prepared.hooks, Some(notice.pid));
                hook::run(Point::Prestart, &hooks.prestart, &self.record, pid)?;
                hook::run(
                    Point::CreateRuntime,
                    &hooks.create_runtime,
                    &self.record,
                    pid,
                )?;
            }
            "orphan-pts-master" => {
                let master = notice.descriptor.ok_or(Error::Protocol)?;
                let holder = self.request.holder.ok_or(Error::Terminal)?;
                console::send_descriptor(holder.socket(), b"/dev/ptmx", &master)
                    .during("sendmsg", "console socket")?;
            }
            "post-restore" => {
                let pid = Pid::from_raw(notice.pid).ok_or(Error::Protocol)?;
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
                // From here on there is something to be killed when the rest fails.
                *child = Some(Child { pid, pidfd });
                self.record.pid = notice.pid;
                self.record.start_time = state::start_time(pid).ok_or(SetupError::Died)?.0;
                self.record.namespaces |= check_namespaces(pid, self.request.plan)?;
                self.record.external_descriptors =
                    standard_streams(self.request.plan.process.terminal);
                directory.write(&self.record)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Makes the directory in which criu finds the root.
fn make_place(directory: &Directory) -> Result<PathBuf, Error> {
    let place = directory.path().join(CRIU_ROOT);
    std::fs::create_dir(&place).during("mkdir", &place)?;
    // criu compares it with what mountinfo says.
    Ok(place.canonicalize().during("realpath", &place)?)
}

/// Tells criu which namespaces are joined. `joins` are their files, in the order of the plan.
fn namespaces(options: &mut Options, plan: &Plan, joins: &[OwnedFd]) -> Result<(), Error> {
    for ((kind, path), fd) in plan.namespaces.joined().zip(joins) {
        match external::namespace_key(kind) {
            Some(key) => {
                options.inherit(key, raw(fd));
            }
            None if kind == Kind::Cgroup => return Err(Error::Namespace(kind.name())),
            None => {
                options.join_namespace(kind.file_name(), &path.to_string_lossy());
            }
        }
    }
    Ok(())
}

/// Checks that a process is in namespaces as the plan has them: new ones are not ours, and where it has none it is in
/// ours. Gives the flags of those that come on top: criu brings clocks back in a time namespace.
fn check_namespaces(pid: Pid, plan: &Plan) -> Result<u64, Error> {
    let inode = |process: &str, kind: Kind| {
        let path = format!("/proc/{process}/ns/{}", kind.file_name());
        match rustix::fs::stat(&*path) {
            // A kernel without this kind.
            Err(rustix::io::Errno::NOENT) => Ok(0),
            other => other.map(|stat| stat.st_ino).during("stat", &path),
        }
    };
    let process = pid.as_raw_nonzero().to_string();
    let mut more = 0;
    for kind in Kind::ALL {
        let apart = inode(&process, kind)? != inode("self", kind)?;
        if plan.namespaces.makes(kind) && !apart {
            return Err(Error::Foreign(format!(
                "shares the {} namespace",
                kind.name()
            )));
        }
        if !plan.namespaces.contains(kind) && apart {
            if kind != Kind::Time {
                return Err(Error::Foreign(format!("has a {} namespace", kind.name())));
            }
            more |= kind.flag();
        }
    }
    Ok(more)
}
