//! What is kept of a container on disk.

use std::collections::BTreeMap;

use bundle_tools::digest::Digest;
use bundle_tools::image::ImageConfig;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::restart::Policy;
use crate::network::{Mode, PortMapping, Setup};

/// What the user asked for, as plain data; the same for `run` and `create`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// The image as typed.
    pub image: String,
    /// Arguments after the image.
    pub command: Vec<String>,
    /// The name wanted; made up when absent.
    pub name: Option<String>,
    /// Allocate a pseudo-terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub interactive: bool,
    /// The first client's end of input is the container's; else its input stays open for the next one.
    pub stdin_once: bool,
    /// Remove the container when it has ended.
    pub auto_remove: bool,
    /// Whether it is started again when it has ended.
    pub restart: Policy,
    /// Put an init of ours before the command: it passes signals on and collects orphans.
    pub init: bool,
    /// `KEY=VALUE` entries that are added to the image's.
    pub env: Vec<String>,
    /// Working directory inside.
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Supplementary groups, names or numbers.
    pub group_add: Vec<String>,
    /// Host name inside; the short id when absent.
    pub hostname: Option<String>,
    /// NIS domain name inside.
    pub domainname: Option<String>,
    /// Replaces the image's entrypoint (and drops its command).
    pub entrypoint: Option<Vec<String>>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Directories and files of the host, and volumes.
    pub volumes: Vec<Volume>,
    /// `DEST[:OPTIONS]` entries.
    pub tmpfs: Vec<String>,
    /// How it is connected.
    pub network: Mode,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// `HOST:ADDRESS` lines for `/etc/hosts`.
    pub add_hosts: Vec<String>,
    /// Name servers instead of the host's.
    pub dns: Vec<String>,
    /// Search domains instead of the host's.
    pub dns_search: Vec<String>,
    /// Resolver options instead of the host's.
    pub dns_options: Vec<String>,
    /// A file that becomes `/etc/resolv.conf`.
    pub resolv_file: Option<String>,
    /// Limits.
    pub resources: Resources,
    /// Mount the root file system read-only.
    pub read_only: bool,
    /// All capabilities, all devices, no masks, no seccomp.
    pub privileged: bool,
    /// Capabilities beyond the default set.
    pub cap_add: Vec<String>,
    /// Capabilities taken out of the default set.
    pub cap_drop: Vec<String>,
    /// `seccomp=…`, `no-new-privileges`, `apparmor=…`, `label=…`.
    pub security_opt: Vec<String>,
    /// `NAME=SOFT[:HARD]`.
    pub ulimits: Vec<String>,
    /// `KEY=VALUE`.
    pub sysctls: Vec<String>,
    /// `HOST[:CONTAINER[:rwm]]`.
    pub devices: Vec<String>,
    /// Bytes of `/dev/shm`; 64 MiB when absent.
    pub shm_size: Option<i64>,
    /// Signal that asks the container to end.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL; 10 when absent, -1 waits for ever.
    pub stop_timeout: Option<i64>,
    /// See [`super::log::Driver`]; `json-file` when absent.
    pub log_driver: Option<String>,
    /// `max-size`, `max-file`, `labels`, `env`, `tag`.
    pub log_opts: BTreeMap<String, String>,
    /// Whose pid namespace it is in.
    pub pid: Sharing,
    /// Whose ipc namespace it is in, and whose `/dev/shm` it has.
    pub ipc: Sharing,
    /// Share the host's uts namespace.
    pub uts_host: bool,
    /// Its cgroup namespace, when the default is not wanted.
    pub cgroup_namespace: Option<CgroupNamespace>,
    /// Entries of the runtime configuration's `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Ports it listens on beyond those the image names, as `80/tcp`.
    pub expose: Vec<String>,
    /// `TYPE MAJOR:MINOR ACCESS`, as `c 10:229 rwm`.
    pub device_rules: Vec<String>,
    /// Below which cgroup the container's own is made.
    pub cgroup_parent: Option<String>,
    /// The runtime to use instead of `qrun`.
    pub runtime: Option<String>,
    /// It is a step of a build: listings leave it out.
    pub build_step: bool,
}

/// Whose namespace of one kind a container is in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// Its own.
    #[default]
    Own,
    /// Its own, which others may join (ipc only).
    Shareable,
    /// Its own, without `/dev/shm` (ipc only).
    Closed,
    /// The host's.
    Host,
    /// That of the container with this id.
    Container(String),
}

/// Which cgroup namespace a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupNamespace {
    /// The host's.
    Host,
    /// Its own: its cgroup is the root of what it sees.
    Private,
}

/// Limits, in the kernel's units: bytes, microseconds, counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period.
    pub cpu_quota: Option<i64>,
    /// Length of that period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs it may use, as a list of ranges.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use, as a list of ranges.
    pub cpuset_mems: Option<String>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes of memory and swap together; -1 is without limit.
    pub memory_swap: Option<i64>,
    /// Soft limit in bytes.
    pub memory_reservation: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<u64>,
    /// Number of processes and threads; 0 and -1 are without limit.
    pub pids: Option<i64>,
    /// Let the container's processes sleep instead of killing one (cgroup v1 only).
    pub oom_kill_disable: bool,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// 10 to 1000.
    pub blkio_weight: Option<u16>,
}

/// One `-v` or `--mount`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where it comes from.
    pub source: VolumeSource,
    /// Absolute path inside.
    pub destination: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// Further options, as typed (`z`, `rslave`, …); of a tmpfs, all its own (`size=…`).
    pub options: Vec<String>,
    /// What `--mount` says beyond that; absent for `-v`.
    #[serde(default)]
    pub mount: Option<MountDetails>,
}

impl Volume {
    /// The name of the volume of the store, if it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.source {
            VolumeSource::Named(name) | VolumeSource::Anonymous(name) => Some(name),
            VolumeSource::Path(_) | VolumeSource::Tmpfs | VolumeSource::Image(_) => None,
        }
    }

    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// The propagation asked for.
    #[must_use]
    pub fn propagation(&self) -> Option<&str> {
        const ALL: [&str; 6] = [
            "shared", "rshared", "slave", "rslave", "private", "rprivate",
        ];
        self.options
            .iter()
            .map(String::as_str)
            .find(|option| ALL.contains(option))
    }
}

/// What only `--mount` can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountDetails {
    /// Whether mounts below a bound directory come along, and how.
    pub recursion: Recursion,
    /// A directory within the volume or image instead of all of it.
    pub subpath: Option<String>,
    /// Labels of the volume, if it is made for this.
    pub labels: BTreeMap<String, String>,
    /// Driver of the volume, if it is made for this.
    pub driver: Option<String>,
    /// Its options, if it is made for this.
    pub driver_options: BTreeMap<String, String>,
}

/// `bind-recursive`: what becomes of mounts below a directory that is bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recursion {
    /// They come along, and are read-only with it where the kernel can do that.
    #[default]
    Enabled,
    /// They stay away.
    Disabled,
    /// They come along as they are.
    Writable,
    /// They come along read-only, or it fails.
    Readonly,
}

/// An image that is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedImage {
    /// As typed.
    pub reference: String,
    /// Its config digest.
    pub id: Digest,
    /// Its chain ids, lowest first.
    pub layers: Vec<Digest>,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// An absolute path of the host.
    Path(String),
    /// A named volume of the store.
    Named(String),
    /// A volume that got its name from the engine, removed with `rm -v` of its last container.
    Anonymous(String),
    /// A file system in memory.
    Tmpfs,
    /// An image's files.
    Image(MountedImage),
}

impl VolumeSource {
    /// The host's path, the volume's name or the image's; a tmpfs has none.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            VolumeSource::Path(name)
            | VolumeSource::Named(name)
            | VolumeSource::Anonymous(name) => Some(name),
            VolumeSource::Image(image) => Some(&image.reference),
            VolumeSource::Tmpfs => None,
        }
    }

    /// Whether it is a volume of the store.
    #[must_use]
    pub fn is_volume(&self) -> bool {
        matches!(self, VolumeSource::Named(_) | VolumeSource::Anonymous(_))
    }
}

/// `container.json`: written once, when the container is created.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Config {
    /// 64 lower-case hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Timestamp,
    /// The image's config digest.
    pub image_id: Digest,
    /// Chain ids, lowest first.
    pub layers: Vec<Digest>,
    /// Entrypoint and command together.
    pub args: Vec<String>,
    /// The image's configuration, without its history.
    pub image_config: ImageConfig,
    /// What was asked for.
    pub options: Options,
}

impl Config {
    /// The first twelve digits of the id.
    #[must_use]
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Whether the container is of this image, or has it mounted.
    #[must_use]
    pub fn uses_image(&self, id: &Digest) -> bool {
        self.image_id == *id
            || self.options.volumes.iter().any(
                |volume| matches!(&volume.source, VolumeSource::Image(image) if image.id == *id),
            )
    }
}

/// `changes.json`: what was changed after the container was created, each part as a whole. It is no part of
/// [`State`], because it has to survive a power cut as `container.json` does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// Its present name.
    pub name: Option<String>,
    /// All its limits.
    pub resources: Option<Resources>,
    /// Its restart policy.
    pub restart: Option<Policy>,
    /// The networks that it shall be on.
    pub network: Option<Mode>,
}

impl Changes {
    /// Lays the changes over what was asked for at first.
    pub fn apply(&self, config: &mut Config) {
        if let Some(name) = &self.name {
            config.name.clone_from(name);
        }
        if let Some(resources) = &self.resources {
            config.options.resources.clone_from(resources);
        }
        if let Some(restart) = self.restart {
            config.options.restart = restart;
        }
        if let Some(network) = &self.network {
            config.options.network.clone_from(network);
        }
    }
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made; with a free lock: abandoned.
    #[default]
    Creating,
    /// Made, never started.
    Created,
    /// Between the first mount and the runtime's `start`; with a free lock: abandoned.
    Starting,
    /// Started; whether it still runs is for [`super::Live`] to tell.
    Running,
    /// Ended and cleaned up.
    Exited,
    /// Ended and cleaned up, to be started again; without a living helper: by whoever sees it.
    Restarting,
    /// Being removed; with a free lock: to be removed by whoever sees it.
    Removing,
}

/// `state.json`: rewritten at every change.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// How far it has come.
    pub status: Status,
    /// Abandoned half way, it is to vanish (`run`) rather than to be set back (`start`).
    pub disposable: bool,
    /// The container's init, while it runs.
    pub process: Option<Process>,
    /// Its monitor.
    pub monitor: Option<Process>,
    /// When it was last started.
    pub started: Option<Timestamp>,
    /// When it last ended.
    pub finished: Option<Timestamp>,
    /// How it last ended; kept while it runs again.
    pub exit_code: Option<i32>,
    /// The kernel killed one of its processes at the memory limit.
    pub oom_killed: bool,
    /// Why the last start failed.
    pub error: String,
    /// Addresses and ports, while it runs.
    pub network: Option<Setup>,
    /// A network is being added or removed: it may have an address that `network` does not know of.
    pub reconnecting: bool,
    /// It is being restarted by its user: the end in between removes it no more than any other, `--rm` or not.
    pub kept: bool,
    /// The user asked for its end (`stop`, `kill`), so that no restart policy undoes it.
    pub stopped_by_user: bool,
    /// How often its restart policy has started it since the user did.
    pub restart_count: u32,
    /// The last pause before that.
    pub restart_pause: Option<std::time::Duration>,
    /// When it will be started again.
    pub restart_at: Option<Timestamp>,
    /// Who waits for that moment.
    pub restarter: Option<Process>,
}

/// A process that can be recognised after its pid was used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The pid in the host's namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}
