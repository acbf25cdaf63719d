//! `update` and `events`: changing limits, and showing what is used of them.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::Request;
use crate::cgroup::Stats;
use crate::cli::Parsed;
use crate::container::{Container, Status};
use crate::failure::During;
use crate::spec::resources::{BlockIo, Cpu, Memory, Pids, Resources};

/// Runs `update`.
pub(super) fn update(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    if container.status() == Status::Stopped {
        bail!("container not running");
    }
    container.cgroup.update(&resources(request.parsed)?)?;
    Ok(0)
}

/// The limits: from a file, or from options.
fn resources(parsed: &Parsed) -> Result<Resources> {
    let text = match parsed.value("resources") {
        None | Some("") => return from_options(parsed),
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .during("read", "stdin")?;
            text
        }
        Some(path) => std::fs::read_to_string(path).during("open", path)?,
    };
    serde_json::from_str(&text).context("cannot parse the resources")
}

/// The limits the options name.
fn from_options(parsed: &Parsed) -> Result<Resources> {
    let text = |name| {
        parsed
            .value(name)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
    };
    let cpu = Cpu {
        shares: parsed.number("cpu-share")?,
        quota: parsed.number("cpu-quota")?,
        burst: parsed.number("cpu-burst")?,
        period: parsed.number("cpu-period")?,
        realtime_runtime: parsed.number("cpu-rt-runtime")?,
        realtime_period: parsed.number("cpu-rt-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: parsed.number("cpu-idle")?,
    };
    let memory = Memory {
        limit: bytes(parsed, "memory")?,
        reservation: bytes(parsed, "memory-reservation")?,
        swap: bytes(parsed, "memory-swap")?,
        ..Memory::default()
    };
    Ok(Resources {
        cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
        memory: Some(memory).filter(|memory| *memory != Memory::default()),
        pids: parsed
            .number("pids-limit")?
            .map(|limit| Pids { limit: Some(limit) }),
        block_io: parsed.number("blkio-weight")?.map(|weight| BlockIo {
            weight: Some(weight),
            ..BlockIo::default()
        }),
        ..Resources::default()
    })
}

/// A number of bytes, with a unit or not; -1 for no limit.
fn bytes(parsed: &Parsed, option: &str) -> Result<Option<i64>> {
    let Some(value) = parsed.value(option).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    parse_bytes(value)
        .map(Some)
        .with_context(|| format!("invalid value for {option}"))
}

/// `512`, `512k`, `1.5g`, `64MiB`, `-1`: units are powers of 1024, as in docker's memory options.
fn parse_bytes(value: &str) -> Result<i64> {
    if value == "-1" {
        return Ok(-1);
    }
    let lower = value.trim().to_ascii_lowercase();
    let digits = lower
        .trim_end_matches(|letter: char| letter.is_ascii_alphabetic())
        .trim_end();
    let power = match lower[digits.len()..]
        .trim()
        .trim_end_matches('b')
        .trim_end_matches('i')
    {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!("invalid size: {value:?}"),
    };
    let unit = 1_i64 << (10 * power);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let parse = |digits: &str| digits.parse::<u32>().ok().map(i64::from);
    let whole = parse(whole).and_then(|whole| whole.checked_mul(unit));
    let fraction = match fraction.get(..fraction.len().min(6)) {
        None | Some("") => Some(0),
        Some(digits) => parse(digits)
            .map(|number| number * unit / 10_i64.pow(u32::try_from(digits.len()).unwrap_or(0))),
    };
    match (whole, fraction) {
        (Some(whole), Some(fraction)) => Ok(whole + fraction),
        _ => bail!("invalid size: {value:?}"),
    }
}

/// Runs `events`.
pub(super) fn events(request: &Request<'_>) -> Result<u8> {
    let interval = interval(request.parsed.value("interval").unwrap_or("5s"))?;
    let container = Container::load(&request.store, request.parsed.id())?;
    if container.status() == Status::Stopped {
        bail!("container with id {} is not running", container.record.id);
    }
    loop {
        let stats = container.cgroup.stats()?;
        let line = json!({"type": "stats", "id": container.record.id, "data": describe(&stats)});
        super::print(&format!("{line}\n"))?;
        if request.parsed.is_on("stats") {
            return Ok(0);
        }
        std::thread::sleep(interval);
        if container.status() == Status::Stopped {
            return Ok(0);
        }
    }
}

/// A pause as Go's durations spell it: `500ms`, `5s`, `1m`.
fn interval(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .with_context(|| format!("invalid interval {text:?}"))?;
    let interval = match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number * 60),
        "h" => Duration::from_secs(number * 3600),
        _ => bail!("invalid interval {text:?}"),
    };
    if interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    Ok(interval)
}

/// Figures in the shape of runc's.
fn describe(stats: &Stats) -> Value {
    let mut data = Map::new();
    if let Some(total) = stats.cpu_usage {
        data.insert("cpu".into(), json!({"usage": {"total": total}}));
    }
    if let Some(usage) = stats.memory_usage {
        let mut memory = Map::from_iter([("usage".to_owned(), json!(usage))]);
        // Without a limit the greatest number, as the control file of cgroup v1 has it.
        memory.insert(
            "limit".into(),
            json!(stats.memory_limit.unwrap_or(u64::MAX)),
        );
        data.insert(
            "memory".into(),
            json!({"usage": memory, "raw": {"oom_kill": stats.oom_kills.unwrap_or(0)}}),
        );
    }
    if let Some(current) = stats.pids {
        let mut pids = Map::from_iter([("current".to_owned(), json!(current))]);
        if let Some(limit) = stats.pids_limit {
            pids.insert("limit".into(), json!(limit));
        }
        data.insert("pids".into(), pids.into());
    }
    data.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, size) in [
            ("-1", -1),
            ("512", 512),
            ("2k", 2048),
            ("1.5M", 1_572_864),
            ("64MiB", 67_108_864),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), size, "{text}");
        }
        for text in ["x", "1q", "--1", ""] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        assert!(interval("0s").is_err());
        assert!(interval("soon").is_err());
    }
}
