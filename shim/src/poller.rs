//! The monitor's one epoll instance and the names of what it watches.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The signalfd.
    Signals,
    /// The attach socket's listener.
    Listener,
    /// Container output, or the terminal.
    Stdout,
    /// Container error output.
    Stderr,
    /// The writing end of the container's stdin.
    Stdin,
    /// The console socket.
    Console,
    /// The `ctl` fifo.
    Control,
    /// The `winsz` fifo.
    WindowSize,
    /// The start pipe of an attached exec session.
    Start,
    /// Out-of-memory notifications.
    Oom,
    /// The container's sd_notify socket.
    Notify,
    /// pidfd of a container that is not our child.
    Container,
    /// An attach client, by slot.
    Client(usize),
}

/// First number used for clients.
const FIRST_CLIENT: u64 = 16;

impl Token {
    fn number(self) -> u64 {
        match self {
            Self::Signals => 0,
            Self::Listener => 1,
            Self::Stdout => 2,
            Self::Stderr => 3,
            Self::Stdin => 4,
            Self::Console => 5,
            Self::Control => 6,
            Self::WindowSize => 7,
            Self::Start => 8,
            Self::Oom => 9,
            Self::Notify => 10,
            Self::Container => 11,
            Self::Client(slot) => FIRST_CLIENT.saturating_add(slot as u64),
        }
    }

    fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Stdout,
            3 => Self::Stderr,
            4 => Self::Stdin,
            5 => Self::Console,
            6 => Self::Control,
            7 => Self::WindowSize,
            8 => Self::Start,
            9 => Self::Oom,
            10 => Self::Notify,
            11 => Self::Container,
            _ => Self::Client(usize::try_from(number.checked_sub(FIRST_CLIENT)?).ok()?),
        })
    }
}

/// Most events taken in one turn.
const BATCH: usize = 32;

/// What one turn of the loop brought.
pub(crate) struct Batch {
    events: [Event; BATCH],
    count: usize,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Batch")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Batch {
    /// Room for one turn.
    pub(crate) fn new() -> Self {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(u64::MAX),
        };
        Self {
            events: [empty; BATCH],
            count: 0,
        }
    }

    /// How many events there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The event at `index`.
    pub(crate) fn get(&self, index: usize) -> Option<(Token, EventFlags)> {
        let event = self.events.get(..self.count)?.get(index)?;
        let (data, flags) = (event.data, event.flags);
        Some((Token::from_number(data.u64())?, flags))
    }

    /// Whether there may be more events than fitted.
    pub(crate) fn is_full(&self) -> bool {
        self.count == BATCH
    }
}

/// The epoll instance.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    /// Makes the epoll instance.
    pub(crate) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Watches `fd` for `flags`, level-triggered.
    pub(crate) fn add(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
        epoll::add(&self.0, fd, EventData::new_u64(token.number()), flags)
    }

    /// Changes what `fd` is watched for.
    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.0, fd, EventData::new_u64(token.number()), flags)
    }

    /// Stops watching `fd`.
    pub(crate) fn remove(&self, fd: impl AsFd) -> Result<()> {
        epoll::delete(&self.0, fd)
    }

    /// Waits for events, at most for `timeout`.
    pub(crate) fn wait(&self, batch: &mut Batch, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs().min(1_000_000)).unwrap_or(1_000_000),
            // Rounded up to a millisecond, because older kernels count in
            // those and a remainder would make the loop spin through it.
            tv_nsec: (i64::from(left.subsec_nanos()) + 999_999).min(999_999_999),
        });
        batch.count = 0;
        match epoll::wait(&self.0, &mut batch.events[..], timeout.as_ref()) {
            Ok(count) => {
                batch.count = count;
                Ok(())
            }
            Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_the_round_trip() {
        let tokens = [
            Token::Signals,
            Token::Listener,
            Token::Stdout,
            Token::Stderr,
            Token::Stdin,
            Token::Console,
            Token::Control,
            Token::WindowSize,
            Token::Start,
            Token::Oom,
            Token::Notify,
            Token::Container,
            Token::Client(0),
            Token::Client(77),
        ];
        for token in tokens {
            assert_eq!(Token::from_number(token.number()), Some(token));
        }
        assert_eq!(Token::from_number(12), None);
    }
}
