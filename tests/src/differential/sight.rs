//! The probe's report as a flat table, without what differs from one run to the next.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::host;

/// What was seen: names and values, both text.
pub type Sight = BTreeMap<String, String>;

/// Lines of `/proc/self/status` that say how the process was set up.
const STATUS: [&str; 23] = [
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "SigPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Speculation_Store_Bypass",
    "SpeculationIndirectBranch",
    "Cpus_allowed_list",
    "Mems_allowed_list",
    "THP_enabled",
    "Threads",
    "Kthread",
];

/// Reads the probe's report. `joined` are the namespaces, as `/proc/PID/ns` shows them, that the case
/// names by path.
#[must_use]
pub fn read(report: &Value, joined: &[String]) -> Sight {
    let mut sight = Sight::new();
    let files = &report["files"];
    let file = |name: &str| files[format!("/proc/self/{name}")].as_str().unwrap_or("");
    status(file("status"), &mut sight);
    limits(file("limits"), &mut sight);
    mounts(file("mountinfo"), &mut sight);
    environment(file("environ"), &mut sight);
    cgroups_seen(file("cgroup"), &mut sight);
    for name in [
        "cmdline",
        "comm",
        "oom_score_adj",
        "uid_map",
        "gid_map",
        "setgroups",
        "timens_offsets",
        "timerslack_ns",
        "coredump_filter",
        "loginuid",
        "attr/current",
    ] {
        let words: Vec<_> = file(name).split_ascii_whitespace().collect();
        sight.insert(format!("file.{name}"), words.join(" ").replace('\0', " "));
    }
    for (name, value) in texts(&report["process"]) {
        let value = match (name, value) {
            ("pid", "1") | ("parent-pid", "0") => value,
            ("pid" | "parent-pid", _) => "of the host",
            _ => value,
        };
        sight.insert(format!("process.{name}"), value.to_owned());
    }
    namespaces(&report["namespaces"], joined, &mut sight);
    for (name, value) in texts(&report["descriptors"]) {
        let kind = value.split_once(":[").map_or(value, |(before, _)| before);
        sight.insert(format!("descriptor.{name}"), kind.to_owned());
    }
    network(&report["network"], &mut sight);
    for (part, name) in [
        ("devices", "device"),
        ("terminal", "terminal"),
        ("calls", "call"),
    ] {
        for (key, value) in texts(&report[part]) {
            sight.insert(format!("{name}.{key}"), value.to_owned());
        }
    }
    flat("path", &report["paths"], &mut sight);
    sight
}

fn texts(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    let members = object.as_object().into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

fn flat(name: &str, value: &Value, sight: &mut Sight) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                flat(&format!("{name}.{key}"), value, sight);
            }
        }
        _ => drop(sight.insert(name.to_owned(), value.as_str().unwrap_or("").to_owned())),
    }
}

fn status(text: &str, sight: &mut Sight) {
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if STATUS.contains(&name) {
            let words: Vec<_> = value.split_ascii_whitespace().collect();
            sight.insert(format!("status.{name}"), words.join(" "));
        }
    }
}

/// The table has columns of fixed widths: name, soft limit, hard limit, unit.
fn limits(text: &str, sight: &mut Sight) {
    for line in text.lines().skip(1) {
        let (name, values) = line.split_at_checked(26).unwrap_or((line, ""));
        let values: Vec<_> = values.split_ascii_whitespace().take(2).collect();
        sight.insert(format!("limit.{}", name.trim()), values.join(" "));
    }
}

/// Each variable by its name; the values of one that is there twice, in their order. (The kernel keeps an
/// order of all of them, but no program may rely on it.)
fn environment(text: &str, sight: &mut Sight) {
    for word in text.split('\0').filter(|it| !it.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, "no value"));
        let kept = sight.entry(format!("environment.{name}")).or_default();
        kept.push_str(value);
        kept.push(';');
    }
}

/// `N:CONTROLLERS:PATH`, as the process sees its path.
fn cgroups_seen(text: &str, sight: &mut Sight) {
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (fields.next(), fields.next()) {
            sight.insert(format!("cgroup-seen.{controllers}"), path.to_owned());
        }
    }
}

/// Every mount by its target; a second one on the same target ends in `#2`.
fn mounts(text: &str, sight: &mut Sight) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        let ([_, _, _, root, target, options, tags @ ..], [kind, source, rest @ ..]) =
            (&before[..], &after[..])
        else {
            continue;
        };
        let count = seen.entry(*target).or_default();
        *count += 1;
        let name = match count {
            1 => format!("mount {target}"),
            n => format!("mount {target} #{n}"),
        };
        let tags: Vec<_> = tags
            .iter()
            .map(|tag| tag.split_once(':').map_or(*tag, |(kind, _)| kind))
            .collect();
        let propagation = if tags.is_empty() {
            "private".to_owned()
        } else {
            tags.join(" ")
        };
        for (part, value) in [
            ("type", *kind),
            ("source", *source),
            ("root", *root),
            ("options", &sorted(options)),
            ("super", &sorted(&rest.join(" "))),
            ("propagation", &propagation),
        ] {
            sight.insert(format!("{name} {part}"), value.to_owned());
        }
    }
}

fn sorted(options: &str) -> String {
    let mut options: Vec<_> = options.split(',').collect();
    options.sort_unstable();
    options.join(",")
}

/// Whether each namespace is the host's, one that the case names, or a new one.
fn namespaces(links: &Value, joined: &[String], sight: &mut Sight) {
    let hosts = host_namespaces();
    for (name, link) in texts(links) {
        let kind = if hosts.get(name).is_some_and(|it| it == link) {
            "the host's"
        } else if joined.iter().any(|it| it == link) {
            "joined"
        } else {
            "new"
        };
        sight.insert(format!("namespace.{name}"), kind.to_owned());
    }
}

/// The namespaces of the calling thread's process.
fn host_namespaces() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir("/proc/self/ns").into_iter().flatten();
    entries
        .flatten()
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            Some((name, link.display().to_string()))
        })
        .collect()
}

fn network(part: &Value, sight: &mut Sight) {
    sight.insert(
        "network.loopback".into(),
        part["loopback"].as_str().unwrap_or("").to_owned(),
    );
    let table = part["/proc/self/net/dev"].as_str().unwrap_or("");
    let links: Vec<_> = host::link_names(table).into_iter().collect();
    sight.insert("network.links".into(), links.join(" "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_taken_apart() {
        let mut sight = Sight::new();
        let line = "24 30 0:22 / /proc rw,nosuid shared:12 master:1 - proc proc rw\n";
        mounts(&line.repeat(2), &mut sight);
        assert_eq!(sight["mount /proc options"], "nosuid,rw");
        assert_eq!(sight["mount /proc propagation"], "shared master");
        assert_eq!(sight["mount /proc #2 type"], "proc");
    }

    #[test]
    fn limits_have_names_with_blanks() {
        let mut sight = Sight::new();
        limits(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max cpu time              unlimited            7                    seconds   \n",
            &mut sight,
        );
        assert_eq!(sight["limit.Max cpu time"], "unlimited 7");
    }
}
