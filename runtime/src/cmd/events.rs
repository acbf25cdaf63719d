//! `events`: what a container uses of its limits, again and again, and when it runs out of memory.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::Request;
use crate::cgroup::{Heard, Stats, Watch};
use crate::cli::value;
use crate::container::{Container, Status};
use crate::failure::During;

/// One line of output, as in runc's `types/events.go`.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

/// Runs the command.
pub(super) fn events(request: &Request<'_>) -> Result<u8> {
    let text = request.parsed.value("interval").unwrap_or("5s");
    // It was checked when the line was taken apart.
    let interval = value::duration(text).unwrap_or_default();
    let container = Container::load(&request.store, request.parsed.id())?;
    if interval.is_zero() {
        bail!("duration interval must be greater than 0");
    }
    if container.status() == Status::Stopped {
        bail!("container with id {} is not running", container.record.id);
    }
    if request.parsed.is_on("stats") {
        show(&container, "stats", Some(&container.cgroup.stats()?))?;
        return Ok(0);
    }
    follow(&container, interval)?;
    Ok(0)
}

/// Shows figures after each interval, and OOM events, until the container's end.
fn follow(container: &Container, interval: Duration) -> Result<()> {
    let mut watch = Watch::new(&container.cgroup)?;
    // Without a memory controller the end is heard of from the init process.
    let pidfd = container.pidfd();
    let mut next = Instant::now() + interval;
    loop {
        let left = Timespec::try_from(next.saturating_duration_since(Instant::now()))?;
        let end = Heard {
            end: true,
            ..Heard::default()
        };
        let heard = match (&mut watch, &pidfd) {
            (Some(watch), _) if wait(watch.fd(), &left)? => watch.hear()?,
            (None, Some(pidfd)) if wait(std::os::fd::AsFd::as_fd(pidfd), &left)? => end,
            (None, None) => end,
            _ => Heard::default(),
        };
        if heard.out_of_memory {
            show(container, "oom", None)?;
        }
        if heard.end {
            return Ok(());
        }
        if Instant::now() < next {
            continue;
        }
        next += interval;
        match container.cgroup.stats() {
            Ok(stats) => show(container, "stats", Some(&stats))?,
            Err(error) => log::error!("{}", crate::failure::chain(&error)),
        }
    }
}

/// Waits until a descriptor is readable or the time is over.
fn wait(fd: std::os::fd::BorrowedFd<'_>, time: &Timespec) -> Result<bool> {
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(time)) {
        Err(Errno::INTR) => Ok(false),
        result => Ok(result.during("poll", "events")? > 0),
    }
}

fn show(container: &Container, kind: &'static str, data: Option<&Stats>) -> Result<()> {
    let event = Event {
        kind,
        id: &container.record.id,
        data,
    };
    super::print(&(serde_json::to_string(&event)? + "\n"))?;
    Ok(())
}
