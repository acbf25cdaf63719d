//! The names of what the server watches.

use crate::poller::Name;

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
    /// A logger that gets ready.
    Logger(usize),
}

impl Name for Token {
    fn number(self) -> u64 {
        let (kind, index) = match self {
            Self::Signals => (0, 0),
            Self::Listener => (1, 0),
            Self::Publisher => (2, 0),
            Self::Connection(index) => (3, index),
            Self::Pump(index) => (4, index),
            Self::Oom(index) => (5, index),
            Self::Logger(index) => (6, index),
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
            6 => Self::Logger(index),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Token;
    use crate::poller::Name as _;

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
            Token::Logger(2),
        ] {
            assert_eq!(Token::from_number(token.number()), Some(token));
        }
        assert_eq!(Token::from_number(u64::MAX), None);
    }
}
