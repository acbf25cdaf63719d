//! Namespaces: which ones a container makes and which it joins, and the id mappings of a user namespace.
//!
//! Governing text: runtime-spec config-linux.md, "Namespaces", "User namespace mappings" and "Offset for time namespace".

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::failure::{CallFailed, During};
use crate::plan::Error;
use crate::spec::linux::{IdMapping, Linux};
use crate::sys::process::{CLONE_NEWTIME, clone_process};

/// A kind of namespace, in the order in which they are joined: the user namespace first, because it decides what one may
/// do in the others; the mount namespace last, because it takes the paths away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// User and group ids, capabilities.
    User,
    /// Process ids.
    Pid,
    /// Network.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Clocks.
    Time,
    /// View of the cgroup tree.
    Cgroup,
    /// Mounts.
    Mount,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 8] = [
        Self::User,
        Self::Pid,
        Self::Network,
        Self::Ipc,
        Self::Uts,
        Self::Time,
        Self::Cgroup,
        Self::Mount,
    ];

    /// Name in config.json.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Cgroup => "cgroup",
            Self::Mount => "mount",
        }
    }

    /// `CLONE_NEW*` flag.
    pub(crate) fn flag(self) -> u64 {
        let flag = match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Time => return CLONE_NEWTIME,
        };
        u64::from(flag.unsigned_abs())
    }
}

/// The namespaces of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Kinds, in the order of [`Kind`], with the file to join or nothing to make a new one.
    entries: Vec<(Kind, Option<PathBuf>)>,
    /// User id mappings of a new user namespace, as `/proc/PID/uid_map` takes them.
    pub(crate) uid_map: String,
    /// Group id mappings likewise.
    pub(crate) gid_map: String,
    /// Clock offsets of a new time namespace, as `/proc/PID/timens_offsets` takes them.
    pub(crate) time_offsets: String,
}

impl Namespaces {
    /// Checks the namespaces of a spec.
    pub(crate) fn new(linux: &Linux) -> Result<Self, Error> {
        let mut entries: Vec<(Kind, Option<PathBuf>)> = Vec::with_capacity(linux.namespaces.len());
        for namespace in &linux.namespaces {
            let kind = Kind::ALL
                .into_iter()
                .find(|kind| kind.name() == namespace.kind)
                .ok_or_else(|| {
                    Error::Invalid(format!("namespace {:?} does not exist", namespace.kind))
                })?;
            if entries.iter().any(|(known, _)| *known == kind) {
                return Err(Error::Invalid(format!(
                    "malformed spec file: duplicated ns {:?}",
                    namespace.kind
                )));
            }
            let path =
                Some(PathBuf::from(&namespace.path)).filter(|path| !path.as_os_str().is_empty());
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(Error::Invalid(format!(
                    "namespace path {:?} is not absolute",
                    namespace.path
                )));
            }
            entries.push((kind, path));
        }
        entries.sort_by_key(|(kind, _)| *kind);
        let namespaces = Self {
            entries,
            uid_map: map_lines(&linux.uid_mappings),
            gid_map: map_lines(&linux.gid_mappings),
            time_offsets: time_offsets(linux)?,
        };
        namespaces.check_mappings()?;
        if !namespaces.time_offsets.is_empty() {
            if namespaces.is_joined(Kind::Time) {
                return Err(Error::invalid(
                    "time namespace enabled, but both namespace path and time offsets specified -- you may only provide one",
                ));
            }
            if !namespaces.makes(Kind::Time) {
                return Err(Error::invalid(
                    "time namespace offsets specified, but time namespace isn't enabled in the config",
                ));
            }
        }
        Ok(namespaces)
    }

    /// Mappings and a new user namespace go together.
    fn check_mappings(&self) -> Result<(), Error> {
        let mapped = !self.uid_map.is_empty() || !self.gid_map.is_empty();
        if self.makes(Kind::User) {
            if self.uid_map.is_empty() {
                return Err(Error::invalid(
                    "user namespaces enabled, but no uid mappings found",
                ));
            }
            if self.gid_map.is_empty() {
                return Err(Error::invalid(
                    "user namespaces enabled, but no gid mappings found",
                ));
            }
        } else if mapped && !self.is_joined(Kind::User) {
            return Err(Error::invalid(
                "user namespace mappings specified, but user namespace isn't enabled in the config",
            ));
        }
        Ok(())
    }

    /// Whether the container has a namespace of this kind that is not the caller's.
    pub(crate) fn contains(&self, kind: Kind) -> bool {
        self.entries.iter().any(|(known, _)| *known == kind)
    }

    /// Whether the container makes a namespace of this kind.
    pub(crate) fn makes(&self, kind: Kind) -> bool {
        self.entries
            .iter()
            .any(|(known, path)| *known == kind && path.is_none())
    }

    /// Whether the container joins an existing namespace of this kind.
    pub(crate) fn is_joined(&self, kind: Kind) -> bool {
        self.entries
            .iter()
            .any(|(known, path)| *known == kind && path.is_some())
    }

    /// Whether the container has a user namespace, new or joined.
    pub(crate) fn has_user(&self) -> bool {
        self.contains(Kind::User)
    }

    /// The namespaces to join, in order.
    pub(crate) fn joined(&self) -> impl Iterator<Item = (Kind, &Path)> {
        self.entries
            .iter()
            .filter_map(|(kind, path)| Some((*kind, path.as_deref()?)))
    }

    /// Flags for `clone3`: every new namespace but these. The cgroup namespace takes the cgroup of the moment it is made as its
    /// root, so the process must be there first; the time namespace takes offsets before its first process enters; the
    /// IPC namespace's message queues belong to whoever makes it, which in a user namespace has to be root there.
    pub(crate) fn clone_flags(&self) -> u64 {
        let made = self
            .entries
            .iter()
            .filter(|(_, path)| path.is_none())
            .map(|(kind, _)| *kind);
        made.filter(|kind| !matches!(kind, Kind::Cgroup | Kind::Time))
            .filter(|kind| *kind != Kind::Ipc || !self.has_user())
            .fold(0, |flags, kind| flags | kind.flag())
    }

    /// Flags of every kind that is not the caller's: what `exec` joins later.
    pub(crate) fn all_flags(&self) -> u64 {
        self.entries
            .iter()
            .fold(0, |flags, (kind, _)| flags | kind.flag())
    }
}

/// One line a mapping: inside, outside, how many.
pub(crate) fn map_lines(mappings: &[IdMapping]) -> String {
    let mut lines = String::new();
    for mapping in mappings {
        // Writing to a string does not fail.
        let _ = writeln!(
            lines,
            "{} {} {}",
            mapping.container_id, mapping.host_id, mapping.size
        );
    }
    lines
}

/// One line a clock: name, seconds, nanoseconds.
fn time_offsets(linux: &Linux) -> Result<String, Error> {
    let mut lines = String::new();
    for (clock, offset) in &linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::Invalid(format!(
                "time namespace offset for unknown clock {clock:?}"
            )));
        }
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{clock} {} {}", offset.secs, offset.nanosecs);
    }
    Ok(lines)
}

/// Makes a user namespace with these mappings, which no process is in.
pub(crate) fn make_user_namespace(uids: &str, gids: &str) -> Result<OwnedFd, CallFailed> {
    let (held, release) = pipe_with(PipeFlags::CLOEXEC).during("pipe2", "user namespace")?;
    // The process is there only until the namespace is open: the end of the pipe ends it.
    let flags = Kind::User.flag();
    let (child, release) = clone_process(flags, None, (release, held), |held| {
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&held, &mut [0]));
        0
    })
    .during("clone3", "user namespace")?;
    let directory = PathBuf::from(format!("/proc/{}", child.pid.as_raw_nonzero()));
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).during("write", &path)
    };
    let path = directory.join("ns/user");
    let made = write("uid_map", uids)
        .and_then(|()| write("gid_map", gids))
        .and_then(|()| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(CWD, &path, flags, Mode::empty()).during("open", &path)
        });
    drop(release);
    // ECHILD would mean that it has been waited for already.
    let _ = rustix::io::retry_on_intr(|| waitpid(Some(child.pid), WaitOptions::empty()));
    made
}

/// Why id mappings could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MapError {
    /// The kernel refused them.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The privileged helper refused them.
    #[error("{0} refused the id mappings")]
    Helper(&'static str),
}

/// Gives a new user namespace its mappings, from its parent namespace.
pub(crate) fn write_id_maps(pid: Pid, namespaces: &Namespaces) -> Result<(), MapError> {
    let directory = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).during("write", &path)
    };
    if rustix::process::geteuid().is_root() {
        write("uid_map", &namespaces.uid_map)?;
        write("gid_map", &namespaces.gid_map)?;
        return Ok(());
    }
    // Without privileges one may map oneself only, and more through the setuid helpers and /etc/subuid.
    if write("uid_map", &namespaces.uid_map).is_err() {
        map_by_helper("newuidmap", pid, &namespaces.uid_map)?;
    }
    if namespaces.gid_map.lines().count() == 1 {
        // setgroups must be given up before an unprivileged gid_map; see user_namespaces(7).
        write("setgroups", "deny")?;
        if write("gid_map", &namespaces.gid_map).is_ok() {
            return Ok(());
        }
    }
    map_by_helper("newgidmap", pid, &namespaces.gid_map)
}

/// Runs `newuidmap` or `newgidmap` of the shadow suite.
fn map_by_helper(helper: &'static str, pid: Pid, map: &str) -> Result<(), MapError> {
    let status = Command::new(helper)
        .arg(pid.as_raw_nonzero().to_string())
        .args(map.split_whitespace())
        .status()
        .during("exec", helper)?;
    if status.success() {
        Ok(())
    } else {
        Err(MapError::Helper(helper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Namespaces, Error> {
        Namespaces::new(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn new_and_joined() {
        let namespaces = parse(
            r#"{"namespaces":[{"type":"mount"},{"type":"cgroup"},{"type":"pid","path":"/proc/1/ns/pid"},{"type":"network"}]}"#,
        )
        .unwrap();
        assert_eq!(
            namespaces.clone_flags(),
            Kind::Mount.flag() | Kind::Network.flag()
        );
        assert_eq!(
            namespaces.joined().collect::<Vec<_>>(),
            [(Kind::Pid, Path::new("/proc/1/ns/pid"))]
        );
        assert!(namespaces.makes(Kind::Cgroup) && !namespaces.contains(Kind::Uts));
    }

    #[test]
    fn mappings_and_offsets() {
        let json = r#"{"namespaces":[{"type":"user"},{"type":"time"}],"timeOffsets":{"boottime":{"secs":5}},
            "uidMappings":[{"containerID":0,"hostID":1000,"size":1}],"gidMappings":[{"containerID":0,"hostID":1000,"size":1},
            {"containerID":1,"hostID":100000,"size":65536}]}"#;
        let namespaces = parse(json).unwrap();
        assert_eq!(namespaces.uid_map, "0 1000 1\n");
        assert_eq!(namespaces.gid_map, "0 1000 1\n1 100000 65536\n");
        assert_eq!(namespaces.time_offsets, "boottime 5 0\n");
        assert_eq!(namespaces.clone_flags(), Kind::User.flag());
    }

    #[test]
    fn broken_rules() {
        for (json, text) in [
            (
                r#"{"namespaces":[{"type":"pid"},{"type":"pid"}]}"#,
                "malformed spec file: duplicated ns \"pid\"",
            ),
            (
                r#"{"namespaces":[{"type":"x"}]}"#,
                "namespace \"x\" does not exist",
            ),
            (
                r#"{"namespaces":[{"type":"user"}]}"#,
                "user namespaces enabled, but no uid mappings found",
            ),
            (
                r#"{"namespaces":[{"type":"time","path":"/t"}],"timeOffsets":{"boottime":{"secs":5}}}"#,
                "time namespace enabled, but both namespace path and time offsets specified -- you may only provide one",
            ),
            (
                r#"{"namespaces":[],"timeOffsets":{"boottime":{"secs":5}}}"#,
                "time namespace offsets specified, but time namespace isn't enabled in the config",
            ),
        ] {
            assert_eq!(parse(json).unwrap_err().to_string(), text);
        }
    }
}
