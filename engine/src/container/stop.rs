//! Ending a container: by its stop signal, by SIGKILL, by any signal.

use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags};
use rustix::process::pidfd_send_signal;

use super::find::Handle;
use super::live::Live;
use super::model::{State, Status};
use super::wait::{ExitWatch, poll_until};
use super::{Error, Programs, Result, SystemContext, cleanup, monitor, recover, restart};
use crate::store::Store;

/// How long the monitor may take to publish the exit of a process that is dead.
const PUBLISHING: Duration = Duration::from_secs(10);

/// Asks a container to end, and kills it when it has not ended after `timeout` (`None` waits for ever). One that does
/// not run is left alone.
///
/// # Errors
/// When a signal can't be sent, or the process outlives SIGKILL.
pub fn stop(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    signal: Option<Signal>,
    timeout: Option<Duration>,
) -> Result<()> {
    // What a killed start has left says "starting", which is not to be taken for a container that never ran.
    drop(recover::collect(store, programs, handle.id()));
    let lock = handle.lock()?;
    let (mut state, live) = handle.live(store)?;
    if live == Live::Restarting {
        return end_restarting(store, handle, &mut state);
    }
    if !live.is_running() {
        if state.status == Status::Running {
            // It has ended, but nobody has recorded that yet: whoever does must not start it again.
            state.stopped_by_user = true;
            handle.save(&state)?;
        }
        drop(lock);
        return cleanup::finish(store, programs, handle);
    }
    state.stopped_by_user = true;
    handle.save(&state)?;
    drop(lock);
    if live == Live::Paused {
        runtime(store, programs, handle, "resume")?;
    }
    let signal = match signal {
        Some(signal) => signal,
        None => stop_signal(handle)?,
    };
    // A time beyond the clock's end is for ever.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let ended = match state.process.and_then(|process| process.open()) {
        None => true,
        Some(descriptor) => {
            send(&descriptor, signal, handle)?;
            tell_signal(store, handle, signal);
            let mut list = [PollFd::new(&descriptor, PollFlags::IN)];
            poll_until(&mut list, deadline).system("wait for", handle.name())? > 0
        }
    };
    if ended {
        await_exit(store, handle, &state)?;
    } else {
        kill_and_wait(store, programs, handle, &state)?;
    }
    cleanup::finish(store, programs, handle)?;
    store.emit(&handle.event("stop"));
    Ok(())
}

/// The pause before the next start ends at once, and with it the container. The caller holds its lock.
pub(super) fn end_restarting(store: &Store, handle: &Handle, state: &mut State) -> Result<()> {
    restart::give_up(state);
    state.stopped_by_user = true;
    handle.save(state)?;
    drop(std::fs::remove_file(store.exits().join(handle.id())));
    store.emit(&handle.event("stop"));
    Ok(())
}

/// SIGKILL, and the wait until the end is published. The caller may hold the container's lock.
pub(super) fn kill_and_wait(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    state: &State,
) -> Result<()> {
    if let Some(descriptor) = state.process.and_then(|process| process.open()) {
        send(&descriptor, Signal::SIGKILL, handle)?;
        tell_signal(store, handle, Signal::SIGKILL);
        // A frozen process dies only once it is thawed (cgroup v1).
        if handle.live(store)?.1 == Live::Paused {
            runtime(store, programs, handle, "resume")?;
        }
        let mut list = [PollFd::new(&descriptor, PollFlags::IN)];
        let deadline = Some(Instant::now() + PUBLISHING);
        if poll_until(&mut list, deadline).system("wait for", handle.name())? == 0 {
            return Err(Error::Invalid(format!(
                "container {} did not end within {} s of SIGKILL; its process {} sleeps in the kernel",
                handle.name(),
                PUBLISHING.as_secs(),
                state.process.map_or(0, |process| process.pid),
            )));
        }
    }
    await_exit(store, handle, state)
}

/// The process is dead: its exit code follows as soon as the monitor has drained its output.
fn await_exit(store: &Store, handle: &Handle, state: &State) -> Result<()> {
    let watch = ExitWatch::new(store, handle.id())?;
    if let Some(monitor) = state.monitor.and_then(|monitor| monitor.open()) {
        watch.wait(Some(monitor.as_fd()), Some(PUBLISHING))?;
    }
    Ok(())
}

/// Sends any signal to the container's first process.
///
/// # Errors
/// When the container does not run.
pub fn kill(store: &Store, programs: &Programs, handle: &Handle, signal: Signal) -> Result<()> {
    drop(recover::collect(store, programs, handle.id()));
    let (state, live) = handle.live(store)?;
    let not_running = || {
        Error::Invalid(format!(
            "cannot kill container {}: it is not running",
            handle.name()
        ))
    };
    if live == Live::Restarting {
        // There is no process: what the signal is for can only be that it ends.
        let _lock = handle.lock()?;
        let mut state = handle.state()?;
        if state.status == Status::Restarting {
            return end_restarting(store, handle, &mut state);
        }
    }
    if !live.is_running() {
        return Err(not_running());
    }
    let descriptor = state
        .process
        .and_then(|process| process.open())
        .ok_or_else(not_running)?;
    let is_to_end = signal == Signal::SIGKILL || stop_signal(handle)? == signal;
    if is_to_end {
        let _lock = handle.lock()?;
        let mut state = handle.state()?;
        state.stopped_by_user = true;
        handle.save(&state)?;
    }
    send(&descriptor, signal, handle)?;
    tell_signal(store, handle, signal);
    if signal == Signal::SIGKILL {
        if live == Live::Paused {
            runtime(store, programs, handle, "resume")?;
        }
        await_exit(store, handle, &state)?;
        cleanup::finish(store, programs, handle)?;
    }
    Ok(())
}

/// Freezes or thaws a container, by the runtime's command of that name.
///
/// # Errors
/// When the runtime refuses.
pub fn runtime(store: &Store, programs: &Programs, handle: &Handle, command: &str) -> Result<()> {
    let program = monitor::runtime(programs, handle);
    let output = Command::new(&program)
        .arg("--root")
        .arg(store.runtime_root())
        .args([command, handle.id()])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Program { program, source })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(monitor::refused(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}

/// The event of a signal that the user has sent.
fn tell_signal(store: &Store, handle: &Handle, signal: Signal) {
    let number = (signal as i32).to_string();
    store.emit(&handle.event("kill").with("signal", number));
}

fn send(descriptor: &impl AsFd, signal: Signal, handle: &Handle) -> Result<()> {
    let number = rustix::process::Signal::from_named_raw(signal as i32)
        .ok_or_else(|| Error::Invalid(format!("signal {signal} can't be sent")))?;
    match pidfd_send_signal(descriptor, number) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).system("send a signal to", handle.name()),
    }
}

/// The signal that `stop` begins with: the user's, the image's, SIGTERM.
///
/// # Errors
/// When neither names a signal.
pub fn stop_signal(handle: &Handle) -> Result<Signal> {
    let config = &handle.config;
    let text = config
        .options
        .stop_signal
        .as_deref()
        .or(config.image_config.config.stop_signal.as_deref())
        .unwrap_or("SIGTERM");
    parse_signal(text)
}

/// `SIGTERM`, `TERM`, `term`, `15`.
///
/// # Errors
/// For anything else.
pub fn parse_signal(text: &str) -> Result<Signal> {
    let bad = || Error::Invalid(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| bad());
    }
    let upper = text.to_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    full.parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for text in ["SIGTERM", "TERM", "term", "15"] {
            assert_eq!(parse_signal(text).unwrap(), Signal::SIGTERM, "{text}");
        }
        for text in ["", "SIG", "0", "99", "nosuch"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
