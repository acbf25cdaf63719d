//! `qrun --systemd-cgroup`: what systemd is told, and what it does then. On cgroup v2 and v1; see hack/vm-systemd.sh.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::{Outcome, run};
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut both = tests!(
        "systemd",
        &[Need::Root, Need::Systemd],
        [
            a_container_is_a_scope_with_its_limits,
            without_a_path_it_is_in_the_system_slice,
            the_slice_is_made_on_demand,
            exec_joins_the_scope_and_a_cgroup_below_it,
            update_changes_unit_and_control_files,
            an_update_of_a_quota_alone_keeps_the_period,
            annotations_become_properties,
            a_property_beyond_the_container_is_refused,
            bad_paths_are_refused,
            a_failed_unit_of_that_name_is_reset,
            a_living_unit_of_that_name_is_refused,
            a_start_that_fails_leaves_no_unit,
            criu_restores_in_a_scope,
            a_limit_that_the_kernel_refuses_leaves_no_unit,
            delete_stops_what_is_left_in_the_scope,
            devices_survive_a_reload_of_systemd,
            pause_and_resume,
            without_a_bus_systemd_is_asked_itself,
        ]
    );
    both.extend(tests!(
        "systemd_v2",
        &[Need::Root, Need::Systemd, Need::Cgroup2],
        [
            control_files_by_name_become_properties,
            the_user_of_the_container_owns_its_cgroup,
            a_user_without_privileges_has_units_of_their_own,
        ]
    ));
    both
}

/// A container run by the systemd driver, and its unit.
struct Scope {
    runtime: Runtime,
    /// Read again by exec.
    _bundle: Bundle,
    id: String,
    unit: String,
}

impl Scope {
    /// Starts `sleep` in a scope of `slice`.
    fn start(slice: &str, change: impl FnOnce(Bundle) -> Bundle) -> Self {
        Self::of(Runtime::new(), slice, change)
    }

    fn of(runtime: Runtime, slice: &str, change: impl FnOnce(Bundle) -> Bundle) -> Self {
        let id = runtime.id("scope");
        let bundle = change(bundle(&["sleep", "1000"], &format!("{slice}:qt:{id}")));
        let line = format!(
            "--systemd-cgroup run -d --bundle {} {id}",
            bundle.path().display()
        );
        runtime.leave(&line);
        let unit = format!("qt-{id}.scope");
        Self {
            runtime,
            _bundle: bundle,
            id,
            unit,
        }
    }

    fn property(&self, name: &str) -> String {
        property(&self.unit, name)
    }

    /// The content of a control file of the container's cgroup, by its name on v1 and v2.
    fn file(&self, v1: (&str, &str), v2: &str) -> String {
        let pid = &self.runtime.state(&self.id)["pid"];
        let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let path = |controller: &str| {
            let mut fields = lines
                .lines()
                .filter_map(|line| line.split_once(':')?.1.split_once(':'));
            let found = fields.find(|(names, _)| names.split(',').any(|name| name == controller));
            found.unwrap().1.trim_start_matches('/').to_owned()
        };
        let root = Path::new("/sys/fs/cgroup");
        let file = match is_v2() {
            true => root.join(path("")).join(v2),
            false => root.join(v1.0).join(path(v1.0)).join(v1.1),
        };
        std::fs::read_to_string(&file).unwrap().trim().to_owned()
    }

    fn run(&self, line: &str) -> Outcome {
        self.runtime.run(&line.replace("ID", &self.id))
    }
}

fn is_v2() -> bool {
    Need::Cgroup2.missing().is_none()
}

fn bundle(args: &[&str], cgroups_path: &str) -> Bundle {
    Bundle::new(args).with("/linux/cgroupsPath", json!(cgroups_path))
}

fn systemctl(args: &[&str]) -> Outcome {
    run(Command::new("systemctl").args(args))
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--property", name, "--value", unit])
        .ok()
        .to_owned()
}

#[track_caller]
fn assert_no_unit(unit: &str) {
    until(&format!("{unit} is gone"), || {
        let gone = property(unit, "LoadState") == "not-found";
        (gone || property(unit, "ActiveState") == "inactive").then_some(())
    });
}

fn limits() -> Value {
    json!({
        "memory": {"limit": 64 << 20},
        "pids": {"limit": 20},
        "cpu": {"shares": 100, "quota": 500_000, "period": 1_000_000, "cpus": "0"},
    })
}

fn a_container_is_a_scope_with_its_limits() {
    let scope = Scope::start("machine.slice", |bundle| {
        bundle.with("/linux/resources", limits())
    });
    let (memory, weight) = match is_v2() {
        true => ("MemoryMax", ("CPUWeight", "17")),
        false => ("MemoryLimit", ("CPUShares", "100")),
    };
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "machine.slice"),
        ("Delegate", "yes"),
        ("DefaultDependencies", "no"),
        ("DevicePolicy", "strict"),
        ("TasksMax", "20"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "1s"),
        ("AllowedCPUs", "0"),
        (memory, "67108864"),
        weight,
    ] {
        assert_eq!(scope.property(name), value, "{name}");
    }
    assert_eq!(
        scope.file(("memory", "memory.limit_in_bytes"), "memory.max"),
        "67108864"
    );
    assert_eq!(scope.file(("pids", "pids.max"), "pids.max"), "20");
    assert_eq!(scope.file(("cpuset", "cpuset.cpus"), "cpuset.cpus"), "0");
    scope.run("delete --force ID").ok();
    assert_no_unit(&scope.unit);
}

fn without_a_path_it_is_in_the_system_slice() {
    let runtime = Runtime::new();
    let id = runtime.id("plain");
    let bundle = Bundle::sleeper();
    runtime.leave(&format!(
        "--systemd-cgroup run -d --bundle {} {id}",
        bundle.path().display()
    ));
    let unit = format!("qrun-{id}.scope");
    assert_eq!(
        property(&unit, "ControlGroup"),
        format!("/system.slice/{unit}")
    );
    runtime.run(&format!("delete --force {id}")).ok();
    assert_no_unit(&unit);
}

fn the_slice_is_made_on_demand() {
    let scope = Scope::start("qtone-two.slice", |bundle| bundle);
    let expected = format!("/qtone.slice/qtone-two.slice/{}", scope.unit);
    assert_eq!(scope.property("ControlGroup"), expected);
    scope.run("delete --force ID").ok();
    systemctl(&["stop", "qtone-two.slice", "qtone.slice"]).ok();
}

fn exec_joins_the_scope_and_a_cgroup_below_it() {
    let scope = Scope::start("machine.slice", |bundle| {
        let namespaces = ["pid", "mount", "uts"].map(|kind| json!({"type": kind}));
        bundle.with("/linux/namespaces", json!(namespaces))
    });
    scope.run("exec ID cat /proc/self/cgroup").out(&scope.unit);
    let group = PathBuf::from("/sys/fs/cgroup").join(if is_v2() { "" } else { "pids" });
    let group = group.join("machine.slice").join(&scope.unit).join("below");
    std::fs::create_dir(&group).unwrap();
    let line = if is_v2() {
        "exec --cgroup below"
    } else {
        "exec --cgroup pids:below"
    };
    scope
        .run(&format!("{line} ID cat /proc/self/cgroup"))
        .out(&format!("{}/below", scope.unit));
    scope.run("delete --force ID").ok();
    assert!(!group.exists());
    assert_no_unit(&scope.unit);
}

fn update_changes_unit_and_control_files() {
    let scope = Scope::start("machine.slice", |bundle| {
        bundle.with("/linux/resources", limits())
    });
    scope
        .run("update --pids-limit 10 --memory 96M --cpu-share 200 ID")
        .ok();
    let memory = if is_v2() { "MemoryMax" } else { "MemoryLimit" };
    assert_eq!(scope.property("TasksMax"), "10");
    assert_eq!(scope.property(memory), "100663296");
    assert_eq!(scope.file(("pids", "pids.max"), "pids.max"), "10");
    assert_eq!(
        scope.file(("memory", "memory.limit_in_bytes"), "memory.max"),
        "100663296"
    );
    // What was not mentioned is as it was, also after systemd has written all of it again.
    assert_eq!(scope.property("CPUQuotaPerSecUSec"), "500ms");
    systemctl(&["daemon-reload"]).ok();
    assert_eq!(scope.file(("pids", "pids.max"), "pids.max"), "10");
    scope.run("update --pids-limit -1 ID").ok();
    assert_eq!(scope.property("TasksMax"), "infinity");
}

fn an_update_of_a_quota_alone_keeps_the_period() {
    let scope = Scope::start("machine.slice", |bundle| {
        bundle.with("/linux/resources", limits())
    });
    let quota = || {
        let quota = scope.file(("cpu", "cpu.cfs_quota_us"), "cpu.max");
        quota.split(' ').next().map(str::to_owned).unwrap()
    };
    scope.run("update --cpu-quota 600000 ID").ok();
    assert_eq!(quota(), "600000");
    assert_eq!(scope.property("CPUQuotaPerSecUSec"), "600ms");
    assert_eq!(scope.property("CPUQuotaPeriodUSec"), "1s");
    // 5.55 % becomes 6 %, in both places.
    scope.run("update --cpu-quota 55500 ID").ok();
    assert_eq!(quota(), "60000");
    assert_eq!(scope.property("CPUQuotaPerSecUSec"), "60ms");
}

fn annotations_become_properties() {
    let scope = Scope::start("machine.slice", |bundle| {
        let annotations = json!({
            "org.systemd.property.TimeoutStopSec": "uint64 7",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.systemd.property.After": "['dbus.service', 'basic.target']",
            "other": "not systemd's business",
        });
        bundle.with("/annotations", annotations)
    });
    assert_eq!(scope.property("TimeoutStopUSec"), "7s");
    assert_eq!(scope.property("CollectMode"), "inactive-or-failed");
    let after = scope.property("After");
    assert!(
        after.contains("dbus.service") && after.contains("basic.target"),
        "{after}"
    );
}

/// CVE-2024-3154: some properties of a unit run programs as root, or act on the machine.
fn a_property_beyond_the_container_is_refused() {
    let runtime = Runtime::new();
    let made = runtime.directory().join("made");
    let run = format!("[('/bin/touch', ['touch', '{}'], false)]", made.display());
    for (name, value) in [
        ("ExecStartPre", run.as_str()),
        ("ExecStart", &run),
        ("ExecStopPost", &run),
        ("OnFailure", "['poweroff.target']"),
        ("SuccessAction", "'poweroff-force'"),
        ("Wants", "['poweroff.target']"),
        ("DeviceAllow", "[('/dev/kmsg', 'rwm')]"),
        ("TimeoutStopSec", "'soon'"),
        ("KillMode", "'unfinished"),
    ] {
        let id = runtime.id("refused");
        let bundle = bundle(&["true"], "").with(
            "/annotations",
            json!({format!("org.systemd.property.{name}"): value}),
        );
        let line = format!(
            "--systemd-cgroup run --bundle {} {id}",
            bundle.path().display()
        );
        runtime
            .run(&line)
            .code(1)
            .err(&format!("annotation org.systemd.property.{name}"));
        assert_no_unit(&format!("qrun-{id}.scope"));
    }
    assert!(!made.exists());
}

fn bad_paths_are_refused() {
    let runtime = Runtime::new();
    for (path, expected) in [
        (
            "/a/b",
            "expected cgroupsPath to be of format \\\"slice:prefix:name\\\"",
        ),
        ("a--b.slice:x:y", "invalid slice name: a--b.slice"),
        ("noslice:x:y", "invalid slice name: noslice"),
    ] {
        let id = runtime.id("bad");
        let bundle = bundle(&["true"], path);
        let line = format!(
            "--systemd-cgroup run --bundle {} {id}",
            bundle.path().display()
        );
        let outcome = runtime.run(&line);
        let said = outcome.code(1).stderr.replace('\\', "");
        assert!(said.contains(&expected.replace('\\', "")), "{said}");
    }
}

fn a_failed_unit_of_that_name_is_reset() {
    let runtime = Runtime::new();
    let unit = format!("qt-{}-failed.scope", std::process::id());
    let line = [
        "--scope",
        "--quiet",
        "--unit",
        &unit,
        "-p",
        "RuntimeMaxSec=1",
        "sleep",
        "1000",
    ];
    run(Command::new("systemd-run").args(line));
    until("the unit has failed", || {
        (property(&unit, "ActiveState") == "failed").then_some(())
    });
    let id = runtime.id("again");
    let path = format!("system.slice:qt:{}-failed", std::process::id());
    let bundle = bundle(&["true"], &path);
    runtime
        .run(&format!(
            "--systemd-cgroup run --bundle {} {id}",
            bundle.path().display()
        ))
        .ok();
    assert_no_unit(&unit);
}

fn a_living_unit_of_that_name_is_refused() {
    let scope = Scope::start("machine.slice", |bundle| bundle);
    let other = scope.runtime.id("other");
    let bundle = bundle(&["true"], &format!("machine.slice:qt:{}", scope.id));
    let line = format!(
        "--systemd-cgroup run --bundle {} {other}",
        bundle.path().display()
    );
    scope
        .runtime
        .run(&line)
        .code(1)
        .err("container's cgroup is not empty");
    assert_eq!(scope.property("ActiveState"), "active");
    scope.run("exec ID true").ok();
}

fn a_start_that_fails_leaves_no_unit() {
    let runtime = Runtime::new();
    let id = runtime.id("fails");
    let bundle = bundle(&["no-such-program"], "");
    let line = format!(
        "--systemd-cgroup run --bundle {} {id}",
        bundle.path().display()
    );
    runtime.run(&line).code(1).err("executable file not found");
    assert_no_unit(&format!("qrun-{id}.scope"));
}

/// With a criu that only says where it is: the processes it makes are born there.
fn criu_restores_in_a_scope() {
    let runtime = Runtime::new();
    let id = runtime.id("bird");
    let bundle = bundle(&["true"], &format!("machine.slice:qt:{id}"));
    let (place, image) = (bundle.path(), bundle.path().join("image"));
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("descriptors.json"), "[]").unwrap();
    let (program, told) = (place.join("criu"), place.join("cgroup"));
    let script = format!("#!/bin/sh\ncat /proc/self/cgroup > {}\n", told.display());
    stack_tests::executable::script(&program, &script);
    let line = format!(
        "--systemd-cgroup restore -d --image-path {} --bundle {} {id}",
        image.display(),
        place.display()
    );
    let path = format!("{}:{}", place.display(), std::env::var("PATH").unwrap());
    run(runtime.command(&line).env("PATH", path)).code(1);
    let told = std::fs::read_to_string(told).unwrap();
    let scope = format!("/machine.slice/qt-{id}.scope");
    let inside = |name: &str| {
        let mut lines = told
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.any(|(names, path)| names.split(',').any(|it| it == name) && path == scope)
    };
    assert!(inside(if is_v2() { "" } else { "memory" }), "{told}");
    assert_no_unit(&format!("qt-{id}.scope"));
    runtime.assert_nothing_left();
}

fn a_limit_that_the_kernel_refuses_leaves_no_unit() {
    let runtime = Runtime::new();
    for limits in [
        // The first is refused by systemd or the kernel, the second is known to the kernel alone.
        json!({"cpu": {"period": 100}}),
        json!({"rdma": {"no such device": {"hcaHandles": 1}}}),
    ] {
        let id = runtime.id("refused");
        let bundle = bundle(&["true"], "").with("/linux/resources", limits);
        let line = format!(
            "--systemd-cgroup run --bundle {} {id}",
            bundle.path().display()
        );
        runtime.run(&line).code(1);
        assert_no_unit(&format!("qrun-{id}.scope"));
    }
}

fn delete_stops_what_is_left_in_the_scope() {
    let scope = Scope::start("machine.slice", |bundle| {
        let namespaces = ["mount", "cgroup", "uts"].map(|kind| json!({"type": kind}));
        bundle.with("/linux/namespaces", json!(namespaces))
    });
    scope.run("exec -d ID sleep 1000").ok();
    scope.run("kill ID KILL").ok();
    scope.run("delete --force ID").ok();
    assert_no_unit(&scope.unit);
}

fn devices_survive_a_reload_of_systemd() {
    let devices = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
    ]);
    let scope = Scope::start("machine.slice", |bundle| {
        bundle.with("/linux/resources", json!({"devices": devices}))
    });
    let script = "rm -f /tmp/full /tmp/kmsg; mknod /tmp/full c 1 7 && head -c1 /tmp/full | wc -c; \
                  mknod /tmp/kmsg c 1 11 && head -c1 /tmp/kmsg; echo x > /dev/null && echo null";
    let check = || {
        let mut command = scope.runtime.command(&format!("exec {} sh -c", scope.id));
        run(command.arg(script))
            .out("1\n")
            .out("null")
            .err("not permitted");
    };
    check();
    systemctl(&["daemon-reload"]).ok();
    check();
    scope.run("update --pids-limit 30 ID").ok();
    check();
}

fn pause_and_resume() {
    let scope = Scope::start("machine.slice", |bundle| bundle);
    scope.run("pause ID").ok();
    scope.runtime.wait_for(&scope.id, "paused");
    scope.run("update --pids-limit 30 ID").ok();
    scope.runtime.wait_for(&scope.id, "paused");
    scope.run("resume ID").ok();
    scope.runtime.wait_for(&scope.id, "running");
}

fn without_a_bus_systemd_is_asked_itself() {
    let runtime = Runtime::new();
    let id = runtime.id("private");
    let bundle = bundle(&["cat", "/proc/1/cgroup"], "");
    let program = stack_tests::programs::built("qrun");
    let script = format!(
        "mount -t tmpfs none /run/dbus && {} --root {} --systemd-cgroup run --bundle {} {id}",
        program.display(),
        runtime.root().display(),
        bundle.path().display(),
    );
    run(Command::new("unshare").args(["--mount", "sh", "-c", &script])).ok();
    assert_no_unit(&format!("qrun-{id}.scope"));
}

fn control_files_by_name_become_properties() {
    let scope = Scope::start("machine.slice", |bundle| {
        let unified = json!({
            "memory.high": "41943040", "memory.max": "83886080", "pids.max": "42",
            "cpu.max": "5000 50000", "cpu.weight": "42", "memory.oom.group": "1",
        });
        bundle.with("/linux/resources", json!({"unified": unified}))
    });
    for (name, value) in [
        ("MemoryHigh", "41943040"),
        ("MemoryMax", "83886080"),
        ("TasksMax", "42"),
        ("CPUQuotaPerSecUSec", "100ms"),
        ("CPUQuotaPeriodUSec", "50ms"),
        ("CPUWeight", "42"),
    ] {
        assert_eq!(scope.property(name), value, "{name}");
    }
    assert_eq!(scope.file(("", ""), "cpu.max"), "5000 50000");
    assert_eq!(scope.file(("", ""), "memory.oom.group"), "1");
    scope.run("update --cpu-idle 1 ID").ok();
    assert_eq!(scope.file(("", ""), "cpu.idle"), "1");
    scope.run("update --cpu-share 200 ID").ok();
    assert_eq!(scope.file(("", ""), "cpu.idle"), "0");
}

fn the_user_of_the_container_owns_its_cgroup() {
    use std::os::unix::fs::MetadataExt;
    let scope = Scope::start("machine.slice", |bundle| {
        let mapping = json!([{"hostID": 100_000, "containerID": 0, "size": 65_536}]);
        std::os::unix::fs::chown(bundle.rootfs(), Some(100_000), None).unwrap();
        let mut bundle = bundle
            .with("/linux/uidMappings", mapping.clone())
            .with("/linux/gidMappings", mapping)
            .with("/linux/namespaces/-", json!({"type": "user"}));
        for mount in bundle.config["mounts"].as_array_mut().unwrap() {
            if mount["type"] == "cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
            }
        }
        bundle.save();
        // The container's root has to come to its root file system.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bundle.path(), open).unwrap();
        bundle
    });
    let group = Path::new("/sys/fs/cgroup/machine.slice").join(&scope.unit);
    let owner = |name: &str| std::fs::metadata(group.join(name)).unwrap().uid();
    assert_eq!(
        ["", "cgroup.procs", "memory.max"].map(owner),
        [100_000, 100_000, 0]
    );
}

/// Makes a user whose systemd runs, for as long as this value lives.
struct User {
    name: String,
    uid: String,
}

impl User {
    fn new() -> Self {
        let name = format!("qt{}", std::process::id());
        run(Command::new("useradd").args(["--create-home", &name])).ok();
        let uid = run(Command::new("id").args(["-u", &name])).ok().to_owned();
        run(Command::new("loginctl").args(["enable-linger", &name])).ok();
        let bus = format!("/run/user/{uid}/bus");
        until("the user's bus is there", || {
            Path::new(&bus).exists().then_some(())
        });
        Self { name, uid }
    }

    /// Runs a shell script as this user, in the user's home directory.
    fn run(&self, script: &str) -> Outcome {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            &self.uid,
            "--regid",
            &self.uid,
            "--init-groups",
            "sh",
            "-c",
            script,
        ]);
        command.env("XDG_RUNTIME_DIR", format!("/run/user/{}", self.uid));
        command.env("HOME", format!("/home/{}", self.name));
        run(command.current_dir(format!("/home/{}", self.name)))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = Command::new("loginctl")
            .args(["disable-linger", &self.name])
            .status();
        let _ = Command::new("systemctl")
            .args(["stop", &format!("user@{}.service", self.uid)])
            .status();
        let _ = Command::new("userdel")
            .args(["--remove", "--force", &self.name])
            .output();
    }
}

fn a_user_without_privileges_has_units_of_their_own() {
    let user = User::new();
    let program = stack_tests::programs::built("qrun");
    user.run("mkdir -p b/rootfs/bin && cp /bin/busybox b/rootfs/bin && b/rootfs/bin/busybox --install -s b/rootfs/bin && \
              for it in b/rootfs/bin/*; do [ -f $it ] && [ ! -L $it ] || ln -sf busybox $it; done").ok();
    user.run(&format!("cd b && {} spec --rootless", program.display()))
        .ok();
    let path = format!("/home/{}/b/config.json", user.name);
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sleep", "1000"]);
    config["linux"]["resources"] = json!({"pids": {"limit": 30}, "memory": {"limit": 64 << 20}});
    std::fs::write(&path, config.to_string()).unwrap();
    let qrun = |line: &str| user.run(&format!("{} --systemd-cgroup {line}", program.display()));
    qrun("run -d --bundle b own < /dev/null > log 2>&1 || { cat log; exit 1; }").ok();
    let show = |name: &str| {
        let line = format!("systemctl --user show --property {name} --value qrun-own.scope");
        user.run(&line).ok().to_owned()
    };
    let expected = format!(
        "/user.slice/user-{0}.slice/user@{0}.service/user.slice/qrun-own.scope",
        user.uid
    );
    assert_eq!(show("ControlGroup"), expected);
    assert_eq!(show("TasksMax"), "30");
    let pids = std::fs::read_to_string(format!("/sys/fs/cgroup{expected}/pids.max")).unwrap();
    assert_eq!(pids.trim(), "30");
    // The process comes from a cgroup that is not the user's, so that systemd has to put it there.
    qrun("exec own true").ok();
    qrun("exec -d own sleep 1000").ok();
    let members =
        std::fs::read_to_string(format!("/sys/fs/cgroup{expected}/cgroup.procs")).unwrap();
    assert_eq!(members.lines().count(), 2, "{members}");
    qrun("update --pids-limit 40 own").ok();
    assert_eq!(show("TasksMax"), "40");
    qrun("delete --force own").ok();
    assert!(!Path::new(&format!("/sys/fs/cgroup{expected}")).exists());
}
