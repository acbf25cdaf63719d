//! Mounts: what the options of config.json mean to the kernel.
//!
//! The names are those of runtime-spec config.md "Linux mount options" and of runc. Options that are neither flags nor
//! known words are data for the file system.

use std::path::{Path, PathBuf};

use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID};

use super::Error;
use crate::namespace::map_lines;
use crate::spec::Mount;
use crate::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME, MS_NOSYMFOLLOW, MountAttr,
};

/// How a mount comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A copy of an existing mount.
    Bind {
        /// With the mounts below it.
        recursive: bool,
    },
    /// The cgroup hierarchies, as the container may see them.
    Cgroup,
    /// A file system of this type.
    FileSystem(String),
}

/// The ids that files have in an idmapped mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Idmap {
    /// Whether the mounts below get them, too.
    pub(crate) recursive: bool,
    /// Which they are.
    pub(crate) mapping: Mapping,
}

/// A mapping from the ids on disk to those of the mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mapping {
    /// That of the container's user namespace.
    Container,
    /// One of its own, as `/proc/PID/uid_map` and `gid_map` take it.
    Own {
        /// User ids.
        uids: String,
        /// Group ids.
        gids: String,
    },
}

/// One mount, ready to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountStep {
    /// How it comes about.
    pub(crate) kind: Kind,
    /// What is mounted: an absolute path for bind mounts.
    pub(crate) source: PathBuf,
    /// Absolute path inside the container.
    pub(crate) destination: String,
    /// `MS_*` flags that are asked for.
    pub(crate) flags: u64,
    /// `MS_*` flags that are asked not to be set.
    pub(crate) cleared: u64,
    /// Attributes for the mount and everything below it.
    pub(crate) recursive_attr: MountAttr,
    /// Propagation types to set, in order, each for the tree below as well or not.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Data for the file system, comma separated.
    pub(crate) data: String,
    /// SELinux label of what is in the file system.
    pub(crate) label: Option<String>,
    /// Whether a tmpfs starts with what was there before.
    pub(crate) copy_up: bool,
    /// Other ids than on disk.
    pub(crate) idmap: Option<Idmap>,
}

impl MountStep {
    /// A plain bind mount.
    pub(crate) fn bind(source: &Path, destination: &str) -> Self {
        Self {
            kind: Kind::Bind { recursive: false },
            source: source.to_owned(),
            destination: destination.to_owned(),
            flags: 0,
            cleared: 0,
            recursive_attr: MountAttr::default(),
            propagation: Vec::new(),
            data: String::new(),
            label: None,
            copy_up: false,
            idmap: None,
        }
    }

    /// Takes away what can be done with what is mounted, beyond reading.
    pub(crate) fn restrict(&mut self) {
        self.flags |= libc::MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    }

    /// Whether it is a bind mount.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind { .. })
    }

    /// Whether it is a tmpfs.
    pub(crate) fn is_tmpfs(&self) -> bool {
        matches!(&self.kind, Kind::FileSystem(kind) if kind == "tmpfs")
    }

    /// Whether the container may not write to it.
    pub(crate) fn is_read_only(&self) -> bool {
        self.flags & libc::MS_RDONLY != 0
    }

    /// Whether it is read-only only in the end, because device files and mount points are made in it before.
    pub(crate) fn is_read_only_later(&self) -> bool {
        self.is_read_only()
            && matches!(self.kind, Kind::FileSystem(_))
            && (self.is_tmpfs() || self.destination.trim_end_matches('/') == "/dev")
    }
}

/// What a word among the options means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Switches `MS_*` flags on.
    Set(u64),
    /// Switches them off.
    Clear(u64),
    /// Switches an attribute on for the whole tree.
    SetTree(u64),
    /// Switches an attribute off for the whole tree.
    ClearTree(u64),
    /// Sets the access time behaviour of the whole tree.
    AccessTimeTree(u64),
    /// Sets the propagation type, perhaps of the whole tree.
    Propagation(u64, bool),
    /// Makes it a bind mount, perhaps with what is below.
    Bind(bool),
    /// Known and without effect.
    Nothing,
    /// Fills a tmpfs.
    CopyUp,
    /// An idmapped mount, perhaps with what is below.
    Idmap(bool),
}

/// Every option that is a word of ours rather than data of a file system, in the order of their names.
const OPTIONS: [(&str, Meaning); 62] = {
    use Meaning::{
        AccessTimeTree, Bind, Clear, ClearTree, CopyUp, Idmap, Nothing, Propagation, Set, SetTree,
    };
    /// What is left when the other behaviours are taken away.
    const RELATIME: u64 = 0;
    [
        ("async", Clear(libc::MS_SYNCHRONOUS)),
        ("atime", Clear(libc::MS_NOATIME)),
        ("bind", Bind(false)),
        ("defaults", Nothing),
        ("dev", Clear(MS_NODEV)),
        ("diratime", Clear(libc::MS_NODIRATIME)),
        ("dirsync", Set(libc::MS_DIRSYNC)),
        ("exec", Clear(MS_NOEXEC)),
        ("idmap", Idmap(false)),
        ("iversion", Set(libc::MS_I_VERSION)),
        ("lazytime", Set(libc::MS_LAZYTIME)),
        ("loud", Clear(libc::MS_SILENT)),
        ("mand", Set(libc::MS_MANDLOCK)),
        ("noatime", Set(libc::MS_NOATIME)),
        ("nodev", Set(MS_NODEV)),
        ("nodiratime", Set(libc::MS_NODIRATIME)),
        ("noexec", Set(MS_NOEXEC)),
        ("noiversion", Clear(libc::MS_I_VERSION)),
        ("nolazytime", Clear(libc::MS_LAZYTIME)),
        ("nomand", Clear(libc::MS_MANDLOCK)),
        ("norelatime", Clear(libc::MS_RELATIME)),
        ("nostrictatime", Clear(libc::MS_STRICTATIME)),
        ("nosuid", Set(MS_NOSUID)),
        ("nosymfollow", Set(MS_NOSYMFOLLOW)),
        ("private", Propagation(libc::MS_PRIVATE, false)),
        ("ratime", AccessTimeTree(RELATIME)),
        ("rbind", Bind(true)),
        ("rdev", ClearTree(ATTR_NODEV)),
        ("rdiratime", ClearTree(ATTR_NODIRATIME)),
        ("relatime", Set(libc::MS_RELATIME)),
        ("remount", Set(libc::MS_REMOUNT)),
        ("rexec", ClearTree(ATTR_NOEXEC)),
        ("ridmap", Idmap(true)),
        ("rnoatime", AccessTimeTree(ATTR_NOATIME)),
        ("rnodev", SetTree(ATTR_NODEV)),
        ("rnodiratime", SetTree(ATTR_NODIRATIME)),
        ("rnoexec", SetTree(ATTR_NOEXEC)),
        ("rnorelatime", AccessTimeTree(RELATIME)),
        ("rnostrictatime", AccessTimeTree(RELATIME)),
        ("rnosuid", SetTree(ATTR_NOSUID)),
        ("rnosymfollow", SetTree(ATTR_NOSYMFOLLOW)),
        ("ro", Set(libc::MS_RDONLY)),
        ("rprivate", Propagation(libc::MS_PRIVATE, true)),
        ("rrelatime", AccessTimeTree(RELATIME)),
        ("rro", SetTree(ATTR_RDONLY)),
        ("rrw", ClearTree(ATTR_RDONLY)),
        ("rshared", Propagation(libc::MS_SHARED, true)),
        ("rslave", Propagation(libc::MS_SLAVE, true)),
        ("rstrictatime", AccessTimeTree(ATTR_STRICTATIME)),
        ("rsuid", ClearTree(ATTR_NOSUID)),
        ("rsymfollow", ClearTree(ATTR_NOSYMFOLLOW)),
        ("runbindable", Propagation(libc::MS_UNBINDABLE, true)),
        ("rw", Clear(libc::MS_RDONLY)),
        ("shared", Propagation(libc::MS_SHARED, false)),
        ("silent", Set(libc::MS_SILENT)),
        ("slave", Propagation(libc::MS_SLAVE, false)),
        ("strictatime", Set(libc::MS_STRICTATIME)),
        ("suid", Clear(MS_NOSUID)),
        ("symfollow", Clear(MS_NOSYMFOLLOW)),
        ("sync", Set(libc::MS_SYNCHRONOUS)),
        ("tmpcopyup", CopyUp),
        ("unbindable", Propagation(libc::MS_UNBINDABLE, false)),
    ]
};

/// Looks an option up.
fn meaning(option: &str) -> Option<Meaning> {
    let found = OPTIONS.binary_search_by_key(&option, |(name, _)| name);
    found.ok().map(|index| OPTIONS[index].1)
}

/// The words, for `features`.
pub(crate) fn known_options() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|(name, _)| *name)
}

/// Turns the mounts of a spec into steps. Relative bind sources are relative to the bundle.
pub(crate) fn steps(mounts: &[Mount], around: &Surroundings<'_>) -> Result<Vec<MountStep>, Error> {
    mounts.iter().map(|mount| step(mount, around)).collect()
}

/// What the mounts of a container have in common.
#[derive(Debug)]
pub(crate) struct Surroundings<'a> {
    /// The bundle, absolute.
    pub(crate) bundle: &'a Path,
    /// The root file system, absolute.
    pub(crate) root: &'a Path,
    /// SELinux label; empty for none.
    pub(crate) label: &'a str,
    /// Whether the container has a user namespace.
    pub(crate) has_user_namespace: bool,
}

/// One mount of a spec.
fn step(mount: &Mount, around: &Surroundings<'_>) -> Result<MountStep, Error> {
    if mount.destination.is_empty() {
        return Err(Error::invalid("mount destination must not be empty"));
    }
    let source = mount.source.as_str();
    if [source, &mount.destination, &mount.kind]
        .iter()
        .any(|field| field.contains('\0'))
    {
        return Err(Error::invalid("mount field contains null byte"));
    }
    let mut destination = inside(&mount.destination, around.root);
    if is_proc(&destination, &mount.kind)? {
        // However it was written: what is mounted there is checked when the time comes.
        "/proc".clone_into(&mut destination);
    }
    let mut step = MountStep::bind(Path::new(source), &destination);
    let mut bind = (mount.kind == "bind").then_some(false);
    let mut idmap = None;
    let mut data: Vec<&str> = Vec::new();
    for option in &mount.options {
        match meaning(option) {
            None => data.push(option),
            Some(Meaning::Bind(recursive)) => bind = Some(recursive || bind == Some(true)),
            Some(Meaning::Idmap(recursive)) => idmap = Some(recursive),
            Some(meaning) => apply(&mut step, meaning),
        }
    }
    step.data = data.join(",");
    step.kind = match (bind, mount.kind.as_str()) {
        (Some(recursive), _) => Kind::Bind { recursive },
        (None, "cgroup" | "cgroup2") => Kind::Cgroup,
        (None, "") => {
            return Err(Error::invalid(format!(
                "mount {} has neither a type nor a bind option",
                destination.escape_debug()
            )));
        }
        (None, kind) => Kind::FileSystem(kind.to_owned()),
    };
    if step.is_bind() {
        step.source = around.bundle.join(source);
        if !step.data.is_empty() {
            return Err(Error::Invalid(format!(
                "invalid mount {}: bind mounts cannot have any filesystem-specific options applied ({})",
                destination.escape_debug(),
                step.data.escape_debug()
            )));
        }
    } else if !around.label.is_empty() {
        step.label = Some(around.label.to_owned());
    }
    step.idmap = id_mapping(mount, idmap, &step, around)?;
    Ok(step)
}

/// A destination as an absolute path inside the container. Relative ones are deprecated but valid: they are taken from the
/// root. One that begins with the root's own path on the host is meant to be below it, as with runc.
fn inside(destination: &str, root: &Path) -> String {
    let absolute = format!("/{}", destination.trim_start_matches('/'));
    let path = Path::new(&absolute);
    match path.strip_prefix(root) {
        Ok(below) if root != Path::new("/") => format!("/{}", below.display()),
        _ => absolute,
    }
}

/// The id mapping that a mount asks for: by its options (`recursive` then says whether for the tree) or by having one.
fn id_mapping(
    mount: &Mount,
    recursive: Option<bool>,
    step: &MountStep,
    around: &Surroundings<'_>,
) -> Result<Option<Idmap>, Error> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    let has_own = !uids.is_empty() || !gids.is_empty();
    if recursive.is_none() && !has_own {
        return Ok(None);
    }
    let invalid = |what: &str| {
        Err(Error::Invalid(format!(
            "invalid mount {}: id-mapped mounts {what}",
            step.destination.escape_debug()
        )))
    };
    if !step.is_bind() {
        return invalid("are only supported for bind-mounts");
    }
    if has_own && (uids.is_empty() || gids.is_empty()) || !has_own && !around.has_user_namespace {
        return invalid("must have both uid and gid mappings specified");
    }
    let mapping = if has_own {
        Mapping::Own {
            uids: map_lines(uids),
            gids: map_lines(gids),
        }
    } else {
        Mapping::Container
    };
    Ok(Some(Idmap {
        recursive: recursive == Some(true),
        mapping,
    }))
}

/// What may be mounted over below `/proc`: files that lxcfs and the like replace by the container's own view.
const REPLACEABLE: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// Below `/proc` only a few files may be replaced, and `/proc` itself only by a `/proc` (a bind mount is checked when it is
/// made): what the kernel says there is what the container's isolation and our own writes rely on. Says whether it is
/// `/proc` itself.
fn is_proc(destination: &str, kind: &str) -> Result<bool, Error> {
    let mut clean: Vec<&str> = Vec::new();
    for component in destination
        .split('/')
        .filter(|component| !matches!(*component, "" | "."))
    {
        if component == ".." {
            clean.pop();
        } else {
            clean.push(component);
        }
    }
    match clean.as_slice() {
        ["proc"] if matches!(kind, "proc" | "bind" | "none" | "") => Ok(true),
        ["proc"] => Err(Error::Invalid(format!(
            "{destination:?} cannot be mounted because it is not of type proc"
        ))),
        ["proc", below @ ..] if !is_replaceable(&below.join("/")) => Err(Error::Invalid(format!(
            "{destination:?} cannot be mounted because it is inside /proc"
        ))),
        _ => Ok(false),
    }
}

/// Whether a path relative to `/proc` may be mounted over.
pub(crate) fn is_replaceable(below_proc: &str) -> bool {
    REPLACEABLE.contains(&below_proc)
}

/// Adds what an option means to a step.
fn apply(step: &mut MountStep, meaning: Meaning) {
    let tree = &mut step.recursive_attr;
    match meaning {
        Meaning::Set(flags) => {
            step.flags |= flags;
            step.cleared &= !flags;
        }
        Meaning::Clear(flags) => {
            step.flags &= !flags;
            step.cleared |= flags;
        }
        Meaning::SetTree(bits) => {
            tree.attr_set |= bits;
            tree.attr_clr &= !bits;
        }
        Meaning::ClearTree(bits) => {
            tree.attr_clr |= bits;
            tree.attr_set &= !bits;
        }
        Meaning::AccessTimeTree(bits) => {
            tree.attr_clr |= ATTR_ATIME_MASK;
            tree.attr_set = tree.attr_set & !ATTR_ATIME_MASK | bits;
        }
        Meaning::Propagation(kind, recursive) => step.propagation.push((kind, recursive)),
        Meaning::CopyUp => step.copy_up = true,
        Meaning::Bind(_) | Meaning::Nothing | Meaning::Idmap(_) => {}
    }
}

/// `MS_*` flags for `linux.rootfsPropagation`; `None` without one.
pub(crate) fn root_propagation(name: &str) -> Result<Option<u64>, Error> {
    match (name, meaning(name)) {
        ("", _) => Ok(None),
        (_, Some(Meaning::Propagation(kind, recursive))) => {
            Ok(Some(kind | if recursive { libc::MS_REC } else { 0 }))
        }
        _ => Err(Error::Invalid(format!(
            "rootfsPropagation={} is not supported",
            name.escape_debug()
        ))),
    }
}

#[cfg(test)]
mod tests;
