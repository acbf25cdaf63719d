//! A few figures of a running container, enough for `ps`-like views and for telling an OOM kill from another death.

use super::{Cgroup, Result, file};

/// Current figures. What the host's controllers do not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Bytes in use.
    pub(crate) memory_usage: Option<u64>,
    /// Bytes allowed; `None` also when unlimited.
    pub(crate) memory_limit: Option<u64>,
    /// CPU time in nanoseconds.
    pub(crate) cpu_usage: Option<u64>,
    /// Tasks.
    pub(crate) pids: Option<u64>,
    /// Tasks allowed; `None` also when unlimited.
    pub(crate) pids_limit: Option<u64>,
    /// Processes killed by the OOM killer since the cgroup was made.
    pub(crate) oom_kills: Option<u64>,
}

/// Microseconds to nanoseconds.
const NANOSECONDS: u64 = 1000;

impl Stats {
    pub(super) fn read(cgroup: &Cgroup) -> Result<Self> {
        let v2 = cgroup.is_pure_v2();
        let number = |controller: &str, old: &str, new: &str| {
            let path = cgroup
                .path(controller)
                .map(|path| path.join(if v2 { new } else { old }));
            match path.filter(|path| path.exists()) {
                Some(path) => file::read_number(&path),
                None => Ok(None),
            }
        };
        let key = |controller: &str, name: &str, key: &str| {
            let path = cgroup.path(controller).map(|path| path.join(name));
            match path.filter(|path| path.exists()) {
                Some(path) => file::read_key(&path, key),
                None => Ok(None),
            }
        };
        let events = if v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let cpu_usage = match v2 {
            true => {
                key("cpu", "cpu.stat", "usage_usec")?.map(|usage| usage.saturating_mul(NANOSECONDS))
            }
            false => number("cpuacct", "cpuacct.usage", "")?,
        };
        Ok(Self {
            memory_usage: number("memory", "memory.usage_in_bytes", "memory.current")?,
            memory_limit: number("memory", "memory.limit_in_bytes", "memory.max")?,
            cpu_usage,
            pids: number("pids", "pids.current", "pids.current")?,
            pids_limit: number("pids", "pids.max", "pids.max")?,
            oom_kills: key("memory", events, "oom_kill")?,
        })
    }
}
