//! Moves bytes of one stream: from the container's pipe or terminal into a fifo of containerd's, or the other way.
//!
//! Never more is read than fits the other side, so that a client that does not read stalls its own stream and nothing
//! else, and costs no memory. Between two pipes the kernel moves the pages itself (`splice(2)`).

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::token::Token;
use crate::poller::Poller;

/// Most bytes moved before others have their turn.
const TURN: usize = 256 * 1024;

/// One direction of a stream.
#[derive(Debug)]
pub(crate) struct Pump {
    source: OwnedFd,
    sink: OwnedFd,
    /// Whether both are pipes.
    splices: bool,
    /// Read but not yet written.
    pending: Vec<u8>,
    /// Bytes written so far.
    moved: u64,
    watched: Watched,
}

/// What the poller watches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    Nothing,
    Source,
    Sink,
}

/// What a turn came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is nothing to move now.
    Empty,
    /// The other side takes nothing now.
    Full,
    /// There may be more.
    More,
    /// The source has ended, or nobody wants it any more.
    Ended,
}

impl Pump {
    /// From `source` to `sink`, both non-blocking.
    pub(crate) fn new(source: OwnedFd, sink: OwnedFd) -> Self {
        let is_pipe = |fd: &OwnedFd| {
            fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        };
        let splices = is_pipe(&source) && is_pipe(&sink);
        Self {
            source,
            sink,
            splices,
            pending: Vec::new(),
            moved: 0,
            watched: Watched::Nothing,
        }
    }

    /// Moves what can be moved, up to a limit.
    pub(crate) fn turn(&mut self, buffer: &mut [u8]) -> Progress {
        let mut moved = 0;
        while moved < TURN {
            let step = if self.splices {
                self.splice()
            } else {
                self.copy(buffer)
            };
            match step {
                Ok(count) => moved += count,
                Err(progress) => return progress,
            }
        }
        Progress::More
    }

    fn splice(&mut self) -> Result<usize, Progress> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match splice(&self.source, None, &self.sink, None, 64 * 1024, flags) {
            Ok(0) => Err(Progress::Ended),
            Ok(count) => {
                self.moved += count as u64;
                Ok(count)
            }
            Err(Errno::INTR) => Ok(0),
            // Of which of the two this is about nothing is said.
            Err(Errno::AGAIN) if self.waiting() > 0 => Err(Progress::Full),
            // A full sink hides the end of the source, whose hang-up would wake us again and again. The last writer may have
            // written since it was last looked for bytes: only now nobody can any more.
            Err(Errno::AGAIN) if self.has_no_writer() => match self.waiting() {
                0 => Err(Progress::Ended),
                _ => Err(Progress::More),
            },
            Err(Errno::AGAIN) => Err(Progress::Empty),
            Err(_) => Err(Progress::Ended),
        }
    }

    fn copy(&mut self, buffer: &mut [u8]) -> Result<usize, Progress> {
        if !self.pending.is_empty() {
            let count = write(&self.sink, &self.pending)?;
            self.moved += count as u64;
            self.pending.drain(..count);
            if !self.pending.is_empty() {
                return Err(Progress::Full);
            }
            self.pending.shrink_to(0);
        }
        let count = match rustix::io::read(&self.source, &mut *buffer) {
            Ok(0) => return Err(Progress::Ended),
            Ok(count) => count,
            Err(Errno::INTR) => return Ok(0),
            Err(Errno::AGAIN) => return Err(Progress::Empty),
            // EIO: a terminal that nobody has open any more.
            Err(_) => return Err(Progress::Ended),
        };
        let written = write(&self.sink, &buffer[..count])?;
        self.moved += written as u64;
        self.pending.extend_from_slice(&buffer[written..count]);
        Ok(count)
    }

    /// Whether nobody can write to the source any more.
    fn has_no_writer(&self) -> bool {
        says(&self.source, PollFlags::HUP)
    }

    /// Bytes written so far.
    pub(crate) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes that wait in the source.
    pub(crate) fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.source).unwrap_or(0) + self.pending.len() as u64
    }

    /// Whether anybody but us reads from the sink, a fifo that may have lost its name.
    pub(crate) fn is_read(&mut self, poller: &Poller<Token>, index: usize) -> bool {
        let again = |fd: &OwnedFd, access: OFlags| {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            open(path, access | flags, Mode::empty())
        };
        // Keeps what is in there while our own reading end is away.
        let Ok(writer) = again(&self.sink, OFlags::WRONLY) else {
            return true;
        };
        let is_full = self.watched == Watched::Sink;
        if is_full {
            self.watch(poller, index, Progress::Ended);
        }
        self.sink = writer;
        let is_read = !has_no_reader(&self.sink);
        if let Ok(sink) = again(&self.sink, OFlags::RDWR) {
            self.sink = sink;
        }
        if is_full {
            self.watch(poller, index, Progress::Full);
        }
        is_read
    }

    /// Watches for what the last turn stopped at.
    pub(crate) fn watch(&mut self, poller: &Poller<Token>, index: usize, progress: Progress) {
        let wanted = match progress {
            Progress::Full => Watched::Sink,
            Progress::Empty | Progress::More => Watched::Source,
            Progress::Ended => Watched::Nothing,
        };
        if wanted == self.watched {
            return;
        }
        // A descriptor is removed and not masked, because a hang-up is reported regardless.
        let removed = match self.watched {
            Watched::Nothing => Ok(()),
            Watched::Source => poller.remove(&self.source),
            Watched::Sink => poller.remove(&self.sink),
        };
        let token = Token::Pump(index);
        let added = match wanted {
            Watched::Nothing => Ok(()),
            Watched::Source => poller.add(&self.source, token, EventFlags::IN),
            Watched::Sink => poller.add(&self.sink, token, EventFlags::OUT),
        };
        if let Err(errno) = removed.and(added) {
            crate::diag::error!("watch a stream: {errno}");
        }
        self.watched = wanted;
    }
}

/// Whether nobody has a fifo open for reading.
pub(crate) fn has_no_reader(writer: &OwnedFd) -> bool {
    says(writer, PollFlags::ERR)
}

/// Whether poll(2) says this of a descriptor now.
fn says(fd: &OwnedFd, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(what)
}

/// Writes what fits.
fn write(sink: &OwnedFd, data: &[u8]) -> Result<usize, Progress> {
    match rustix::io::write(sink, data) {
        Ok(count) => Ok(count),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(_) => Err(Progress::Ended),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::nonblocking;
    use std::io::{Read, Write};

    #[test]
    fn everything_arrives_and_a_full_sink_stops_the_source() {
        let (source, mut writer) = std::io::pipe().unwrap();
        let (mut reader, sink) = std::io::pipe().unwrap();
        let mut pump = Pump::new(
            nonblocking(source.into()).unwrap(),
            nonblocking(sink.into()).unwrap(),
        );
        assert!(pump.splices);
        let mut buffer = [0; 1024];
        assert_eq!(pump.turn(&mut buffer), Progress::Empty);
        let chunk = [7; 4096];
        // Both pipes filled to the brim.
        for _ in 0..16 {
            writer.write_all(&chunk).unwrap();
        }
        assert_eq!(pump.turn(&mut buffer), Progress::Empty);
        for _ in 0..16 {
            writer.write_all(&chunk).unwrap();
        }
        assert_eq!(pump.turn(&mut buffer), Progress::Full);
        drop(writer);
        let mut first = vec![0; 65536];
        reader.read_exact(&mut first).unwrap();
        assert_eq!(pump.turn(&mut buffer), Progress::Ended);
        drop(pump);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(first.len() + rest.len(), 32 * 4096);
    }

    #[test]
    fn a_socket_is_copied_by_hand() {
        let (a, mut b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (mut reader, sink) = std::io::pipe().unwrap();
        let mut pump = Pump::new(
            nonblocking(a.into()).unwrap(),
            nonblocking(sink.into()).unwrap(),
        );
        assert!(!pump.splices);
        b.write_all(b"hello").unwrap();
        drop(b);
        assert_eq!(pump.turn(&mut [0; 2]), Progress::Ended);
        drop(pump);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}
