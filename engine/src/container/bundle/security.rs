//! What a container may do: capabilities, seccomp, devices, masks.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bundle_tools::generate;
use oci_spec::runtime::{
    Capability, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, Spec,
};

use super::seccomp;
use crate::container::model::Options;
use crate::container::{Error, Result};

/// Every capability up to Linux 5.9, the last that added one.
const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Docker's default set, with `--cap-drop` and `--cap-add` applied; everything this machine can give with
/// `--privileged`.
pub(super) fn capabilities(options: &Options) -> Result<HashSet<Capability>> {
    let available = bounding_set();
    let all = || -> Result<HashSet<Capability>> {
        ALL_CAPABILITIES
            .into_iter()
            .map(capability)
            .collect::<Result<HashSet<_>>>()
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("all");
    let mut set = if options.privileged || options.cap_add.iter().any(is_all) {
        all()?
            .into_iter()
            .filter(|capability| available.contains(capability))
            .collect()
    } else {
        generate::default_capabilities()
    };
    if options.cap_drop.iter().any(is_all) {
        set.clear();
    }
    for name in options.cap_drop.iter().filter(|name| !is_all(name)) {
        set.remove(&capability(name)?);
    }
    for name in options.cap_add.iter().filter(|name| !is_all(name)) {
        set.insert(capability(name)?);
    }
    Ok(set)
}

/// All that this machine can give, sorted.
pub(crate) fn every_capability() -> Result<Vec<String>> {
    let privileged = Options {
        privileged: true,
        ..Options::default()
    };
    let mut names: Vec<String> = capabilities(&privileged)?
        .iter()
        .map(|capability| format!("CAP_{}", capability.to_string().trim_start_matches("CAP_")))
        .collect();
    names.sort();
    Ok(names)
}

fn capability(name: &str) -> Result<Capability> {
    let upper = name.to_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if !ALL_CAPABILITIES.contains(&bare) {
        return Err(Error::Invalid(format!("unknown capability {name:?}")));
    }
    serde_json::from_value(format!("CAP_{bare}").into())
        .map_err(|_| Error::Invalid(format!("unknown capability {name:?}")))
}

/// What this process could hand on at most. A capability beyond it would make the runtime fail.
fn bounding_set() -> HashSet<Capability> {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return HashSet::new();
    };
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    // Kernel numbers, linux/capability.h.
    const NUMBERED: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    NUMBERED
        .iter()
        .enumerate()
        .filter(|(number, _)| bits >> number & 1 == 1)
        .filter_map(|(_, name)| capability(name).ok())
        .collect()
}

/// Whether docker's default filter is to be loaded.
pub(super) fn wants_default_seccomp(options: &Options) -> bool {
    !options.privileged
        && seccomp_option(options).is_none_or(|value| value == "default" || value == "builtin")
}

fn seccomp_option(options: &Options) -> Option<&str> {
    options.security_opt.iter().find_map(|option| {
        option
            .strip_prefix("seccomp=")
            .or_else(|| option.strip_prefix("seccomp:"))
    })
}

pub(super) fn apply(options: &Options, spec: &mut Spec) -> Result<()> {
    security_options(options, spec)?;
    if options.privileged
        && let Some(linux) = spec.linux_mut()
    {
        linux.set_masked_paths(None);
        linux.set_readonly_paths(None);
    }
    devices(options, spec)
}

fn security_options(options: &Options, spec: &mut Spec) -> Result<()> {
    for option in &options.security_opt {
        let (key, value) = option
            .split_once(['=', ':'])
            .map_or((option.as_str(), None), |(key, value)| (key, Some(value)));
        match (key, value) {
            ("no-new-privileges", None | Some("true")) => {
                if let Some(process) = spec.process_mut() {
                    process.set_no_new_privileges(Some(true));
                }
            }
            ("no-new-privileges", Some("false")) => {}
            ("seccomp", Some("unconfined" | "default" | "builtin")) => {}
            ("seccomp", Some(profile)) => {
                let capabilities = capabilities(options)?;
                let profile = seccomp::profile(profile, &capabilities)?;
                if let Some(linux) = spec.linux_mut() {
                    linux.set_seccomp(Some(profile));
                }
            }
            ("apparmor", Some(profile)) => {
                if profile != "unconfined" && !Path::new("/sys/kernel/security/apparmor").exists() {
                    return Err(Error::Invalid(format!(
                        "cannot confine by --security-opt apparmor={profile}: this host has no AppArmor"
                    )));
                }
                if let Some(process) = spec.process_mut() {
                    process.set_apparmor_profile(
                        (profile != "unconfined").then(|| profile.to_owned()),
                    );
                }
            }
            // Without SELinux there is nothing to label, as in docker.
            ("label", Some(_)) => {}
            ("writable-cgroups", Some("true" | "false")) => {}
            ("systempaths", Some("unconfined")) => {
                if let Some(linux) = spec.linux_mut() {
                    linux.set_masked_paths(None);
                    linux.set_readonly_paths(None);
                }
            }
            _ => return Err(Error::Invalid(format!("unknown --security-opt {option:?}"))),
        }
    }
    Ok(())
}

/// Whether the options mean something; the host's devices are looked at.
pub(super) fn check(options: &Options) -> Result<()> {
    let is_all = |name: &str| name.eq_ignore_ascii_case("all");
    for name in options.cap_add.iter().chain(&options.cap_drop) {
        if !is_all(name) {
            capability(name)?;
        }
    }
    // The effects on a configuration that nobody will see.
    let mut nowhere = Spec::default();
    security_options(options, &mut nowhere)?;
    for rule in &options.device_rules {
        device_rule(rule)?;
    }
    Ok(())
}

/// `TYPE MAJOR:MINOR ACCESS`, where a number may be `*`.
fn device_rule(text: &str) -> Result<LinuxDeviceCgroup> {
    let invalid = || {
        Error::Invalid(format!(
            "invalid --device-cgroup-rule {text:?}: expected such as 'c 10:229 rwm'"
        ))
    };
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, numbers, access] = words[..] else {
        return Err(invalid());
    };
    let kind = match kind {
        "a" => LinuxDeviceType::A,
        "b" => LinuxDeviceType::B,
        "c" => LinuxDeviceType::C,
        _ => return Err(invalid()),
    };
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits => digits
            .parse::<u32>()
            .map(i64::from)
            .map(Some)
            .map_err(|_| invalid()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    let (major, minor) = (number(major)?, number(minor)?);
    if !access.chars().all(|letter| "rwm".contains(letter)) {
        return Err(invalid());
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true)
        .set_typ(Some(kind))
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.to_owned()));
    Ok(rule)
}

/// `--device HOST[:CONTAINER[:rwm]]`, and with `--privileged` all that the host has.
fn devices(options: &Options, spec: &mut Spec) -> Result<()> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if options.privileged {
        let everything: LinuxDeviceCgroup = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .access("rwm")
            .build()
            .map_err(|error| Error::Invalid(error.to_string()))?;
        rules.push(everything);
        devices.extend(host_devices());
    }
    for entry in &options.devices {
        let mut parts = entry.split(':');
        let source = parts.next().unwrap_or_default();
        let (destination, access) = match (parts.next(), parts.next()) {
            (None, _) => (source, "rwm"),
            (Some(access), None) if !access.starts_with('/') => (source, access),
            (Some(destination), access) => (destination, access.unwrap_or("rwm")),
        };
        if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
            return Err(Error::Invalid(format!(
                "bad --device {entry:?}: access is made of `r`, `w` and `m`"
            )));
        }
        let device = device(source, destination).ok_or_else(|| {
            Error::Invalid(format!(
                "bad --device {entry:?}: {source} is not a device of this host"
            ))
        })?;
        let mut rule = LinuxDeviceCgroup::from(&device);
        rule.set_access(Some(access.to_owned()));
        rules.push(rule);
        devices.push(device);
    }
    for rule in &options.device_rules {
        rules.push(device_rule(rule)?);
    }
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    linux.set_devices(Some(devices));
    Ok(())
}

fn device(source: &str, destination: &str) -> Option<LinuxDevice> {
    let metadata = fs::metadata(source).ok()?;
    let kind = if metadata.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if metadata.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    LinuxDeviceBuilder::default()
        .path(destination)
        .typ(kind)
        .major(i64::from(rustix::fs::major(metadata.rdev())))
        .minor(i64::from(rustix::fs::minor(metadata.rdev())))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .ok()
}

/// The devices directly in the host's `/dev`. Terminals are left out: each container has its own.
fn host_devices() -> Vec<LinuxDevice> {
    let Ok(entries) = fs::read_dir("/dev") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let path = path.to_str()?;
            if matches!(path, "/dev/console" | "/dev/tty" | "/dev/ptmx")
                || entry.metadata().ok()?.is_symlink()
            {
                return None;
            }
            device(path, path)
        })
        .collect()
}
