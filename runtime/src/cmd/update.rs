//! `update`: changes limits.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::Request;
use crate::cli::{Parsed, value};
use crate::container::{Container, Status};
use crate::failure::During;
use crate::resctrl;
use crate::spec::resources::{BlockIo, Cpu, Memory, Pids, Resources};

/// Runs `update`.
pub(super) fn update(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    if container.status() == Status::Stopped {
        bail!("container not running");
    }
    let resources = resources(request.parsed)?;
    warn_of_kernel_memory(&resources);
    let shares = Shares::parse(request.parsed, &container)?;
    container.cgroup.update(&resources)?;
    if let Some(shares) = shares {
        let Shares { root, group, .. } = &shares;
        group.update(root, &shares.cache, &shares.bandwidth)?;
    }
    Ok(0)
}

/// The kernel has given these limits up.
fn warn_of_kernel_memory(resources: &Resources) {
    let memory = resources.memory.as_ref();
    if memory.is_some_and(|memory| memory.kernel.is_some() || memory.kernel_tcp.is_some()) {
        log::warn!("Kernel memory settings are ignored and will be removed");
    }
}

/// Shares of cache and memory bandwidth that are asked for.
struct Shares<'a> {
    /// Root of the file system in which they are set.
    root: PathBuf,
    /// The container's group there.
    group: &'a resctrl::Record,
    cache: String,
    bandwidth: String,
}

impl<'a> Shares<'a> {
    /// Checks what was typed; `None` when nothing was. Only a container that was made with shares has a group.
    fn parse(parsed: &Parsed, container: &'a Container) -> Result<Option<Self>> {
        let asked = |option| parsed.value(option).unwrap_or_default().to_owned();
        let (cache, bandwidth) = (asked("l3-cache-schema"), asked("mem-bw-schema"));
        if cache.is_empty() && bandwidth.is_empty() {
            return Ok(None);
        }
        let root = resctrl::root();
        if !cache.is_empty() && !root.as_deref().is_some_and(resctrl::shares_cache) {
            bail!("Intel RDT/CAT: l3 cache schema is not enabled");
        }
        if !bandwidth.is_empty() && !root.as_deref().is_some_and(resctrl::shares_bandwidth) {
            bail!("Intel RDT/MBA: memory bandwidth schema is not enabled");
        }
        let (Some(root), Some(group)) = (root, &container.record.resctrl) else {
            bail!("updating a non-existent Intel RDT configuration is not supported");
        };
        Ok(Some(Self {
            root,
            group,
            cache,
            bandwidth,
        }))
    }
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
    let resources: Resources = serde_json::from_str(&text).context("cannot parse the resources")?;
    Ok(resources.with_capitals())
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
        shares: number(parsed, "cpu-share")?,
        quota: number(parsed, "cpu-quota")?,
        burst: number(parsed, "cpu-burst")?,
        period: number(parsed, "cpu-period")?,
        realtime_runtime: number(parsed, "cpu-rt-runtime")?,
        realtime_period: number(parsed, "cpu-rt-period")?,
        cpus: text("cpuset-cpus"),
        mems: text("cpuset-mems"),
        idle: number(parsed, "cpu-idle")?,
    };
    let memory = Memory {
        limit: bytes(parsed, "memory")?,
        reservation: bytes(parsed, "memory-reservation")?,
        swap: bytes(parsed, "memory-swap")?,
        kernel: bytes(parsed, "kernel-memory")?,
        kernel_tcp: bytes(parsed, "kernel-memory-tcp")?,
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

/// A number; an empty value is none.
fn number<T: TryFrom<i128>>(parsed: &Parsed, option: &str) -> Result<Option<T>> {
    let function = match T::try_from(-1) {
        Ok(_) => "ParseInt",
        Err(_) => "ParseUint",
    };
    let value = parsed.value(option).filter(|value| !value.is_empty());
    value
        .map(|text| value::decimal(function, text))
        .transpose()
        .with_context(|| format!("invalid value for {option}"))
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
        _ => bail!("invalid size: '{value}'"),
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
        _ => bail!("invalid size: '{value}'"),
    }
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
}
