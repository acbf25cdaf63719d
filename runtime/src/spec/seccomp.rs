//! The system call filter: the `linux.seccomp` object of config.json.
//!
//! Field for field what the runtime specification's "Seccomp" section (config-linux.md) lists. Turned into a BPF program
//! by [`crate::seccomp::compile`]. System call names, architectures and flags stay text, because what is unknown there
//! is passed over or named in an error by the compiler; an unknown action or operator is refused while parsing.

use serde::{Deserialize, Serialize};

use super::resources::null_as_default;

/// A whole filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seccomp {
    /// What happens to system calls that no rule matches.
    pub(crate) default_action: Action,
    /// Error number for a default action of `SCMP_ACT_ERRNO` or data for `SCMP_ACT_TRACE`; EPERM when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_*` names; the native architecture is always covered.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` names. Absent is not the same as empty: absent leaves the choice to the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) flags: Option<Vec<String>>,
    /// Socket of the agent that gets the listener of `SCMP_ACT_NOTIFY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listener_path: Option<String>,
    /// Opaque text handed to that agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listener_metadata: Option<String>,
    /// The rules.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) syscalls: Vec<Rule>,
}

/// One rule: an action for some system calls, under conditions on their arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rule {
    /// System call names.
    pub(crate) names: Vec<String>,
    /// What happens to them.
    pub(crate) action: Action,
    /// Error number for `SCMP_ACT_ERRNO`, data for `SCMP_ACT_TRACE`; EPERM when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) args: Vec<Arg>,
}

/// A condition on one argument of a system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Arg {
    /// Which argument, 0 to 5.
    pub(crate) index: u32,
    /// What it is compared with; the mask for `SCMP_CMP_MASKED_EQ`.
    #[serde(default)]
    pub(crate) value: u64,
    /// What the masked argument is compared with for `SCMP_CMP_MASKED_EQ`.
    #[serde(default)]
    pub(crate) value_two: u64,
    /// How it is compared.
    pub(crate) op: Operator,
}

/// What the kernel does with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Ends the calling thread with SIGSYS.
    #[serde(rename = "SCMP_ACT_KILL_THREAD", alias = "SCMP_ACT_KILL")]
    KillThread,
    /// Ends the whole process with SIGSYS.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// Sends SIGSYS, which the program may handle.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// Fails with an error number.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// Asks a tracer; fails with ENOSYS when there is none.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Runs it.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// Runs it and writes it to the audit log.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// Asks the process that holds the listener.
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// How an argument is compared, always as an unsigned 64-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Operator {
    /// Different from the value.
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// Less than the value.
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// At most the value.
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// The value.
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// At least the value.
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// Greater than the value.
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// Equal to the second value after masking with the first.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}
