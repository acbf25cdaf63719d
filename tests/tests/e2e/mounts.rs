//! The file system tree of a container: what options do, ids, propagation, and what is refused.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::{shell, tool};
use stack_tests::host;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "mounts",
        &[Need::Root],
        [
            binds_have_the_flags_asked_for,
            locked_flags_are_kept_or_told,
            trees_get_their_attributes_whole,
            sources_may_be_closed_and_lie_in_the_container,
            a_tmpfs_takes_the_permissions_of_its_place,
            propagation_of_the_root,
            masked_once,
            what_is_refused_leaves_nothing,
            in_the_callers_mount_namespace,
            a_failure_in_the_callers_mount_namespace_leaves_no_mount,
            namespaces_are_joined_before_a_user_namespace_is_made,
        ]
    );
    // All files of the virtual machine are on a tmpfs or shared: those have no id-mapped mounts on its kernel.
    let host = &[Need::Root, Need::Host];
    all.extend(tests!("mounts", host, [ids_are_mapped_as_asked_for]));
    all
}

/// The first host id of the containers' users.
const FIRST: u32 = 100_000;

/// Gives a bundle a user namespace, and its files to the users in it.
pub(crate) fn map_users(bundle: &mut Bundle) {
    let mapping = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    let linux = &mut bundle.config["linux"];
    linux["uidMappings"] = mapping.clone();
    linux["gidMappings"] = mapping;
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    bundle.save();
    let files = format!("chown -R -h {FIRST}:{FIRST} {}", bundle.rootfs().display());
    shell(&files);
    // The way to it.
    std::fs::set_permissions(bundle.path(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// Closes a directory to everybody but root.
pub(crate) fn close(directory: &Path) {
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).unwrap();
    chown(directory, Some(4242), Some(4242)).unwrap();
}

/// A bind mount of `source` on `/in`.
fn bind(source: &str, options: &[&str]) -> Value {
    json!({"destination": "/in", "type": "bind", "source": source, "options": options})
}

/// Runs a bundle to its end and gives what it said.
fn run(bundle: &Bundle) -> String {
    Runtime::new().run_bundle(bundle).ok().to_owned()
}

/// A tmpfs of the host, in a bundle's directory `source`; gone when dropped.
struct OfHost(PathBuf);

impl OfHost {
    fn new(bundle: &Bundle, options: &str) -> Self {
        let path = bundle.path().join("source");
        std::fs::create_dir_all(&path).unwrap();
        let mount = Self(path);
        mount.mount(&["-t", "tmpfs", "tmpfs"]);
        // Of this mount, not of its file system.
        mount.mount(&["-o", &format!("bind,remount,{options}")]);
        mount
    }

    fn mount(&self, arguments: &[&str]) {
        let path = self.0.display().to_string();
        tool("mount", &[arguments, &[path.as_str()]].concat());
    }
}

impl Drop for OfHost {
    fn drop(&mut self) {
        host::unmount_below(&self.0);
    }
}

/// The options of the mount on `/in` of a bundle's container.
fn options_of(bundle: Bundle, options: &[&str]) -> String {
    let bundle = bundle.with("/mounts/-", bind("source", options));
    let of_host = OfHost::new(&bundle, "nosuid,nodev,noatime");
    let table = run(&bundle);
    drop(of_host);
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(1) == Some("/in"));
    line.unwrap().split(' ').nth(3).unwrap().to_owned()
}

fn binds_have_the_flags_asked_for() {
    for (options, expected) in [
        (&["bind"][..], "rw,nosuid,nodev,noatime"),
        (&["bind", "ro"], "ro,noatime"),
        (&["bind", "noexec"], "rw,noexec,noatime"),
        (&["bind", "dev"], "rw,noatime"),
        (&["bind", "atime"], "rw,noatime"),
        (&["bind", "relatime"], "rw,relatime"),
        (&["bind", "nodiratime"], "rw,nodiratime,relatime"),
        (&["bind", "strictatime", "nosuid"], "rw,nosuid"),
        (&["bind", "nosymfollow"], "rw,noatime,nosymfollow"),
    ] {
        let found = options_of(Bundle::new(&["cat", "/proc/self/mounts"]), options);
        assert!(
            found == expected || found.starts_with(&format!("{expected},")),
            "{options:?}: {found}"
        );
    }
}

fn locked_flags_are_kept_or_told() {
    let bundle = || {
        let mut bundle = Bundle::new(&["cat", "/proc/self/mounts"]);
        map_users(&mut bundle);
        bundle
    };
    for (options, expected) in [
        (&["bind", "ro"][..], "ro,nosuid,nodev,noatime"),
        (
            &["bind", "noexec", "noatime"],
            "rw,nosuid,nodev,noexec,noatime",
        ),
    ] {
        let found = options_of(bundle(), options);
        assert!(found.starts_with(expected), "{options:?}: {found}");
    }
    for (option, text) in [
        (
            "dev",
            "cannot clear locked flags MS_NODEV: operation not permitted",
        ),
        (
            "relatime",
            "cannot change locked atime flags MS_NOATIME: operation not permitted",
        ),
    ] {
        let bundle = bundle().with("/mounts/-", bind("source", &["bind", option]));
        let _of_host = OfHost::new(&bundle, "nosuid,nodev,noatime");
        let runtime = Runtime::new();
        runtime.run_bundle(&bundle).code(1).err(text);
    }
}

fn trees_get_their_attributes_whole() {
    let script = "touch /in/file || echo top; touch /in/below/file || echo below";
    for (option, expected) in [("ro", "top"), ("rro", "top\nbelow")] {
        let bundle = Bundle::new(&["sh", "-c", script])
            .with("/mounts/-", bind("source", &["rbind", option]));
        let of_host = OfHost::new(&bundle, "nosuid");
        std::fs::create_dir(of_host.0.join("below")).unwrap();
        let below = of_host.0.join("below").display().to_string();
        tool("mount", &["-t", "tmpfs", "tmpfs", &below]);
        assert_eq!(run(&bundle), expected, "{option}");
    }
}

fn ids_are_mapped_as_asked_for() {
    let mapping =
        |inside: u32, outside: u32| json!([{"containerID": inside, "hostID": outside, "size": 10}]);
    for (users, options, own, expected) in [
        (false, &["bind"][..], true, "2003:3004"),
        (true, &["bind"], true, "65534:65534"),
        (true, &["bind", "idmap"], false, "3:4"),
    ] {
        let mut bundle = Bundle::new(&["stat", "-c", "%u:%g", "/in/file"]);
        let source = bundle.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "").unwrap();
        chown(source.join("file"), Some(3), Some(4)).unwrap();
        if users {
            map_users(&mut bundle);
        }
        let mut mount = bind("source", options);
        if own {
            mount["uidMappings"] = mapping(0, 2000);
            mount["gidMappings"] = mapping(0, 3000);
        }
        let bundle = bundle.with("/mounts/-", mount);
        assert_eq!(run(&bundle), expected, "{users} {options:?}");
    }
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["true"]).with("/mounts/-", bind("rootfs", &["bind", "idmap"]));
    runtime
        .run_bundle(&bundle)
        .code(1)
        .err("id-mapped mounts must have both uid and gid mappings specified");
}

fn sources_may_be_closed_and_lie_in_the_container() {
    let mut bundle = Bundle::new(&["cat", "/second/deep/file"]);
    let closed = bundle.path().join("closed");
    std::fs::create_dir_all(closed.join("first")).unwrap();
    std::fs::create_dir_all(closed.join("deep")).unwrap();
    std::fs::write(closed.join("deep/file"), "found").unwrap();
    std::fs::create_dir(closed.join("first/deep")).unwrap();
    map_users(&mut bundle);
    close(&closed);
    let rootfs = bundle.rootfs().display().to_string();
    let mount =
        |source: &str, to: &str| json!({"destination": to, "source": source, "options": ["rbind"]});
    let bundle = bundle
        .with("/mounts/-", mount("closed/first", "/first"))
        .with("/mounts/-", mount("closed/deep", "/first/deep"))
        // What it is depends on the mounts before it.
        .with(
            "/mounts/-",
            mount(&format!("{rootfs}/first"), &format!("{rootfs}/second")),
        );
    assert_eq!(run(&bundle), "found");
}

fn a_tmpfs_takes_the_permissions_of_its_place() {
    let mount = |options: Value| json!({"destination": "/place", "type": "tmpfs", "source": "tmpfs", "options": options});
    for (exists, options, expected) in [
        (true, json!([]), "710"),
        (true, json!(["mode=1500"]), "1500"),
        (false, json!([]), "1777"),
    ] {
        let bundle = Bundle::new(&["stat", "-c", "%a", "/place"]);
        if exists {
            let place = bundle.rootfs().join("place");
            std::fs::create_dir(&place).unwrap();
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o710)).unwrap();
        }
        assert_eq!(run(&bundle.with("/mounts/-", mount(options))), expected);
    }
}

fn propagation_of_the_root() {
    for (name, shared) in [("shared", true), ("rprivate", false), ("slave", false)] {
        let bundle = Bundle::new(&["cat", "/proc/self/mountinfo"])
            .with("/linux/rootfsPropagation", name.into());
        let said = run(&bundle);
        let root = said
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"))
            .unwrap();
        assert_eq!(root.contains(" shared:"), shared, "{name}: {root}");
        // Nothing came back to the host.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = bundle.path().display().to_string();
        assert!(!table.contains(&place), "{name}: {table}");
    }
}

fn masked_once() {
    let bundle = Bundle::new(&["cat", "/proc/self/mounts"]);
    std::fs::create_dir(bundle.rootfs().join("secret")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("secret2")).unwrap();
    let paths = json!(["/secret", "/secret/", "//secret", "/secret2"]);
    let said = run(&bundle.with("/linux/maskedPaths", paths));
    let count = |path: &str| {
        said.lines()
            .filter(|line| line.split(' ').nth(1) == Some(path))
            .count()
    };
    assert_eq!((count("/secret"), count("/secret2")), (1, 1), "{said}");
}

fn what_is_refused_leaves_nothing() {
    let tmpfs = |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "source": "tmpfs", "options": options});
    for (mount, text) in [
        (tmpfs("/", &[]), "is on the top of rootfs"),
        (tmpfs("/up", &[]), "is on the top of rootfs"),
        (
            tmpfs("/proc/self/attr", &[]),
            "cannot be mounted because it is inside /proc",
        ),
        (
            tmpfs("/hidden", &[]),
            "cannot be mounted because it is inside /proc",
        ),
        (
            tmpfs("/x", &["colour=blue"]),
            "Unknown parameter 'colour': invalid argument",
        ),
        (bind("nowhere", &["bind"]), "no such file or directory"),
        (
            bind("config.json", &["bind", "size=1"]),
            "filesystem-specific options",
        ),
        (
            json!({"destination": "/bin", "source": "config.json", "options": ["bind"]}),
            "not a directory",
        ),
        (
            json!({"destination": "/proc", "source": "rootfs", "options": ["bind"]}),
            "is not of type proc",
        ),
        (
            json!({"destination": "/aproc", "type": "proc", "source": "proc"}),
            "must be mounted on ordinary directory",
        ),
    ] {
        let bundle = Bundle::new(&["true"]).with("/mounts/-", mount.clone());
        symlink("/", bundle.rootfs().join("up")).unwrap();
        symlink("/proc/sys/kernel", bundle.rootfs().join("hidden")).unwrap();
        symlink("/bin", bundle.rootfs().join("aproc")).unwrap();
        let runtime = Runtime::new();
        runtime.run_bundle(&bundle).code(1).err(text);
        runtime.assert_nothing_left();
    }
}

/// A bundle without a mount namespace, and without what takes one.
fn without_a_mount_namespace(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let linux = &mut bundle.config["linux"];
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|it| it["type"] != "mount");
    linux["maskedPaths"] = json!([]);
    linux["readonlyPaths"] = json!([]);
    bundle.save();
    bundle
}

/// Without a mount namespace, in one that is thrown away.
fn in_the_callers_mount_namespace() {
    let script = "ls -d /proc/self && readlink /proc/self/ns/mnt";
    let bundle = without_a_mount_namespace(&["sh", "-c", script]);
    let runtime = Runtime::wrapped_in(&["unshare", "--mount", "--propagation", "unchanged"]);
    let said = runtime.run_bundle(&bundle);
    assert!(
        said.ok().starts_with("/proc/self\nmnt:["),
        "{}",
        said.report()
    );
    let masked = bundle.with("/linux/maskedPaths", json!(["/x"]));
    runtime
        .run_bundle(&masked)
        .code(1)
        .err("unable to restrict sys entries without a private MNT namespace");
}

/// Without a mount namespace the root's mounts do not end with a process that could not be set up.
fn a_failure_in_the_callers_mount_namespace_leaves_no_mount() {
    let mut bundle = without_a_mount_namespace(&["no-such-program"]);
    let rootfs = bundle.rootfs().canonicalize().unwrap();
    // Says how many mounts are left before the namespace ends.
    let script = format!(
        "\"$@\"; code=$?; echo left $(grep -c ' {}[/ ]' /proc/self/mountinfo); exit $code",
        rootfs.display()
    );
    let wrapper = [
        "unshare",
        "--mount",
        "--propagation",
        "unchanged",
        "sh",
        "-c",
        &script,
        "sh",
    ];
    let missing = json!({"source": "/no/such/source", "destination": "/x", "type": "bind", "options": ["bind"]});
    // The first one fails when its rights to unmount are gone already.
    for (mount, text) in [
        (None, "no-such-program"),
        (Some(missing), "/no/such/source"),
    ] {
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .extend(mount);
        bundle.save();
        let runtime = Runtime::wrapped_in(&wrapper);
        runtime.run_bundle(&bundle).code(1).err(text).out("left 0");
        runtime.assert_nothing_left();
    }
}

fn namespaces_are_joined_before_a_user_namespace_is_made() {
    let mut bundle = Bundle::new(&["readlink", "/proc/self/ns/ipc"]);
    let own = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    for namespace in namespaces.iter_mut().filter(|it| it["type"] == "ipc") {
        namespace["path"] = "/proc/self/ns/ipc".into();
    }
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "mqueue");
    map_users(&mut bundle);
    assert_eq!(run(&bundle), own.to_str().unwrap());
}
