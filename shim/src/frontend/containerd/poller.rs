//! The names of what the server watches, and its epoll instance.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};

/// What an event is about. The numbers are places in the server's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The signalfd.
    Signals,
    /// The listening socket.
    Listener,
    /// The connection that events are sent over.
    Publisher,
    /// A connection of containerd's.
    Connection(usize),
    /// A stream.
    Pump(usize),
    /// Out-of-memory notifications of a container.
    Oom(usize),
}

impl Token {
    fn number(self) -> u64 {
        let (kind, index) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Publisher => (2, 0),
            Self::Connection(index) => (3, index),
            Self::Pump(index) => (4, index),
            Self::Oom(index) => (5, index),
        };
        (index as u64) << 8 | kind
    }

    fn from_number(number: u64) -> Option<Self> {
        let index = usize::try_from(number >> 8).ok()?;
        Some(match number & 0xff {
            0 => Self::Signals,
            1 => Self::Listener,
            2 => Self::Publisher,
            3 => Self::Connection(index),
            4 => Self::Pump(index),
            5 => Self::Oom(index),
            _ => return None,
        })
    }
}

/// Most events taken in one turn.
const BATCH: usize = 32;

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
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<Vec<(Token, EventFlags)>> {
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs().min(1_000_000)).unwrap_or(1_000_000),
            // Rounded up to a millisecond, because older kernels count in those and a remainder would make the loop spin
            // through it.
            tv_nsec: (i64::from(left.subsec_nanos()) + 999_999).min(999_999_999),
        });
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(u64::MAX),
        };
        let mut events = [empty; BATCH];
        let count = match epoll::wait(&self.0, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        Ok(events[..count]
            .iter()
            .filter_map(|event| {
                let (data, flags) = (event.data, event.flags);
                Some((Token::from_number(data.u64())?, flags))
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive_the_round_trip() {
        for token in [
            Token::Signals,
            Token::Listener,
            Token::Publisher,
            Token::Connection(0),
            Token::Connection(70_000),
            Token::Pump(3),
            Token::Oom(1),
        ] {
            assert_eq!(Token::from_number(token.number()), Some(token));
        }
        assert_eq!(Token::from_number(u64::MAX), None);
    }
}
