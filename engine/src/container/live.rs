//! What a container is doing at this moment, from its recorded state and the kernel's word.

use std::fs;
use std::os::fd::OwnedFd;

use jiff::Timestamp;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::model::{Process, State, Status};
use crate::store::Store;

/// A container's true status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Live {
    /// Never started.
    Created,
    /// Its init process is alive.
    Running,
    /// Its init process is alive and frozen.
    Paused,
    /// It has ended, and will be started again.
    Restarting,
    /// It has ended.
    Exited,
    /// It is going, or half gone.
    Removing,
}

impl Live {
    /// Docker's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Live::Created => "created",
            Live::Running => "running",
            Live::Paused => "paused",
            Live::Restarting => "restarting",
            Live::Exited => "exited",
            Live::Removing => "removing",
        }
    }

    /// Whether it has processes.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Live::Running | Live::Paused)
    }
}

/// An exit that the monitor has published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exit {
    /// The exit code; 128 + signal for a signal.
    pub(super) code: i32,
    /// When it was written.
    pub(super) time: Timestamp,
}

/// Reads the exit code that the monitor wrote; `None` while there is none.
#[must_use]
pub(super) fn published_exit(store: &Store, id: &str) -> Option<Exit> {
    let path = store.exits().join(id);
    let code = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
    let time = fs::metadata(&path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or_else(Timestamp::now);
    Some(Exit { code, time })
}

/// Judges a container by its recorded state.
#[must_use]
pub(super) fn judge(store: &Store, id: &str, state: &State) -> Live {
    match state.status {
        Status::Creating | Status::Created | Status::Starting => Live::Created,
        Status::Restarting => Live::Restarting,
        Status::Removing => Live::Removing,
        Status::Exited => Live::Exited,
        Status::Running => {
            if published_exit(store, id).is_some() {
                return Live::Exited;
            }
            match state.process {
                Some(process) if process.is_alive() => {
                    if is_frozen(process.pid) {
                        Live::Paused
                    } else {
                        Live::Running
                    }
                }
                // Its end is not official before the monitor has drained the output and published the exit code.
                _ if state.monitor.is_some_and(|monitor| monitor.is_alive()) => Live::Running,
                _ => Live::Exited,
            }
        }
    }
}

impl Process {
    /// Remembers a process that is alive now; `None` if it has gone already.
    #[must_use]
    pub fn remember(pid: i32) -> Option<Process> {
        Some(Process {
            pid,
            start_time: stat(pid)?.start_time,
        })
    }

    /// Whether this very process still runs; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X')
        })
    }

    /// A descriptor of this very process; `None` if it has gone.
    #[must_use]
    pub fn open(&self) -> Option<OwnedFd> {
        let descriptor = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // After the descriptor is open the pid cannot be used again, so this check decides.
        self.is_alive().then_some(descriptor)
    }
}

struct Stat {
    state: char,
    start_time: u64,
}

/// The two fields of `/proc/<pid>/stat` that matter here, see proc_pid_stat(5); read by hand, since this is done for
/// every container of every `ps`.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold anything, a closing parenthesis too.
    let (_, fields) = text.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    Some(Stat {
        state: fields.next()?.chars().next()?,
        start_time: fields.nth(18)?.parse().ok()?,
    })
}

/// Whether the process sits in a frozen cgroup. On v1 the freezer hierarchy says so, on v2 `cgroup.events`.
fn is_frozen(pid: i32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
        return false;
    };
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if controllers == "freezer" {
            return fs::read_to_string(format!("/sys/fs/cgroup/freezer{path}/freezer.state"))
                .is_ok_and(|state| state.starts_with("FRO") || state.starts_with("FREEZING"));
        }
        if controllers.is_empty() {
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                if let Ok(events) = fs::read_to_string(format!("{root}{path}/cgroup.events"))
                    && events.lines().any(|line| line == "frozen 1")
                {
                    return true;
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let own = Process::remember(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        assert!(own.open().is_some());
        let other = Process {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!other.is_alive());
        assert!(other.open().is_none());
    }
}
