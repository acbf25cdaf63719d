//! `--security-opt seccomp=FILE`: a profile in docker's form, or in the runtime specification's.
//!
//! Docker's form has conditions (`includes`, `excludes`) and families of architectures (`archMap`), which are decided
//! here, for this machine and the container's capabilities; what is left is the runtime specification's form.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::container::{Error, Result};

/// What decides whether a rule of docker's form applies.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conditions {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: String,
}

/// The profile of which `text` is the JSON.
pub(super) fn profile(text: &str, capabilities: &HashSet<Capability>) -> Result<LinuxSeccomp> {
    let invalid =
        |reason: String| Error::Invalid(format!("the seccomp profile can't be used: {reason}"));
    let mut profile: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    if let Some(families) = profile.remove("archMap") {
        let own = families_of(&families);
        if !own.is_empty() {
            if profile.contains_key("architectures") {
                return Err(invalid("`architectures` beside `archMap`".to_owned()));
            }
            profile.insert("architectures".to_owned(), own.into());
        }
    }
    let mut rules = Vec::new();
    if let Some(Value::Array(given)) = profile.remove("syscalls") {
        for rule in given {
            let Value::Object(mut rule) = rule else {
                return Err(invalid("an entry of `syscalls` is no object".to_owned()));
            };
            let mut conditions = |key| -> Result<Conditions> {
                match rule.remove(key) {
                    None | Some(Value::Null) => Ok(Conditions::default()),
                    Some(value) => serde_json::from_value(value)
                        .map_err(|error| invalid(format!("`{key}`: {error}"))),
                }
            };
            let (includes, excludes) = (conditions("includes")?, conditions("excludes")?);
            if applies(&includes, &excludes, capabilities) {
                rules.push(Value::Object(in_plain_form(rule)));
            }
        }
    }
    profile.insert("syscalls".to_owned(), rules.into());
    profile.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(profile)).map_err(|error| invalid(error.to_string()))
}

/// The single `name` of old profiles, and what docker writes as null.
fn in_plain_form(mut rule: Map<String, Value>) -> Map<String, Value> {
    if let Some(name) = rule.remove("name").filter(Value::is_string) {
        rule.insert("names".to_owned(), json!([name]));
    }
    rule.remove("comment");
    rule.retain(|_, value| !value.is_null());
    rule
}

/// The entry of `archMap` for this machine, with its sub-architectures.
fn families_of(families: &Value) -> Vec<Value> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "SCMP_ARCH_X86_64",
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "s390x" => "SCMP_ARCH_S390X",
        "powerpc64" => "SCMP_ARCH_PPC64LE",
        _ => return Vec::new(),
    };
    let mut list = Vec::new();
    for family in families.as_array().into_iter().flatten() {
        if family["architecture"] == own {
            list.push(family["architecture"].clone());
            list.extend(
                family["subArchitectures"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
    }
    list
}

fn applies(
    includes: &Conditions,
    excludes: &Conditions,
    capabilities: &HashSet<Capability>,
) -> bool {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    let here = |arches: &[String]| arches.iter().any(|it| it == architecture);
    let held = |name: &String| {
        serde_json::from_value::<Capability>(name.as_str().into())
            .is_ok_and(|capability| capabilities.contains(&capability))
    };
    (includes.arches.is_empty() || here(&includes.arches))
        && !here(&excludes.arches)
        && includes.caps.iter().all(held)
        && !excludes.caps.iter().any(held)
        && (includes.min_kernel.is_empty() || kernel() >= release(&includes.min_kernel))
        && (excludes.min_kernel.is_empty() || kernel() < release(&excludes.min_kernel))
}

fn kernel() -> (u32, u32) {
    release(&rustix::system::uname().release().to_string_lossy())
}

fn release(text: &str) -> (u32, u32) {
    let mut numbers = text
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"name": "write", "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.1"}},
                {"names": ["s390_call"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390", "s390x"]}}
            ]
        }"#;
        let names = |capabilities: &[Capability]| -> Vec<String> {
            let set = capabilities.iter().copied().collect();
            let profile = profile(text, &set).unwrap();
            let rules = profile.syscalls().clone().unwrap();
            rules.iter().flat_map(|rule| rule.names().clone()).collect()
        };
        assert_eq!(names(&[]), ["read", "write", "clone"]);
        assert_eq!(names(&[Capability::SysAdmin]), ["read", "write", "mount"]);
        assert!(profile("{}", &HashSet::new()).is_err());
        assert!(profile("[]", &HashSet::new()).is_err());
    }
}
