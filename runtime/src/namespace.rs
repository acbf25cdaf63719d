//! Namespaces: which ones a container makes and which it joins, and the id mappings of a user namespace ([`mapping`]).
//!
//! Governing text: runtime-spec config-linux.md, "Namespaces", "User namespace mappings" and "Offset for time namespace".

pub(crate) mod mapping;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::plan::Error;
use crate::spec::linux::{IdMapping, Linux};
use crate::sys::process::CLONE_NEWTIME;

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

    /// Name in `/proc/PID/ns`, which is criu's too.
    pub(crate) fn file_name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Mount => "mnt",
            other => other.name(),
        }
    }

    /// The kinds whose flags are among these.
    pub(crate) fn among(flags: u64) -> impl Iterator<Item = Self> {
        let is_there = move |kind: &Self| flags & kind.flag() != 0;
        Self::ALL.into_iter().filter(is_there)
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
        let (uids, gids) = (!self.uid_map.is_empty(), !self.gid_map.is_empty());
        if self.makes(Kind::User) {
            let problem = match (uids, gids) {
                (true, true) => return Ok(()),
                (false, false) => {
                    "user namespaces enabled, but no namespace path to join nor mappings to apply specified"
                }
                (false, true) => "user namespaces enabled, but no uid mappings found",
                (true, false) => "user namespaces enabled, but no gid mappings found",
            };
            return Err(Error::invalid(problem));
        }
        if (uids || gids) && !self.is_joined(Kind::User) {
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
                r#"{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
                "user namespaces enabled, but no gid mappings found",
            ),
            (
                r#"{"namespaces":[],"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
                "user namespace mappings specified, but user namespace isn't enabled in the config",
            ),
            (
                r#"{"namespaces":[{"type":"user"}]}"#,
                "user namespaces enabled, but no namespace path to join nor mappings to apply specified",
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
