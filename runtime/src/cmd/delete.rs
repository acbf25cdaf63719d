//! `delete`: removes what is left of a container.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::Request;
use crate::container::{Container, Status};
use crate::hook::{self, Point};
use crate::state;

/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// And how long before what else is in its cgroup is killed, too.
const HINDERED: Duration = Duration::from_secs(1);

/// Runs the command.
pub(super) fn delete(request: &Request<'_>) -> Result<u8> {
    let id = request.parsed.id();
    let force = request.parsed.is_on("force");
    let directory = match request.store.open(id) {
        Err(state::Error::NotExist) if force => return Ok(0),
        other => other?,
    };
    // A create or start that is under way is waited for.
    directory.lock()?;
    if directory.is_removed() {
        // Another delete was faster; what may have the id by now is another container.
        return gone(state::Error::NotExist, force);
    }
    let record = match directory.read() {
        Err(error @ (state::Error::NotExist | state::Error::Json { .. })) => {
            // Killed before it had written its state: then there is nothing but the directory.
            directory.remove()?;
            return gone(error, force);
        }
        other => other?,
    };
    let container = Container::new(directory, record);
    match container.status() {
        Status::Stopped => {}
        Status::Created => kill(&container)?,
        _ if force => kill(&container)?,
        status => bail!(
            "cannot delete container {id} that is not stopped: {}",
            status.name()
        ),
    }
    destroy(container)?;
    Ok(0)
}

/// What to say when there is nothing to delete.
fn gone(error: state::Error, force: bool) -> Result<u8> {
    if force { Ok(0) } else { Err(error.into()) }
}

/// Kills the init process and waits for its end.
fn kill(container: &Container) -> Result<()> {
    let Some(pidfd) = container.pidfd() else {
        return wait_without_pidfd(container);
    };
    container.signal(libc::SIGKILL)?;
    if container.status() == Status::Paused {
        container.cgroup.thaw()?;
    }
    if ends_within(&pidfd, HINDERED)? {
        return Ok(());
    }
    // It cannot end before somebody who traces its children lets go of them: criu, left behind in the container's cgroup
    // by a restore that was killed.
    if let Err(error) = container.cgroup.kill_all(Signal::KILL) {
        log::warn!("{}", crate::failure::chain(&error));
    }
    if !ends_within(&pidfd, PATIENCE)? {
        bail!("container init still running");
    }
    Ok(())
}

/// Whether a process ends in that time.
fn ends_within(pidfd: &OwnedFd, time: Duration) -> Result<bool> {
    let deadline = Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec::try_from(left)?;
        // An interrupted wait is followed by another one.
        if poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&wait)).is_ok_and(|ready| ready > 0)
        {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// The same on kernels without pidfds.
fn wait_without_pidfd(container: &Container) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while container.signal(libc::SIGKILL)? {
        if Instant::now() > deadline {
            bail!("container init still running");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Removes everything of a container whose init process has ended.
pub(super) fn destroy(container: Container) -> Result<()> {
    let Container {
        directory,
        record,
        cgroup,
    } = container;
    // With a pid namespace of its own all its processes have ended with the first one.
    if !record.ends_with_init() && cgroup.exists() {
        cgroup.kill_all(Signal::KILL)?;
    }
    if cgroup.remove().is_err() {
        // Somebody else's processes may have been put there.
        cgroup.kill_all(Signal::KILL)?;
        cgroup.remove()?;
    }
    if let Some(group) = &record.resctrl {
        group.remove()?;
    }
    if let Some(hooks) = &record.hooks {
        hook::run_all(Point::Poststop, &hooks.poststop, &record, None);
    }
    directory.remove()?;
    Ok(())
}
