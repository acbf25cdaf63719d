//! cgroup v1: `io.containerd.cgroups.v1.Metrics`.

use std::path::{Path, PathBuf};

use prost::Message;

use super::{Cgroup, Table, huge_page_sizes, number};

/// Nanoseconds of one tick of `cpuacct.stat`: `USER_HZ` is 100 on every architecture served.
const TICK: u64 = 10_000_000;

/// `Metrics`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metrics {
    #[prost(message, repeated, tag = "1")]
    hugetlb: Vec<HugetlbStat>,
    #[prost(message, optional, tag = "2")]
    pids: Option<PidsStat>,
    #[prost(message, optional, tag = "3")]
    cpu: Option<CpuStat>,
    #[prost(message, optional, tag = "4")]
    memory: Option<MemoryStat>,
    #[prost(message, optional, tag = "5")]
    blkio: Option<BlkIoStat>,
    #[prost(message, optional, tag = "9")]
    memory_oom_control: Option<MemoryOomControl>,
}

/// `HugetlbStat`.
#[derive(Clone, PartialEq, Eq, Message)]
struct HugetlbStat {
    #[prost(uint64, tag = "1")]
    usage: u64,
    #[prost(uint64, tag = "2")]
    max: u64,
    #[prost(uint64, tag = "3")]
    failcnt: u64,
    #[prost(string, tag = "4")]
    pagesize: String,
}

/// `PidsStat`. A limit of 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct PidsStat {
    #[prost(uint64, tag = "1")]
    current: u64,
    #[prost(uint64, tag = "2")]
    limit: u64,
}

/// `CPUStat`.
#[derive(Clone, PartialEq, Message)]
struct CpuStat {
    #[prost(message, optional, tag = "1")]
    usage: Option<CpuUsage>,
    #[prost(message, optional, tag = "2")]
    throttling: Option<Throttle>,
}

/// `CPUUsage`, in nanoseconds.
#[derive(Clone, PartialEq, Eq, Message)]
struct CpuUsage {
    #[prost(uint64, tag = "1")]
    total: u64,
    #[prost(uint64, tag = "2")]
    kernel: u64,
    #[prost(uint64, tag = "3")]
    user: u64,
    #[prost(uint64, repeated, tag = "4")]
    per_cpu: Vec<u64>,
}

/// `Throttle`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Throttle {
    #[prost(uint64, tag = "1")]
    periods: u64,
    #[prost(uint64, tag = "2")]
    throttled_periods: u64,
    #[prost(uint64, tag = "3")]
    throttled_time: u64,
}

/// `MemoryEntry`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MemoryEntry {
    #[prost(uint64, tag = "1")]
    limit: u64,
    #[prost(uint64, tag = "2")]
    usage: u64,
    #[prost(uint64, tag = "3")]
    max: u64,
    #[prost(uint64, tag = "4")]
    failcnt: u64,
}

/// `MemoryOomControl`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MemoryOomControl {
    #[prost(uint64, tag = "1")]
    oom_kill_disable: u64,
    #[prost(uint64, tag = "2")]
    under_oom: u64,
    #[prost(uint64, tag = "3")]
    oom_kill: u64,
}

/// `BlkIOStat`.
#[derive(Clone, PartialEq, Message)]
struct BlkIoStat {
    #[prost(message, repeated, tag = "1")]
    io_service_bytes_recursive: Vec<BlkIoEntry>,
    #[prost(message, repeated, tag = "2")]
    io_serviced_recursive: Vec<BlkIoEntry>,
}

/// `BlkIOEntry`.
#[derive(Clone, PartialEq, Eq, Message)]
struct BlkIoEntry {
    #[prost(string, tag = "1")]
    op: String,
    #[prost(string, tag = "2")]
    device: String,
    #[prost(uint64, tag = "3")]
    major: u64,
    #[prost(uint64, tag = "4")]
    minor: u64,
    #[prost(uint64, tag = "5")]
    value: u64,
}

/// A message whose first fields are the lines of `memory.stat`, in the message's order.
macro_rules! memory_stat {
    ($($tag:literal $field:ident $line:literal,)*) => {
        /// `MemoryStat`.
        #[derive(Clone, PartialEq, Message)]
        struct MemoryStat {
            $(#[prost(uint64, tag = $tag)] $field: u64,)*
            #[prost(message, optional, tag = "33")]
            usage: Option<MemoryEntry>,
            #[prost(message, optional, tag = "34")]
            swap: Option<MemoryEntry>,
            #[prost(message, optional, tag = "35")]
            kernel: Option<MemoryEntry>,
            #[prost(message, optional, tag = "36")]
            kernel_tcp: Option<MemoryEntry>,
        }

        impl MemoryStat {
            fn of(table: &Table, directory: &Path) -> Self {
                Self {
                    $($field: table.get($line),)*
                    usage: entry(directory, "memory"),
                    swap: entry(directory, "memory.memsw"),
                    kernel: entry(directory, "memory.kmem"),
                    kernel_tcp: entry(directory, "memory.kmem.tcp"),
                }
            }
        }
    };
}

memory_stat! {
    "1" cache "cache",
    "2" rss "rss",
    "3" rss_huge "rss_huge",
    "4" mapped_file "mapped_file",
    "5" dirty "dirty",
    "6" writeback "writeback",
    "7" pg_pg_in "pgpgin",
    "8" pg_pg_out "pgpgout",
    "9" pg_fault "pgfault",
    "10" pg_maj_fault "pgmajfault",
    "11" inactive_anon "inactive_anon",
    "12" active_anon "active_anon",
    "13" inactive_file "inactive_file",
    "14" active_file "active_file",
    "15" unevictable "unevictable",
    "16" hierarchical_memory_limit "hierarchical_memory_limit",
    "17" hierarchical_swap_limit "hierarchical_memsw_limit",
    "18" total_cache "total_cache",
    "19" total_rss "total_rss",
    "20" total_rss_huge "total_rss_huge",
    "21" total_mapped_file "total_mapped_file",
    "22" total_dirty "total_dirty",
    "23" total_writeback "total_writeback",
    "24" total_pg_pg_in "total_pgpgin",
    "25" total_pg_pg_out "total_pgpgout",
    "26" total_pg_fault "total_pgfault",
    "27" total_pg_maj_fault "total_pgmajfault",
    "28" total_inactive_anon "total_inactive_anon",
    "29" total_active_anon "total_active_anon",
    "30" total_inactive_file "total_inactive_file",
    "31" total_active_file "total_active_file",
    "32" total_unevictable "total_unevictable",
}

fn entry(directory: &Path, prefix: &str) -> Option<MemoryEntry> {
    let get = |name: &str| number(directory, &format!("{prefix}.{name}"));
    Some(MemoryEntry {
        usage: get("usage_in_bytes")?,
        limit: get("limit_in_bytes").unwrap_or(0),
        max: get("max_usage_in_bytes").unwrap_or(0),
        failcnt: get("failcnt").unwrap_or(0),
    })
}

/// Reads everything that is there.
pub(super) fn read(list: &[(String, PathBuf)]) -> Metrics {
    let of = |name: &str| Cgroup::controller(list, name);
    Metrics {
        hugetlb: of("hugetlb").map(|path| hugetlb(&path)).unwrap_or_default(),
        pids: of("pids").and_then(|path| {
            let limit = number(&path, "pids.max").unwrap_or(0);
            Some(PidsStat {
                current: number(&path, "pids.current")?,
                limit: if limit == u64::MAX { 0 } else { limit },
            })
        }),
        cpu: Some(CpuStat {
            usage: of("cpuacct").map(|path| cpu_usage(&path)),
            throttling: of("cpu").and_then(|path| {
                let table = Table::read(&path, "cpu.stat")?;
                Some(Throttle {
                    periods: table.get("nr_periods"),
                    throttled_periods: table.get("nr_throttled"),
                    throttled_time: table.get("throttled_time"),
                })
            }),
        }),
        memory: of("memory")
            .and_then(|path| Some(MemoryStat::of(&Table::read(&path, "memory.stat")?, &path))),
        blkio: of("blkio").map(|path| BlkIoStat {
            io_service_bytes_recursive: block_io(
                &path,
                &[
                    "blkio.bfq.io_service_bytes_recursive",
                    "blkio.throttle.io_service_bytes_recursive",
                ],
            ),
            io_serviced_recursive: block_io(
                &path,
                &[
                    "blkio.bfq.io_serviced_recursive",
                    "blkio.throttle.io_serviced_recursive",
                ],
            ),
        }),
        memory_oom_control: of("memory").and_then(|path| {
            let table = Table::read(&path, "memory.oom_control")?;
            Some(MemoryOomControl {
                oom_kill_disable: table.get("oom_kill_disable"),
                under_oom: table.get("under_oom"),
                oom_kill: table.get("oom_kill"),
            })
        }),
    }
}

fn hugetlb(directory: &Path) -> Vec<HugetlbStat> {
    huge_page_sizes(directory, ".usage_in_bytes")
        .into_iter()
        .filter(|size| !size.contains('.'))
        .map(|size| {
            let get =
                |name: &str| number(directory, &format!("hugetlb.{size}.{name}")).unwrap_or(0);
            HugetlbStat {
                usage: get("usage_in_bytes"),
                max: get("max_usage_in_bytes"),
                failcnt: get("failcnt"),
                pagesize: size.clone(),
            }
        })
        .collect()
}

fn cpu_usage(directory: &Path) -> CpuUsage {
    let ticks = Table::read(directory, "cpuacct.stat").unwrap_or_default();
    let per_cpu = std::fs::read_to_string(directory.join("cpuacct.usage_percpu"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    CpuUsage {
        total: number(directory, "cpuacct.usage").unwrap_or(0),
        kernel: ticks.get("system").saturating_mul(TICK),
        user: ticks.get("user").saturating_mul(TICK),
        per_cpu,
    }
}

/// Lines `major:minor Operation count` of the first of the files that has any.
fn block_io(directory: &Path, files: &[&str]) -> Vec<BlkIoEntry> {
    files
        .iter()
        .filter_map(|file| std::fs::read_to_string(directory.join(file)).ok())
        .map(|text| text.lines().filter_map(block_entry).collect::<Vec<_>>())
        .find(|entries| !entries.is_empty())
        .unwrap_or_default()
}

fn block_entry(line: &str) -> Option<BlkIoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    Some(BlkIoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        device: String::new(),
        op: words.next()?.to_owned(),
        value: words.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_block_devices() {
        let entry = block_entry("8:16 Read 4096").unwrap();
        assert_eq!((entry.major, entry.minor, entry.value), (8, 16, 4096));
        assert_eq!(entry.op, "Read");
        assert_eq!(block_entry("Total 4096"), None);
    }
}
