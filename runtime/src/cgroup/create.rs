//! Making a cgroup: its directories in all hierarchies, limits and device rules, undone by itself when a step fails.
//!
//! A cgroup that is there already is used when it is empty and not frozen, as runc does; otherwise a second container
//! would get the first one's limits, or one that never starts. Nothing is read that a new cgroup cannot have.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::plan::{Devices, Plan, Target};
use super::setting::apply;
use super::{Cgroup, Error, Result, Unit, device, file, freezer, member};
use crate::rootless;
use crate::sys::bpf;

/// Access mode of cgroup directories, before the umask.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

impl Plan {
    /// Makes the cgroup. Undone by itself on error.
    ///
    /// Without the rights to do so (rootless, or root of a user namespace) a container that neither names a path nor
    /// asks for limits runs without a cgroup of its own: the result has no paths then.
    ///
    /// The systemd driver needs the container's first process for it (see [`Plan::needs_process`]); on failure that process
    /// is killed with what it has started.
    pub(crate) fn create(self, first: Option<Pid>) -> Result<Cgroup> {
        let (start, pid) = match (&self.start, first) {
            (Some(start), Some(pid)) => (start, pid),
            (Some(start), None) => return Err(Error::NoProcess(start.unit().name.clone())),
            (None, _) => return self.make_all(None),
        };
        for target in self
            .targets
            .iter()
            .filter(|target| target.node.directory.exists())
        {
            refuse_used(target)?;
        }
        start.run(pid)?;
        let unit = start.unit().clone();
        self.make_all(Some(unit.clone())).inspect_err(|_| {
            let cgroup = Cgroup::new(self.nodes().cloned().collect(), None).with_unit(Some(unit));
            // Before the unit is stopped, for systemd would first ask the process nicely.
            let undone = cgroup.kill_all(Signal::KILL).and_then(|()| cgroup.remove());
            if let Err(error) = undone {
                log::warn!(
                    "cannot remove the cgroup: {}",
                    crate::failure::chain(&error)
                );
            }
        })
    }

    /// Makes what there is not yet of the directories, and writes to them.
    fn make_all(&self, unit: Option<Unit>) -> Result<Cgroup> {
        let mut made = Made::default();
        let mut nodes = Vec::with_capacity(self.targets.len());
        let mut leaf = None;
        for target in &self.targets {
            match self.make(target, &mut made, unit.is_some()) {
                Ok(descriptor) => {
                    leaf = descriptor.or(leaf);
                    nodes.push(target.node.clone());
                }
                Err(error) if self.can_do_without(target, &error) => {
                    if let Some(controller) = target.limited_by() {
                        return Err(refused(target, controller.to_owned(), error));
                    }
                    log::debug!("no cgroup at {}: {error}", target.node.directory.display());
                }
                Err(error) => return Err(error),
            }
        }
        made.keep();
        Ok(Cgroup::new(nodes, leaf).with_unit(unit))
    }

    /// Whether the container may go without this part of its cgroup, which could not be had.
    fn can_do_without(&self, target: &Target, error: &Error) -> bool {
        // Beside v1 hierarchies the v2 tree only keeps processes together, and whoever delegates the others rarely thinks
        // of it.
        let beside_v1 = target.node.is_v2() && self.targets.len() > 1;
        (!self.explicit || beside_v1) && error.is_permission() && rootless::forgives(self.rootless)
    }

    /// Makes the directory in one hierarchy and sets what is to be set there. `started` is a cgroup that systemd has just
    /// made, with a process in it.
    fn make(&self, target: &Target, made: &mut Made, started: bool) -> Result<Option<OwnedFd>> {
        let new = made.directory(&target.node.directory, &target.mount_point)?;
        if !new && !started {
            refuse_used(target)?;
        }
        if target.node.is_v2() {
            self.unified(target, new)
        } else {
            self.legacy(target, new).map(|()| None)
        }
    }

    /// v1: one hierarchy.
    fn legacy(&self, target: &Target, new: bool) -> Result<()> {
        let directory = &target.node.directory;
        if target.node.has("cpuset") {
            // Before the other settings and before any process comes: a cpuset without CPUs takes none.
            inherit_cpuset(target)?;
            let others = target
                .settings
                .iter()
                .filter(|setting| setting.controller != "cpuset");
            apply(directory, others)?;
        } else {
            apply(directory, &target.settings)?;
        }
        let Devices::Lists(exceptions) = &target.devices else {
            return Ok(());
        };
        self.forgive(match new {
            true => exceptions.write_to_new(directory),
            false => exceptions.write_to_existing(directory),
        })
    }

    /// The v2 tree, whether it is alone or beside v1 hierarchies. Gives the open directory if something here needs it.
    fn unified(&self, target: &Target, new: bool) -> Result<Option<OwnedFd>> {
        if matches!(target.devices, Devices::Nothing) && target.settings.is_empty() {
            // Beside v1 hierarchies that do everything, processes are only kept together here.
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let leaf = rustix::fs::openat(CWD, &target.node.directory, flags, Mode::empty()).map_err(
            |source| Error::Open {
                path: target.node.directory.clone(),
                source,
            },
        )?;
        enable_controllers(target)?;
        apply(&target.node.directory, &target.settings)?;
        match &target.devices {
            Devices::Program(rules) => self.forgive(attach(&leaf, rules, target, new))?,
            Devices::NoProgram if !new => self.forgive(
                bpf::detach_device_programs(leaf.as_fd())
                    .map_err(|source| program_error(target, source)),
            )?,
            _ => {}
        }
        if let Some(uid) = self.owner {
            delegate(target, uid)?;
        }
        Ok(Some(leaf))
    }

    /// Device rules cannot be set from within a user namespace, where no device can be made either.
    fn forgive(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if error.is_permission() && rootless::forgives(self.rootless) => {
                log::debug!("device rules not set: {error}");
                Ok(())
            }
            result => result,
        }
    }
}

/// Limits without a cgroup to set them in.
fn refused(target: &Target, controller: String, source: Error) -> Error {
    let source = Box::new(source);
    match target.node.is_v2() {
        true => Error::RootlessUnified { source },
        false => Error::Rootless { controller, source },
    }
}

/// Directories made so far; dropped, it removes them again.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a directory and what is missing above it; tells whether it is new.
    fn directory(&mut self, path: &Path, mount_point: &Path) -> Result<bool> {
        match rustix::fs::mkdir(path, DIRECTORY_MODE) {
            Ok(()) => {
                self.0.push(path.to_owned());
                Ok(true)
            }
            Err(Errno::EXIST) => Ok(false),
            Err(Errno::NOENT) if path != mount_point => {
                let parent = path.parent().unwrap_or(mount_point);
                self.directory(parent, mount_point)?;
                self.directory(path, mount_point)
            }
            // A read-only or forbidden mount says so even of directories that are there.
            Err(source) if path == mount_point || !path.is_dir() => Err(Error::Make {
                path: path.to_owned(),
                source,
            }),
            Err(_) => Ok(false),
        }
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            if let Err(errno) = rustix::fs::rmdir(&path) {
                log::warn!("remove cgroup {}: {errno}", path.display());
            }
        }
    }
}

/// Refuses a cgroup that another container may be in.
fn refuse_used(target: &Target) -> Result<()> {
    // Controllers that nothing of a container depends on are often shared by hand-made set-ups.
    if target.node.is_v2() || target.node.has("devices") {
        let members = member::pids(&target.node.directory)?;
        if !members.is_empty() {
            return Err(Error::NotEmpty {
                path: target.node.directory.clone(),
                count: members.len(),
            });
        }
    }
    if (target.node.is_v2() || target.node.has("freezer"))
        && freezer::is_frozen(&target.node.directory, target.node.is_v2())?
    {
        return Err(Error::Frozen {
            path: target.node.directory.clone(),
        });
    }
    Ok(())
}

/// Writes the CPUs and memory nodes that were asked for, or else the parent's.
fn inherit_cpuset(target: &Target) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let path = target.node.directory.join(name);
        match target.settings.iter().find(|setting| setting.file == name) {
            Some(setting) => {
                if file::write_raw(&path, &setting.value).is_err() {
                    // The parent may be an empty one that this very path brought into being.
                    effective_cpuset(&target.mount_point, target.node.directory.parent(), name)?;
                    file::write(&path, &setting.value)?;
                }
            }
            None => {
                let value =
                    effective_cpuset(&target.mount_point, target.node.directory.parent(), name)?;
                if let Some(value) = value {
                    fill(&path, &value)?;
                }
            }
        }
    }
    Ok(())
}

/// A directory's CPUs or nodes, filled in from the levels above where it has none. `None` above the mount point.
fn effective_cpuset(
    mount_point: &Path,
    directory: Option<&Path>,
    name: &str,
) -> Result<Option<String>> {
    let Some(directory) = directory.filter(|directory| directory.starts_with(mount_point)) else {
        return Ok(None);
    };
    let path = directory.join(name);
    let value = file::read(&path)?;
    let value = value.trim();
    if !value.is_empty() {
        return Ok(Some(value.to_owned()));
    }
    let value = effective_cpuset(mount_point, directory.parent(), name)?;
    if let Some(value) = &value {
        file::write(&path, value)?;
    }
    Ok(value)
}

/// Writes a value to a file that has none; an existing cgroup keeps its own.
fn fill(path: &Path, value: &str) -> Result<()> {
    match file::write_raw(path, value) {
        // Children with narrower sets, or a wider set of its own: there is something already.
        Err(Errno::BUSY | Errno::ACCESS)
            if file::read(path).is_ok_and(|old| !old.trim().is_empty()) =>
        {
            Ok(())
        }
        Err(source) => Err(Error::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

fn attach(leaf: &OwnedFd, rules: &device::Rules, target: &Target, new: bool) -> Result<()> {
    let failed = |source| program_error(target, source);
    let code = device::program::compile(rules).ok_or_else(|| failed(Errno::TOOBIG))?;
    let program = bpf::load_device_program(&code).map_err(failed)?;
    match new {
        true => bpf::attach_device_program(leaf.as_fd(), program.as_fd()),
        false => bpf::replace_device_programs(leaf.as_fd(), program.as_fd()),
    }
    .map_err(failed)
}

fn program_error(target: &Target, source: Errno) -> Error {
    Error::DeviceProgram {
        path: target.node.directory.clone(),
        source,
    }
}

/// Makes every controller of the mount available in the cgroup, on the levels where it is not.
///
/// All of them rather than those with limits, so that figures can be had and a container may manage cgroups of its own, as
/// with runc. The levels above are written to only when the cgroup shows that something is missing.
fn enable_controllers(target: &Target) -> Result<()> {
    let available = file::read(&target.mount_point.join("cgroup.controllers"))?;
    let enabled = file::read(&target.node.directory.join("cgroup.controllers"))?;
    let missing = absent(&available, &enabled);
    if missing.is_empty() {
        return Ok(());
    }
    let request = missing
        .iter()
        .map(|name| format!("+{name}"))
        .collect::<Vec<_>>();
    let Ok(below) = target.node.directory.strip_prefix(&target.mount_point) else {
        return Ok(());
    };
    let mut level = target.mount_point.clone();
    for part in below.components() {
        let path = level.join("cgroup.subtree_control");
        if file::write_raw(&path, &request.join(" ")).is_err() {
            // One that cannot be had must not keep the others away; what is needed is missed where its limit is set.
            for one in &request {
                if let Err(errno) = file::write_raw(&path, one) {
                    log::debug!("write {one} to {}: {errno}", path.display());
                }
            }
        }
        level.push(part);
    }
    leave_invalid_state(target)
}

fn absent<'a>(available: &'a str, enabled: &str) -> Vec<&'a str> {
    let has = |name: &&str| enabled.split_whitespace().any(|enabled| enabled == *name);
    available
        .split_whitespace()
        .filter(|name| !has(name))
        .collect()
}

/// Below a threaded cgroup a new one is of no use before it is made threaded too; then only some controllers work.
fn leave_invalid_state(target: &Target) -> Result<()> {
    let path = target.node.directory.join("cgroup.type");
    // The root of the tree has no such file.
    let Ok(kind) = file::read_raw(&path) else {
        return Ok(());
    };
    let kind = kind.trim();
    let threaded = ["cpu", "cpuset", "perf_event", "pids"];
    let whole = target
        .settings
        .iter()
        .find(|setting| !threaded.contains(&&*setting.controller));
    match (kind, whole) {
        ("domain invalid", None) => file::write(&path, "threaded"),
        ("domain invalid" | "threaded" | "domain threaded", Some(setting)) => {
            Err(Error::Threaded {
                path: target.node.directory.clone(),
                state: kind.to_owned(),
                controller: setting.controller.clone().into_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Gives the directory and the files the kernel names for delegation to a user.
fn delegate(target: &Target, uid: u32) -> Result<()> {
    // Since Linux 4.15; before, these three.
    let names = file::read_raw(Path::new("/sys/kernel/cgroup/delegate"))
        .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".to_owned());
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    let directory = std::iter::once(target.node.directory.clone());
    for path in directory.chain(names.lines().map(|name| target.node.directory.join(name))) {
        match rustix::fs::chown(&path, owner, None) {
            // The list names files of controllers that are not enabled here.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source) => return Err(Error::Owner { path, uid, source }),
        }
    }
    Ok(())
}
