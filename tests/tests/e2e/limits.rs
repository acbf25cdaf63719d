//! Limits that bite: memory, processors, processes. The same on cgroup v1 and v2.

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
        ]
    );
    both.extend(tests!(
        "limits_v1",
        &[Need::Root, Need::Cgroup1],
        [v1_files_have_the_values]
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
    let id = runtime.id("limited");
    runtime.run(&format!("run --bundle {} {id}", bundle.path().display()))
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
    // full (1:7) is allowed above, null (1:3) always is, kmsg (1:11) is not.
    let script = "mknod /tmp/full c 1 7 && head -c1 /tmp/full | wc -c; mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; \
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
