//! The limits that `run` and `create` set and `update` changes.

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::container::create::parse_bytes;
use qengine::container::model::Resources;

/// Docker's floor: below it not even the runtime's own last steps fit.
const LEAST_MEMORY: i64 = 512 << 10;

/// Flags of limits, as typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitFlags {
    /// Memory limit (0: without limit)
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// The same, in MiB when it is a plain number
    #[arg(long, value_name = "MIB", conflicts_with = "memory")]
    mmem: Option<String>,
    /// Limit of memory and swap together (-1: without limit)
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
    /// Number of CPUs, such as 0.5 (0: without limit)
    #[arg(long, value_name = "COUNT")]
    cpus: Option<f64>,
    /// Relative share of the CPUs (1024 is usual)
    #[arg(short = 'c', long, visible_alias = "cpushare", value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Microseconds of CPU per period
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Length of that period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPUs the container may use, such as 0-2,4
    #[arg(long, visible_alias = "cpuset", value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes the container may use
    #[arg(long, visible_alias = "cpumem", value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Number of processes and threads (-1: without limit)
    #[arg(
        long,
        visible_alias = "mpid",
        value_name = "COUNT",
        allow_negative_numbers = true
    )]
    pids_limit: Option<i64>,
    /// Relative weight of block input and output, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
}

impl LimitFlags {
    /// The limits in `old` with what was typed instead.
    pub(crate) fn over(&self, old: &Resources) -> Result<Resources> {
        let mut limits = old.clone();
        self.change_memory(&mut limits)?;
        self.change_cpu_time(&mut limits)?;
        if let Some(shares) = self.cpu_shares {
            if shares != 0 && !(2..=262_144).contains(&shares) {
                bail!("invalid --cpu-shares {shares}: the kernel takes shares from 2 to 262144");
            }
            limits.cpu_shares = Some(shares).filter(|&shares| shares != 0);
        }
        if let Some(list) = list(
            "--cpuset-cpus",
            self.cpuset_cpus.as_deref(),
            "/sys/devices/system/cpu/online",
        )? {
            limits.cpuset_cpus = Some(list);
        }
        if let Some(list) = list(
            "--cpuset-mems",
            self.cpuset_mems.as_deref(),
            "/sys/devices/system/node/online",
        )? {
            limits.cpuset_mems = Some(list);
        }
        if self.pids_limit.is_some() {
            limits.pids = self.pids_limit;
        }
        if let Some(weight) = self.blkio_weight {
            if weight != 0 && !(10..=1000).contains(&weight) {
                bail!("invalid --blkio-weight {weight}: it takes 10 to 1000");
            }
            limits.blkio_weight = Some(weight).filter(|&weight| weight != 0);
        }
        Ok(limits)
    }

    fn change_memory(&self, limits: &mut Resources) -> Result<()> {
        let typed = match (&self.memory, &self.mmem) {
            (Some(text), _) => Some((text, bytes("--memory", text)?)),
            (None, Some(text)) => {
                let unit = if text.bytes().all(|byte| byte.is_ascii_digit()) {
                    "m"
                } else {
                    ""
                };
                Some((text, bytes("--mmem", &format!("{text}{unit}"))?))
            }
            (None, None) => None,
        };
        if let Some((text, memory)) = typed {
            if memory != 0 && memory < LEAST_MEMORY {
                bail!("invalid --memory {text:?}: the smallest limit is 512k");
            }
            limits.memory = Some(memory).filter(|&memory| memory != 0);
        }
        match self.memory_swap.as_deref() {
            None => {}
            Some("-1") => limits.memory_swap = Some(-1),
            Some(text) => {
                limits.memory_swap = Some(bytes("--memory-swap", text)?).filter(|&swap| swap != 0);
            }
        }
        if let Some(text) = &self.memory_reservation {
            let soft = bytes("--memory-reservation", text)?;
            limits.memory_reservation = Some(soft).filter(|&soft| soft != 0);
        }
        match (limits.memory, limits.memory_swap) {
            (Some(memory), Some(swap)) if swap != -1 && swap < memory => {
                bail!("--memory-swap must not be below --memory: it is the limit of both together")
            }
            (None, Some(swap)) if swap != -1 => bail!("--memory-swap needs --memory"),
            _ => {}
        }
        if let (Some(memory), Some(soft)) = (limits.memory, limits.memory_reservation)
            && soft > memory
        {
            bail!("--memory-reservation must not be above --memory");
        }
        Ok(())
    }

    fn change_cpu_time(&self, limits: &mut Resources) -> Result<()> {
        let Some(cpus) = self.cpus else {
            if let Some(quota) = self.cpu_quota {
                limits.cpu_quota = Some(quota).filter(|&quota| quota > 0);
            }
            if let Some(period) = self.cpu_period {
                limits.cpu_period = Some(period).filter(|&period| period != 0);
            }
            return Ok(());
        };
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            bail!("--cpus does not go with --cpu-quota or --cpu-period: it sets both");
        }
        if cpus == 0.0 {
            (limits.cpu_quota, limits.cpu_period) = (None, None);
            return Ok(());
        }
        let there = online().unwrap_or(u32::MAX);
        if !(0.01..=f64::from(there)).contains(&cpus) {
            bail!(
                "invalid --cpus {cpus}: range of CPUs is from 0.01 to {there}.00, as there are only {there} CPUs available"
            );
        }
        const PERIOD: u32 = 100_000;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the range was just checked"
        )]
        let quota = (cpus * f64::from(PERIOD)).round() as i64;
        limits.cpu_quota = Some(quota);
        limits.cpu_period = Some(u64::from(PERIOD));
        Ok(())
    }
}

/// How many CPUs the machine has, whatever this process is bound to.
fn online() -> Option<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    Some(
        ranges(text.trim())?
            .iter()
            .map(|(first, last)| last - first + 1)
            .sum(),
    )
}

/// `100m`, `1.5g`, with the flag's name in the error.
pub(super) fn bytes(flag: &str, text: &str) -> Result<i64> {
    parse_bytes(text).with_context(|| {
        format!("invalid {flag} {text:?}: expected a number with an optional unit b, k, m or g")
    })
}

/// `0-2,4`, all of them among those that the file `online` lists in the same form.
fn list(flag: &str, text: Option<&str>, online: &str) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let wanted = ranges(text)
        .with_context(|| format!("invalid {flag} {text:?}: expected a list such as 0-2,4"))?;
    let there = std::fs::read_to_string(online).unwrap_or_default();
    if let Some(there) = ranges(there.trim()) {
        let is_there = |number: u32| {
            there
                .iter()
                .any(|&(first, last)| (first..=last).contains(&number))
        };
        if !wanted
            .iter()
            .all(|&(first, last)| is_there(first) && is_there(last))
        {
            bail!("invalid {flag} {text:?}: this machine has {}", join(&there));
        }
    }
    Ok(Some(text.to_owned()))
}

fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        })
        .collect()
}

fn join(ranges: &[(u32, u32)]) -> String {
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitFlags,
    }

    fn over(line: &str, old: &Resources) -> Result<Resources> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words)?.limits.over(old)
    }

    #[test]
    fn what_is_not_typed_stays() {
        let old = over("-m 100m --cpus 0.5 --pids-limit 9", &Resources::default()).unwrap();
        assert_eq!((old.memory, old.cpu_quota), (Some(100 << 20), Some(50_000)));
        let new = over("-m 200m", &old).unwrap();
        assert_eq!(new.memory, Some(200 << 20));
        assert_eq!((new.cpu_quota, new.pids), (Some(50_000), Some(9)));
        let lifted = over("-m 0 --cpus 0", &new).unwrap();
        assert_eq!(
            (lifted.memory, lifted.cpu_quota, lifted.pids),
            (None, None, Some(9))
        );
    }

    #[test]
    fn old_spellings_count_in_their_own_units() {
        let limits = over("--mmem 200 --mpid 1000 --cpushare 5", &Resources::default()).unwrap();
        assert_eq!(limits.memory, Some(200 << 20));
        assert_eq!((limits.pids, limits.cpu_shares), (Some(1000), Some(5)));
        assert_eq!(
            over("--mmem 64k", &Resources::default())
                .unwrap_err()
                .to_string(),
            "invalid --memory \"64k\": the smallest limit is 512k"
        );
    }

    #[test]
    fn contradictions_are_refused_also_with_what_was_there() {
        let old = over("-m 100m --memory-swap 150m", &Resources::default()).unwrap();
        for line in [
            "-m 200m",
            "-m 1k",
            "--memory-swap 50m",
            "--memory-reservation 101m",
            "--cpus 0.5 --cpu-quota 7",
            "--cpus 100000",
            "--blkio-weight 9",
        ] {
            assert!(over(line, &old).is_err(), "{line}");
        }
        assert!(over("-m 200m --memory-swap 300m", &old).is_ok());
    }
}
