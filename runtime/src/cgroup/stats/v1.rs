//! Figures out of the files of cgroup v1 (Documentation/admin-guide/cgroup-v1).

use std::collections::BTreeMap;
use std::path::Path;

use super::super::{Cgroup, Result};
use super::{
    BlockIo, BlockIoEntry, Cpu, CpuSet, HugePages, Memory, MemoryEntry, Pids, Stats, content,
    huge_page_sizes, malformed, number, pairs,
};
use crate::plan::number_list::Mask;

/// Ticks of `cpuacct.stat` to nanoseconds: 100 a second on every architecture (`USER_HZ`).
const TICK: u64 = 10_000_000;

/// Everything, from the hierarchies the container is in.
pub(super) fn read(cgroup: &Cgroup) -> Result<Stats> {
    let mut stats = Stats::default();
    let mut of = |controller: &str, read: &dyn Fn(&mut Stats, &Path) -> Result<()>| match cgroup
        .path(controller)
        .filter(|path| path.exists())
    {
        Some(directory) => read(&mut stats, directory),
        None => Ok(()),
    };
    of("cpuset", &|stats, directory| {
        cpuset(directory).map(|read| stats.cpuset = read)
    })?;
    of("memory", &|stats, directory| {
        memory(directory).map(|read| stats.memory = read)
    })?;
    of("cpu", &|stats, directory| {
        throttling(directory, &mut stats.cpu)
    })?;
    of("cpuacct", &|stats, directory| {
        usage(directory, &mut stats.cpu)
    })?;
    of("pids", &|stats, directory| {
        pids(directory).map(|read| stats.pids = read)
    })?;
    of("blkio", &|stats, directory| {
        block_io(directory).map(|read| stats.blkio = read)
    })?;
    of("hugetlb", &|stats, directory| {
        huge_pages(directory).map(|read| stats.hugetlb = read)
    })?;
    Ok(stats)
}

fn throttling(directory: &Path, cpu: &mut Cpu) -> Result<()> {
    let figures = pairs(&directory.join("cpu.stat"))?;
    let of = |key: &str| figures.get(key).copied().unwrap_or(0);
    cpu.throttling.periods = of("nr_periods");
    cpu.throttling.throttled_periods = of("nr_throttled");
    cpu.throttling.throttled_time = of("throttled_time");
    Ok(())
}

fn usage(directory: &Path, cpu: &mut Cpu) -> Result<()> {
    let split = pairs(&directory.join("cpuacct.stat"))?;
    let ticks = |key: &str| split.get(key).copied().unwrap_or(0).saturating_mul(TICK);
    cpu.usage.user = ticks("user");
    cpu.usage.kernel = ticks("system");
    cpu.usage.total = number(directory, "cpuacct.usage")?.unwrap_or(0);
    let path = directory.join("cpuacct.usage_percpu");
    let text = content(&path)?.unwrap_or_default();
    let parsed = text
        .split_whitespace()
        .map(|word| word.parse().map_err(|_| malformed(&path, word)));
    cpu.usage.percpu = parsed.collect::<Result<_>>()?;
    let all = content(&directory.join("cpuacct.usage_all"))?.unwrap_or_default();
    (cpu.usage.percpu_user, cpu.usage.percpu_kernel) = parse_usage_all(&all);
    Ok(())
}

/// A title and `CPU USER SYSTEM` a line; the lists of both.
fn parse_usage_all(text: &str) -> (Vec<u64>, Vec<u64>) {
    let figures = text.lines().skip(1).filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let mut figure = || words.next()?.parse::<u64>().ok();
        Some((figure()?, figure()?))
    });
    figures.unzip()
}

fn cpuset(directory: &Path) -> Result<CpuSet> {
    // A hierarchy mounted with "noprefix" has the names without it.
    let prefix = match directory.join("cpuset.cpus").exists() {
        true => "cpuset.",
        false => "",
    };
    let flag =
        |name: &str| number(directory, &format!("{prefix}{name}")).map(Option::unwrap_or_default);
    let list = |name: &str| -> Result<Vec<u16>> {
        let text = content(&directory.join(format!("{prefix}{name}")))?;
        let mask = Mask::parse(text.unwrap_or_default().trim());
        let numbers = mask.ok().flatten().unwrap_or_default();
        Ok(numbers.iter().filter_map(|it| it.try_into().ok()).collect())
    };
    let level = content(&directory.join(format!("{prefix}sched_relax_domain_level")))?;
    Ok(CpuSet {
        cpus: list("cpus")?,
        cpu_exclusive: flag("cpu_exclusive")?,
        mems: list("mems")?,
        mem_hardwall: flag("mem_hardwall")?,
        mem_exclusive: flag("mem_exclusive")?,
        memory_migrate: flag("memory_migrate")?,
        memory_spread_page: flag("memory_spread_page")?,
        memory_spread_slab: flag("memory_spread_slab")?,
        memory_pressure: flag("memory_pressure")?,
        sched_load_balance: flag("sched_load_balance")?,
        sched_relax_domain_level: level.and_then(|text| text.trim().parse().ok()).unwrap_or(0),
    })
}

fn memory(directory: &Path) -> Result<Memory> {
    let raw = pairs(&directory.join("memory.stat"))?;
    let entry = |name: &str| entry(directory, name);
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry("memory")?,
        swap: entry("memory.memsw")?,
        kernel: entry("memory.kmem")?,
        kernel_tcp: entry("memory.kmem.tcp")?,
        raw,
        psi: None,
    })
}

fn entry(directory: &Path, prefix: &str) -> Result<MemoryEntry> {
    let read = |name: &str| number(directory, &format!("{prefix}.{name}"));
    // Which kinds there are depends on how the kernel was built and started.
    let Some(usage) = read("usage_in_bytes")? else {
        return Ok(MemoryEntry::default());
    };
    Ok(MemoryEntry {
        usage,
        max: read("max_usage_in_bytes")?.unwrap_or(0),
        failcnt: read("failcnt")?.unwrap_or(0),
        limit: read("limit_in_bytes")?.unwrap_or(0),
    })
}

fn pids(directory: &Path) -> Result<Pids> {
    let limit = number(directory, "pids.max")?.filter(|limit| *limit != u64::MAX);
    Ok(Pids {
        current: number(directory, "pids.current")?.unwrap_or(0),
        limit: limit.unwrap_or(0),
    })
}

/// Lists in the order in which files are looked for.
type List = fn(&mut BlockIo) -> &mut Vec<BlockIoEntry>;
/// Names of files without what all of a set have in common, and where their content goes.
type Files<'a> = &'a [(&'a str, List)];

/// The file sets of different schedulers and kernels, the most telling first. The first one whose first file says anything is
/// what is shown.
fn block_io(directory: &Path) -> Result<BlockIo> {
    let bytes: (&str, List) = ("io_service_bytes", |io| &mut io.io_service_bytes_recursive);
    let serviced: (&str, List) = ("io_serviced", |io| &mut io.io_serviced_recursive);
    let all: [(&str, List); 8] = [
        ("sectors", |io| &mut io.sectors_recursive),
        ("io_service_time", |io| &mut io.io_service_time_recursive),
        ("io_wait_time", |io| &mut io.io_wait_time_recursive),
        ("io_merged", |io| &mut io.io_merged_recursive),
        ("io_queued", |io| &mut io.io_queue_recursive),
        ("time", |io| &mut io.io_time_recursive),
        serviced,
        bytes,
    ];
    let both = [serviced, bytes];
    let sets: [(&str, &str, Files<'_>); 5] = [
        ("blkio.bfq.", "_recursive", &all),
        ("blkio.bfq.", "_recursive", &both),
        ("blkio.", "_recursive", &all),
        ("blkio.throttle.", "_recursive", &both),
        ("blkio.throttle.", "", &both),
    ];
    let mut found = BlockIo::default();
    for (prefix, suffix, files) in sets {
        for (index, (name, list)) in files.iter().enumerate() {
            let path = directory.join(format!("{prefix}{name}{suffix}"));
            let entries = content(&path)?
                .map(|text| parse_block_io(&text))
                .unwrap_or_default();
            if entries.is_empty() {
                if index == 0 {
                    break;
                }
                return Ok(found);
            }
            *list(&mut found) = entries;
            if index + 1 == files.len() {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// `8:0 Read 5` or `8:0 5`; the line `Total 5` is passed over.
fn parse_block_io(text: &str) -> Vec<BlockIoEntry> {
    let entry = |line: &str| {
        let words: Vec<&str> = line
            .split([' ', ':'])
            .filter(|word| !word.is_empty())
            .collect();
        let (major, minor, op, value) = match words[..] {
            [major, minor, value] => (major, minor, "", value),
            [major, minor, op, value] => (major, minor, op, value),
            _ => return None,
        };
        Some(BlockIoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn huge_pages(directory: &Path) -> Result<BTreeMap<String, HugePages>> {
    let mut found = BTreeMap::new();
    for size in huge_page_sizes() {
        let mut prefix = format!("hugetlb.{size}.rsvd");
        let mut usage = number(directory, &format!("{prefix}.usage_in_bytes"))?;
        if usage.is_none() {
            prefix = format!("hugetlb.{size}");
            usage = number(directory, &format!("{prefix}.usage_in_bytes"))?;
        }
        let Some(usage) = usage else { break };
        let pages = HugePages {
            usage,
            max: number(directory, &format!("{prefix}.max_usage_in_bytes"))?.unwrap_or(0),
            failcnt: number(directory, &format!("{prefix}.failcnt"))?.unwrap_or(0),
        };
        found.insert(size, pages);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_by_processor() {
        let (user, kernel) = parse_usage_all("cpu user system\n0 5 6\n1 7 8\n");
        assert_eq!((user, kernel), (vec![5, 7], vec![6, 8]));
    }

    #[test]
    fn block_devices() {
        let entries = parse_block_io("8:0 Read 5\n8:0 Write 6\n8:16 7\nTotal 11\n");
        let values: Vec<_> = entries
            .iter()
            .map(|entry| (entry.minor, entry.op.as_str(), entry.value))
            .collect();
        assert_eq!(values, [(0, "Read", 5), (0, "Write", 6), (16, "", 7)]);
    }
}
