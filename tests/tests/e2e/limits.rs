//! Limits that bite: memory, processors, processes. The same on cgroup v1 and v2.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut both = tests!(
        "limits",
        &[Need::Root],
        [
            qrun_memory_limit_kills,
            qrun_cpuset_binds,
            qrun_pids_limit_refuses,
            qrun_devices_are_refused_unless_allowed,
            memory_limit_kills_and_inspect_says_so,
            cpuset_binds,
            limits_are_in_inspect,
            a_parent_cgroup_is_the_callers,
            half_a_cpu_is_half_a_cpu,
            a_fork_bomb_is_held,
            update_changes_a_running_container_and_its_next_start,
            update_refuses_and_changes_nothing,
        ]
    );
    both.extend(tests!(
        "limits_v1",
        &[Need::Root, Need::Cgroup1],
        [
            v1_files_have_the_values,
            v1_update_that_the_kernel_refuses_changes_nothing,
        ]
    ));
    both.extend(tests!(
        "limits_v2",
        &[Need::Root, Need::Cgroup2],
        [v2_files_have_the_values]
    ));
    both
}

/// Writes 200 MiB of memory.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=200M count=1";

fn run_limited(args: &[&str], resources: Value) -> stack_tests::command::Outcome {
    let (runtime, mut bundle) = (Runtime::new(), Bundle::new(args));
    for (name, value) in resources.as_object().unwrap() {
        bundle = bundle.with(&format!("/linux/resources/{name}"), value.clone());
    }
    runtime.run_bundle(&bundle)
}

fn qrun_memory_limit_kills() {
    let limit = json!({"memory": {"limit": 64 << 20}});
    run_limited(&["sh", "-c", &format!("{HOG}; echo dd: $?")], limit).out("dd: 137");
    run_limited(&["sh", "-c", HOG], json!({"memory": {"limit": 400 << 20}})).code(0);
}

fn qrun_cpuset_binds() {
    let outcome = run_limited(
        &[
            "sh",
            "-c",
            "nproc; grep Cpus_allowed_list /proc/self/status",
        ],
        json!({"cpu": {"cpus": "1"}}),
    );
    assert_eq!(outcome.ok(), "1\nCpus_allowed_list:\t1");
}

fn qrun_pids_limit_refuses() {
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done";
    let outcome = run_limited(&["sh", "-c", script], json!({"pids": {"limit": 4}}));
    assert!(
        outcome.stderr.contains("can't fork"),
        "{}",
        outcome.report()
    );
}

fn qrun_devices_are_refused_unless_allowed() {
    let devices = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 7, "access": "rwm"},
    ]);
    // full (1:7) is allowed above, null (1:3) always is, kmsg (1:11) is not: to be written, because reading it may take a
    // capability as well.
    let script = "mknod /tmp/full c 1 7 && head -c1 /tmp/full | wc -c; mknod /tmp/kmsg c 1 11 && (: > /tmp/kmsg); \
                  echo x > /dev/null && echo null";
    let outcome = run_limited(&["sh", "-c", script], json!({"devices": devices}));
    outcome.out("1\n").out("null").err("not permitted");
}

fn memory_limit_kills_and_inspect_says_so() {
    let engine = Engine::new().with_base();
    engine
        .run(&format!("run -m 64m --name hog base {HOG}"))
        .code(137);
    assert_eq!(engine.look("hog", "/State/OOMKilled"), true);
    assert_eq!(engine.look("hog", "/State/ExitCode"), 137);
    engine.run(&format!("run --name eater base {HOG}")).code(0);
    assert_eq!(engine.look("eater", "/State/OOMKilled"), false);
}

fn cpuset_binds() {
    let engine = Engine::new().with_base();
    let seen = engine
        .ok("run --rm -cpuset 1 base sh -c 'nproc; grep Cpus_allowed_list /proc/self/status'");
    assert_eq!(seen, "1\nCpus_allowed_list:\t1");
    engine.ok("run -d --name bound -cpuset 0 base sleep 1000");
    assert!(
        engine
            .ok("exec bound grep Cpus_allowed_list /proc/self/status")
            .ends_with("\t0")
    );
}

fn limits_are_in_inspect() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -m 100m -cpuset 0 -cpushare 512 base sleep 1000");
    assert_eq!(engine.look("one", "/HostConfig/Memory"), 100 << 20);
    assert_eq!(engine.look("one", "/HostConfig/CpusetCpus"), "0");
    assert_eq!(engine.look("one", "/HostConfig/CpuShares"), 512);
}

/// The content of a control file of the container's cgroup, as the container sees it.
fn control(engine: &Engine, file: &str) -> String {
    engine.ok(&format!("exec one cat /sys/fs/cgroup/{file}"))
}

fn v1_files_have_the_values() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -m 100m -cpuset 0 -cpushare 512 base sleep 1000");
    assert_eq!(
        control(&engine, "memory/memory.limit_in_bytes"),
        (100 << 20).to_string()
    );
    assert_eq!(control(&engine, "cpuset/cpuset.cpus"), "0");
    assert_eq!(control(&engine, "cpu/cpu.shares"), "512");
}

fn v2_files_have_the_values() {
    let engine = Engine::new().with_base();
    let outcome =
        engine.run("run -d --name one -m 100m -cpuset 0 --oom_kill_disable 1 base sleep 1000");
    outcome.code(0).err("oom");
    assert_eq!(control(&engine, "memory.max"), (100 << 20).to_string());
    assert_eq!(control(&engine, "cpuset.cpus"), "0");
}

/// The first of these control files that there is: version 1's, version 2's.
fn either(engine: &Engine, files: [&str; 2]) -> String {
    let [first, second] = files.map(|file| format!("/sys/fs/cgroup/{file}"));
    engine.ok(&format!(
        "exec one sh -c 'cat {first} 2>/dev/null || cat {second}'"
    ))
}

/// Seconds of CPU time that the container has had.
fn cpu_seconds(engine: &Engine) -> f64 {
    let text = either(engine, ["cpuacct/cpuacct.usage", "cpu.stat"]);
    match text.strip_prefix("usage_usec ") {
        Some(rest) => rest.lines().next().unwrap().parse::<f64>().unwrap() / 1e6,
        None => text.parse::<f64>().unwrap() / 1e9,
    }
}

/// It stays, as with docker; here it is removed again, also when the test fails.
struct Parent(String);

impl Drop for Parent {
    fn drop(&mut self) {
        stack_tests::host::remove_empty_cgroups(&self.0);
    }
}

fn a_parent_cgroup_is_the_callers() {
    let parent = Parent(format!("qtnest{}", std::process::id()));
    let engine = Engine::new().with_base();
    let name = &parent.0;
    engine.ok(&format!(
        "run -d --network none --cgroup-parent {name} --name bird base sleep 1000"
    ));
    engine.ok("exec bird true");
    assert_eq!(engine.look("bird", "/HostConfig/CgroupParent"), **name);
    let path = engine.look("bird", "/CgroupPath");
    let below = path.as_str().unwrap().strip_prefix(&format!("/{name}/"));
    assert!(below.is_some_and(|it| it.starts_with("qengine-")), "{path}");
    engine.ok("rm -f bird");
}

fn half_a_cpu_is_half_a_cpu() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -cpus 0.5 base sh -c 'while :; do :; done'");
    assert_eq!(engine.look("one", "/HostConfig/NanoCpus"), 500_000_000);
    let (before, begin) = (cpu_seconds(&engine), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let (after, passed) = (cpu_seconds(&engine), begin.elapsed());
    let share = (after - before) / passed.as_secs_f64();
    // How much less depends on who else wants the CPUs.
    assert!(
        (0.0..0.65).contains(&share) && share > 0.0,
        "{share:.3} of a CPU"
    );
}

fn a_fork_bomb_is_held() {
    let engine = Engine::new().with_base();
    let script = "b() { b & b & wait; }; b; while :; do sleep 1; done";
    engine.ok(&format!("run -d --name one -mpid 30 base sh -c '{script}'"));
    assert_eq!(engine.look("one", "/HostConfig/PidsLimit"), 30);
    engine.wait_for_log("one", "can't fork");
    let pids = engine.ok("stats --no-stream --format '{{.PIDs}}' one");
    assert!(pids.parse::<u32>().unwrap() <= 30, "{pids}");
    // The host has not noticed.
    engine.ok("run --rm base sh -c 'true | true'");
    engine.ok("rm -f one");
}

fn update_changes_a_running_container_and_its_next_start() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -m 100m base sleep 1000");
    engine.ok("create --name two base true");
    let memory = || {
        let files = ["memory/memory.limit_in_bytes", "memory.max"];
        either(&engine, files)
    };
    let pids = || either(&engine, ["pids/pids.max", "pids.max"]);
    // Up and down: memory alone and memory with swap have to be written in different orders.
    for size in [300, 50, 200] {
        engine.ok(&format!("update -m {size}m one"));
        assert_eq!(memory(), (size << 20_u32).to_string());
    }
    let answer = engine.ok("update -mmem 150 --cpus 0.5 -mpid 40 -cpuset 1 one two");
    assert_eq!(answer, "one\ntwo");
    let hold = || {
        assert_eq!(memory(), (150 << 20).to_string());
        assert_eq!(pids(), "40");
        let quota = either(&engine, ["cpu/cpu.cfs_quota_us", "cpu.max"]);
        assert_eq!(quota.split(' ').next(), Some("50000"));
        assert_eq!(either(&engine, ["cpuset/cpuset.cpus", "cpuset.cpus"]), "1");
    };
    hold();
    engine.ok("restart -t 0 one");
    hold();
    let limits = engine.look("two", "/HostConfig");
    assert_eq!(limits["Memory"], 150 << 20);
    assert_eq!(limits["MemorySwap"], 300 << 20);
    assert_eq!(limits["PidsLimit"], 40);
    assert_eq!(limits["CpusetCpus"], "1");
    engine.ok("update -m 0 --pids-limit -1 one");
    assert_eq!(pids(), "max");
    assert_eq!(engine.look("one", "/HostConfig/Memory"), 0);
}

fn update_refuses_and_changes_nothing() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -m 100m --memory-swap 150m base sleep 1000");
    let before = engine.look("one", "/HostConfig");
    for (flags, text) in [
        ("-m 200m", "--memory-swap must not be below --memory"),
        ("--cpuset-cpus 4095", "this machine has"),
        ("-m 1k", "the smallest limit is 512k"),
        ("--cpu-shares 1 --pids-limit 7", "shares"),
    ] {
        engine.run(&format!("update {flags} one")).refused(1, text);
    }
    assert_eq!(engine.look("one", "/HostConfig"), before);
    let pids = either(&engine, ["pids/pids.max", "pids.max"]);
    assert_eq!(pids, "max");
    let both = engine.run("update --pids-limit 9 nosuch one");
    both.code(1).out("one\n").err("nosuch");
}

fn v1_update_that_the_kernel_refuses_changes_nothing() {
    let engine = Engine::new().with_base();
    let script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; echo full; sleep 1000";
    engine.ok(&format!(
        "run -d --name one -m 100m --cpus 1 base sh -c '{script}'"
    ));
    engine.wait_for_log("one", "full");
    let before = engine.look("one", "/HostConfig");
    let outcome = engine.run("update -m 10m --cpus 0.5 --pids-limit 7 one");
    outcome.refused(1, "memory");
    assert_eq!(engine.look("one", "/HostConfig"), before);
    for (file, value) in [
        ("memory/memory.limit_in_bytes", "104857600"),
        ("memory/memory.memsw.limit_in_bytes", "209715200"),
        ("cpu/cpu.cfs_quota_us", "100000"),
        ("pids/pids.max", "max"),
    ] {
        assert_eq!(control(&engine, file), value, "{file}");
    }
}
