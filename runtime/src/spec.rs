//! The runtime specification's `config.json`, as far as this runtime acts on it.
//!
//! Own types, read leniently as runc does: members this program does not know are passed over, `null` means absent, and
//! names that a newer specification may add (capabilities, for one) stay text until they are used. Nothing is judged
//! here; see [`crate::plan`] for that. Governing text: runtime-spec config.md and config-linux.md, up to version 1.3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) mod linux;
pub(crate) mod process;
pub(crate) mod resources;
pub(crate) mod seccomp;

use linux::Linux;
use process::Process;
use resources::null_as_default;

/// The version of the specification that this program implements.
pub(crate) const VERSION: &str = "1.3.0";

/// All of `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    /// Version of the specification the bundle was written for.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) oci_version: String,
    /// What to run.
    pub(crate) process: Option<Process>,
    /// The root file system.
    pub(crate) root: Option<Root>,
    /// Host name inside.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) hostname: String,
    /// NIS domain name inside.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) domainname: String,
    /// Mounts, in order.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) mounts: Vec<Mount>,
    /// Programs run at points of the life cycle.
    pub(crate) hooks: Option<Hooks>,
    /// Free-form metadata.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Everything that is particular to Linux.
    pub(crate) linux: Option<Box<Linux>>,
}

/// The root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Root {
    /// Directory, absolute or relative to the bundle.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) path: String,
    /// Whether the container may not write to it.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) readonly: bool,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Mount {
    /// Absolute path inside the container.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) destination: String,
    /// File system type; `bind`, `none` and absence all go with a `bind` option.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub(crate) kind: String,
    /// Device, or what to bind; relative paths are relative to the bundle.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) source: String,
    /// Options as `mount(8)` spells them, and some of the specification's own.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) options: Vec<String>,
    /// User id mappings of an idmapped mount.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) uid_mappings: Vec<linux::IdMapping>,
    /// Group id mappings of an idmapped mount.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) gid_mappings: Vec<linux::IdMapping>,
}

/// Programs run at points of the life cycle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Hooks {
    /// Deprecated name of a point just before `createRuntime`.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) prestart: Vec<Hook>,
    /// After the namespaces are made, before the root is pivoted; in the runtime's namespaces.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) create_runtime: Vec<Hook>,
    /// Likewise, in the container's namespaces.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) create_container: Vec<Hook>,
    /// Before the process is executed; in the container.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) start_container: Vec<Hook>,
    /// After the process is executed; in the runtime's namespaces.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) poststart: Vec<Hook>,
    /// After the container is deleted; in the runtime's namespaces.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) poststop: Vec<Hook>,
}

/// One program run at a point of the life cycle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hook {
    /// Absolute path.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) path: String,
    /// Arguments, the program's name first.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) args: Vec<String>,
    /// `NAME=value` pairs: the whole environment.
    #[serde(
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) env: Vec<String>,
    /// Seconds after which it is killed; absent means it may take for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeout: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_and_nulls_are_passed_over() {
        let spec: Spec = serde_json::from_str(
            r#"{"ociVersion":"1.0.2","future":{"a":1},"mounts":null,"hooks":{"poststop":null},
                "process":{"args":["sh"],"cwd":"/","capabilities":{"bounding":["CAP_FUTURE"]},"user":null},
                "linux":{"namespaces":[{"type":"pid"}],"maskedPaths":null}}"#,
        )
        .unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.capabilities.unwrap().bounding, ["CAP_FUTURE"]);
        assert_eq!(process.user.uid, 0);
        assert_eq!(spec.linux.unwrap().namespaces.len(), 1);
        assert_eq!(spec.hooks.unwrap(), Hooks::default());
    }

    #[test]
    fn a_hook_keeps_its_form_in_the_state_file() {
        let text = r#"{"poststop":[{"path":"/bin/true","args":["true"],"timeout":3}]}"#;
        let hooks: Hooks = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&hooks).unwrap(), text);
    }
}
