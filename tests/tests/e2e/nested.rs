//! `qrun` in a container of `qrun`'s: in a privileged one, in user namespaces, and where cgroups or `/proc` are cut down.

use serde_json::{Value, json};
use stack_tests::bundle::{Bundle, unpack_busybox};
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::user::{COUNT, USERS, give_to};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "nested",
        &[Need::Root],
        [
            in_a_privileged_container,
            in_a_privileged_container_with_a_user_namespace_inside,
            in_a_user_namespace,
            in_user_namespaces_in_one_another,
            in_a_user_namespace_with_cgroups_read_only,
            in_a_user_namespace_without_cgroups,
            without_cgroups_only_if_told_so,
            a_hidden_proc_is_told_of,
            a_root_behind_closed_directories,
            mappings_beside_a_namespace_to_join_are_its_own,
        ]
    )
}

/// What the outer container is like.
#[derive(Default)]
struct Outside {
    /// Whether it has a user namespace.
    users: bool,
    /// What becomes of its cgroup mount.
    cgroups: Cgroups,
    /// Whether parts of its `/proc` are hidden and read-only.
    hides_proc: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Cgroups {
    #[default]
    Writable,
    ReadOnly,
    Absent,
}

/// A container with all the rights that it can have, in which `script` runs; `/in` there is a bundle, of `inner`.
fn outer(outside: &Outside, inner: &Value, script: &str) -> Bundle {
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    let all = CAPABILITIES;
    let rootfs = bundle.rootfs();
    let config = &mut bundle.config;
    config["process"]["noNewPrivileges"] = false.into();
    config["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all});
    config["linux"]["resources"] = json!({});
    if !outside.hides_proc {
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
    }
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| {
        outside.cgroups != Cgroups::Absent || mount["destination"] != "/sys/fs/cgroup"
    });
    for mount in mounts {
        let writable = outside.cgroups == Cgroups::Writable;
        if writable && mount["destination"].as_str().unwrap().starts_with("/sys") {
            mount["options"] = json!(["nosuid", "noexec", "nodev"]);
        }
    }
    unpack_busybox(&rootfs.join("in/rootfs")).unwrap();
    stack_tests::executable::copy(&built("qrun"), &rootfs.join("bin/qrun"));
    std::fs::write(rootfs.join("in/config.json"), inner.to_string()).unwrap();
    std::fs::create_dir_all(rootfs.join("run")).unwrap();
    if outside.users {
        in_user_namespace(config, USERS, COUNT);
        give_to(&rootfs, USERS);
    }
    bundle.save();
    bundle
}

/// What setting a container up takes.
const CAPABILITIES: [&str; 17] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
];

/// Gives a configuration a user namespace.
fn in_user_namespace(config: &mut Value, first: u32, size: u32) {
    let linux = config["linux"].as_object_mut().unwrap();
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": first, "size": size}]);
    linux.insert("uidMappings".into(), map.clone());
    linux.insert("gidMappings".into(), map);
}

/// The inner container's configuration.
fn inner() -> Value {
    let mut config = Bundle::new(&["sh", "-c", "echo inside $(id -u) $$"]).config;
    // Those that nobody has in a container.
    config["process"]["capabilities"] = json!({});
    config
}

/// What an inner `qrun run` prints, and `qrun create`, `start` and `delete` after it.
#[track_caller]
fn said(outside: &Outside, inner: &Value, flags: &str) -> String {
    let script = format!(
        "cd /in; qrun {flags} run a 2>&1; qrun {flags} create b > /log 2>&1 && qrun start b && qrun delete -f b && echo deleted; \
         qrun list -q"
    );
    let (runtime, bundle) = (Runtime::new(), outer(outside, inner, &script));
    let outcome = runtime.run_bundle(&bundle);
    format!("{}{}", outcome.stdout, outcome.stderr)
}

const WORKS: &str = "inside 0 1\ndeleted\n";

fn in_a_privileged_container() {
    assert_eq!(said(&Outside::default(), &inner(), ""), WORKS);
}

fn in_a_privileged_container_with_a_user_namespace_inside() {
    let mut config = inner();
    in_user_namespace(&mut config, 0, 1000);
    assert_eq!(said(&Outside::default(), &config, ""), WORKS);
}

fn in_a_user_namespace() {
    let outside = Outside {
        users: true,
        hides_proc: true,
        ..Outside::default()
    };
    assert_eq!(said(&outside, &inner(), ""), WORKS);
}

fn in_user_namespaces_in_one_another() {
    let outside = Outside {
        users: true,
        ..Outside::default()
    };
    let mut config = inner();
    in_user_namespace(&mut config, 5, 1000);
    // Root inside is another there, who may not look into a directory of root's.
    config["root"]["path"] = "rootfs".into();
    assert_eq!(said(&outside, &config, ""), WORKS);
}

fn in_a_user_namespace_with_cgroups_read_only() {
    let outside = Outside {
        users: true,
        cgroups: Cgroups::ReadOnly,
        ..Outside::default()
    };
    assert_eq!(said(&outside, &inner(), ""), WORKS);
}

fn in_a_user_namespace_without_cgroups() {
    let outside = Outside {
        users: true,
        cgroups: Cgroups::Absent,
        ..Outside::default()
    };
    assert_eq!(said(&outside, &inner(), ""), WORKS);
}

fn without_cgroups_only_if_told_so() {
    let outside = Outside {
        cgroups: Cgroups::Absent,
        ..Outside::default()
    };
    let refused = said(&outside, &inner(), "");
    assert!(
        refused.contains("no cgroup hierarchy is mounted"),
        "{refused}"
    );
    assert_eq!(said(&outside, &inner(), "--rootless=true"), WORKS);
}

fn a_hidden_proc_is_told_of() {
    let outside = Outside {
        users: true,
        hides_proc: true,
        ..Outside::default()
    };
    let mut config = inner();
    in_user_namespace(&mut config, 0, 1000);
    let refused = said(&outside, &config, "");
    assert!(
        refused.contains("operation not permitted (in a user namespace this takes"),
        "{refused}"
    );
}

fn a_root_behind_closed_directories() {
    use std::os::unix::fs::PermissionsExt;
    let bundle = Bundle::new(&["sh", "-c", "id -u; cat /mnt/it"]);
    let mut config = bundle.config.clone();
    in_user_namespace(&mut config, USERS, COUNT);
    let shut = bundle.path().join("shut");
    std::fs::create_dir(&shut).unwrap();
    std::fs::rename(bundle.rootfs(), shut.join("rootfs")).unwrap();
    give_to(&shut.join("rootfs"), USERS);
    std::fs::create_dir(shut.join("volume")).unwrap();
    std::fs::write(shut.join("volume/it"), "there\n").unwrap();
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o700)).unwrap();
    config["root"]["path"] = "shut/rootfs".into();
    config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/mnt", "type": "bind",
        "source": shut.join("volume"), "options": ["rbind", "ro"]}));
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let runtime = Runtime::new();
    assert_eq!(runtime.run_bundle(&bundle).ok(), "0\nthere");
}

fn mappings_beside_a_namespace_to_join_are_its_own() {
    let (runtime, first) = (Runtime::new(), Bundle::sleeper());
    let mut config = first.config.clone();
    in_user_namespace(&mut config, USERS, COUNT);
    give_to(&first.rootfs(), USERS);
    std::fs::write(first.path().join("config.json"), config.to_string()).unwrap();
    let id = runtime.started("a", &first);
    let users = format!("/proc/{}/ns/user", runtime.state(&id)["pid"]);
    let second = Bundle::new(&["sh", "-c", "cat /proc/self/uid_map"]);
    give_to(&second.rootfs(), USERS);
    let joining = |base: u32| {
        let mut config = second.config.clone();
        in_user_namespace(&mut config, base, COUNT);
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        let own = namespaces.iter_mut().find(|it| it["type"] == "user");
        own.unwrap()["path"] = users.clone().into();
        std::fs::write(second.path().join("config.json"), config.to_string()).unwrap();
        runtime.run_bundle(&second)
    };
    let same = joining(USERS);
    let seen: Vec<u32> = same
        .ok()
        .split_whitespace()
        .map(|it| it.parse().unwrap())
        .collect();
    assert_eq!(seen, [0, USERS, COUNT]);
    joining(USERS + 1)
        .code(1)
        .err("both namespace path and non-matching mapping specified");
}
