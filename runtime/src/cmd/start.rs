//! `start`: lets the process of a created container execute its program.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::Signal;

use super::Request;
use crate::container::{Container, Status};
use crate::failure::During;
use crate::hook::{self, Point};
use crate::readiness::Relay;
use crate::setup;
use crate::setup::fault::Fault;
use crate::state::START_FIFO;

/// Runs the command.
pub(super) fn start(request: &Request<'_>) -> Result<u8> {
    let directory = request.store.open(request.parsed.id())?;
    // Before it is read: while its container is being created, the record does not tell yet which process it is.
    directory.lock()?;
    let record = directory.read()?;
    let container = Container::new(directory, record);
    match container.status() {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        status => bail!("cannot start a container in the {} state", status.name()),
    }
    let relay = Relay::listen(container.directory.path())?;
    let pidfd = container.pidfd();
    release(&container)?;
    // A hook may want to execute something in there.
    container.directory.share_lock()?;
    if let Some(hooks) = &container.record.hooks {
        let pid = Some(container.record.pid);
        let ran = hook::run(Point::Poststart, &hooks.poststart, &container.record, pid);
        if ran.is_err() {
            stop(&container);
        }
        ran?;
    }
    // It may take long until the service is ready; others must not wait for that.
    container.directory.unlock();
    if let Some(relay) = relay {
        relay.wait(container.record.pid, pidfd.as_ref().map(AsFd::as_fd))?;
    }
    Ok(0)
}

/// Ends a container whose poststart hook failed: runtime.md "Lifecycle", step 9. It is then stopped, and to be deleted.
fn stop(container: &Container) {
    let killed = container.signal(libc::SIGKILL).map(drop);
    let killed = match container.record.ends_with_init() {
        true => killed.map_err(|error| crate::failure::chain(&error)),
        false => container
            .cgroup
            .kill_all(Signal::KILL)
            .map_err(|error| crate::failure::chain(&error)),
    };
    if let Err(error) = killed {
        log::warn!("cannot stop the container: {error}");
    }
}

/// Gives the word and waits until the program has been executed.
///
/// The waiting process holds both ends of the fifo and loses them by exec. What it finds to say before that, it writes.
fn release(container: &Container) -> Result<()> {
    let path = container.directory.path().join(START_FIFO);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let answer =
        openat(container.directory.fd(), START_FIFO, flags, Mode::empty()).during("open", &path)?;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let word =
        openat(container.directory.fd(), START_FIFO, flags, Mode::empty()).during("open", &path)?;
    // Before the fifo goes: without it nobody could give the word any more, should we be killed in between.
    rustix::io::write(&word, &[0]).during("write", &path)?;
    drop(word);
    // From here on it counts as started.
    container.directory.remove_file(START_FIFO)?;
    loop {
        // Not for reading: the word itself may still be in there.
        match poll(&mut [PollFd::new(&answer, PollFlags::empty())], None) {
            Err(Errno::INTR) => {}
            other => break other.map(drop).during("poll", &path)?,
        }
    }
    let mut said = Vec::new();
    File::from(answer)
        .read_to_end(&mut said)
        .during("read", &path)?;
    match Fault::decode(&said) {
        Some(fault) => Err(setup::Error::Init(fault)).context("unable to start container process"),
        None if said == [0] => bail!("cannot start a container that has stopped"),
        None => Ok(()),
    }
}
