//! The process: arguments, identity and limits in the form the kernel takes them.

use std::collections::BTreeSet;
use std::ffi::CString;

use super::Error;
use super::scheduling::Scheduling;
use crate::capability;
use crate::spec::process::{ConsoleSize, Process, User};

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
    /// Whether the caller's supplementary groups are kept instead; see [`crate::rootless::keeps_groups`].
    pub(crate) keep_groups: bool,
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
    /// When and where it runs.
    pub(crate) scheduling: Scheduling,
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
            keep_groups: false,
            capabilities,
            rlimits: rlimits(&process.rlimits)?,
            no_new_privileges: process.no_new_privileges,
            apparmor_profile: optional(&process.apparmor_profile),
            selinux_label: optional(&process.selinux_label),
            oom_score_adj: process.oom_score_adj,
            terminal: process.terminal,
            console_size: process.console_size,
            scheduling: Scheduling::of_process(process)?,
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

/// The resource limits; one of a type, as the specification wants it.
fn rlimits(limits: &[crate::spec::process::Rlimit]) -> Result<Vec<Rlimit>, Error> {
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|other| other.kind == limit.kind) {
            return Err(Error::Invalid(format!(
                "rlimit type {} is given more than once",
                limit.kind.escape_debug()
            )));
        }
    }
    limits.iter().map(rlimit).collect()
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
                limit.kind.escape_debug()
            )));
        }
    };
    Ok(Rlimit {
        resource,
        soft: limit.soft,
        hard: limit.hard,
    })
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

    fn limit_of(kind: &str) -> crate::spec::process::Rlimit {
        crate::spec::process::Rlimit {
            kind: kind.into(),
            ..Default::default()
        }
    }

    #[test]
    fn limits() {
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
        let twice = [
            limit_of("RLIMIT_CPU"),
            limit_of("RLIMIT_AS"),
            limit_of("RLIMIT_CPU"),
        ];
        assert!(rlimits(&twice[..2]).is_ok());
        assert_eq!(
            rlimits(&twice).unwrap_err().to_string(),
            "rlimit type RLIMIT_CPU is given more than once"
        );
    }
}
