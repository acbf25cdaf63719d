//! cgroup v2: `io.containerd.cgroups.v2.Metrics`.

use std::path::Path;

use prost::Message;

use super::{Table, huge_page_sizes, number, value};

/// `Metrics`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metrics {
    #[prost(message, optional, tag = "1")]
    pids: Option<PidsStat>,
    #[prost(message, optional, tag = "2")]
    cpu: Option<CpuStat>,
    #[prost(message, optional, tag = "4")]
    memory: Option<MemoryStat>,
    #[prost(message, optional, tag = "6")]
    io: Option<IoStat>,
    #[prost(message, repeated, tag = "7")]
    hugetlb: Vec<HugeTlbStat>,
    #[prost(message, optional, tag = "8")]
    memory_events: Option<MemoryEvents>,
}

/// `PSIData`.
#[derive(Clone, Copy, PartialEq, Message)]
struct PsiData {
    #[prost(double, tag = "1")]
    avg10: f64,
    #[prost(double, tag = "2")]
    avg60: f64,
    #[prost(double, tag = "3")]
    avg300: f64,
    #[prost(uint64, tag = "4")]
    total: u64,
}

/// `PSIStats`.
#[derive(Clone, Copy, PartialEq, Message)]
struct PsiStats {
    #[prost(message, optional, tag = "1")]
    some: Option<PsiData>,
    #[prost(message, optional, tag = "2")]
    full: Option<PsiData>,
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
#[derive(Clone, Copy, PartialEq, Message)]
struct CpuStat {
    #[prost(uint64, tag = "1")]
    usage_usec: u64,
    #[prost(uint64, tag = "2")]
    user_usec: u64,
    #[prost(uint64, tag = "3")]
    system_usec: u64,
    #[prost(uint64, tag = "4")]
    nr_periods: u64,
    #[prost(uint64, tag = "5")]
    nr_throttled: u64,
    #[prost(uint64, tag = "6")]
    throttled_usec: u64,
    #[prost(message, optional, tag = "7")]
    psi: Option<PsiStats>,
    #[prost(uint64, tag = "8")]
    nr_bursts: u64,
    #[prost(uint64, tag = "9")]
    burst_usec: u64,
}

/// `IOStat`.
#[derive(Clone, PartialEq, Message)]
struct IoStat {
    #[prost(message, repeated, tag = "1")]
    usage: Vec<IoEntry>,
    #[prost(message, optional, tag = "2")]
    psi: Option<PsiStats>,
}

/// `IOEntry`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct IoEntry {
    #[prost(uint64, tag = "1")]
    major: u64,
    #[prost(uint64, tag = "2")]
    minor: u64,
    #[prost(uint64, tag = "3")]
    rbytes: u64,
    #[prost(uint64, tag = "4")]
    wbytes: u64,
    #[prost(uint64, tag = "5")]
    rios: u64,
    #[prost(uint64, tag = "6")]
    wios: u64,
}

/// `HugeTlbStat`.
#[derive(Clone, PartialEq, Eq, Message)]
struct HugeTlbStat {
    #[prost(uint64, tag = "1")]
    current: u64,
    #[prost(uint64, tag = "2")]
    max: u64,
    #[prost(string, tag = "3")]
    pagesize: String,
    #[prost(uint64, tag = "4")]
    failcnt: u64,
}

/// `MemoryEvents`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct MemoryEvents {
    #[prost(uint64, tag = "1")]
    low: u64,
    #[prost(uint64, tag = "2")]
    high: u64,
    #[prost(uint64, tag = "3")]
    max: u64,
    #[prost(uint64, tag = "4")]
    oom: u64,
    #[prost(uint64, tag = "5")]
    oom_kill: u64,
    #[prost(uint64, tag = "6")]
    oom_group_kill: u64,
}

/// A message whose first fields are lines of `memory.stat` of the same names.
macro_rules! memory_stat {
    ($($tag:literal $field:ident,)*) => {
        /// `MemoryStat`.
        #[derive(Clone, PartialEq, Message)]
        struct MemoryStat {
            $(#[prost(uint64, tag = $tag)] $field: u64,)*
            #[prost(uint64, tag = "32")]
            usage: u64,
            #[prost(uint64, tag = "33")]
            usage_limit: u64,
            #[prost(uint64, tag = "34")]
            swap_usage: u64,
            #[prost(uint64, tag = "35")]
            swap_limit: u64,
            #[prost(uint64, tag = "36")]
            max_usage: u64,
            #[prost(uint64, tag = "37")]
            swap_max_usage: u64,
            #[prost(message, optional, tag = "38")]
            psi: Option<PsiStats>,
        }

        impl MemoryStat {
            fn of(table: &Table, directory: &Path) -> Self {
                let get = |file: &str| number(directory, file).unwrap_or(0);
                Self {
                    $($field: table.get(stringify!($field)),)*
                    usage: get("memory.current"),
                    usage_limit: get("memory.max"),
                    swap_usage: get("memory.swap.current"),
                    swap_limit: get("memory.swap.max"),
                    max_usage: get("memory.peak"),
                    swap_max_usage: get("memory.swap.peak"),
                    psi: pressure(directory, "memory.pressure"),
                }
            }
        }
    };
}

memory_stat! {
    "1" anon,
    "2" file,
    "3" kernel_stack,
    "4" slab,
    "5" sock,
    "6" shmem,
    "7" file_mapped,
    "8" file_dirty,
    "9" file_writeback,
    "10" anon_thp,
    "11" inactive_anon,
    "12" active_anon,
    "13" inactive_file,
    "14" active_file,
    "15" unevictable,
    "16" slab_reclaimable,
    "17" slab_unreclaimable,
    "18" pgfault,
    "19" pgmajfault,
    "20" workingset_refault,
    "21" workingset_activate,
    "22" workingset_nodereclaim,
    "23" pgrefill,
    "24" pgscan,
    "25" pgsteal,
    "26" pgactivate,
    "27" pgdeactivate,
    "28" pglazyfree,
    "29" pglazyfreed,
    "30" thp_fault_alloc,
    "31" thp_collapse_alloc,
}

/// Reads everything that is there.
pub(super) fn read(directory: &Path) -> Metrics {
    Metrics {
        pids: number(directory, "pids.current").map(|current| PidsStat {
            current,
            limit: number(directory, "pids.max")
                .filter(|&limit| limit != u64::MAX)
                .unwrap_or(0),
        }),
        cpu: Table::read(directory, "cpu.stat").map(|table| CpuStat {
            usage_usec: table.get("usage_usec"),
            user_usec: table.get("user_usec"),
            system_usec: table.get("system_usec"),
            nr_periods: table.get("nr_periods"),
            nr_throttled: table.get("nr_throttled"),
            throttled_usec: table.get("throttled_usec"),
            psi: pressure(directory, "cpu.pressure"),
            nr_bursts: table.get("nr_bursts"),
            burst_usec: table.get("burst_usec"),
        }),
        memory: Table::read(directory, "memory.stat")
            .map(|table| MemoryStat::of(&table, directory)),
        io: std::fs::read_to_string(directory.join("io.stat"))
            .ok()
            .map(|text| IoStat {
                usage: text.lines().filter_map(io_entry).collect(),
                psi: pressure(directory, "io.pressure"),
            }),
        hugetlb: hugetlb(directory),
        memory_events: Table::read(directory, "memory.events").map(|table| MemoryEvents {
            low: table.get("low"),
            high: table.get("high"),
            max: table.get("max"),
            oom: table.get("oom"),
            oom_kill: table.get("oom_kill"),
            oom_group_kill: table.get("oom_group_kill"),
        }),
    }
}

/// A line `major:minor rbytes=… wbytes=… …`.
fn io_entry(line: &str) -> Option<IoEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry = IoEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        ..IoEntry::default()
    };
    for (name, count) in words.filter_map(|word| word.split_once('=')) {
        let count = value(count).unwrap_or(0);
        match name {
            "rbytes" => entry.rbytes = count,
            "wbytes" => entry.wbytes = count,
            "rios" => entry.rios = count,
            "wios" => entry.wios = count,
            _ => {}
        }
    }
    Some(entry)
}

/// A pressure file; `None` where the kernel has none (`psi=0`).
fn pressure(directory: &Path, file: &str) -> Option<PsiStats> {
    let text = std::fs::read_to_string(directory.join(file)).ok()?;
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let field = |name: &str| {
            line.split_whitespace()
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let average = |name: &str| {
            field(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0.0)
        };
        Some(PsiData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: field("total").and_then(value).unwrap_or(0),
        })
    };
    Some(PsiStats {
        some: line("some"),
        full: line("full"),
    })
}

fn hugetlb(directory: &Path) -> Vec<HugeTlbStat> {
    huge_page_sizes(directory, ".current")
        .into_iter()
        .filter(|size| !size.contains('.'))
        .map(|size| {
            let get = |name: &str| number(directory, &format!("hugetlb.{size}.{name}"));
            HugeTlbStat {
                current: get("current").unwrap_or(0),
                max: get("max").unwrap_or(0),
                failcnt: Table::read(directory, &format!("hugetlb.{size}.events"))
                    .map_or(0, |table| table.get("max")),
                pagesize: size.clone(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_io_and_pressure() {
        let entry = io_entry("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5").unwrap();
        assert_eq!((entry.major, entry.rbytes, entry.wios), (8, 1, 4));
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("cpu.pressure"),
            "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
        )
        .unwrap();
        let psi = pressure(directory.path(), "cpu.pressure").unwrap();
        assert_eq!(psi.some.unwrap().total, 77);
        assert_eq!(psi.full, None);
        assert_eq!(pressure(directory.path(), "io.pressure"), None);
    }
}
