//! `bench`: what starting a container costs, side by side in one run, on one machine.
//!
//! The contestants of a discipline take turns, in any order, so that whatever else the machine does hits all of
//! them alike. Prints one table a discipline and writes every single time to
//! `target/bench/<discipline>.json`. Figures are for reading: nothing fails because of one.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use stack_tests::command::typed;
use stack_tests::engine::Engine;
use stack_tests::peers::Podman;
use stack_tests::programs::{built, on_path, target};
use stack_tests::random::Random;

#[path = "bench/runtimes.rs"]
mod runtimes;
#[path = "bench/seccomp.rs"]
mod seccomp;

/// One of those compared: a name, and how to make the commands for one run.
struct Contestant<'a> {
    name: String,
    commands: Box<dyn Fn() -> Vec<Command> + 'a>,
}

impl<'a> Contestant<'a> {
    fn new(name: &str, command: impl Fn() -> Command + 'a) -> Self {
        Self::with_steps(name, move || vec![command()])
    }

    fn with_steps(name: &str, commands: impl Fn() -> Vec<Command> + 'a) -> Self {
        Self {
            name: name.to_owned(),
            commands: Box::new(commands),
        }
    }
}

/// What one run took, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// By the clock.
    wall: f64,
    /// Of processors, by all processes that were waited for.
    cpu: f64,
}

fn main() -> anyhow::Result<()> {
    let runs: usize = match std::env::args().nth(1) {
        Some(runs) => runs
            .parse()
            .context("usage: bench [RUNS [engines|runtimes]]")?,
        None => 40,
    };
    if std::env::args().nth(2).as_deref() != Some("engines") {
        runtimes::compare_all(runs)?;
    }
    match std::env::args().nth(2).as_deref() {
        Some("runtimes") => Ok(()),
        Some("engines") => engines(runs),
        _ => engines(runs.div_ceil(2)),
    }
}

/// What people type, with `qengine` and with podman: as it comes from Debian (with runc, its other runtime refuses
/// hybrid hosts), and with our runtime below.
fn engines(runs: usize) -> anyhow::Result<()> {
    let engine = Engine::new().with_base();
    let podman = Podman::new();
    let has_podman = on_path("podman").is_some();
    // Podman leaves packet filter rules; an engine with a network of its own is not asked about rules at the end.
    engine.ok("network create bench");
    engine.ok("network rm bench");
    engine.ok("run -d --name bird --network none base sleep 100000");
    for runtime in ["runc", "qrun"].into_iter().filter(|_| has_podman) {
        let line = format!("run -d --name bird-{runtime} --network none --rootfs ~ sleep 100000");
        time(podman.with_runtime(&on_path_or_built(runtime), &line))?;
    }
    for (name, ours, theirs) in [
        (
            "run",
            "run --rm --network none base true",
            "run --rm --network none --rootfs ~ true",
        ),
        (
            "run-published",
            "run --rm -p 8099:80 base true",
            "run --rm -p 8099:80 --rootfs ~ true",
        ),
        ("exec", "exec bird true", "exec bird-RUNTIME true"),
        ("ps", "ps", "ps"),
    ] {
        let mut contestants = vec![Contestant::new("qengine", || engine.command(ours))];
        for runtime in ["runc", "qrun"].into_iter().filter(|_| has_podman) {
            let line = theirs.replace("RUNTIME", runtime);
            let podman = &podman;
            contestants.push(Contestant::new(&format!("podman + {runtime}"), move || {
                podman.with_runtime(&on_path_or_built(runtime), &line)
            }));
        }
        compare(
            &format!("engine-{name}"),
            &contestants,
            runs,
            Duration::ZERO,
        )?;
    }
    if has_podman {
        time(podman.with_runtime("runc", "rm -f -t 0 -a"))?;
    }
    Ok(())
}

fn on_path_or_built(runtime: &str) -> String {
    match runtime {
        "qrun" => built("qrun").display().to_string(),
        peer => peer.to_owned(),
    }
}

/// Lets the contestants take turns, `runs` times each, with `pause` before each run. Each round has an order of its own: the
/// kernel cleans up after a container when it is gone, at the cost of whoever comes next.
fn compare(
    discipline: &str,
    contestants: &[Contestant<'_>],
    runs: usize,
    pause: Duration,
) -> anyhow::Result<()> {
    let mut times: Vec<Result<Vec<Took>, String>> =
        contestants.iter().map(|_| Ok(Vec::new())).collect();
    let mut random = Random::new(runs as u64);
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    for round in 0..=runs {
        random.shuffle(&mut order);
        for &index in &order {
            std::thread::sleep(pause);
            let Ok(kept) = &mut times[index] else {
                continue;
            };
            match time_all((contestants[index].commands)()) {
                // The first round warms up.
                Ok(took) if round > 0 => kept.push(took),
                Ok(_) => {}
                Err(error) => times[index] = Err(format!("{error:#}")),
            }
        }
    }
    let results: Vec<_> = contestants
        .iter()
        .map(|it| it.name.as_str())
        .zip(&times)
        .collect();
    print(discipline, &results);
    let raw: Value = results
        .iter()
        .map(|(name, times)| {
            let of = |part: fn(&Took) -> f64| {
                times
                    .as_ref()
                    .ok()
                    .map(|times| times.iter().map(part).collect::<Vec<_>>())
            };
            json!({"name": name, "milliseconds": of(|it| it.wall), "cpu": of(|it| it.cpu)})
        })
        .collect();
    let path = target().join(format!("bench/{discipline}.json"));
    std::fs::write(&path, raw.to_string()).with_context(|| format!("write {}", path.display()))
}

/// Runs a command that must succeed.
fn time(command: Command) -> anyhow::Result<Took> {
    time_all(vec![command])
}

/// Runs commands that must succeed, one after the other. What they leave running may keep their streams.
fn time_all(commands: Vec<Command>) -> anyhow::Result<Took> {
    let mut took = Took {
        wall: 0.0,
        cpu: 0.0,
    };
    for mut command in commands {
        let line = typed(&command);
        let mut complaints = tempfile::tempfile().context("make a file")?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(complaints.try_clone().context("duplicate a file")?);
        let (start, used) = (Instant::now(), processor_time()?);
        let status = command.status().with_context(|| format!("start {line}"))?;
        took.wall += start.elapsed().as_secs_f64() * 1000.0;
        took.cpu += processor_time()? - used;
        if !status.success() {
            let mut said = String::new();
            complaints.rewind().context("rewind a file")?;
            complaints
                .read_to_string(&mut said)
                .context("read a file")?;
            bail!("{line}: {}", said.lines().last().unwrap_or("it failed"));
        }
    }
    Ok(took)
}

/// Milliseconds of processors that children, and theirs, have used so far.
fn processor_time() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?;
    let used = usage.user_time() + usage.system_time();
    Ok(used.num_microseconds() as f64 / 1000.0)
}

/// Prints the fastest, median and mean time of each and its median processor time; and both medians against those of the
/// program under test.
#[expect(clippy::print_stdout, reason = "its answer")]
fn print(discipline: &str, results: &[(&str, &Result<Vec<Took>, String>)]) {
    let ours = results.iter().find(|(name, _)| name.starts_with('q'));
    let ours = ours.and_then(|(_, times)| times.as_ref().ok());
    println!(
        "\n{discipline:28} {:>8} {:>8} {:>8} {:>8}  medians against ours",
        "min ms", "median", "mean", "cpu"
    );
    let parts: [fn(&Took) -> f64; 2] = [|it| it.wall, |it| it.cpu];
    for (name, times) in results {
        match times {
            Ok(times) => {
                let [[min, median, mean], [_, cpu, _]] = parts.map(|part| summary(times, part));
                let ratio = ours.map_or(String::new(), |ours| {
                    let [[_, wall, _], [_, used, _]] = parts.map(|part| summary(ours, part));
                    format!("{:.2} {:.2}", median / wall, cpu / used)
                });
                println!("{name:28} {min:8.2} {median:8.2} {mean:8.2} {cpu:8.2}  {ratio}");
            }
            Err(error) => println!("{name:28} not run: {error}"),
        }
    }
}

/// The least, the median and the mean.
fn summary(times: &[Took], part: fn(&Took) -> f64) -> [f64; 3] {
    let mut sorted: Vec<f64> = times.iter().map(part).collect();
    sorted.sort_by(f64::total_cmp);
    let count = u32::try_from(sorted.len()).map_or(1.0, f64::from);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    [
        sorted.first().copied().unwrap_or_default(),
        median,
        sorted.iter().sum::<f64>() / count,
    ]
}
