//! Restart policies: carried by each container's own monitor, with no daemon to do it.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "restart",
        &[Need::Root],
        [
            on_failure_counts_its_attempts,
            success_is_no_failure,
            always_comes_back_until_it_is_stopped,
            pauses_grow_and_ps_says_so,
            stop_kill_and_rm_end_the_pause_at_once,
            a_killed_helper_loses_no_container,
            run_in_the_foreground_answers_with_the_first_end,
            update_changes_the_policy_of_a_running_container,
            start_all_starts_what_a_policy_wants,
            policies_are_checked,
            a_restart_does_not_remove,
            a_start_that_fails_is_recorded,
        ]
    )
}

#[track_caller]
fn wait_for_count(engine: &Engine, name: &str, count: u64) {
    until(&format!("{name} has been restarted {count} times"), || {
        let seen = engine.look(name, "/RestartCount").as_u64().unwrap();
        (seen >= count).then_some(())
    });
}

fn pid_of(engine: &Engine, name: &str) -> i32 {
    let pid = engine.look(name, "/State/Pid").as_i64().unwrap();
    i32::try_from(pid).unwrap()
}

/// The engine's own record.
fn record(engine: &Engine, name: &str) -> Value {
    let id = engine.look(name, "/Id").as_str().unwrap().to_owned();
    let path = engine.root().join("containers").join(id).join("state.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn on_failure_counts_its_attempts() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird --restart on-failure:2 base sh -c 'echo try; exit 3'");
    wait_for_count(&engine, "bird", 2);
    engine.wait_for("bird", "exited");
    assert_eq!(engine.look("bird", "/RestartCount"), 2);
    assert_eq!(engine.look("bird", "/State/ExitCode"), 3);
    assert_eq!(engine.ok("logs bird"), "try\ntry\ntry");
    let policy = engine.look("bird", "/HostConfig/RestartPolicy");
    assert_eq!(
        (&policy["Name"], &policy["MaximumRetryCount"]),
        (&Value::from("on-failure"), &Value::from(2))
    );
    // The user's own start begins the count anew.
    engine.ok("start bird");
    engine.wait_for_log("bird", "try\ntry\ntry\ntry\ntry\n");
}

fn success_is_no_failure() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird --restart on-failure base true");
    engine.wait_for("bird", "exited");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(engine.look("bird", "/State/Status"), "exited");
    assert_eq!(engine.look("bird", "/RestartCount"), 0);
}

fn always_comes_back_until_it_is_stopped() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird --restart always base sleep 1000");
    let first = pid_of(&engine, "bird");
    // Not by a command of ours: as if it had crashed.
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    until("it runs again", || {
        let pid = pid_of(&engine, "bird");
        (pid != 0 && pid != first).then_some(())
    });
    assert_eq!(engine.look("bird", "/RestartCount"), 1);
    engine.ok("exec bird true");
    for line in ["stop -t 0 bird", "kill bird", "kill -s TERM bird"] {
        engine.ok("start bird");
        // As PID 1 sleep would not hear of SIGTERM.
        if line.contains("TERM") {
            engine.ok("rm -f bird");
            engine.ok("run -d --init --name bird --restart always base sleep 1000");
        }
        engine.ok(line);
        engine.wait_for("bird", "exited");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(engine.look("bird", "/State/Status"), "exited", "{line}");
    }
}

fn pauses_grow_and_ps_says_so() {
    let engine = Engine::new().with_base();
    let begin = Instant::now();
    engine.ok("run -d --name bird --restart always base false");
    // 100 + 200 + 400 + 800 ms.
    wait_for_count(&engine, "bird", 5);
    assert!(begin.elapsed() > Duration::from_millis(1500));
    engine.wait_for("bird", "restarting");
    let state = engine.look("bird", "/State");
    assert_eq!(
        (&state["Restarting"], &state["Running"]),
        (&true.into(), &true.into())
    );
    assert_eq!(state["ExitCode"], 1);
    engine.run("ps").code(0).out("Restarting (1) ");
    engine.run("rm bird").refused(1, "is restarting");
    engine.run("exec bird true").refused(1, "is restarting");
    engine.run("pause bird").refused(1, "is restarting");
}

fn stop_kill_and_rm_end_the_pause_at_once() {
    let engine = Engine::new().with_base();
    for (line, is_gone) in [("stop", false), ("kill", false), ("rm -f", true)] {
        engine.ok("run -d --name bird --restart always base false");
        wait_for_count(&engine, "bird", 5);
        engine.wait_for("bird", "restarting");
        let helper = record(&engine, "bird")["restarter"]["pid"].as_i64();
        engine.ok(&format!("{line} bird"));
        if let Some(helper) = helper {
            until("the helper has gone", || {
                let path = format!("/proc/{helper}/cmdline");
                let line = std::fs::read_to_string(path).unwrap_or_default();
                (!line.contains("cleanup")).then_some(())
            });
        }
        if !is_gone {
            assert_eq!(engine.look("bird", "/State/Status"), "exited", "{line}");
            engine.ok("rm bird");
        }
    }
    engine.assert_nothing_left();
}

fn a_killed_helper_loses_no_container() {
    let engine = Engine::new().with_base();
    let script = "echo run; [ -e /calm ] && exec sleep 1000; exit 1";
    engine.ok(&format!(
        "run -d --name bird --restart always base sh -c '{script}'"
    ));
    wait_for_count(&engine, "bird", 6);
    let (helper, merged) = until("somebody waits to start it again", || {
        let record = record(&engine, "bird");
        let helper = record["restarter"]["pid"].as_i64()?;
        (record["status"] == "restarting").then_some((helper, record))
    });
    let monitor = merged["monitor"]["pid"].as_i64().unwrap();
    // From now on it stays, so that what follows can be told apart.
    let upper = engine.look("bird", "/GraphDriver/Data/UpperDir");
    std::fs::write(format!("{}/calm", upper.as_str().unwrap()), "").unwrap();
    for pid in [helper, monitor] {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        // The monitor ends by itself when its helper is gone.
        let _ = kill(pid, Signal::SIGKILL);
    }
    until("the next command starts it again", || {
        engine.run("ps").stdout.contains("Up ").then_some(())
    });
    assert_eq!(engine.look("bird", "/State/Status"), "running");
    engine.ok("exec bird true");
}

fn run_in_the_foreground_answers_with_the_first_end() {
    let engine = Engine::new().with_base();
    let outcome =
        engine.run("run --name bird --restart on-failure:1 base sh -c 'echo once; exit 3'");
    outcome.code(3).out("once\n");
    wait_for_count(&engine, "bird", 1);
    engine.wait_for_log("bird", "once\nonce\n");
}

fn update_changes_the_policy_of_a_running_container() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird base sleep 1000");
    engine.ok("update --restart always bird");
    assert_eq!(
        engine.look("bird", "/HostConfig/RestartPolicy/Name"),
        "always"
    );
    let first = pid_of(&engine, "bird");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    wait_for_count(&engine, "bird", 1);
    engine.wait_for("bird", "running");
    engine.ok("update --restart no bird");
    kill(Pid::from_raw(pid_of(&engine, "bird")), Signal::SIGKILL).unwrap();
    engine.wait_for("bird", "exited");
}

fn start_all_starts_what_a_policy_wants() {
    let engine = Engine::new().with_base();
    for (name, policy) in [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("never", "no"),
    ] {
        engine.ok(&format!(
            "run -d --name {name} --restart {policy} base sleep 1000"
        ));
    }
    let running = || {
        let mut names: Vec<_> = engine
            .ok("ps --format '{{.Names}}'")
            .lines()
            .map(str::to_owned)
            .collect();
        names.sort();
        names.join(" ")
    };
    engine.ok("stop -t 0 --all");
    assert_eq!(running(), "");
    engine.ok("start --all --filter restart-policy=unless-stopped");
    assert_eq!(running(), "unless");
    engine.ok("stop -t 0 unless");
    // Stopped by the user, only `always` is to be there after a boot.
    engine.ok("start --all --filter should-start-on-boot=true");
    assert_eq!(running(), "always");
}

fn policies_are_checked() {
    let engine = Engine::new().with_base();
    for (flags, text) in [
        ("--restart sometimes", "unknown policy 'sometimes'"),
        ("--restart always:3", "only be used with 'on-failure'"),
        ("--restart on-failure:x", "must be an integer"),
        (
            "--rm --restart always",
            "conflicting options: cannot specify both --restart and --rm",
        ),
    ] {
        engine
            .run(&format!("run {flags} base true"))
            .refused(125, text);
    }
    engine.ok("run -d --rm --name bird base sleep 1000");
    engine
        .run("update --restart always bird")
        .refused(1, "AutoRemove is enabled");
}

fn a_restart_does_not_remove() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d --rm --name bird --network none base sleep 1000");
    engine.ok("exec bird touch /egg");
    engine.ok("restart -t 0 bird");
    assert_eq!(engine.ok("exec bird ls /egg"), "/egg");
    engine.ok("stop -t 0 bird");
    until("it is removed at its end", || {
        (engine.run(&format!("inspect {id}")).code == 1).then_some(())
    });
}

/// The helper that starts a container again must not end itself when that fails.
fn a_start_that_fails_is_recorded() {
    let engine = Engine::new().with_base();
    let nest = engine.directory().join("nest");
    std::fs::create_dir(&nest).unwrap();
    engine.ok(
        "run -d --restart always --name bird --network none --mount type=bind,src=~/nest,dst=/nest \
         base sh -c 'usleep 300000; exit 1'",
    );
    std::fs::remove_dir(&nest).unwrap();
    until("the start's failure is recorded", || {
        let error = engine.look("bird", "/State/Error");
        error.as_str().unwrap().contains("nest").then_some(())
    });
    assert_eq!(engine.look("bird", "/State/Status"), "exited");
}
