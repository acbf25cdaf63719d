//! Figures out of the files of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).

use std::path::Path;

use super::super::Result;
use super::{
    BlockIo, BlockIoEntry, Cpu, HugePages, Memory, MemoryEntry, Pids, Pressure, Stall, Stats,
    content, huge_page_sizes, number, pairs,
};

/// Microseconds to nanoseconds.
const NANOSECONDS: u64 = 1000;

/// Everything.
pub(super) fn read(directory: &Path) -> Result<Stats> {
    Ok(Stats {
        cpu: cpu(directory)?,
        memory: memory(directory)?,
        pids: pids(directory)?,
        blkio: block_io(directory)?,
        hugetlb: huge_pages(directory)?,
        ..Stats::default()
    })
}

fn cpu(directory: &Path) -> Result<Cpu> {
    let figures = pairs(&directory.join("cpu.stat"))?;
    let of = |key: &str| figures.get(key).copied().unwrap_or(0);
    let time = |key| of(key).saturating_mul(NANOSECONDS);
    let mut cpu = Cpu {
        psi: pressure(directory, "cpu.pressure")?,
        ..Cpu::default()
    };
    cpu.usage.total = time("usage_usec");
    cpu.usage.user = time("user_usec");
    cpu.usage.kernel = time("system_usec");
    cpu.throttling.periods = of("nr_periods");
    cpu.throttling.throttled_periods = of("nr_throttled");
    cpu.throttling.throttled_time = time("throttled_usec");
    Ok(cpu)
}

fn memory(directory: &Path) -> Result<Memory> {
    let psi = pressure(directory, "memory.pressure")?;
    let raw = pairs(&directory.join("memory.stat"))?;
    let Some(usage) = entry(directory, "memory")? else {
        return Ok(Memory {
            psi,
            ..Memory::default()
        });
    };
    // What runc calls swap is memory and swap together, as on v1.
    let mut swap = entry(directory, "memory.swap")?.unwrap_or_default();
    swap.usage = swap.usage.wrapping_add(usage.usage);
    if swap.limit != u64::MAX {
        swap.limit = swap.limit.wrapping_add(usage.limit);
    }
    // The two peaks need not have been at the same time.
    swap.max = 0;
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        psi,
        ..Memory::default()
    })
}

fn entry(directory: &Path, prefix: &str) -> Result<Option<MemoryEntry>> {
    let Some(usage) = number(directory, &format!("{prefix}.current"))? else {
        return Ok(None);
    };
    Ok(Some(MemoryEntry {
        usage,
        limit: number(directory, &format!("{prefix}.max"))?.unwrap_or(0),
        max: number(directory, &format!("{prefix}.peak"))?.unwrap_or(0),
        failcnt: 0,
    }))
}

fn pids(directory: &Path) -> Result<Pids> {
    match number(directory, "pids.current")? {
        Some(current) => Ok(Pids {
            current,
            limit: number(directory, "pids.max")?
                .filter(|limit| *limit != u64::MAX)
                .unwrap_or(0),
        }),
        // Without the controller the processes are counted.
        None => {
            let members = content(&directory.join("cgroup.procs"))?.unwrap_or_default();
            let current = u64::try_from(members.lines().count()).unwrap_or(0);
            Ok(Pids { current, limit: 0 })
        }
    }
}

fn block_io(directory: &Path) -> Result<BlockIo> {
    let text = content(&directory.join("io.stat"))?.unwrap_or_default();
    let mut found = parse_io(&text);
    found.psi = pressure(directory, "io.pressure")?;
    Ok(found)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 …`; lines without figures and unknown figures are passed over.
fn parse_io(text: &str) -> BlockIo {
    let mut found = BlockIo::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) =
            device.map(|(major, minor)| (major.parse(), minor.parse()))
        else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut found.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut found.io_service_bytes_recursive, "Write"),
                "rios" => (&mut found.io_serviced_recursive, "Read"),
                "wios" => (&mut found.io_serviced_recursive, "Write"),
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                let op = op.to_owned();
                list.push(BlockIoEntry {
                    major,
                    minor,
                    op,
                    value,
                });
            }
        }
    }
    found
}

fn huge_pages(directory: &Path) -> Result<std::collections::BTreeMap<String, HugePages>> {
    let mut found = std::collections::BTreeMap::new();
    for size in huge_page_sizes() {
        let reserved = number(directory, &format!("hugetlb.{size}.rsvd.current"))?;
        let usage = match reserved {
            Some(usage) => Some(usage),
            None => number(directory, &format!("hugetlb.{size}.current"))?,
        };
        let Some(usage) = usage else { break };
        let events = pairs(&directory.join(format!("hugetlb.{size}.events")))?;
        let failcnt = events.get("max").copied().unwrap_or(0);
        found.insert(
            size,
            HugePages {
                usage,
                max: 0,
                failcnt,
            },
        );
    }
    Ok(found)
}

fn pressure(directory: &Path, name: &str) -> Result<Option<Pressure>> {
    let text = content(&directory.join(name))?;
    Ok(text.as_deref().map(parse_pressure))
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn parse_pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        *stall = parse_stall(words);
    }
    pressure
}

fn parse_stall<'a>(words: impl Iterator<Item = &'a str>) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let average = value.parse().unwrap_or_default();
        match key {
            "avg10" => stall.avg10 = average,
            "avg60" => stall.avg60 = average,
            "avg300" => stall.avg300 = average,
            "total" => stall.total = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_of_a_file() {
        let text = "some avg10=1.50 avg60=0.00 avg300=2.25 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let pressure = parse_pressure(text);
        let some = Stall {
            avg10: 1.5,
            avg60: 0.0,
            avg300: 2.25,
            total: 77,
        };
        assert_eq!(pressure.some, some);
        assert_eq!(pressure.full.total, 5);
    }

    #[test]
    fn block_devices() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:0 \n8:16 rbytes=9\n";
        let found = parse_io(text);
        let entry = |major, minor, op: &str, value| BlockIoEntry {
            major,
            minor,
            op: op.into(),
            value,
        };
        assert_eq!(
            found.io_service_bytes_recursive,
            [
                entry(254, 0, "Read", 1),
                entry(254, 0, "Write", 2),
                entry(8, 16, "Read", 9)
            ]
        );
        assert_eq!(
            found.io_serviced_recursive,
            [entry(254, 0, "Read", 3), entry(254, 0, "Write", 4)]
        );
    }
}
