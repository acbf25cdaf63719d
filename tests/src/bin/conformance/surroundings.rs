//! What a file of the suite runs in: cgroups outside, then, inside, mounts and a root of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use stack_tests::wait;

const CGROUP: &str = "/sys/fs/cgroup";
/// On pure v2, the cgroup of this program.
const OWN: &str = "/sys/fs/cgroup/conformance";

/// Programs that stand in for the machine's own where it lacks something: `ip` where there is no dummy link type, `prlimit`
/// where the hard limit of open files is low and may not be raised.
const IP: &str = include_str!("../../../conformance/ip");
const PRLIMIT: &str = include_str!("../../../conformance/prlimit");
/// The hard limit of open files that the suite wants to set.
const OPEN_FILES: u64 = 65536;

/// A cgroup v1 hierarchy, or the v2 one: how it is mounted, and its name below `/sys/fs/cgroup`.
#[derive(Debug, Clone)]
struct Hierarchy {
    name: String,
    /// Mount data; empty for v2.
    data: String,
}

/// The machine's cgroup hierarchies, mounted where only this program sees them.
#[derive(Debug)]
pub(super) struct Machine {
    hierarchies: Vec<Hierarchy>,
    mounted: PathBuf,
    /// Whether hugetlb was taken from the v2 hierarchy, to be given back.
    took_hugetlb: bool,
}

impl Machine {
    /// Mounts the hierarchies. On pure v2 there is nothing to mount; there all controllers are switched on, and this
    /// program goes to a cgroup of its own so that the root has no process. `unified` makes that of a hybrid machine by
    /// showing its v2 hierarchy alone, without the controllers that v1 has.
    pub(super) fn prepare(work: &Path, unified: bool) -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        make_private()?;
        let pure = || Path::new(CGROUP).join("cgroup.controllers").exists();
        if unified && !pure() {
            umount2(CGROUP, MntFlags::MNT_DETACH).context("unmount the hierarchies")?;
            mount_at("cgroup2", Path::new(CGROUP), "")?;
        }
        let mut machine = Self {
            hierarchies: Vec::new(),
            mounted: work.join(format!("cgroup-{}", std::process::id())),
            took_hugetlb: false,
        };
        if pure() {
            let controllers = fs::read_to_string(format!("{CGROUP}/cgroup.controllers"))?;
            for name in controllers.split_whitespace() {
                // One that cannot be switched on makes its tests fail, or skip.
                let _ = fs::write(
                    format!("{CGROUP}/cgroup.subtree_control"),
                    format!("+{name}"),
                );
            }
            fs::create_dir_all(OWN)?;
            fs::write(format!("{OWN}/cgroup.procs"), "0").context("enter a cgroup")?;
            return Ok(machine);
        }
        fs::create_dir_all(&machine.mounted)?;
        mount_at("tmpfs", &machine.mounted, "mode=755")?;
        for hierarchy in hierarchies(&fs::read_to_string("/proc/self/mounts")?) {
            machine.add(hierarchy)?;
        }
        machine.take_hugetlb()?;
        Ok(machine)
    }

    /// Mounts a hierarchy.
    fn add(&mut self, hierarchy: Hierarchy) -> anyhow::Result<()> {
        let directory = self.mounted.join(&hierarchy.name);
        fs::create_dir(&directory)?;
        hierarchy.mount(&directory)?;
        self.hierarchies.push(hierarchy);
        Ok(())
    }

    /// Mounts hugetlb as v1 where it sits on the v2 hierarchy of a hybrid host, because runc's suite expects every
    /// controller on v1 there.
    fn take_hugetlb(&mut self) -> anyhow::Result<()> {
        let have = |name: &str| self.hierarchies.iter().any(|known| known.name == name);
        let known = fs::read_to_string("/proc/cgroups")?;
        if have("hugetlb") || !known.lines().any(|line| line.starts_with("hugetlb")) {
            return Ok(());
        }
        let control = self.mounted.join("unified/cgroup.subtree_control");
        self.took_hugetlb = have("unified")
            && fs::read_to_string(&control)?.contains("hugetlb")
            && fs::write(&control, "-hugetlb").is_ok();
        let hugetlb = Hierarchy {
            name: "hugetlb".to_owned(),
            data: "hugetlb".to_owned(),
        };
        self.add(hugetlb)
    }

    /// What the names of this run's cgroups begin with.
    fn prefix() -> String {
        format!("conformance-{}-", std::process::id())
    }

    /// What `unshare` is asked for beyond the usual. With a cgroup namespace the tests' cgroups have a root of their own.
    pub(super) fn more_namespaces(&self) -> &'static [&'static str] {
        if self.hierarchies.is_empty() {
            &[]
        } else {
            &["--cgroup"]
        }
    }

    /// The hierarchies as one argument: `NAME:DATA`, separated by blanks.
    pub(super) fn list(&self) -> String {
        let hierarchies = self.hierarchies.iter();
        let list: Vec<_> = hierarchies
            .map(|hierarchy| format!("{}:{}", hierarchy.name, hierarchy.data))
            .collect();
        list.join(" ")
    }

    /// Unmounts the hierarchies; gives hugetlb back to v2 when nobody else has it any more.
    pub(super) fn give_back(self) {
        if self.hierarchies.is_empty() && fs::write(format!("{CGROUP}/cgroup.procs"), "0").is_ok() {
            let _ = fs::remove_dir(OWN);
            return;
        }
        for hierarchy in &self.hierarchies {
            let directory = self.mounted.join(&hierarchy.name);
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let name = entry.file_name();
                if name.to_string_lossy().starts_with(&Self::prefix()) {
                    // What was still dying when its file had been run; others see it if it is there for ever.
                    let _ = remove_below(&entry.path());
                }
            }
        }
        for hierarchy in self
            .hierarchies
            .iter()
            .rev()
            .filter(|known| known.name != "unified")
        {
            let _ = umount2(&self.mounted.join(&hierarchy.name), MntFlags::MNT_DETACH);
        }
        let control = self.mounted.join("unified/cgroup.subtree_control");
        let given = || fs::write(&control, "+hugetlb").ok();
        // Another run may still use it: then the controller stays where it is until the next start of the machine.
        if self.took_hugetlb {
            let _ = wait::within(Duration::from_secs(5), given);
        }
        let _ = umount2(&self.mounted.join("unified"), MntFlags::MNT_DETACH);
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.mounted);
    }
}

impl Hierarchy {
    fn mount(&self, directory: &Path) -> anyhow::Result<()> {
        let kind = if self.data.is_empty() {
            "cgroup2"
        } else {
            "cgroup"
        };
        mount_at(kind, directory, &self.data)
    }
}

/// The hierarchies that a list of mounts shows.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, kind, options, ..] = fields[..] else {
            continue;
        };
        if !path.starts_with("/sys/fs/cgroup/") {
            continue;
        }
        // The controllers come last: rw,nosuid,cpu,cpuacct.
        let general = [
            "rw",
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "relatime",
            "xattr",
            "nsdelegate",
        ];
        let special: Vec<&str> = options
            .split(',')
            .filter(|option| !general.contains(option))
            .collect();
        let hierarchy = match kind {
            "cgroup2" => Hierarchy {
                name: "unified".to_owned(),
                data: String::new(),
            },
            "cgroup" => Hierarchy {
                name: special.join(",").replace("name=", ""),
                data: match special.join(",") {
                    data if data.starts_with("name=") => format!("none,{data}"),
                    data => data,
                },
            },
            _ => continue,
        };
        if !found.iter().any(|known| known.name == hierarchy.name) {
            found.push(hierarchy);
        }
    }
    found
}

/// A directory for a file's run, and on v1 a cgroup in every hierarchy; all gone when dropped.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    cgroups: Vec<PathBuf>,
}

impl Place {
    /// Makes both, for the run of a file.
    pub(super) fn make(work: &Path, machine: &Machine, file: &str) -> anyhow::Result<Self> {
        let name = format!("{}{file}", Machine::prefix());
        let mut place = Self {
            directory: work.join(&name),
            cgroups: Vec::new(),
        };
        for part in [
            "upper",
            "scratch",
            "suite-upper",
            "suite-scratch",
            "root",
            "tmp",
        ] {
            fs::create_dir_all(place.directory.join(part))?;
        }
        for hierarchy in &machine.hierarchies {
            let parent = machine.mounted.join(&hierarchy.name);
            let own = parent.join(&name);
            fs::create_dir(&own).with_context(|| format!("mkdir {}", own.display()))?;
            for inherited in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read(parent.join(inherited)) {
                    fs::write(own.join(inherited), value)?;
                }
            }
            // A share of real-time CPU for the tests to hand on, where the kernel hands it out by cgroup: seven tenths, which is
            // what they ask for. Of several runs at once only one gets it.
            let share = own.join("cpu.rt_runtime_us");
            if share.exists() && fs::write(&share, "700000").is_err() {
                tell_once("real-time CPU is taken: the tests of it will fail");
            }
            place.cgroups.push(own);
        }
        Ok(place)
    }

    /// The directory.
    pub(super) fn directory(&self) -> &PathBuf {
        &self.directory
    }

    /// Runs a command in the cgroups and returns what it says on standard output.
    pub(super) fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        self.move_into(&self.cgroups)?;
        let output = command.stderr(std::process::Stdio::inherit()).output();
        let parents: Vec<PathBuf> = self
            .cgroups
            .iter()
            .filter_map(|cgroup| cgroup.parent().map(Path::to_owned))
            .collect();
        self.move_into(&parents)?;
        let output = output.context("unshare")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn move_into(&self, cgroups: &[PathBuf]) -> anyhow::Result<()> {
        for cgroup in cgroups {
            fs::write(cgroup.join("cgroup.procs"), "0")
                .with_context(|| format!("enter {}", cgroup.display()))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Processes that are dying keep a cgroup for a moment.
        for cgroup in &self.cgroups {
            let removed = || remove_below(cgroup).is_ok().then_some(());
            wait::within(Duration::from_secs(5), removed);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Tells the person at the terminal.
fn tell_once(text: &str) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| eprintln!("conformance: {text}"));
}

/// Removes a cgroup with all below it.
pub(super) fn remove_below(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// What the inside has to know.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    /// The place's directory.
    pub(super) place: &'a Path,
    /// The tree, the suite, the images, the runtime.
    pub(super) tree: &'a Path,
    /// The checkout of runc.
    pub(super) suite: &'a Path,
    /// Root file systems for containers.
    pub(super) images: &'a Path,
    /// The runtime.
    pub(super) runtime: &'a Path,
    /// What [`Machine::list`] says.
    pub(super) hierarchies: &'a str,
}

impl Inside<'_> {
    /// Puts the root together and makes it ours. In the new namespaces, as their first process.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        make_private()?;
        let root = self.place.join("root");
        overlay(
            self.tree,
            &self.place.join("upper"),
            &self.place.join("scratch"),
            &root,
        )?;
        for directory in ["suite", "runtime", "old"] {
            fs::create_dir_all(root.join(directory))?;
        }
        let suite = root.join("suite");
        overlay(
            self.suite,
            &self.place.join("suite-upper"),
            &self.place.join("suite-scratch"),
            &suite,
        )?;
        mount_at("tmpfs", &root.join("run"), "mode=755")?;
        fs::create_dir(root.join("run/lock"))?;
        let tmp = self.place.join("tmp");
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            &tmp,
            mode(0o1777),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        bind(&tmp, &root.join("tmp"))?;
        mount_at("proc", &root.join("proc"), "")?;
        mount_at("sysfs", &root.join("sys"), "")?;
        bind(Path::new("/dev"), &root.join("dev"))?;
        self.mount_cgroups(&root.join("sys/fs/cgroup"))?;
        // A copy, not a bind mount: runc makes an overlay of the directory it is in.
        fs::copy(self.runtime, root.join("runtime/runc")).context("copy the runtime")?;
        for image in ["busybox", "debian"] {
            let wanted = format!(
                "tests/integration/testdata/{image}-{}.tar.xz",
                architecture()?
            );
            let wanted = suite.join(wanted);
            fs::write(&wanted, "")?;
            bind(&self.images.join(format!("{image}.tar")), &wanted)?;
        }
        stand_in(&root)?;
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()?;
        rustix::process::chdir(&root)?;
        rustix::process::pivot_root(".", "old").context("pivot_root")?;
        umount2("/old", MntFlags::MNT_DETACH)?;
        fs::remove_dir("/old")?;
        Ok(())
    }

    fn mount_cgroups(&self, directory: &Path) -> anyhow::Result<()> {
        if self.hierarchies.is_empty() {
            return mount_at("cgroup2", directory, "");
        }
        mount_at("tmpfs", directory, "mode=755")?;
        for hierarchy in self.hierarchies.split(' ') {
            let (name, data) = hierarchy.split_once(':').context("hierarchy")?;
            let hierarchy = Hierarchy {
                name: name.to_owned(),
                data: data.to_owned(),
            };
            fs::create_dir(directory.join(name))?;
            hierarchy.mount(&directory.join(name))?;
        }
        Ok(())
    }
}

/// Puts programs in the place of those that cannot do here what the suite asks of them.
fn stand_in(root: &Path) -> anyhow::Result<()> {
    let dummy = Command::new("ip")
        .args(["link", "add", "probe", "type", "dummy"])
        .output()?;
    if dummy.status.success() {
        Command::new("ip").args(["link", "del", "probe"]).status()?;
    } else {
        install(&root.join("usr/local/bin/ip"), IP)?;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < OPEN_FILES) {
        install(&root.join("usr/local/bin/prlimit"), PRLIMIT)?;
    }
    Ok(())
}

fn install(path: &Path, script: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, script)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// The architecture as Go calls it, which the names of images contain.
fn architecture() -> anyhow::Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no images for {other}"),
    }
}

fn mode(bits: u32) -> nix::sys::stat::Mode {
    nix::sys::stat::Mode::from_bits_truncate(bits)
}

fn make_private() -> anyhow::Result<()> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("make mounts private")
}

fn mount_at(kind: &str, at: &Path, data: &str) -> anyhow::Result<()> {
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(data))
        .with_context(|| format!("mount {kind} ({data}) on {}", at.display()))
}

fn bind(from: &Path, at: &Path) -> anyhow::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), at, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {} on {}", from.display(), at.display()))
}

fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path) -> anyhow::Result<()> {
    let data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount_at("overlay", at, &data)
}
