//! Containers by name, id, short id and any unambiguous beginning of an id; and what the engine
//! does with many of them at once.

use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "names",
        &[Need::Root],
        [
            every_command_takes_every_spelling,
            an_ambiguous_prefix_is_refused,
            a_name_is_made_up_and_a_name_beats_a_prefix,
            many_at_once,
            an_exit_is_recorded_whoever_waits,
        ]
    )
}

fn every_command_takes_every_spelling() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d --name bird base sleep 1000");
    for spelling in ["bird", &id, &id[..12], &id[..5]] {
        assert_eq!(engine.look(spelling, "/Id"), *id);
        assert_eq!(engine.ok(&format!("exec {spelling} echo it")), "it");
        engine.ok(&format!("logs {spelling}"));
        engine.ok(&format!("stop -t 0 {spelling}"));
        engine.ok(&format!("start {spelling}"));
        engine.ok(&format!("commit {spelling} image"));
    }
    let image = engine.ok("images -q base");
    assert_eq!(
        engine.ok(&format!("run --rm --network none {image} echo by id")),
        "by id"
    );
    engine.ok(&format!("rm -f {}", &id[..8]));
    engine.run("inspect bird").code(1);
}

fn an_ambiguous_prefix_is_refused() {
    let engine = Engine::new().with_base();
    // Seventeen ids: two of them begin with the same digit.
    let mut ids: Vec<_> = (0..17).map(|_| engine.ok("create base true")).collect();
    ids.sort();
    let pair = ids
        .windows(2)
        .find(|pair| pair[0][..1] == pair[1][..1])
        .unwrap();
    let prefix = &pair[0][..1];
    engine.run(&format!("rm {prefix}")).code(1).err(prefix);
    assert_eq!(engine.ok("ps -aq").lines().count(), 17);
}

fn a_name_is_made_up_and_a_name_beats_a_prefix() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d base sleep 1000");
    let made_up = engine.look(&id, "/Name");
    let made_up = made_up.as_str().unwrap().trim_start_matches('/');
    assert!(made_up.len() > 2 && engine.look(made_up, "/Id") == *id);
    let other = engine.ok(&format!("create --name {} base true", &id[..6]));
    assert_eq!(engine.look(&id[..6], "/Id"), *other);
}

fn many_at_once() {
    let engine = Engine::new().with_base();
    let children: Vec<_> = (0..12)
        .map(|number| {
            let line = format!("run --rm -p {}:80 base echo number {number}", 9000 + number);
            engine
                .command(&line)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("number {number}\n")
        );
    }
    assert_eq!(engine.ok("ps -aq"), "");
}

fn an_exit_is_recorded_whoever_waits() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird base sh -c 'usleep 100000; exit 5'");
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            engine
                .command("wait bird")
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in waiting {
        assert_eq!(child.wait_with_output().unwrap().stdout, b"5\n");
    }
    assert_eq!(engine.look("bird", "/State/ExitCode"), 5);
    assert_eq!(engine.ok("wait bird"), "5");
}
