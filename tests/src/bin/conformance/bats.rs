//! Inside: bats on one file, on a terminal, with a limit on the time a test may take.
//!
//! bats has such a limit itself, but its watchdog loses results when a test fails. Here a test that takes too long is ended
//! with all processes there are, counts as failed, and the rest of the file is run without it.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use stack_tests::pty::Pty;

use crate::surroundings::{Inside, remove_below};

/// How long a test may take. Emulated machines are twenty times slower.
fn patience() -> Duration {
    let slow = std::env::var_os("QSTACK_VM").is_some();
    Duration::from_secs(if slow { 1200 } else { 150 })
}

/// The first process of the new namespaces: enters its root, runs the file, prints the results.
#[expect(clippy::print_stdout, reason = "where the results are read from")]
pub(super) fn inside(arguments: &[String]) -> anyhow::Result<ExitCode> {
    let [
        place,
        tree,
        suite,
        images,
        runtime,
        hierarchies,
        file,
        filter,
    ] = arguments
    else {
        bail!("wrong arguments");
    };
    let surroundings = Inside {
        place: Path::new(place),
        tree: Path::new(tree),
        suite: Path::new(suite),
        images: Path::new(images),
        runtime: Path::new(runtime),
        hierarchies,
    };
    surroundings.enter()?;
    std::env::set_current_dir("/suite/tests/integration")?;
    let names = names(&fs::read_to_string(file).with_context(|| format!("read {file}"))?);
    let mut left: Vec<String> = names
        .into_iter()
        .filter(|name| name.contains(filter.as_str()))
        .collect();
    while !left.is_empty() {
        let (tap, late) = run(file, &left)?;
        let done = tap.lines().filter(|line| is_result(line)).count();
        print!("{tap}");
        if done >= left.len() {
            break;
        }
        println!("not ok {} {}", done + 1, left[done]);
        if late {
            println!("# no result after {} s", patience().as_secs());
        } else {
            println!("# bats ended without a result");
        }
        left.drain(..=done);
        clean_up();
    }
    Ok(ExitCode::SUCCESS)
}

/// The names of the tests in a bats file.
fn names(text: &str) -> Vec<String> {
    let line = |line: &str| {
        let rest = line.strip_prefix("@test \"")?;
        Some(rest[..rest.rfind('"')?].to_owned())
    };
    text.lines().filter_map(line).collect()
}

/// Whether a line says what a test came to.
fn is_result(line: &str) -> bool {
    line.starts_with("ok ") || line.starts_with("not ok ")
}

/// Runs tests of a file until all have a result or one takes too long; gives what bats said, and whether one did.
fn run(file: &str, names: &[String]) -> anyhow::Result<(String, bool)> {
    let names: Vec<String> = names.iter().map(|name| escaped(name)).collect();
    let filter = format!("^({})$", names.join("|"));
    let mut command = Command::new("bats");
    command.args(["--tap", "--filter", &filter, file]);
    command.env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/root").env("RUNC", "/runtime/runc");
    command
        .env("RUNC_ALLOW_UNSAFE_TESTS", "yes")
        .env("LC_ALL", "C.UTF-8");
    for name in ["CARGO_TARGET_DIR", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    let terminal = Pty::start(&command);
    let bats = Pid::from_raw(i32::try_from(terminal.pid())?);
    let mut changed = (Instant::now(), 0);
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let ended = reap(bats)?;
        let heard = terminal.heard().replace('\r', "");
        let results = heard.lines().filter(|line| is_result(line)).count();
        if results > changed.1 {
            changed = (Instant::now(), results);
        }
        let late = changed.0.elapsed() > patience();
        if late {
            end_all()?;
        }
        if ended || late {
            thaw(Path::new("/sys/fs/cgroup"));
            // What was said last is on its way through the terminal.
            std::thread::sleep(Duration::from_millis(200));
            return Ok((tap(&terminal.heard()), late));
        }
    }
}

/// The lines of the test protocol: results, and what was said about failures.
fn tap(heard: &str) -> String {
    let wanted = |line: &&str| is_result(line) || line.starts_with('#');
    let lines = heard.lines().map(|line| line.trim_end_matches('\r'));
    lines
        .filter(wanted)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Waits for children that have ended, ours and orphans; true when bats is among them.
fn reap(bats: Pid) -> anyhow::Result<bool> {
    let mut ended = false;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
            Ok(status) => ended |= status.pid() == Some(bats),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("waitpid"),
        }
    }
}

/// Kills every process but this one, the first of its pid namespace, and waits until they are gone.
fn end_all() -> anyhow::Result<()> {
    loop {
        thaw(Path::new("/sys/fs/cgroup"));
        match kill(Pid::from_raw(-1), Signal::SIGKILL) {
            Err(Errno::ESRCH) => return Ok(()),
            other => other.context("kill all")?,
        }
        std::thread::sleep(Duration::from_millis(50));
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

/// Lets frozen cgroups go on: on v1 what is frozen does not die.
fn thaw(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw(&entry.path());
        }
    }
    // Other hierarchies have no such file, and in the root it says nothing.
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if directory.join(file).exists() {
            let _ = fs::write(directory.join(file), word);
        }
    }
}

/// Removes what a test that was killed left: cgroups and network devices; its files do not get in the way.
fn clean_up() {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    for hierarchy in hierarchies {
        let below = fs::read_dir(hierarchy.path())
            .into_iter()
            .flatten()
            .flatten();
        for cgroup in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            // The suite's own is not empty and stays.
            let _ = remove_below(&cgroup.path());
        }
    }
    // There may be none.
    let _ = Command::new("ip").args(["link", "del", "dummy0"]).output();
}

/// A name as a regular expression that matches it alone.
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if ".[]{}()*+?^$|\\".contains(character) {
            text.push('\\');
        }
        text.push(character);
    }
    text
}
