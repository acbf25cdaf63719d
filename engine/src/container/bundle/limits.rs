//! Limits: cgroup resources, rlimits, sysctls.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Spec,
};

use crate::container::model::{Options, Resources};
use crate::container::{Error, Result};

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
                let (key, value) = entry.split_once('=').ok_or_else(|| {
                    Error::Invalid(format!("bad --sysctl {entry:?}: expected KEY=VALUE"))
                })?;
                sysctls.insert(key.to_owned(), value.to_owned());
            }
            linux.set_sysctl(Some(sysctls));
        }
        let resources = linux.resources().clone().unwrap_or_default();
        linux.set_resources(Some(cgroup(&options.resources, resources)));
    }
    Ok(())
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
    fn ulimits_are_checked() {
        let limit = rlimit("nofile=100:200").unwrap();
        assert_eq!((limit.soft(), limit.hard()), (100, 200));
        assert_eq!(rlimit("core=-1").unwrap().hard(), u64::MAX);
        for bad in ["nofile", "nofile=x", "nofile=5:4", "nosuch=1"] {
            assert!(rlimit(bad).is_err(), "{bad}");
        }
    }
}
