//! The system call filter: the `linux.seccomp` object of config.json.
//!
//! Field for field what the runtime specification's "Seccomp" section (config-linux.md) lists. Turned into a BPF program
//! by [`crate::seccomp::compile`]. System call names, architectures and flags stay text, because what is unknown there
//! is passed over or named in an error by the compiler; an unknown action or operator is refused while parsing.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::resources::null_as_default;

/// A whole filter.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Seccomp {
    /// What happens to system calls that no rule matches; `None` in an object that is as good as absent.
    #[serde(default, deserialize_with = "action_or_none")]
    pub(crate) default_action: Option<Action>,
    /// Error number for a default action of `SCMP_ACT_ERRNO` or data for `SCMP_ACT_TRACE`; EPERM when absent.
    #[serde(default)]
    pub(crate) default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_*` names; the native architecture is always covered.
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` names. Absent is not the same as empty: absent leaves the choice to the runtime.
    #[serde(default)]
    pub(crate) flags: Option<Vec<String>>,
    /// Socket of the agent that gets the listener of `SCMP_ACT_NOTIFY`.
    #[serde(default)]
    pub(crate) listener_path: Option<String>,
    /// Opaque text handed to that agent.
    #[serde(default)]
    pub(crate) listener_metadata: Option<String>,
    /// The rules.
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) syscalls: Vec<Rule>,
}

/// One rule: an action for some system calls, under conditions on their arguments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rule {
    /// System call names.
    pub(crate) names: Vec<String>,
    /// What happens to them.
    pub(crate) action: Action,
    /// Error number for `SCMP_ACT_ERRNO`, data for `SCMP_ACT_TRACE`; EPERM when absent.
    #[serde(default)]
    pub(crate) errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) args: Vec<Arg>,
}

/// A condition on one argument of a system call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Ends the calling thread with SIGSYS.
    KillThread,
    /// Ends the whole process with SIGSYS.
    KillProcess,
    /// Sends SIGSYS, which the program may handle.
    Trap,
    /// Fails with an error number.
    Errno,
    /// Asks a tracer; fails with ENOSYS when there is none.
    Trace,
    /// Runs it.
    Allow,
    /// Runs it and writes it to the audit log.
    Log,
    /// Asks the process that holds the listener.
    Notify,
}

/// How an argument is compared, always as an unsigned 64-bit number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operator {
    /// Different from the value.
    NotEqual,
    /// Less than the value.
    Less,
    /// At most the value.
    LessOrEqual,
    /// The value.
    Equal,
    /// At least the value.
    GreaterOrEqual,
    /// Greater than the value.
    Greater,
    /// Equal to the second value after masking with the first.
    MaskedEqual,
}

/// Actions by name, in the order of the names.
pub(crate) const ACTIONS: [(&str, Action); 9] = [
    ("SCMP_ACT_ALLOW", Action::Allow),
    ("SCMP_ACT_ERRNO", Action::Errno),
    ("SCMP_ACT_KILL", Action::KillThread),
    ("SCMP_ACT_KILL_PROCESS", Action::KillProcess),
    ("SCMP_ACT_KILL_THREAD", Action::KillThread),
    ("SCMP_ACT_LOG", Action::Log),
    ("SCMP_ACT_NOTIFY", Action::Notify),
    ("SCMP_ACT_TRACE", Action::Trace),
    ("SCMP_ACT_TRAP", Action::Trap),
];

/// Operators by name, in the order of the names.
pub(crate) const OPERATORS: [(&str, Operator); 7] = [
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual),
    ("SCMP_CMP_NE", Operator::NotEqual),
];

/// What a name stands for in a table.
fn named<T: Copy, E: serde::de::Error>(
    table: &[(&str, T)],
    what: &str,
    name: &str,
) -> Result<T, E> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let name = name.escape_debug();
        E::custom(format!("string {name} is not a valid {what} for seccomp"))
    })
}

impl<'de> Deserialize<'de> for Action {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        named(&ACTIONS, "action", &String::deserialize(deserializer)?)
    }
}

impl<'de> Deserialize<'de> for Operator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        named(&OPERATORS, "operator", &String::deserialize(deserializer)?)
    }
}

/// A filter, or `None` for an object with neither default action nor rules: that switches filtering off, as in runc.
pub(super) fn filter_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Seccomp>, D::Error> {
    let Some(filter) = Option::<Seccomp>::deserialize(deserializer)? else {
        return Ok(None);
    };
    match filter.default_action {
        Some(_) => Ok(Some(filter)),
        None if filter.syscalls.is_empty() => Ok(None),
        None => Err(D::Error::custom(
            "string  is not a valid action for seccomp",
        )),
    }
}

/// An action; `None` for an empty name.
fn action_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Action>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(name) if !name.is_empty() => named(&ACTIONS, "action", &name).map(Some),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::spec::linux::Linux;

    fn parse(seccomp: &str) -> Result<Linux, String> {
        serde_json::from_str(&format!(r#"{{"seccomp":{seccomp}}}"#))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_object_without_content_is_no_filter() {
        for text in [
            "{}",
            "null",
            r#"{"defaultAction":"","syscalls":null}"#,
            r#"{"flags":[]}"#,
        ] {
            assert!(parse(text).unwrap().seccomp.is_none(), "{text}");
        }
        assert!(
            parse(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)
                .unwrap()
                .seccomp
                .is_some()
        );
    }

    #[test]
    fn unknown_names_are_told() {
        let rule = |action: &str, operator: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["read"],"action":"{action}",
                    "args":[{{"index":0,"value":1,"op":"{operator}"}}]}}]}}"#
            )
        };
        assert!(parse(&rule("SCMP_ACT_KILL", "SCMP_CMP_EQ")).is_ok());
        for (text, error) in [
            (
                rule("SCMP_ACT_X", "SCMP_CMP_EQ"),
                "string SCMP_ACT_X is not a valid action for seccomp",
            ),
            (
                rule("SCMP_ACT_LOG", "SCMP_CMP_X"),
                "string SCMP_CMP_X is not a valid operator for seccomp",
            ),
            (
                r#"{"syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG"}]}"#.into(),
                "string  is not a valid action for seccomp",
            ),
        ] {
            assert!(parse(&text).unwrap_err().starts_with(error), "{text}");
        }
    }
}
