//! Figures of a running container, in the shape in which runc's `events` shows them.
//!
//! Names, order and what is left out at zero are those of runc's `types/events.go`, which monitoring agents parse. What is
//! not to be had on a host stays zero, and a file that is not there is no failure: controllers differ between hosts.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;
use serde::{Serialize, Serializer};

use super::{Cgroup, Error, Result, file};

mod v1;
mod v2;

/// All figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Stats {
    /// CPU time.
    pub(crate) cpu: Cpu,
    /// CPUs and memory nodes (v1).
    pub(crate) cpuset: CpuSet,
    /// Memory.
    pub(crate) memory: Memory,
    /// Tasks.
    pub(crate) pids: Pids,
    /// Block devices.
    pub(crate) blkio: BlockIo,
    /// Huge pages by page size.
    pub(crate) hugetlb: BTreeMap<String, HugePages>,
    /// Cache and memory bandwidth, which are not measured here.
    pub(crate) intel_rdt: Nothing,
    /// Interfaces that the runtime itself has made: none.
    pub(crate) network_interfaces: Option<Nothing>,
}

/// An empty object.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Nothing {}

/// CPU time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Cpu {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) usage: CpuUsage,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Pressure>,
}

/// In nanoseconds, but for the per-CPU lists of v1's `cpuacct.usage_all`, which are as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CpuUsage {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) total: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) percpu: Vec<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) percpu_kernel: Vec<u64>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) percpu_user: Vec<u64>,
    pub(crate) kernel: u64,
    pub(crate) user: u64,
}

/// How often and how long the CPU quota was used up; the time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Throttling {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) throttled_periods: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) throttled_time: u64,
}

/// Files of v1's `cpuset` controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CpuSet {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) cpus: Vec<u16>,
    pub(crate) cpu_exclusive: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) mems: Vec<u16>,
    pub(crate) mem_hardwall: u64,
    pub(crate) mem_exclusive: u64,
    pub(crate) memory_migrate: u64,
    pub(crate) memory_spread_page: u64,
    pub(crate) memory_spread_slab: u64,
    pub(crate) memory_pressure: u64,
    pub(crate) sched_load_balance: u64,
    pub(crate) sched_relax_domain_level: i64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) cache: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) usage: MemoryEntry,
    /// With memory.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) swap: MemoryEntry,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) kernel: MemoryEntry,
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_default")]
    pub(crate) kernel_tcp: MemoryEntry,
    /// `memory.stat`.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Pressure>,
}

/// One kind of memory, in bytes; no limit is the greatest number on v2, and what the kernel writes on v1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct MemoryEntry {
    pub(crate) limit: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max: u64,
    pub(crate) failcnt: u64,
}

/// Tasks; a limit of 0 is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Pids {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) current: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) limit: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockIo {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_service_bytes_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_serviced_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_queue_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_service_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_wait_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_merged_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) io_time_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) sectors_recursive: Vec<BlockIoEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psi: Option<Pressure>,
}

/// One figure of one device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct BlockIoEntry {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) major: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) minor: u64,
    /// `Read`, `Write` and the like.
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) op: String,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct HugePages {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) usage: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) max: u64,
    pub(crate) failcnt: u64,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Pressure {
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) some: Stall,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) full: Stall,
}

/// Percent of the time over so many seconds, and microseconds in all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Stall {
    #[serde(serialize_with = "as_go_does")]
    pub(crate) avg10: f64,
    #[serde(serialize_with = "as_go_does")]
    pub(crate) avg60: f64,
    #[serde(serialize_with = "as_go_does")]
    pub(crate) avg300: f64,
    pub(crate) total: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Without a decimal point where there is nothing behind it.
fn as_go_does<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a percentage without a fraction"
    )]
    match value.fract() == 0.0 && (0.0..=100.0).contains(value) {
        true => serializer.serialize_u8(*value as u8),
        false => serializer.serialize_f64(*value),
    }
}

impl Stats {
    pub(super) fn read(cgroup: &Cgroup) -> Result<Self> {
        match cgroup.nodes.as_slice() {
            [only] if cgroup.is_pure_v2() => v2::read(&only.directory),
            _ => v1::read(cgroup),
        }
    }
}

/// A number in a control file; `max` is the greatest one, a negative one 0. `None` when there is no such file.
fn number(directory: &Path, name: &str) -> Result<Option<u64>> {
    let path = directory.join(name);
    let Some(text) = content(&path)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(Some(u64::MAX)),
        text => match (text.parse(), text.parse::<i64>()) {
            (Ok(value), _) => Ok(Some(value)),
            (_, Ok(_)) => Ok(Some(0)),
            _ => Err(malformed(&path, text)),
        },
    }
}

/// The content of a control file; `None` when there is no such file, or the kernel has it switched off.
fn content(path: &Path) -> Result<Option<String>> {
    match file::read_raw(path) {
        Ok(text) => Ok(Some(text)),
        Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::NODEV) => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// `KEY VALUE` on each line.
fn pairs(path: &Path) -> Result<BTreeMap<String, u64>> {
    let text = content(path)?.unwrap_or_default();
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ').ok_or_else(|| malformed(path, line))?;
        let value = value.trim().parse().map_err(|_| malformed(path, line))?;
        Ok((key.to_owned(), value))
    };
    text.lines().map(pair).collect()
}

fn malformed(path: &Path, content: &str) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        content: content.to_owned(),
    }
}

/// The sizes of huge pages that the kernel has, as control files spell them.
fn huge_page_sizes() -> Vec<String> {
    let found = file::children(Path::new("/sys/kernel/mm/hugepages")).unwrap_or_default();
    let names = found.iter().filter_map(|path| path.file_name()?.to_str());
    let mut sizes: Vec<_> = names.filter_map(huge_page_size).collect();
    sizes.sort();
    sizes
}

/// `hugepages-2048kB` as `2MB`.
fn huge_page_size(name: &str) -> Option<String> {
    let number = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let mut size: u64 = number.parse().ok()?;
    let mut units = ["KB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next()?;
    while size >= 1024 {
        size /= 1024;
        unit = units.next()?;
    }
    Some(format!("{size}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_is_shown_as_runc_does() {
        let expected = concat!(
            r#"{"cpu":{},"cpuset":{"cpu_exclusive":0,"mem_hardwall":0,"mem_exclusive":0,"memory_migrate":0,"#,
            r#""memory_spread_page":0,"memory_spread_slab":0,"memory_pressure":0,"sched_load_balance":0,"#,
            r#""sched_relax_domain_level":0},"memory":{},"pids":{},"blkio":{},"hugetlb":{},"intel_rdt":{},"#,
            r#""network_interfaces":null}"#,
        );
        assert_eq!(serde_json::to_string(&Stats::default()).unwrap(), expected);
    }

    #[test]
    fn figures() {
        let stats = Stats {
            cpu: Cpu {
                usage: CpuUsage {
                    total: 5,
                    ..CpuUsage::default()
                },
                psi: Some(Pressure {
                    some: Stall {
                        avg10: 0.05,
                        avg60: 3.0,
                        avg300: 0.0,
                        total: 9,
                    },
                    full: Stall::default(),
                }),
                ..Cpu::default()
            },
            pids: Pids {
                current: 1,
                limit: 0,
            },
            ..Stats::default()
        };
        let text = serde_json::to_string(&stats).unwrap();
        let expected = concat!(
            r#"{"cpu":{"usage":{"total":5,"kernel":0,"user":0},"psi":{"some":{"avg10":0.05,"avg60":3,"avg300":0,"total":9}}},"#,
            r#""cpuset""#,
        );
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains(r#""pids":{"current":1},"#), "{text}");
    }

    #[test]
    fn huge_pages() {
        for (name, size) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("other", None),
        ] {
            assert_eq!(huge_page_size(name).as_deref(), size, "{name}");
        }
    }
}
