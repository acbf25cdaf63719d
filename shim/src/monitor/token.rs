//! The names of what the monitor watches.

use crate::poller::Name;

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

impl Name for Token {
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

#[cfg(test)]
mod tests {
    use super::Token;
    use crate::poller::Name as _;

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
