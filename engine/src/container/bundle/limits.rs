//! Limits: cgroup resources, rlimits, sysctls.

use std::collections::HashMap;

use bundle_tools::validate::sysctl_namespace;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Spec,
};

use crate::container::model::{Options, Resources, Sharing};
use crate::container::{Error, Result};
use crate::network::Mode;

pub(super) fn apply(options: &Options, spec: &mut Spec) -> Result<()> {
    let limits = options
        .ulimits
        .iter()
        .map(|entry| rlimit(entry))
        .collect::<Result<Vec<_>>>()?;
    if let Some(process) = spec.process_mut() {
        if !limits.is_empty() {
            process.set_rlimits(Some(limits));
        }
        if let Some(score) = options.resources.oom_score_adj {
            process.set_oom_score_adj(Some(score));
        }
    }
    if let Some(linux) = spec.linux_mut() {
        if !options.sysctls.is_empty() {
            let mut sysctls = HashMap::new();
            for entry in &options.sysctls {
                let (key, value) = sysctl(entry, options)?;
                sysctls.insert(key.to_owned(), value.to_owned());
            }
            linux.set_sysctl(Some(sysctls));
        }
        let resources = linux.resources().clone().unwrap_or_default();
        linux.set_resources(Some(cgroup(&options.resources, resources)));
    }
    Ok(())
}

pub(super) fn check(options: &Options) -> Result<()> {
    for entry in &options.ulimits {
        rlimit(entry)?;
    }
    for entry in &options.sysctls {
        sysctl(entry, options)?;
    }
    let limits = &options.resources;
    if limits
        .oom_score_adj
        .is_some_and(|score| !(-1000..=1000).contains(&score))
    {
        return Err(Error::Invalid(
            "invalid --oom-score-adj: it goes from -1000 to 1000".to_owned(),
        ));
    }
    if limits
        .memory_swappiness
        .is_some_and(|percent| percent > 100)
    {
        return Err(Error::Invalid(
            "invalid --memory-swappiness: it goes from 0 to 100".to_owned(),
        ));
    }
    Ok(())
}

/// A kernel parameter that a container has of its own. Any other would be the host's (CVE-2022-0811 wrote
/// `kernel.core_pattern` in the shade of an allowed one).
fn sysctl<'a>(entry: &'a str, options: &Options) -> Result<(&'a str, &'a str)> {
    let invalid = |reason: &str| Error::Invalid(format!("invalid --sysctl {entry:?}: {reason}"));
    let (key, value) = entry
        .split_once('=')
        .ok_or_else(|| invalid("expected KEY=VALUE"))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if key.is_empty() || !key.bytes().all(plain) || key.contains("..") {
        return Err(invalid("that is no name of a kernel parameter"));
    }
    let shared = match sysctl_namespace(&key.replace('/', ".")) {
        Some("network") => matches!(options.network, Mode::Host),
        Some("ipc") => options.ipc == Sharing::Host,
        Some("uts") => options.uts_host,
        _ => return Err(invalid("it is not one that containers have of their own")),
    };
    if shared {
        return Err(invalid("the namespace it belongs to is the host's"));
    }
    Ok((key, value))
}

fn cgroup(asked: &Resources, mut resources: LinuxResources) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(asked.memory)
        // Docker: without a word on swap, as much swap again as memory.
        .set_swap(
            asked
                .memory_swap
                .or_else(|| asked.memory.map(|limit| limit.saturating_mul(2))),
        )
        .set_reservation(asked.memory_reservation)
        .set_swappiness(asked.memory_swappiness);
    if asked.oom_kill_disable {
        memory.set_disable_oom_killer(Some(true));
    }
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(asked.cpu_shares)
        .set_quota(asked.cpu_quota)
        .set_period(asked.cpu_period)
        .set_cpus(asked.cpuset_cpus.clone())
        .set_mems(asked.cpuset_mems.clone());
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = asked.pids {
        let mut pids = LinuxPids::default();
        // Both 0 and -1 are docker's "no limit"; the runtime's is -1.
        pids.set_limit(if limit <= 0 { -1 } else { limit });
        resources.set_pids(Some(pids));
    }
    if let Some(weight) = asked.blkio_weight {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    resources
}

/// What has to be written to go from `old` to `new`. What `new` has no limit for is set to the kernel's default; what
/// does not differ is left out.
pub(in crate::container) fn changed(old: &Resources, new: &Resources) -> LinuxResources {
    let mut resources = LinuxResources::default();
    let both = |limits: &Resources| {
        let twice = limits.memory.map(|limit| limit.saturating_mul(2));
        limits.memory_swap.or(twice)
    };
    let mut memory = LinuxMemory::default();
    if (old.memory, both(old)) != (new.memory, both(new)) {
        memory
            .set_limit(Some(new.memory.unwrap_or(-1)))
            .set_swap(Some(both(new).unwrap_or(-1)));
    }
    if old.memory_reservation != new.memory_reservation {
        memory.set_reservation(Some(new.memory_reservation.unwrap_or(-1)));
    }
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpu::default();
    if old.cpu_shares != new.cpu_shares {
        cpu.set_shares(Some(new.cpu_shares.unwrap_or(1024)));
    }
    if (old.cpu_quota, old.cpu_period) != (new.cpu_quota, new.cpu_period) {
        cpu.set_quota(Some(new.cpu_quota.unwrap_or(-1)))
            .set_period(Some(new.cpu_period.unwrap_or(100_000)));
    }
    if old.cpuset_cpus != new.cpuset_cpus {
        cpu.set_cpus(new.cpuset_cpus.clone().or_else(|| online("cpu")));
    }
    if old.cpuset_mems != new.cpuset_mems {
        cpu.set_mems(new.cpuset_mems.clone().or_else(|| online("node")));
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if old.pids != new.pids {
        let mut pids = LinuxPids::default();
        pids.set_limit(new.pids.filter(|&limit| limit > 0).unwrap_or(-1));
        resources.set_pids(Some(pids));
    }
    if old.blkio_weight != new.blkio_weight {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(new.blkio_weight.unwrap_or(500)));
        resources.set_block_io(Some(block));
    }
    resources
}

/// All CPUs or memory nodes of the machine.
fn online(kind: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/devices/system/{kind}/online")).ok()?;
    Some(text.trim().to_owned())
}

/// `NAME=SOFT[:HARD]`; -1 and `unlimited` are without limit.
fn rlimit(entry: &str) -> Result<PosixRlimit> {
    let bad = || Error::Invalid(format!("bad --ulimit {entry:?}: expected NAME=SOFT[:HARD]"));
    let value = |text: &str| match text {
        "-1" | "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    let (name, values) = entry.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft).ok_or_else(bad)?, value(hard).ok_or_else(bad)?);
    if soft > hard {
        return Err(Error::Invalid(format!(
            "bad --ulimit {entry:?}: the soft limit must not be above the hard one"
        )));
    }
    let kind: PosixRlimitType =
        serde_json::from_value(format!("RLIMIT_{}", name.to_uppercase()).into())
            .map_err(|_| bad())?;
    PosixRlimitBuilder::default()
        .typ(kind)
        .soft(soft)
        .hard(hard)
        .build()
        .map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_as_much_again_as_memory() {
        let asked = Resources {
            memory: Some(100 << 20),
            ..Resources::default()
        };
        let resources = cgroup(&asked, LinuxResources::default());
        assert_eq!(resources.memory().as_ref().unwrap().swap(), Some(200 << 20));
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_lifted_is_unlimited() {
        let limits = |memory, pids| Resources {
            memory,
            pids,
            ..Resources::default()
        };
        let json = |old, new| serde_json::to_string(&changed(&old, &new)).unwrap();
        let one = limits(Some(1 << 20), Some(5));
        assert_eq!(json(one.clone(), one.clone()), "{}");
        assert_eq!(
            json(one.clone(), limits(Some(2 << 20), Some(5))),
            r#"{"memory":{"limit":2097152,"swap":4194304}}"#
        );
        assert_eq!(
            json(one, limits(None, Some(0))),
            r#"{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}"#
        );
    }

    #[test]
    fn only_parameters_of_ones_own() {
        let options = Options::default();
        for good in [
            "net.ipv4.ip_forward=1",
            "kernel.shmmax=1",
            "net/core/somaxconn=5",
        ] {
            assert!(sysctl(good, &options).is_ok(), "{good}");
        }
        for bad in [
            "kernel.core_pattern=|/x",
            "kernel.shm_rmid_forced=1+kernel.core_pattern=x"
                .split_once('=')
                .unwrap()
                .0,
            "vm.swappiness=1",
            "net.../kernel=1",
            "net.x+kernel.core_pattern=1",
            "=1",
        ] {
            assert!(sysctl(bad, &options).is_err(), "{bad}");
        }
        let host = Options {
            network: Mode::Host,
            ..Options::default()
        };
        assert!(sysctl("net.ipv4.ip_forward=1", &host).is_err());
    }

    #[test]
    fn ulimits_are_checked() {
        let limit = rlimit("nofile=100:200").unwrap();
        assert_eq!((limit.soft(), limit.hard()), (100, 200));
        assert_eq!(rlimit("core=-1").unwrap().hard(), u64::MAX);
        for bad in ["nofile", "nofile=x", "nofile=5:4", "nosuch=1"] {
            assert!(rlimit(bad).is_err(), "{bad}");
        }
    }
}
