//! `kill`: sends a signal to a container.

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
    if !container.signal(number)? {
        bail!("container not running");
    }
    if number == libc::SIGKILL && container.status() == Status::Paused {
        // What is frozen on cgroup v1 does not die.
        container.cgroup.thaw()?;
    }
    Ok(0)
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
