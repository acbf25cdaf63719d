//! What is written below `/proc`, and what is written there for a container.

use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

use crate::fixture::{Sentinel, Variants, run, without_mounts};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "procfs",
        &[Need::Root, Need::Program("unshare")],
        [
            cve_2022_0811_a_sysctl_sets_itself_alone,
            cve_2025_52881_a_redirected_sysctl_is_not_written,
            cve_2025_52881_a_false_proc_is_not_written,
            cve_2025_31133_the_mask_is_the_null_device,
            cve_2023_25809_cgroups_of_others_are_read_only,
        ]
    )
}

/// The host's parameters that the attacks aim at.
fn host_parameters() -> Vec<String> {
    [
        "kernel/core_pattern",
        "kernel/hostname",
        "kernel/shmmax",
        "kernel/shm_rmid_forced",
        "kernel/modprobe",
        "net/ipv4/ip_forward",
        "vm/swappiness",
    ]
    .iter()
    .map(|name| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default())
    .collect()
}

/// CRI-O's helper took `+` in a value for the next parameter: an allowed one brought `kernel.core_pattern` along.
fn cve_2022_0811_a_sysctl_sets_itself_alone() {
    let before = host_parameters();
    let mut bundle = Variants::of(Bundle::new(&["true"]));
    let core = "kernel.core_pattern=|/evil";
    for (name, value) in [
        ("kernel.shm_rmid_forced", format!("1+{core}")),
        ("kernel.shm_rmid_forced", format!("1\n{core}")),
        ("kernel.shm_rmid_forced", format!("1 {core}")),
        ("kernel.core_pattern", "|/evil".into()),
        ("kernel/core_pattern", "|/evil".into()),
        (
            "kernel.shm_rmid_forced=1+kernel.core_pattern",
            "|/evil".into(),
        ),
        ("net/../kernel/core_pattern", "|/evil".into()),
        ("net.ipv4/../../../kernel/core_pattern", "|/evil".into()),
        ("net//core_pattern", "1".into()),
        ("/kernel/core_pattern", "|/evil".into()),
        ("../kernel/core_pattern", "|/evil".into()),
        ("net/./../kernel/core_pattern", "|/evil".into()),
        ("fs.mqueue.../../kernel/core_pattern", "|/evil".into()),
        ("vm.swappiness", "1".into()),
        ("kernel.modprobe", "/evil".into()),
        ("kernel.hostname", "evil".into()),
        ("net", "1".into()),
        ("", "1".into()),
    ] {
        let change = ("/linux/sysctl", json!({name: value}));
        run(bundle.with(&[change])).refused(1, "");
        assert_eq!(host_parameters(), before, "{name}={value}");
    }
    let own = json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_forward": "1"});
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_forward";
    let bundle = Bundle::new(&["sh", "-c", script]).with("/linux/sysctl", own);
    assert_eq!(run(&bundle).ok(), "1\n1");
    assert_eq!(host_parameters(), before);
}

/// Runs a container under a `/proc` of which the script has changed a part, in a mount namespace of its own.
fn run_under(script: &str, bundle: &Bundle) -> command::Outcome {
    let runtime = Runtime::new();
    let id = runtime.id("redirected");
    let plain = runtime.command(&format!("run --bundle {} {id}", bundle.path().display()));
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "--propagation", "private", "sh", "-e", "-c"])
        .arg(format!("{script}\nexec \"$@\""))
        .arg("sh")
        .arg(plain.get_program())
        .args(plain.get_args());
    command::run(&mut shell)
}

/// Writes meant for a kernel parameter or a security label went where an attacker's mount over the file led: to
/// sysrq-trigger, say. A file of the host's stands in for that.
fn cve_2025_52881_a_redirected_sysctl_is_not_written() {
    let sentinel = Sentinel::new();
    let secret = sentinel.at("secret");
    let script = "cat /proc/sys/kernel/shm_rmid_forced";
    let bundle = Bundle::new(&["sh", "-c", script])
        .with("/linux/sysctl", json!({"kernel.shm_rmid_forced": "1"}));
    // It would be written to, if the runtime went by the path.
    let unsafe_one = run_under(
        &format!(
            "mount --bind {secret} /proc/sys/kernel/shm_rmid_forced; cat /proc/sys/kernel/shm_rmid_forced"
        ),
        &bundle,
    );
    unsafe_one.out(crate::fixture::SECRET);
    sentinel.assert_untouched();
    // And the container's own parameter is set all the same.
    assert!(
        unsafe_one.code == 1 || unsafe_one.stdout.ends_with("1\n"),
        "{}",
        unsafe_one.report()
    );
    let bundle = Bundle::new(&["true"]).with("/process/oomScoreAdj", json!(1000));
    run_under(&format!("mount --bind {secret} /proc/uptime"), &bundle).ok();
    sentinel.assert_untouched();
}

/// With something else at `/proc` altogether nothing is written, and nothing is run.
fn cve_2025_52881_a_false_proc_is_not_written() {
    let sentinel = Sentinel::new();
    let fake = tempfile::tempdir().unwrap();
    let tree = fake.path();
    for directory in [
        "self/attr/apparmor",
        "thread-self/attr/apparmor",
        "sys/kernel",
    ] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    symlink(
        sentinel.at("secret"),
        tree.join("sys/kernel/shm_rmid_forced"),
    )
    .unwrap();
    for name in [
        "self/attr/exec",
        "thread-self/attr/exec",
        "thread-self/attr/apparmor/exec",
    ] {
        std::fs::write(tree.join(name), "unlabelled").unwrap();
    }
    std::fs::copy(stack_tests::programs::built("qrun"), tree.join("self/exe")).unwrap();
    let before = crate::fixture::inventory(tree);
    let bundle = Bundle::new(&["echo", "ran"])
        .with("/linux/sysctl", json!({"kernel.shm_rmid_forced": "1"}))
        .with("/process/apparmorProfile", json!("some-profile"));
    let outcome = run_under(&format!("mount --bind {} /proc", tree.display()), &bundle);
    assert_ne!(outcome.code, 0, "{}", outcome.report());
    outcome.no_out("ran");
    assert_eq!(crate::fixture::inventory(tree), before);
    sentinel.assert_untouched();
}

/// A mask is the container's `/dev/null` bound on a file: where that is something else, the file is replaced by it, or
/// stays bare.
fn cve_2025_31133_the_mask_is_the_null_device() {
    let sentinel = Sentinel::new();
    let runtime = Runtime::new();
    let masked = json!(["/proc/timer_list", "/proc/version"]);
    let look = "stat -c %t:%T /proc/version; cat /proc/version";
    // Its own /dev, from the host: what is in it is what the attacker put there.
    let bundle = without_mounts(Bundle::new(&["sh", "-c", look]), "/dev");
    let dev = bundle.path().join("dev");
    let entry = crate::fixture::mount("/dev", "bind", &dev.display().to_string(), &["bind"]);
    let bundle = bundle
        .with("/linux/maskedPaths", masked)
        .with("/mounts/-", entry);
    let with = |prepare: &dyn Fn(&std::path::Path)| {
        let _ = std::fs::remove_dir_all(&dev);
        std::fs::create_dir(&dev).unwrap();
        prepare(&dev);
        let outcome = runtime.run_bundle(&bundle);
        sentinel.assert_untouched();
        outcome
    };
    let null = |dev: &std::path::Path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dev.join("null"),
            rustix::fs::FileType::CharacterDevice,
            mode,
            device,
        )
        .unwrap();
    };
    assert_eq!(with(&null).ok(), "1:3");
    for target in [
        "/proc/sys/kernel/core_pattern",
        "/proc/version",
        "/proc/sysrq-trigger",
        "/nowhere",
        &sentinel.at("secret"),
        "zero",
    ] {
        let outcome = with(&|dev| symlink(target, dev.join("null")).unwrap());
        outcome.refused(1, "/dev/null");
    }
    with(&|_| {}).refused(1, "/dev/null");
    with(&|dev| std::fs::write(dev.join("null"), "").unwrap()).refused(1, "/dev/null");
    with(&|dev| std::fs::create_dir(dev.join("null")).unwrap()).refused(1, "/dev/null");
    let outcome = with(&|dev| {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        let zero = rustix::fs::makedev(1, 5);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dev.join("null"),
            rustix::fs::FileType::CharacterDevice,
            mode,
            zero,
        )
        .unwrap();
    });
    outcome.refused(1, "/dev/null");
}

/// In a user namespace without a cgroup namespace the cgroup tree is bound from the host: writable, it let the container
/// change cgroups of its user that are not its own.
fn cve_2023_25809_cgroups_of_others_are_read_only() {
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/evil 2>/dev/null && echo made $d; \
                  for f in cgroup.procs tasks notify_on_release; do [ -e $d/$f ] && echo 0 2>/dev/null > $d/$f && echo wrote $d/$f; done; done; echo done";
    let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    for with_user in [true, false] {
        let mut bundle = Bundle::new(&["sh", "-c", script]);
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|it| it["type"] != "cgroup");
        if with_user {
            namespaces.push(json!({"type": "user"}));
            bundle.config["linux"]["uidMappings"] = mapping.clone();
            bundle.config["linux"]["gidMappings"] = mapping.clone();
        }
        bundle.save();
        let outcome = run(&bundle);
        outcome.out("done").no_out("made").no_out("wrote");
        // Nothing above the container's own cgroup is to be seen either.
        let bundle = bundle.with("/process/args", json!(["sh", "-c", "ls -d /sys/fs/cgroup/*/init.scope /sys/fs/cgroup/*/user.slice /sys/fs/cgroup/user.slice; true"]));
        assert_eq!(run(&bundle).ok(), "");
    }
}
