//! The daily life of containers: looked at, renamed, frozen, logged, tidied up.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use stack_tests::engine::Engine;
use stack_tests::host::processes_naming;
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "life",
        &[Need::Root],
        [
            rename_moves_the_name_and_frees_the_old_one,
            neighbours_find_a_container_by_its_new_name,
            top_shows_the_containers_processes_and_runs_nothing_of_the_image,
            stats_have_dockers_columns,
            pause_takes_several_and_all,
            stop_waits_for_all_at_once,
            wait_knows_conditions,
            prune_removes_what_does_not_run,
            init_reaps_and_passes_signals_on,
            init_leaves_the_terminal_to_its_child,
            init_is_out_of_reach,
            log_drivers_and_their_options,
        ]
    )
}

fn rename_moves_the_name_and_frees_the_old_one() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d --name bird base sleep 1000");
    engine.ok("create --name robin base true");
    engine.run("rename bird robin").refused(1, "already in use");
    engine.run("rename bird bird").refused(1, "same name");
    engine.run("rename bird a/b").refused(1, "not valid");
    engine.run("rename nosuch other").refused(1, "nosuch");
    assert_eq!(engine.look("bird", "/Name"), "/bird");
    engine.ok("rename bird heron");
    assert_eq!(engine.look("heron", "/Id"), *id);
    engine.run("exec bird true").refused(1, "bird");
    engine.ok("exec heron true");
    // The old name is free, and the new one stays over a restart.
    engine.ok("create --name bird base true");
    engine.ok("restart -t 0 heron");
    assert_eq!(engine.look("heron", "/Id"), *id);
    engine.ok("rm -f heron");
    engine.ok("rename bird heron");
}

fn neighbours_find_a_container_by_its_new_name() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.219.3.0/24 nest");
    for name in ["bird", "robin"] {
        engine.ok(&format!(
            "run -d --name {name} --network nest base sleep 1000"
        ));
    }
    engine.ok("exec robin ping -c 1 -W 5 bird");
    engine.ok("rename bird heron");
    engine.ok("exec robin ping -c 1 -W 5 heron");
    engine
        .run("exec robin ping -c 1 -W 5 bird")
        .err("bad address");
}

fn top_shows_the_containers_processes_and_runs_nothing_of_the_image() {
    let engine = Engine::new().with_base();
    let script =
        "rm /bin/ps; printf \"#!/bin/sh\\ntouch /ran\\n\" > /bin/ps; chmod +x /bin/ps; sleep 1000";
    engine.ok(&format!("run -d --name bird base sh -c '{script}; true'"));
    engine.ok("exec -d bird sleep 777");
    until("both are there", || {
        let seen = engine.ok("top bird");
        (seen.contains("sleep 1000") && seen.contains("sleep 777")).then_some(())
    });
    let seen = engine.ok("top bird");
    let heading: Vec<_> = seen.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        heading,
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    assert!(seen.lines().nth(1).unwrap().starts_with("root"));
    let pid = engine.look("bird", "/State/Pid").to_string();
    assert!(seen.contains(&pid), "{pid} in {seen}");
    let own = engine.ok("top bird -o pid,args");
    assert_eq!(own.lines().count(), seen.lines().count(), "{own}");
    engine.run("top bird -o args").refused(1, "PID");
    engine.run("exec bird ls /ran").code(1);
    engine.ok("stop -t 0 bird");
    engine.run("top bird").refused(1, "is not running");
}

fn stats_have_dockers_columns() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird -m 64m base sh -c 'while :; do :; done'");
    engine.ok("create --name idle base true");
    let table = engine.ok("stats --no-stream");
    let heading = "CONTAINER ID   NAME   CPU %";
    assert!(table.starts_with(heading), "{table}");
    assert!(table.contains(" / 64MiB"), "{table}");
    assert_eq!(table.lines().count(), 2, "{table}");
    let row: Value =
        serde_json::from_str(&engine.ok("stats --no-stream --format json bird")).unwrap();
    let percent: f64 = row["CPUPerc"]
        .as_str()
        .unwrap()
        .trim_end_matches('%')
        .parse()
        .unwrap();
    assert!(percent > 5.0, "{row}");
    assert_eq!(row["PIDs"], "1");
    let all = engine.ok("stats --no-stream -a --format '{{.Name}} {{.PIDs}}'");
    assert_eq!(all, "idle 0\nbird 1");
    engine.run("stats --no-stream nosuch").refused(1, "nosuch");
}

fn pause_takes_several_and_all() {
    let engine = Engine::new().with_base();
    for name in ["one", "two"] {
        engine.ok(&format!(
            "run -d --name {name} --network none base sleep 1000"
        ));
    }
    assert_eq!(engine.ok("pause one two"), "one\ntwo");
    engine.run("pause one").refused(1, "is already paused");
    assert_eq!(engine.look("one", "/State/Status"), "paused");
    engine.ok("unpause --all");
    engine.run("unpause one").refused(1, "is not paused");
    assert_eq!(
        engine.ok("ps -q --filter status=running").lines().count(),
        2
    );
    engine.run("kill nosuch").refused(1, "nosuch");
    let both = engine.run("kill nosuch two");
    both.code(1).out("two\n").err("nosuch");
    engine.wait_for("two", "exited");
    engine.run("kill two").refused(1, "is not running");
}

fn stop_waits_for_all_at_once() {
    let engine = Engine::new().with_base();
    for name in ["one", "two", "three"] {
        engine.ok(&format!(
            "run -d --name {name} --network none base sleep 1000"
        ));
    }
    let begin = Instant::now();
    assert_eq!(engine.ok("stop -t 2 one two three"), "one\ntwo\nthree");
    // One after the other it would be six seconds.
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

fn wait_knows_conditions() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird --network none base sleep 1000");
    assert_eq!(engine.ok("wait --condition running bird"), "-1");
    let waiter = |condition: &str| {
        let mut command = engine.command(&format!("wait --condition {condition} bird"));
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let (next, mut gone) = (waiter("next-exit"), waiter("removed"));
    std::thread::sleep(Duration::from_millis(300));
    engine.ok("kill bird");
    assert_eq!(next.wait_with_output().unwrap().stdout, b"137\n");
    assert!(gone.try_wait().unwrap().is_none());
    engine.ok("rm bird");
    assert_eq!(gone.wait_with_output().unwrap().stdout, b"137\n");
}

fn prune_removes_what_does_not_run() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name runs --network none base sleep 1000");
    let ended = engine.ok("create --name ended base true");
    engine.ok("create --name kept --label keep base true");
    let asked = engine.run_with_input("container prune", b"n\n");
    asked.code(0).out("[y/N]");
    engine.ok("inspect ended");
    let outcome = engine.run("container prune -f --filter label!=keep");
    outcome.code(0).out("Deleted Containers:\n").out(&ended);
    outcome.out("\n\nTotal reclaimed space: 0B\n");
    assert_eq!(engine.ok("ps -a --format '{{.Names}}'"), "kept\nruns");
    engine.ok("container prune -f --filter until=1h");
    engine.ok("inspect kept");
    engine.ok("container prune -f");
    assert_eq!(engine.ok("ps -a --format '{{.Names}}'"), "runs");
}

fn init_reaps_and_passes_signals_on() {
    let engine = Engine::new().with_base();
    let script =
        "(sleep 0.2 & echo $! > /pid); sleep 0.6; ls -d /proc/$(cat /pid); echo self $$; exit 7";
    let outcome = engine.run(&format!("run --rm --init base sh -c '{script}'"));
    // Reaped: not even a zombie is left of the orphan.
    outcome.code(7).out("self 2\n").err("No such file");
    // sleep as PID 1 would not hear of it.
    engine.ok("run -d --init --name bird base sleep 1000");
    let begin = Instant::now();
    engine.ok("stop -t 30 bird");
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(engine.look("bird", "/State/ExitCode"), 143);
    assert_eq!(engine.look("bird", "/HostConfig/Init"), true);
    engine
        .run("run --rm --init base nosuch")
        .code(127)
        .err("nosuch");
    engine.run("run --rm --init base /etc").code(126);
    engine
        .run("run --rm --init base sh -c 'kill -9 $$'")
        .code(137);
    engine.ok("run -d --init --name trap base sh -c 'trap \"echo heard\" USR1; while :; do sleep 0.1; done'");
    engine.ok("exec trap true");
    until("it hears", || {
        engine.ok("kill -s USR1 trap");
        engine.ok("logs trap").contains("heard").then_some(())
    });
}

fn init_leaves_the_terminal_to_its_child() {
    let engine = Engine::new().with_base();
    let mut terminal = Pty::start(&engine.command("run --rm -it --init base sh"));
    terminal.send("echo pid $$\r");
    terminal.expect("pid 2");
    // A shell with job control, and the interrupt key reaches what is in its foreground.
    terminal.send("sleep 1000; echo over $?\r");
    terminal.expect("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    terminal.send("\x03");
    terminal.send("echo still here\r");
    terminal.expect("still here");
    terminal.send("exit 5\r");
    assert_eq!(terminal.exit(), 5);
}

fn init_is_out_of_reach() {
    let engine = Engine::new().with_base();
    let script = "for f in /proc/1/exe /dev/init; do (echo x > $f) && echo written; done; mount -o remount,rw /dev/init; true";
    let outcome = engine.run(&format!("run --rm --init base sh -c '{script}'"));
    outcome.code(0).err("Read-only file system");
    assert!(!outcome.stdout.contains("written"), "{}", outcome.report());
}

fn log_drivers_and_their_options() {
    let engine = Engine::new().with_base();
    let script = "echo out; echo err >&2";
    for driver in ["json-file", "local", "k8s-file"] {
        engine.ok(&format!("run --rm --log-driver {driver} base true"));
        engine.ok(&format!(
            "run -d --name bird --log-driver {driver} base sh -c '{script}'"
        ));
        engine.ok("wait bird");
        let log = engine.run("logs bird");
        log.code(0);
        assert_eq!((&*log.stdout, &*log.stderr), ("out\n", "err\n"), "{driver}");
        engine.ok("rm bird");
    }
    for driver in ["none", "passthrough"] {
        let outcome = engine.run(&format!(
            "run --name bird --log-driver {driver} base sh -c '{script}'"
        ));
        outcome.code(0).out("out\n").err("err\n");
        engine
            .run("logs bird")
            .refused(1, "configured logging driver does not support reading");
        engine.ok("rm bird");
    }
    engine.ok("run --name bird --log-opt labels=tier --log-opt env=A --log-opt tag={{.Name}} --label tier=front -e A=b base echo hi");
    assert_eq!(
        engine.ok("logs --details bird"),
        "A=b,tag=bird,tier=front hi"
    );
    // Each record has them, for whoever collects the files.
    let path = engine.look("bird", "/LogPath");
    let text = std::fs::read_to_string(path.as_str().unwrap()).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let attributes = serde_json::json!({"A": "b", "tag": "bird", "tier": "front"});
    assert_eq!(record["attrs"], attributes);
    // What they say is not on the monitor's command line, which everybody can read.
    engine.ok("run -d --name wren --log-opt env=A -e A=whispered base sh -c 'echo hi; sleep 1000'");
    until("it has said it", || {
        (engine.ok("logs --details wren") == "A=whispered hi").then_some(())
    });
    let ours = processes_naming(engine.directory());
    let told: Vec<_> = ours
        .iter()
        .filter(|(_, line)| line.contains("whispered"))
        .collect();
    assert!(!ours.is_empty() && told.is_empty(), "{told:?}");
    engine.ok("rm --force wren");
    assert_eq!(engine.ok("logs --until 1h bird"), "");
    assert_eq!(engine.ok("logs --since 1h bird"), "hi");
    for (flags, text) in [
        (
            "--log-opt colour=red",
            "unknown log opt 'colour' for json-file log driver",
        ),
        (
            "--log-driver none --log-opt max-size=1m",
            "unknown log opt 'max-size' for none log driver",
        ),
        ("--log-opt max-size=x", "invalid log option max-size=x"),
        ("--log-driver nosuch", "unknown log driver"),
    ] {
        engine
            .run(&format!("run {flags} base true"))
            .refused(125, text);
    }
}
