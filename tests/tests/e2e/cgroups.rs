//! `qrun` and cgroups that are not as usual: nested, threaded, read-only; and what `events` and `update` say of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::run;
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut both = tests!(
        "cgroups",
        &[Need::Root],
        [
            events_has_the_fields_that_runc_has,
            events_tells_of_an_oom_kill_and_ends_with_the_container,
            bad_intervals_are_refused,
            update_reads_both_spellings_of_cpu,
            cache_options_of_update_are_refused_without_the_hardware,
            a_read_only_cgroup_mount_is_told,
            nobody_makes_a_cgroup_when_told_so,
        ]
    );
    both.extend(tests!(
        "cgroups_v2",
        &[Need::Root, Need::Cgroup2],
        [
            a_container_in_a_container,
            a_threaded_parent_takes_some_limits,
            device_programs_do_not_pile_up,
            update_keeps_the_sum_of_memory_and_swap,
            pressure_is_in_events,
        ]
    ));
    both
}

/// As with crun: `podman run --cgroups=disabled`.
fn nobody_makes_a_cgroup_when_told_so() {
    let runtime = Runtime::new();
    let bundle = Bundle::sleeper();
    let id = runtime.id("free");
    let place = bundle.path().display();
    runtime.leave(&format!(
        "--cgroup-manager disabled run -d --bundle {place} {id}"
    ));
    let pid = runtime.state(&id)["pid"].to_string();
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(of(&pid), of("self"));
    let inside = runtime.run(&format!("exec {id} sh -c 'cat /proc/self/cgroup | wc -l'"));
    assert_eq!(inside.ok(), of("self").lines().count().to_string());
    for (line, text) in [
        ("ps", "cgroups not configured for container"),
        ("pause", "cgroups not configured for container"),
        ("update --memory 10m", "cannot set memory limit"),
    ] {
        let outcome = runtime.run(&format!("{line} {id}"));
        outcome.code(1).err(text);
    }
    let limited = bundle.with("/linux/resources/pids", json!({"limit": 7}));
    let limited = limited.path().display();
    runtime
        .run(&format!(
            "--cgroup-manager disabled run --bundle {limited} {}",
            runtime.id("limited")
        ))
        .code(1)
        .err("cannot set pids limit");
    runtime.run(&format!("kill {id} KILL")).ok();
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
    runtime.assert_nothing_left();
}

fn stats(runtime: &Runtime, id: &str) -> Value {
    let outcome = runtime.run(&format!("events --stats {id}"));
    let event: Value = serde_json::from_str(outcome.ok()).unwrap();
    assert_eq!(
        (&event["type"], &event["id"]),
        (&json!("stats"), &json!(id))
    );
    event["data"].clone()
}

fn keys(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

fn events_has_the_fields_that_runc_has() {
    let runtime = Runtime::new();
    let limits = json!({"pids": {"limit": 20}, "memory": {"limit": 64 << 20}});
    let bundle = Bundle::sleeper().with("/linux/resources", limits);
    let id = runtime.started("figures", &bundle);
    let data = stats(&runtime, &id);
    let mut expected = [
        "cpu",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "hugetlb",
        "intel_rdt",
        "network_interfaces",
    ];
    let mut found = keys(&data);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(data["pids"], json!({"current": 1, "limit": 20}));
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(
        data["memory"]["raw"].as_object().unwrap().len() > 10,
        "{data}"
    );
    assert!(
        data["cpu"]["usage"]["total"].as_u64().unwrap() > 0,
        "{data}"
    );
    assert!(data["network_interfaces"].is_null());
}

fn events_tells_of_an_oom_kill_and_ends_with_the_container() {
    let runtime = Runtime::new();
    let limits = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    let bundle = Bundle::sleeper().with("/linux/resources", limits);
    let id = runtime.started("hungry", &bundle);
    let mut events = runtime
        .command(&format!("events --interval 100ms {id}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with(&format!(r#"{{"type":"stats","id":"{id}","data":{{"cpu":"#))
    );
    runtime
        .run(&format!(
            "exec {id} dd if=/dev/zero of=/dev/null bs=100M count=1"
        ))
        .code(137);
    let oom = format!(r#"{{"type":"oom","id":"{id}"}}"#);
    assert!(lines.any(|line| line == oom), "it ended without {oom}");
    runtime.run(&format!("delete --force {id}")).ok();
    // The stream ends by itself.
    assert!(lines.all(|line| line.contains(&id)));
    assert!(events.wait().unwrap().success());
}

fn bad_intervals_are_refused() {
    let runtime = Runtime::new();
    let id = runtime.started("interval", &Bundle::sleeper());
    for (interval, expected) in [
        ("0", "duration interval must be greater than 0"),
        ("-5s", "duration interval must be greater than 0"),
        ("soon", "invalid value"),
    ] {
        runtime
            .run(&format!("events --interval={interval} {id}"))
            .code(1)
            .err(expected);
    }
}

fn update_reads_both_spellings_of_cpu() {
    let runtime = Runtime::new();
    let bundle = Bundle::sleeper().with("/linux/resources/CPU", json!({"Cpus": "0"}));
    let id = runtime.started("capitals", &bundle);
    let allowed = |cpus: &str| {
        let line = format!("exec {id} grep Cpus_allowed_list /proc/self/status");
        runtime.run(&line).out(&format!("\t{cpus}\n"));
    };
    allowed("0");
    let file = runtime.directory().join("limits.json");
    fs::write(&file, r#"{"cpu":{"shares":512},"CPU":{"Cpus":"1"}}"#).unwrap();
    runtime
        .run(&format!("update --resources {} {id}", file.display()))
        .ok();
    allowed("1");
}

fn cache_options_of_update_are_refused_without_the_hardware() {
    let runtime = Runtime::new();
    let id = runtime.started("cache", &Bundle::sleeper());
    let outcome = runtime.run(&format!("update --l3-cache-schema L3:0=f {id}"));
    outcome.code(1).err("Intel RDT");
    let outcome = runtime.run(&format!("update --mem-bw-schema MB:0=20 {id}"));
    outcome.code(1).err("Intel RDT");
}

fn a_read_only_cgroup_mount_is_told() {
    let runtime = Runtime::new();
    let id = runtime.id("readonly");
    let bundle = Bundle::new(&["true"]);
    let script = format!(
        "for it in $(awk '$3 ~ /^cgroup/ {{print $2}}' /proc/mounts); do mount -o remount,bind,ro $it || exit 9; done; \
         {} --root {} run --bundle {} {id}",
        built("qrun").display(),
        runtime.root().display(),
        bundle.path().display(),
    );
    let outcome = run(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    outcome
        .code(1)
        .err("unable to apply cgroup configuration")
        .err("read-only file system");
}

/// A directory of the tree, removed with those below it.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let path = Path::new("/sys/fs/cgroup").join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.file_name().unwrap().to_str().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("find")
            .arg(&self.0)
            .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", "+"])
            .status();
    }
}

fn a_container_in_a_container() {
    let runtime = Runtime::new();
    let mut outer = Bundle::sleeper();
    // What a runtime inside needs: its own capabilities and those that it is to give, a cgroup mount it may write to, and the program.
    let capabilities = json!([
        "CAP_SYS_ADMIN",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_MKNOD",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_SYS_CHROOT",
        "CAP_FOWNER",
        "CAP_SYS_RESOURCE",
        "CAP_BPF",
        "CAP_FSETID",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_AUDIT_WRITE"
    ]);
    for set in ["bounding", "effective", "permitted"] {
        outer.config["process"]["capabilities"][set] = capabilities.clone();
    }
    for mount in outer.config["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        }
    }
    outer.config["linux"]["maskedPaths"] = json!([]);
    outer.config["linux"]["readonlyPaths"] = json!([]);
    stack_tests::executable::copy(&built("qrun"), &outer.rootfs().join("bin/qrun"));
    let inner = Bundle::new(&["cat", "/proc/self/cgroup"]);
    let outer = outer.with(
        "/linux/resources/devices",
        json!([{"allow": true, "access": "rwm"}]),
    );
    run(Command::new("cp")
        .arg("-a")
        .arg(inner.path())
        .arg(outer.rootfs().join("inner")))
    .ok();
    let id = runtime.started("outer", &outer);
    let inside = |script: &str| run(runtime.command(&format!("exec {id} sh -c")).arg(script));
    // Processes are in the root of what is visible, so that it can give away the controllers of threads alone.
    inside("qrun run --bundle /inner one").out("0::/");
    // A limit of another is refused, with the reason.
    let limited =
        r#"sed -i 's/"resources":{/"resources":{"memory":{"limit":67108864},/' /inner/config.json"#;
    let refused = inside(&format!("{limited}; qrun run --bundle /inner two"));
    refused.code(1).err("cannot have the memory controller");
    // As engines do it that run in containers: everybody moves down first, and every limit can be had.
    let outcome = inside(
        "cd /sys/fs/cgroup; for it in $(cat cgroup.subtree_control); do echo -$it > cgroup.subtree_control; done; \
         mkdir self && for it in $(cat cgroup.procs); do echo $it > self/cgroup.procs; done 2>/dev/null; \
         echo $$ > self/cgroup.procs && cd / && qrun run --bundle /inner three",
    );
    outcome.out("0::/");
    inside("ls -d /sys/fs/cgroup/*/ | grep -v /self/").code(1);
}

fn a_threaded_parent_takes_some_limits() {
    let group = Group::new("qt-threaded");
    fs::create_dir(group.0.join("below")).unwrap();
    fs::write(group.0.join("below/cgroup.type"), "threaded").unwrap();
    let runtime = Runtime::new();
    let path = format!("/{}/below/own", group.name());
    let start = |limits: Value| {
        let bundle = Bundle::new(&["true"])
            .with("/linux/cgroupsPath", json!(path))
            .with("/linux/resources", limits);
        runtime.run_bundle(&bundle)
    };
    start(json!({"memory": {"limit": 64 << 20}}))
        .code(1)
        .err("cannot have the memory controller");
    assert!(!group.0.join("below/own").exists());
    start(json!({"pids": {"limit": 20}})).ok();
}

fn device_programs_do_not_pile_up() {
    let group = Group::new("qt-devices");
    let runtime = Runtime::new();
    // More than the 64 programs that a cgroup may have.
    let kmsg = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"});
    // To be written: where the kernel's messages are for administrators, reading them takes a capability.
    let script = "rm -f /tmp/kmsg; mknod /tmp/kmsg c 1 11 && : > /tmp/kmsg";
    let cgroup = json!(format!("/{}/own", group.name()));
    let bundles = [false, true].map(|allowed| {
        let mut rules = vec![json!({"allow": false, "access": "rwm"})];
        rules.extend(allowed.then(|| kmsg.clone()));
        Bundle::new(&["sh", "-c", script])
            .with("/linux/cgroupsPath", cgroup.clone())
            .with("/linux/resources", json!({"devices": rules}))
    });
    fs::create_dir(group.0.join("own")).unwrap();
    for round in 0..70 {
        let id = runtime.id("again");
        let allowed = round % 2 == 1;
        let bundle = &bundles[round % 2];
        let line = format!("run --keep --bundle {} {id}", bundle.path().display());
        let outcome = runtime.run(&line);
        assert_eq!(
            outcome.code == 0,
            allowed,
            "round {round}{}",
            outcome.report()
        );
        // Its directory stays, as if somebody else had made it; the state goes.
        fs::remove_dir_all(runtime.root().join(&id)).unwrap();
    }
}

fn update_keeps_the_sum_of_memory_and_swap() {
    let runtime = Runtime::new();
    let limits = json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}});
    let bundle = Bundle::sleeper().with("/linux/resources", limits);
    let id = runtime.started("swap", &bundle);
    let values = || {
        let line =
            format!("exec {id} cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.swap.max");
        runtime
            .run(&line)
            .ok()
            .lines()
            .map(|line| line.parse::<u64>().unwrap() >> 20)
            .collect::<Vec<_>>()
    };
    assert_eq!(values(), [64, 64]);
    runtime.run(&format!("update --memory 96M {id}")).ok();
    assert_eq!(values(), [96, 32]);
    let refused = runtime.run(&format!("update --memory 200M {id}"));
    refused
        .code(1)
        .err("memory+swap limit (134217728) should be >= memory limit (209715200)");
    assert_eq!(values(), [96, 32]);
}

fn pressure_is_in_events() {
    let runtime = Runtime::new();
    let id = runtime.started("pressure", &Bundle::sleeper());
    let data = stats(&runtime, &id);
    if !Path::new("/proc/pressure").exists() {
        assert!(data["cpu"].get("psi").is_none(), "{data}");
        return;
    }
    for part in ["cpu", "memory", "blkio"] {
        assert!(data[part]["psi"].is_object(), "{part}: {data}");
    }
}
