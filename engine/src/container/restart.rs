//! Restart policies: whether a container that has ended is started again, and when.
//!
//! The monitor of a container runs `qengine cleanup ID` at its end, and that process is who waits and starts it again
//! ([`carry_on`]): there is nobody else. Who records the end ([`super::cleanup`]) decides and writes `restarting` into
//! the record; the helper finds that there, waits, and starts the container, unless somebody has changed the record
//! meanwhile. When the helper is killed, the next command finds a record without a living helper and starts the
//! container at once ([`super::recover`]).

use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::find::Handle;
use super::model::{Process, State, Status};
use super::start::{Streams, start, start_locked};
use super::stop::stop;
use super::{Error, Programs, Result};
use crate::store::Store;

/// The first pause; docker's, as are the two below.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// After a run of this length the pauses begin anew.
const LONG_RUN: Duration = Duration::from_secs(10);

/// When a container that has ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Never.
    #[default]
    No,
    /// When its exit code is not zero.
    OnFailure {
        /// So many times at most; 0 is without limit.
        most: u32,
    },
    /// Whenever it was not stopped by the user.
    Always,
    /// The same, and what was stopped stays so after a reboot.
    UnlessStopped,
}

impl Policy {
    /// Docker's word for it, without the number.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Policy::No => "no",
            Policy::OnFailure { .. } => "on-failure",
            Policy::Always => "always",
            Policy::UnlessStopped => "unless-stopped",
        }
    }

    /// How many times at most; 0 where there is no such limit.
    #[must_use]
    pub fn most(self) -> u32 {
        match self {
            Policy::OnFailure { most } => most,
            _ => 0,
        }
    }

    /// Whether a container that ended as `state` says is to be started again.
    #[must_use]
    pub fn wants(self, state: &State) -> bool {
        if state.stopped_by_user {
            return false;
        }
        match self {
            Policy::No => false,
            Policy::Always | Policy::UnlessStopped => true,
            Policy::OnFailure { most } => {
                state.exit_code != Some(0) && (most == 0 || state.restart_count < most)
            }
        }
    }

    /// Whether the container is to run again after the host was started.
    #[must_use]
    pub fn wants_after_boot(self, state: &State) -> bool {
        match self {
            Policy::Always => state.started.is_some(),
            Policy::UnlessStopped => state.started.is_some() && !state.stopped_by_user,
            Policy::No | Policy::OnFailure { .. } => false,
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    /// `no`, `on-failure[:COUNT]`, `always`, `unless-stopped`; an empty text is `no`.
    fn from_str(text: &str) -> Result<Policy> {
        let bad = |why: &str| Error::Invalid(format!("invalid restart policy: {why}"));
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count)),
            None => (text, None),
        };
        let policy = match name {
            "" | "no" => Policy::No,
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" => {
                let most = match count {
                    None => 0,
                    Some(count) if count.starts_with('-') => {
                        return Err(bad("maximum retry count cannot be negative"));
                    }
                    Some(count) => count
                        .parse()
                        .map_err(|_| bad("maximum retry count must be an integer"))?,
                };
                return Ok(Policy::OnFailure { most });
            }
            other => {
                return Err(bad(&format!(
                    "unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
                )));
            }
        };
        match count {
            Some(_) => Err(bad(
                "maximum retry count can only be used with 'on-failure'",
            )),
            None => Ok(policy),
        }
    }
}

/// Stops a container, if it runs, and starts it.
///
/// # Errors
/// As [`stop`] and [`start`].
pub fn restart(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    signal: Option<Signal>,
    timeout: Option<Duration>,
) -> Result<()> {
    {
        let _lock = handle.lock()?;
        let mut state = handle.state()?;
        state.kept = true;
        handle.save(&state)?;
    }
    stop(store, programs, handle, signal, timeout)?;
    start(store, programs, handle, Streams::Leave)?;
    store.emit(&handle.latest()?.event("restart"));
    Ok(())
}

/// Turns the record of a container that has just ended into one of a container that will be started again.
pub(super) fn schedule(state: &mut State) {
    let ran_for = match (state.started, state.finished) {
        (Some(started), Some(finished)) => {
            Duration::try_from(finished.duration_since(started)).unwrap_or_default()
        }
        _ => Duration::ZERO,
    };
    let pause = next_pause(state.restart_pause, ran_for);
    state.status = Status::Restarting;
    state.restart_count += 1;
    state.restart_pause = Some(pause);
    state.restart_at = Timestamp::now()
        .checked_add(SignedDuration::try_from(pause).unwrap_or_default())
        .ok();
    state.restarter = None;
}

fn next_pause(last: Option<Duration>, ran_for: Duration) -> Duration {
    match last {
        Some(last) if ran_for < LONG_RUN => (last * 2).min(LONGEST_PAUSE),
        _ => FIRST_PAUSE,
    }
}

/// What the monitor's exit command does after it has recorded the end: waits, and starts the container again, if that
/// is what the record says and nobody else is at it.
///
/// # Errors
/// When the container can't be started; its record says so too.
pub fn carry_on(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let own = i32::try_from(std::process::id())
        .ok()
        .and_then(Process::remember);
    {
        let Ok(_lock) = handle.lock() else {
            return Ok(()); // Removed meanwhile.
        };
        let mut state = handle.state()?;
        let is_taken = state
            .restarter
            .is_some_and(|restarter| restarter.is_alive());
        if state.status != Status::Restarting || is_taken {
            return Ok(());
        }
        state.restarter = own;
        handle.save(&state)?;
        let left = state.restart_at.map_or(SignedDuration::ZERO, |at| {
            at.duration_since(Timestamp::now())
        });
        // A clock that was set back must not hold it for ever.
        let pause = Duration::try_from(left)
            .unwrap_or_default()
            .min(LONGEST_PAUSE);
        drop(_lock);
        std::thread::sleep(pause);
    }
    let Ok(lock) = handle.lock() else {
        return Ok(());
    };
    // Limits, name or policy may have changed in the meantime.
    let handle = handle.latest()?;
    let mut state = handle.state()?;
    if state.status != Status::Restarting || state.restarter != own {
        return Ok(());
    }
    start_locked(store, programs, &handle, &mut state, Streams::Leave, &lock).map(drop)
}

/// Whether a container waits to be started again, and there is nobody left who would.
#[must_use]
pub(super) fn is_orphaned(state: &State) -> bool {
    let is_alive = |process: Option<Process>| process.is_some_and(|process| process.is_alive());
    // The monitor of the run before is there until its exit command has ended.
    state.status == Status::Restarting && !is_alive(state.restarter) && !is_alive(state.monitor)
}

/// Makes a container that waits to be started again one that has ended. The caller holds its lock, and saves the
/// record.
pub(super) fn give_up(state: &mut State) {
    let helper = state.restarter.take();
    state.status = Status::Exited;
    state.monitor = None;
    state.restart_at = None;
    // It waits for time or for the lock that we hold: nothing is half done.
    if let Some(descriptor) = helper.and_then(|process| process.open()) {
        let _ = rustix::process::pidfd_send_signal(descriptor, rustix::process::Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_spelled_as_dockers() {
        for (text, policy) in [
            ("", Policy::No),
            ("no", Policy::No),
            ("always", Policy::Always),
            ("unless-stopped", Policy::UnlessStopped),
            ("on-failure", Policy::OnFailure { most: 0 }),
            ("on-failure:3", Policy::OnFailure { most: 3 }),
        ] {
            assert_eq!(text.parse::<Policy>().unwrap(), policy, "{text}");
        }
        for (text, why) in [
            ("sometimes", "unknown policy 'sometimes'"),
            ("always:3", "only be used with 'on-failure'"),
            ("on-failure:x", "must be an integer"),
            ("on-failure:-1", "cannot be negative"),
        ] {
            let error = text.parse::<Policy>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_policy_decides_by_how_it_ended() {
        let state = |code, count, stopped| State {
            exit_code: Some(code),
            restart_count: count,
            stopped_by_user: stopped,
            ..State::default()
        };
        for (policy, state, wants) in [
            ("no", state(1, 0, false), false),
            ("always", state(0, 99, false), true),
            ("always", state(0, 0, true), false),
            ("unless-stopped", state(0, 0, false), true),
            ("on-failure", state(0, 0, false), false),
            ("on-failure", state(1, 1000, false), true),
            ("on-failure:2", state(1, 1, false), true),
            ("on-failure:2", state(1, 2, false), false),
        ] {
            let policy: Policy = policy.parse().unwrap();
            assert_eq!(policy.wants(&state), wants, "{policy:?} {state:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_begin_anew_after_a_long_run() {
        let short = Duration::from_secs(1);
        let mut pause = next_pause(None, short);
        assert_eq!(pause, FIRST_PAUSE);
        let mut all = Duration::ZERO;
        for _ in 0..20 {
            all += pause;
            pause = next_pause(Some(pause), short);
        }
        assert_eq!(pause, LONGEST_PAUSE);
        assert!(all > Duration::from_secs(600));
        assert_eq!(next_pause(Some(pause), LONG_RUN), FIRST_PAUSE);
    }
}
