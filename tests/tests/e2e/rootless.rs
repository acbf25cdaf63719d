//! `qrun` by somebody without privileges: with and without ids to hand out, with and without cgroups.

use std::process::Command;

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::run;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::user::{COUNT, Delegated, GROUPS, USER, USERS, give, introduce};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "rootless",
        &[Need::Root],
        [
            goes_through_its_life,
            a_created_container_is_joined,
            has_the_devices_of_the_host,
            what_nobody_may_have_is_refused,
            ids_that_are_not_mapped_are_named,
            limits_need_a_cgroup,
            sees_cgroups_and_changes_none,
            cgroup_errors_are_forgiven_as_asked,
            keeps_state_in_the_run_time_directory,
            the_written_configuration_runs,
            shares_the_hosts_processes,
        ]
    );
    let helper = &[Need::Root, Need::Program("newuidmap")];
    all.extend(tests!(
        "rootless",
        helper,
        [hands_out_granted_ids, ids_not_granted_are_refused]
    ));
    all.extend(tests!(
        "rootless",
        &[
            Need::Root,
            Need::Program("newuidmap"),
            Need::Program("setpriv")
        ],
        [keeps_the_callers_groups_when_asked]
    ));
    let setpriv = &[Need::Root, Need::Program("setpriv")];
    all.extend(tests!(
        "rootless",
        setpriv,
        [a_delegated_cgroup_limits, a_delegated_cgroup_is_moved_into]
    ));
    all
}

/// A bundle of the user's, whose process runs a script.
fn script(text: &str) -> Bundle {
    Bundle::new(&["sh", "-c", text]).of_user()
}

/// A bundle of the user's that stays until it is killed.
fn sleeper() -> Bundle {
    Bundle::sleeper().of_user()
}

/// Lets the bundle have the ids that the user was granted.
fn with_granted_ids(bundle: Bundle) -> Bundle {
    let map = |first: u32| {
        json!([
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": first, "size": COUNT},
        ])
    };
    let bundle = bundle
        .with("/linux/uidMappings", map(USERS))
        .with("/linux/gidMappings", map(GROUPS));
    give(bundle.path());
    bundle
}

fn goes_through_its_life() {
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), sleeper());
    let id = runtime.started("a", &bundle);
    let seen = runtime.run(&format!(
        "exec {id} sh -c 'id -u; cat /proc/self/uid_map /proc/self/setgroups'"
    ));
    let words: Vec<_> = seen.ok().split_whitespace().map(str::to_owned).collect();
    let user = USER.to_string();
    assert_eq!(words, ["0", "0", user.as_str(), "1", "deny"]);
    assert!(runtime.run("list -q").ok().contains(&id));
    runtime.run("list").ok();
    for line in ["pause", "ps"] {
        let refused = runtime.run(&format!("{line} {id}"));
        refused.code(1).err("cgroups not configured for container");
    }
    runtime.run(&format!("kill {id} KILL")).ok();
    runtime.wait_for(&id, "stopped");
    runtime
        .run(&format!("kill {id} KILL"))
        .code(1)
        .err("container not running");
    runtime.run(&format!("kill --all {id} KILL")).ok();
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

fn a_created_container_is_joined() {
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), sleeper());
    let id = runtime.id("a");
    runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    assert_eq!(runtime.run(&format!("exec {id} hostname")).ok(), "nest");
    runtime.run(&format!("start {id}")).ok();
    runtime.run(&format!("delete --force {id}")).ok();
}

fn has_the_devices_of_the_host() {
    introduce(false);
    // The multiplexer of terminals is that of the container's own devpts, listed or not.
    let ptmx = json!([{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}]);
    let bundle = script(
        "for it in null zero full random urandom tty ptmx; do [ -c /dev/$it ] || echo no $it; done; echo x > /dev/null; \
         head -c 3 /dev/zero | wc -c; mknod /tmp/null c 1 3 || echo refused; readlink /dev/ptmx",
    );
    let seen = Runtime::of_user(None).run_bundle(&bundle.with("/linux/devices", ptmx));
    assert_eq!(seen.ok(), "3\nrefused\npts/ptmx");
}

fn what_nobody_may_have_is_refused() {
    introduce(false);
    let runtime = Runtime::of_user(None);
    let refused = |bundle: Bundle, text: &str| {
        give(bundle.path());
        let outcome = runtime.run_bundle(&bundle);
        outcome.code(1).err(text);
    };
    refused(
        Bundle::new(&["true"]),
        "rootless container requires user namespaces",
    );
    refused(
        sleeper().with("/process/user/additionalGids", json!([5])),
        "cannot set any additional groups in a rootless container",
    );
    refused(
        sleeper().with(
            "/mounts/-",
            json!({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["gid=5"]}),
        ),
        "cannot specify gid=5 mount option for rootless container: user namespaces enabled, but no mapping found for gid 5",
    );
    refused(
        sleeper().with("/linux/uidMappings", Value::Null),
        "user namespaces enabled, but no uid mappings found",
    );
    let bundle = sleeper();
    let id = runtime.started("a", &bundle);
    runtime
        .run(&format!("exec -g 5 {id} true"))
        .code(255)
        .err("cannot set any additional groups in a rootless container");
}

fn ids_that_are_not_mapped_are_named() {
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), sleeper());
    let id = runtime.started("a", &bundle);
    runtime
        .run(&format!("exec -u 7 {id} true"))
        .code(255)
        .err("cannot setuid to unmapped uid 7 in user namespace");
    runtime
        .run(&format!("exec -u 0:7 {id} true"))
        .code(255)
        .err("cannot setgid to unmapped gid 7 in user namespace");
}

fn limits_need_a_cgroup() {
    introduce(false);
    let runtime = Runtime::of_user(None);
    let limited = sleeper().with("/linux/resources", json!({"pids": {"limit": 20}}));
    let text = match std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        true => {
            "rootless needs no limits + no cgrouppath when no permission is granted for cgroups"
        }
        false => "cannot set pids limit: container could not join or create cgroup",
    };
    runtime.run_bundle(&limited).code(1).err(text);
    let named = sleeper().with("/linux/cgroupsPath", "/qt-nobody/a".into());
    runtime
        .run_bundle(&named)
        .code(1)
        .err("unable to apply cgroup configuration")
        .err("permission denied");
    runtime.assert_nothing_left();
}

fn sees_cgroups_and_changes_none() {
    introduce(false);
    // Without a cgroup namespace, and mounted writable: what is seen is the caller's.
    let mut bundle = script(
        "find /sys/fs/cgroup/ -name cgroup.procs | head -1 | grep -q procs && echo seen; \
         mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x || echo unchanged",
    );
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    bundle.config["mounts"][6]["options"] = json!(["nosuid", "noexec", "nodev", "ro"]);
    bundle.save();
    assert_eq!(
        Runtime::of_user(None).run_bundle(&bundle).ok(),
        "seen\nunchanged"
    );
}

fn cgroup_errors_are_forgiven_as_asked() {
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), script("echo ran"));
    let with = |flag: &str| {
        let id = runtime.id("a");
        let mut command = runtime.program();
        command.arg("--root").arg(runtime.root()).arg(flag);
        command.args(["run", "--bundle"]).arg(bundle.path()).arg(id);
        run(&mut command)
    };
    with("--rootless=auto").ok();
    with("--rootless=true").ok();
    with("--rootless=false")
        .code(1)
        .err("unable to apply cgroup configuration")
        .err("permission denied");
    with("--rootless=maybe")
        .code(1)
        .err("strconv.ParseBool")
        .err("invalid syntax");
}

fn keeps_state_in_the_run_time_directory() {
    use std::os::unix::fs::MetadataExt;
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), sleeper());
    let id = runtime.id("a");
    let qrun = |words: &[&str]| {
        let mut command = runtime.program();
        run(command
            .env("XDG_RUNTIME_DIR", runtime.directory())
            .args(words))
    };
    let path = bundle.path().display().to_string();
    let mut create = runtime.program();
    create
        .env("XDG_RUNTIME_DIR", runtime.directory())
        .args(["create", "--bundle", &path, &id]);
    let streams = std::process::Stdio::null;
    let created = create
        .stdin(streams())
        .stdout(streams())
        .stderr(streams())
        .status();
    assert!(created.unwrap().success());
    qrun(&["state", &id]).ok();
    qrun(&["delete", "--force", &id]).ok();
    let state = std::fs::metadata(runtime.directory().join("qrun")).unwrap();
    assert_eq!(state.mode() & 0o7777, 0o1700);
}

fn the_written_configuration_runs() {
    introduce(false);
    let (runtime, bundle) = (Runtime::of_user(None), sleeper());
    let config = bundle.path().join("config.json");
    std::fs::remove_file(&config).unwrap();
    let mut command = runtime.program();
    run(command
        .args(["spec", "--rootless", "--bundle"])
        .arg(bundle.path()))
    .ok();
    let mut written: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    written["process"]["terminal"] = false.into();
    written["process"]["args"] = json!([
        "sh",
        "-c",
        "id -u; ls /sys | grep -c fs; touch /sys/fs/cgroup/x || echo no"
    ]);
    std::fs::write(&config, written.to_string()).unwrap();
    assert_eq!(runtime.run_bundle(&bundle).ok(), "0\n1\nno");
}

fn shares_the_hosts_processes() {
    introduce(false);
    let runtime = Runtime::of_user(None);
    let mut bundle = sleeper();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.config["mounts"][0] = json!({"destination": "/proc", "type": "none", "source": "/proc",
        "options": ["rbind", "nosuid", "nodev", "noexec"]});
    bundle.save();
    let id = runtime.id("a");
    let said = runtime.leave(&format!("run -d --bundle {} {id}", bundle.path().display()));
    let said = std::fs::read_to_string(said).unwrap();
    assert!(
        said.contains("Such configuration is strongly discouraged"),
        "{said}"
    );
    runtime
        .run(&format!("kill {id} KILL"))
        .code(0)
        .err("failed to kill all processes, possibly due to lack of cgroup");
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

fn hands_out_granted_ids() {
    use std::os::unix::fs::MetadataExt;
    introduce(true);
    let runtime = Runtime::of_user(None);
    let bundle = script("id -u; id -g; cat /proc/self/setgroups; touch /tmp/it")
        .with("/process/user", json!({"uid": 7, "gid": 8}));
    let bundle = with_granted_ids(bundle);
    assert_eq!(runtime.run_bundle(&bundle).ok(), "7\n8\nallow");
    let made = std::fs::metadata(bundle.rootfs().join("tmp/it")).unwrap();
    assert_eq!((made.uid(), made.gid()), (USERS + 6, GROUPS + 7));

    // Root itself may be another than the caller.
    let all = |first: u32| json!([{"containerID": 0, "hostID": first, "size": COUNT}]);
    let other = script("id -u")
        .with("/linux/uidMappings", all(USERS))
        .with("/linux/gidMappings", all(GROUPS));
    give(other.path());
    std::fs::set_permissions(
        other.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(runtime.run_bundle(&other).ok(), "0");
}

/// As crun does: `podman run --group-add keep-groups`.
fn keeps_the_callers_groups_when_asked() {
    introduce(true);
    let runtime = Runtime::of_user(None);
    let by_member = |line: &str| {
        let command = runtime.command(line);
        let user = USER.to_string();
        let mut member = Command::new("setpriv");
        member.args(["--reuid", &user, "--regid", &user, "--groups", "4444"]);
        member.arg(command.get_program()).args(command.get_args());
        member.env_remove("XDG_RUNTIME_DIR");
        run(member.current_dir(runtime.directory()))
    };
    // A group that has no id inside shows as that of nobody.
    for (value, groups) in [("0", "0"), ("1", "0 65534")] {
        let asked = json!({"run.oci.keep_original_groups": value});
        let bundle = with_granted_ids(sleeper()).with("/annotations", asked);
        let id = runtime.started("member", &bundle);
        assert_eq!(by_member(&format!("exec {id} id -G")).ok(), groups);
        runtime.run(&format!("delete --force {id}")).ok();
        let bundle = bundle.with("/process/args", json!(["id", "-G"]));
        let line = format!("run --bundle {} {id}", bundle.path().display());
        assert_eq!(by_member(&line).ok(), groups);
    }
}

fn ids_not_granted_are_refused() {
    introduce(false);
    let runtime = Runtime::of_user(None);
    let refused = runtime.run_bundle(&with_granted_ids(sleeper()));
    refused
        .code(1)
        .err("failed to use newuidmap")
        .err("/etc/subuid");
    let mut command = runtime.program();
    command
        .env("PATH", "/nowhere")
        .arg("--root")
        .arg(runtime.root());
    let bundle = with_granted_ids(sleeper());
    let id = runtime.id("b");
    run(command.args(["run", "--bundle"]).arg(bundle.path()).arg(id))
        .code(1)
        .err("mapping tool not present");
    runtime.assert_nothing_left();
}

fn a_delegated_cgroup_limits() {
    introduce(false);
    let cgroup = Delegated::new();
    let runtime = Runtime::of_user(cgroup.place_of_callers());
    let bundle = sleeper()
        .with("/linux/cgroupsPath", format!("{}/a", cgroup.path()).into())
        .with("/linux/resources", json!({"pids": {"limit": 20}}));
    let id = runtime.started("a", &bundle);
    let limit = cgroup.directory("pids").join("a/pids.max");
    let limit = || std::fs::read_to_string(&limit).unwrap().trim().to_owned();
    assert_eq!(limit(), "20");
    runtime.run(&format!("update --pids-limit 30 {id}")).ok();
    assert_eq!(limit(), "30");
    assert_eq!(runtime.run(&format!("exec {id} echo in")).ok(), "in");
    runtime.run(&format!("exec -d {id} sleep 1000")).ok();
    let pids: Vec<i32> =
        serde_json::from_str(runtime.run(&format!("ps -f json {id}")).ok()).unwrap();
    assert_eq!(pids.len(), 2);
    runtime.run(&format!("events --stats {id}")).ok();
    runtime.run(&format!("pause {id}")).ok();
    assert_eq!(runtime.state(&id)["status"], "paused");
    runtime.run(&format!("resume {id}")).ok();
    runtime.run(&format!("delete --force {id}")).ok();
    runtime.assert_nothing_left();
}

fn a_delegated_cgroup_is_moved_into() {
    introduce(true);
    let cgroup = Delegated::new();
    let runtime = Runtime::of_user(cgroup.place_of_callers());
    // Root inside is another user outside, whom the caller may not move about any more.
    let all = |first: u32| json!([{"containerID": 0, "hostID": first, "size": COUNT}]);
    let bundle = sleeper()
        .with("/linux/uidMappings", all(USERS))
        .with("/linux/gidMappings", all(GROUPS))
        .with("/linux/cgroupsPath", format!("{}/a", cgroup.path()).into());
    give(bundle.path());
    std::fs::set_permissions(
        bundle.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let id = runtime.started("a", &bundle);
    let procs = std::fs::read_to_string(cgroup.directory("pids").join("a/cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), runtime.state(&id)["pid"].to_string());
    assert_eq!(runtime.run(&format!("exec {id} echo in")).ok(), "in");
    runtime.run(&format!("delete --force {id}")).ok();
    runtime.assert_nothing_left();
}
