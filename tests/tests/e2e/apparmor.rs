//! `qrun` and AppArmor, where the kernel has it switched on: the virtual machine's has.

use std::fs;
use std::path::Path;

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::tool;
use stack_tests::executable;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "process_apparmor",
        &[Need::Root, Need::AppArmor, Need::Program("apparmor_parser")],
        [
            a_profile_confines_run_and_exec,
            a_profile_that_is_not_loaded_is_told
        ]
    )
}

/// A profile in the kernel, until this is dropped.
struct Profile {
    directory: tempfile::TempDir,
}

impl Profile {
    /// Loads a profile that forbids writing to one file.
    fn load(name: &str, forbidden: &str) -> Self {
        let securityfs = Path::new("/sys/kernel/security");
        if !securityfs.join("apparmor").exists() {
            let place = "/sys/kernel/security";
            tool("mount", &["-t", "securityfs", "securityfs", place]);
        }
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{\n  file,\n  capability,\n  signal,\n  deny {forbidden} w,\n}}\n"
        );
        fs::write(directory.path().join("profile"), text).unwrap();
        let profile = Self { directory };
        profile.parse("--replace");
        profile
    }

    fn parse(&self, action: &str) {
        let file = self.directory.path().join("profile");
        let file = file.to_str().unwrap();
        tool("apparmor_parser", &["--skip-cache", action, file]);
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parse("--remove");
    }
}

/// A bundle with a profile, and `/bin/try`, which tells its confinement and which of two files it can write.
fn confined(arguments: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(arguments).with("/process/apparmorProfile", json!("qstack-first"));
    let mount = json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"});
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
    bundle.save();
    let file = bundle.rootfs().join("bin/try");
    let script = "#!/bin/sh\ncat /proc/self/attr/current\n\
        for name in first second; do echo x > /tmp/$name && echo $name; done; true\n";
    executable::script(&file, script);
    bundle
}

fn a_profile_confines_run_and_exec() {
    let _first = Profile::load("qstack-first", "/tmp/first");
    let _second = Profile::load("qstack-second", "/tmp/second");
    let runtime = Runtime::new();
    let first = "qstack-first (enforce)\nsecond";
    let outcome = runtime.run_bundle(&confined(&["try"]));
    assert_eq!(outcome.ok(), first);
    outcome.err("can't create /tmp/first: Permission denied");

    let sleeper = confined(&["sleep", "1000"]);
    let id = runtime.started("confined", &sleeper);
    assert_eq!(runtime.run(&format!("exec {id} try")).ok(), first);
    let second = runtime.run(&format!("exec --apparmor qstack-second {id} try"));
    assert_eq!(second.ok(), "qstack-second (enforce)\nfirst");
}

fn a_profile_that_is_not_loaded_is_told() {
    let bundle = Bundle::new(&["true"]).with("/process/apparmorProfile", json!("qstack-no-such"));
    Runtime::new()
        .run_bundle(&bundle)
        .code(1)
        .err("apparmor failed to apply profile")
        .err("no such file or directory");
}
