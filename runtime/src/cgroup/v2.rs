//! Limits as cgroup v2 spells them.
//!
//! The specification describes limits in the terms of v1; this is the conversion. Pure but for [`current`], which looks
//! up what a change of one half of a pair (quota and period, swap and memory) has to be combined with.
//! Sources: config-linux.md "Control groups"; Documentation/admin-guide/cgroup-v2.rst of the kernel; for the arithmetic
//! of shares, weights and swap, runc's `opencontainers/cgroups` (functions named at each conversion).

use std::path::Path;

use super::setting::{Otherwise, Setting};
use super::v1::{check_memory, pids_limit, rdma};
use super::{Error, Result, file};
use crate::spec::resources::{BlockIo, Cpu, Memory, Resources, ThrottleDevice};

/// `cpu.max`'s period when nothing was said, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;

/// All settings but the device rules, for a cgroup without limits.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>> {
    let mut out = Vec::new();
    if let Some(limit) = resources.pids.as_ref().and_then(pids_limit) {
        out.push(Setting::new("pids", "pids.max", limit));
    }
    if let Some(memory) = &resources.memory {
        self::memory(memory, &mut out)?;
    }
    if let Some(block_io) = &resources.block_io {
        io(block_io, &mut out);
    }
    if let Some(cpu) = &resources.cpu {
        processor(cpu, &mut out);
    }
    for limit in &resources.hugepage_limits {
        let size = &limit.page_size;
        out.push(Setting::new(
            "hugetlb",
            format!("hugetlb.{size}.max"),
            limit.limit,
        ));
        let reserved = format!("hugetlb.{size}.rsvd.max");
        out.push(Setting::new("hugetlb", reserved, limit.limit).or(Otherwise::Skip));
    }
    rdma(resources, &mut out);
    for (name, value) in &resources.unified {
        unified(name, value, &mut out)?;
    }
    Ok(out)
}

/// What is asked for and has no meaning here.
pub(super) fn warnings(resources: &Resources) -> Vec<String> {
    let memory = resources.memory.as_ref();
    let cpu = resources.cpu.as_ref();
    let realtime = cpu.is_some_and(|cpu| {
        cpu.realtime_period.unwrap_or(0) != 0 || cpu.realtime_runtime.unwrap_or(0) != 0
    });
    let swappiness = memory.and_then(|memory| memory.swappiness);
    [
        (
            swappiness.is_some_and(|value| value != u64::MAX),
            "memory.swappiness",
        ),
        (
            memory.is_some_and(|memory| memory.disable_oom_killer == Some(true)),
            "memory.disableOOMKiller",
        ),
        (realtime, "cpu.realtimePeriod and cpu.realtimeRuntime"),
        (
            resources.network.is_some(),
            "network.classID and network.priorities",
        ),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .map(|(_, name)| format!("cgroup v2 has no {name}; ignored"))
    .collect()
}

fn memory(memory: &Memory, out: &mut Vec<Setting>) -> Result<()> {
    check_memory(memory)?;
    if let Some(swap) = swap_alone(memory.limit.unwrap_or(0), memory.swap.unwrap_or(0))? {
        let setting = Setting::new("memory", "memory.swap.max", bytes(swap));
        // A kernel without swap accounting has nothing to switch off.
        let harmless = swap <= 0;
        out.push(setting.or(if harmless {
            Otherwise::Skip
        } else {
            Otherwise::Fail
        }));
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        out.push(Setting::new("memory", "memory.max", bytes(limit)));
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        out.push(Setting::new("memory", "memory.low", bytes(reservation)));
    }
    Ok(())
}

/// The specification counts memory and swap together, v2 swap alone (`ConvertMemorySwapToCgroupV2Value`).
pub(super) fn swap_alone(limit: i64, both: i64) -> Result<Option<i64>> {
    match (limit, both) {
        (-1, 0) => Ok(Some(-1)),
        (_, 0) => Ok(None),
        (_, -1) => Ok(Some(-1)),
        (-1, both) => Ok(Some(both)),
        (0, _) => Err(Error::SwapWithoutMemory),
        (limit, both) => Ok(Some(both - limit)),
    }
}

fn bytes(value: i64) -> String {
    if value == -1 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn io(block_io: &BlockIo, out: &mut Vec<Setting>) {
    // BFQ takes the specification's range as it is; the generic weight has a wider one.
    if let Some(weight) = block_io.weight.filter(|weight| *weight != 0) {
        let generic = format!("default {}", io_weight(weight));
        out.push(
            Setting::new("io", "io.bfq.weight", weight)
                .or(Otherwise::Instead("io.weight", generic)),
        );
    }
    for device in &block_io.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let name = format!("{}:{}", device.major, device.minor);
            let generic = format!("{name} {}", io_weight(weight));
            out.push(
                Setting::new("io", "io.bfq.weight", format!("{name} {weight}"))
                    .or(Otherwise::Instead("io.weight", generic)),
            );
        }
    }
    let mut throttle = |key: &str, devices: &[ThrottleDevice]| {
        for device in devices {
            // v1 lifts a throttle with 0, v2 with "max".
            let rate = if device.rate == 0 {
                "max".to_owned()
            } else {
                device.rate.to_string()
            };
            out.push(Setting::new(
                "io",
                "io.max",
                format!("{}:{} {key}={rate}", device.major, device.minor),
            ));
        }
    };
    throttle("rbps", &block_io.throttle_read_bps_device);
    throttle("wbps", &block_io.throttle_write_bps_device);
    throttle("riops", &block_io.throttle_read_iops_device);
    throttle("wiops", &block_io.throttle_write_iops_device);
}

/// 10..=1000 to 1..=10000, linearly (`ConvertBlkIOToIOWeightValue`).
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

fn processor(cpu: &Cpu, out: &mut Vec<Setting>) {
    // Before the weight, which an idle cgroup does not take.
    if let Some(idle) = cpu.idle {
        out.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        out.push(Setting::new("cpu", "cpu.weight", cpu_weight(shares)));
    }
    if let Some(burst) = cpu.burst {
        out.push(Setting::new("cpu", "cpu.max.burst", burst).or(Otherwise::Later));
    }
    let quota = cpu.quota.filter(|quota| *quota != 0);
    let period = cpu.period.filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota @ 1..) => quota.to_string(),
            _ => "max".to_owned(),
        };
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD));
        out.push(Setting::new("cpu", "cpu.max", value).or(Otherwise::Later));
    }
    for (file, value) in [("cpuset.cpus", &cpu.cpus), ("cpuset.mems", &cpu.mems)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            out.push(Setting::new("cpuset", file, value));
        }
    }
}

/// 2..=262144 to 1..=10000 so that 1024 becomes 100 (`ConvertCPUSharesToCgroupV2Value`): in the logarithms of both, the
/// parabola through the two ends and the default.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "at most 2^18, exact in an f64")]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "between 1 and 10000 by construction"
            )]
            let weight = 10f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

fn unified(name: &str, value: &str, out: &mut Vec<Setting>) -> Result<()> {
    if name.contains('/') {
        return Err(Error::UnifiedName {
            name: name.to_owned(),
            problem: "must be a file name (no slashes)",
        });
    }
    let Some((controller, _)) = name.split_once('.') else {
        let problem = "must be in the form CONTROLLER.PARAMETER";
        return Err(Error::UnifiedName {
            name: name.to_owned(),
            problem,
        });
    };
    // Files such as io.max take one line per write.
    for line in value
        .split('\n')
        .filter(|line| !line.is_empty() || value.is_empty())
    {
        out.push(Setting {
            controller: controller.to_owned().into(),
            file: name.to_owned().into(),
            value: line.to_owned(),
            otherwise: Otherwise::Fail,
        });
    }
    Ok(())
}

/// Completes a change of limits with what the cgroup has now, where one file holds two of them.
pub(super) fn current(directory: &Path, resources: &Resources) -> Result<Resources> {
    let mut resources = resources.clone();
    if let Some(cpu) = &mut resources.cpu {
        let quota = cpu.quota.filter(|quota| *quota != 0);
        let period = cpu.period.filter(|period| *period != 0);
        if quota.is_some() != period.is_some() {
            let text = file::read(&directory.join("cpu.max"))?;
            let (old_quota, old_period) = text.trim().split_once(' ').unwrap_or(("max", ""));
            cpu.quota = quota.or_else(|| old_quota.parse().ok()).or(Some(-1));
            cpu.period = period.or_else(|| old_period.parse().ok());
        }
    }
    if let Some(memory) = &mut resources.memory {
        let swap = memory.swap.unwrap_or(0);
        if swap > 0 && memory.limit.unwrap_or(0) == 0 {
            let limit = file::read_number(&directory.join("memory.max"))?;
            memory.limit = Some(
                limit
                    .and_then(|limit| i64::try_from(limit).ok())
                    .unwrap_or(-1),
            );
        }
        if swap == 0 && memory.limit.unwrap_or(0) > 0 {
            // The limit of both together stays what it was.
            let old = |name| file::read_number(&directory.join(name)).ok().flatten();
            memory.swap = old("memory.max")
                .zip(old("memory.swap.max"))
                .and_then(|(limit, swap)| i64::try_from(limit.checked_add(swap)?).ok());
        }
        if memory.check_before_update == Some(true) {
            refuse_below_usage(directory, memory)?;
        }
    }
    Ok(resources)
}

fn refuse_below_usage(directory: &Path, memory: &Memory) -> Result<()> {
    // Best effort, as the specification has it: a cgroup that shows no usage is not checked.
    let Ok(Some(usage)) = file::read_number(&directory.join("memory.current")) else {
        return Ok(());
    };
    for (name, limit) in [("memory+swap", memory.swap), ("memory", memory.limit)] {
        if let Some(limit) = limit.and_then(|limit| u64::try_from(limit).ok())
            && limit > 0
            && limit <= usage
        {
            return Err(Error::BelowUsage { name, limit, usage });
        }
    }
    Ok(())
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
                vec!["memory.max 104857600"],
            ),
            (
                r#"{"memory":{"limit":1000,"swap":1000,"reservation":7}}"#,
                vec!["memory.swap.max 0", "memory.max 1000", "memory.low 7"],
            ),
            (
                r#"{"memory":{"limit":1000,"swap":3000}}"#,
                vec!["memory.swap.max 2000", "memory.max 1000"],
            ),
            (
                r#"{"memory":{"limit":1000,"swap":-1}}"#,
                vec!["memory.swap.max max", "memory.max 1000"],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                vec!["memory.swap.max max", "memory.max max"],
            ),
            (
                r#"{"memory":{"limit":-1,"swap":50}}"#,
                vec!["memory.swap.max 50", "memory.max max"],
            ),
            (r#"{"cpu":{"quota":50000}}"#, vec!["cpu.max 50000 100000"]),
            (
                r#"{"cpu":{"quota":-1,"period":20000}}"#,
                vec!["cpu.max max 20000"],
            ),
            (r#"{"cpu":{"period":20000}}"#, vec!["cpu.max max 20000"]),
            (
                r#"{"cpu":{"shares":1024,"cpus":"0-1","mems":"0"}}"#,
                vec!["cpu.weight 100", "cpuset.cpus 0-1", "cpuset.mems 0"],
            ),
            (
                r#"{"blockIO":{"weight":10,"throttleWriteBpsDevice":[{"major":8,"minor":16,"rate":99}]}}"#,
                vec!["io.bfq.weight 10", "io.max 8:16 wbps=99"],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                vec!["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304"],
            ),
            (
                r#"{"unified":{"io.max":"8:0 rbps=1\n8:1 rbps=2","memory.high":"max"}}"#,
                vec!["io.max 8:0 rbps=1", "io.max 8:1 rbps=2", "memory.high max"],
            ),
        ] {
            assert_eq!(lines(json), expected, "{json}");
        }
    }

    #[test]
    fn contradictions() {
        for (json, expected) in [
            (
                r#"{"memory":{"swap":100}}"#,
                "unable to set swap limit without memory limit",
            ),
            (
                r#"{"memory":{"limit":200,"swap":100}}"#,
                "memory+swap limit (100) should be >= memory limit (200)",
            ),
            (
                r#"{"unified":{"../x.y":"1"}}"#,
                r#"unified resource "../x.y" must be a file name (no slashes)"#,
            ),
            (
                r#"{"unified":{"cpu":"1"}}"#,
                r#"unified resource "cpu" must be in the form CONTROLLER.PARAMETER"#,
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

    #[test]
    fn weights() {
        // Values of the formula's own documentation: both ends, the default, and three in between.
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (4, 2),
            (512, 59),
            (1024, 100),
            (262_144, 10_000),
            (300_000, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares} shares");
        }
        for (weight, expected) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(weight), expected, "{weight}");
        }
    }

    #[test]
    fn what_v2_does_not_have() {
        let json =
            r#"{"memory":{"swappiness":5,"disableOOMKiller":true},"cpu":{"realtimePeriod":1}}"#;
        assert_eq!(warnings(&serde_json::from_str(json).unwrap()).len(), 3);
        let json = r#"{"memory":{"swappiness":18446744073709551615,"disableOOMKiller":false}}"#;
        assert!(warnings(&serde_json::from_str(json).unwrap()).is_empty());
    }
}
