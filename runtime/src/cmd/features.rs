//! `features`: what this runtime supports, as JSON. Governing text: runtime-spec features.md and features-linux.md.

use anyhow::Result;
use serde_json::json;

use crate::capability;
use crate::namespace::Kind;
use crate::plan::mount::KNOWN_OPTIONS;
use crate::spec;

/// Runs the command.
pub(super) fn features() -> Result<u8> {
    let hooks = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    let mut namespaces = Kind::ALL.map(Kind::name);
    namespaces.sort_unstable();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": spec::VERSION,
        "hooks": hooks,
        "mountOptions": KNOWN_OPTIONS,
        "linux": {
            "namespaces": namespaces,
            "capabilities": capability::names().collect::<Vec<_>>(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE"
                ]
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": false }
        },
        "potentiallyUnsafeConfigAnnotations": []
    });
    super::print(&(serde_json::to_string_pretty(&features)? + "\n"))
}
