//! What cgroup hierarchies the host has, and where the caller stands in them.
//!
//! The layout that every current distribution uses is found with a handful of system calls: one `statfs` of
//! `/sys/fs/cgroup` tells pure v2 from v1 and hybrid; on the latter `/proc/self/cgroup` names every hierarchy, and each
//! is looked for under its own name. `mountinfo`, which takes long to produce on hosts with many mounts, is read only
//! when that finds nothing, or when the caller's own cgroup is not visible below the mount (a container without a
//! cgroup namespace). See cgroups(7) and config-linux.md, "Control groups".

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::Pid;

use super::{Error, Result, file};

/// Where the hierarchies are mounted by convention.
const ROOT: &str = "/sys/fs/cgroup";
/// `CGROUP_SUPER_MAGIC`, the file system type of a v1 hierarchy.
const V1_MAGIC: u64 = 0x0027_e0eb;
/// `CGROUP2_SUPER_MAGIC`.
const V2_MAGIC: u64 = 0x6367_7270;

/// All hierarchies of the host.
#[derive(Debug, Clone)]
pub(crate) struct Hierarchies {
    list: Vec<Hierarchy>,
    pure_v2: bool,
    /// Content of `/proc/self/cgroup`, read when first needed.
    own: OnceCell<String>,
}

/// One mounted hierarchy, as the container's `cgroup` mount needs it on v1 and hybrid hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Directory name below `/sys/fs/cgroup` (`memory`, `cpu,cpuacct`, `systemd`, `unified`).
    pub(crate) name: String,
    /// Names that are to be symbolic links to it (`cpu` and `cpuacct` for `cpu,cpuacct`); usually none.
    pub(crate) links: Vec<String>,
    /// Option string for mounting it anew (`memory`, `cpu,cpuacct`, `none,name=systemd`); `None` for the v2 tree.
    pub(crate) mount_data: Option<String>,
    /// Where the host has it mounted.
    pub(crate) mount_point: PathBuf,
    /// The caller's own cgroup in it, absolute below the mount point.
    pub(crate) own_path: String,
}

impl Hierarchy {
    /// Whether this is the v2 tree.
    pub(crate) fn is_v2(&self) -> bool {
        self.mount_data.is_none()
    }

    /// The keys of its entries in state.json: controllers, `name=…`, or the empty string for v2.
    pub(super) fn keys(&self) -> Vec<&str> {
        match self.mount_data.as_deref() {
            None => vec![""],
            Some(data) => data.split(',').filter(|key| *key != "none").collect(),
        }
    }
}

impl Hierarchies {
    /// Looks at the host.
    pub(crate) fn detect() -> Result<Self> {
        let root = Path::new(ROOT);
        if magic(root) == Some(V2_MAGIC) {
            let v2 = Hierarchy {
                name: String::new(),
                links: Vec::new(),
                mount_data: None,
                mount_point: root.to_owned(),
                own_path: String::new(),
            };
            return Ok(Self {
                list: vec![v2],
                pure_v2: true,
                own: OnceCell::new(),
            });
        }
        let own = read_own()?;
        let mut list: Vec<_> = entries(&own)
            .filter_map(|entry| at_usual_place(root, entry))
            .collect();
        if list.is_empty() {
            let mounts = read_mountinfo()?;
            list = entries(&own)
                .filter_map(|entry| in_mountinfo(&mounts, entry))
                .collect();
        } else {
            correct_own_paths(&mut list)?;
        }
        let pure_v2 = match list.as_slice() {
            [] => return Err(Error::NoHierarchy),
            [only] => only.is_v2(),
            _ => false,
        };
        Ok(Self {
            list,
            pure_v2,
            own: OnceCell::from(own),
        })
    }

    /// A host on which none is mounted, or none that the caller can see.
    pub(crate) fn none() -> Self {
        Self {
            list: Vec::new(),
            pure_v2: false,
            own: OnceCell::new(),
        }
    }

    /// Whether the host has cgroup v2 alone.
    pub(crate) fn is_pure_v2(&self) -> bool {
        self.pure_v2
    }

    /// All hierarchies mounted on the host, for the container's own `cgroup` mount. On pure v2 the own path is left
    /// empty there, because only relative cgroup paths need it.
    pub(crate) fn list(&self) -> &[Hierarchy] {
        &self.list
    }

    /// The caller's own cgroup in a hierarchy, reading `/proc/self/cgroup` if that has not happened yet.
    pub(super) fn own_path<'a>(&'a self, hierarchy: &'a Hierarchy) -> Result<&'a str> {
        if !hierarchy.own_path.is_empty() {
            return Ok(&hierarchy.own_path);
        }
        if self.own.get().is_none() {
            // Cannot fail: the cell was empty and nothing else can fill it in between.
            let _ = self.own.set(read_own()?);
        }
        let own = self.own.get().map_or("", String::as_str);
        Ok(unified(own).unwrap_or("/"))
    }

    #[cfg(test)]
    pub(super) fn fixed(list: Vec<Hierarchy>, own: &str) -> Self {
        let pure_v2 = matches!(list.as_slice(), [only] if only.is_v2());
        Self {
            list,
            pure_v2,
            own: OnceCell::from(own.to_owned()),
        }
    }
}

fn magic(path: &Path) -> Option<u64> {
    let found = rustix::fs::statfs(path).ok()?;
    u64::try_from(found.f_type).ok()
}

fn read_own() -> Result<String> {
    file::read(Path::new("/proc/self/cgroup"))
}

/// The cgroups of a process, as this process's cgroup namespace shows them: controller (empty for v2) and path.
pub(crate) fn of_process(pid: Pid) -> Result<Vec<(String, String)>> {
    Ok(by_controller(&read_of(pid)?))
}

/// The path of a process in the v2 tree, absolute below the mount point; `None` where there is no such tree.
pub(super) fn unified_of(pid: Pid) -> Result<Option<String>> {
    Ok(unified(&read_of(pid)?).map(str::to_owned))
}

fn read_of(pid: Pid) -> Result<String> {
    let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    file::read(Path::new(&path))
}

/// The entries of `/proc/PID/cgroup`: controllers, separated by commas, and path.
fn entries(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    })
}

/// The path in the v2 tree.
fn unified(text: &str) -> Option<&str> {
    entries(text).find_map(|(controllers, path)| controllers.is_empty().then_some(path))
}

/// One pair a controller.
fn by_controller(text: &str) -> Vec<(String, String)> {
    let pairs = entries(text).flat_map(|(controllers, path)| {
        let names = controllers.split(',');
        names.map(move |name| (name.to_owned(), path.to_owned()))
    });
    pairs.collect()
}

/// Finds the hierarchy of one entry of `/proc/self/cgroup` where distributions mount it.
fn at_usual_place(root: &Path, (controllers, own_path): (&str, &str)) -> Option<Hierarchy> {
    if controllers.is_empty() {
        let mount_point = root.join("unified");
        return (magic(&mount_point) == Some(V2_MAGIC))
            .then(|| describe(controllers, own_path, mount_point));
    }
    let name = controllers.strip_prefix("name=").unwrap_or(controllers);
    // The joined name first; some distributions mount at one of the names and make the others links to it.
    let candidates = std::iter::once(name).chain(name.split(',').filter(|part| *part != name));
    candidates
        .map(|candidate| root.join(candidate))
        .find(|path| magic(path) == Some(V1_MAGIC))
        .map(|mount_point| describe(controllers, own_path, mount_point))
}

fn describe(controllers: &str, own_path: &str, mount_point: PathBuf) -> Hierarchy {
    let own_path = own_path.to_owned();
    if controllers.is_empty() {
        let name = "unified".to_owned();
        return Hierarchy {
            name,
            links: Vec::new(),
            mount_data: None,
            mount_point,
            own_path,
        };
    }
    let named = controllers.strip_prefix("name=");
    let name = named.unwrap_or(controllers).to_owned();
    let links = match name.contains(',') {
        true => name.split(',').map(str::to_owned).collect(),
        false => Vec::new(),
    };
    let data = if named.is_some() {
        format!("none,{controllers}")
    } else {
        controllers.to_owned()
    };
    Hierarchy {
        name,
        links,
        mount_data: Some(data),
        mount_point,
        own_path,
    }
}

/// Where a mount shows only a part of its hierarchy, makes the own path relative to that part.
fn correct_own_paths(list: &mut [Hierarchy]) -> Result<()> {
    let mut mounts = None;
    for hierarchy in list {
        if hierarchy.own_path == "/" || visible(hierarchy) {
            continue;
        }
        if mounts.is_none() {
            mounts = Some(read_mountinfo()?);
        }
        let point = hierarchy.mount_point.to_str();
        let mount = mounts
            .iter()
            .flatten()
            .find(|mount| Some(mount.point.as_str()) == point);
        if let Some(below) = mount.and_then(|mount| below(&hierarchy.own_path, &mount.root)) {
            hierarchy.own_path = below;
        }
    }
    Ok(())
}

fn visible(hierarchy: &Hierarchy) -> bool {
    let own = hierarchy
        .mount_point
        .join(hierarchy.own_path.trim_start_matches('/'));
    rustix::fs::access(&own, rustix::fs::Access::EXISTS) != Err(Errno::NOENT)
}

/// `path` as seen from a mount of `root`.
fn below(path: &str, root: &str) -> Option<String> {
    let rest = path.strip_prefix(root.trim_end_matches('/'))?;
    match rest {
        "" => Some("/".to_owned()),
        _ => rest.starts_with('/').then(|| rest.to_owned()),
    }
}

/// What is needed of a line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: String,
    point: String,
    v2: bool,
    options: String,
}

fn read_mountinfo() -> Result<Vec<Mount>> {
    let text = file::read(Path::new("/proc/self/mountinfo"))?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

/// Reads a line of mountinfo (proc_pid_mountinfo(5)) if it is a cgroup mount.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let v2 = match right.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = right.nth(1)?.to_owned();
    Some(Mount {
        root: root.to_owned(),
        point: point.to_owned(),
        v2,
        options,
    })
}

fn in_mountinfo(mounts: &[Mount], (controllers, own_path): (&str, &str)) -> Option<Hierarchy> {
    let mount = mounts.iter().find(|mount| match controllers {
        "" => mount.v2,
        _ => {
            !mount.v2
                && controllers
                    .split(',')
                    .all(|name| mount.options.split(',').any(|o| o == name))
        }
    })?;
    let own_path = below(own_path, &mount.root).unwrap_or_else(|| own_path.to_owned());
    Some(describe(
        controllers,
        &own_path,
        PathBuf::from(&mount.point),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let line =
            "36 31 0:33 /docker/abc /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.root.as_str(), mount.v2), ("/docker/abc", false));
        let found = in_mountinfo(&[mount], ("devices", "/docker/abc/inner")).unwrap();
        assert_eq!(found.own_path, "/inner");
        assert_eq!(found.mount_data.as_deref(), Some("devices"));
        assert_eq!(parse_mount("1 2 0:3 / /proc rw - proc proc rw"), None);
    }

    #[test]
    fn entries_of_a_process() {
        let text = "6:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/d\n";
        let expected = [
            ("cpu", "/a"),
            ("cpuacct", "/a"),
            ("name=systemd", "/b:c"),
            ("", "/d"),
        ];
        let expected = expected.map(|(name, path)| (name.to_owned(), path.to_owned()));
        assert_eq!(by_controller(text), expected);
        assert_eq!(unified(text), Some("/d"));
        assert_eq!(unified("1:name=systemd:/b\n"), None);
    }

    #[test]
    fn paths_below_a_partial_mount() {
        for (path, root, expected) in [
            ("/a/b", "/", Some("/a/b")),
            ("/a/b", "/a", Some("/b")),
            ("/a", "/a", Some("/")),
            ("/ab", "/a", None),
        ] {
            assert_eq!(
                below(path, root).as_deref(),
                expected,
                "{path} below {root}"
            );
        }
    }

    #[test]
    fn names_and_mount_options() {
        let joined = describe(
            "cpu,cpuacct",
            "/",
            PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"),
        );
        assert_eq!(joined.links, ["cpu", "cpuacct"]);
        assert_eq!(joined.keys(), ["cpu", "cpuacct"]);
        let named = describe("name=systemd", "/", PathBuf::from("/sys/fs/cgroup/systemd"));
        assert_eq!(named.name, "systemd");
        assert_eq!(named.mount_data.as_deref(), Some("none,name=systemd"));
        assert_eq!(named.keys(), ["name=systemd"]);
        assert_eq!(describe("", "/", PathBuf::from("/x")).keys(), [""]);
    }

    #[test]
    fn this_host_is_understood() {
        let found = Hierarchies::detect().unwrap();
        assert!(!found.list().is_empty());
        assert!(
            found
                .list()
                .iter()
                .all(|hierarchy| hierarchy.mount_point.starts_with("/sys/fs/cgroup"))
        );
    }
}
