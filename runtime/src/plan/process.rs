//! The process: arguments, identity and limits in the form the kernel takes them.

use std::collections::BTreeSet;
use std::ffi::CString;

use super::Error;
use crate::capability;
use crate::spec::linux::Personality;
use crate::spec::process::{ConsoleSize, IoPriority, Process, Scheduler, User};
use crate::sys::sched::SchedAttr;

/// Where the directory of the readiness socket appears inside.
pub(crate) const NOTIFY_DIRECTORY: &str = "/run/notify";

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rlimit {
    /// Which.
    pub(crate) resource: rustix::process::Resource,
    /// In force.
    pub(crate) soft: u64,
    /// Up to where the process may raise it.
    pub(crate) hard: u64,
}

/// A process, ready to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct ProcessPlan {
    /// Program and arguments.
    pub(crate) args: Vec<CString>,
    /// Environment; one entry a name.
    pub(crate) env: Vec<CString>,
    /// Working directory.
    pub(crate) cwd: String,
    /// User and groups.
    pub(crate) user: User,
    /// Capability sets.
    pub(crate) capabilities: capability::Sets,
    /// Resource limits.
    pub(crate) rlimits: Vec<Rlimit>,
    /// Whether executing programs can no longer grant privileges.
    pub(crate) no_new_privileges: bool,
    /// AppArmor profile.
    pub(crate) apparmor_profile: Option<String>,
    /// SELinux label.
    pub(crate) selinux_label: Option<String>,
    /// Adjustment for the OOM killer.
    pub(crate) oom_score_adj: Option<i32>,
    /// Whether it gets a terminal.
    pub(crate) terminal: bool,
    /// First size of that terminal.
    pub(crate) console_size: Option<ConsoleSize>,
    /// Scheduling policy.
    pub(crate) scheduler: Option<SchedAttr>,
    /// I/O priority: class and level.
    pub(crate) io_priority: Option<(u32, u32)>,
    /// Execution domain.
    pub(crate) personality: Option<libc::c_ulong>,
}

impl ProcessPlan {
    /// Converts a process that has been checked.
    pub(super) fn new(process: &Process) -> Result<Self, Error> {
        let optional = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let (capabilities, unknown) = capability::Sets::new(process.capabilities.as_ref());
        if !unknown.is_empty() {
            log::warn!(
                "ignoring unknown or unavailable capabilities: [{}]",
                unknown.join(" ")
            );
        }
        Ok(Self {
            args: process
                .args
                .iter()
                .map(|argument| c_string("argument", argument))
                .collect::<Result<_, _>>()?,
            env: environment(&process.env)?,
            cwd: process.cwd.clone(),
            user: process.user.clone(),
            capabilities,
            rlimits: process
                .rlimits
                .iter()
                .map(rlimit)
                .collect::<Result<_, _>>()?,
            no_new_privileges: process.no_new_privileges,
            apparmor_profile: optional(&process.apparmor_profile),
            selinux_label: optional(&process.selinux_label),
            oom_score_adj: process.oom_score_adj,
            terminal: process.terminal,
            console_size: process.console_size,
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            personality: None,
        })
    }

    /// Whether a variable is set.
    pub(crate) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.env.iter().find_map(|entry| {
            entry
                .to_bytes()
                .strip_prefix(name.as_bytes())?
                .strip_prefix(b"=")
        })
    }

    /// Sets a variable, given as `NAME=value`.
    pub(crate) fn set_variable(&mut self, pair: &str) -> Result<(), Error> {
        let name = pair.split_inclusive('=').next().unwrap_or(pair);
        self.env
            .retain(|entry| !entry.to_bytes().starts_with(name.as_bytes()));
        self.env.push(c_string("environment variable", pair)?);
        Ok(())
    }
}

/// Text for the kernel; a NUL inside cannot be passed on.
fn c_string(what: &str, text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::Invalid(format!("{what} {text:?} contains a null byte")))
}

/// The environment in order; of several entries of one name, the last counts.
fn environment(pairs: &[String]) -> Result<Vec<CString>, Error> {
    let mut seen = BTreeSet::new();
    let mut entries = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let Some((name, _)) = pair.split_once('=') else {
            return Err(Error::Invalid(format!(
                "invalid environment variable {pair:?}: missing '='"
            )));
        };
        if name.is_empty() {
            return Err(Error::Invalid(format!(
                "invalid environment variable {pair:?}: name cannot be empty"
            )));
        }
        if seen.insert(name) {
            entries.push(c_string("environment variable", pair)?);
        }
    }
    entries.reverse();
    Ok(entries)
}

/// One resource limit.
fn rlimit(limit: &crate::spec::process::Rlimit) -> Result<Rlimit, Error> {
    use rustix::process::Resource as R;
    let resource = match limit.kind.strip_prefix("RLIMIT_").unwrap_or("") {
        "CPU" => R::Cpu,
        "FSIZE" => R::Fsize,
        "DATA" => R::Data,
        "STACK" => R::Stack,
        "CORE" => R::Core,
        "RSS" => R::Rss,
        "NPROC" => R::Nproc,
        "NOFILE" => R::Nofile,
        "MEMLOCK" => R::Memlock,
        "AS" => R::As,
        "LOCKS" => R::Locks,
        "SIGPENDING" => R::Sigpending,
        "MSGQUEUE" => R::Msgqueue,
        "NICE" => R::Nice,
        "RTPRIO" => R::Rtprio,
        "RTTIME" => R::Rttime,
        _ => {
            return Err(Error::Invalid(format!(
                "invalid rlimit type: {}",
                limit.kind
            )));
        }
    };
    Ok(Rlimit {
        resource,
        soft: limit.soft,
        hard: limit.hard,
    })
}

/// Scheduling policy as `sched_setattr(2)` takes it.
fn scheduler(scheduler: &Scheduler) -> Result<SchedAttr, Error> {
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => libc::SCHED_OTHER,
        "SCHED_FIFO" => libc::SCHED_FIFO,
        "SCHED_RR" => libc::SCHED_RR,
        "SCHED_BATCH" => libc::SCHED_BATCH,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => libc::SCHED_IDLE,
        "SCHED_DEADLINE" => libc::SCHED_DEADLINE,
        other => return Err(Error::Invalid(format!("invalid scheduler policy: {other}"))),
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(Error::Invalid(format!("invalid scheduler flag: {other}"))),
        };
    }
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or(0);
    let priority = u32::try_from(scheduler.priority).map_err(|_| {
        Error::Invalid(format!(
            "invalid scheduler priority: {}",
            scheduler.priority
        ))
    })?;
    Ok(SchedAttr {
        size,
        policy: policy.unsigned_abs(),
        flags,
        nice: scheduler.nice,
        priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        utilization: [0; 2],
    })
}

/// I/O priority as `ioprio_set(2)` takes it.
fn io_priority(priority: &IoPriority) -> Result<(u32, u32), Error> {
    let class = match priority.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => {
            return Err(Error::Invalid(format!(
                "invalid ioPriority.class: {other:?}"
            )));
        }
    };
    match u32::try_from(priority.priority) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(Error::Invalid(format!(
            "invalid ioPriority.priority: {}",
            priority.priority
        ))),
    }
}

/// Execution domain as `personality(2)` takes it.
pub(super) fn personality(personality: &Personality) -> Result<libc::c_ulong, Error> {
    if !personality.flags.is_empty() {
        return Err(Error::invalid("personality flags are not supported"));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::Invalid(format!(
            "invalid personality domain {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|&item| item.to_owned()).collect()
    }

    #[test]
    fn the_last_variable_of_a_name_counts() {
        let env = environment(&strings(&["A=1", "B=2", "A=3"])).unwrap();
        assert_eq!(env, [c"B=2".to_owned(), c"A=3".to_owned()]);
        assert!(environment(&strings(&["A"])).is_err());
        assert!(environment(&strings(&["=x"])).is_err());
        assert!(environment(&strings(&["A=\0"])).is_err());
    }

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let process = Process {
            env: strings(&["HOMER=x", "HOME=/root"]),
            ..Process::default()
        };
        let mut plan = ProcessPlan::new(&process).unwrap();
        assert_eq!(plan.variable("HOME"), Some(&b"/root"[..]));
        plan.set_variable("HOME=/x").unwrap();
        assert_eq!(plan.variable("HOME"), Some(&b"/x"[..]));
        assert_eq!(plan.variable("HOMER"), Some(&b"x"[..]));
    }

    #[test]
    fn limits_and_priorities() {
        let limit = crate::spec::process::Rlimit {
            kind: "RLIMIT_NOFILE".into(),
            hard: 2,
            soft: 1,
        };
        assert_eq!(
            rlimit(&limit).unwrap(),
            Rlimit {
                resource: rustix::process::Resource::Nofile,
                soft: 1,
                hard: 2
            }
        );
        assert!(
            rlimit(&crate::spec::process::Rlimit {
                kind: "NOFILE".into(),
                ..limit
            })
            .is_err()
        );
        assert_eq!(
            io_priority(&IoPriority {
                class: "IOPRIO_CLASS_BE".into(),
                priority: 4
            })
            .unwrap(),
            (2, 4)
        );
        assert!(
            io_priority(&IoPriority {
                class: "IOPRIO_CLASS_BE".into(),
                priority: 8
            })
            .is_err()
        );
        assert_eq!(
            personality(&Personality {
                domain: "LINUX32".into(),
                flags: vec![]
            })
            .unwrap(),
            8
        );
        let batch = Scheduler {
            policy: "SCHED_BATCH".into(),
            nice: 5,
            ..Scheduler::default()
        };
        assert_eq!(scheduler(&batch).unwrap().policy, 3);
    }
}
