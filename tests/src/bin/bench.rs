//! `bench`: what starting a container costs, side by side in one run, on one machine.
//!
//! The contestants of a discipline take turns, so that whatever else the machine does hits all of
//! them alike. Prints one table a discipline and writes every single time to
//! `target/bench/<discipline>.json`. Figures are for reading: nothing fails because of one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::typed;
use stack_tests::engine::Engine;
use stack_tests::peers::Podman;
use stack_tests::programs::{built, on_path, target, workspace};

#[path = "bench/seccomp.rs"]
mod seccomp;

/// One of those compared: a name, and how to make the command for one run.
struct Contestant<'a> {
    name: String,
    command: Box<dyn Fn() -> Command + 'a>,
}

impl<'a> Contestant<'a> {
    fn new(name: &str, command: impl Fn() -> Command + 'a) -> Self {
        Self {
            name: name.to_owned(),
            command: Box::new(command),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let runs: usize = match std::env::args().nth(1) {
        Some(runs) => runs.parse().context("usage: bench [RUNS [engines]]")?,
        None => 40,
    };
    if std::env::args().nth(2).as_deref() == Some("engines") {
        return engines(runs);
    }
    let pause = Duration::from_millis(300);
    let floor = compile_floor()?;
    hide_unified()?;
    let plain = Bundle::new(&["/bin/true"]);
    let profile = seccomp::default_profile()?;
    let filtered = Bundle::new(&["/bin/true"]).with("/linux/seccomp", profile);
    let disciplines = [
        ("runtime", &plain, Duration::ZERO),
        ("runtime-isolated", &plain, pause),
        ("runtime-seccomp", &filtered, Duration::ZERO),
        ("runtime-seccomp-isolated", &filtered, pause),
    ];
    for (name, bundle, pause) in disciplines {
        let runs = if pause.is_zero() {
            runs
        } else {
            runs.div_ceil(2)
        };
        compare(name, &runtimes(&floor, bundle), runs, pause)?;
    }
    engines(runs.div_ceil(2))
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

/// Enters a mount namespace in which a hybrid host is one with cgroup v1 alone: crun refuses to work
/// where a controller sits on v2 beside v1 hierarchies. The same for all contestants.
fn hide_unified() -> anyhow::Result<()> {
    const UNIFIED: &str = "/sys/fs/cgroup/unified";
    let none = None::<&str>;
    if !Path::new(UNIFIED).join("cgroup.procs").exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("make / private")?;
    mount(Some("none"), UNIFIED, Some("tmpfs"), MsFlags::empty(), none).context("hide cgroup v2")
}

/// The runtimes that are here, on one bundle, and the floor.
fn runtimes<'a>(floor: &'a Path, bundle: &'a Bundle) -> Vec<Contestant<'a>> {
    let run = |program: PathBuf| {
        move || {
            let mut command = Command::new(&program);
            command
                .args(["run", "--bundle"])
                .arg(bundle.path())
                .arg("bench");
            command
        }
    };
    let mut contestants = vec![Contestant::new("floor", move || {
        let mut command = Command::new(floor);
        command.current_dir(bundle.path());
        command
    })];
    contestants.push(Contestant::new("qrun", run(built("qrun"))));
    for peer in ["crun", "runc", "youki"] {
        if let Some(program) = on_path(peer) {
            contestants.push(Contestant::new(
                &format!("{peer} {}", version(&program)),
                run(program),
            ));
        }
    }
    contestants
}

/// The first version number that `PROGRAM --version` prints.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let numbers = said
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    numbers.unwrap_or_default().to_owned()
}

/// Compiles the floor program beside the raw figures.
fn compile_floor() -> anyhow::Result<PathBuf> {
    let directory = target().join("bench");
    std::fs::create_dir_all(&directory)?;
    let program = directory.join("floor");
    let source = workspace().join("tests/floor/floor.c");
    let args = ["-O2", "-static", "-Wno-unused-result", "-o"];
    let status = Command::new("cc")
        .args(args)
        .arg(&program)
        .arg(source)
        .status();
    ensure!(status.context("start cc")?.success(), "cc failed");
    Ok(program)
}

/// Lets the contestants take turns, `runs` times each, with `pause` before each run.
fn compare(
    discipline: &str,
    contestants: &[Contestant<'_>],
    runs: usize,
    pause: Duration,
) -> anyhow::Result<()> {
    let mut times: Vec<Result<Vec<f64>, String>> =
        contestants.iter().map(|_| Ok(Vec::new())).collect();
    for round in 0..=runs {
        for (contestant, times) in contestants.iter().zip(&mut times) {
            std::thread::sleep(pause);
            let Ok(kept) = times else { continue };
            match time((contestant.command)()) {
                // The first round warms up.
                Ok(took) if round > 0 => kept.push(took),
                Ok(_) => {}
                Err(error) => *times = Err(format!("{error:#}")),
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
        .map(|(name, times)| json!({"name": name, "milliseconds": times.as_ref().ok()}))
        .collect();
    let path = target().join(format!("bench/{discipline}.json"));
    std::fs::write(&path, raw.to_string()).with_context(|| format!("write {}", path.display()))
}

/// Runs a command that must succeed and gives the milliseconds it took.
fn time(mut command: Command) -> anyhow::Result<f64> {
    let line = typed(&command);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output);
    let took = start.elapsed().as_secs_f64() * 1000.0;
    let output = output.with_context(|| format!("start {line}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}",
        said.lines().last().unwrap_or("it failed")
    );
    Ok(took)
}

/// Prints the fastest, median and mean time of each, and the median against the second's: the
/// program under test, after the floor, or the first where there is none.
#[expect(clippy::print_stdout, reason = "its answer")]
fn print(discipline: &str, results: &[(&str, &Result<Vec<f64>, String>)]) {
    let ours = results.iter().find(|(name, _)| name.starts_with('q'));
    let ours = ours
        .and_then(|(_, times)| times.as_ref().ok())
        .map(|times| summary(times)[1]);
    println!(
        "\n{discipline:28} {:>8} {:>8} {:>8}  median against ours",
        "min ms", "median", "mean"
    );
    for (name, times) in results {
        match times {
            Ok(times) => {
                let [min, median, mean] = summary(times);
                let ratio = ours.map_or(String::new(), |ours| format!("{:.2}", median / ours));
                println!("{name:28} {min:8.2} {median:8.2} {mean:8.2}  {ratio}");
            }
            Err(error) => println!("{name:28} not run: {error}"),
        }
    }
}

/// The fastest, the median and the mean.
fn summary(times: &[f64]) -> [f64; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = u32::try_from(sorted.len()).map_or(1.0, f64::from);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    [
        sorted.first().copied().unwrap_or_default(),
        median,
        sorted.iter().sum::<f64>() / count,
    ]
}
