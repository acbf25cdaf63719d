//! `kill`: sends a signal to a container.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Request;
use crate::container::{Container, Status};
use crate::rootless;

/// Runs the command.
pub(super) fn kill(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    let number = parse_signal(
        request
            .parsed
            .arguments
            .get(1)
            .map_or("SIGTERM", String::as_str),
    )?;
    if request.parsed.is_on("all") {
        match container.cgroup.is_unconfigured() {
            // Without a cgroup the first process is the only one known.
            true => container.signal(number).map(drop)?,
            false => send_to_all(&container, number)?,
        }
        return Ok(0);
    }
    if number == libc::SIGKILL && !container.record.ends_with_init() {
        // Without a pid namespace of its own the others would outlive the first process.
        if container.status() == Status::Stopped
            && container.cgroup.pids().unwrap_or_default().is_empty()
        {
            bail!("container not running");
        }
        match send_to_all(&container, number) {
            Err(error) if rootless::forgives(container.record.rootless) => {
                log::warn!(
                    "failed to kill all processes, possibly due to lack of cgroup (Hint: enable cgroup v2 delegation): {error:#}"
                );
            }
            other => return other.map(|()| 0),
        }
    }
    await_handler(&container, number);
    if !container.signal(number)? {
        bail!("container not running");
    }
    if number == libc::SIGKILL && container.status() == Status::Paused {
        // What is frozen on cgroup v1 does not die.
        container.cgroup.thaw()?;
    }
    Ok(0)
}

/// Gives a program that was only just started the time to say what it does about a signal.
///
/// The first process of a pid namespace does not get signals that it has no handler for (pid_namespaces(7)): what comes
/// before it has set itself up is lost. Those who start and signal at once rely on a runtime that takes its time.
fn await_handler(container: &Container, number: i32) {
    /// For how long a program counts as just started.
    const YOUNG: Duration = Duration::from_millis(100);
    /// And for how long if it has not yet had a processor for as much time, nor waited for anything.
    const HINDERED: Duration = Duration::from_secs(2);
    if [0, libc::SIGKILL, libc::SIGSTOP].contains(&number) || !container.record.ends_with_init() {
        return;
    }
    let Some(pid) = container.pid() else { return };
    let file = |name| {
        let path = format!("/proc/{}/{name}", pid.as_raw_nonzero());
        std::fs::read_to_string(path).unwrap_or_default()
    };
    // From start on nothing happens to the directory until something else does to the container.
    let started = std::fs::metadata(container.directory.path()).and_then(|stat| stat.modified());
    let age = || started.as_ref().ok()?.elapsed().ok();
    while let Some(age) = age()
        && age < HINDERED
        && container.status() == Status::Running
    {
        let status = file("status");
        let is_hindered = || is_busy(&status) && has_run(&file("schedstat")) < YOUNG;
        if does_something_about(&status, number) || age >= YOUNG && !is_hindered() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the process of a `status` file catches or ignores a signal; also when that cannot be told.
fn does_something_about(status: &str, number: i32) -> bool {
    let bit = 1_u64 << (number - 1).clamp(0, 63);
    let masks = status.lines().filter_map(|line| {
        let mask = line
            .strip_prefix("SigIgn:")
            .or(line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    status.is_empty() || masks.fold(0, |all, mask| all | mask) & bit != 0
}

/// Whether the process of a `status` file runs, would if it had a processor, or waits for a disk.
fn is_busy(status: &str) -> bool {
    let mut states = status
        .lines()
        .filter_map(|line| line.strip_prefix("State:"));
    states.any(|state| state.trim_start().starts_with(['R', 'D']))
}

/// For how long a process has had a processor, by its `schedstat` file; for ever where the kernel does not count.
fn has_run(schedstat: &str) -> Duration {
    let nanoseconds = schedstat
        .split(' ')
        .next()
        .and_then(|word| word.parse().ok());
    nanoseconds.map_or(Duration::MAX, Duration::from_nanos)
}

/// Sends a signal to every process in the container's cgroup.
fn send_to_all(container: &Container, number: i32) -> Result<()> {
    match rustix::process::Signal::from_named_raw(number) {
        Some(signal) => container.cgroup.kill_all(signal)?,
        None => {
            for pid in container.cgroup.pids()? {
                match crate::sys::signal::kill(pid, number) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => bail!(
                        "kill {}: {}",
                        pid.as_raw_nonzero(),
                        crate::failure::text(errno)
                    ),
                }
            }
        }
    }
    Ok(())
}

/// A signal by number or name, with or without `SIG`, in any case.
pub(super) fn parse_signal(text: &str) -> Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(name) {
        return Ok(number);
    }
    match name {
        "CLD" => return Ok(libc::SIGCHLD),
        "POLL" => return Ok(libc::SIGIO),
        "IOT" => return Ok(libc::SIGABRT),
        _ => {}
    }
    match format!("SIG{name}").parse::<nix::sys::signal::Signal>() {
        Ok(signal) => Ok(signal as i32),
        Err(_) => bail!("unknown signal {text:?}"),
    }
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-2`.
fn real_time(name: &str) -> Option<i32> {
    const FIRST: i32 = 34;
    const LAST: i32 = 64;
    let number = match name.strip_prefix("RTMIN") {
        Some("") => FIRST,
        Some(rest) => FIRST + rest.strip_prefix('+')?.parse::<i32>().ok()?,
        None => match name.strip_prefix("RTMAX")? {
            "" => LAST,
            rest => LAST - rest.strip_prefix('-')?.parse::<i32>().ok()?,
        },
    };
    (FIRST..=LAST).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("0", 0),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "FOO", "RTMIN+40"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
