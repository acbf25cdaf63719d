//! What a container uses, read from its cgroup and its network namespace.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::Result;
use super::cgroup::{Cgroup, Version, keyed, number};
use super::find::Handle;
use super::live::Live;
use crate::network::Mode;
use crate::store::Store;

/// Counters and levels of one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When they were read.
    pub moment: Instant,
    /// What it is doing; one that does not run uses nothing.
    pub live: Live,
    /// Nanoseconds of CPU time since its start.
    pub cpu: u64,
    /// Bytes of memory, without page cache that could be dropped at once.
    pub memory: u64,
    /// Its limit in bytes: the machine's memory where it has none of its own.
    pub memory_limit: u64,
    /// Bytes received on all its interfaces but `lo`.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes read from block devices.
    pub read: u64,
    /// Bytes written to them.
    pub written: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Sample {
    /// Reads what a container uses now.
    ///
    /// # Errors
    /// When its state can't be read. A counter that this kernel does not have is 0.
    pub fn take(store: &Store, handle: &Handle) -> Result<Sample> {
        let (state, live) = handle.live(store)?;
        let mut sample = Sample {
            moment: Instant::now(),
            live,
            cpu: 0,
            memory: 0,
            memory_limit: 0,
            received: 0,
            sent: 0,
            read: 0,
            written: 0,
            pids: 0,
        };
        if !live.is_running() {
            return Ok(sample);
        }
        sample.read_cgroup(&Cgroup::of(handle));
        if let Some(process) = state.process
            && handle.config.options.network != Mode::Host
        {
            let path = format!("/proc/{}/net/dev", process.pid);
            let text = fs::read_to_string(path).unwrap_or_default();
            (sample.received, sample.sent) = network_bytes(&text);
        }
        Ok(sample)
    }

    /// Percent of one CPU since an earlier sample: 200 is two CPUs.
    #[must_use]
    pub fn cpu_percent(&self, earlier: &Sample) -> f64 {
        let passed = self.moment.duration_since(earlier.moment).as_secs_f64();
        if passed <= 0.0 || !earlier.live.is_running() {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let used = self.cpu.saturating_sub(earlier.cpu) as f64 / 1e9;
        100.0 * used / passed
    }

    /// Percent of the memory limit.
    #[must_use]
    pub fn memory_percent(&self) -> f64 {
        if self.memory_limit == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a percentage")]
        let part = self.memory as f64 / self.memory_limit as f64;
        100.0 * part
    }

    fn read_cgroup(&mut self, cgroup: &Cgroup) {
        match cgroup.controller("cpuacct") {
            Some((Version::First, directory)) => {
                self.cpu = number(directory, "cpuacct.usage").unwrap_or(0);
            }
            Some((Version::Second, directory)) => {
                self.cpu = keyed(directory, "cpu.stat", "usage_usec").unwrap_or(0) * 1000;
            }
            None => {}
        }
        let (usage, cache, limit) = match cgroup.controller("memory") {
            Some((Version::First, directory)) => (
                number(directory, "memory.usage_in_bytes"),
                keyed(directory, "memory.stat", "total_inactive_file"),
                number(directory, "memory.limit_in_bytes"),
            ),
            Some((Version::Second, directory)) => (
                number(directory, "memory.current"),
                keyed(directory, "memory.stat", "inactive_file"),
                number(directory, "memory.max"),
            ),
            None => (None, None, None),
        };
        // Docker's figure: cache that nobody has touched lately is not what a limit will be met by.
        self.memory = usage.unwrap_or(0).saturating_sub(cache.unwrap_or(0));
        let machine = machine_memory();
        self.memory_limit = limit.map_or(machine, |limit| limit.min(machine));
        if let Some((_, directory)) = cgroup.controller("pids") {
            self.pids = number(directory, "pids.current").unwrap_or(0);
        }
        match cgroup.controller("blkio") {
            Some((Version::First, directory)) => {
                (self.read, self.written) = block_bytes_v1(directory);
            }
            Some((Version::Second, directory)) => {
                let text = fs::read_to_string(directory.join("io.stat")).unwrap_or_default();
                (self.read, self.written) = block_bytes_v2(&text);
            }
            None => {}
        }
    }
}

fn machine_memory() -> u64 {
    keyed_kib(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "MemTotal:",
    )
}

fn keyed_kib(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// The scheduler's own counter where it has one, else the throttling layer's, which is always there.
fn block_bytes_v1(directory: &Path) -> (u64, u64) {
    [
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
    ]
    .into_iter()
    .filter_map(|file| fs::read_to_string(directory.join(file)).ok())
    .map(|text| sum_v1(&text))
    .find(|&sums| sums != (0, 0))
    .unwrap_or((0, 0))
}

/// `8:0 Read 4096` lines.
fn sum_v1(text: &str) -> (u64, u64) {
    let mut sums = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace().skip(1);
        let (Some(kind), Some(count)) = (words.next(), words.next()) else {
            continue;
        };
        let count: u64 = count.parse().unwrap_or(0);
        match kind {
            "Read" => sums.0 += count,
            "Write" => sums.1 += count,
            _ => {}
        }
    }
    sums
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 …` lines.
fn block_bytes_v2(text: &str) -> (u64, u64) {
    let mut sums = (0, 0);
    for word in text.split_whitespace() {
        match word.split_once('=') {
            Some(("rbytes", count)) => sums.0 += count.parse::<u64>().unwrap_or(0),
            Some(("wbytes", count)) => sums.1 += count.parse::<u64>().unwrap_or(0),
            _ => {}
        }
    }
    sums
}

/// Columns 1 and 9 of `/proc/net/dev`, see proc_pid_net(5).
fn network_bytes(text: &str) -> (u64, u64) {
    let mut sums = (0, 0);
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else {
            continue;
        };
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters
            .split_whitespace()
            .map(|count| count.parse::<u64>().unwrap_or(0));
        sums.0 += counters.next().unwrap_or(0);
        sums.1 += counters.nth(7).unwrap_or(0);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_up() {
        let v1 = "8:0 Read 4096\n8:0 Write 1\n8:0 Total 4097\n8:16 Read 4\nTotal 4101\n";
        assert_eq!(sum_v1(v1), (4100, 1));
        let v2 = "8:0 rbytes=4096 wbytes=1 rios=3 wios=4\n8:16 rbytes=4 wbytes=0\n";
        assert_eq!(block_bytes_v2(v2), (4100, 1));
        let network = "Inter-|   Receive    |  Transmit\n face |bytes packets\n\
            lo: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n\
            eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n\
            eth1:1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n";
        assert_eq!(network_bytes(network), (101, 22));
        assert_eq!(keyed_kib("MemTotal:       2048 kB\n", "MemTotal:"), 2 << 20);
    }
}
