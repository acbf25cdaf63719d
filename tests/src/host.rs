//! What the programs under test could leave behind on a host, and the check that they did not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;
use crate::programs::on_path;

/// Programs whose processes would be ours: those under test, and the servers tests start.
const OURS: [&str; 10] = [
    "qrun",
    "qshim",
    "qengine",
    "qbundle",
    "conmon",
    "containerd",
    // As much as the kernel keeps of containerd-shim-qrun-v2.
    "containerd-shim",
    "dockerd",
    "docker-registry",
    "nginx",
];

/// Directories in which a name that stays would be in the way of the next run.
const NAMED: [&str; 5] = [
    "/run/qrun",
    "/run/qengine",
    "/var/lib/qengine",
    "/run/netns",
    "/run/runc",
];

/// Everything of the host that must be the same after the tests as before, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, BTreeSet<String>>);

impl Snapshot {
    /// Takes stock of the host, seen from the calling thread's network namespace.
    #[must_use]
    pub fn take() -> Self {
        let kinds = [
            ("mount", mounts()),
            ("cgroup", cgroups()),
            ("link", links()),
            ("packet filter rule", rules()),
            ("process", processes(&OURS)),
            ("file", names()),
        ];
        Self(
            kinds
                .into_iter()
                .map(|(kind, found)| (kind.to_owned(), found))
                .collect(),
        )
    }

    /// What differs from `earlier`, one line each; empty when nothing does.
    #[must_use]
    pub fn differences(&self, earlier: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let mut lines = Vec::new();
        for (kind, now) in &self.0 {
            let then = earlier.0.get(kind).unwrap_or(&none);
            lines.extend(
                now.difference(then)
                    .map(|it| format!("{kind} left behind: {it}")),
            );
            lines.extend(then.difference(now).map(|it| format!("{kind} gone: {it}")));
        }
        lines
    }

    /// As JSON, for a comparison by a later process.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::json!(self.0).to_string()
    }

    /// Reads what [`Snapshot::to_json`] wrote.
    ///
    /// # Errors
    /// When `text` is something else.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(Self)
    }
}

/// Mount points, with what is mounted there.
#[must_use]
pub fn mounts() -> BTreeSet<String> {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return BTreeSet::new();
    };
    table.lines().filter_map(mount_of).collect()
}

/// Whether something is mounted at exactly `path`.
#[must_use]
pub fn is_mount_point(path: &str) -> bool {
    let start = format!("{path} (");
    mounts().iter().any(|mount| mount.starts_with(&start))
}

/// The part of a line of mountinfo that stays the same when mounted anew: point, type and source.
fn mount_of(line: &str) -> Option<String> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    Some(format!("{point} ({} of {})", after.next()?, after.next()?))
}

/// Every cgroup in every hierarchy but those beside the one this process is in, or beside one above it: what keeps
/// processes apart there (sessions, services) comes and goes as it likes.
#[must_use]
pub fn cgroups() -> BTreeSet<String> {
    let own = own_cgroups();
    let mut found = BTreeSet::new();
    let mut open = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir())
                && !own.iter().any(|own| is_beside(&path, own))
            {
                found.insert(path.display().to_string());
                open.push(path);
            }
        }
    }
    found
}

/// A cgroup of this process: the hierarchy's mount point, and the path there.
type Own = (PathBuf, PathBuf);

/// The cgroups of this process that are not the root of their hierarchy.
fn own_cgroups() -> Vec<Own> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = |line: &str| -> Option<Own> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.strip_prefix('/')?);
        let top = Path::new("/sys/fs/cgroup");
        let mount = match controllers {
            "" if top.join("unified").exists() => top.join("unified"),
            "" => top.to_owned(),
            name => top.join(name.trim_start_matches("name=")),
        };
        (!path.is_empty()).then(|| (mount, PathBuf::from(path)))
    };
    text.lines().filter_map(own).collect()
}

/// Whether a cgroup is another branch than `own` somewhere below the hierarchy's first level.
fn is_beside(path: &Path, (mount, own): &Own) -> bool {
    let Ok(below) = path.strip_prefix(mount) else {
        return false;
    };
    let shared = below.components().zip(own.components());
    let shared = shared.take_while(|(one, other)| one == other).count();
    let is_above_or_below = [below, own]
        .iter()
        .any(|it| it.components().count() == shared);
    shared > 0 && !is_above_or_below
}

/// Removes cgroups called `name`, and those below, where nothing is in them: parents that other
/// engines make for their containers and pods, and leave. Podman leaves them also in plain directories that
/// it names after controllers without a v1 hierarchy.
pub fn remove_empty_cgroups(name: &str) {
    for path in cgroups().iter().rev() {
        if path.split('/').any(|part| part == name) {
            let _ = std::fs::remove_dir(path);
        }
    }
    let mounted = mounts();
    for entry in std::fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
    {
        let (path, left) = (entry.path(), entry.path().join(name));
        let hierarchy = mounted
            .iter()
            .any(|it| it.starts_with(&format!("{} (", path.display())));
        let pure_v2 = entry.path().join("cgroup.procs").exists();
        if !hierarchy && !pure_v2 && left.exists() {
            let _ = std::fs::remove_dir_all(left);
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Names of the network links of the calling thread's network namespace.
#[must_use]
pub fn links() -> BTreeSet<String> {
    link_names(&std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
}

/// The names in a table as `/proc/PID/net/dev`.
#[must_use]
pub fn link_names(table: &str) -> BTreeSet<String> {
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// nft's rules and those of the older iptables, without their counters.
#[must_use]
pub fn rules() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if on_path("nft").is_some() {
        let listing = run(Command::new("nft").args(["list", "ruleset"])).stdout;
        let mut table = "";
        for line in listing.lines() {
            if line.starts_with("table") {
                table = line.trim_end_matches(" {");
                found.insert(table.to_owned());
            } else if line.trim() != "}" {
                found.insert(format!("{table}: {}", without_counters(line.trim())));
            }
        }
    }
    let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
    if legacy.is_ok_and(|tables| !tables.is_empty()) && on_path("iptables-legacy-save").is_some() {
        let listing = run(&mut Command::new("iptables-legacy-save")).stdout;
        found.extend(
            listing
                .lines()
                .filter(|line| line.starts_with("-A"))
                .map(str::to_owned),
        );
    }
    found
}

/// A rule without `packets N bytes M`.
fn without_counters(rule: &str) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for word in rule.split(' ') {
        if !skip && word != "packets" && word != "bytes" {
            words.push(word);
        }
        skip = word == "packets" || word == "bytes";
    }
    words.join(" ")
}

/// Processes of these programs, as `PID program`.
#[must_use]
pub fn processes(programs: &[&str]) -> BTreeSet<String> {
    let all = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten();
    all.filter_map(|process| {
        let stat = process.stat().ok()?;
        // A zombie is its parent's to reap, and nothing of ours is in it any more.
        let ours = stat.state != 'Z' && programs.iter().any(|name| stat.comm == **name);
        ours.then(|| format!("{} {} ({})", stat.pid, stat.comm, stat.state))
    })
    .collect()
}

/// Names in the directories of [`NAMED`], and the tests' own directories.
fn names() -> BTreeSet<String> {
    let entries = |directory: &str| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: BTreeSet<_> = NAMED
        .iter()
        .flat_map(|directory| entries(directory).map(|entry| entry.path().display().to_string()))
        .collect();
    let own = entries("/tmp").map(|entry| entry.path().display().to_string());
    found.extend(own.filter(|path| path.starts_with(crate::engine::DIRECTORY_PREFIX)));
    found
}

/// Traces of one test in the tables of the host: mounts below `directory`, processes that name it
/// on their command line, and cgroups named after one of `ids`.
#[must_use]
pub fn traces(directory: &Path, ids: &[String]) -> Vec<String> {
    let place = directory.display().to_string();
    let mut found: Vec<_> = mounts()
        .into_iter()
        .filter(|mount| mount.contains(&place))
        .map(|mount| format!("mount {mount}"))
        .collect();
    found.extend(
        processes_naming(directory)
            .into_iter()
            .map(|(pid, line)| format!("process {pid}: {line}")),
    );
    let named = |path: &String| ids.iter().any(|id| path.contains(id.as_str()));
    found.extend(
        cgroups()
            .into_iter()
            .filter(named)
            .map(|path| format!("cgroup {path}")),
    );
    found
}

/// Unmounts whatever is mounted below `directory`, the topmost first.
pub fn unmount_below(directory: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(directory)) {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Processes with `directory` somewhere on their command line.
#[must_use]
pub fn processes_naming(directory: &Path) -> Vec<(i32, String)> {
    let place = directory.display().to_string();
    let all = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .flatten();
    all.filter_map(|process| {
        let line = process.cmdline().ok()?.join(" ");
        line.contains(&place).then_some((process.pid, line))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_point_type_and_source() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_of(line).as_deref(), Some("/mnt2 (ext3 of /dev/root)"));
    }

    #[test]
    fn cgroups_beside_our_own_are_not_ours() {
        let own = (
            PathBuf::from("/sys/fs/cgroup/memory"),
            PathBuf::from("sessions/7"),
        );
        for (path, foreign) in [
            ("sessions", false),
            ("sessions/7", false),
            ("sessions/7/bird", false),
            ("sessions/8", true),
            ("sessions/8/bird", true),
            ("bird", false),
        ] {
            assert_eq!(is_beside(&own.0.join(path), &own), foreign, "{path}");
        }
        let elsewhere = Path::new("/sys/fs/cgroup/pids/sessions/8");
        assert!(!is_beside(elsewhere, &own));
    }

    #[test]
    fn counters_do_not_count() {
        let rule = "tcp dport 80 counter packets 3 bytes 180 accept";
        assert_eq!(without_counters(rule), "tcp dport 80 counter accept");
    }

    #[test]
    fn what_came_and_what_went_is_told_apart() {
        let of = |mount: &str| {
            let mounts = BTreeSet::from([mount.to_owned()]);
            Snapshot(BTreeMap::from([("mount".to_owned(), mounts)]))
        };
        let differences = of("/new").differences(&of("/old"));
        assert_eq!(differences, ["mount left behind: /new", "mount gone: /old"]);
    }
}
