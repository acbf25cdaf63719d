//! `linux`: namespaces and all that hangs on them. runtime-spec, config-linux.md.

use std::path::Path;

use serde_json::Value;

use super::{Findings, escape, seccomp};

const AT: &str = "/linux";

/// Checks the section; returns the namespaces the container has of its own or joins.
pub(super) fn check<'v>(config: &'v Value, findings: &mut Findings) -> Vec<&'v str> {
    if findings.object(config, "", "linux").is_none() {
        return Vec::new();
    }
    let linux = &config["linux"];
    let namespaces = namespaces(linux, findings);
    mappings(linux, &namespaces, findings);
    devices(linux, findings);
    resources(linux, findings);
    sysctl(linux, &namespaces, findings);
    for key in ["maskedPaths", "readonlyPaths"] {
        let paths = findings.texts(linux, AT, key);
        for (at, path) in &paths {
            findings.absolute(at, path);
        }
        if !paths.is_empty() && !namespaces.contains(&"mount") {
            findings.error(format!("{AT}/{key}"), "needs a mount namespace of its own");
        }
    }
    if let Some(propagation) = findings.text(linux, AT, "rootfsPropagation") {
        let known = [
            "",
            "shared",
            "rshared",
            "slave",
            "rslave",
            "private",
            "rprivate",
            "unbindable",
            "runbindable",
        ];
        findings.one_of(
            "/linux/rootfsPropagation",
            propagation,
            "mount propagation",
            &known,
        );
    }
    for key in ["cgroupsPath", "mountLabel"] {
        findings.text(linux, AT, key);
    }
    if findings.object(linux, AT, "seccomp").is_some() {
        seccomp::check(&linux["seccomp"], findings);
    }
    if findings
        .object(linux, AT, "timeOffsets")
        .is_some_and(|offsets| !offsets.is_empty())
        && !namespaces.contains(&"time")
    {
        findings.error("/linux/timeOffsets", "needs a time namespace");
    }
    namespaces
}

fn namespaces<'v>(linux: &'v Value, findings: &mut Findings) -> Vec<&'v str> {
    const TYPES: [&str; 8] = [
        "pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time",
    ];
    let mut found = Vec::new();
    let list = findings
        .array(linux, AT, "namespaces")
        .map_or(&[][..], Vec::as_slice);
    for (number, namespace) in list.iter().enumerate() {
        let at = format!("/linux/namespaces/{number}");
        let kind = findings.text(namespace, &at, "type").unwrap_or_default();
        if findings.one_of(&format!("{at}/type"), kind, "namespace", &TYPES) {
            if found.contains(&kind) {
                findings.error(format!("{at}/type"), format!("{kind} is there twice"));
            }
            found.push(kind);
        }
        if let Some(path) = findings.text(namespace, &at, "path")
            && !path.is_empty()
        {
            findings.absolute(&format!("{at}/path"), path);
            if path.starts_with('/') && !Path::new(path).exists() {
                findings.warning(format!("{at}/path"), format!("{path} does not exist here"));
            }
        }
    }
    if !found.contains(&"mount") {
        findings.warning(
            "/linux/namespaces",
            "no mount namespace: mounts would land on the host",
        );
    }
    found
}

fn mappings(linux: &Value, namespaces: &[&str], findings: &mut Findings) {
    for key in ["uidMappings", "gidMappings"] {
        let list = findings
            .array(linux, AT, key)
            .map_or(&[][..], Vec::as_slice);
        if !list.is_empty() && !namespaces.contains(&"user") {
            findings.error(format!("{AT}/{key}"), "needs a user namespace");
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, mapping) in list.iter().enumerate() {
            let at = format!("{AT}/{key}/{number}");
            for field in ["containerID", "hostID"] {
                findings.within(mapping, &at, field, 0..=i128::from(u32::MAX) - 1);
            }
            findings.within(mapping, &at, "size", 1..=i128::from(u32::MAX));
            let value = |field: &str| mapping.get(field).and_then(Value::as_u64).unwrap_or(0);
            let (start, end) = (
                value("containerID"),
                value("containerID").saturating_add(value("size")),
            );
            if ranges.iter().any(|&(from, to)| start < to && from < end) {
                findings.error(at, "overlaps with another mapping");
            }
            ranges.push((start, end));
        }
    }
}

fn devices(linux: &Value, findings: &mut Findings) {
    let list = findings
        .array(linux, AT, "devices")
        .map_or(&[][..], Vec::as_slice);
    for (number, device) in list.iter().enumerate() {
        let at = format!("/linux/devices/{number}");
        match findings.text(device, &at, "path") {
            Some(path) => findings.absolute(&format!("{at}/path"), path),
            None => findings.error(format!("{at}/path"), "is required"),
        }
        let kind = findings.text(device, &at, "type").unwrap_or_default();
        findings.one_of(
            &format!("{at}/type"),
            kind,
            "device type",
            &["c", "b", "u", "p"],
        );
        for key in ["major", "minor"] {
            findings.within(device, &at, key, 0..=i128::from(u32::MAX));
            if kind != "p" && device.get(key).is_none() {
                findings.error(format!("{at}/{key}"), "is required");
            }
        }
        findings.within(device, &at, "fileMode", 0..=0o177_777);
    }
}

fn resources(linux: &Value, findings: &mut Findings) {
    const RESOURCES: &str = "/linux/resources";
    if findings.object(linux, AT, "resources").is_none() {
        return;
    }
    let resources = &linux["resources"];
    let rules = findings
        .array(resources, RESOURCES, "devices")
        .map_or(&[][..], Vec::as_slice);
    for (number, rule) in rules.iter().enumerate() {
        let at = format!("{RESOURCES}/devices/{number}");
        if findings.boolean(rule, &at, "allow").is_none() {
            findings.error(format!("{at}/allow"), "is required");
        }
        if let Some(kind) = findings.text(rule, &at, "type") {
            findings.one_of(
                &format!("{at}/type"),
                kind,
                "device type",
                &["a", "b", "c", ""],
            );
        }
        let access = findings.text(rule, &at, "access").unwrap_or_default();
        if access.chars().any(|letter| !"rwm".contains(letter)) {
            findings.error(
                format!("{at}/access"),
                format!("{access:?} is not made of r, w and m"),
            );
        }
    }
    let memory = &resources["memory"];
    let at = format!("{RESOURCES}/memory");
    for key in ["limit", "reservation", "swap", "kernel", "kernelTCP"] {
        findings.within(memory, &at, key, -1..=i128::from(i64::MAX));
    }
    findings.within(memory, &at, "swappiness", 0..=100);
    let value = |key: &str| memory.get(key).and_then(Value::as_i64).unwrap_or(0);
    if value("swap") > 0 && value("limit") > value("swap") {
        findings.error(
            format!("{at}/swap"),
            "is memory and swap together, so it can not be below limit",
        );
    }
    if value("limit") > 0 && value("reservation") > value("limit") {
        findings.error(format!("{at}/reservation"), "is above limit");
    }
    let cpu = &resources["cpu"];
    let at = format!("{RESOURCES}/cpu");
    findings.within(cpu, &at, "shares", 0..=262_144);
    findings.within(cpu, &at, "period", 0..=1_000_000);
    findings.integer(cpu, &at, "quota");
    for key in ["cpus", "mems"] {
        let list = findings.text(cpu, &at, key).unwrap_or_default();
        if list
            .chars()
            .any(|letter| !matches!(letter, '0'..='9' | ',' | '-' | ' ' | '\n'))
        {
            findings.error(
                format!("{at}/{key}"),
                format!("{list:?} is no list such as 0-3,7"),
            );
        }
    }
    findings.integer(&resources["pids"], &format!("{RESOURCES}/pids"), "limit");
}

/// The kind of namespace, as `linux.namespaces` calls it, that a kernel parameter (its name with dots) belongs to; `None`
/// for those of the whole machine, and for `kernel.hostname`, which has a field of its own.
#[must_use]
pub fn sysctl_namespace(name: &str) -> Option<&'static str> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some("ipc")
    } else if name.starts_with("net.") {
        Some("network")
    } else if name == "kernel.domainname" {
        Some("uts")
    } else if name.starts_with("user.") {
        Some("user")
    } else {
        None
    }
}

/// What a container may set: only what belongs to a namespace it has.
fn sysctl(linux: &Value, namespaces: &[&str], findings: &mut Findings) {
    for (key, value) in findings.object(linux, AT, "sysctl").into_iter().flatten() {
        let at = format!("/linux/sysctl/{}", escape(key));
        let name = key.replace('/', ".");
        match sysctl_namespace(&name) {
            None if name == "kernel.hostname" => {
                findings.error(at.clone(), "is set by the field hostname");
            }
            None => findings.error(at.clone(), "does not belong to any namespace"),
            Some(namespace) if !namespaces.contains(&namespace) => {
                findings.error(
                    at.clone(),
                    format!("needs a {namespace} namespace of its own"),
                );
            }
            Some(_) => {}
        }
        match value.as_str() {
            None => findings.error(at, "must be a string"),
            // More than one setting in one (CVE-2022-0811).
            Some(text) if text.contains(['\n', '\0']) => {
                findings.error(at, "has a line break in it")
            }
            Some(_) => {}
        }
    }
}
