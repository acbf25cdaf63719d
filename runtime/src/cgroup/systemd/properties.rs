//! Limits as properties of a systemd unit, which then writes them to control files itself.
//!
//! Pure. Which limit becomes which property is what runc's docs/systemd.md lists; systemd-analyze and
//! systemd.resource-control(5) name them as the bus does, with times in microseconds and "no limit" as the greatest number.
//! What systemd has no property for, or not yet in its version, is written to the control files alone.

use super::wire::Value;
use super::{Error, Result};
use crate::cgroup::device::{DeviceEntry, Rules};
use crate::cgroup::v2;
use crate::plan::number_list::Mask;
use crate::spec::resources::{Cpu, Memory, Resources};

/// A property's name and value.
pub(in crate::cgroup) type Property = (String, Value);

/// `CPUQuotaPeriodUSec`, since systemd 242.
const QUOTA_PERIOD: u32 = 242;
/// `AllowedCPUs` and `AllowedMemoryNodes`, since systemd 244.
const CPUSETS: u32 = 244;
/// A `CPUWeight` of 0 for `cpu.idle`, since systemd 252.
const IDLE: u32 = 252;
/// `OOMPolicy` of scopes, since systemd 253.
const OOM_POLICY: u32 = 253;
/// The kernel's own CPU period, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// systemd keeps a quota as percents of a CPU's second: steps of 10 ms.
const PERCENT: u64 = 10_000;

/// Shorter than a struct in the lists below.
pub(super) fn property(name: &str, value: Value) -> Property {
    (name.to_owned(), value)
}

/// The limits, for a systemd of some version. `v2` says whether the host has cgroup v2 alone.
pub(super) fn limits(resources: &Resources, version: u32, v2: bool) -> Result<Vec<Property>> {
    let mut out = Vec::new();
    if let Some(memory) = &resources.memory {
        self::memory(memory, v2, &mut out)?;
    }
    if let Some(cpu) = &resources.cpu {
        processor(cpu, version, v2, &mut out)?;
    }
    let weight = resources
        .block_io
        .as_ref()
        .and_then(|block_io| block_io.weight);
    if let Some(weight) = weight.filter(|weight| *weight != 0 && !v2) {
        out.push(property("BlockIOWeight", Value::U64(weight.into())));
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        // systemd takes no 0.
        let limit = u64::try_from(limit).map_or(u64::MAX, |limit| limit.max(1));
        out.push(property("TasksMax", Value::U64(limit)));
    }
    for (name, value) in &resources.unified {
        unified(name, value.trim(), resources, version, &mut out)?;
    }
    Ok(out)
}

fn memory(memory: &Memory, v2: bool, out: &mut Vec<Property>) -> Result<()> {
    // -1 is no limit, as a number without sign the greatest.
    let mut push = |name, value: i64| {
        if value != 0 {
            out.push(property(name, Value::U64(value.cast_unsigned())));
        }
    };
    let limit = memory.limit.unwrap_or(0);
    if !v2 {
        push("MemoryLimit", limit);
        return Ok(());
    }
    push("MemoryMax", limit);
    push("MemoryLow", memory.reservation.unwrap_or(0));
    let swap = v2::swap_alone(limit, memory.swap.unwrap_or(0))
        .map_err(|source| Error::Limit(Box::new(source)))?;
    if let Some(swap) = swap {
        out.push(property("MemorySwapMax", Value::U64(swap.cast_unsigned())));
    }
    Ok(())
}

fn processor(cpu: &Cpu, version: u32, v2: bool, out: &mut Vec<Property>) -> Result<()> {
    let shares = cpu.shares.filter(|shares| *shares != 0);
    let idle = v2 && cpu.idle == Some(1) && version >= IDLE;
    if idle {
        out.push(property("CPUWeight", Value::U64(0)));
    }
    match shares {
        Some(_) if idle => {
            log::warn!("unable to apply both CPUWeight and CpuIdle to systemd, ignoring CPUWeight");
        }
        Some(shares) if v2 => {
            out.push(property("CPUWeight", Value::U64(v2::cpu_weight(shares))));
        }
        Some(shares) => out.push(property("CPUShares", Value::U64(shares))),
        None => {}
    }
    quota(
        cpu.quota.unwrap_or(0),
        cpu.period.unwrap_or(0),
        version,
        out,
    );
    for (name, list) in [
        ("AllowedCPUs", &cpu.cpus),
        ("AllowedMemoryNodes", &cpu.mems),
    ] {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else {
            continue;
        };
        cpuset(name, list, version, out)?;
    }
    Ok(())
}

/// Microseconds per period; 0 is "not said", a negative quota no limit.
fn quota(quota: i64, period: u64, version: u32, out: &mut Vec<Property>) {
    if period != 0 && version >= QUOTA_PERIOD {
        out.push(property("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if quota != 0 || period != 0 {
        let per_second = per_second(quota, period).unwrap_or(u64::MAX);
        out.push(property("CPUQuotaPerSecUSec", Value::U64(per_second)));
    }
}

/// CPU time in a second, in whole percents, rounded up; `None` without a limit.
fn per_second(quota: i64, period: u64) -> Option<u64> {
    let quota = u64::try_from(quota).ok().filter(|quota| *quota != 0)?;
    let period = if period == 0 { DEFAULT_PERIOD } else { period };
    let time = u128::from(quota) * 1_000_000 / u128::from(period);
    let time = u64::try_from(time).unwrap_or(u64::MAX / 2);
    Some(time.next_multiple_of(PERCENT))
}

/// Makes the quota one that systemd can express, so that the control file gets the same from both.
pub(in crate::cgroup) fn round_quota(resources: &mut Resources) {
    let Some(cpu) = &mut resources.cpu else {
        return;
    };
    let period = cpu
        .period
        .filter(|period| *period != 0)
        .unwrap_or(DEFAULT_PERIOD);
    if let Some(quota) = cpu.quota
        && let Some(time) = per_second(quota, period)
    {
        let exact = u128::from(quota.unsigned_abs()) * 1_000_000
            % (u128::from(period) * u128::from(PERCENT))
            == 0;
        let rounded = u128::from(time) * u128::from(period) / 1_000_000;
        if !exact && let Ok(rounded) = i64::try_from(rounded) {
            cpu.quota = Some(rounded);
        }
    }
}

fn cpuset(name: &str, list: &str, version: u32, out: &mut Vec<Property>) -> Result<()> {
    let mask = Mask::parse(list).ok().flatten();
    let mask = mask.ok_or_else(|| Error::List {
        property: name.to_owned(),
        list: list.to_owned(),
    })?;
    if version < CPUSETS {
        log::debug!("systemd {version} has no {name}; it is written to the control file alone");
        return Ok(());
    }
    let bytes = mask.bytes().into_iter().map(Value::Byte).collect();
    out.push(property(name, Value::Array("y".to_owned(), bytes)));
    Ok(())
}

/// One control file of cgroup v2 by name.
fn unified(
    name: &str,
    value: &str,
    all: &Resources,
    version: u32,
    out: &mut Vec<Property>,
) -> Result<()> {
    let bad = || Error::Unified {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let number = || match value {
        "max" => Ok(u64::MAX),
        value => value.parse::<u64>().map_err(|_| bad()),
    };
    let idle = |value: &str| value == "1" && version >= IDLE;
    match name {
        "cpu.idle" if idle(value) => out.push(property("CPUWeight", Value::U64(0))),
        "cpu.weight" => {
            if all
                .unified
                .get("cpu.idle")
                .is_some_and(|value| idle(value.trim()))
            {
                log::warn!(
                    "unable to apply both cpu.weight and cpu.idle to systemd, ignoring cpu.weight"
                );
            } else {
                out.push(property(
                    "CPUWeight",
                    Value::U64(value.parse().map_err(|_| bad())?),
                ));
            }
        }
        "cpu.max" => {
            let mut words = value.split_whitespace();
            let limit = match words.next() {
                Some("max") => 0,
                limit => limit.and_then(|limit| limit.parse().ok()).ok_or_else(bad)?,
            };
            let period = words.next().map_or(Ok(DEFAULT_PERIOD), |period| {
                period.parse().map_err(|_| bad())
            })?;
            if words.next().is_some() {
                return Err(bad());
            }
            quota(limit, period, version, out);
        }
        "cpuset.cpus" => cpuset("AllowedCPUs", value, version, out)?,
        "cpuset.mems" => cpuset("AllowedMemoryNodes", value, version, out)?,
        "memory.high" => out.push(property("MemoryHigh", Value::U64(number()?))),
        "memory.low" => out.push(property("MemoryLow", Value::U64(number()?))),
        "memory.min" => out.push(property("MemoryMin", Value::U64(number()?))),
        "memory.max" => out.push(property("MemoryMax", Value::U64(number()?))),
        "memory.swap.max" => out.push(property("MemorySwapMax", Value::U64(number()?))),
        "pids.max" => out.push(property("TasksMax", Value::U64(number()?.max(1)))),
        // For the rest systemd has no property.
        _ => {}
    }
    Ok(())
}

/// What can be said at a unit's start alone.
pub(super) fn at_start(resources: &Resources, version: u32) -> Option<Property> {
    let policy = match resources.unified.get("memory.oom.group")?.trim() {
        "0" => "continue",
        "1" => "kill",
        _ => return None,
    };
    (version >= OOM_POLICY).then(|| property("OOMPolicy", Value::text(policy)))
}

/// The device rules. systemd knows only "none but these". A list of another kind it leaves to our own program on v2; on v1,
/// where it and we write to the same file, it is told to deny all, and we allow what there is to allow after it.
pub(super) fn devices(rules: &Rules, v2: bool) -> Vec<Property> {
    let list =
        |entries: Vec<Value>| property("DeviceAllow", Value::Array("(ss)".to_owned(), entries));
    let found = rules.entries();
    if rules.allows_everything() || (v2 && found.is_none()) {
        return vec![
            list(Vec::new()),
            property("DevicePolicy", Value::text("auto")),
        ];
    }
    let entries = found.iter().flatten().filter_map(device).collect();
    // The empty list first, for it clears what there is and a list with content adds to it.
    vec![
        list(Vec::new()),
        property("DevicePolicy", Value::text("strict")),
        list(entries),
    ]
}

/// A rule as `DeviceAllow` has it: `/dev/char/1:3`, `char-136`, `char-*`.
fn device(entry: &DeviceEntry) -> Option<Value> {
    let kind = if entry.block { "block" } else { "char" };
    let path = match (entry.major, entry.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        (None, None) => format!("{kind}-*"),
        // Cannot be said.
        (None, Some(_)) => return None,
    };
    Some(Value::Struct(vec![
        Value::Text(path),
        Value::text(entry.access.clone()),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(json: &str, version: u32, v2: bool) -> Vec<String> {
        let resources: Resources = serde_json::from_str(json).unwrap();
        let properties = limits(&resources, version, v2).unwrap();
        let text = |value: &Value| match value {
            Value::U64(u64::MAX) => "infinity".to_owned(),
            Value::U64(number) => number.to_string(),
            Value::Array(_, bytes) => format!("{bytes:?}").replace("Byte", ""),
            other => format!("{other:?}"),
        };
        properties
            .iter()
            .map(|(name, value)| format!("{name}={}", text(value)))
            .collect()
    }

    #[test]
    fn limits_to_properties() {
        for (json, v1, v2) in [
            (r#"{}"#, vec![], vec![]),
            (
                r#"{"memory":{"limit":1000,"reservation":500,"swap":3000}}"#,
                vec!["MemoryLimit=1000"],
                vec!["MemoryMax=1000", "MemoryLow=500", "MemorySwapMax=2000"],
            ),
            (
                r#"{"memory":{"limit":-1}}"#,
                vec!["MemoryLimit=infinity"],
                vec!["MemoryMax=infinity", "MemorySwapMax=infinity"],
            ),
            (
                r#"{"cpu":{"shares":1024}}"#,
                vec!["CPUShares=1024"],
                vec!["CPUWeight=100"],
            ),
            (
                r#"{"cpu":{"quota":5000}}"#,
                vec!["CPUQuotaPerSecUSec=50000"],
                vec!["CPUQuotaPerSecUSec=50000"],
            ),
            (
                r#"{"cpu":{"quota":-1,"period":1000000}}"#,
                vec!["CPUQuotaPeriodUSec=1000000", "CPUQuotaPerSecUSec=infinity"],
                vec!["CPUQuotaPeriodUSec=1000000", "CPUQuotaPerSecUSec=infinity"],
            ),
            (
                r#"{"cpu":{"cpus":"0-2,9","mems":"0"}}"#,
                vec!["AllowedCPUs=[(7), (2)]", "AllowedMemoryNodes=[(1)]"],
                vec!["AllowedCPUs=[(7), (2)]", "AllowedMemoryNodes=[(1)]"],
            ),
            (
                r#"{"pids":{"limit":0}}"#,
                vec!["TasksMax=1"],
                vec!["TasksMax=1"],
            ),
            (
                r#"{"pids":{"limit":-1}}"#,
                vec!["TasksMax=infinity"],
                vec!["TasksMax=infinity"],
            ),
            (
                r#"{"blockIO":{"weight":300}}"#,
                vec!["BlockIOWeight=300"],
                vec![],
            ),
        ] {
            assert_eq!(shown(json, 252, false), v1, "v1: {json}");
            assert_eq!(shown(json, 252, true), v2, "v2: {json}");
        }
    }

    #[test]
    fn control_files_to_properties() {
        for (json, expected) in [
            (
                r#"{"unified":{"memory.min":"1","memory.max":" max ","memory.swap.max":"7","pids.max":"0"}}"#,
                vec![
                    "MemoryMax=infinity",
                    "MemoryMin=1",
                    "MemorySwapMax=7",
                    "TasksMax=1",
                ],
            ),
            (
                r#"{"unified":{"cpu.max":"10000 100000","cpu.weight":"42"}}"#,
                vec![
                    "CPUQuotaPeriodUSec=100000",
                    "CPUQuotaPerSecUSec=100000",
                    "CPUWeight=42",
                ],
            ),
            (
                r#"{"unified":{"cpu.max":"max"}}"#,
                vec!["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=infinity"],
            ),
            (
                r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#,
                vec!["CPUWeight=0"],
            ),
            (
                r#"{"unified":{"cpu.idle":"0","hugetlb.2MB.max":"0"}}"#,
                vec![],
            ),
            (r#"{"cpu":{"idle":1,"shares":200}}"#, vec!["CPUWeight=0"]),
        ] {
            assert_eq!(shown(json, 252, true), expected, "{json}");
        }
    }

    #[test]
    fn what_an_old_systemd_does_not_have() {
        let json = r#"{"cpu":{"quota":5000,"period":10000,"cpus":"0","idle":1,"shares":1024}}"#;
        assert_eq!(
            shown(json, 241, true),
            ["CPUWeight=100", "CPUQuotaPerSecUSec=500000"]
        );
        let resources: Resources =
            serde_json::from_str(r#"{"unified":{"memory.oom.group":"1"}}"#).unwrap();
        assert_eq!(at_start(&resources, 252), None);
        assert_eq!(
            at_start(&resources, 253),
            Some(property("OOMPolicy", Value::text("kill")))
        );
    }

    #[test]
    fn bad_values_are_named() {
        for (json, expected) in [
            (
                r#"{"unified":{"pids.max":"many"}}"#,
                r#"unified resource "pids.max" value invalid: "many""#,
            ),
            (
                r#"{"unified":{"cpu.max":"1 2 3"}}"#,
                r#"unified resource "cpu.max" value invalid: "1 2 3""#,
            ),
            (
                r#"{"cpu":{"cpus":"3-1"}}"#,
                r#"cannot set AllowedCPUs: "3-1" is not a list such as 0-2,5"#,
            ),
        ] {
            let resources: Resources = serde_json::from_str(json).unwrap();
            assert_eq!(
                limits(&resources, 252, true).unwrap_err().to_string(),
                expected
            );
        }
    }

    #[test]
    fn quotas_in_whole_percents() {
        for (quota, period, expected) in [
            (5000, Some(100_000), 5000),
            (5001, Some(100_000), 6000),
            (1234, Some(10_000), 1300),
            (-1, Some(10_000), -1),
            (1, None, 1000),
            (0, None, 0),
        ] {
            let mut resources = Resources {
                cpu: Some(Cpu {
                    quota: Some(quota),
                    period,
                    ..Cpu::default()
                }),
                ..Resources::default()
            };
            round_quota(&mut resources);
            assert_eq!(
                resources.cpu.unwrap().quota,
                Some(expected),
                "{quota} {period:?}"
            );
        }
    }

    #[test]
    fn device_rules() {
        let shown = |json: &str, v2| -> Vec<String> {
            let rules = Rules::new(&serde_json::from_str::<Vec<_>>(json).unwrap()).unwrap();
            devices(&rules, v2)
                .iter()
                .map(|(name, value)| format!("{name} {value:?}"))
                .collect()
        };
        let usual = shown("[]", true);
        assert_eq!(usual[1], r#"DevicePolicy Text("strict")"#);
        for part in [
            r#"Struct([Text("/dev/char/1:3"), Text("rwm")])"#,
            r#"Struct([Text("char-136"), Text("rwm")])"#,
            r#"Struct([Text("block-*"), Text("m")])"#,
        ] {
            assert!(usual[2].contains(part), "{part} in {usual:?}");
        }
        let all = shown(r#"[{"allow":true,"access":"rwm"}]"#, false);
        assert_eq!(all[1], r#"DevicePolicy Text("auto")"#);
        // "All but" cannot be said.
        let json = r#"[{"allow":true},{"allow":false,"type":"b","major":8,"access":"rw"}]"#;
        assert_eq!(shown(json, false)[2], r#"DeviceAllow Array("(ss)", [])"#);
        assert_eq!(shown(json, true), all);
    }
}
