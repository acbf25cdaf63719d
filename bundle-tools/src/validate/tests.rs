//! One broken field at a time, and what is said about it.

use super::*;
use crate::generate;

/// A configuration without a fault.
fn config() -> Value {
    serde_json::from_slice(&generate::to_json(&generate::default_spec()).unwrap()).unwrap()
}

/// The findings after `value` was put at `path`, `null` removing what is there.
fn with(path: &str, value: &str) -> Vec<String> {
    let mut config = config();
    let (parent, key) = path.rsplit_once('/').unwrap();
    let value: Value = serde_json::from_str(value).unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        Value::Array(items) => match key.parse::<usize>() {
            Ok(at) if at < items.len() => items[at] = value,
            _ => items.push(value),
        },
        _ => panic!("{parent} holds nothing"),
    }
    validate_config(&config)
        .iter()
        .map(Problem::to_string)
        .collect()
}

#[test]
fn what_is_generated_has_no_fault() {
    assert_eq!(validate_config(&config()), []);
    let rootless = generate::to_json(&generate::default_rootless_spec()).unwrap();
    assert_eq!(
        validate_config(&serde_json::from_slice(&rootless).unwrap()),
        []
    );
    let image = crate::image::ImageConfig {
        config: crate::image::ContainerConfig {
            cmd: Some(vec!["sh".to_owned()]),
            ..Default::default()
        },
        ..Default::default()
    };
    let overrides = generate::Overrides {
        seccomp: true,
        ..Default::default()
    };
    let spec = generate::from_image(&image, Path::new("/nonexistent"), &overrides).unwrap();
    let spec = serde_json::from_slice(&generate::to_json(&spec).unwrap()).unwrap();
    assert_eq!(validate_config(&spec), []);
}

#[test]
fn every_fault_is_found_at_its_place() {
    let cases = [
        ("/ociVersion", "null", "error: /ociVersion: is required"),
        (
            "/ociVersion",
            "\"2.0.0\"",
            "error: /ociVersion: major version 2",
        ),
        (
            "/ociVersion",
            "\"1.x\"",
            "error: /ociVersion: \"1.x\" is no semantic",
        ),
        ("/ociVersion", "1", "error: /ociVersion: must be a string"),
        ("/root", "null", "error: /root: is required"),
        ("/root/path", "\"\"", "error: /root/path: is required"),
        ("/process", "null", "warning: /process: is missing"),
        (
            "/process/cwd",
            "\"tmp\"",
            "error: /process/cwd: \"tmp\" is not an absolute",
        ),
        ("/process/args", "[]", "error: /process/args: must have"),
        (
            "/process/args",
            "[\"\"]",
            "error: /process/args/0: the program's name",
        ),
        (
            "/process/args",
            "[1]",
            "error: /process/args/0: must be a string",
        ),
        (
            "/process/env",
            "[\"HOME\"]",
            "error: /process/env/0: \"HOME\" is not of the form",
        ),
        (
            "/process/env",
            "[\"A=1\",\"A=2\"]",
            "warning: /process/env/1: A is set twice",
        ),
        (
            "/process/user",
            r#"{"uid":4294967296}"#,
            "error: /process/user/uid: 4294967296",
        ),
        (
            "/process/user",
            r#"{"uid":-1}"#,
            "error: /process/user/uid: -1",
        ),
        (
            "/process/capabilities/bounding",
            r#"["CAP_FUTURE"]"#,
            "warning: /process/capabilities/bounding/0",
        ),
        (
            "/process/capabilities/ambient",
            r#"["CAP_KILL"]"#,
            "warning: /process/capabilities/ambient: CAP_KILL not in inher",
        ),
        (
            "/process/rlimits",
            r#"[{"type":"RLIMIT_X","soft":1,"hard":1}]"#,
            "error: /process/rlimits/0/type: \"RLIMIT_X\"",
        ),
        (
            "/process/rlimits",
            r#"[{"type":"RLIMIT_CPU","soft":2,"hard":1}]"#,
            "error: /process/rlimits/0/soft: is above",
        ),
        (
            "/process/oomScoreAdj",
            "1001",
            "error: /process/oomScoreAdj: 1001",
        ),
        (
            "/mounts/0",
            r#"{"destination":"proc","type":"proc"}"#,
            "error: /mounts/0/destination: \"proc\"",
        ),
        (
            "/mounts/0",
            r#"{"destination":"/x","options":["rbind"]}"#,
            "error: /mounts/0/source: a bind",
        ),
        (
            "/mounts/0",
            r#"{"destination":"/x"}"#,
            "error: /mounts/0/type: is required",
        ),
        (
            "/mounts/0",
            r#"{"type":"tmpfs"}"#,
            "error: /mounts/0/destination: is required",
        ),
        (
            "/hooks",
            r#"{"poststop":[{"path":"x"}]}"#,
            "error: /hooks/poststop/0/path: \"x\"",
        ),
        (
            "/hooks",
            r#"{"poststop":[{"path":"/bin/sh","timeout":0}]}"#,
            "error: /hooks/poststop/0/timeout: 0",
        ),
        (
            "/linux/namespaces",
            r#"[{"type":"mount"}]"#,
            "error: /hostname: needs a UTS",
        ),
        (
            "/linux/namespaces/9",
            r#"{"type":"pid"}"#,
            "error: /linux/namespaces/5/type: pid is there twice",
        ),
        (
            "/linux/namespaces/9",
            r#"{"type":"net"}"#,
            "error: /linux/namespaces/5/type: \"net\" is no namespace",
        ),
        (
            "/linux/uidMappings",
            r#"[{"containerID":0,"hostID":1,"size":1}]"#,
            "error: /linux/uidMappings: needs a user",
        ),
        (
            "/linux/uidMappings",
            r#"[{"containerID":1,"hostID":1,"size":1}]"#,
            "error: /process/user/uid: 0 is in none",
        ),
        (
            "/linux/maskedPaths",
            r#"["proc"]"#,
            "error: /linux/maskedPaths/0: \"proc\"",
        ),
        (
            "/linux/sysctl",
            r#"{"vm.swappiness":"1"}"#,
            "error: /linux/sysctl/vm.swappiness: does not belong",
        ),
        (
            "/linux/sysctl",
            r#"{"net/ipv4/x":"1\n2"}"#,
            "error: /linux/sysctl/net~1ipv4~1x: has a line break",
        ),
        (
            "/linux/sysctl",
            r#"{"kernel.hostname":"x"}"#,
            "error: /linux/sysctl/kernel.hostname: is set by",
        ),
        (
            "/linux/devices",
            r#"[{"path":"/dev/x","type":"c"}]"#,
            "error: /linux/devices/0/major: is required",
        ),
        (
            "/linux/resources",
            r#"{"memory":{"limit":2,"swap":1}}"#,
            "error: /linux/resources/memory/swap: is memory",
        ),
        (
            "/linux/resources",
            r#"{"cpu":{"cpus":"a"}}"#,
            "error: /linux/resources/cpu/cpus: \"a\"",
        ),
        (
            "/linux/resources",
            r#"{"devices":[{"allow":true,"access":"x"}]}"#,
            "error: /linux/resources/devices/0/access",
        ),
        (
            "/linux/timeOffsets",
            r#"{"boottime":{"secs":1}}"#,
            "error: /linux/timeOffsets: needs a time",
        ),
        (
            "/linux/seccomp",
            "{}",
            "error: /linux/seccomp/defaultAction: is required",
        ),
        (
            "/linux/seccomp",
            r#"{"defaultAction":"ALLOW"}"#,
            "error: /linux/seccomp/defaultAction: \"ALLOW\" is no action",
        ),
        (
            "/linux/seccomp",
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_ALLOW","errnoRet":1}]}"#,
            "error: /linux/seccomp/syscalls/0/errnoRet: only goes",
        ),
        (
            "/linux/seccomp",
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "error: /linux/seccomp/listenerPath: is required",
        ),
        (
            "/annotations",
            r#"{"a":1}"#,
            "error: /annotations/a: must be a string",
        ),
    ];
    for (path, value, expected) in cases {
        let findings = with(path, value);
        assert!(
            findings.iter().any(|finding| finding.starts_with(expected)),
            "{path} = {value}: {findings:#?}"
        );
    }
}

#[test]
fn fields_of_the_future_pass() {
    assert!(with("/linux/newThing", r#"{"a":[1]}"#).is_empty());
    assert!(with("/hostname", "null").is_empty());
    assert!(with("/mounts", "null").is_empty());
}

#[test]
fn bundles_are_looked_at_too() {
    let bundle = tempfile::tempdir().unwrap();
    let find = || {
        let problems = validate(bundle.path());
        problems
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    assert!(find().starts_with("error: read "), "{}", find());
    let path = bundle.path().join("config.json");
    std::fs::write(&path, "{\n\"a\":").unwrap();
    assert!(
        find().contains("is not JSON: EOF") && find().contains("line 2"),
        "{}",
        find()
    );
    std::fs::write(&path, "[]").unwrap();
    assert_eq!(find(), "error: the configuration must be an object");
    std::fs::write(&path, config().to_string()).unwrap();
    assert!(find().starts_with("error: /root/path: "), "{}", find());
    std::fs::create_dir(bundle.path().join("rootfs")).unwrap();
    assert_eq!(find(), "");
}
