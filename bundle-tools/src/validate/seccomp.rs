//! `linux.seccomp`. runtime-spec, config-linux.md, "Seccomp".

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Findings, present};

const AT: &str = "/linux/seccomp";

pub(super) fn check(seccomp: &Value, findings: &mut Findings) {
    match findings.text(seccomp, AT, "defaultAction") {
        Some(action) => {
            known::<LinuxSeccompAction>(findings, "/linux/seccomp/defaultAction", action, "action");
        }
        None => findings.error("/linux/seccomp/defaultAction", "is required"),
    }
    errno(seccomp, AT, "defaultAction", "defaultErrnoRet", findings);
    for (at, name) in findings.texts(seccomp, AT, "architectures") {
        known::<Arch>(findings, &at, name, "architecture");
    }
    for (at, name) in findings.texts(seccomp, AT, "flags") {
        known::<LinuxSeccompFilterFlag>(findings, &at, name, "filter flag");
    }
    let rules = findings
        .array(seccomp, AT, "syscalls")
        .map_or(&[][..], Vec::as_slice);
    for (number, rule) in rules.iter().enumerate() {
        check_rule(rule, &format!("{AT}/syscalls/{number}"), findings);
    }
    let notifies = rules.iter().any(|rule| rule["action"] == "SCMP_ACT_NOTIFY");
    if notifies && present(seccomp, "listenerPath").is_none() {
        findings.error(
            "/linux/seccomp/listenerPath",
            "is required by SCMP_ACT_NOTIFY",
        );
    }
    if seccomp["defaultAction"] == "SCMP_ACT_NOTIFY" {
        findings.error(
            "/linux/seccomp/defaultAction",
            "SCMP_ACT_NOTIFY can not be the default",
        );
    }
}

fn check_rule(rule: &Value, at: &str, findings: &mut Findings) {
    let names = findings.texts(rule, at, "names");
    if names.is_empty() {
        findings.error(format!("{at}/names"), "must have at least one entry");
    }
    for (at, name) in names {
        if name.is_empty() {
            findings.error(at, "the name is empty");
        }
    }
    match findings.text(rule, at, "action") {
        Some(action) => {
            known::<LinuxSeccompAction>(findings, &format!("{at}/action"), action, "action")
        }
        None => findings.error(format!("{at}/action"), "is required"),
    }
    errno(rule, at, "action", "errnoRet", findings);
    let args = findings
        .array(rule, at, "args")
        .map_or(&[][..], Vec::as_slice);
    for (number, arg) in args.iter().enumerate() {
        let at = format!("{at}/args/{number}");
        findings.within(arg, &at, "index", 0..=5);
        for key in ["value", "valueTwo"] {
            findings.within(arg, &at, key, 0..=i128::from(u64::MAX));
        }
        match findings.text(arg, &at, "op") {
            Some(op) => {
                known::<LinuxSeccompOperator>(findings, &format!("{at}/op"), op, "operator")
            }
            None => findings.error(format!("{at}/op"), "is required"),
        }
    }
}

/// An error number makes sense with two actions only.
fn errno(parent: &Value, at: &str, action: &str, key: &str, findings: &mut Findings) {
    findings.within(parent, at, key, 0..=4095);
    let takes = matches!(
        parent[action].as_str(),
        Some("SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE")
    );
    if present(parent, key).is_some() && !takes {
        findings.error(
            format!("{at}/{key}"),
            "only goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE",
        );
    }
}

fn known<T: DeserializeOwned>(findings: &mut Findings, at: &str, name: &str, what: &str) {
    if serde_json::from_value::<T>(Value::from(name)).is_err() {
        findings.error(at, format!("{name:?} is no {what}"));
    }
}
