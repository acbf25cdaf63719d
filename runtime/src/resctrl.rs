//! Intel's Resource Director Technology: shares of the level 3 cache and of memory bandwidth, through the resctrl file system.
//!
//! A container gets, or joins, a group (class of service): a directory whose `schemata` file has the shares and whose
//! `tasks` file the processes. Governing texts: runtime-spec config-linux.md, "IntelRdt";
//! Documentation/filesystems/resctrl.rst. The texts of refusals are runc's. Every function takes the file system's root, so
//! that the tests run on a directory of their own.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::failure::{CallFailed, During};
use crate::spec::linux::IntelRdt;

/// Where the kernel wants it mounted.
const USUAL_ROOT: &str = "/sys/fs/resctrl";
/// `RDTGROUP_SUPER_MAGIC`.
const MAGIC: u64 = 0x0765_5821;

/// Why a container cannot have its shares.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("intelRdt is specified in config, but Intel RDT is not enabled")]
    NotEnabled,
    #[error("invalid intelRdt.ClosID {0:?}")]
    ClosId(String),
    #[error("intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled")]
    NoCache,
    #[error("intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled")]
    NoBandwidth,
    #[error("intelRdt.schemata has a line break in {0:?}")]
    Line(String),
    #[error(
        "clos dir not accessible (must be pre-created when schemata, l3CacheSchema and memBwSchema are empty)"
    )]
    NoGroup(#[source] CallFailed),
    #[error("unable to apply Intel RDT configuration{}", .status)]
    Call {
        /// What the kernel says about it, with a comma before it; empty when it says nothing.
        status: String,
        source: CallFailed,
    },
}

/// What will be done; worked out and checked, nothing made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    root: PathBuf,
    group: PathBuf,
    /// Whether the group must be there already.
    existing: bool,
    /// Whether the group is the container's own, and goes with it.
    own: bool,
    /// Directory of the monitoring group.
    monitoring: Option<PathBuf>,
    schemata: String,
}

/// What there is of a container, as its state keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The group.
    group: PathBuf,
    /// Its monitoring group in that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    monitoring: Option<PathBuf>,
    /// What goes when the container goes: the group, or its monitoring group in one of somebody else's.
    remove: Option<PathBuf>,
}

/// The root of the file system, if it is mounted.
pub(crate) fn root() -> Option<PathBuf> {
    let mounted = rustix::fs::statfs(USUAL_ROOT).ok()?;
    if u64::try_from(mounted.f_type).is_ok_and(|kind| kind == MAGIC) {
        return Some(USUAL_ROOT.into());
    }
    root_in(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The first mount point of the type in the text of `/proc/self/mountinfo`.
fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let kind = after.split(' ').next()?;
        (kind == "resctrl").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

impl Plan {
    /// Checks what a spec asks for. `root` is that of the file system, `None` where it is not mounted.
    pub(crate) fn new(asked: &IntelRdt, root: Option<&Path>, id: &str) -> Result<Self, Error> {
        let root = root.ok_or(Error::NotEnabled)?;
        let name = asked.clos_id.as_str();
        // "/" is the root group, as in runc.
        if name == "." || name == ".." || name.len() > 1 && name.contains('/') {
            return Err(Error::ClosId(name.to_owned()));
        }
        if !asked.l3_cache_schema.is_empty() && !shares_cache(root) {
            return Err(Error::NoCache);
        }
        if !asked.mem_bw_schema.is_empty() && !shares_bandwidth(root) {
            return Err(Error::NoBandwidth);
        }
        if let Some(line) = asked.schemata.iter().find(|line| line.contains('\n')) {
            return Err(Error::Line(line.clone()));
        }
        let group = match name {
            "" => root.join(id),
            "/" => root.to_owned(),
            name => root.join(name),
        };
        let lines = [&asked.l3_cache_schema, &asked.mem_bw_schema];
        let schemata = schemata(lines.into_iter().chain(&asked.schemata));
        Ok(Self {
            root: root.to_owned(),
            existing: !name.is_empty() && schemata.is_empty(),
            own: name.is_empty(),
            monitoring: asked
                .enable_monitoring
                .then(|| group.join("mon_groups").join(id)),
            schemata,
            group,
        })
    }

    /// Makes what is missing, puts process `pid` there and sets the shares. What was made is gone again when that fails.
    pub(crate) fn apply(&self, pid: i32) -> Result<Record, Error> {
        let mut made = Vec::new();
        let applied = self.steps(pid, &mut made);
        if applied.is_err() {
            for directory in made.iter().rev() {
                // The failure that led here is what the user is told.
                let _ = remove_directory(directory);
            }
        }
        applied?;
        let own_group = self.own && made.contains(&self.group);
        Ok(Record {
            group: self.group.clone(),
            monitoring: self.monitoring.clone(),
            remove: match own_group {
                true => Some(self.group.clone()),
                false => self.monitoring.clone(),
            },
        })
    }

    fn steps(&self, pid: i32, made: &mut Vec<PathBuf>) -> Result<(), Error> {
        if self.existing {
            let there = std::fs::metadata(&self.group);
            there.during("stat", &self.group).map_err(Error::NoGroup)?;
        }
        for directory in [Some(&self.group), self.monitoring.as_ref()]
            .into_iter()
            .flatten()
        {
            match std::fs::create_dir(directory) {
                Ok(()) => made.push(directory.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => Err(error)
                    .during("mkdir", directory)
                    .map_err(|it| self.failed(it))?,
            }
            add_task(directory, pid).map_err(|it| self.failed(it))?;
        }
        write_schemata(&self.group, &self.schemata).map_err(|it| self.failed(it))
    }

    /// A failed call, with the kernel's own words about it.
    fn failed(&self, source: CallFailed) -> Error {
        failed(&self.root, source)
    }
}

impl Record {
    /// Puts another process of the container there; nothing when somebody has removed the group.
    pub(crate) fn add(&self, pid: i32) -> Result<(), CallFailed> {
        for directory in [Some(&self.group), self.monitoring.as_ref()]
            .into_iter()
            .flatten()
        {
            match add_task(directory, pid) {
                Err(failed) if failed.errno == Errno::NOENT => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Changes the shares of cache and of memory bandwidth; an empty one stays as it is. `root` is that of the file system.
    pub(crate) fn update(&self, root: &Path, cache: &str, bandwidth: &str) -> Result<(), Error> {
        write_schemata(&self.group, &schemata([cache, bandwidth])).map_err(|it| failed(root, it))
    }

    /// Removes what goes with the container.
    pub(crate) fn remove(&self) -> Result<(), CallFailed> {
        self.remove.as_deref().map_or(Ok(()), remove_directory)
    }
}

/// Whether there are shares of the level 3 cache, for all of it or for code and data apart.
pub(crate) fn shares_cache(root: &Path) -> bool {
    ["info/L3", "info/L3CODE"]
        .iter()
        .any(|it| root.join(it).exists())
}

/// Whether there are shares of memory bandwidth.
pub(crate) fn shares_bandwidth(root: &Path) -> bool {
    root.join("info/MB").exists()
}

/// What the `schemata` file takes; empty without any shares.
fn schemata(lines: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut text = String::new();
    for line in lines {
        let line = line.as_ref();
        if !line.is_empty() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Sets the shares of a group, if any are given.
fn write_schemata(group: &Path, schemata: &str) -> Result<(), CallFailed> {
    if schemata.is_empty() {
        return Ok(());
    }
    let file = group.join("schemata");
    std::fs::write(&file, schemata).during("write", &file)
}

/// A failed call, with the kernel's own words about it.
fn failed(root: &Path, source: CallFailed) -> Error {
    let status = std::fs::read_to_string(root.join("info/last_cmd_status"));
    let status = status.map_or_else(
        |_| String::new(),
        |text| format!(", last_cmd_status: {}", text.trim_end()),
    );
    Error::Call { status, source }
}

/// Writes a process into the `tasks` file of a group.
fn add_task(directory: &Path, pid: i32) -> Result<(), CallFailed> {
    let file = directory.join("tasks");
    std::fs::write(&file, pid.to_string()).during("write", &file)
}

/// Removes the directory of a group, which is never empty and yet removed by rmdir(2).
fn remove_directory(directory: &Path) -> Result<(), CallFailed> {
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.during("rmdir", directory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with what the kernel shows of cache and bandwidth; removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("qrun-resctrl-{}-{name}", std::process::id()));
            for directory in ["info/L3", "mon_groups", "there/mon_groups"] {
                std::fs::create_dir_all(root.join(directory)).unwrap();
            }
            Self(root)
        }

        fn read(&self, path: &str) -> String {
            std::fs::read_to_string(self.0.join(path)).unwrap_or_default()
        }

        fn plan(&self, json: &str) -> Result<Plan, String> {
            let asked: IntelRdt = serde_json::from_str(json).unwrap();
            Plan::new(&asked, Some(&self.0), "c1").map_err(|error| error.to_string())
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn is_found_where_it_is_mounted() {
        let mounts = "25 30 0:23 / /sys rw - sysfs sysfs rw\n31 25 0:27 / /mnt/rdt rw,relatime shared:9 - resctrl none rw\n";
        assert_eq!(root_in(mounts), Some("/mnt/rdt".into()));
        assert_eq!(root_in("25 30 0:23 / /sys rw - sysfs resctrl rw\n"), None);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let tree = Tree::new("refused");
        for (json, error) in [
            (r#"{"closID":".."}"#, r#"invalid intelRdt.ClosID "..""#),
            (r#"{"closID":"a/b"}"#, r#"invalid intelRdt.ClosID "a/b""#),
            (
                r#"{"memBwSchema":"MB:0=20"}"#,
                "intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled",
            ),
            (
                r#"{"schemata":["L3:0=f\nMB:0=1"]}"#,
                r#"intelRdt.schemata has a line break in "L3:0=f\nMB:0=1""#,
            ),
        ] {
            assert_eq!(tree.plan(json).unwrap_err(), error, "{json}");
        }
        let nowhere = Plan::new(&IntelRdt::default(), None, "c1").unwrap_err();
        assert_eq!(
            nowhere.to_string(),
            "intelRdt is specified in config, but Intel RDT is not enabled"
        );
        std::fs::remove_dir(tree.0.join("info/L3")).unwrap();
        assert!(tree.plan(r#"{"l3CacheSchema":"L3:0=f"}"#).is_err());
    }

    #[test]
    fn a_container_gets_a_group_of_its_own() {
        let tree = Tree::new("own");
        let plan = tree
            .plan(r#"{"l3CacheSchema":"L3:0=f","schemata":["L2:0=3","L2:1=3"]}"#)
            .unwrap();
        let record = plan.apply(7).unwrap();
        assert_eq!(tree.read("c1/tasks"), "7");
        assert_eq!(tree.read("c1/schemata"), "L3:0=f\nL2:0=3\nL2:1=3\n");
        record.add(8).unwrap();
        assert_eq!(tree.read("c1/tasks"), "8");
        assert_eq!(record.remove, Some(tree.0.join("c1")));
        record.update(&tree.0, "", "MB:0=20").unwrap();
        assert_eq!(tree.read("c1/schemata"), "MB:0=20\n");
        record.update(&tree.0, "L3:0=3", "MB:0=30").unwrap();
        assert_eq!(tree.read("c1/schemata"), "L3:0=3\nMB:0=30\n");
        std::fs::remove_dir_all(tree.0.join("c1")).unwrap();
        std::fs::write(tree.0.join("info/last_cmd_status"), "ok\n").unwrap();
        let error = record.update(&tree.0, "L3:0=3", "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to apply Intel RDT configuration, last_cmd_status: ok"
        );
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }

    #[test]
    fn a_named_group_is_joined_and_left_alone() {
        let tree = Tree::new("named");
        let plan = tree
            .plan(r#"{"closID":"there","enableMonitoring":true}"#)
            .unwrap();
        let record = plan.apply(7).unwrap();
        assert_eq!(tree.read("there/tasks"), "7");
        assert_eq!(tree.read("there/mon_groups/c1/tasks"), "7");
        record.add(8).unwrap();
        assert_eq!(tree.read("there/tasks"), "8");
        assert_eq!(tree.read("there/mon_groups/c1/tasks"), "8");
        std::fs::remove_file(tree.0.join("there/mon_groups/c1/tasks")).unwrap();
        record.remove().unwrap();
        assert!(tree.0.join("there").exists() && !tree.0.join("there/mon_groups/c1").exists());
        record.remove().unwrap();
        let root = tree.plan(r#"{"closID":"/"}"#).unwrap();
        assert_eq!(root.group, tree.0);
    }

    #[test]
    fn a_group_that_is_not_there_needs_shares() {
        let tree = Tree::new("absent");
        let plan = tree.plan(r#"{"closID":"absent"}"#).unwrap();
        assert!(matches!(plan.apply(7), Err(Error::NoGroup(_))));
        let plan = tree
            .plan(r#"{"closID":"absent","schemata":["L3:0=f"]}"#)
            .unwrap();
        assert_eq!(plan.apply(7).unwrap().remove, None);
        assert_eq!(tree.read("absent/schemata"), "L3:0=f\n");
    }

    #[test]
    fn a_failure_tells_what_the_kernel_says_and_leaves_nothing() {
        let tree = Tree::new("failure");
        std::fs::write(tree.0.join("info/last_cmd_status"), "bad mask\n").unwrap();
        std::fs::remove_dir(tree.0.join("there/mon_groups")).unwrap();
        // Without a directory for it there can be no monitoring group.
        let plan = tree
            .plan(r#"{"closID":"there","enableMonitoring":true}"#)
            .unwrap();
        let error = plan.apply(7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to apply Intel RDT configuration, last_cmd_status: bad mask"
        );
        let left: Vec<_> = std::fs::read_dir(&tree.0).unwrap().flatten().collect();
        assert_eq!(left.len(), 3);
    }
}
