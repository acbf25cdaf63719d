//! Limits as cgroup v1 spells them.
//!
//! Pure: [`crate::spec::resources::Resources`] in, values for control files out, in an order that fits a cgroup whose
//! limits are all unset. Where the kernel checks one value against another (period and quota, memory and swap) the
//! settings carry [`Otherwise::Later`], so that the same list also serves for changing limits that are set.
//! Sources: config-linux.md "Control groups"; Documentation/admin-guide/cgroup-v1 of the kernel.

use std::path::Path;

use super::setting::{Otherwise, Setting};
use super::{Error, Result, file};
use crate::spec::resources::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice};

/// All settings but the device rules.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>> {
    if !resources.unified.is_empty() {
        return Err(Error::UnifiedOnV1);
    }
    let mut out = Vec::new();
    if let Some(cpu) = &resources.cpu {
        cpuset(cpu, &mut out);
        processor(cpu, &mut out)?;
    }
    if let Some(memory) = &resources.memory {
        self::memory(memory, &mut out)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(pids_limit) {
        out.push(Setting::new("pids", "pids.max", limit));
    }
    if let Some(block_io) = &resources.block_io {
        blkio(block_io, &mut out);
    }
    for limit in &resources.hugepage_limits {
        let size = &limit.page_size;
        out.push(Setting::new(
            "hugetlb",
            format!("hugetlb.{size}.limit_in_bytes"),
            limit.limit,
        ));
        // The reservation limit exists since Linux 5.7.
        out.push(
            Setting::new(
                "hugetlb",
                format!("hugetlb.{size}.rsvd.limit_in_bytes"),
                limit.limit,
            )
            .or(Otherwise::Skip),
        );
    }
    if let Some(network) = &resources.network {
        if let Some(class) = network.class_id.filter(|class| *class != 0) {
            out.push(Setting::new("net_cls", "net_cls.classid", class));
        }
        for entry in &network.priorities {
            let value = format!("{} {}", entry.name, entry.priority);
            out.push(Setting::new("net_prio", "net_prio.ifpriomap", value));
        }
    }
    rdma(resources, &mut out);
    Ok(out)
}

fn cpuset(cpu: &Cpu, out: &mut Vec<Setting>) {
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            out.push(Setting::new("cpuset", file, value));
        }
    }
}

fn processor(cpu: &Cpu, out: &mut Vec<Setting>) -> Result<()> {
    // Zero is "not set" for all of these, as in runc.
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        check_shares(shares)?;
        out.push(Setting::new("cpu", "cpu.shares", shares));
    }
    if let Some(period) = cpu.period.filter(|period| *period != 0) {
        out.push(Setting::new("cpu", "cpu.cfs_period_us", period).or(Otherwise::Later));
    }
    if let Some(burst) = cpu.burst {
        // Burst exists since Linux 5.14; it must not exceed the quota, so it may have to follow it.
        let setting = Setting::new("cpu", "cpu.cfs_burst_us", burst);
        let older_kernel = burst == 0;
        out.push(setting.or(if older_kernel {
            Otherwise::Skip
        } else {
            Otherwise::Later
        }));
    }
    if let Some(quota) = cpu.quota.filter(|quota| *quota != 0) {
        out.push(Setting::new("cpu", "cpu.cfs_quota_us", quota).or(Otherwise::Later));
    }
    if let Some(idle) = cpu.idle {
        out.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(period) = cpu.realtime_period.filter(|period| *period != 0) {
        out.push(Setting::new("cpu", "cpu.rt_period_us", period).or(Otherwise::Later));
    }
    if let Some(runtime) = cpu.realtime_runtime.filter(|runtime| *runtime != 0) {
        out.push(Setting::new("cpu", "cpu.rt_runtime_us", runtime));
    }
    Ok(())
}

/// Completes a change of quota or period by the other one, which systemd has to be told with it.
pub(super) fn complete_quota(directory: &Path, resources: &mut Resources) -> Result<()> {
    let Some(cpu) = &mut resources.cpu else {
        return Ok(());
    };
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() == period.is_some() {
        return Ok(());
    }
    // The quota is -1 where there is none, which is no number to `read_number`.
    let old = file::read(&directory.join("cpu.cfs_quota_us"))?;
    cpu.quota = quota.or_else(|| old.trim().parse().ok());
    cpu.period = period.or(file::read_number(&directory.join("cpu.cfs_period_us"))?);
    Ok(())
}

/// The kernel would silently clamp a value outside of this range.
fn check_shares(shares: u64) -> Result<()> {
    match shares {
        0..2 => Err(Error::Shares {
            least: true,
            bound: 2,
        }),
        2..=262_144 => Ok(()),
        _ => Err(Error::Shares {
            least: false,
            bound: 262_144,
        }),
    }
}

fn memory(memory: &Memory, out: &mut Vec<Setting>) -> Result<()> {
    check_memory(memory)?;
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        out.push(Setting::new("memory", "memory.limit_in_bytes", limit).or(Otherwise::Later));
    }
    match memory.swap.filter(|swap| *swap != 0) {
        Some(swap) => {
            let file = "memory.memsw.limit_in_bytes";
            out.push(Setting::new("memory", file, swap).or(Otherwise::Later));
        }
        // Unlimited memory makes no sense with a limit of memory and swap that was set before.
        None if limit == Some(-1) => {
            let file = "memory.memsw.limit_in_bytes";
            out.insert(0, Setting::new("memory", file, -1).or(Otherwise::Skip));
        }
        None => {}
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        out.push(Setting::new(
            "memory",
            "memory.soft_limit_in_bytes",
            reservation,
        ));
    }
    if memory.disable_oom_killer == Some(true) {
        out.push(Setting::new("memory", "memory.oom_control", 1));
    }
    match memory.swappiness {
        // docker writes -1 for "not set" through an unsigned field.
        None | Some(u64::MAX) => {}
        Some(value @ 0..=100) => out.push(Setting::new("memory", "memory.swappiness", value)),
        Some(value) => return Err(Error::Swappiness(value)),
    }
    Ok(())
}

/// What contradicts itself whatever the cgroup version.
pub(super) fn check_memory(memory: &Memory) -> Result<()> {
    let limit = memory.limit.unwrap_or(0);
    let swap = memory.swap.unwrap_or(0);
    for (name, value) in [
        ("limit", limit),
        ("swap", swap),
        ("reservation", memory.reservation.unwrap_or(0)),
    ] {
        if value < -1 {
            return Err(Error::NegativeMemory { name, value });
        }
    }
    if swap > 0 && limit > swap {
        return Err(Error::SwapBelowMemory { swap, limit });
    }
    Ok(())
}

/// The value for `pids.max`; the file is the same on both versions. Zero becomes one, as in runc: a cgroup that may
/// hold no task at all could not even hold the init process, and systemd refuses zero.
pub(super) fn pids_limit(pids: &Pids) -> Option<String> {
    Some(match pids.limit? {
        0 => "1".to_owned(),
        limit @ 1.. => limit.to_string(),
        _ => "max".to_owned(),
    })
}

fn blkio(block_io: &BlockIo, out: &mut Vec<Setting>) {
    // Without the BFQ scheduler's file name the kernel has CFQ's, up to Linux 5.0.
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        out.push(
            Setting::new("blkio", "blkio.weight", weight)
                .or(Otherwise::Instead("blkio.bfq.weight", weight.to_string())),
        );
    }
    if let Some(weight) = block_io.leaf_weight.filter(|weight| *weight != 0) {
        out.push(Setting::new("blkio", "blkio.leaf_weight", weight));
    }
    for device in &block_io.weight_device {
        let name = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let value = format!("{name} {weight}");
            out.push(
                Setting::new("blkio", "blkio.weight_device", &value)
                    .or(Otherwise::Instead("blkio.bfq.weight_device", value)),
            );
        }
        if let Some(weight) = device.leaf_weight.filter(|weight| *weight != 0) {
            out.push(Setting::new(
                "blkio",
                "blkio.leaf_weight_device",
                format!("{name} {weight}"),
            ));
        }
    }
    let mut throttle = |file: &'static str, devices: &[ThrottleDevice]| {
        for device in devices {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            out.push(Setting::new("blkio", file, value));
        }
    };
    throttle(
        "blkio.throttle.read_bps_device",
        &block_io.throttle_read_bps_device,
    );
    throttle(
        "blkio.throttle.write_bps_device",
        &block_io.throttle_write_bps_device,
    );
    throttle(
        "blkio.throttle.read_iops_device",
        &block_io.throttle_read_iops_device,
    );
    throttle(
        "blkio.throttle.write_iops_device",
        &block_io.throttle_write_iops_device,
    );
}

/// `rdma.max` is the same on both versions.
pub(super) fn rdma(resources: &Resources, out: &mut Vec<Setting>) {
    for (device, limits) in &resources.rdma {
        let mut value = device.clone();
        for (name, limit) in [
            ("hca_handle", limits.hca_handles),
            ("hca_object", limits.hca_objects),
        ] {
            if let Some(limit) = limit {
                value.push_str(&format!(" {name}={limit}"));
            }
        }
        out.push(Setting::new("rdma", "rdma.max", value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str) -> Vec<String> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let settings = settings(&resources).unwrap();
        settings
            .iter()
            .map(|setting| format!("{} {}", setting.file, setting.value))
            .collect()
    }

    #[test]
    fn limits_to_control_files() {
        for (json, expected) in [
            (r#"{}"#, vec![]),
            (
                r#"{"memory":{"limit":104857600}}"#,
                vec!["memory.limit_in_bytes 104857600"],
            ),
            (
                r#"{"memory":{"limit":1048576,"swap":2097152,"reservation":5,"swappiness":0}}"#,
                vec![
                    "memory.limit_in_bytes 1048576",
                    "memory.memsw.limit_in_bytes 2097152",
                    "memory.soft_limit_in_bytes 5",
                    "memory.swappiness 0",
                ],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                vec!["memory.memsw.limit_in_bytes -1", "memory.limit_in_bytes -1"],
            ),
            (r#"{"memory":{"swappiness":18446744073709551615}}"#, vec![]),
            (
                r#"{"cpu":{"shares":510,"quota":50000,"period":100000,"cpus":"0","mems":""}}"#,
                vec![
                    "cpuset.cpus 0",
                    "cpu.shares 510",
                    "cpu.cfs_period_us 100000",
                    "cpu.cfs_quota_us 50000",
                ],
            ),
            (
                r#"{"cpu":{"shares":0,"quota":0,"period":0,"idle":1}}"#,
                vec!["cpu.idle 1"],
            ),
            (r#"{"pids":{"limit":0}}"#, vec!["pids.max 1"]),
            (r#"{"pids":{"limit":-1}}"#, vec!["pids.max max"]),
            (r#"{"pids":{}}"#, vec![]),
            (
                r#"{"blockIO":{"weight":300,"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":7}]}}"#,
                vec!["blkio.weight 300", "blkio.throttle.read_iops_device 8:0 7"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                vec![
                    "hugetlb.2MB.limit_in_bytes 4194304",
                    "hugetlb.2MB.rsvd.limit_in_bytes 4194304",
                ],
            ),
            (
                r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#,
                vec!["net_cls.classid 1048577", "net_prio.ifpriomap eth0 5"],
            ),
            (
                r#"{"rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}}}"#,
                vec!["rdma.max mlx5_1 hca_handle=3 hca_object=10000"],
            ),
        ] {
            assert_eq!(lines(json), expected, "{json}");
        }
    }

    #[test]
    fn contradictions() {
        for (json, expected) in [
            (
                r#"{"memory":{"limit":200,"swap":100}}"#,
                "memory+swap limit (100) should be >= memory limit (200)",
            ),
            (
                r#"{"memory":{"limit":-2}}"#,
                "memory limit of -2 bytes: only -1 (no limit) may be negative",
            ),
            (
                r#"{"memory":{"swappiness":101}}"#,
                "invalid memory swappiness value: 101 (valid range is 0-100)",
            ),
            (
                r#"{"cpu":{"shares":1}}"#,
                "the minimum allowed cpu-shares is 2",
            ),
            (
                r#"{"cpu":{"shares":262145}}"#,
                "the maximum allowed cpu-shares is 262144",
            ),
            (
                r#"{"unified":{"memory.max":"1"}}"#,
                "invalid configuration: cannot use unified on cgroup v1",
            ),
        ] {
            let resources: Resources = serde_json::from_str(json).unwrap();
            assert_eq!(
                settings(&resources).unwrap_err().to_string(),
                expected,
                "{json}"
            );
        }
    }
}
