//! The runtimes, on one bundle: a whole life in one command and in three, a further process, a hundred at once.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use stack_tests::bundle::Bundle;
use stack_tests::programs::{built, compiled, on_path};

use super::{Contestant, compare, seccomp, time_all};

/// Containers that are made at once, and by how many at a time.
const CROWD: usize = 100;
const AT_A_TIME: usize = 4;

/// A runtime that is here.
struct Runtime {
    name: String,
    program: PathBuf,
}

/// All disciplines.
pub(crate) fn compare_all(runs: usize) -> anyhow::Result<()> {
    let floor = compiled("cc", "tests/floor/floor.c");
    hide_unified()?;
    let runtimes = found();
    let plain = Bundle::new(&["/bin/true"]);
    let profile = seccomp::default_profile()?;
    let filtered = Bundle::new(&["/bin/true"]).with("/linux/seccomp", profile);
    let (none, pause) = (Duration::ZERO, Duration::from_millis(300));
    for (name, bundle, pause) in [
        ("runtime", &plain, none),
        ("runtime-isolated", &plain, pause),
        ("runtime-seccomp", &filtered, none),
        ("runtime-seccomp-isolated", &filtered, pause),
    ] {
        let mut contestants = vec![Contestant::new("floor", || {
            let mut command = Command::new(&floor);
            command.current_dir(bundle.path());
            command
        })];
        contestants.extend(runtimes.iter().map(|it| {
            Contestant::new(&it.name, || {
                it.command(&["run", "--bundle"], bundle, "bench")
            })
        }));
        compare(name, &contestants, runs, pause)?;
    }
    for (name, pause) in [("three-commands", none), ("three-commands-isolated", pause)] {
        let lives: Vec<_> = runtimes
            .iter()
            .map(|it| Contestant::with_steps(&it.name, || it.life(&plain, "bench")))
            .collect();
        compare(name, &lives, runs, pause)?;
    }
    further_process(&runtimes, runs)?;
    crowd(&runtimes, &plain)
}

/// `exec` in a container that runs.
fn further_process(runtimes: &[Runtime], runs: usize) -> anyhow::Result<()> {
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let id = |runtime: &Runtime| {
        let name = runtime.name.split(' ').next().unwrap_or_default();
        format!("bench-{name}")
    };
    let mut ready = Vec::new();
    for runtime in runtimes {
        let id = id(runtime);
        let made = [
            runtime.command(&["create", "--bundle"], &bundle, &id),
            runtime.plain(&["start", &id]),
        ];
        if time_all(made.into()).is_ok() {
            ready.push(runtime);
        }
    }
    let contestants: Vec<_> = ready
        .iter()
        .map(|it| Contestant::new(&it.name, || it.plain(&["exec", &id(it), "/bin/true"])))
        .collect();
    let compared = compare("exec", &contestants, runs, Duration::ZERO).and_then(|()| {
        compare(
            "exec-isolated",
            &contestants,
            runs,
            Duration::from_millis(300),
        )
    });
    for runtime in ready {
        time_all(vec![runtime.plain(&["delete", "--force", &id(runtime)])])?;
    }
    compared
}

/// Many containers, several at a time: how many a second.
#[expect(clippy::print_stdout, reason = "its answer")]
fn crowd(runtimes: &[Runtime], bundle: &Bundle) -> anyhow::Result<()> {
    println!("\n{CROWD} containers, {AT_A_TIME} at a time    a second (three rounds)");
    let mut rates = vec![Vec::new(); runtimes.len()];
    for _ in 0..3 {
        for (runtime, rates) in runtimes.iter().zip(&mut rates) {
            let start = Instant::now();
            let made: anyhow::Result<()> = std::thread::scope(|scope| {
                let worker = |first| {
                    move || -> anyhow::Result<()> {
                        for number in (first..CROWD).step_by(AT_A_TIME) {
                            time_all(runtime.life(bundle, &format!("bench-{number}")))?;
                        }
                        Ok(())
                    }
                };
                let workers: Vec<_> = (0..AT_A_TIME).map(|it| scope.spawn(worker(it))).collect();
                workers
                    .into_iter()
                    .try_for_each(|it| it.join().unwrap_or_else(|_| panic!("a worker died")))
            });
            match made {
                Ok(()) => rates.push(CROWD as f64 / start.elapsed().as_secs_f64()),
                Err(error) => println!("{:28} not run: {error:#}", runtime.name),
            }
        }
    }
    for (runtime, rates) in runtimes.iter().zip(&rates) {
        let shown: Vec<_> = rates.iter().map(|rate| format!("{rate:8.1}")).collect();
        println!("{:28} {}", runtime.name, shown.join(" "));
    }
    Ok(())
}

impl Runtime {
    /// `PROGRAM WORDS… BUNDLE ID`.
    fn command(&self, words: &[&str], bundle: &Bundle, id: &str) -> Command {
        let mut command = self.plain(words);
        command.arg(bundle.path()).arg(id);
        command
    }

    /// `PROGRAM WORDS…`.
    fn plain(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words);
        command
    }

    /// A life in three commands.
    fn life(&self, bundle: &Bundle, id: &str) -> Vec<Command> {
        vec![
            self.command(&["create", "--bundle"], bundle, id),
            self.plain(&["start", id]),
            self.plain(&["delete", "--force", id]),
        ]
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

/// The runtimes that are here, the one under test first.
fn found() -> Vec<Runtime> {
    let mut runtimes = vec![Runtime {
        name: "qrun".into(),
        program: built("qrun"),
    }];
    for peer in ["crun", "runc", "youki"] {
        if let Some(program) = on_path(peer) {
            runtimes.push(Runtime {
                name: format!("{peer} {}", version(&program)),
                program,
            });
        }
    }
    runtimes
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
