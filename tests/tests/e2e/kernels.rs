//! Older kernels: each system call that one may lack answers ENOSYS, one after the other and all together. What a container
//! is like must not depend on it.

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::calls::NUMBERS;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "kernels",
        &[Need::Root],
        [
            a_container_lives_without_any_one_call,
            a_container_lives_without_all_of_them,
            mounts_are_the_same_without_any_one_call,
            mounts_are_the_same_without_all_of_them,
            a_user_namespace_does_without_all_of_them,
            what_cannot_be_had_is_said,
        ]
    )
}

/// A runtime on a kernel without `calls`, separated by commas.
fn without(calls: &str) -> Runtime {
    Runtime::wrapped_in(&[env!("CARGO_BIN_EXE_without-calls"), calls])
}

fn all() -> String {
    NUMBERS.map(|(name, _)| name).join(",")
}

/// Runs `check` with each call missing; names the one it failed for.
fn each(check: impl Fn(&str)) {
    for (name, _) in NUMBERS {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(name)));
        assert!(result.is_ok(), "without {name}: see above");
    }
}

/// Create, start, exec, kill, delete.
fn lives(calls: &str) {
    let runtime = without(calls);
    let bundle = Bundle::sleeper();
    let id = runtime.id("old");
    runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    assert_eq!(runtime.state(&id)["status"], "created", "{calls}");
    runtime.run(&format!("start {id}")).ok();
    assert_eq!(runtime.state(&id)["status"], "running", "{calls}");
    let said = runtime.run(&format!("exec {id} cat /proc/1/comm"));
    assert_eq!(said.ok(), "sleep", "{calls}");
    // No descriptor of the runtime's is left to the program; the fourth is that of the directory read.
    let open = runtime.run(&format!("exec {id} ls /proc/self/fd"));
    assert_eq!(open.ok(), "0\n1\n2\n3", "{calls}");
    runtime.run(&format!("kill {id} KILL")).ok();
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

fn a_container_lives_without_any_one_call() {
    each(lives);
}

fn a_container_lives_without_all_of_them() {
    lives(&all());
}

/// A bundle with mounts of every sort that older kernels can make, which tells of them.
fn bundle() -> Bundle {
    let script = "while read id parent dev top rest; do echo \"$rest\"; done </proc/self/mountinfo; \
                  stat -c '%A %u %g %s %n' /filled /filled/*; ls /filled/below; cat /bound/file; ls /masked /tmp";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    let source = bundle.path().join("source");
    std::fs::create_dir_all(source.join("below")).unwrap();
    std::fs::write(source.join("file"), "from the host\n").unwrap();
    let rootfs = bundle.rootfs();
    for directory in ["filled/below", "masked", "masked2", "new"] {
        std::fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    std::fs::write(rootfs.join("filled/text"), "text").unwrap();
    std::fs::write(rootfs.join("masked/secret"), "secret").unwrap();
    std::os::unix::fs::symlink("/filled/../bound2", rootfs.join("link")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let bind = |to: &str, options: &[&str]| json!({"destination": to, "type": "bind", "source": "source", "options": options});
    let tmpfs = |to: &str, options: &[&str]| json!({"destination": to, "type": "tmpfs", "source": "tmpfs", "options": options});
    mounts.extend([
        bind("/bound", &["rbind", "ro", "nosuid", "rprivate"]),
        bind("/link", &["bind", "noexec", "nodev", "shared"]),
        bind("/as/it/is", &["rbind"]),
        json!({"destination": "/one", "type": "bind", "source": "source/file", "options": ["bind", "ro"]}),
        tmpfs("/filled", &["tmpcopyup", "ro", "size=1m"]),
        tmpfs("/new", &["noatime", "unbindable", "nosuid"]),
    ]);
    let linux = &mut bundle.config["linux"];
    for (list, paths) in [
        (
            "maskedPaths",
            &["/masked", "/masked2", "/masked/", "/one"][..],
        ),
        ("readonlyPaths", &["/etc"]),
    ] {
        let list: &mut Vec<Value> = linux[list].as_array_mut().unwrap();
        list.extend(paths.iter().map(|&path| Value::from(path)));
    }
    bundle.config["root"]["readonly"] = true.into();
    bundle.save();
    bundle
}

/// What the container of [`bundle`] tells, in a form that is the same for the same mounts.
fn told(runtime: &Runtime, bundle: &Bundle) -> Vec<String> {
    let id = runtime.id("told");
    let path = bundle.path().display().to_string();
    let said = runtime.run(&format!("run --bundle {path} {id}"));
    // Numbers of peer groups differ from run to run; old kernels cannot share the tmpfs of masked directories.
    let lines = said.ok().lines().map(|line| {
        let words = line.split(' ').map(|word| match word.split_once(':') {
            Some((kind @ ("shared" | "master"), _)) => kind,
            _ => word,
        });
        words.collect::<Vec<_>>().join(" ")
    });
    lines.filter(|line| !line.starts_with("total")).collect()
}

fn same_mounts(calls: &str) {
    let bundle = bundle();
    let expected = told(&Runtime::new(), &bundle);
    assert!(
        expected
            .iter()
            .any(|line| line.starts_with("/bound ro,nosuid"))
    );
    assert!(
        expected
            .iter()
            .any(|line| line.starts_with("/bound2 ") && line.contains("shared"))
    );
    assert!(expected.iter().any(|line| line == "from the host"));
    assert!(!expected.iter().any(|line| line.contains("secret")));
    assert_eq!(told(&without(calls), &bundle), expected, "{calls}");
}

fn mounts_are_the_same_without_any_one_call() {
    each(same_mounts);
}

fn mounts_are_the_same_without_all_of_them() {
    same_mounts(&all());
}

fn a_user_namespace_does_without_all_of_them() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/self/uid_map; cat /in/file"]);
    let closed = bundle.path().join("closed");
    std::fs::create_dir_all(closed.join("in")).unwrap();
    std::fs::write(closed.join("in/file"), "open\n").unwrap();
    super::mounts::close(&closed);
    super::mounts::map_users(&mut bundle);
    let mount =
        json!({"destination": "/in", "type": "bind", "source": "closed/in", "options": ["bind"]});
    let bundle = bundle.with("/mounts/-", mount);
    for calls in [all(), "open_tree".into(), "move_mount,openat2".into()] {
        let runtime = without(&calls);
        let said = runtime.run_bundle(&bundle);
        let lines: Vec<&str> = said.ok().lines().map(str::trim).collect();
        assert!(lines[0].ends_with("65536"), "{calls}: {lines:?}");
        assert_eq!(lines[1..], ["open"], "{calls}");
    }
}

fn what_cannot_be_had_is_said() {
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
    let mapped = json!({"destination": "/in", "type": "bind", "source": "rootfs", "options": ["bind"],
        "uidMappings": mapping, "gidMappings": mapping});
    let tree = json!({"destination": "/in", "type": "bind", "source": "rootfs", "options": ["rbind", "rro"]});
    for (mount, text) in [
        (mapped, "id-mapped mounts take Linux 5.12"),
        (tree, "attributes of a whole tree take Linux 5.12"),
    ] {
        let bundle = Bundle::new(&["true"]).with("/mounts/-", mount);
        let runtime = without("mount_setattr");
        runtime.run_bundle(&bundle).code(1).err(text);
        runtime.assert_nothing_left();
    }
    // The old call does not say what is wrong.
    let coloured =
        json!({"destination": "/x", "type": "tmpfs", "source": "t", "options": ["colour=blue"]});
    let bundle = Bundle::new(&["true"]).with("/mounts/-", coloured);
    let refused = without("fsopen").run_bundle(&bundle);
    refused
        .code(1)
        .err("rootfs at \\\"/x\\\": mount: invalid argument");
}
