//! Root file systems that lead mounts, devices and directories elsewhere.

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::Outcome;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

use crate::fixture::{Sentinel, Variants, mount, replace_by_link, run, without_mounts};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "mounts",
        &[Need::Root],
        [
            cve_2019_16884_proc_is_proc,
            cve_2019_16884_no_link_leads_a_mount_to_proc,
            cve_2019_18837_mount_points_stay_inside,
            cve_2023_27561_proc_is_no_link,
            cve_2025_54867_sys_is_no_link,
            cve_2026_41579_dev_is_no_way_out,
            cve_2021_43784_paths_longer_than_64_kib,
            cve_2025_24965_files_and_directories_stay_inside,
        ]
    )
}

/// Fails unless the container was refused, or `/proc` in it is procfs with the masks on.
#[track_caller]
fn refused_or_true_proc(outcome: &Outcome) {
    match outcome.code {
        0 => {
            outcome.out("9fa0 0").no_out("fake");
        }
        _ => {
            outcome.refused(1, "");
        }
    }
}

/// What tells a procfs with its masks from anything else: the type of the file system, the length of what is hidden.
const LOOK: &str =
    "echo $(stat -f -c %t /proc) $(cat /proc/timer_list | wc -c); cat /proc/fake; true";

/// A volume over `/proc` gave the runtime files of the image's to write security labels to.
fn cve_2019_16884_proc_is_proc() {
    let volume = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(volume.path().join("self/attr")).unwrap();
    std::fs::write(volume.path().join("fake"), "fake").unwrap();
    let source = volume.path().display().to_string();
    let mut mounted = Variants::of(Bundle::new(&["sh", "-c", LOOK]));
    // Nor when there is no other mount there before.
    let mut bare = Variants::of(without_mounts(Bundle::new(&["sh", "-c", LOOK]), "/proc"));
    for destination in [
        "/proc",
        "proc",
        "//proc/",
        "/proc/.",
        "/tmp/../proc",
        "/./proc",
        "/proc/self",
        "/proc/self/attr",
        "/proc/sys",
    ] {
        for entry in [
            mount(destination, "bind", &source, &["rbind"]),
            mount(destination, "none", &source, &["bind"]),
            mount(destination, "tmpfs", "tmpfs", &[]),
        ] {
            for bundle in [&mut mounted, &mut bare] {
                let bundle = bundle.with(&[("/mounts/-", entry.clone())]);
                run(bundle).refused(1, "proc");
            }
        }
    }
}

/// The same by way of a link in the image: a volume at `/data`, which is a link to `/proc`.
fn cve_2019_16884_no_link_leads_a_mount_to_proc() {
    let volume = tempfile::tempdir().unwrap();
    std::fs::write(volume.path().join("fake"), "fake").unwrap();
    let source = volume.path().display().to_string();
    let mut bundle = Variants::of(Bundle::new(&["sh", "-c", LOOK]));
    for target in [
        "/proc",
        "proc",
        "../../proc",
        "/proc/self",
        "/proc/sys",
        "/proc/1/attr",
        "tmp/../proc",
    ] {
        replace_by_link(&bundle.bundle.rootfs().join("data"), target);
        for entry in [
            mount("/data", "bind", &source, &["rbind"]),
            mount("/data", "tmpfs", "tmpfs", &[]),
            mount("/data/attr", "tmpfs", "tmpfs", &[]),
        ] {
            run(bundle.with(&[("/mounts/-", entry)])).refused(1, "");
        }
    }
    // A link to anywhere else is followed within the root.
    let bundle = Bundle::new(&["cat", "/tmp/fake"])
        .with("/mounts/-", mount("/data", "bind", &source, &["rbind"]));
    replace_by_link(&bundle.rootfs().join("data"), "/tmp");
    run(&bundle).out("fake");
    let bundle = Bundle::new(&["sh", "-c", LOOK]);
    refused_or_true_proc(&run(&bundle));
}

/// crun followed links of the image on the host for the place of a mount.
fn cve_2019_18837_mount_points_stay_inside() {
    let sentinel = Sentinel::new();
    let outside = sentinel.path().display().to_string();
    let up = format!("../../../../../../..{outside}");
    let look = format!("echo x > /vol/written; cat {outside}/secret; true");
    let mut bundle = Variants::of(Bundle::new(&["sh", "-c", &look]));
    for target in [
        outside.clone(),
        up,
        format!("{outside}/empty"),
        format!("{outside}/missing/deep"),
    ] {
        replace_by_link(&bundle.bundle.rootfs().join("vol"), &target);
        for (destination, kind) in [
            ("/vol", "tmpfs"),
            ("/vol/new/deep", "tmpfs"),
            ("/vol/secret", "bind"),
            ("/vol/new/file", "bind"),
        ] {
            let source = if kind == "bind" {
                "/etc/passwd"
            } else {
                "tmpfs"
            };
            let options: &[&str] = if kind == "bind" { &["bind"] } else { &[] };
            let bundle = bundle.with(&[("/mounts/-", mount(destination, kind, source, options))]);
            run(bundle).no_out(crate::fixture::SECRET);
            sentinel.assert_untouched();
        }
    }
}

/// Where an image's `/proc` is a link, the real one is mounted somewhere else: labels and masks go to files of the
/// image's.
fn cve_2023_27561_proc_is_no_link() {
    link_is_refused("proc");
}

/// youki followed such a link at `/sys` too.
fn cve_2025_54867_sys_is_no_link() {
    link_is_refused("sys");
}

#[track_caller]
fn link_is_refused(name: &str) {
    let sentinel = Sentinel::new();
    let bundle = Bundle::new(&["sh", "-c", LOOK]);
    std::fs::create_dir_all(bundle.rootfs().join("tmp/x")).unwrap();
    let empty = sentinel.at("empty");
    for target in [
        "tmp/x",
        "/tmp",
        &empty,
        "..",
        &format!("../../../../..{empty}"),
    ] {
        replace_by_link(&bundle.rootfs().join(name), target);
        run(&bundle).refused(1, "");
        let left = std::fs::read_dir(bundle.rootfs().join("tmp/x"))
            .unwrap()
            .count();
        assert_eq!(left, 0, "something was made behind the link");
        sentinel.assert_untouched();
    }
}

/// Where an image's `/dev` is a link to the host, devices were made, and `ptmx` removed, out there.
fn cve_2026_41579_dev_is_no_way_out() {
    let sentinel = Sentinel::new();
    std::fs::write(sentinel.path().join("ptmx"), "the host's").unwrap();
    let empty = sentinel.at("empty");
    for target in [
        empty.clone(),
        sentinel.path().display().to_string(),
        format!("../../../../../..{empty}"),
    ] {
        for with_tmpfs in [true, false] {
            let bundle = Bundle::new(&["true"]);
            let bundle = if with_tmpfs {
                bundle
            } else {
                without_mounts(bundle, "/dev")
            };
            let bundle = bundle.with("/linux/devices", json!([{"path": "/dev/extra/fuse", "type": "c", "major": 10, "minor": 229, "uid": 7}]));
            replace_by_link(&bundle.rootfs().join("dev"), &target);
            // Within the root the link may well lead to a directory that is then made there.
            let outcome = run(&bundle);
            assert!(
                outcome.code == 0 || outcome.code == 1,
                "{}",
                outcome.report()
            );
            assert_eq!(
                std::fs::read(sentinel.path().join("ptmx")).unwrap(),
                b"the host's"
            );
            std::fs::remove_file(sentinel.path().join("ptmx")).unwrap();
            sentinel.assert_untouched();
            std::fs::write(sentinel.path().join("ptmx"), "the host's").unwrap();
        }
    }
}

/// runc handed paths to its first stage with lengths of 16 bits: a longer one was read as something else.
fn cve_2021_43784_paths_longer_than_64_kib() {
    let long = format!("/{}", "a/".repeat(40_000));
    let one_name = format!("/{}", "a".repeat(70_000));
    let mut bundle = Variants::of(Bundle::new(&["true"]));
    for path in [&long, &one_name] {
        for (pointer, value) in [
            ("/mounts/-", mount(path, "tmpfs", "tmpfs", &[])),
            ("/mounts/-", mount("/data", "bind", path, &["bind"])),
            ("/mounts/-", mount("/data", "tmpfs", "tmpfs", &[path])),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "pid", "path": path}]),
            ),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "network", "path": path}]),
            ),
            ("/linux/maskedPaths", json!([path])),
            ("/linux/readonlyPaths", json!([path])),
            ("/linux/cgroupsPath", json!(path)),
            ("/process/cwd", json!(path)),
            ("/root/path", json!(path)),
            ("/domainname", json!(path)),
        ] {
            let outcome = run(bundle.with(&[(pointer, value), ("/hostname", json!(""))]));
            assert!(outcome.code == 1, "{pointer}: {}", outcome.code);
            let told = ["ile name too long", "ilename too long", "nvalid"];
            let said = &outcome.stderr;
            assert!(
                told.iter().any(|text| said.contains(text)),
                "{pointer}: {}",
                &said[said.len() - 200..]
            );
        }
    }
    // Two rows that no path of the kernel's limits: they are passed on whole.
    let value = format!("V={}", "x".repeat(100_000));
    let bundle =
        Bundle::new(&["sh", "-c", "echo ${#V}"]).with("/process/env", json!(["PATH=/bin", value]));
    assert_eq!(run(&bundle).ok(), "100000");
}

/// Files and directories that a runtime makes in a root file system were made where its links led.
fn cve_2025_24965_files_and_directories_stay_inside() {
    let sentinel = Sentinel::new();
    let mut bundle = Variants::of(Bundle::new(&["true"]));
    let outside = sentinel.path().display().to_string();
    for target in [outside.clone(), format!("../../../../../../..{outside}")] {
        let inside = bundle.bundle.rootfs();
        replace_by_link(&inside.join("work"), &target);
        replace_by_link(
            &inside.join("etc/resolv.conf"),
            &format!("{target}/resolv.conf"),
        );
        replace_by_link(&inside.join("etc/hosts"), &format!("{target}/empty"));
        let file = mount("/etc/resolv.conf", "bind", "/etc/passwd", &["bind"]);
        for change in [
            ("/process/cwd", json!("/work/new")),
            ("/process/cwd", json!("/etc/hosts/below")),
            ("/mounts/-", file),
        ] {
            run(bundle.with(&[change]));
            sentinel.assert_untouched();
        }
    }
}
