//! The `linux` object of config.json, without resource limits and seccomp, which have modules of their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::resources::{Resources, null_as_default, with_capitals};
use super::seccomp::Seccomp;

/// Everything that is particular to Linux.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Linux {
    /// User ids inside and outside.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) uid_mappings: Vec<IdMapping>,
    /// Group ids inside and outside.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) gid_mappings: Vec<IdMapping>,
    /// Kernel parameters.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) sysctl: BTreeMap<String, String>,
    /// Limits.
    #[serde(deserialize_with = "with_capitals")]
    pub(crate) resources: Option<Resources>,
    /// Where the cgroup is.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) cgroups_path: String,
    /// Namespaces to make or join; those not named are the caller's.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) namespaces: Vec<Namespace>,
    /// Device files beyond the default ones.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) devices: Vec<Device>,
    /// System call filter.
    #[serde(deserialize_with = "super::seccomp::filter_or_none")]
    pub(crate) seccomp: Option<Seccomp>,
    /// Propagation of the root mount: `shared`, `slave`, `private`, `unbindable`, with or without a leading `r`.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) rootfs_propagation: String,
    /// Paths hidden from the container.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) masked_paths: Vec<String>,
    /// Paths the container may only read.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) readonly_paths: Vec<String>,
    /// SELinux label of the mounts.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) mount_label: String,
    /// Settings of Intel's Resource Director Technology.
    pub(crate) intel_rdt: Option<IntelRdt>,
    /// Execution domain.
    pub(crate) personality: Option<Personality>,
    /// Clock offsets of a new time namespace, by clock name.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) time_offsets: BTreeMap<String, TimeOffset>,
    /// Network devices moved into the container, by their name in the runtime's network namespace.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) net_devices: BTreeMap<String, NetDevice>,
    /// NUMA memory policy.
    pub(crate) memory_policy: Option<MemoryPolicy>,
}

/// One namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// File of an existing namespace to join; empty to make a new one.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) path: String,
}

/// A range of ids inside and outside of a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub(crate) container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub(crate) host_id: u32,
    /// How many.
    pub(crate) size: u32,
}

/// A device file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Device {
    /// Absolute path inside.
    pub(crate) path: String,
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Major number.
    pub(crate) major: i64,
    /// Minor number.
    pub(crate) minor: i64,
    /// Permissions; 0666 when absent.
    pub(crate) file_mode: Option<u32>,
    /// Owner.
    pub(crate) uid: Option<u32>,
    /// Group.
    pub(crate) gid: Option<u32>,
}

/// Execution domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Personality {
    /// `LINUX` or `LINUX32`.
    pub(crate) domain: String,
    /// Flags; the specification has none yet, so they are passed over with a warning.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) flags: Vec<String>,
}

/// Offset of a clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct TimeOffset {
    /// Seconds.
    pub(crate) secs: i64,
    /// Nanoseconds.
    pub(crate) nanosecs: u32,
}

/// Settings of Intel's Resource Director Technology: a group in the resctrl file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct IntelRdt {
    /// Name of the group (class of service); the container's id when empty.
    #[serde(rename = "closID", deserialize_with = "null_as_default")]
    pub(crate) clos_id: String,
    /// Lines for the group's `schemata` file.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) schemata: Vec<String>,
    /// The line for the level 3 cache: `L3:0=ff;1=c0`.
    #[serde(rename = "l3CacheSchema", deserialize_with = "null_as_default")]
    pub(crate) l3_cache_schema: String,
    /// The line for memory bandwidth: `MB:0=20;1=70`.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) mem_bw_schema: String,
    /// Whether the container gets a monitoring group.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) enable_monitoring: bool,
}

/// A network device moved into the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct NetDevice {
    /// Its name inside; the one it had when empty.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) name: String,
}

/// NUMA memory policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MemoryPolicy {
    /// `MPOL_*`
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) mode: String,
    /// Memory nodes, as a list.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) nodes: String,
    /// `MPOL_F_*`
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) flags: Vec<String>,
}
