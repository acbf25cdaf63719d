//! Facts of the default configuration: what an image gets that nobody has asked anything special for.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use stack_tests::command::{Outcome, run};
use stack_tests::image::{Dialect, Layout, Packing, busybox_tar};
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;

use crate::fixture::{install_attacker, number};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "defaults",
        &[Need::Root, Need::Program("cc")],
        [
            cve_2026_31431_crypto_sockets_are_out_of_reach,
            cve_2022_0492_cgroups_cannot_be_mounted,
            ghsa_jq35_what_tells_about_others_is_masked,
            cve_2024_40635_users_of_images_do_not_wrap,
        ]
    )
}

/// Unpacks an image with this configuration into a bundle; gives what `qbundle` said and the bundle.
fn unpacked(config: &Value) -> (tempfile::TempDir, Outcome, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::create(&directory.path().join("image")).unwrap();
    let layer = layout.add_layer(Packing::Gzip, busybox_tar).unwrap();
    layout
        .add_image(Some("it:1"), "amd64", Dialect::Oci, &[layer], config)
        .unwrap();
    let bundle = directory.path().join("bundle");
    let image = format!("{}:it:1", layout.directory().display());
    let mut command = Command::new(built("qbundle"));
    let outcome = run(command
        .args(["unpack", "--seccomp", "--image", &image])
        .arg(&bundle));
    (directory, outcome, bundle)
}

/// Runs the hostile program, or a script, in a container of the default configuration.
fn by_default(args: &[&str]) -> Outcome {
    let config = serde_json::json!({"Cmd": args, "Env": ["PATH=/bin"]});
    let (_directory, outcome, bundle) = unpacked(&config);
    outcome.ok();
    install_attacker(&bundle.join("rootfs"));
    let runtime = Runtime::new();
    let id = runtime.id("default");
    runtime.run(&format!("run --bundle {} {id}", bundle.display()))
}

const EPERM: i64 = 1;
const ENOSYS: i64 = 38;

/// A hole in the kernel's crypto sockets was open to every container; the first profile against it refused all sockets
/// of 32-bit programs, which ask for theirs by `socketcall`.
fn cve_2026_31431_crypto_sockets_are_out_of_reach() {
    let outcome = by_default(&["attacker", "reach"]);
    let text = outcome.ok();
    for (name, expected) in [("alg", EPERM), ("vsock", EPERM), ("unix", 0), ("inet", 0)] {
        assert_eq!(number(text, name), expected, "{name}: {text}");
    }
    if cfg!(target_arch = "x86_64") && number(text, "old_unix") != ENOSYS {
        assert_eq!(number(text, "old_unix"), 0, "{text}");
        assert_eq!(number(text, "old_direct_alg"), EPERM, "{text}");
    }
}

/// A mounted cgroup hierarchy has a file that names a program for the host to run; a user namespace gave the right
/// to mount it.
fn cve_2022_0492_cgroups_cannot_be_mounted() {
    let outcome = by_default(&["attacker", "reach"]);
    let text = outcome.ok();
    for name in [
        "mount",
        "cgroup",
        "user",
        "namespace",
        "bpf",
        "keyctl",
        "handle",
    ] {
        assert_eq!(number(text, name), EPERM, "{name}: {text}");
    }
    // Whose flags cannot be seen by a filter.
    assert_eq!(number(text, "clone3"), ENOSYS, "{text}");
}

/// Interrupt counts, power and heat of the machine tell a container what others compute.
fn ghsa_jq35_what_tells_about_others_is_masked() {
    let script = "for f in /proc/interrupts /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats; do \
                  [ -e $f ] && [ \"$(head -c 1 $f | wc -c)\" != 0 ] && echo open $f; done; \
                  for d in /sys/devices/virtual/powercap /sys/firmware /proc/acpi /proc/scsi /sys/devices/virtual/tpm /sys/devices/system/cpu/cpu*/thermal_throttle; do \
                  [ -e $d ] && [ -n \"$(ls $d)\" ] && echo open $d; done; \
                  for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/irq/default_smp_affinity; do \
                  [ -e $f ] && echo 0 2>/dev/null > $f && echo wrote $f; done; echo looked";
    let outcome = by_default(&["sh", "-c", script]);
    outcome.out("looked").no_out("open").no_out("wrote");
    assert!(std::fs::read("/proc/interrupts").is_ok_and(|text| !text.is_empty()));
}

/// An image's user above 2^31 wrapped around to 0, or was looked up as a name that the image's passwd file has.
fn cve_2024_40635_users_of_images_do_not_wrap() {
    for user in [
        "4294967296",
        "4294967295",
        "2147483648:4294967296",
        "65536000000",
        "-1",
        "18446744073709551616",
        "0x0",
        "1000:-1",
    ] {
        let config = serde_json::json!({"Cmd": ["id"], "User": user});
        let (_directory, outcome, bundle) = unpacked(&config);
        outcome.refused(1, &format!("find the user {user:?}"));
        assert!(!bundle.join("config.json").exists(), "{user}");
    }
}
