//! `process`: what is run, and as whom. runtime-spec, config.md, "Process".

use std::collections::HashSet;

use oci_spec::runtime::Capability;
use serde_json::Value;

use super::{Findings, present};

const AT: &str = "/process";

pub(super) fn check(config: &Value, findings: &mut Findings) {
    let process = &config["process"];
    match findings.text(process, AT, "cwd") {
        Some(cwd) => findings.absolute("/process/cwd", cwd),
        None if present(process, "cwd").is_none() => findings.error("/process/cwd", "is required"),
        None => {}
    }
    let args = findings.texts(process, AT, "args");
    match args.first() {
        None => findings.error("/process/args", "must have at least one entry"),
        Some((at, "")) => findings.error(at.clone(), "the program's name is empty"),
        Some(_) => {}
    }
    environment(process, AT, findings);
    user(process, findings);
    mapped(config, findings);
    capabilities(process, findings);
    rlimits(process, findings);
    for key in ["terminal", "noNewPrivileges"] {
        findings.boolean(process, AT, key);
    }
    findings.within(process, AT, "oomScoreAdj", -1000..=1000);
    for key in ["apparmorProfile", "selinuxLabel"] {
        findings.text(process, AT, key);
    }
    if findings.object(process, AT, "consoleSize").is_some() {
        let size = &process["consoleSize"];
        for key in ["height", "width"] {
            findings.within(size, "/process/consoleSize", key, 0..=i128::from(u16::MAX));
        }
        if process.get("terminal").and_then(Value::as_bool) != Some(true) {
            findings.warning("/process/consoleSize", "has no effect without a terminal");
        }
    }
}

/// Checks the entries of an `env` array, a process's or a hook's.
pub(super) fn environment(parent: &Value, at: &str, findings: &mut Findings) {
    let mut seen = HashSet::new();
    for (at, entry) in findings.texts(parent, at, "env") {
        match entry.split_once('=') {
            None => findings.error(at, format!("{entry:?} is not of the form NAME=VALUE")),
            Some(("", _)) => findings.error(at, format!("{entry:?} has no name")),
            Some(_) if entry.contains('\0') => findings.error(at, "has a NUL byte in it"),
            Some((name, _)) if !seen.insert(name) => {
                findings.warning(at, format!("{name} is set twice"));
            }
            Some(_) => {}
        }
    }
}

fn user(process: &Value, findings: &mut Findings) {
    const USER: &str = "/process/user";
    if findings.object(process, AT, "user").is_none() {
        return;
    }
    let user = &process["user"];
    // The highest value means "none" to the kernel.
    let ids = 0..=i128::from(u32::MAX) - 1;
    for key in ["uid", "gid"] {
        findings.within(user, USER, key, ids.clone());
    }
    findings.within(user, USER, "umask", 0..=0o777);
    let groups = findings
        .array(user, USER, "additionalGids")
        .map_or(&[][..], Vec::as_slice);
    for (number, group) in groups.iter().enumerate() {
        if !group
            .as_u64()
            .is_some_and(|gid| ids.contains(&i128::from(gid)))
        {
            findings.error(format!("{USER}/additionalGids/{number}"), "is no group id");
        }
    }
}

/// Checks that the user exists in the container's user namespace.
fn mapped(config: &Value, findings: &mut Findings) {
    for (mappings, key) in [("uidMappings", "uid"), ("gidMappings", "gid")] {
        let list = config["linux"][mappings]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let id = config["process"]["user"][key].as_u64().unwrap_or(0);
        let within = |mapping: &Value| {
            let number = |field: &str| mapping[field].as_u64().unwrap_or(0);
            let start = number("containerID");
            (start..start.saturating_add(number("size"))).contains(&id)
        };
        if !list.is_empty() && !list.iter().any(within) {
            let message = format!("{id} is in none of the {mappings}");
            findings.error(format!("/process/user/{key}"), message);
        }
    }
}

fn capabilities(process: &Value, findings: &mut Findings) {
    const SETS: [&str; 5] = [
        "bounding",
        "effective",
        "inheritable",
        "permitted",
        "ambient",
    ];
    const CAPABILITIES: &str = "/process/capabilities";
    if findings.object(process, AT, "capabilities").is_none() {
        return;
    }
    let parent = &process["capabilities"];
    let sets = SETS.map(|set| {
        let names = findings.texts(parent, CAPABILITIES, set);
        for (at, name) in &names {
            let known = serde_json::from_value::<Capability>(Value::from(*name)).is_ok();
            if !known || !name.starts_with("CAP_") {
                findings.warning(
                    at.clone(),
                    format!("{name:?} is no known capability: runtimes ignore it"),
                );
            }
        }
        names
            .into_iter()
            .map(|(_, name)| name)
            .collect::<HashSet<&str>>()
    });
    let [bounding, effective, inheritable, permitted, ambient] = &sets;
    let mut beyond = |set: &HashSet<&str>, name: &str, other: &HashSet<&str>, of: &str| {
        let mut extra: Vec<&str> = set.difference(other).copied().collect();
        extra.sort_unstable();
        if !extra.is_empty() {
            let message = format!("{} not in {of}, so it will not be held", extra.join(", "));
            findings.warning(format!("{CAPABILITIES}/{name}"), message);
        }
    };
    beyond(effective, "effective", permitted, "permitted");
    beyond(ambient, "ambient", permitted, "permitted");
    beyond(ambient, "ambient", inheritable, "inheritable");
    beyond(permitted, "permitted", bounding, "bounding");
    if !inheritable.is_empty() {
        findings.warning(
            format!("{CAPABILITIES}/inheritable"),
            "a file with inheritable capabilities can raise them (CVE-2022-24769)",
        );
    }
}

fn rlimits(process: &Value, findings: &mut Findings) {
    const TYPES: [&str; 16] = [
        "RLIMIT_AS",
        "RLIMIT_CORE",
        "RLIMIT_CPU",
        "RLIMIT_DATA",
        "RLIMIT_FSIZE",
        "RLIMIT_LOCKS",
        "RLIMIT_MEMLOCK",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_NOFILE",
        "RLIMIT_NPROC",
        "RLIMIT_RSS",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
        "RLIMIT_SIGPENDING",
        "RLIMIT_STACK",
    ];
    let mut seen = HashSet::new();
    let limits = findings
        .array(process, AT, "rlimits")
        .map_or(&[][..], Vec::as_slice);
    for (number, limit) in limits.iter().enumerate() {
        let at = format!("/process/rlimits/{number}");
        let kind = findings.text(limit, &at, "type").unwrap_or_default();
        if findings.one_of(&format!("{at}/type"), kind, "resource limit", &TYPES)
            && !seen.insert(kind)
        {
            findings.error(format!("{at}/type"), format!("{kind} is set twice"));
        }
        let bounds = 0..=i128::from(u64::MAX);
        for key in ["soft", "hard"] {
            findings.within(limit, &at, key, bounds.clone());
        }
        let value = |key: &str| limit.get(key).and_then(Value::as_u64).unwrap_or(0);
        if value("soft") > value("hard") {
            findings.error(format!("{at}/soft"), "is above the hard limit");
        }
    }
}
