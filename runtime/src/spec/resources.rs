//! Resource limits: the `linux.resources` object of config.json, and the same object as `update --resources` reads it.
//!
//! Field for field what the runtime specification's "Control groups" section (config-linux.md) lists. Nothing is judged
//! here: which values contradict each other is decided where they are turned into control files, in [`crate::cgroup`].
//! Absent and `null` mean the same, as they do for programs written in Go.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// All limits of one container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Resources {
    /// Device access rules, in order; the last one that matches a request decides.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) devices: Vec<DeviceRule>,
    /// Memory limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
    /// CPU time and placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<Cpu>,
    /// The same under a name that programs written in Go take for it, also beside it; see [`Resources::with_capitals`].
    #[serde(rename = "CPU", skip_serializing)]
    pub(crate) cpu_in_capitals: Option<Cpu>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pids: Option<Pids>,
    /// Block device weights and throttles.
    #[serde(rename = "blockIO", skip_serializing_if = "Option::is_none")]
    pub(crate) block_io: Option<BlockIo>,
    /// Huge page limits, one per page size.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) hugepage_limits: Vec<HugepageLimit>,
    /// Network class and priorities (cgroup v1 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<Network>,
    /// RDMA limits by device name.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) rdma: BTreeMap<String, Rdma>,
    /// Control files of cgroup v2 by name, written as they are.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub(crate) unified: BTreeMap<String, String>,
}

impl Resources {
    /// Puts what was said under `CPU` to what was said under `cpu`.
    pub(crate) fn with_capitals(mut self) -> Self {
        let Some(said) = self.cpu_in_capitals.take() else {
            return self;
        };
        let cpu = self.cpu.take().unwrap_or_default();
        self.cpu = Some(Cpu {
            shares: said.shares.or(cpu.shares),
            quota: said.quota.or(cpu.quota),
            burst: said.burst.or(cpu.burst),
            period: said.period.or(cpu.period),
            realtime_runtime: said.realtime_runtime.or(cpu.realtime_runtime),
            realtime_period: said.realtime_period.or(cpu.realtime_period),
            cpus: said.cpus.or(cpu.cpus),
            mems: said.mems.or(cpu.mems),
            idle: said.idle.or(cpu.idle),
        });
        self
    }
}

/// Reads resources with all spellings of `cpu` taken together.
pub(crate) fn with_capitals<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Resources>, D::Error> {
    let resources: Option<Resources> = Option::deserialize(deserializer)?;
    Ok(resources.map(Resources::with_capitals))
}

/// One device access rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct DeviceRule {
    /// Whether the rule grants or takes away.
    pub(crate) allow: bool,
    /// Which kind of device file; absent means every kind.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<DeviceKind>,
    /// Major number; absent and -1 mean every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) major: Option<i64>,
    /// Minor number; absent and -1 mean every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minor: Option<i64>,
    /// Letters out of `rwm`: read, write, mknod. Absent or empty means all three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) access: Option<String>,
}

/// The kind of device file a [`DeviceRule`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum DeviceKind {
    /// Character and block devices.
    #[serde(rename = "a")]
    All,
    /// Character devices.
    #[serde(rename = "c")]
    Char,
    /// Block devices.
    #[serde(rename = "b")]
    Block,
}

impl TryFrom<String> for DeviceKind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "" | "a" => Ok(Self::All),
            "c" | "u" => Ok(Self::Char),
            "b" => Ok(Self::Block),
            _ => Err(format!("unknown kind of device {name:?}")),
        }
    }
}

/// Memory limits, in bytes; -1 is "no limit" for the signed ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Memory {
    /// Limit of memory usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<i64>,
    /// Soft limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reservation: Option<i64>,
    /// Limit of memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap: Option<i64>,
    /// Hard limit of kernel memory; ignored, as current kernels and runc do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel: Option<i64>,
    /// Hard limit of kernel memory for TCP buffers; ignored likewise.
    #[serde(rename = "kernelTCP", skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_tcp: Option<i64>,
    /// 0 to 100 (cgroup v1 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swappiness: Option<u64>,
    /// Switches the OOM killer off (cgroup v1 only).
    #[serde(rename = "disableOOMKiller", skip_serializing_if = "Option::is_none")]
    pub(crate) disable_oom_killer: Option<bool>,
    /// Hierarchical accounting (cgroup v1 only); always on in current kernels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) use_hierarchy: Option<bool>,
    /// Refuses a new limit that is below what is in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) check_before_update: Option<bool>,
}

/// CPU time and placement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Cpu {
    /// Relative weight, 2 to 262144; 1024 is the usual share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shares: Option<u64>,
    /// Microseconds of CPU time per period; -1 is "no limit".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<i64>,
    /// Microseconds that may be saved up beyond the quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<u64>,
    /// Period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) period: Option<u64>,
    /// Real-time microseconds per real-time period (cgroup v1 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) realtime_runtime: Option<i64>,
    /// Real-time period in microseconds (cgroup v1 only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) realtime_period: Option<u64>,
    /// CPUs to run on, as a list such as `0-3,7`.
    #[serde(alias = "Cpus", skip_serializing_if = "Option::is_none")]
    pub(crate) cpus: Option<String>,
    /// Memory nodes to allocate from, as a list.
    #[serde(alias = "Mems", skip_serializing_if = "Option::is_none")]
    pub(crate) mems: Option<String>,
    /// 1 runs the cgroup only when nothing else wants to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<i64>,
}

/// Limit of the number of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Pids {
    /// At most so many tasks; -1 is "no limit", absent leaves the kernel's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<i64>,
}

/// Block device weights and throttles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct BlockIo {
    /// Weight of the cgroup, 10 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<u16>,
    /// Weight against child cgroups (cgroup v1, CFQ scheduler only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leaf_weight: Option<u16>,
    /// Weights per device.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) weight_device: Vec<WeightDevice>,
    /// Bytes read per second, per device.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written per second, per device.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads per second, per device.
    #[serde(
        rename = "throttleReadIOPSDevice",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes per second, per device.
    #[serde(
        rename = "throttleWriteIOPSDevice",
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// Weight of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct WeightDevice {
    /// Major number.
    pub(crate) major: i64,
    /// Minor number.
    pub(crate) minor: i64,
    /// Weight of the cgroup for this device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) weight: Option<u16>,
    /// Weight against child cgroups for this device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leaf_weight: Option<u16>,
}

/// Throttle of one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ThrottleDevice {
    /// Major number.
    pub(crate) major: i64,
    /// Minor number.
    pub(crate) minor: i64,
    /// Bytes or operations per second; 0 lifts the throttle.
    pub(crate) rate: u64,
}

/// Limit of one huge page size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HugepageLimit {
    /// Page size as the control files spell it: `64KB`, `2MB`, `1GB`.
    #[serde(alias = "pagesize")]
    pub(crate) page_size: String,
    /// Limit in bytes.
    pub(crate) limit: u64,
}

/// Network class and priorities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    /// Class id given to the packets of the cgroup.
    #[serde(rename = "classID", skip_serializing_if = "Option::is_none")]
    pub(crate) class_id: Option<u32>,
    /// Priority per network interface.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) priorities: Vec<InterfacePriority>,
}

/// Priority of the traffic through one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct InterfacePriority {
    /// Interface name.
    pub(crate) name: String,
    /// Priority.
    pub(crate) priority: u32,
}

/// Limits of one RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rdma {
    /// Handles that may be open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hca_handles: Option<u32>,
    /// Objects that may be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hca_objects: Option<u32>,
}

/// Reads `null` as the type's default, as Go does for slices and maps.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
