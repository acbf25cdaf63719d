//! Somebody without privileges: a user id nobody has, what `/etc` says of it, and cgroups given to it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The user, and its group.
pub const USER: u32 = 12345;
/// The first of the user ids that [`introduce`] grants; group ids begin [`GROUPS`].
pub const USERS: u32 = 100_000;
/// The first of the group ids granted.
pub const GROUPS: u32 = 200_000;
/// How many of each.
pub const COUNT: u32 = 65_536;

/// Makes the user known to the calling thread, and to all it starts from now on: they see an `/etc` in which the user has a
/// name and, if `granted`, ids to hand out. Nobody else does, and nothing stays.
///
/// # Panics
/// When the kernel refuses.
pub fn introduce(granted: bool) {
    if let Err(error) = try_introduce(granted) {
        panic!("make a user known: {error}");
    }
}

fn try_introduce(granted: bool) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let scratch = tempfile::tempdir()?;
    let ids = |first: u32| match granted {
        true => format!("bird:{first}:{COUNT}\n"),
        false => String::new(),
    };
    let passwd = format!("bird:x:{USER}:{USER}::/:/bin/sh\n");
    for (name, text) in [
        ("passwd", fs::read_to_string("/etc/passwd")? + &passwd),
        ("subuid", ids(USERS)),
        ("subgid", ids(GROUPS)),
    ] {
        let file = scratch.path().join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        let target = Path::new("/etc").join(name);
        anyhow::ensure!(target.exists(), "no {}", target.display());
        mount(Some(&file), &target, none, MsFlags::MS_BIND, none)?;
    }
    // The files live on in the mounts.
    Ok(())
}

/// Gives a file or directory to the user, with all that is in it.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn give(path: &Path) {
    give_to(path, USER);
}

/// Gives a file or directory to a user and the group of the same id, with all that is in it.
///
/// # Panics
/// When that fails.
#[track_caller]
pub fn give_to(path: &Path, id: u32) {
    if let Err(error) = try_give_to(path, id) {
        panic!("give {} away: {error}", path.display());
    }
}

fn try_give_to(path: &Path, id: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(id), Some(id))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            try_give_to(&entry?.path(), id)?;
        }
    }
    Ok(())
}

/// Where controllers are mounted; beside v1 the v2 tree is left out, as whoever delegates cgroups there mostly does.
fn cgroup_mounts() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.procs").exists() {
        return vec![root.to_owned()];
    }
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| entry.path())
        .filter(|path| path.join("tasks").exists())
        .collect()
}

/// A cgroup in every hierarchy that the user may do with as it likes; gone when dropped.
#[derive(Debug)]
pub struct Delegated {
    name: String,
    directories: Vec<PathBuf>,
}

impl Delegated {
    /// Makes one.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("qtuser{}-{count}", std::process::id());
        let mut made = Self {
            name,
            directories: Vec::new(),
        };
        for mount in cgroup_mounts() {
            if let Err(error) = made.delegate(&mount) {
                panic!("delegate a cgroup of {}: {error}", mount.display());
            }
        }
        made
    }

    fn delegate(&mut self, mount: &Path) -> std::io::Result<()> {
        let directory = mount.join(&self.name);
        let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            // One that cannot be had is missed where a test needs it.
            let _ = fs::write(
                mount.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
        fs::create_dir(&directory)?;
        self.directories.push(directory.clone());
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read(mount.join(name)) {
                fs::write(directory.join(name), value)?;
            }
        }
        chown(&directory, Some(USER), Some(USER))?;
        for name in [
            "cgroup.procs",
            "tasks",
            "cgroup.subtree_control",
            "cgroup.threads",
        ] {
            let file = directory.join(name);
            if file.exists() {
                chown(&file, Some(USER), Some(USER))?;
            }
        }
        Ok(())
    }

    /// Its path below every mount of a hierarchy.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Where whoever uses it must be, on cgroup v2: a process goes from a cgroup to another only in a common one that its
    /// mover owns.
    #[must_use]
    pub fn place_of_callers(&self) -> Option<PathBuf> {
        let unified = Path::new("/sys/fs/cgroup");
        if !unified.join("cgroup.controllers").exists() {
            return None;
        }
        let place = unified.join(&self.name).join("callers");
        if let Err(error) = fs::create_dir_all(&place) {
            panic!("make {}: {error}", place.display());
        }
        give_directory(&place);
        Some(place)
    }

    /// The directory that has a controller.
    #[must_use]
    pub fn directory(&self, controller: &str) -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup")
            .join(controller)
            .join(&self.name);
        match v1.exists() {
            true => v1,
            false => Path::new("/sys/fs/cgroup").join(&self.name),
        }
    }
}

fn give_directory(path: &Path) {
    if let Err(error) = chown(path, Some(USER), Some(USER)) {
        panic!("give {} away: {error}", path.display());
    }
}

impl Default for Delegated {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for directory in &self.directories {
            let removed = crate::wait::within(std::time::Duration::from_secs(5), || {
                let _ = fs::remove_dir(directory.join("callers"));
                fs::remove_dir(directory).ok()
            });
            if removed.is_none() && !std::thread::panicking() {
                panic!("{} is in use", directory.display());
            }
        }
    }
}
