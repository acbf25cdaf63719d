//! The configurations everything starts from: `runc spec`'s, and docker's.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxIdMapping, LinuxIdMappingBuilder,
    LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount, Process, Root, Spec,
};

/// The search path of images that set none.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Nothing newer is used, and crun up to 1.8 refuses to read 1.1 and later.
const OCI_VERSION: &str = "1.0.2";

/// The configuration that `runc spec` writes: `sh` on a terminal, three capabilities.
#[must_use]
pub fn default_spec() -> Spec {
    use Capability::{AuditWrite, Kill, NetBindService};
    let capabilities = HashSet::from([AuditWrite, Kill, NetBindService]);
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_permitted(Some(capabilities))
        .set_inheritable(None)
        .set_ambient(None);
    // The rest of the type's defaults are runc's: sh, PATH and TERM, /, NOFILE 1024.
    let mut process = Process::default();
    process
        .set_terminal(Some(true))
        .set_no_new_privileges(Some(true))
        .set_capabilities(Some(sets));
    let mut spec = base();
    spec.set_process(Some(process))
        .set_root(Some(Root::default()))
        .set_hostname(Some("runc".to_owned()));
    if let Some(linux) = spec.linux_mut()
        && !is_cgroup2(Path::new("/sys/fs/cgroup"))
    {
        // As runc does: on cgroup v1 the container sees the hierarchies as they are.
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Cgroup);
        linux.set_namespaces(Some(namespaces));
    }
    spec
}

/// [`default_spec`] for a user without root rights, as `runc spec --rootless` writes it.
#[must_use]
pub fn default_rootless_spec() -> Spec {
    let mut spec = default_spec();
    make_rootless(&mut spec);
    spec
}

/// Docker's fourteen default capabilities.
#[must_use]
pub fn default_capabilities() -> HashSet<Capability> {
    use Capability::{
        AuditWrite, Chown, DacOverride, Fowner, Fsetid, Kill, Mknod, NetBindService, NetRaw,
        Setfcap, Setgid, Setpcap, Setuid, SysChroot,
    };
    HashSet::from([
        AuditWrite,
        Chown,
        DacOverride,
        Fowner,
        Fsetid,
        Kill,
        Mknod,
        NetBindService,
        NetRaw,
        Setfcap,
        Setgid,
        Setpcap,
        Setuid,
        SysChroot,
    ])
}

/// What a container must not read: kernel memory, keys, and what tells about other
/// tenants by timing or power (GHSA-6fw5-f8r9-fgfm, GHSA-jq35-85cj-fj4p).
///
/// The directories of each processor's thermal throttling are those of the running machine.
#[must_use]
pub fn masked_paths() -> Vec<String> {
    const FIXED: [&str; 13] = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/devices/virtual/tpm",
        "/sys/firmware",
    ];
    let mut paths: Vec<String> = FIXED.map(str::to_owned).to_vec();
    paths.extend(thermal_throttle(Path::new("/sys/devices/system/cpu")));
    paths
}

fn thermal_throttle(processors: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(processors) else {
        return Vec::new();
    };
    let is_processor = |name: &str| {
        name.strip_prefix("cpu").is_some_and(|number| {
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let mut paths: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_processor(name))
        .map(|name| processors.join(name).join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    paths.sort();
    paths
}

/// What a container may read but not write in `/proc`.
#[must_use]
pub fn readonly_paths() -> Vec<String> {
    let paths = [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ];
    paths.map(str::to_owned).to_vec()
}

/// Docker's defaults, without a process and a root.
pub(super) fn docker_spec() -> Spec {
    let mut spec = base();
    if let Some(mounts) = spec.mounts_mut() {
        for mount in mounts {
            if mount.destination() == Path::new("/proc") {
                mount.set_options(options("nosuid noexec nodev"));
            }
        }
    }
    spec
}

/// What runc's and docker's have in common.
fn base() -> Spec {
    let mut denied = LinuxDeviceCgroup::default();
    denied.set_allow(false).set_access(Some("rwm".to_owned()));
    // The type's default is a set of all limits, each without a value.
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![denied]));
    let mut linux = Linux::default();
    linux
        .set_resources(Some(resources))
        .set_namespaces(Some(namespaces()))
        .set_masked_paths(Some(masked_paths()))
        .set_readonly_paths(Some(readonly_paths()));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_process(None)
        .set_root(None)
        .set_hostname(None)
        .set_mounts(Some(mounts()))
        .set_annotations(None)
        .set_linux(Some(linux));
    spec
}

fn namespaces() -> Vec<LinuxNamespace> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let namespace = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    [Pid, Network, Ipc, Uts, Mount, Cgroup]
        .map(namespace)
        .to_vec()
}

fn mounts() -> Vec<Mount> {
    vec![
        mount("/proc", "proc", "proc", ""),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            "nosuid strictatime mode=755 size=65536k",
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5",
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            "nosuid noexec nodev mode=1777 size=65536k",
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        mount("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            "nosuid noexec nodev relatime ro",
        ),
    ]
}

/// A mount; `words` are its options, separated by blanks.
pub(super) fn mount(destination: &str, kind: &str, source: &str, words: &str) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(options(words));
    mount
}

fn options(words: &str) -> Option<Vec<String>> {
    let words: Vec<String> = words.split_ascii_whitespace().map(str::to_owned).collect();
    (!words.is_empty()).then_some(words)
}

/// Turns a configuration into one that its caller can run without root rights.
///
/// The caller becomes root inside; nobody else exists there, so options that
/// name other ids go. The network stays the host's, and `/sys`, which belongs to a network
/// namespace, is the host's too; limits need a delegated cgroup and go.
pub(super) fn make_rootless(spec: &mut Spec) {
    use LinuxNamespaceType::{Network, User};
    if let Some(linux) = spec.linux_mut() {
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        namespaces.retain(|namespace| !matches!(namespace.typ(), Network | User));
        let mut user = LinuxNamespace::default();
        user.set_typ(User);
        namespaces.push(user);
        linux
            .set_namespaces(Some(namespaces))
            .set_uid_mappings(Some(vec![mapping(rustix::process::geteuid().as_raw())]))
            .set_gid_mappings(Some(vec![mapping(rustix::process::getegid().as_raw())]))
            .set_resources(None);
    }
    for at in spec.mounts_mut().iter_mut().flatten() {
        if at.destination() == Path::new("/sys") {
            *at = mount("/sys", "none", "/sys", "rbind nosuid noexec nodev ro");
            continue;
        }
        let words = at.options().clone().unwrap_or_default();
        let foreign = |word: &String| word.starts_with("uid=") || word.starts_with("gid=");
        let words: Vec<String> = words.into_iter().filter(|word| !foreign(word)).collect();
        at.set_options((!words.is_empty()).then_some(words));
    }
    if let Some(process) = spec.process_mut() {
        // setgroups(2) is denied in a user namespace made without privileges.
        process.user_mut().set_additional_gids(None);
    }
}

/// The caller as root.
fn mapping(host: u32) -> LinuxIdMapping {
    let builder = LinuxIdMappingBuilder::default()
        .host_id(host)
        .container_id(0u32)
        .size(1u32);
    // Every field is given, so building can not fail.
    builder.build().unwrap_or_default()
}

fn is_cgroup2(path: &Path) -> bool {
    /// `CGROUP2_SUPER_MAGIC`, linux/magic.h.
    const MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(path).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(MAGIC))
}
