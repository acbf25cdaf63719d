//! SIGKILL at bad moments: nothing is stuck, nothing is left, the next command works.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use stack_tests::bundle::Bundle;
use stack_tests::engine::Engine;
use stack_tests::evil::{Evil, Malice};
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::random::Random;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::usage::times;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "killed",
        &[Need::Root],
        [
            the_client_of_run_dies_and_the_container_lives,
            the_client_of_run_dies_at_any_moment,
            the_engine_dies_a_hundred_times,
            a_name_without_a_record_goes,
            logs_and_codes_are_whole_whoever_dies,
            qrun_create_dies_at_any_moment,
        ]
    );
    all.extend(tests!(
        "killed",
        &[Need::Root, Need::Program("strace")],
        [qrun_create_dies_in_a_system_call]
    ));
    all.extend(tests!(
        "killed",
        stack_tests::registry::NEEDS,
        [the_client_of_pull_dies_half_way]
    ));
    all
}

/// Starts `command` with nothing on its streams.
fn start(mut command: Command) -> Child {
    let streams = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    streams.spawn().unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn the_client_of_run_dies_and_the_container_lives() {
    let engine = Engine::new().with_base();
    let script = "i=0; while true; do i=$((i+1)); echo line $i; usleep 20000; done";
    let client = start(engine.command(&format!("run --name bird base sh -c '{script}'")));
    until("the container runs", || {
        engine.run("ps").stdout.contains("bird").then_some(())
    });
    engine.wait_for_log("bird", "line 2\n");
    kill(client);
    engine.wait_for_log("bird", "line 20\n");
    assert_eq!(engine.ok("exec bird echo inside"), "inside");
    engine.ok("stop -t 0 bird");
    assert_eq!(engine.look("bird", "/State/ExitCode"), 137);
    engine.ok("start bird");
    engine.ok("rm -f bird");
    engine.assert_nothing_left();
}

fn the_client_of_run_dies_at_any_moment() {
    let engine = Engine::new().with_base();
    for moment in 0..24 {
        let client = start(engine.command("run --name bird -p 8080:80 base sleep 1000"));
        std::thread::sleep(Duration::from_millis(moment * 4));
        kill(client);
        // Whatever it had come to: there is a container of this name that can be removed, or none.
        let removed = engine.run("rm -f bird");
        let sound = removed.code == 0 || removed.stderr.contains("bird");
        assert!(sound, "killed after {} ms{}", moment * 4, removed.report());
        let next = engine.run("run --rm --name bird -p 8080:80 base echo works");
        assert_eq!(next.ok(), "works", "killed after {} ms", moment * 4);
    }
    engine.assert_nothing_left();
}

/// What is killed, what it needs to be there, what makes it undone, and what must work afterwards.
struct Victim {
    before: &'static [&'static str],
    line: &'static str,
    after: &'static [&'static str],
    next: &'static str,
}

const VICTIMS: [Victim; 8] = [
    Victim {
        before: &[],
        line: "run -d --name bird -p 8080:80 -v nest:/nest base sleep 1000",
        after: &["rm -f -v bird"],
        next: "run --rm --name bird -p 8080:80 base echo works",
    },
    Victim {
        before: &[],
        line: "run --rm --name bird --network fen -p 8080:80 base true",
        after: &["rm -f -v bird"],
        next: "run --rm --name bird --network fen -p 8080:80 base echo works",
    },
    Victim {
        before: &["run -d --name bird -p 8080:80 base sleep 1000"],
        line: "stop -t 0 bird",
        after: &["rm -f bird"],
        next: "run --rm --name bird -p 8080:80 base echo works",
    },
    Victim {
        before: &["run -d --name bird -p 8080:80 base sleep 1000"],
        line: "rm -f bird",
        after: &["rm -f bird"],
        next: "run --rm --name bird -p 8080:80 base echo works",
    },
    Victim {
        before: &["run -d --name bird base sh -c 'echo sung > /song; sleep 1000'"],
        line: "commit bird song",
        after: &["rm -f bird", "rmi -f song"],
        next: "run --rm base echo works",
    },
    Victim {
        before: &[],
        line: "build -t sung --no-cache ~/nest",
        after: &["rmi -f sung"],
        next: "build -q -t sung ~/nest",
    },
    Victim {
        before: &[],
        line: "network create --subnet 10.99.0.1/24 reed",
        after: &["network rm reed"],
        next: "network create --subnet 10.99.0.1/24 reed",
    },
    Victim {
        before: &[
            "network create --subnet 10.99.0.1/24 reed",
            "run --rm --network reed base true",
        ],
        line: "network rm reed",
        after: &["network rm reed"],
        next: "network create --subnet 10.99.0.1/24 reed",
    },
];

/// At moments spread over the whole length of each command, with a little chance.
fn the_engine_dies_a_hundred_times() {
    const ROUNDS: u32 = 13;
    let engine = Engine::new().with_base();
    let nest = engine.directory().join("nest");
    std::fs::create_dir(&nest).unwrap();
    std::fs::write(
        nest.join("Dockerfile"),
        "FROM base\nCOPY egg /egg\nRUN cp /egg /other\nRUN echo hatched > /bird\n",
    )
    .unwrap();
    std::fs::write(nest.join("egg"), vec![b'e'; 1 << 20]).unwrap();
    engine.ok("network create fen");
    let mut chance = std::process::id();
    for victim in &VICTIMS {
        for line in victim.before {
            engine.ok(line);
        }
        let began = std::time::Instant::now();
        engine.run(victim.line);
        let whole = began.elapsed();
        undo(&engine, victim);
        for round in 0..ROUNDS {
            for line in victim.before {
                engine.ok(line);
            }
            chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let moment = whole * round / ROUNDS + whole / ROUNDS * (chance >> 16) / 65536;
            let client = start(engine.command(victim.line));
            std::thread::sleep(moment);
            kill(client);
            undo(&engine, victim);
            let next = engine.run(victim.next);
            assert_eq!(
                next.code,
                0,
                "after `{}` was killed at {moment:?} of {whole:?}{}",
                victim.line,
                next.report()
            );
            undo(&engine, victim);
        }
    }
    engine.ok("system check");
    engine.ok("volume rm -f nest");
    engine.ok("network rm fen");
    engine.assert_nothing_left();
}

/// What is asked about containers while they write.
const ASKED: [&str; 6] = ["logs -f", "attach", "wait", "inspect", "top", "exec -i"];

fn logs_and_codes_are_whole_whoever_dies() {
    const LINES: usize = 3000;
    let containers = times(20, 100);
    let engine = Engine::new().with_base();
    for number in 1..=containers {
        let script = format!(
            "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo $i; [ $((i % 100)) != 0 ] || usleep 100000; done; exit {number}"
        );
        engine.ok(&format!("run -d --name c{number} base sh -c '{script}'"));
    }
    let seed = u64::from(std::process::id());
    let mut random = Random::new(seed);
    for _ in 0..containers * 5 {
        let container = random.below(containers) + 1;
        let program = random.one(&ASKED);
        let rest = if program == "exec -i" {
            " sleep 10"
        } else {
            ""
        };
        let client = start(engine.command(&format!("{program} c{container}{rest}")));
        std::thread::sleep(Duration::from_millis(random.number() % 40));
        if random.chance(50) {
            kill_runtimes(engine.directory());
        }
        kill(client);
    }
    let whole: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    for number in 1..=containers {
        let name = format!("c{number}");
        engine.wait_for(&name, "exited");
        assert_eq!(engine.look(&name, "/State/ExitCode"), number, "seed {seed}");
        let log = engine.run(&format!("logs {name}"));
        assert!(log.stdout == whole, "seed {seed}, {name}{}", log.report());
        engine.ok(&format!("rm {name}"));
    }
    engine.assert_nothing_left();
}

/// Kills every `qrun` that is at work below a directory.
fn kill_runtimes(directory: &std::path::Path) {
    let runtime = built("qrun");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let place = entry.path();
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(place.join("cmdline")).unwrap_or_default();
        if std::fs::read_link(place.join("exe")).is_ok_and(|program| program == runtime)
            && String::from_utf8_lossy(&line).contains(&*directory.to_string_lossy())
        {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

/// A container that has a lock and a name, but no record yet when its maker is killed: both go.
fn a_name_without_a_record_goes() {
    let engine = Engine::new();
    engine.ok("system check");
    let (id, store) = ("7".repeat(64), engine.root());
    let directory = store.join("containers").join(&id);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("lock"), "").unwrap();
    let name = store.join("names/steady_heron");
    std::os::unix::fs::symlink(&id, &name).unwrap();
    engine.ok("ps --all");
    assert!(!directory.exists());
    assert!(!name.is_symlink());
}

/// Removes what the victim made, if it came that far.
fn undo(engine: &Engine, victim: &Victim) {
    for line in victim.after {
        engine.run(line);
    }
}

fn the_client_of_pull_dies_half_way() {
    let engine = Engine::new();
    let evil = Evil::start(Malice::Stalled);
    let reference = evil.reference("busybox:latest");
    let client = start(engine.command(&format!("pull {reference}")));
    until("a layer is asked for", || {
        (evil.requests("/blobs/") >= 1).then_some(())
    });
    std::thread::sleep(Duration::from_millis(200));
    kill(client);
    assert!(
        !engine.ok("images").contains("busybox"),
        "half an image is listed"
    );
    drop(evil);
    let good = engine.registry().reference("busybox:latest");
    for moment in [20, 60, 120, 200] {
        let client = start(engine.command(&format!("pull {good}")));
        std::thread::sleep(Duration::from_millis(moment));
        kill(client);
    }
    engine.ok(&format!("pull {good}"));
    assert_eq!(engine.ok(&format!("run --rm {good} echo works")), "works");
}

/// Deletes what is left of `id`, and fails unless all is clean and the next create works.
#[track_caller]
fn recovers(runtime: &Runtime, bundle: &Bundle, id: &str, when: &str) {
    let deleted = runtime.run(&format!("delete --force {id}"));
    assert_eq!(deleted.code, 0, "killed {when}{}", deleted.report());
    runtime.assert_nothing_left();
    let next = runtime.run(&format!("run --bundle {} {id}", bundle.path().display()));
    assert_eq!(next.ok(), "works", "killed {when}");
}

fn qrun_create_dies_at_any_moment() {
    let (runtime, bundle) = (Runtime::new(), Bundle::new(&["echo", "works"]));
    for moment in 0..25 {
        let id = runtime.id("victim");
        let child =
            start(runtime.command(&format!("create --bundle {} {id}", bundle.path().display())));
        std::thread::sleep(Duration::from_micros(moment * 400));
        kill(child);
        recovers(
            &runtime,
            &bundle,
            &id,
            &format!("after {} us", moment * 400),
        );
    }
}

/// Lets strace kill whichever process of `qrun create` makes the nth call of a kind.
fn qrun_create_dies_in_a_system_call() {
    let (runtime, bundle) = (Runtime::new(), Bundle::new(&["echo", "works"]));
    let mut missed = Vec::new();
    for point in [
        "execveat:when=1",
        "mkdir:when=1",
        "mkdirat:when=1",
        "mkdirat:when=4",
        "mkdirat:when=9",
        "flock:when=1",
        "clone3:when=1",
        "write:when=2",
        "write:when=9",
        "write:when=18",
        "sendmsg:when=1",
        "recvmsg:when=1",
        "renameat:when=1",
        "openat2:when=5",
        "move_mount:when=1",
        "move_mount:when=9",
        "mount:when=2",
        "mknodat:when=3",
        "pivot_root:when=1",
        "sethostname:when=1",
        "capset:when=1",
    ] {
        let id = runtime.id("victim");
        let mut command = Command::new("strace");
        let (call, when) = point.split_once(':').unwrap();
        let inject = format!("inject={call}:signal=SIGKILL:{when}");
        command.args([
            "-f",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
            &inject,
        ]);
        command.arg(built("qrun")).arg("--root").arg(runtime.root());
        // Written at the end of a create that came that far.
        let pid_file = runtime.directory().join(format!("{id}.pid"));
        command.args(["create", "--bundle"]).arg(bundle.path());
        command.arg("--pid-file").arg(&pid_file).arg(&id);
        let mut child = start(command);
        // strace -f stays as long as the container it traces.
        let ended = stack_tests::wait::within(stack_tests::wait::patience(), || {
            let created = || std::fs::metadata(&pid_file).is_ok_and(|file| file.len() > 0);
            (child.try_wait().unwrap().is_some() || created()).then_some(())
        });
        assert!(ended.is_some(), "qrun create hangs, killed at {point}");
        if child
            .try_wait()
            .unwrap()
            .is_none_or(|status| status.success())
        {
            missed.push(point);
        }
        let _ = child.kill();
        let _ = child.wait();
        recovers(&runtime, &bundle, &id, &format!("at {point}"));
    }
    assert!(
        missed.len() < 5,
        "points that are never reached: {missed:?}"
    );
}
