//! A container's cgroups: who is in them, and what they count.

mod v1;
mod v2;

use std::path::{Path, PathBuf};

use super::message::Any;

/// Where the hierarchies are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The cgroups of one container, as they were when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// v2 alone.
    Unified(PathBuf),
    /// v1, with or without a v2 tree beside it: directories by controller.
    Legacy(Vec<(String, PathBuf)>),
}

impl Cgroup {
    /// The cgroups that a process's file in `/proc` lists.
    pub(crate) fn listed(list: &str) -> Option<Self> {
        Self::parse(list, Path::new(ROOT))
    }

    fn parse(list: &str, root: &Path) -> Option<Self> {
        let mut controllers = Vec::new();
        let mut unified = None;
        for line in list.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (names, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
            if names.is_empty() {
                unified = Some(path.to_owned());
                continue;
            }
            for name in names.split(',') {
                let joint = root.join(names);
                let mounted = if joint.is_dir() {
                    joint
                } else {
                    root.join(name)
                };
                controllers.push((name.to_owned(), mounted.join(path)));
            }
        }
        match unified {
            Some(path) if controllers.is_empty() => Some(Self::Unified(root.join(path))),
            None if controllers.is_empty() => None,
            _ => Some(Self::Legacy(controllers)),
        }
    }

    /// The directory of a v1 controller.
    fn controller(list: &[(String, PathBuf)], name: &str) -> Option<PathBuf> {
        list.iter()
            .find(|(found, _)| found == name)
            .map(|(_, path)| path.clone())
    }

    /// Everybody in it and below.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let directory = match self {
            Self::Unified(path) => Some(path.clone()),
            // Any does, as long as the container has it to itself.
            Self::Legacy(list) => ["pids", "memory", "devices", "freezer"]
                .iter()
                .find_map(|name| Self::controller(list, name)),
        };
        let mut found = Vec::new();
        if let Some(directory) = directory {
            collect_pids(&directory, &mut found);
        }
        found
    }

    /// What the kernel counted, as containerd's message for this version of cgroups.
    pub(crate) fn metrics(&self) -> Any {
        match self {
            Self::Unified(path) => Any::pack("io.containerd.cgroups.v2.Metrics", &v2::read(path)),
            Self::Legacy(list) => Any::pack("io.containerd.cgroups.v1.Metrics", &v1::read(list)),
        }
    }
}

fn collect_pids(directory: &Path, found: &mut Vec<u32>) {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&entry.path(), found);
        }
    }
}

/// Pages that the kernel has in one size, by the names of the files: `2MB`.
fn huge_page_sizes(directory: &Path, suffix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
            Some(size.to_owned())
        })
        .collect();
    sizes.sort();
    sizes
}

/// A file of one number; `max` is the greatest there is.
fn number(directory: &Path, file: &str) -> Option<u64> {
    let text = std::fs::read_to_string(directory.join(file)).ok()?;
    value(text.trim())
}

fn value(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

/// A file of lines with a name and a number each.
#[derive(Debug, Default)]
struct Table(String);

impl Table {
    fn read(directory: &Path, file: &str) -> Option<Self> {
        std::fs::read_to_string(directory.join(file)).ok().map(Self)
    }

    /// The number beside a name; 0 where the kernel does not count it.
    fn get(&self, name: &str) -> u64 {
        self.0
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(' ')?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_versions() {
        let root = Path::new("/nowhere");
        assert_eq!(
            Cgroup::parse("0::/a/b\n", root),
            Some(Cgroup::Unified("/nowhere/a/b".into()))
        );
        let Some(Cgroup::Legacy(list)) =
            Cgroup::parse("4:cpu,cpuacct:/x\n3:pids:/y:z\n0::/u\n", root)
        else {
            panic!("not v1");
        };
        assert_eq!(
            Cgroup::controller(&list, "cpuacct"),
            Some("/nowhere/cpuacct/x".into())
        );
        assert_eq!(
            Cgroup::controller(&list, "pids"),
            Some("/nowhere/pids/y:z".into())
        );
        assert_eq!(Cgroup::parse("", root), None);
    }

    #[test]
    fn tables_and_numbers() {
        let table = Table("rss 5\nrss_huge 7\n".into());
        assert_eq!(table.get("rss"), 5);
        assert_eq!(table.get("rss_huge"), 7);
        assert_eq!(table.get("none"), 0);
        assert_eq!(value("max"), Some(u64::MAX));
        assert_eq!(value("x"), None);
    }
}
