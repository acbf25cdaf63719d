//! The default seccomp profile that podman and docker ship, as a runtime configuration has it.

use anyhow::Context as _;
use serde_json::{Value, json};

/// Where Debian's containers-common package puts it.
const FILE: &str = "/usr/share/containers/seccomp.json";

/// Capabilities of the bundles compared that the profile's rules ask for.
const HELD: [&str; 1] = ["CAP_SYS_CHROOT"];

/// Reads the profile and keeps the rules that hold on this architecture for a container with the
/// default capabilities.
pub(crate) fn default_profile() -> anyhow::Result<Value> {
    let text =
        std::fs::read(FILE).with_context(|| format!("read {FILE} (package containers-common)"))?;
    let profile: Value = serde_json::from_slice(&text)?;
    let names = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned))
            .collect()
    };
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let holds = |rule: &&Value| {
        let (wanted, unwanted) = (&rule["includes"], &rule["excludes"]);
        let has = |list: &Value| names(list).iter().any(|name| HELD.contains(&name.as_str()));
        let here = |list: &Value| names(list).iter().any(|name| name == architecture);
        (names(&wanted["caps"]).is_empty() || has(&wanted["caps"]))
            && (names(&wanted["arches"]).is_empty() || here(&wanted["arches"]))
            && !has(&unwanted["caps"])
            && !here(&unwanted["arches"])
    };
    let rules = profile["syscalls"]
        .as_array()
        .context("no rules in the profile")?;
    let syscalls: Vec<_> = rules.iter().filter(holds).map(rule).collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    }))
}

/// A rule without what only the profile's own format knows.
fn rule(rule: &Value) -> Value {
    let mut plain = json!({"names": rule["names"], "action": rule["action"]});
    for (key, value) in rule.as_object().into_iter().flatten() {
        let given = !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
        if given && ["args", "errnoRet"].contains(&key.as_str()) {
            plain[key] = value.clone();
        }
    }
    plain
}
