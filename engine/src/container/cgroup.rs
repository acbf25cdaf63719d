//! Reading a container's cgroup: where it is, who is in it. Both versions, and the mix of both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::bundle;
use super::find::Handle;

/// The directories of one container's cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cgroup {
    /// Version 1, by controller.
    first: BTreeMap<String, PathBuf>,
    /// Version 2.
    second: Option<PathBuf>,
}

impl Cgroup {
    /// Finds the cgroup of a running container.
    pub(super) fn of(handle: &Handle) -> Cgroup {
        let config = &handle.config;
        let path = bundle::cgroup_path(&config.id, config.options.cgroup_parent.as_deref());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found = Cgroup::below(&mounts, path.trim_start_matches('/'));
        found.first.retain(|_, directory| directory.is_dir());
        found.second = found.second.filter(|directory| directory.is_dir());
        found
    }

    /// `path` in each hierarchy that `mountinfo` names, see proc_pid_mountinfo(5).
    fn below(mountinfo: &str, path: &str) -> Cgroup {
        let mut found = Cgroup::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else {
                continue;
            };
            let Some(place) = left.split(' ').nth(4) else {
                continue;
            };
            let directory = Path::new(place).join(path);
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => found.second = Some(directory),
                (Some("cgroup"), Some(options)) => {
                    for option in options.split(',') {
                        found.first.insert(option.to_owned(), directory.clone());
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether `controller` is one of version 1, and its directory; of version 2 where it is none.
    pub(super) fn controller(&self, controller: &str) -> Option<(Version, &Path)> {
        match (self.first.get(controller), &self.second) {
            (Some(directory), _) => Some((Version::First, directory)),
            (None, Some(directory)) => Some((Version::Second, directory)),
            (None, None) => None,
        }
    }

    /// All processes, those in cgroups that the container has made for itself too, lowest pid first.
    pub(super) fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        if let Some((_, directory)) = self.controller("pids") {
            collect(directory, &mut pids);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }
}

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// A hierarchy for each controller.
    First,
    /// One for all.
    Second,
}

fn collect(directory: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// The number in a control file; `None` when there is none, or it says `max`.
pub(super) fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The number behind a key in a control file of `KEY NUMBER` lines.
pub(super) fn keyed(directory: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_in_both_versions() {
        let hybrid = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = Cgroup::below(hybrid, "x");
        let place = |controller| {
            found
                .controller(controller)
                .map(|(version, path)| (version, path.to_str().unwrap().to_owned()))
        };
        let first = |path: &str| Some((Version::First, path.to_owned()));
        assert_eq!(place("cpuacct"), first("/sys/fs/cgroup/cpu,cpuacct/x"));
        assert_eq!(place("pids"), first("/sys/fs/cgroup/pids/x"));
        assert_eq!(
            place("memory"),
            Some((Version::Second, "/sys/fs/cgroup/unified/x".to_owned()))
        );
        let pure = "30 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Cgroup::below(pure, "x");
        assert_eq!(
            found.controller("memory"),
            Some((Version::Second, Path::new("/sys/fs/cgroup/x")))
        );
    }
}
