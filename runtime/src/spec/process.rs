//! The `process` object of config.json, and of the file given to `exec --process`.

use serde::{Deserialize, Serialize};

use super::resources::null_as_default;

/// What to run in the container, and as whom.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Process {
    /// Whether it gets a terminal.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) terminal: bool,
    /// First size of that terminal.
    pub(crate) console_size: Option<ConsoleSize>,
    /// Whose process it is.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) user: User,
    /// Program and arguments.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) args: Vec<String>,
    /// `NAME=value` pairs.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) env: Vec<String>,
    /// Working directory, absolute.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) cwd: String,
    /// Capability sets.
    pub(crate) capabilities: Option<Capabilities>,
    /// Resource limits of the process.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) rlimits: Vec<Rlimit>,
    /// Whether executing a program can no longer grant privileges.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) apparmor_profile: String,
    /// How gladly the OOM killer takes it.
    pub(crate) oom_score_adj: Option<i32>,
    /// Scheduling policy.
    pub(crate) scheduler: Option<Scheduler>,
    /// SELinux label.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) selinux_label: String,
    /// I/O priority.
    pub(crate) io_priority: Option<IoPriority>,
    /// CPUs of exec'd processes at two points of their life.
    #[serde(rename = "execCPUAffinity")]
    pub(crate) exec_cpu_affinity: Option<CpuAffinity>,
}

/// CPUs of exec'd processes, as lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CpuAffinity {
    /// Before the process enters the container's cgroup.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) initial: String,
    /// From then on.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) r#final: String,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct ConsoleSize {
    /// Rows.
    pub(crate) height: u16,
    /// Columns.
    pub(crate) width: u16,
}

/// User and groups of a process, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct User {
    /// User id inside the container.
    pub(crate) uid: u32,
    /// Group id inside the container.
    pub(crate) gid: u32,
    /// Mask of permissions that new files do not get.
    pub(crate) umask: Option<u32>,
    /// Supplementary groups.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) additional_gids: Vec<u32>,
}

/// Capability names per set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    /// Upper limit of what can be gained by executing a program.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) bounding: Vec<String>,
    /// In force.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) effective: Vec<String>,
    /// Kept over exec by programs that have them inheritable too.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) inheritable: Vec<String>,
    /// May be put in force.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) permitted: Vec<String>,
    /// Kept over exec by every program.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) ambient: Vec<String>,
}

/// One resource limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Rlimit {
    /// `RLIMIT_*`
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Up to where the process may raise it itself.
    pub(crate) hard: u64,
    /// In force.
    pub(crate) soft: u64,
}

/// Scheduling policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Scheduler {
    /// `SCHED_*`
    pub(crate) policy: String,
    /// Nice value.
    pub(crate) nice: i32,
    /// Priority of the real-time policies.
    pub(crate) priority: i32,
    /// `SCHED_FLAG_*`
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) flags: Vec<String>,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub(crate) period: u64,
}

/// I/O priority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct IoPriority {
    /// `IOPRIO_CLASS_*`
    pub(crate) class: String,
    /// 0 (first) to 7 (last).
    pub(crate) priority: i32,
}
