//! Every system call of `qrun create` made to fail in turn, and SIGKILL of every command at random moments: qrun says what
//! failed, and nothing is left on the host.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use stack_tests::bundle::Bundle;
use stack_tests::command::{Outcome, run, wait};
use stack_tests::needs::{Need, Test};
use stack_tests::random::Random;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::wait::{patience, within};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!("faults", &[Need::Root], [killed_at_random_moments]);
    let tracer = &[Need::Root, Need::Tracer];
    all.extend(tests!("faults", tracer, [every_call_of_create_fails]));
    all
}

/// Calls without which a process cannot even say what is wrong: memory, writing to standard error, and the standard
/// library's look at the standard streams.
const SPEECHLESS: [i64; 7] = [
    nix::libc::SYS_poll,
    nix::libc::SYS_mmap,
    nix::libc::SYS_brk,
    nix::libc::SYS_mremap,
    nix::libc::SYS_mprotect,
    nix::libc::SYS_write,
    nix::libc::SYS_arch_prctl,
];

/// One run of `qrun create` with a fault.
struct Tried {
    outcome: Outcome,
    /// How qrun ended.
    code: i64,
    /// Which call failed; `None` when there was none of that number.
    call: Option<i64>,
    /// How many calls each process made.
    made: Vec<u64>,
}

fn try_create(runtime: &Runtime, bundle: &Bundle, id: &str, place: &str, errno: i32) -> Tried {
    let log = runtime.directory().join("log");
    let _ = std::fs::remove_file(&log);
    let line = format!("create --bundle {} {id}", bundle.path().display());
    let create = runtime.command(&line);
    let mut command = Command::new(env!("CARGO_BIN_EXE_fail-call"));
    command
        .arg(place)
        .arg(errno.to_string())
        .arg("20")
        .arg(&log);
    command.arg(create.get_program()).args(create.get_args());
    let mut outcome = run(&mut command);
    let told: Value = match outcome.stdout.lines().last().map(serde_json::from_str) {
        Some(Ok(told)) => told,
        _ => panic!("fail-call says nothing{}", outcome.report()),
    };
    outcome.stderr = std::fs::read_to_string(&log).unwrap_or_default();
    Tried {
        code: told["code"].as_i64().unwrap(),
        call: told["call"].as_i64(),
        made: told["made"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_u64)
            .collect(),
        outcome,
    }
}

/// What calls fail with, in turn.
const ERRORS: [i32; 3] = [nix::libc::EIO, nix::libc::ENOMEM, nix::libc::EPERM];

fn every_call_of_create_fails() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.id("whole");
    let whole = try_create(&runtime, &bundle, &id, "0:0", ERRORS[0]);
    assert_eq!(whole.code, 0, "{}", whole.outcome.report());
    runtime.run(&format!("delete --force {id}")).ok();
    let mut wrong = Vec::new();
    let (mut tries, mut faults) = (0, 0);
    for (process, made) in whole.made.iter().enumerate() {
        for (call, errno) in (1..=*made).zip(ERRORS.into_iter().cycle()) {
            let id = runtime.id("victim");
            let tried = try_create(&runtime, &bundle, &id, &format!("{process}:{call}"), errno);
            tries += 1;
            faults += u32::from(tried.call.is_some());
            if let Some(problem) = judge(&runtime, &id, &tried) {
                wrong.push(format!(
                    "process {process}, call {call}, errno {errno}: {problem}"
                ));
            }
        }
    }
    assert!(whole.made.len() >= 2, "no init was seen: {:?}", whole.made);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // How often a process waits differs from run to run, and with that how many calls it makes.
    assert!(
        faults * 10 >= tries * 9,
        "only {faults} of {tries} calls were made to fail"
    );
    runtime.assert_nothing_left();
}

/// What is wrong with how qrun took a fault; `None` when all is well.
fn judge(runtime: &Runtime, id: &str, tried: &Tried) -> Option<String> {
    let Some(call) = tried.call else {
        runtime.run(&format!("delete --force {id}")).ok();
        // The process made fewer calls than the first time.
        return None;
    };
    let said = tried.outcome.stderr.trim();
    let mut problems = Vec::new();
    match tried.code {
        -1 => problems.push("hangs".to_owned()),
        0 => {
            let state = runtime.run(&format!("state {id}"));
            if !state.stdout.contains("\"created\"") {
                problems.push(format!(
                    "succeeds, and then: {}{}",
                    state.stdout, state.stderr
                ));
            }
        }
        _ if said.is_empty() && !SPEECHLESS.contains(&call) => {
            problems.push(format!("ends with {} and says nothing", tried.code));
        }
        // Before main, the standard library can do no better.
        _ if said.contains("panicked") && !said.contains("stack_overflow.rs") => {
            problems.push("panics".to_owned())
        }
        _ => {}
    }
    let deleted = runtime.run(&format!("delete --force {id}"));
    if deleted.code != 0 {
        problems.push(format!("delete: {}", deleted.stderr));
    }
    let left = || {
        let traces = stack_tests::host::traces(runtime.directory(), &[id.to_owned()]);
        (traces.is_empty() && !runtime.root().join(id).exists()).then_some(())
    };
    if within(Duration::from_secs(3), left).is_none() {
        let traces = stack_tests::host::traces(runtime.directory(), &[id.to_owned()]);
        problems.push(format!("leaves {traces:?}"));
    }
    (!problems.is_empty()).then(|| format!("system call {call}: {} ({said})", problems.join("; ")))
}

/// Commands to be killed, and what comes before each; `ID` is the container's.
const VICTIMS: [(&[&str], &str); 5] = [
    (&[], "create --bundle BUNDLE ID"),
    (&["create --bundle BUNDLE ID"], "start ID"),
    (&["create --bundle BUNDLE ID", "start ID"], "exec ID true"),
    (
        &["create --bundle BUNDLE ID", "start ID"],
        "update --memory 100000000 --pids-limit 30 ID",
    ),
    (
        &["create --bundle BUNDLE ID", "start ID"],
        "delete --force ID",
    ),
];

/// Moments at which each of them is killed.
const MOMENTS: u32 = 60;

#[expect(clippy::print_stderr, reason = "to be repeated with the same moments")]
fn killed_at_random_moments() {
    let seed = std::env::var("QSTACK_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(20);
    eprintln!("QSTACK_SEED={seed}");
    let mut random = Random::new(seed);
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    for (first, victim) in VICTIMS {
        let line = |line: &str, id: &str| {
            line.replace("BUNDLE", &bundle.path().display().to_string())
                .replace("ID", id)
        };
        let id = runtime.id("whole");
        first
            .iter()
            .for_each(|it| drop(runtime.leave(&line(it, &id))));
        let began = Instant::now();
        runtime.leave(&line(victim, &id));
        let whole = began.elapsed();
        runtime.run(&format!("delete --force {id}")).ok();
        for _ in 0..MOMENTS {
            let id = runtime.id("victim");
            first
                .iter()
                .for_each(|it| drop(runtime.leave(&line(it, &id))));
            let moment = random.below(usize::try_from(whole.as_nanos() * 5 / 4).unwrap());
            let moment = Duration::from_nanos(moment as u64);
            let mut child = runtime
                .command(&line(victim, &id))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(moment);
            child.kill().unwrap();
            assert!(wait(&mut child, patience()).is_some());
            let deleted = runtime.run(&format!("delete --force {id}"));
            assert_eq!(
                deleted.code,
                0,
                "`{victim}` killed after {moment:?}{}",
                deleted.report()
            );
            let left = || {
                let traces =
                    stack_tests::host::traces(runtime.directory(), std::slice::from_ref(&id));
                (traces.is_empty() && !runtime.root().join(&id).exists()).then_some(())
            };
            assert!(
                within(Duration::from_secs(5), left).is_some(),
                "`{victim}` killed after {moment:?} leaves {:?}",
                stack_tests::host::traces(runtime.directory(), std::slice::from_ref(&id))
            );
        }
    }
    runtime.assert_nothing_left();
}
