//! `features`: what this runtime supports, as JSON. Governing text: runtime-spec features.md and features-linux.md.
//!
//! The document does not depend on the machine, but for the seccomp flags that its kernel takes.

use anyhow::Result;
use serde_json::{Value, json};

use crate::capability;
use crate::help;
use crate::namespace::Kind;
use crate::plan::mount::known_options;
use crate::plan::scheduling::{MEMORY_FLAGS, MEMORY_MODES};
use crate::seccomp;
use crate::spec;
use crate::spec::seccomp::{ACTIONS, OPERATORS};

/// Runs the command.
pub(super) fn features() -> Result<u8> {
    super::print(&(serde_json::to_string_pretty(&document())? + "\n"))
}

/// The whole document.
fn document() -> Value {
    let hooks = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::VERSION,
        "hooks": hooks,
        "mountOptions": known_options().collect::<Vec<_>>(),
        "linux": linux(),
        "annotations": {
            "org.opencontainers.runc.version": help::RUNC_VERSION,
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        // The second is a prefix: any property of the container's systemd unit, as far as a container may set it.
        "potentiallyUnsafeConfigAnnotations": ["org.criu.config", "org.systemd.property."],
    })
}

/// The part about Linux.
fn linux() -> Value {
    let mut namespaces = Kind::ALL.map(Kind::name);
    namespaces.sort_unstable();
    json!({
        "namespaces": namespaces,
        "capabilities": capability::names().collect::<Vec<_>>(),
        "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
        "seccomp": {
            "enabled": true,
            "actions": ACTIONS.map(|(name, _)| name),
            "operators": OPERATORS.map(|(name, _)| name),
            "archs": seccomp::ARCHITECTURES,
            "knownFlags": seccomp::FLAGS.map(|(name, _)| name),
            "supportedFlags": seccomp::supported_flags(),
        },
        "apparmor": { "enabled": true },
        "selinux": { "enabled": true },
        "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
        "memoryPolicy": {
            "modes": MEMORY_MODES.map(|(name, _)| name),
            "flags": MEMORY_FLAGS.map(|(name, _)| name),
        },
        "mountExtensions": { "idmap": { "enabled": true } },
        "netDevices": { "enabled": true },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_order_and_flags_known() {
        let document = document();
        for list in [
            "/linux/namespaces",
            "/linux/seccomp/actions",
            "/linux/seccomp/operators",
            "/linux/seccomp/archs",
            "/linux/memoryPolicy/modes",
            "/linux/memoryPolicy/flags",
        ] {
            let names = document.pointer(list).unwrap().as_array().unwrap();
            assert!(names.is_sorted_by_key(|name| name.as_str()), "{list}");
        }
        let flags = |name: &str| {
            let list = document.pointer(&format!("/linux/seccomp/{name}")).unwrap();
            list.as_array().unwrap().clone()
        };
        let known = flags("knownFlags");
        let supported = flags("supportedFlags");
        assert!(supported.iter().all(|flag| known.contains(flag)) && !supported.is_empty());
    }
}
