//! The monitor's ends of the container's standard streams.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags, fchmod, fcntl_getfl, fcntl_setfl, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::error::Error;
use crate::log::Stream;
use crate::monitor::token::Token;
use crate::plan::StdioKind;
use crate::poller::Poller;
use crate::process::Streams;

/// How long to leave a terminal alone that nobody has open: epoll would report
/// its hang-up without end, and somebody may still open it.
const TERMINAL_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that a pipe holds if nobody asks for more.
const PIPE: usize = 64 * 1024;

/// Bytes that a pipe is to hold as soon as it was full: reader and writer wait for each other less often, and who
/// writes little takes no more than before.
pub(crate) const BUSY_PIPE: usize = 256 * 1024;

/// The monitor's ends.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    /// Writes to the container.
    pub(crate) stdin: Option<Input>,
    /// The container's output, or its terminal.
    pub(crate) stdout: Option<Output>,
    /// The container's error output. With a terminal only the runtime's.
    pub(crate) stderr: Option<Output>,
}

/// Makes the streams: our ends, and what the runtime is started with.
pub(crate) fn open_streams(kind: StdioKind) -> Result<(Stdio, Streams), Error> {
    let mut ours = Stdio::default();
    let mut theirs = Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    };
    if kind == StdioKind::Passthrough {
        return Ok((ours, theirs));
    }
    if kind == (StdioKind::Pipes { stdin: true }) {
        let (reader, writer) = pipe()?;
        ours.stdin = Some(Input::new(nonblocking(writer)?));
        theirs.stdin = Some(reader);
    } else {
        theirs.stdin = Some(null()?);
    }
    if kind == StdioKind::Terminal {
        theirs.stdout = Some(null()?);
    } else {
        let (reader, writer) = pipe()?;
        ours.stdout = Some(Output::new(nonblocking(reader)?, Stream::Stdout, false));
        theirs.stdout = Some(writer);
    }
    // With a terminal too: the runtime's own complaints come this way.
    let (reader, writer) = pipe()?;
    ours.stderr = Some(Output::new(nonblocking(reader)?, Stream::Stderr, false));
    theirs.stderr = Some(writer);
    Ok((ours, theirs))
}

/// Opens `/dev/null` for reading and writing.
pub(crate) fn null() -> Result<OwnedFd, Error> {
    let path = std::path::Path::new("/dev/null");
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Error::path("open", path))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::call("pipe2"))?;
    // Programs of any user in the container open /dev/stdout and the like,
    // which checks the mode of the pipe's inode. Both ends share it.
    fchmod(&writer, Mode::from_raw_mode(0o666)).map_err(Error::call("fchmod of a pipe"))?;
    Ok((reader, writer))
}

/// Makes a descriptor non-blocking.
pub(crate) fn nonblocking(fd: OwnedFd) -> Result<OwnedFd, Error> {
    let set = || fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK);
    set().map_err(Error::call("fcntl(F_SETFL, O_NONBLOCK)"))?;
    Ok(fd)
}

/// A stream that the container writes.
#[derive(Debug)]
pub(crate) struct Output {
    fd: OwnedFd,
    stream: Stream,
    terminal: bool,
    /// The size was asked for.
    enlarged: bool,
    watched: bool,
    paused_until: Option<Instant>,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// This many bytes.
    Data(usize),
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

impl Output {
    /// Wraps a non-blocking descriptor.
    pub(crate) fn new(fd: OwnedFd, stream: Stream, terminal: bool) -> Self {
        Self {
            fd,
            stream,
            terminal,
            enlarged: false,
            watched: false,
            paused_until: None,
        }
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Reads once.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Chunk {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Chunk::End,
            Ok(count) => {
                if count >= PIPE && !self.enlarged {
                    self.enlarged = true;
                    // Refused to a user who has many such pipes: then it stays as it is.
                    let _ = fcntl_setpipe_size(&self.fd, BUSY_PIPE);
                }
                Chunk::Data(count)
            }
            Err(Errno::AGAIN | Errno::INTR) => Chunk::Nothing,
            // A terminal that nobody has open.
            Err(_) => Chunk::End,
        }
    }

    /// Whether the end means that nobody has it open at the moment.
    pub(crate) fn may_come_back(&self) -> bool {
        self.terminal
    }

    /// Leaves a terminal alone for a moment.
    pub(crate) fn pause(&mut self, now: Instant) {
        self.paused_until = Some(now + TERMINAL_PAUSE);
    }

    /// Watches for data if `wanted` and no pause is on. Returns when the pause
    /// will be over.
    pub(crate) fn watch(
        &mut self,
        poller: &Poller<Token>,
        wanted: bool,
        now: Instant,
    ) -> Result<Option<Instant>, Errno> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        let wanted = wanted && self.paused_until.is_none();
        if wanted != self.watched {
            let token = match self.stream {
                Stream::Stdout => Token::Stdout,
                Stream::Stderr => Token::Stderr,
            };
            // Removed and not just masked: a hang-up is reported regardless.
            if wanted {
                poller.add(&self.fd, token, EventFlags::IN)?;
            } else {
                poller.remove(&self.fd)?;
            }
            self.watched = wanted;
        }
        Ok(self.paused_until)
    }

    /// Bytes that wait to be read.
    pub(crate) fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.fd).unwrap_or(0)
    }
}

/// The container's stdin, with what it has not taken yet.
#[derive(Debug)]
pub(crate) struct Input {
    fd: OwnedFd,
    pending: Vec<u8>,
    offset: usize,
    close_when_empty: bool,
    watched: bool,
}

impl Input {
    /// Wraps a non-blocking descriptor.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            pending: Vec::new(),
            offset: 0,
            close_when_empty: false,
            watched: false,
        }
    }

    /// Whether more can be taken from clients.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes `data`, and keeps what does not fit. `false`: the container has
    /// closed its end.
    pub(crate) fn write(&mut self, mut data: &[u8]) -> bool {
        if self.pending.is_empty() {
            match write_some(&self.fd, data) {
                Ok(count) => data = &data[count..],
                Err(_) => return false,
            }
        }
        self.pending.extend_from_slice(data);
        true
    }

    /// Writes what was kept. `false`: this stdin is done with.
    pub(crate) fn flush(&mut self) -> bool {
        match write_some(&self.fd, &self.pending[self.offset..]) {
            Ok(count) => self.offset += count,
            Err(_) => return false,
        }
        if self.offset == self.pending.len() {
            self.pending = Vec::new();
            self.offset = 0;
        }
        !(self.close_when_empty && self.pending.is_empty())
    }

    /// Closes after what is kept has been written. `false`: that is now.
    pub(crate) fn close(&mut self) -> bool {
        self.close_when_empty = true;
        !self.pending.is_empty()
    }

    /// Watches for room while there is something to write.
    pub(crate) fn watch(&mut self, poller: &Poller<Token>) -> Result<(), Errno> {
        let wanted = !self.pending.is_empty();
        if wanted != self.watched {
            if wanted {
                poller.add(&self.fd, Token::Stdin, EventFlags::OUT)?;
            } else {
                poller.remove(&self.fd)?;
            }
            self.watched = wanted;
        }
        Ok(())
    }
}

fn write_some(fd: &OwnedFd, mut data: &[u8]) -> Result<usize, Errno> {
    let mut written = 0;
    while !data.is_empty() {
        match rustix::io::write(fd, data) {
            Ok(count) => {
                written += count;
                data = &data[count..];
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(written)
}

/// Puts `/dev/null` where our own standard streams are: nobody waits for the
/// end of a pipe because we hold it.
pub(crate) fn disconnect() -> Result<(), Error> {
    let null = null()?;
    let redirect = || -> io::Result<()> {
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        Ok(())
    };
    redirect().map_err(Error::call("dup2 of /dev/null"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn input_keeps_what_does_not_fit_and_closes_after_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut input = Input::new(nonblocking(writer.into()).unwrap());
        let data: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        assert!(input.write(&data));
        assert!(!input.has_room());
        assert!(input.close());
        let mut got = Vec::new();
        let mut buffer = [0; 65536];
        loop {
            let count = reader.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            if !input.flush() {
                break;
            }
        }
        drop(input);
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, data);
    }

    #[test]
    fn a_pipe_grows_when_it_was_full() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut output = Output::new(nonblocking(reader.into()).unwrap(), Stream::Stdout, false);
        let mut buffer = vec![0; BUSY_PIPE];
        writer.write_all(&[b'x'; PIPE - 1]).unwrap();
        assert_eq!(output.read(&mut buffer), Chunk::Data(PIPE - 1));
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&writer), Ok(PIPE));
        writer.write_all(&[b'x'; PIPE]).unwrap();
        assert_eq!(output.read(&mut buffer), Chunk::Data(PIPE));
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&writer), Ok(BUSY_PIPE));
        writer.write_all(&[b'x'; BUSY_PIPE]).unwrap();
        assert_eq!(output.read(&mut buffer), Chunk::Data(BUSY_PIPE));
    }

    #[test]
    fn input_notices_that_nobody_reads() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut input = Input::new(nonblocking(writer.into()).unwrap());
        drop(reader);
        assert!(!input.write(b"x"));
    }
}
