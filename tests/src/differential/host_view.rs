//! What the host sees of a container: its cgroups' settings, and what is left after its end.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Sight;

/// Adds the cgroups of a process: where each is, and every setting in it.
pub fn cgroups(pid: i32, sight: &mut Sight) {
    for (name, directory) in directories(pid) {
        sight.insert(format!("cgroup.{name}"), directory.display().to_string());
        if directory.join("release_agent").exists()
            || !directory.join("cgroup.type").exists() && name == "unified"
        {
            // The root of a hierarchy: the settings there are not the container's.
            continue;
        }
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let file = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if path.is_dir() {
                sight.insert(format!("cgroup.{name}.{file}/"), "a cgroup".into());
            } else if is_setting(&file, &path) {
                let Ok(value) = std::fs::read_to_string(&path) else {
                    continue;
                };
                let mut lines: Vec<_> = value.lines().collect();
                lines.sort_unstable();
                sight.insert(format!("cgroup.{name}.{file}"), lines.join(", "));
            }
        }
    }
}

/// The directory of a process in each mounted hierarchy.
fn directories(pid: i32) -> BTreeMap<String, PathBuf> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for line in table.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let name = controllers.trim_start_matches("name=");
        let mount = match name {
            "" => Path::new("/sys/fs/cgroup/unified").to_owned(),
            _ => Path::new("/sys/fs/cgroup").join(name),
        };
        let name = if name.is_empty() { "unified" } else { name };
        let directory = mount.join(path.trim_start_matches('/'));
        if directory.is_dir() {
            found.insert(name.to_owned(), directory);
        }
    }
    found
}

/// Says whether a file of a cgroup holds something that was set, and not a counter.
fn is_setting(name: &str, path: &Path) -> bool {
    let counters = [
        "usage", "failcnt", "stat", "pressure", "procs", "tasks", "threads", "event", "peak",
    ];
    let writable = path.metadata().is_ok_and(|it| it.mode() & 0o222 != 0);
    (writable || name == "devices.list") && !counters.iter().any(|it| name.contains(it))
}
