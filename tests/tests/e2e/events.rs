//! `events`: told by whoever does something, heard by whoever listens.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "events",
        &[Need::Root],
        [
            a_containers_life_is_told_in_order,
            they_are_followed_as_they_happen,
            filters_choose,
        ]
    )
}

/// All events up to now.
fn told(engine: &Engine, flags: &str) -> Vec<Value> {
    let text = engine.ok(&format!(
        "events --since 1h --until 0s --format json {flags}"
    ));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn actions(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["Action"].as_str().unwrap())
        .collect()
}

fn a_containers_life_is_told_in_order() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d --name bird --label tier=front --network none base sleep 1000");
    engine.ok("exec bird true");
    engine.ok("pause bird");
    engine.ok("unpause bird");
    engine.ok("update --pids-limit 50 bird");
    engine.ok("rename bird heron");
    engine.ok("restart -t 0 heron");
    engine.ok("commit heron nest");
    engine.ok("rm -f heron");
    let events = told(&engine, "--filter type=container");
    let expected = [
        "create",
        "start",
        "exec_create: true",
        "exec_start: true",
        "exec_die",
        "pause",
        "unpause",
        "update",
        "rename",
        "kill",
        "kill",
        "die",
        "stop",
        "start",
        "restart",
        "commit",
        "kill",
        "die",
        "destroy",
    ];
    assert_eq!(actions(&events), expected);
    let rename = &events[8];
    assert_eq!(rename["Actor"]["ID"], *id);
    assert_eq!(rename["status"], "rename");
    let attributes = &rename["Actor"]["Attributes"];
    assert_eq!(attributes["oldName"], "/bird");
    assert_eq!(attributes["name"], "heron");
    assert_eq!(attributes["image"], "base");
    assert_eq!(attributes["tier"], "front");
    assert_eq!(events[11]["Actor"]["Attributes"]["exitCode"], "137");
    let times: Vec<i64> = events
        .iter()
        .map(|event| event["timeNano"].as_i64().unwrap())
        .collect();
    assert!(times.is_sorted());
}

fn they_are_followed_as_they_happen() {
    let engine = Engine::new().with_base();
    engine.ok("run --rm --network none base true");
    let mut follower = engine
        .command("events --filter event=die")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // It may not be listening yet: the first one that it hears will do.
    let heard = std::thread::scope(|scope| {
        let heard = scope.spawn(move || lines.next());
        while !heard.is_finished() {
            engine
                .run("run --network none --name bird base sh -c 'exit 7'")
                .code(7);
            engine.ok("rm bird");
        }
        heard.join().unwrap()
    });
    let line = heard.unwrap().unwrap();
    assert!(line.contains(" container die "), "{line}");
    assert!(
        line.contains("exitCode=7") && line.contains("name=bird"),
        "{line}"
    );
    follower.kill().unwrap();
    follower.wait().unwrap();
}

fn filters_choose() {
    let engine = Engine::new().with_base();
    engine.ok("tag base second:2");
    engine.ok("network create --subnet 10.211.7.0/24 nest");
    engine.ok("network rm nest");
    engine.ok("run --name bird --network none --label tier=front base true");
    engine.ok("run --name heron --network none base true");
    let count = |filter: &str| told(&engine, filter).len();
    assert_eq!(
        actions(&told(&engine, "--filter type=network")),
        ["create", "destroy"]
    );
    assert_eq!(actions(&told(&engine, "--filter event=tag"))[..], ["tag"]);
    assert_eq!(count("--filter container=bird --filter event=start"), 1);
    assert_eq!(
        count("--filter event=start --filter event=die --filter type=container"),
        4
    );
    assert_eq!(count("--filter label=tier=front --filter event=create"), 1);
    assert_eq!(count("--filter image=base --filter event=create"), 2);
    assert_eq!(count("--filter image=nosuch"), 0);
    engine
        .run("events --filter colour=red")
        .refused(1, "invalid filter 'colour'");
    let lines = engine.ok("events --since 1h --until 0s --filter event=die --format '{{.Type}} {{.Actor.Attributes.name}}'");
    assert_eq!(lines, "container bird\ncontainer heron");
}
