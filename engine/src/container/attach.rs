//! The streams of a running container: its monitor's attach socket.
//!
//! The socket is a `SOCK_SEQPACKET` in the container's run directory. Output comes in packets whose first byte names
//! the stream; what is sent goes to standard input as it is; shutting down our side ends standard input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
    connect as connect_socket, recv, send, shutdown, socket_with,
};

use super::find::Handle;
use super::wait::poll_until;
use super::{Error, Result, SystemContext};
use crate::store::Store;

/// Data of one packet at most; conmon's and podman's size.
const PACKET: usize = 8192;
const STDOUT: u8 = 2;
const STDERR: u8 = 3;

/// A connection to a container's streams.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

/// Connects to the container's monitor.
///
/// # Errors
/// When nobody listens there.
pub fn connect(store: &Store, handle: &Handle) -> Result<Connection> {
    let connection = connect_in(&handle.bundle(store))?;
    store.emit(&handle.event("attach"));
    Ok(connection)
}

/// Connects to the monitor whose sockets are in `directory`.
pub(super) fn connect_in(directory: &Path) -> Result<Connection> {
    use rustix::fs::{Mode, OFlags, open};
    let path = directory.join("attach");
    // Through a descriptor, since the address of a unix socket holds only 107 bytes.
    let directory =
        open(directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).system("open", directory)?;
    let address = format!(
        "/proc/self/fd/{}/attach",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    );
    let address = SocketAddrUnix::new(address).system("attach to", &path)?;
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .system("attach to", &path)?;
    connect_socket(&socket, &address).system("attach to", &path)?;
    Ok(Connection { socket })
}

/// What a relay reads and writes besides the container.
#[derive(Debug)]
pub struct Ends<'a> {
    /// Where standard input comes from, if it is to be sent.
    pub input: Option<BorrowedFd<'a>>,
    /// Where standard output goes.
    pub output: BorrowedFd<'a>,
    /// Where standard error goes.
    pub error: BorrowedFd<'a>,
    /// Readable when the caller has something to do (a signal, a new window size).
    pub wake: Option<BorrowedFd<'a>>,
}

/// Why a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The container's streams are closed.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

impl Connection {
    /// Passes everything on in both directions until the container has ended or the detach keys come. `on_wake` is
    /// called whenever [`Ends::wake`] is readable.
    ///
    /// # Errors
    /// When a stream fails for another reason than its end.
    pub fn relay(
        &self,
        ends: &Ends<'_>,
        keys: &mut DetachKeys,
        mut on_wake: impl FnMut(),
    ) -> Result<Ended> {
        let mut input = ends.input;
        let mut pending: Option<Vec<u8>> = None;
        let mut buffer = vec![0u8; PACKET + 1];
        loop {
            // What the container has not taken yet is kept, and nothing more is read meanwhile: its output and our
            // signals go on.
            let wanted = if pending.is_some() {
                PollFlags::IN | PollFlags::OUT
            } else {
                PollFlags::IN
            };
            let mut list = vec![PollFd::new(&self.socket, wanted)];
            let wake_at = ends.wake.as_ref().map(|wake| {
                list.push(PollFd::new(wake, PollFlags::IN));
                list.len() - 1
            });
            let input_at = input.as_ref().filter(|_| pending.is_none()).map(|input| {
                list.push(PollFd::new(input, PollFlags::IN));
                list.len() - 1
            });
            poll_until(&mut list, None).system("wait for", "streams")?;
            let events = list[0].revents();
            let output_ready = events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
            let room = events.contains(PollFlags::OUT);
            let ready = |at: Option<usize>| at.is_some_and(|at| !list[at].revents().is_empty());
            let (wake_ready, input_ready) = (ready(wake_at), ready(input_at));
            drop(list);
            if wake_ready {
                on_wake();
            }
            if output_ready && !self.pass_output(ends, &mut buffer)? {
                return Ok(Ended::Closed);
            }
            if room && let Some(data) = pending.take() {
                pending = self.send(data)?;
            }
            if let (true, Some(source)) = (input_ready, input) {
                match self.pass_input(source, keys, &mut buffer)? {
                    Input::More => {}
                    Input::Kept(data) => pending = Some(data),
                    Input::End => input = None,
                    Input::Detach => return Ok(Ended::Detached),
                }
            }
        }
    }

    fn pass_output(&self, ends: &Ends<'_>, buffer: &mut [u8]) -> Result<bool> {
        let count = match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, count)) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(true),
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno).system("read from", "attach socket"),
        };
        let Some((&stream, data)) = buffer[..count].split_first() else {
            return Ok(false);
        };
        let target = match stream {
            STDOUT => ends.output,
            STDERR => ends.error,
            _ => return Ok(true),
        };
        write_all(target, data).system("write", "output")?;
        Ok(true)
    }

    fn pass_input(
        &self,
        source: BorrowedFd<'_>,
        keys: &mut DetachKeys,
        buffer: &mut [u8],
    ) -> Result<Input> {
        let count = match rustix::io::read(source, &mut buffer[..PACKET - DetachKeys::LONGEST]) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Ok(Input::More),
            // The terminal is gone.
            Err(rustix::io::Errno::IO) => 0,
            Err(errno) => return Err(errno).system("read", "standard input"),
        };
        if count == 0 {
            // It may be closed already.
            let _ = shutdown(&self.socket, Shutdown::Write);
            return Ok(Input::End);
        }
        let (passed, detach) = keys.filter(&buffer[..count]);
        let kept = if passed.is_empty() {
            None
        } else {
            self.send(passed)?
        };
        Ok(match (detach, kept) {
            (true, _) => Input::Detach,
            (false, Some(data)) => Input::Kept(data),
            (false, None) => Input::More,
        })
    }

    /// Sends what was typed; gives it back when the container takes nothing just now.
    fn send(&self, data: Vec<u8>) -> Result<Option<Vec<u8>>> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::io::retry_on_intr(|| send(&self.socket, &data, flags)) {
            // The container has ended: its last output is still to be read.
            Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(None),
            Err(rustix::io::Errno::AGAIN) => Ok(Some(data)),
            Err(errno) => Err(errno).system("write to", "attach socket"),
        }
    }
}

enum Input {
    More,
    Kept(Vec<u8>),
    End,
    Detach,
}

fn write_all(target: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match rustix::io::write(target, data) {
            Ok(count) => data = &data[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                poll_until(&mut [PollFd::new(&target, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sends a window size to a container's terminal, by its monitor's control fifo.
///
/// # Errors
/// When the monitor is gone.
pub fn resize(control: &Path, rows: u16, columns: u16) -> Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    // Not to block where nobody reads.
    let fifo = open(
        control,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .system("open", control)?;
    write_all(fifo.as_fd(), format!("1 {rows} {columns}\n").as_bytes()).system("write", control)
}

/// The sequence of keys that leaves a container running and goes back to the shell.
#[derive(Debug, Clone)]
pub struct DetachKeys {
    sequence: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Docker's default, in [`DetachKeys::parse`]'s form.
    pub const DEFAULT: &'static str = "ctrl-p,ctrl-q";
    const LONGEST: usize = 32;

    /// No keys at all: everything typed is passed on.
    #[must_use]
    pub fn none() -> DetachKeys {
        DetachKeys {
            sequence: Vec::new(),
            matched: 0,
        }
    }

    /// A comma-separated list of single characters and `ctrl-` with one of `a`–`z`, `@`, `[`, `\`, `]`, `^`, `_`. Empty
    /// is [`DetachKeys::none`].
    ///
    /// # Errors
    /// For anything else.
    pub fn parse(text: &str) -> Result<DetachKeys> {
        let bad = || {
            Error::Invalid(format!(
                "invalid detach keys: {text:?}; an example is {:?}",
                Self::DEFAULT
            ))
        };
        if text.is_empty() {
            return Ok(Self::none());
        }
        let mut sequence = Vec::new();
        for key in text.split(',') {
            let byte = match (key.strip_prefix("ctrl-"), key.as_bytes()) {
                (Some(letter), _) => match letter.as_bytes() {
                    [letter @ b'a'..=b'z'] => letter - b'a' + 1,
                    [symbol @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => symbol & 0x1f,
                    _ => return Err(bad()),
                },
                (None, [byte]) => *byte,
                _ => return Err(bad()),
            };
            sequence.push(byte);
        }
        if sequence.len() > Self::LONGEST {
            return Err(bad());
        }
        Ok(DetachKeys {
            sequence,
            matched: 0,
        })
    }

    /// Splits what was typed into what is passed on, and whether the sequence is complete. A beginning of the sequence
    /// is held back until the next key decides.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + self.matched);
        for &byte in typed {
            if self.sequence.is_empty() {
                passed.push(byte);
                continue;
            }
            if byte != self.sequence[self.matched] {
                passed.extend_from_slice(&self.sequence[..self.matched]);
                self.matched = 0;
            }
            if byte == self.sequence[self.matched] {
                self.matched += 1;
                if self.matched == self.sequence.len() {
                    self.matched = 0;
                    return (passed, true);
                }
            } else {
                passed.push(byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_held_back_until_decided() {
        let mut keys = DetachKeys::parse(DetachKeys::DEFAULT).unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"x\x10\x11y"), (b"x".to_vec(), true));
        assert_eq!(keys.filter(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
    }

    #[test]
    fn detach_keys_are_parsed() {
        assert_eq!(DetachKeys::parse("ctrl-a,q").unwrap().sequence, b"\x01q");
        assert_eq!(DetachKeys::parse("ctrl-[").unwrap().sequence, b"\x1b");
        assert!(DetachKeys::parse("").unwrap().sequence.is_empty());
        for bad in ["ctrl-", "ctrl-A1", "ab", "a,,b"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }
}
