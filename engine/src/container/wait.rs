//! Waiting for the end of a container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::find::Handle;
use super::live::{Live, published_exit};
use super::model::Process;
use super::{Result, SystemContext};
use crate::store::Store;

/// Sees exit codes being published. Made before the first look, so that none is missed.
#[derive(Debug)]
pub struct ExitWatch<'a> {
    store: &'a Store,
    id: String,
    inotify: OwnedFd,
}

impl<'a> ExitWatch<'a> {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances to give.
    pub fn new(store: &'a Store, id: &str) -> Result<ExitWatch<'a>> {
        let exits = store.exits();
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .system("watch", &exits)?;
        inotify::add_watch(
            &inotify,
            &exits,
            inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CREATE,
        )
        .system("watch", &exits)?;
        Ok(ExitWatch {
            store,
            id: id.to_owned(),
            inotify,
        })
    }

    /// Waits until the exit code is published; `None` when `timeout` is over, or the monitor is dead and nothing was
    /// published.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub fn wait(
        &self,
        monitor: Option<BorrowedFd<'_>>,
        timeout: Option<Duration>,
    ) -> Result<Option<i32>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut monitor = monitor;
        loop {
            self.drain();
            if let Some(exit) = published_exit(self.store, &self.id) {
                return Ok(Some(exit.code));
            }
            let mut descriptors = vec![PollFd::new(&self.inotify, PollFlags::IN)];
            if let Some(monitor) = &monitor {
                descriptors.push(PollFd::new(monitor, PollFlags::IN));
            }
            if poll_until(&mut descriptors, deadline).system("wait for", "container")? == 0 {
                return Ok(None);
            }
            let monitor_is_dead = descriptors
                .get(1)
                .is_some_and(|entry| !entry.revents().is_empty());
            if monitor_is_dead {
                // It publishes before it ends: one more look decides.
                monitor = None;
                if published_exit(self.store, &self.id).is_none() {
                    return Ok(None);
                }
            }
        }
    }

    fn drain(&self) {
        let mut buffer = [0u8; 4096];
        while rustix::io::read(self.inotify.as_fd(), &mut buffer).is_ok_and(|count| count > 0) {}
    }
}

/// Waits for the end of a container that was started, by its monitor if that is alive. `None` when the container is
/// gone without having left an exit code.
///
/// # Errors
/// When waiting fails.
pub fn until_exit(
    store: &Store,
    handle: &Handle,
    watch: &ExitWatch<'_>,
    monitor: Option<Process>,
) -> Result<Option<i32>> {
    let waited_for = monitor;
    let monitor = monitor.and_then(|monitor| monitor.open());
    if let Some(code) = watch.wait(monitor.as_ref().map(AsFd::as_fd), Some(Duration::ZERO))? {
        return Ok(Some(code));
    }
    let mut monitor = monitor.as_ref().map(AsFd::as_fd);
    loop {
        // Without a monitor nothing tells of the end; a short look now and then does.
        let timeout = if monitor.is_some() {
            None
        } else {
            Some(Duration::from_millis(200))
        };
        if let Some(code) = watch.wait(monitor.take(), timeout)? {
            return Ok(Some(code));
        }
        match handle.live(store) {
            Ok((state, Live::Exited | Live::Restarting)) => return Ok(state.exit_code),
            // Its restart policy was quicker than we: what we waited for is over.
            Ok((state, Live::Running | Live::Paused)) if state.monitor != waited_for => {
                return Ok(state.exit_code);
            }
            Ok(_) if handle.directory().exists() => {}
            _ => return watch.wait(None, Some(Duration::ZERO)),
        }
    }
}

/// Waits for the container's end and returns its exit code. One that has ended already returns at once; one that was
/// never started waits for its first run.
///
/// # Errors
/// When the container vanishes without having run, or waiting fails.
pub fn wait(store: &Store, handle: &Handle) -> Result<i32> {
    let watch = ExitWatch::new(store, handle.id())?;
    loop {
        let (state, live) = match handle.live(store) {
            Ok(found) => found,
            Err(error) => return watch.wait(None, Some(Duration::ZERO))?.ok_or(error),
        };
        match live {
            Live::Exited => {
                if let Some(exit) = published_exit(store, handle.id()) {
                    return Ok(exit.code);
                }
                return Ok(state.exit_code.unwrap_or(255));
            }
            Live::Removing => return Ok(state.exit_code.unwrap_or(0)),
            // Nothing tells of a start; a short look now and then does.
            Live::Created | Live::Restarting => {
                if !handle.directory().exists() {
                    return Err(super::Error::NotFound(handle.name().to_owned()));
                }
                watch.wait(None, Some(Duration::from_millis(200)))?;
            }
            Live::Running | Live::Paused => {
                return Ok(until_exit(store, handle, &watch, state.monitor)?.unwrap_or(255));
            }
        }
    }
}

/// What [`wait_for`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The end of the run that goes on now, or of the next one.
    NextExit,
    /// That it is gone.
    Removed,
    /// That it runs.
    Running,
    /// That it is frozen.
    Paused,
}

/// Waits until the condition holds; the answer is the last exit code, or -1 when the container has not ended.
///
/// # Errors
/// When the container vanishes before, or waiting fails.
pub fn wait_for(store: &Store, handle: &Handle, condition: Condition) -> Result<i32> {
    // Only an end tells of itself; a short look now and then does for the others.
    const LOOK: Duration = Duration::from_millis(50);
    let watch = ExitWatch::new(store, handle.id())?;
    let mut last = None;
    let mut is_first = true;
    loop {
        let live = match handle.live(store) {
            Ok((state, live)) if handle.directory().exists() => {
                last = state.exit_code.or(last);
                if let (Condition::NextExit, true) = (condition, live.is_running()) {
                    let code = until_exit(store, handle, &watch, state.monitor)?;
                    return Ok(code.unwrap_or(255));
                }
                live
            }
            _ if condition == Condition::Removed => {
                let code = watch.wait(None, Some(Duration::ZERO))?.or(last);
                return Ok(code.unwrap_or(-1));
            }
            Ok(_) => return Err(super::Error::NotFound(handle.name().to_owned())),
            Err(error) => return Err(error),
        };
        match (condition, live) {
            (Condition::Running, Live::Running) | (Condition::Paused, Live::Paused) => {
                return Ok(-1);
            }
            // A run that was over between two looks.
            (Condition::NextExit, Live::Exited | Live::Restarting)
                if !is_first && last.is_some() =>
            {
                return Ok(last.unwrap_or(255));
            }
            _ => {}
        }
        is_first = matches!(live, Live::Exited | Live::Restarting) && is_first;
        if let Some(code) = watch.wait(None, Some(LOOK))? {
            // Remembered: whoever removes the container removes this too.
            last = Some(code);
            std::thread::sleep(LOOK);
        }
    }
}

/// `poll(2)` with a point in time instead of a span, taken up again after signals.
pub(super) fn poll_until(
    descriptors: &mut [PollFd<'_>],
    deadline: Option<Instant>,
) -> io::Result<usize> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| {
            Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 3600,
                tv_nsec: 0,
            })
        });
        match poll(descriptors, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
