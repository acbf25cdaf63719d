//! A process's output on its way to whoever reads it, and the wait for that: the end of a process is told when all it
//! wrote has been read. A client may leave what is in the fifo when it hears of the end; ctr does.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::pump::{Pump, has_no_reader};
use super::token::Token;
use crate::poller::Poller;

/// How long nothing may be read before the end is told all the same.
const IDLE: Duration = Duration::from_secs(2);

/// First pause between two looks, as the kernel tells nobody that a pipe has become empty; doubled each time.
const PAUSE: Duration = Duration::from_millis(1);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(32);

/// An output stream.
#[derive(Debug)]
pub(crate) struct Output {
    /// Place of its pump in the server's list, as long as that has work.
    pub(crate) pump: Option<usize>,
    /// The fifo of a client's that it leads into.
    fifo: Option<PathBuf>,
    /// That fifo once more, since the process has ended. For writing: so it is seen when nobody reads.
    probe: Option<OwnedFd>,
    /// How many bytes had gone, or were on their way, when the process ended.
    goal: u64,
}

impl Output {
    /// One with a pump that works, and what it leads into if that is a fifo of a client's.
    pub(crate) fn new(pump: Option<usize>, fifo: Option<PathBuf>) -> Self {
        Self {
            pump,
            fifo,
            probe: None,
            goal: 0,
        }
    }

    /// The process has ended: what has come up to now is to be read before that is told.
    pub(crate) fn ended(&mut self, pump: Option<&Pump>) {
        self.probe = self.fifo.as_deref().and_then(probe);
        self.goal = pump.map_or(0, |pump| pump.moved() + pump.waiting());
    }

    /// Bytes that were written before the end and not read yet. What others write after does not count.
    pub(crate) fn unread(&self, pump: Option<&Pump>) -> u64 {
        let Some(probe) = &self.probe else {
            return 0;
        };
        let waiting = rustix::io::ioctl_fionread(probe).unwrap_or(0);
        pump.map_or(waiting, |pump| {
            (self.goal + waiting).saturating_sub(pump.moved())
        })
    }

    /// Whether anybody reads the fifo that it leads into. What leads elsewhere is read.
    pub(crate) fn is_read(&self, pumps: &mut [Option<Pump>], poller: &Poller<Token>) -> bool {
        if self.fifo.is_none() {
            return true;
        }
        if let Some(index) = self.pump
            && let Some(Some(pump)) = pumps.get_mut(index)
        {
            return pump.is_read(poller, index);
        }
        self.probe
            .as_ref()
            .is_some_and(|probe| !has_no_reader(probe))
    }

    /// The end is told: nothing is looked at any more.
    pub(crate) fn release(&mut self) {
        self.probe = None;
    }
}

/// Opens a fifo to look at it. `None` if nobody reads from it, or it is gone.
fn probe(fifo: &Path) -> Option<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = open(fifo, flags, Mode::empty()).ok()?;
    let stat = fstat(&fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Fifo).then_some(fd)
}

/// The end of a process that is not told yet.
#[derive(Debug)]
pub(crate) struct Untold {
    /// Bytes unread when it was last looked.
    left: u64,
    /// Since when it is that many.
    since: Instant,
    pause: Duration,
    /// When to look again.
    pub(crate) next: Instant,
}

impl Untold {
    /// One of a process that has just ended.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: 0,
            since: now,
            pause: PAUSE,
            next: now,
        }
    }

    /// Takes how much is unread now. `true`: nothing, or nobody reads it.
    pub(crate) fn is_over(&mut self, left: u64, now: Instant) -> bool {
        if left != self.left {
            self.left = left;
            self.since = now;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        left == 0 || now.duration_since(self.since) >= IDLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::nonblocking;
    use rustix::fs::{CWD, mknodat};
    use std::io::Write;

    /// A fifo with a reader, and what a pump writes into.
    fn fifo(directory: &Path) -> (PathBuf, OwnedFd, OwnedFd) {
        let path = directory.join("fifo");
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = open(&path, flags | OFlags::RDONLY, Mode::empty()).unwrap();
        let sink = open(&path, flags | OFlags::RDWR, Mode::empty()).unwrap();
        (path, reader, sink)
    }

    #[test]
    fn what_was_written_before_the_end_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, reader, sink) = fifo(directory.path());
        let (source, mut writer) = std::io::pipe().unwrap();
        let mut pump = Pump::new(nonblocking(source.into()).unwrap(), sink);
        let mut output = Output::new(Some(0), Some(path));
        let mut buffer = [0; 64];
        writer.write_all(b"moved").unwrap();
        pump.turn(&mut buffer);
        writer.write_all(b"waits").unwrap();
        output.ended(Some(&pump));
        assert_eq!(output.unread(Some(&pump)), 10);
        // Somebody else goes on.
        writer.write_all(b"after").unwrap();
        pump.turn(&mut buffer);
        assert_eq!(output.unread(Some(&pump)), 10);
        rustix::io::read(&reader, &mut buffer[..8]).unwrap();
        assert_eq!(output.unread(Some(&pump)), 2);
        rustix::io::read(&reader, &mut buffer[..4]).unwrap();
        assert_eq!(output.unread(Some(&pump)), 0);
    }

    #[test]
    fn without_a_reader_nothing_is_waited_for() {
        let poller = Poller::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (path, reader, sink) = fifo(directory.path());
        rustix::io::write(&sink, b"left").unwrap();
        let mut output = Output::new(None, Some(path));
        output.ended(None);
        drop(sink);
        assert_eq!(output.unread(None), 4);
        assert!(output.is_read(&mut [], &poller));
        drop(reader);
        assert!(!output.is_read(&mut [], &poller));
        output.ended(None);
        assert_eq!(output.unread(None), 0);
        let mut nowhere = Output::new(None, None);
        nowhere.ended(None);
        assert_eq!(nowhere.unread(None), 0);
        assert!(nowhere.is_read(&mut [], &poller));
    }

    #[test]
    fn our_own_end_is_no_reader_and_loses_nothing() {
        let poller = Poller::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (path, reader, sink) = fifo(directory.path());
        let name = directory.path().join("name");
        let (source, writer) = std::io::pipe().unwrap();
        let writer = nonblocking(writer.into()).unwrap();
        let mut pump = Pump::new(nonblocking(source.into()).unwrap(), sink);
        let mut buffer = [0; 4096];
        let mut written = 0;
        // Until both are full.
        while let Ok(count) = rustix::io::write(&writer, &[7; 4096]) {
            written += count;
            let progress = pump.turn(&mut buffer);
            pump.watch(&poller, 0, progress);
        }
        let mut output = Output::new(Some(0), Some(path.clone()));
        output.ended(Some(&pump));
        drop(writer);
        let mut pumps = [Some(pump)];
        assert_eq!(output.unread(pumps[0].as_ref()), written as u64);
        assert!(output.is_read(&mut pumps, &poller));
        drop(reader);
        assert!(!output.is_read(&mut pumps, &poller));
        output.release();
        std::fs::rename(&path, &name).unwrap();
        assert!(!output.is_read(&mut pumps, &poller));
        // Somebody comes after all; the pump is still watched for that.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::RDONLY;
        let reader = open(&name, flags, Mode::empty()).unwrap();
        assert!(output.is_read(&mut pumps, &poller));
        let mut found = 0;
        while found < written {
            found += rustix::io::read(&reader, &mut buffer).unwrap();
            let mut batch = crate::poller::Batch::new();
            poller
                .wait(&mut batch, Some(Duration::ZERO), || ())
                .unwrap();
            for (token, _) in batch.named::<Token>() {
                assert!(matches!(token, Token::Pump(0)));
                let pump = pumps[0].as_mut().unwrap();
                let progress = pump.turn(&mut buffer);
                pump.watch(&poller, 0, progress);
            }
        }
        assert_eq!(found, written);
    }

    #[test]
    fn a_reader_that_stops_is_not_waited_for() {
        let start = Instant::now();
        let mut untold = Untold::new(start);
        assert!(!untold.is_over(5, start));
        assert!(!untold.is_over(4, start + IDLE));
        assert!(!untold.is_over(4, start + IDLE + IDLE / 2));
        assert!(untold.is_over(4, start + IDLE + IDLE));
        assert!(untold.is_over(0, start));
    }
}
