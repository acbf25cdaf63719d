//! Races: another container that shares a directory exchanges what is at a path while this one is put together.

use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::Outcome;
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::runtime::Runtime;
use stack_tests::tests;

use crate::fixture::{Exchange, Race, SECRET, Sentinel, inventory, mount, without_mounts};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "races",
        &[Need::Root],
        [
            cve_2021_30465_a_mount_point_that_becomes_a_link,
            cve_2024_45310_a_mount_point_made_behind_a_link,
            cve_2019_19921_a_proc_that_is_exchanged,
            cve_2025_31133_a_null_device_that_is_exchanged,
            cve_2025_52565_a_console_that_is_exchanged,
        ]
    )
}

/// Containers started in one race.
const ROUNDS: u32 = 100;

/// A volume with a directory `target` and a link `link`, which lead where two containers would not agree on.
fn volume(link_to: &str) -> (tempfile::TempDir, Exchange) {
    let volume = tempfile::Builder::new()
        .prefix("qvolume")
        .tempdir()
        .unwrap();
    std::fs::create_dir(volume.path().join("target")).unwrap();
    symlink(link_to, volume.path().join("link")).unwrap();
    let attack = Exchange::start(volume.path().join("target"), volume.path().join("link"));
    (volume, attack)
}

/// The mount points of a container, without those that every one has.
const POINTS: &str =
    "cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(|proc.*|sys.*|dev.*|vol)$'; true";

/// The destination of a mount lies in a volume that another container changes: checked as a directory, it was a link
/// to the host's root when the mount was made.
fn cve_2021_30465_a_mount_point_that_becomes_a_link() {
    let sentinel = Sentinel::new();
    let own = tempfile::tempdir().unwrap();
    std::fs::write(own.path().join("mine"), "mine").unwrap();
    let outside = sentinel.path().display().to_string();
    for link_to in [
        "/".to_owned(),
        "../../../../../../..".to_owned(),
        outside.clone(),
    ] {
        let (shared, attack) = volume(&link_to);
        let script = format!("{POINTS}; cat {outside}/secret 2>/dev/null; true");
        let bundle = Bundle::new(&["sh", "-c", &script])
            .with(
                "/mounts/-",
                mount(
                    "/vol",
                    "bind",
                    &shared.path().display().to_string(),
                    &["rbind"],
                ),
            )
            .with(
                "/mounts/-",
                mount(
                    "/vol/target",
                    "bind",
                    &own.path().display().to_string(),
                    &["rbind"],
                ),
            )
            .with(
                "/mounts/-",
                mount("/vol/target", "tmpfs", "tmpfs", &["mode=755"]),
            );
        let host_before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounted_here = |text: &str| {
            text.lines()
                .filter(|line| line.contains("qvolume") || line.contains("qhost"))
                .count()
        };
        let race = Race::run(ROUNDS, &bundle, &attack, |outcome| {
            outcome.no_out(SECRET);
            if outcome.code == 0 {
                points_are_below_the_root(outcome, &outside);
            }
        });
        let host_after = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounted_here(&host_after), mounted_here(&host_before));
        sentinel.assert_untouched();
        assert!(race.ran > 0, "every container was refused: {race:?}");
    }
}

/// Every mount point is where the destination led at some moment: in the volume, or where its link leads in the root.
#[track_caller]
fn points_are_below_the_root(outcome: &Outcome, outside: &str) {
    for point in outcome.stdout.lines() {
        let known = point.starts_with("/vol/") || point == outside || point == "/";
        assert!(known, "a mount at {point}{}", outcome.report());
    }
}

/// What is missing of a destination is made: behind the link, on the host.
fn cve_2024_45310_a_mount_point_made_behind_a_link() {
    let sentinel = Sentinel::new();
    let outside = sentinel.path().display().to_string();
    for link_to in [outside.clone(), format!("../../../../../../..{outside}")] {
        let (shared, attack) = volume(&link_to);
        let place = shared.path().display().to_string();
        let bundle = Bundle::new(&["true"])
            .with("/mounts/-", mount("/vol", "bind", &place, &["rbind"]))
            .with(
                "/mounts/-",
                mount("/vol/target/new/deep", "tmpfs", "tmpfs", &[]),
            )
            .with(
                "/mounts/-",
                mount("/vol/target/new/file", "bind", "/etc/passwd", &["bind"]),
            )
            .with("/process/cwd", json!("/vol/target/cwd/deep"));
        let clean = |_: &Outcome| {
            for name in ["target", "link"] {
                let directory = shared.path().join(name);
                let _ = std::fs::remove_dir_all(directory.join("new"));
                let _ = std::fs::remove_dir_all(directory.join("cwd"));
            }
            sentinel.assert_untouched();
        };
        let race = Race::run(ROUNDS, &bundle, &attack, clean);
        drop(attack);
        sentinel.assert_untouched();
        assert!(race.ran > 0, "every container was refused: {race:?}");
    }
}

/// Two containers on one root file system: one exchanges `/proc` with a directory of its own while the other is set up,
/// whose parameters and labels then go to files.
fn cve_2019_19921_a_proc_that_is_exchanged() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        // Both of one directory, for the exchanges go on.
        "cd /proc; stat -f -c %t .; cat sys/kernel/shm_rmid_forced 2>/dev/null; true",
    ])
    .with("/linux/sysctl", json!({"kernel.shm_rmid_forced": "1"}));
    let fake = bundle.rootfs().join("fake");
    for directory in ["self/attr/apparmor", "thread-self/attr", "sys/kernel"] {
        std::fs::create_dir_all(fake.join(directory)).unwrap();
    }
    for name in [
        "self/attr/exec",
        "thread-self/attr/exec",
        "sys/kernel/shm_rmid_forced",
    ] {
        std::fs::write(fake.join(name), "false").unwrap();
    }
    // What is looked at is the file in the directory, whichever name that has.
    let held = std::fs::File::open(&fake).unwrap();
    let inside = || -> Vec<String> {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let names = [
            "self/attr/exec",
            "thread-self/attr/exec",
            "sys/kernel/shm_rmid_forced",
        ];
        names
            .map(|name| std::fs::read_to_string(Path::new(&path).join(name)).unwrap())
            .into()
    };
    {
        let attack = Exchange::start(bundle.rootfs().join("proc"), fake.clone());
        Race::run(ROUNDS, &bundle, &attack, |_| {
            assert_eq!(
                inside(),
                ["false", "false", "false"],
                "the runtime wrote to the attacker's files"
            );
        });
    }
    // With a link the container is refused, or has its true `/proc`.
    let _ = std::fs::remove_dir_all(bundle.rootfs().join("proc"));
    let _ = std::fs::remove_dir_all(&fake);
    std::fs::create_dir(bundle.rootfs().join("proc")).unwrap();
    std::fs::create_dir_all(bundle.rootfs().join("tmp/false/sys/kernel")).unwrap();
    symlink("tmp/false", &fake).unwrap();
    let before = inventory(&bundle.rootfs().join("tmp"));
    let attack = Exchange::start(bundle.rootfs().join("proc"), fake);
    let race = Race::run(ROUNDS, &bundle, &attack, |outcome| {
        let text = outcome.stdout.trim();
        assert!(
            outcome.code != 0 || text == "9fa0\n1" || !text.contains('1'),
            "{}",
            outcome.report()
        );
    });
    assert_eq!(inventory(&bundle.rootfs().join("tmp")), before);
    assert!(race.ran > 0 && race.refused > 0, "{race:?}");
}

/// `/dev/null`, in a directory that two containers share, is a link by the time it is bound over what is to be masked.
fn cve_2025_31133_a_null_device_that_is_exchanged() {
    let sentinel = Sentinel::new();
    let core_pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (target, dev_is_bound) in [
        ("/proc/sys/kernel/core_pattern", true),
        ("/proc/version", false),
    ] {
        let look =
            "for f in version timer_list; do stat -c %t:%T /proc/$f; done; cat /proc/version";
        let bundle = without_mounts(Bundle::new(&["sh", "-c", look]), "/dev").with(
            "/linux/maskedPaths",
            json!(["/proc/version", "/proc/timer_list"]),
        );
        let dev = if dev_is_bound {
            bundle.path().join("dev")
        } else {
            bundle.rootfs().join("dev")
        };
        std::fs::create_dir_all(&dev).unwrap();
        let _ = std::fs::remove_file(dev.join("null"));
        mknodat(
            CWD,
            dev.join("null"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            makedev(1, 3),
        )
        .unwrap();
        symlink(target, dev.join("other")).unwrap();
        let bundle = match dev_is_bound {
            true => bundle.with(
                "/mounts/-",
                mount("/dev", "bind", &dev.display().to_string(), &["bind"]),
            ),
            false => bundle,
        };
        let attack = Exchange::start(dev.join("null"), dev.join("other"));
        let race = Race::run(ROUNDS, &bundle, &attack, |outcome| {
            if outcome.code == 0 {
                assert_eq!(
                    outcome.stdout,
                    "1:3\n1:3\n",
                    "a mask that is none{}",
                    outcome.report()
                );
            }
            outcome.no_out("Linux");
        });
        assert!(race.ran > 0 && race.refused > 0, "{race:?}");
    }
    assert_eq!(
        std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        core_pattern
    );
    sentinel.assert_untouched();
}

/// The terminal is bound on `/dev/console`, which in a shared `/dev` is a link by then; or what is bound there comes from a
/// `/dev/pts` that was exchanged.
fn cve_2025_52565_a_console_that_is_exchanged() {
    let sentinel = Sentinel::new();
    for victim in ["console", "pts"] {
        let look = "stat -c %t /proc/self/fd/0/. /dev/console 2>/dev/null; stat -L -c %t /proc/self/fd/0; tty; cut -d' ' -f5 /proc/self/mountinfo; echo looked";
        let mut bundle = without_mounts(Bundle::new(&["sh", "-c", look]), "/dev")
            .with("/process/terminal", json!(true))
            .with(
                "/mounts/-",
                mount(
                    "/dev/pts",
                    "devpts",
                    "devpts",
                    &["newinstance", "ptmxmode=0666", "mode=0620"],
                ),
            );
        bundle.config["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/sysrq-trigger"]);
        bundle.save();
        let dev = bundle.rootfs().join("dev");
        std::fs::create_dir_all(dev.join("pts")).unwrap();
        let other = dev.join("other");
        if victim == "console" {
            std::fs::write(dev.join("console"), "").unwrap();
            symlink("/proc/sysrq-trigger", &other).unwrap();
        } else {
            std::fs::create_dir(&other).unwrap();
            symlink("/proc/sys/kernel/core_pattern", other.join("0")).unwrap();
            std::fs::write(other.join("ptmx"), "").unwrap();
        }
        let attack = Exchange::start(dev.join(victim), other);
        let runtime = Runtime::new();
        let (mut ran, before) = (0, attack.count());
        for _ in 0..40 {
            let id = runtime.id("console");
            let command =
                runtime.command(&format!("run --bundle {} {id}", bundle.path().display()));
            let mut pty = Pty::start(&command);
            let code = pty.exit();
            let heard = pty.heard();
            if code == 0 && heard.contains("looked") {
                ran += 1;
                // The terminal itself is one of devpts, and nothing of /proc was covered by it.
                assert!(heard.lines().any(|line| line.trim() == "88"), "{heard}");
                let covered = heard
                    .lines()
                    .map(str::trim)
                    .filter(|line| line.starts_with("/proc/sys"));
                assert!(
                    covered
                        .clone()
                        .filter(|line| *line == "/proc/sysrq-trigger")
                        .count()
                        <= 1,
                    "{heard}"
                );
                assert!(
                    !covered.clone().any(|line| line.contains("core_pattern")),
                    "{heard}"
                );
            }
        }
        assert!(ran > 0, "no container ran");
        // Over all rounds: in one of them it may get no turn on a busy machine.
        assert!(attack.count() > before, "the attacker was not at it");
        sentinel.assert_untouched();
    }
}
