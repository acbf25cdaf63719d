//! What is kept of a container between two commands: `<root>/<id>/state.json`.
//!
//! The directory is made first of all and removed last of all, so whatever a create that was killed half way left can be
//! found and deleted. The file is replaced atomically; changes are made under an exclusive lock of the directory, reading
//! needs none.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, mkdirat, openat, renameat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::failure::{CallFailed, During};
use crate::namespace::Kind;
use crate::plan::inherited::Inherited;
use crate::spec::Hooks;

/// Name of the state file.
const STATE_FILE: &str = "state.json";
/// Name it has while it is written.
const STATE_FILE_NEW: &str = "state.json.new";
/// Fifo on which a created container waits for `start`. While it is there, the container has not been started.
pub(crate) const START_FIFO: &str = "exec.fifo";

/// Directory in which criu finds the root while it restores a container. Nothing is ever mounted on it on the host.
pub(crate) const CRIU_ROOT: &str = "criu-root";

/// The compiled system call filter.
pub(crate) const FILTER_FILE: &str = "seccomp.bpf";

/// Why state cannot be had. The texts are runc's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// An id that cannot be a directory name, or would be an odd one.
    #[error("invalid container ID format")]
    InvalidId,
    /// No id.
    #[error("container id cannot be empty")]
    EmptyId,
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// There is no such container.
    #[error("container does not exist")]
    NotExist,
    /// The file is not what this program wrote.
    #[error("cannot parse {path}")]
    Json {
        /// The file.
        path: String,
        /// What serde has to say.
        source: serde_json::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

/// Content of the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Record {
    /// Version of the specification of the bundle.
    pub(crate) oci_version: String,
    /// Container id.
    pub(crate) id: String,
    /// The init process; 0 while there is none yet.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot: together with the pid this names a process for good.
    pub(crate) start_time: u64,
    /// The bundle.
    pub(crate) bundle: PathBuf,
    /// The root file system.
    pub(crate) rootfs: PathBuf,
    /// When the container was created.
    pub(crate) created: String,
    /// Annotations of the spec.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Where its cgroup is.
    pub(crate) cgroup: cgroup::Record,
    /// `CLONE_NEW*` flags of the namespaces that are not the host's.
    pub(crate) namespaces: u64,
    /// Those among them that existed before the container.
    pub(crate) joined_namespaces: u64,
    /// Hooks of later commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hooks: Option<Hooks>,
    /// Whether it has a system call filter, which then is in a file of its own.
    pub(crate) has_filter: bool,
    /// Who answers the filter's questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<Agent>,
    /// Its group in the resctrl file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resctrl: Option<crate::resctrl::Record>,
    /// What further processes get from it.
    pub(crate) inherited: Inherited,
    /// What its standard streams were when it was created; empty unless one was a pipe.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) external_descriptors: Vec<String>,
    /// User id of who created it.
    pub(crate) owner: u32,
    /// What `--rootless` said when it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rootless: crate::rootless::Choice,
}

impl Record {
    /// Whether every process of the container ends with its first one, because they are in a pid namespace that the
    /// container made.
    pub(crate) fn ends_with_init(&self) -> bool {
        self.namespaces & !self.joined_namespaces & Kind::Pid.flag() != 0
    }
}

/// The program that answers the questions of a filter with `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Agent {
    /// Its socket.
    pub(crate) path: String,
    /// Text for it.
    pub(crate) metadata: String,
}

/// The directory all containers' directories are in.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    /// Whether it is in a user's run-time directory.
    in_runtime_directory: bool,
}

/// A container's directory.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// Whether the state was written by way of this value, so that there is something to replace.
    is_written: Cell<bool>,
}

/// Checks an id: letters, digits and a few signs, and no way out of the directory.
pub(crate) fn check_id(id: &str) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::EmptyId);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if !id.bytes().all(allowed) || matches!(id, "." | "..") || id.len() > 255 {
        return Err(Error::InvalidId);
    }
    Ok(())
}

impl Store {
    /// Takes up a directory, which need not exist yet. One in a user's run-time directory is kept from the clean-up of
    /// what is old there.
    pub(crate) fn new(root: &Path, in_runtime_directory: bool) -> Self {
        Self {
            root: root.to_owned(),
            in_runtime_directory,
        }
    }

    /// Where a container's directory is.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes the directory of a new container, and locks it.
    pub(crate) fn create(&self, id: &str) -> Result<Directory, Error> {
        check_id(id)?;
        let path = self.path(id);
        match mkdirat(CWD, &path, Mode::from_raw_mode(0o711)) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(Error::Exists),
            Err(Errno::NOENT) => {
                make_root(&self.root, self.in_runtime_directory)?;
                match mkdirat(CWD, &path, Mode::from_raw_mode(0o711)) {
                    Err(Errno::EXIST) => return Err(Error::Exists),
                    other => other.during("mkdir", &path)?,
                }
            }
            Err(errno) => Err(errno).during("mkdir", &path)?,
        }
        let locked = self.open(id).and_then(|directory| {
            directory.lock()?;
            Ok(directory)
        });
        if locked.is_err() {
            // It was made a moment ago and nothing is in it. That it cannot be opened is what the user is told.
            let _ = unlinkat(CWD, &path, AtFlags::REMOVEDIR);
        }
        locked
    }

    /// Opens the directory of a container, whatever is in it.
    pub(crate) fn open(&self, id: &str) -> Result<Directory, Error> {
        check_id(id)?;
        let path = self.path(id);
        // A link in the root is not of our making, and no container.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => Ok(Directory {
                fd,
                path,
                is_written: Cell::new(false),
            }),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Error::NotExist),
            Err(errno) => Ok(Err(errno).during("open", &path)?),
        }
    }

    /// The ids of all containers, in order; none when the root is not there.
    pub(crate) fn ids(&self) -> Result<Vec<String>, Error> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.during("open", &self.root)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.during("readdir", &self.root)?;
            if let Ok(name) = entry.file_name().into_string()
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
                && check_id(&name).is_ok()
            {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// Makes the root directory, private to its owner. The sticky bit marks what is not to be cleaned up in a run-time
/// directory (XDG Base Directory Specification).
fn make_root(root: &Path, sticky: bool) -> Result<(), CallFailed> {
    use std::os::unix::fs::DirBuilderExt;
    use std::os::unix::fs::PermissionsExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .during("mkdir", root)?;
    if sticky {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o1700))
            .during("chmod", root)?;
    }
    Ok(())
}

impl Directory {
    /// Waits for the exclusive lock; it is held until this value is dropped.
    pub(crate) fn lock(&self) -> Result<(), CallFailed> {
        flock(&self.fd, FlockOperation::LockExclusive).during("flock", &self.path)
    }

    /// Waits until nobody has the exclusive lock; false when that takes longer than `patience`.
    pub(crate) fn wait_until_unlocked(&self, patience: Duration) -> Result<bool, CallFailed> {
        let deadline = Instant::now() + patience;
        loop {
            match flock(&self.fd, FlockOperation::NonBlockingLockShared) {
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => return Ok(false),
                other => {
                    other.during("flock", &self.path)?;
                    self.unlock();
                    return Ok(true);
                }
            }
        }
    }

    /// Lets others read what it was locked for, and still no one change it.
    pub(crate) fn share_lock(&self) -> Result<(), CallFailed> {
        flock(&self.fd, FlockOperation::LockShared).during("flock", &self.path)
    }

    /// Gives the lock back, also for a child that has a copy of the descriptor.
    pub(crate) fn unlock(&self) {
        // Unlocking a lock that is held does not fail.
        let _ = flock(&self.fd, FlockOperation::Unlock);
    }

    /// Whether somebody has removed it since it was opened.
    pub(crate) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads the state.
    pub(crate) fn read(&self) -> Result<Record, Error> {
        let path = || self.path.join(STATE_FILE);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let text = match openat(&self.fd, STATE_FILE, flags, Mode::empty()) {
            Ok(fd) => {
                let mut text = Vec::new();
                std::io::Read::read_to_end(&mut File::from(fd), &mut text)
                    .during("read", path())?;
                text
            }
            Err(Errno::NOENT) => return Err(Error::NotExist),
            Err(errno) => Err(errno).during("open", path())?,
        };
        serde_json::from_slice(&text).map_err(|source| Error::Json {
            path: path().display().to_string(),
            source,
        })
    }

    /// Writes the state, so that whoever reads gets the old or the new one.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let path = self.path.join(STATE_FILE);
        let json = |source| Error::Json {
            path: path.display().to_string(),
            source,
        };
        let text = serde_json::to_vec(record).map_err(json)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let fd = openat(&self.fd, STATE_FILE_NEW, flags, Mode::from_raw_mode(0o600))
            .during("open", &path)?;
        File::from(fd).write_all(&text).during("write", &path)?;
        self.replace_state().during("rename", &path)?;
        Ok(())
    }

    /// Puts the new state in the place of the old one. By an exchange where there is an old one: after a plain rename over a
    /// file ext4 writes the new one's blocks out at once (`auto_da_alloc`), and what lives as long as this needs none.
    fn replace_state(&self) -> rustix::io::Result<()> {
        let (new, old) = (STATE_FILE_NEW, STATE_FILE);
        if self.is_written.replace(true)
            && renameat_with(&self.fd, new, &self.fd, old, RenameFlags::EXCHANGE).is_ok()
        {
            return unlinkat(&self.fd, new, AtFlags::empty());
        }
        // The first one, or a file system that does not exchange.
        renameat(&self.fd, new, &self.fd, old)
    }

    /// Whether a file is in it.
    pub(crate) fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(&self.fd, name, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Removes a file; fine when it is not there.
    pub(crate) fn remove_file(&self, name: &str) -> Result<(), CallFailed> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).during("unlink", self.path.join(name)),
        }
    }

    /// Removes the directory with all that is in it; fine when it is not there.
    pub(crate) fn remove(&self) -> Result<(), CallFailed> {
        for name in [STATE_FILE, START_FIFO, FILTER_FILE] {
            self.remove_file(name)?;
        }
        match unlinkat(CWD, &self.path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // A file that was being written when its writer was killed, or a readiness socket.
            Err(Errno::NOTEMPTY | Errno::EXIST) => match std::fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).during("rmdir", &self.path)
                }
                _ => Ok(()),
            },
            Err(errno) => Err(errno).during("rmdir", &self.path),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.unlock();
    }
}

/// When a process started, in clock ticks since boot, and whether it still lives; `None` when there is no such process.
pub(crate) fn start_time(pid: Pid) -> Option<(u64, bool)> {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // One line of some fifty numbers and a name of at most 64 bytes.
    let mut line = [0; 2048];
    let length = rustix::io::read(file, &mut line).ok()?;
    parse_stat(&String::from_utf8_lossy(&line[..length]))
}

/// Start time and whether it lives, out of `/proc/PID/stat`.
fn parse_stat(text: &str) -> Option<(u64, bool)> {
    // The second field is a name in parentheses that may hold anything, parentheses and spaces too.
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let alive = !matches!(fields.next()?, "Z" | "X" | "x");
    Some((fields.nth(18)?.parse().ok()?, alive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for id in ["a", "c1", "A_b+c-d.e", "..."] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in [".", "..", "a/b", "a b", "ä", "a\n"] {
            assert!(matches!(check_id(id), Err(Error::InvalidId)), "{id}");
        }
        assert!(matches!(check_id(""), Err(Error::EmptyId)));
    }

    #[test]
    fn only_a_pid_namespace_of_its_own_ends_with_init() {
        let ends = |namespaces, joined_namespaces| {
            let record = Record {
                namespaces,
                joined_namespaces,
                ..Record::default()
            };
            record.ends_with_init()
        };
        let (pid, mount) = (Kind::Pid.flag(), Kind::Mount.flag());
        assert!(ends(pid | mount, 0) && ends(pid | mount, mount));
        assert!(!ends(pid | mount, pid) && !ends(mount, 0));
    }

    #[test]
    fn stat_lines() {
        let rest = (4..=21)
            .map(|field| field.to_string())
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(
            parse_stat(&format!("7 (a) b) S {rest} 4711 5")),
            Some((4711, true))
        );
        assert_eq!(
            parse_stat(&format!("7 (sh) Z {rest} 4711 5")),
            Some((4711, false))
        );
        assert!(start_time(rustix::process::getpid()).unwrap().1);
    }

    #[test]
    fn life_of_a_directory() {
        let root = std::env::temp_dir().join(format!("qrun-state-{}", std::process::id()));
        let store = Store::new(&root, true);
        assert!(store.ids().unwrap().is_empty());
        assert!(matches!(store.open("c1"), Err(Error::NotExist)));
        let directory = store.create("c1").unwrap();
        assert!(matches!(store.create("c1"), Err(Error::Exists)));
        assert!(matches!(directory.read(), Err(Error::NotExist)));
        let record = Record {
            id: "c1".into(),
            pid: 5,
            start_time: 6,
            ..Record::default()
        };
        directory.write(&record).unwrap();
        assert_eq!(store.open("c1").unwrap().read().unwrap(), record);
        assert_eq!(store.ids().unwrap(), ["c1"]);
        std::fs::write(directory.path().join("state.json.new"), "{").unwrap();
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert!(store.ids().unwrap().is_empty());
        std::fs::remove_dir(&root).unwrap();
    }
}
