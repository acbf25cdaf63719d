//! Control groups: limits, freezing, killing as a whole, figures; on cgroup v1, v2 and hosts with both.
//!
//! In the order a container meets them: [`Hierarchies::detect`] looks at the host, [`Plan::new`] works out directories and
//! values without touching anything, [`Plan::create`] makes the cgroup, the init process is born in it or enters it by itself
//! ([`Cgroup::entry`]) or is put there ([`Cgroup::join`]), and a [`Record`] in state.json lets later commands take it up
//! again with [`Cgroup::open`]. Directories are made here, or by systemd where that is asked for ([`systemd`]).
//!
//! Specification: config-linux.md, "Control groups". Behaviour where the specification is silent follows runc.

mod create;
mod device;
mod entry;
mod file;
mod freezer;
mod hierarchy;
mod member;
mod oom;
mod plan;
mod remove;
mod setting;
mod stats;
mod systemd;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

pub(crate) use entry::Entry;
pub(crate) use hierarchy::{Hierarchies, Hierarchy, of_process};
pub(crate) use oom::{Heard, Watch};
pub(crate) use plan::Plan;
pub(crate) use stats::Stats;
pub(crate) use systemd::Unit;

use crate::rootless;
use crate::spec::resources::Resources;

/// `Result` of this module.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something with cgroups failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no cgroup hierarchy is mounted (--rootless=true goes without)")]
    NoHierarchy,
    #[error("cannot set {controller} limit: no mounted cgroup hierarchy has this controller")]
    NoController { controller: String },
    #[error("cannot set {file}: controller {controller:?} is not available in this cgroup")]
    ControllerMissing { controller: String, file: String },
    #[error("cannot set {controller} limit: container could not join or create cgroup")]
    Rootless {
        controller: String,
        source: Box<Error>,
    },
    #[error("rootless needs no limits + no cgrouppath when no permission is granted for cgroups")]
    RootlessUnified { source: Box<Error> },
    #[error("cannot toggle freezer: cgroups not configured for container")]
    NoFreezer,
    #[error("cgroups not configured for container")]
    NotConfigured,
    #[error("make cgroup {path}", path = path.display())]
    Make { path: PathBuf, source: Errno },
    #[error("open cgroup {path}", path = path.display())]
    Open { path: PathBuf, source: Errno },
    #[error("write {value:?} to {path}", path = path.display())]
    Write {
        path: PathBuf,
        value: String,
        source: Errno,
    },
    #[error("read {path}", path = path.display())]
    Read { path: PathBuf, source: Errno },
    #[error("{path} holds {content:?} where a number was expected", path = path.display())]
    Malformed { path: PathBuf, content: String },
    #[error("give {path} to user {uid}", path = path.display())]
    Owner {
        path: PathBuf,
        uid: u32,
        source: Errno,
    },
    #[error("container's cgroup is not empty: {count} process(es) found in {path}", path = path.display())]
    NotEmpty { path: PathBuf, count: usize },
    #[error("container's cgroup unexpectedly frozen: {path}", path = path.display())]
    Frozen { path: PathBuf },
    #[error("cgroup {path} is {state:?} and cannot have the {controller} controller", path = path.display())]
    Threaded {
        path: PathBuf,
        state: String,
        controller: String,
    },
    #[error("set device rules of cgroup {path}", path = path.display())]
    DeviceProgram { path: PathBuf, source: Errno },
    #[error("device rule {index}: access {access:?} has none of the letters r, w and m")]
    DeviceAccess { index: usize, access: String },
    #[error("device rule {index}: major or minor number out of range")]
    DeviceNumber { index: usize },
    #[error(
        "device rule {rule:?} makes an exception within {within:?}, which cgroup v1 cannot enforce"
    )]
    DeviceHole { rule: String, within: String },
    #[error(transparent)]
    Systemd(#[from] systemd::Error),
    #[error("invalid configuration: cannot use unified on cgroup v1")]
    UnifiedOnV1,
    #[error("unified resource {name:?} {problem}")]
    UnifiedName { name: String, problem: &'static str },
    #[error("the {bound_name} allowed cpu-shares is {bound}", bound_name = if *least { "minimum" } else { "maximum" })]
    Shares { least: bool, bound: u64 },
    #[error("memory {name} of {value} bytes: only -1 (no limit) may be negative")]
    NegativeMemory { name: &'static str, value: i64 },
    #[error("memory+swap limit ({swap}) should be >= memory limit ({limit})")]
    SwapBelowMemory { swap: i64, limit: i64 },
    #[error("unable to set swap limit without memory limit")]
    SwapWithoutMemory,
    #[error("invalid memory swappiness value: {0} (valid range is 0-100)")]
    Swappiness(u64),
    #[error("unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})")]
    MemoryInUse {
        limit: String,
        usage: u64,
        peak: u64,
    },
    #[error("rejecting {name} limit {limit} <= usage {usage}")]
    BelowUsage {
        name: &'static str,
        limit: u64,
        usage: u64,
    },
    #[error("cgroup {path} did not come to {event:?} in time", path = path.display())]
    Timeout { path: PathBuf, event: String },
    #[error("send a signal to process {pid}")]
    Kill { pid: i32, source: Errno },
    #[error("cgroup {path} still has processes {pids:?} after killing them", path = path.display())]
    StillAlive { path: PathBuf, pids: Vec<i32> },
    #[error("remove cgroups {paths:?}")]
    Left { paths: Vec<PathBuf>, source: Errno },
}

impl Error {
    /// Whether it is a lack of rights, in the wide sense that includes a read-only mount.
    fn is_permission(&self) -> bool {
        let source = match self {
            Self::Make { source, .. }
            | Self::Open { source, .. }
            | Self::Write { source, .. }
            | Self::Read { source, .. }
            | Self::DeviceProgram { source, .. } => *source,
            _ => return false,
        };
        matches!(source, Errno::PERM | Errno::ACCESS | Errno::ROFS)
    }
}

/// A container's cgroup, made by this process or taken up from its [`Record`].
#[derive(Debug)]
pub(crate) struct Cgroup {
    nodes: Vec<Node>,
    /// The directory in the v2 tree, opened when first needed.
    leaf: OnceCell<OwnedFd>,
    /// The unit it belongs to, with the systemd driver.
    unit: Option<Unit>,
}

/// Its directory in one hierarchy.
#[derive(Debug)]
struct Node {
    /// Controllers, `name=…`, or the empty string for v2.
    keys: Vec<String>,
    directory: PathBuf,
}

impl Node {
    fn new(keys: &[String], directory: &Path) -> Self {
        Self {
            keys: keys.to_vec(),
            directory: directory.to_owned(),
        }
    }

    fn is_v2(&self) -> bool {
        self.keys.iter().all(String::is_empty)
    }

    fn has(&self, controller: &str) -> bool {
        self.keys.iter().any(|key| key == controller)
    }
}

/// What state.json keeps of a cgroup: runc's `cgroup_paths`, from controller (empty for v2) to absolute directory, and among
/// them `unit`, which is no controller's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The unit, with the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<Unit>,
    /// Controller to directory.
    #[serde(flatten)]
    pub(crate) paths: BTreeMap<String, PathBuf>,
}

impl Cgroup {
    fn new(nodes: Vec<Node>, leaf: Option<OwnedFd>) -> Self {
        Self {
            nodes,
            leaf: leaf.map(OnceCell::from).unwrap_or_default(),
            unit: None,
        }
    }

    fn with_unit(mut self, unit: Option<Unit>) -> Self {
        self.unit = unit;
        self
    }

    /// Takes up a cgroup from its record; nothing is touched before it is used.
    pub(crate) fn open(record: &Record) -> Self {
        let mut nodes: Vec<Node> = Vec::with_capacity(record.paths.len());
        for (key, directory) in &record.paths {
            // Controllers that share a hierarchy share a directory.
            match nodes.iter_mut().find(|node| node.directory == *directory) {
                Some(node) => node.keys.push(key.clone()),
                None => nodes.push(Node::new(std::slice::from_ref(key), directory)),
            }
        }
        Self::new(nodes, None).with_unit(record.unit.clone())
    }

    /// What to keep in state.json.
    pub(crate) fn record(&self) -> Record {
        let pairs = self.nodes.iter().flat_map(|node| {
            node.keys
                .iter()
                .map(|key| (key.clone(), node.directory.clone()))
        });
        Record {
            paths: pairs.collect(),
            unit: self.unit.clone(),
        }
    }

    /// Whether the container has no cgroup of its own, as a rootless one without the rights for it.
    pub(crate) fn is_unconfigured(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether it is in a v2 tree and nothing else.
    pub(crate) fn is_pure_v2(&self) -> bool {
        matches!(self.nodes.as_slice(), [only] if only.is_v2())
    }

    /// Puts a process into the cgroup, in every hierarchy. The first write after an idle time may sleep for 4 to 12 ms (an
    /// RCU grace period in the kernel), so this is for where there is no [`Cgroup::entry`].
    pub(crate) fn join(&self, pid: Pid) -> Result<()> {
        if let (Some(unit), [node]) = (self.unit_of_user(), self.nodes.as_slice()) {
            return Ok(unit.attach(&node.directory, pid)?);
        }
        self.nodes
            .iter()
            .try_for_each(|node| member::join(&node.directory, pid))
    }

    /// Puts a process where another one is, for when the cgroup itself takes none: on v2 a container that manages its cgroup
    /// may have moved its processes down.
    pub(crate) fn join_beside(&self, other: Pid, pid: Pid) -> Result<()> {
        let path = hierarchy::unified_of(other)?.filter(|_| self.is_pure_v2());
        let hierarchies = Hierarchies::detect()?;
        let tree = hierarchies.list().iter().find(|it| it.is_v2());
        let (Some(tree), Some(path)) = (tree, path) else {
            return Err(Error::NotConfigured);
        };
        let directory = tree.mount_point.join(path.trim_start_matches('/'));
        member::join(&directory, pid)
    }

    /// Puts the first process of a container into the cgroup: on a hybrid host without the rights for the v2 tree it does without that.
    pub(crate) fn join_first(&mut self, pid: Pid, rootless: rootless::Choice) -> Result<()> {
        if self.unit_of_user().is_some() {
            return self.join(pid);
        }
        let several = self.nodes.len() > 1;
        let mut failed = None;
        self.nodes
            .retain(|node| match member::join(&node.directory, pid) {
                Ok(()) => true,
                Err(error)
                    if node.is_v2()
                        && several
                        && error.is_permission()
                        && rootless::forgives(rootless) =>
                {
                    log::debug!("not joined: {error}");
                    // Made by us or by nobody's business: it is empty.
                    let _ = rustix::fs::rmdir(&node.directory);
                    false
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    true
                }
            });
        failed.map_or(Ok(()), Err)
    }

    /// The unit, when it is one of the user's own systemd: then processes from outside of it are put there by systemd,
    /// because the user may not write to what is above both.
    fn unit_of_user(&self) -> Option<&Unit> {
        self.unit
            .as_ref()
            .filter(|unit| unit.user && self.is_pure_v2())
    }

    /// Changes limits. What is `None` or empty stays as it is; device rules always do, as with runc.
    pub(crate) fn update(&self, resources: &Resources) -> Result<()> {
        let pure_v2 = self.is_pure_v2();
        let mut resources = Cow::Borrowed(resources);
        if let [only] = self.nodes.as_slice()
            && pure_v2
        {
            resources = Cow::Owned(v2::current(&only.directory, &resources)?);
        }
        let mut targets: Vec<_> = self.nodes.iter().map(plan::Target::of).collect();
        if let Some(unit) = &self.unit {
            if let Some(directory) = self.path("cpu").filter(|_| !pure_v2) {
                v1::complete_quota(directory, resources.to_mut())?;
            }
            systemd::round_quota(resources.to_mut());
            // Checked before anything is changed.
            plan::distribute(&mut targets, pure_v2, &resources)?;
            self.update_unit(unit, &resources)?;
        } else {
            plan::distribute(&mut targets, pure_v2, &resources)?;
        }
        targets
            .iter()
            .try_for_each(|target| setting::apply(&target.directory, &target.settings))
    }

    /// On v1 systemd writes the device list anew with every change, beginning with "nothing", and nobody is to notice.
    fn update_unit(&self, unit: &Unit, resources: &Resources) -> Result<()> {
        let pause = !self.is_pure_v2() && self.freezer().is_ok() && !self.is_frozen()?;
        if pause {
            self.freeze()?;
        }
        let updated = unit.update(resources, self.is_pure_v2());
        if pause {
            self.thaw()?;
        }
        Ok(updated?)
    }

    /// The directory that freezing acts on, and whether it is a v2 one.
    fn freezer(&self) -> Result<(&Path, bool)> {
        let node = self
            .nodes
            .iter()
            .find(|node| node.has("freezer"))
            .or_else(|| {
                // On a hybrid host without the v1 controller the v2 tree can freeze too.
                self.nodes.iter().find(|node| node.is_v2())
            });
        node.map(|node| (node.directory.as_path(), node.is_v2()))
            .ok_or(Error::NoFreezer)
    }

    /// Stops every process in it; returns when all have stopped.
    pub(crate) fn freeze(&self) -> Result<()> {
        let (directory, v2) = self.freezer()?;
        freezer::freeze(directory, v2, freezer::PATIENCE)
    }

    /// Lets them run again.
    pub(crate) fn thaw(&self) -> Result<()> {
        let (directory, v2) = self.freezer()?;
        freezer::thaw(directory, v2)
    }

    /// Whether it was frozen. A container without a freezer, or whose cgroup is gone, is not.
    pub(crate) fn is_frozen(&self) -> Result<bool> {
        self.freezer().map_or(Ok(false), |(directory, v2)| {
            freezer::is_frozen(directory, v2)
        })
    }

    /// The directory whose processes are the container's.
    fn members(&self) -> Result<&Path> {
        // Of the v1 hierarchies those that processes are least likely to be moved about in.
        let node = ["devices", "freezer", "pids", "memory", ""]
            .iter()
            .find_map(|key| self.nodes.iter().find(|node| node.has(key)))
            .or(self.nodes.first());
        node.map(|node| node.directory.as_path())
            .ok_or(Error::NotConfigured)
    }

    /// Every process in it and its child cgroups; none when the cgroup is gone.
    pub(crate) fn pids(&self) -> Result<Vec<Pid>> {
        member::pids(self.members()?)
    }

    /// Sends a signal to every process. SIGKILL returns only when all are gone, frozen ones included.
    pub(crate) fn kill_all(&self, signal: Signal) -> Result<()> {
        if signal != Signal::KILL {
            return member::signal(self.members()?, signal);
        }
        if self.is_pure_v2() {
            return member::kill_v2(self.members()?);
        }
        member::kill_each(self.members()?, self.freezer().ok())
    }

    /// Removes it with its child cgroups, waiting a while for processes that are dying. Fine when already gone.
    pub(crate) fn remove(&self) -> Result<()> {
        if let Some(unit) = &self.unit
            && let Err(error) = unit.stop()
        {
            // systemd may be gone; the directories are there to be removed all the same.
            log::warn!(
                "cannot stop unit {}: {}",
                unit.name,
                crate::failure::chain(&error)
            );
        }
        remove::remove(self.nodes.iter().map(|node| node.directory.as_path()))
    }

    /// Whether its directory still exists in any hierarchy.
    pub(crate) fn exists(&self) -> bool {
        self.nodes.iter().any(|node| node.directory.exists())
    }

    /// Its directory in the hierarchy of a controller; on pure v2 the one directory, whatever the controller.
    pub(crate) fn path(&self, controller: &str) -> Option<&Path> {
        let found = self
            .nodes
            .iter()
            .find(|node| node.has(controller) || self.is_pure_v2());
        found.map(|node| node.directory.as_path())
    }

    /// Current figures.
    pub(crate) fn stats(&self) -> Result<Stats> {
        Stats::read(self)
    }
}
