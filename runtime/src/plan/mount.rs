//! Mounts: what the options of config.json mean to the kernel.
//!
//! The names are those of runtime-spec config.md "Linux mount options" and of runc. Options that are neither flags nor
//! known words are data for the file system.

use std::path::{Path, PathBuf};

use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID};

use super::Error;
use crate::spec::Mount;
use crate::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME, MountAttr,
};

/// `MS_NOSYMFOLLOW`, since Linux 5.10.
const MS_NOSYMFOLLOW: u64 = 256;

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

/// One mount, ready to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountStep {
    /// How it comes about.
    pub(crate) kind: Kind,
    /// What is mounted: an absolute path for bind mounts.
    pub(crate) source: PathBuf,
    /// Absolute path inside the container.
    pub(crate) destination: String,
    /// `MS_*` flags of a new file system.
    pub(crate) flags: u64,
    /// The same as attributes, for bind mounts.
    pub(crate) attr: MountAttr,
    /// Attributes for the mount and everything below it.
    pub(crate) recursive_attr: MountAttr,
    /// Propagation types to set, in order, each for the tree below as well or not.
    pub(crate) propagation: Vec<(u64, bool)>,
    /// Data for the file system, comma separated.
    pub(crate) data: String,
    /// Whether a tmpfs starts with what was there before.
    pub(crate) copy_up: bool,
}

impl MountStep {
    /// A plain bind mount.
    pub(crate) fn bind(source: &Path, destination: &str) -> Self {
        Self {
            kind: Kind::Bind { recursive: false },
            source: source.to_owned(),
            destination: destination.to_owned(),
            flags: 0,
            attr: MountAttr::default(),
            recursive_attr: MountAttr::default(),
            propagation: Vec::new(),
            data: String::new(),
            copy_up: false,
        }
    }

    /// Takes away what can be done with what is mounted, beyond reading.
    pub(crate) fn restrict(&mut self) {
        self.flags |= libc::MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
        self.attr.attr_set |= ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
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
}

/// What a word among the options means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Switches a flag on: `MS_*` bits and attribute bits.
    Set(u64, u64),
    /// Switches a flag off.
    Clear(u64, u64),
    /// Sets the access time behaviour of the mount.
    AccessTime(u64, u64),
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
    /// An idmapped mount.
    Idmap,
}

/// Looks an option up.
fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{
        AccessTime, AccessTimeTree, Bind, Clear, ClearTree, CopyUp, Idmap, Nothing, Propagation,
        Set, SetTree,
    };
    Some(match option {
        "defaults" | "loud" | "norelatime" | "noiversion" => Nothing,
        "ro" => Set(libc::MS_RDONLY, ATTR_RDONLY),
        "rw" => Clear(libc::MS_RDONLY, ATTR_RDONLY),
        "nosuid" => Set(MS_NOSUID, ATTR_NOSUID),
        "suid" => Clear(MS_NOSUID, ATTR_NOSUID),
        "nodev" => Set(MS_NODEV, ATTR_NODEV),
        "dev" => Clear(MS_NODEV, ATTR_NODEV),
        "noexec" => Set(MS_NOEXEC, ATTR_NOEXEC),
        "exec" => Clear(MS_NOEXEC, ATTR_NOEXEC),
        "nodiratime" => Set(libc::MS_NODIRATIME, ATTR_NODIRATIME),
        "diratime" => Clear(libc::MS_NODIRATIME, ATTR_NODIRATIME),
        "nosymfollow" => Set(MS_NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(MS_NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
        "sync" => Set(libc::MS_SYNCHRONOUS, 0),
        "async" => Clear(libc::MS_SYNCHRONOUS, 0),
        "dirsync" => Set(libc::MS_DIRSYNC, 0),
        "mand" => Set(libc::MS_MANDLOCK, 0),
        "nomand" => Clear(libc::MS_MANDLOCK, 0),
        "silent" => Set(libc::MS_SILENT, 0),
        "iversion" => Set(libc::MS_I_VERSION, 0),
        "lazytime" => Set(libc::MS_LAZYTIME, 0),
        "nolazytime" => Clear(libc::MS_LAZYTIME, 0),
        "acl" => Set(libc::MS_POSIXACL, 0),
        "noacl" => Clear(libc::MS_POSIXACL, 0),
        "remount" => Set(libc::MS_REMOUNT, 0),
        "noatime" => AccessTime(libc::MS_NOATIME, ATTR_NOATIME),
        "strictatime" => AccessTime(libc::MS_STRICTATIME, ATTR_STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => AccessTime(libc::MS_RELATIME, 0),
        "rro" => SetTree(ATTR_RDONLY),
        "rrw" => ClearTree(ATTR_RDONLY),
        "rnosuid" => SetTree(ATTR_NOSUID),
        "rsuid" => ClearTree(ATTR_NOSUID),
        "rnodev" => SetTree(ATTR_NODEV),
        "rdev" => ClearTree(ATTR_NODEV),
        "rnoexec" => SetTree(ATTR_NOEXEC),
        "rexec" => ClearTree(ATTR_NOEXEC),
        "rnodiratime" => SetTree(ATTR_NODIRATIME),
        "rdiratime" => ClearTree(ATTR_NODIRATIME),
        "rnosymfollow" => SetTree(ATTR_NOSYMFOLLOW),
        "rsymfollow" => ClearTree(ATTR_NOSYMFOLLOW),
        "rnoatime" => AccessTimeTree(ATTR_NOATIME),
        "rstrictatime" => AccessTimeTree(ATTR_STRICTATIME),
        "rrelatime" | "ratime" | "rnorelatime" | "rnostrictatime" => AccessTimeTree(0),
        "private" => Propagation(libc::MS_PRIVATE, false),
        "rprivate" => Propagation(libc::MS_PRIVATE, true),
        "shared" => Propagation(libc::MS_SHARED, false),
        "rshared" => Propagation(libc::MS_SHARED, true),
        "slave" => Propagation(libc::MS_SLAVE, false),
        "rslave" => Propagation(libc::MS_SLAVE, true),
        "unbindable" => Propagation(libc::MS_UNBINDABLE, false),
        "runbindable" => Propagation(libc::MS_UNBINDABLE, true),
        "bind" => Bind(false),
        "rbind" => Bind(true),
        "tmpcopyup" => CopyUp,
        "idmap" | "ridmap" => Idmap,
        _ => return None,
    })
}

/// Every option that is a word of ours rather than data of a file system; for `features`.
pub(crate) const KNOWN_OPTIONS: &[&str] = &[
    "acl",
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noacl",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "remount",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Turns the mounts of a spec into steps. Relative bind sources are relative to the bundle.
pub(crate) fn steps(mounts: &[Mount], bundle: &Path, label: &str) -> Result<Vec<MountStep>, Error> {
    mounts
        .iter()
        .map(|mount| step(mount, bundle, label))
        .collect()
}

/// One mount of a spec.
fn step(mount: &Mount, bundle: &Path, label: &str) -> Result<MountStep, Error> {
    if mount.destination.is_empty() {
        return Err(Error::invalid("mount destination must not be empty"));
    }
    // Relative destinations are deprecated but valid: they are taken from the root.
    let mut destination = format!("/{}", mount.destination.trim_start_matches('/'));
    if is_proc(&destination, &mount.kind)? {
        // However it was written: what is mounted there is checked when the time comes.
        "/proc".clone_into(&mut destination);
    }
    let mut step = MountStep::bind(Path::new(&mount.source), &destination);
    let mut bind = (mount.kind == "bind").then_some(false);
    let mut data: Vec<&str> = Vec::new();
    for option in &mount.options {
        match meaning(option) {
            None => data.push(option),
            Some(Meaning::Bind(recursive)) => bind = Some(recursive || bind == Some(true)),
            Some(Meaning::Idmap) => {
                return Err(Error::Unsupported(format!("mount option {option:?}")));
            }
            Some(meaning) => apply(&mut step, meaning),
        }
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(Error::Unsupported(format!(
            "the idmapped mount at {destination}"
        )));
    }
    step.kind = match (bind, mount.kind.as_str()) {
        (Some(recursive), _) => Kind::Bind { recursive },
        (None, "cgroup" | "cgroup2") => Kind::Cgroup,
        (None, "") => {
            return Err(Error::invalid(format!(
                "mount {destination} has neither a type nor a bind option"
            )));
        }
        (None, kind) => Kind::FileSystem(kind.to_owned()),
    };
    if step.is_bind() {
        step.source = bundle.join(&mount.source);
    } else if !label.is_empty()
        && !matches!(mount.kind.as_str(), "proc" | "sysfs" | "cgroup" | "cgroup2")
    {
        data.push("context=");
        step.data = format!("{}\"{label}\"", data.join(","));
        return Ok(step);
    }
    step.data = data.join(",");
    Ok(step)
}

/// Below `/proc` only a few files may be replaced, and `/proc` itself only by a `/proc` (a bind mount is checked when it is
/// made): what the kernel says there is what the container's isolation and our own writes rely on. Says whether it is
/// `/proc` itself.
fn is_proc(destination: &str, kind: &str) -> Result<bool, Error> {
    const ALLOWED: [&str; 10] = [
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "sys/kernel/ns_last_pid",
        "uptime",
    ];
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
        ["proc", below @ ..] if !ALLOWED.contains(&below.join("/").as_str()) => {
            Err(Error::Invalid(format!(
                "{destination:?} cannot be mounted because it is inside /proc"
            )))
        }
        _ => Ok(false),
    }
}

/// Adds what an option means to a step.
fn apply(step: &mut MountStep, meaning: Meaning) {
    const ACCESS_TIME_FLAGS: u64 = libc::MS_NOATIME | libc::MS_STRICTATIME | libc::MS_RELATIME;
    let set = |attr: &mut MountAttr, bits: u64| {
        attr.attr_set |= bits;
        attr.attr_clr &= !bits;
    };
    let clear = |attr: &mut MountAttr, bits: u64| {
        attr.attr_clr |= bits;
        attr.attr_set &= !bits;
    };
    let access_time = |attr: &mut MountAttr, bits: u64| {
        attr.attr_clr |= ATTR_ATIME_MASK;
        attr.attr_set = attr.attr_set & !ATTR_ATIME_MASK | bits;
    };
    match meaning {
        Meaning::Set(flags, bits) => {
            step.flags |= flags;
            set(&mut step.attr, bits);
        }
        Meaning::Clear(flags, bits) => {
            step.flags &= !flags;
            clear(&mut step.attr, bits);
        }
        Meaning::AccessTime(flags, bits) => {
            step.flags = step.flags & !ACCESS_TIME_FLAGS | flags;
            access_time(&mut step.attr, bits);
        }
        Meaning::SetTree(bits) => set(&mut step.recursive_attr, bits),
        Meaning::ClearTree(bits) => clear(&mut step.recursive_attr, bits),
        Meaning::AccessTimeTree(bits) => access_time(&mut step.recursive_attr, bits),
        Meaning::Propagation(kind, recursive) => step.propagation.push((kind, recursive)),
        Meaning::CopyUp => step.copy_up = true,
        Meaning::Bind(_) | Meaning::Nothing | Meaning::Idmap => {}
    }
}

/// `MS_*` flags for `linux.rootfsPropagation`; without one, the tree becomes a slave of the host's, as in runc.
pub(crate) fn root_propagation(name: &str) -> Result<u64, Error> {
    match (name, meaning(name)) {
        ("", _) => Ok(libc::MS_SLAVE | libc::MS_REC),
        (_, Some(Meaning::Propagation(kind, recursive))) => {
            Ok(kind | if recursive { libc::MS_REC } else { 0 })
        }
        _ => Err(Error::Invalid(format!(
            "rootfsPropagation={name} is not supported"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, options: &[&str]) -> MountStep {
        let mount = Mount {
            destination: "/d".into(),
            kind: kind.into(),
            source: "src".into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        };
        step(&mount, Path::new("/bundle"), "").unwrap()
    }

    #[test]
    fn every_known_option_has_a_meaning() {
        for option in KNOWN_OPTIONS {
            assert!(meaning(option).is_some(), "{option}");
        }
        assert!(KNOWN_OPTIONS.is_sorted());
    }

    #[test]
    fn file_system_flags_and_data() {
        let step = parse(
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        );
        assert_eq!(step.kind, Kind::FileSystem("tmpfs".into()));
        assert_eq!(step.flags, MS_NOSUID | libc::MS_STRICTATIME);
        assert_eq!(step.data, "mode=755,size=65536k");
        assert_eq!(step.source, Path::new("src"));
        assert_eq!(parse("cgroup", &["ro"]).kind, Kind::Cgroup);
    }

    #[test]
    fn bind_mounts() {
        let step = parse("bind", &["rbind", "ro", "rprivate", "nodev"]);
        assert_eq!(step.kind, Kind::Bind { recursive: true });
        assert_eq!(step.source, Path::new("/bundle/src"));
        assert_eq!(step.attr.attr_set, ATTR_RDONLY | ATTR_NODEV);
        assert_eq!(step.propagation, [(libc::MS_PRIVATE, true)]);
        assert_eq!(parse("", &["bind"]).kind, Kind::Bind { recursive: false });
        assert_eq!(
            parse("none", &["rbind"]).kind,
            Kind::Bind { recursive: true }
        );
    }

    #[test]
    fn later_options_win() {
        assert_eq!(parse("tmpfs", &["ro", "rw"]).flags, 0);
        let step = parse("bind", &["noatime", "relatime", "exec", "noexec"]);
        assert_eq!(
            (step.attr.attr_set, step.attr.attr_clr),
            (ATTR_NOEXEC, ATTR_ATIME_MASK)
        );
    }

    #[test]
    fn recursive_attributes() {
        let step = parse("bind", &["rbind", "rro", "rnoatime"]);
        assert_eq!(step.recursive_attr.attr_set, ATTR_RDONLY | ATTR_NOATIME);
        assert_eq!(step.recursive_attr.attr_clr, ATTR_ATIME_MASK);
        assert_eq!(step.attr, MountAttr::default());
    }

    #[test]
    fn root_propagation_names() {
        assert_eq!(root_propagation("").unwrap(), libc::MS_SLAVE | libc::MS_REC);
        assert_eq!(root_propagation("shared").unwrap(), libc::MS_SHARED);
        assert_eq!(
            root_propagation("rprivate").unwrap(),
            libc::MS_PRIVATE | libc::MS_REC
        );
        assert!(root_propagation("ro").is_err());
    }

    #[test]
    fn proc_is_not_replaced() {
        assert!(is_proc("/proc", "proc").unwrap() && is_proc("/x/..//proc/.", "bind").unwrap());
        assert!(is_proc("/proc", "tmpfs").is_err());
        assert!(!is_proc("/proc/meminfo", "bind").unwrap());
        assert!(is_proc("/x/../proc/./sys", "bind").is_err());
        assert!(is_proc("/proc/self/attr", "tmpfs").is_err());
        assert!(is_proc("/procession", "tmpfs").is_ok());
    }

    #[test]
    fn idmapped_mounts_are_refused() {
        let mount = Mount {
            destination: "/d".into(),
            kind: "bind".into(),
            options: vec!["idmap".into()],
            ..Mount::default()
        };
        assert!(matches!(
            step(&mount, Path::new("/"), ""),
            Err(Error::Unsupported(_))
        ));
    }
}
