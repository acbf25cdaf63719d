//! The runtime's own files, and what leads to them.

use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use stack_tests::bundle::Bundle;
use stack_tests::command;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

use crate::fixture::Sentinel;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "state",
        &[Need::Root, Need::Program("setpriv")],
        [
            cve_2021_41103_state_is_not_for_other_users,
            cve_2025_0750_ids_do_not_lead_out,
            cve_2020_15257_no_socket_without_a_path,
            a_pid_file_is_not_written_through_a_link,
        ]
    )
}

/// containerd's directories could be walked by any user, who found programs with the set-user-id bit of the images' in
/// there.
fn cve_2021_41103_state_is_not_for_other_users() {
    let runtime = Runtime::new();
    let id = runtime.started("private", &Bundle::sleeper());
    let root = runtime.root();
    let mode = |path: &std::path::Path| path.symlink_metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join(&id)) & 0o066, 0);
    for entry in std::fs::read_dir(root.join(&id)).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    // The directory above is another's business; here it is made passable, so that the state is all there is to stop.
    let above = runtime.directory();
    std::fs::set_permissions(above, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let state = root.join(&id).join("state.json");
    let mut reader = Command::new("setpriv");
    reader
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"])
        .arg(&state);
    let outcome = command::run(&mut reader);
    outcome.code(1).err("Permission denied");
}

/// Ids and log paths with `..` in them led to other files of the host.
fn cve_2025_0750_ids_do_not_lead_out() {
    let runtime = Runtime::new();
    let sleeper = Bundle::sleeper();
    let running = runtime.started("running", &sleeper);
    // A state directory beside the root, as a forged one would be.
    let victim = runtime.directory().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::copy(
        runtime.root().join(&running).join("state.json"),
        victim.join("state.json"),
    )
    .unwrap();
    let bundle = sleeper.path().display();
    let longest = "a".repeat(256);
    for id in [
        "../victim",
        "..",
        ".",
        "a/../../victim",
        "/victim",
        "victim/",
        "a\nb",
        "ä",
        "a b",
        "",
        "a\\b",
        "%2e%2e",
        &longest,
    ] {
        for line in [
            format!("run --bundle {bundle} '{id}'"),
            format!("create --bundle {bundle} '{id}'"),
            format!("start '{id}'"),
            format!("exec '{id}' true"),
            format!("kill '{id}' KILL"),
            format!("delete --force '{id}'"),
            format!("state '{id}'"),
            format!("ps '{id}'"),
            format!("update --pids-limit 10 '{id}'"),
            format!("pause '{id}'"),
            format!("resume '{id}'"),
            format!("events --stats '{id}'"),
        ] {
            let outcome = runtime.run(&line);
            assert_ne!(outcome.code, 0, "{line}");
        }
    }
    assert!(victim.join("state.json").exists());
    assert_eq!(runtime.state(&running)["status"], "running");
    // One that has got into the root as a link is no container.
    symlink(&victim, runtime.root().join("linked")).unwrap();
    assert!(
        !runtime
            .run("list --quiet")
            .ok()
            .lines()
            .any(|line| line == "linked")
    );
    runtime.run("delete --force linked");
    assert!(victim.join("state.json").exists());
    assert_eq!(runtime.state(&running)["status"], "running");
    let _ = std::fs::remove_file(runtime.root().join("linked"));
}

/// A socket in the abstract name space can be had from every container that shares the host's network.
fn cve_2020_15257_no_socket_without_a_path() {
    let sockets = || {
        let text = std::fs::read_to_string("/proc/net/unix").unwrap();
        let names = text
            .lines()
            .filter_map(|line| line.split(' ').next_back().map(str::to_owned));
        names
            .filter(|name| name.starts_with('@'))
            .collect::<Vec<_>>()
    };
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/net/unix; sleep 1000"]);
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|it| it["type"] != "network");
    bundle.save();
    let runtime = Runtime::new();
    let id = runtime.id("hostnet");
    let mut command = runtime.command(&format!("create --bundle {} {id}", bundle.path().display()));
    command.env("NOTIFY_SOCKET", runtime.directory().join("notify"));
    let out = std::fs::File::create(runtime.directory().join("out")).unwrap();
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    assert!(status.success());
    let ours = |names: &[String]| {
        names
            .iter()
            .filter(|name| name.contains(&id) || name.contains("qrun"))
            .count()
    };
    assert_eq!(ours(&sockets()), 0);
    runtime.run(&format!("start {id}")).ok();
    assert_eq!(ours(&sockets()), 0);
}

/// Where others may make files, the file for a process id may be there already, as a link.
fn a_pid_file_is_not_written_through_a_link() {
    let sentinel = Sentinel::new();
    let runtime = Runtime::new();
    let sleeper = Bundle::sleeper();
    for (index, link) in [sentinel.at("secret"), sentinel.at("new")]
        .iter()
        .enumerate()
    {
        let id = runtime.id("pid");
        let (file, hidden) = (format!("pid{index}"), format!(".pid{index}"));
        for name in [&file, &hidden] {
            symlink(link, runtime.directory().join(name)).unwrap();
        }
        let path = runtime.directory().join(&file);
        runtime.leave(&format!(
            "create --pid-file {} --bundle {} {id}",
            path.display(),
            sleeper.path().display()
        ));
        sentinel.assert_untouched();
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            runtime.state(&id)["pid"].to_string()
        );
    }
}
