//! `conformance`: runc's own integration suite, unchanged, pointed at another runtime.
//!
//! The suite is a set of bats files in a checkout of runc whose test programs have been built. It wants a whole machine:
//! packages, images, free rein over mounts, cgroups and the network. Each file gets that here without the host's
//! noticing: a root of its own (an overlay over a tree with the packages), its own mount, pid, network, ipc and uts
//! namespaces, and on cgroup v1 a cgroup namespace, so that several can run at once.
//!
//! `conformance [OPTION…] SUITE [FILE.bats…]`; see `docs/conformance.md`. Exit code 0 when nothing failed but what
//! `--known FILE` lists.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail, ensure};
use stack_tests::programs::{built, target};

#[path = "conformance/bats.rs"]
mod bats;
#[path = "conformance/report.rs"]
mod report;
#[path = "conformance/surroundings.rs"]
mod surroundings;
#[path = "conformance/tree.rs"]
mod tree;

/// What is to be run, and in what.
#[derive(Debug)]
struct Settings {
    /// The checkout of runc.
    suite: PathBuf,
    /// The runtime; it gets the name `runc` inside.
    runtime: PathBuf,
    /// A root file system with bats, jq and all that the suite calls.
    tree: PathBuf,
    /// Where `busybox.tar` and `debian.tar` are, the containers' root file systems.
    images: PathBuf,
    /// Where temporary files go; a file system that can be mounted with mapped ids.
    work: PathBuf,
    /// Where results go, a file for each of the suite's.
    results: PathBuf,
    /// A list of tests that are known to fail.
    known: Option<PathBuf>,
    /// Text that a test's name has to contain.
    filter: String,
    /// Whether only the machine's v2 hierarchy is to be seen.
    unified: bool,
    /// The suite's files.
    files: Vec<String>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("inside") => bats::inside(&arguments[1..]),
        Some("make-tree") => {
            tree::make(&place("tree"), &place("images"))?;
            Ok(ExitCode::SUCCESS)
        }
        Some("compare") => {
            let directories: Vec<PathBuf> = arguments[1..].iter().map(PathBuf::from).collect();
            report::compare(&directories)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => run(&parse(&arguments)?),
    }
}

/// Where something of ours is kept from run to run.
fn place(name: &str) -> PathBuf {
    target().join("conformance").join(name)
}

/// The command line.
fn parse(arguments: &[String]) -> anyhow::Result<Settings> {
    let mut settings = Settings {
        suite: PathBuf::new(),
        runtime: PathBuf::new(),
        tree: place("tree"),
        images: place("images"),
        work: place("work"),
        results: place("results"),
        known: None,
        filter: String::new(),
        unified: false,
        files: Vec::new(),
    };
    let mut rest = arguments.iter();
    let mut free = Vec::new();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().context("a value is missing").cloned();
        match argument.as_str() {
            "--runtime" => settings.runtime = value()?.into(),
            "--tree" => settings.tree = value()?.into(),
            "--images" => settings.images = value()?.into(),
            "--work" => settings.work = value()?.into(),
            "--results" => settings.results = value()?.into(),
            "--known" => settings.known = Some(value()?.into()),
            "--filter" => settings.filter = value()?,
            "--unified" => settings.unified = true,
            option if option.starts_with('-') => bail!("no such option: {option}"),
            _ => free.push(argument.clone()),
        }
    }
    ensure!(
        !free.is_empty(),
        "usage: conformance [--runtime FILE] [--tree DIR] [--images DIR] [--work DIR] [--results DIR] [--known FILE] \
         [--filter TEXT] [--unified] SUITE [FILE.bats...]"
    );
    settings.suite = std::fs::canonicalize(free.remove(0)).context("the suite's directory")?;
    settings.files = free;
    if settings.runtime.as_os_str().is_empty() {
        settings.runtime = built("qrun");
    }
    settings.runtime = std::fs::canonicalize(&settings.runtime).context("the runtime")?;
    settings.check()?;
    Ok(settings)
}

impl Settings {
    /// Where the suite's files are.
    fn integration(&self) -> PathBuf {
        self.suite.join("tests/integration")
    }

    /// Finds out early what is missing, and completes the list of files.
    fn check(&mut self) -> anyhow::Result<()> {
        let integration = self.integration();
        ensure!(
            self.suite.join("tests/cmd/_bin/recvtty").is_file(),
            "{} lacks its test programs: run `make test-binaries` there, in the tree",
            self.suite.display()
        );
        ensure!(
            self.tree.join("usr/bin/bats").is_file() && self.images.join("debian.tar").is_file(),
            "no tree in {}: run hack/conformance.sh --make-tree",
            self.tree.display()
        );
        if self.files.is_empty() {
            for entry in std::fs::read_dir(&integration).context("the suite's files")? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if name.ends_with(".bats") {
                    self.files.push(name);
                }
            }
            self.files.sort();
        }
        for file in &self.files {
            ensure!(integration.join(file).is_file(), "no such file: {file}");
        }
        Ok(())
    }
}

/// Runs the files one after another.
#[expect(
    clippy::print_stdout,
    reason = "what the user of a command line tool reads"
)]
fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "namespaces and mounts of the tests need root"
    );
    std::fs::create_dir_all(&settings.results)?;
    std::fs::create_dir_all(&settings.work)?;
    let machine = surroundings::Machine::prepare(&settings.work, settings.unified)?;
    for file in &settings.files {
        let said = run_file(settings, &machine, file)?;
        let name = report::result_file(&settings.results, file);
        std::fs::write(&name, &said).with_context(|| format!("write {}", name.display()))?;
        println!("{}", report::one_line(file, &report::parse(&said)));
    }
    machine.give_back();
    report::conclude(&settings.results, settings.known.as_deref())
}

/// Runs one file in surroundings of its own; returns what its tests came to, as [`report::parse`] reads it.
fn run_file(
    settings: &Settings,
    machine: &surroundings::Machine,
    file: &str,
) -> anyhow::Result<String> {
    let place = surroundings::Place::make(&settings.work, machine, file)?;
    // Two CPUs hand out mount namespaces' numbers in batches of their own, and the kernel refuses to bind a mount namespace
    // with a lower number than ours has.
    let mut command = if file.starts_with("mounts_propagation_unsafe") {
        let mut pinned = Command::new("taskset");
        pinned.args(["--cpu-list", "0", "unshare"]);
        pinned
    } else {
        Command::new("unshare")
    };
    command.args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork"]);
    command.args(machine.more_namespaces()).arg("--kill-child");
    command.arg(std::env::current_exe()?).arg("inside");
    for path in [
        place.directory(),
        &settings.tree,
        &settings.suite,
        &settings.images,
        &settings.runtime,
    ] {
        command.arg(path);
    }
    command.arg(machine.list()).arg(file).arg(&settings.filter);
    let output = place.run(&mut command)?;
    ensure!(
        !output.is_empty(),
        "{file} said nothing: see the messages above"
    );
    Ok(output)
}

/// The name of a path's last part, as text.
fn base_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
