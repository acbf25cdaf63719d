//! What the kernel has that nobody needs: mounts of containers that do not run, cgroups of ours without processes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Remedy, Report, entries, is_free, is_id, is_settled, name_of, runs, short};
use crate::store::Store;

/// Mounts below the store that belong to no running container.
pub(super) fn mounts(store: &Store, report: &mut Report) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for target in table.lines().filter_map(|line| line.split(' ').nth(4)) {
        let target = unescape(target);
        let below = |directory: &Path| {
            let rest = target.strip_prefix(directory).ok()?;
            rest.components()
                .next()
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
        };
        let Some(id) = below(&store.containers()).or_else(|| below(store.run())) else {
            continue;
        };
        if !is_id(&id) || report.will_recover(&id) {
            continue;
        }
        let home = store.container(&id);
        let problem = match home.exists() {
            false => format!("still mounted for container {}, which is gone", short(&id)),
            true if is_free(&home) && !runs(store, &id) => {
                format!(
                    "still mounted for container {}, which does not run",
                    short(&id)
                )
            }
            true => continue,
        };
        let subject = target.display().to_string();
        report.add(&subject, problem, Some(Remedy::Unmount(target)));
    }
}

/// Empty cgroups with a name of ours. Which store one belongs to can't be seen; but a minute after it was made, nobody
/// comes back for one without processes whose container is not running here.
pub(super) fn cgroups(store: &Store, report: &mut Report) {
    for hierarchy in hierarchies() {
        for path in entries(&hierarchy) {
            let name = name_of(&path);
            let Some(id) = name.strip_prefix("qengine-").filter(|id| is_id(id)) else {
                continue;
            };
            let is_ours_and_busy =
                store.container(id).exists() && (runs(store, id) || !is_free(&store.container(id)));
            if is_ours_and_busy
                || report.will_recover(id)
                || !is_settled(&path)
                || has_processes(&path)
            {
                continue;
            }
            let subject = path.display().to_string();
            let problem = format!("a cgroup without processes, of container {}", short(id));
            report.add(&subject, problem, Some(Remedy::RemoveCgroup(path)));
        }
    }
}

/// Where the hierarchies of cgroups are mounted: one directory on v2, several on v1.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    let is_link = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    entries(&root)
        .into_iter()
        .filter(|path| path.is_dir() && !is_link(path))
        .collect()
}

/// Whether the cgroup, or one below it, has a process. One that can't be read counts as busy.
fn has_processes(cgroup: &Path) -> bool {
    match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) if text.trim().is_empty() => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
        _ => return true,
    }
    entries(cgroup)
        .iter()
        .filter(|path| path.is_dir())
        .any(|path| has_processes(path))
}

/// Innermost first; the kernel refuses one with processes.
pub(super) fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for path in entries(cgroup) {
        if path.is_dir() {
            remove_cgroup(&path)?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Whether anything is mounted at a directory or below it.
pub(super) fn is_mounted_below(directory: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|target| unescape(target).starts_with(directory))
}

/// `\040` is a blank in mountinfo.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| behind.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_in_mount_points() {
        assert_eq!(unescape("/a\\040b/c"), Path::new("/a b/c"));
        assert_eq!(unescape("/a\\x"), Path::new("/a\\x"));
    }
}
