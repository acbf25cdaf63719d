//! One attach client: its backlog, and what became of its half of the socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};

use super::PAYLOAD;
use crate::log::Stream;
use crate::monitor::token::Token;
use crate::poller::Poller;

/// Bytes that wait for a client before the container is read more slowly.
pub(crate) const BACKLOG: usize = 1024 * 1024;

/// How long a client with a full backlog may take nothing before it is left
/// behind. Long enough for a reader on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// The same for whoever started the container and is behind a pager or a slow disk perhaps.
pub(crate) const STARTERS_PATIENCE: Duration = Duration::from_secs(10);

/// How long a client may take nothing after the container's end before the rest
/// of its backlog is dropped. Nobody waits for it then but us.
const FAREWELL: Duration = Duration::from_secs(10);

/// An attach client.
#[derive(Debug)]
pub(crate) struct Client {
    fd: OwnedFd,
    token: Token,
    /// Events the poller looks for; `None` while it does not know the client.
    watched: Option<EventFlags>,
    /// Packets not sent yet, each with its prefix.
    backlog: VecDeque<Box<[u8]>>,
    queued: usize,
    /// When the client last took something.
    progress: Instant,
    /// Bytes that were left out since it stalled; `None` when it has not.
    missed: Option<u64>,
    /// It is given more time: it started the container.
    is_starter: bool,
    /// The client may still send.
    pub(super) sends: bool,
    /// The client may still receive.
    receives: bool,
}

/// What a client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// This many bytes for stdin.
    Input(usize),
    /// A packet larger than the buffer, of this many bytes at most.
    TooLarge(usize),
    /// Nothing now.
    Nothing,
    /// The end of its input.
    End,
}

impl Client {
    /// Welcomes a client, that is passed over when it stalls.
    pub(crate) fn new(fd: OwnedFd, token: Token, poller: &Poller<Token>) -> Result<Self, Errno> {
        poller.add(&fd, token, EventFlags::empty())?;
        Ok(Self {
            fd,
            token,
            watched: Some(EventFlags::empty()),
            backlog: VecDeque::new(),
            queued: 0,
            progress: Instant::now(),
            missed: None,
            is_starter: false,
            sends: true,
            receives: true,
        })
    }

    /// Gives this client the time of whoever started the container.
    pub(crate) fn make_starter(&mut self) {
        self.is_starter = true;
    }

    /// Whether it started the container.
    pub(crate) fn is_starter(&self) -> bool {
        self.is_starter
    }

    /// Sends at most [`PAYLOAD`] bytes of output, or queues them.
    pub(crate) fn send(&mut self, stream: Stream, data: &[u8], now: Instant) {
        debug_assert!(data.len() <= PAYLOAD);
        if !self.receives {
            return;
        }
        if let Some(missed) = &mut self.missed {
            *missed += data.len() as u64;
            return;
        }
        let prefix = [stream.packet_prefix()];
        if self.backlog.is_empty() {
            match send_packet(&self.fd, &[IoSlice::new(&prefix), IoSlice::new(data)]) {
                Ok(()) => {
                    self.progress = now;
                    return;
                }
                Err(Errno::AGAIN) => self.progress = now,
                Err(_) => return self.stop_sending(),
            }
        }
        self.backlog.push_back([&prefix, data].concat().into());
        self.queued += data.len() + 1;
    }

    /// Sends what waits, as far as the client takes it.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(packet) = self.backlog.front() {
            match send_packet(&self.fd, &[IoSlice::new(packet)]) {
                Ok(()) => {
                    self.progress = now;
                    self.queued -= packet.len();
                    self.backlog.pop_front();
                }
                Err(Errno::AGAIN) => return,
                Err(_) => return self.stop_sending(),
            }
            if self.backlog.is_empty() {
                self.catch_up();
            }
        }
    }

    /// Ends the time of missing output, with a word about it.
    fn catch_up(&mut self) {
        // Room that a burst took is given back.
        self.backlog = VecDeque::new();
        let Some(missed) = self.missed.take() else {
            return;
        };
        let note =
            format!("\nqshim: attached too slow a reader: {missed} bytes are missing here\n");
        let packet = [&[Stream::Stderr.packet_prefix()], note.as_bytes()].concat();
        self.queued += packet.len();
        self.backlog.push_back(packet.into());
    }

    fn stop_sending(&mut self) {
        self.receives = false;
        self.backlog = VecDeque::new();
        self.queued = 0;
        self.missed = None;
    }

    /// Whether the container should wait for this client. Finds out, too,
    /// whether the client has stalled.
    pub(crate) fn is_congested(&mut self, now: Instant) -> bool {
        if self.queued < BACKLOG || self.missed.is_some() {
            return false;
        }
        // The poller reports room only when most of it is free. A slow client
        // shows in smaller steps.
        self.flush(now);
        if self.queued < BACKLOG {
            return false;
        }
        let patience = if self.is_starter {
            STARTERS_PATIENCE
        } else {
            PATIENCE
        };
        if now.duration_since(self.progress) >= patience {
            self.missed = Some(0);
            return false;
        }
        true
    }

    /// Receives one packet of input.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Received {
        if !self.sends {
            return Received::Nothing;
        }
        let waiting = rustix::io::ioctl_fionread(&self.fd).unwrap_or(0);
        let waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
        // Larger than what waits in all no packet can be.
        if waiting > buffer.len() {
            return Received::TooLarge(waiting);
        }
        match recv(&self.fd, buffer, RecvFlags::empty()) {
            Ok((0, _)) => {
                self.sends = false;
                Received::End
            }
            Ok((count, _)) => Received::Input(count),
            Err(Errno::AGAIN | Errno::INTR) => Received::Nothing,
            Err(_) => {
                self.sends = false;
                self.stop_sending();
                Received::End
            }
        }
    }

    /// The client has closed its socket: nothing can be sent to it any more. What
    /// it sent before may still wait to be read.
    pub(crate) fn hang_up(&mut self) {
        self.stop_sending();
    }

    /// Whether the client is of no more use.
    pub(crate) fn is_gone(&self) -> bool {
        !self.receives && !self.sends
    }

    /// After the container's end: whether this client has everything, or has
    /// taken nothing for longer than it is waited for.
    pub(crate) fn is_finished(&mut self, now: Instant) -> bool {
        self.flush(now);
        if self.backlog.is_empty() {
            self.catch_up();
            self.flush(now);
        }
        let patient = self.is_starter || now.duration_since(self.progress) < FAREWELL;
        self.backlog.is_empty() || !patient
    }

    /// Watches for what can be handled now.
    pub(crate) fn watch(&mut self, poller: &Poller<Token>, stdin_room: bool) -> Result<(), Errno> {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.sends && stdin_room);
        flags.set(EventFlags::OUT, !self.backlog.is_empty());
        // A hang-up is reported whatever is asked for. Once known, the client is
        // watched only for input that we have room for.
        let wanted = (self.receives || !flags.is_empty()).then_some(flags);
        if wanted == self.watched {
            return Ok(());
        }
        match (self.watched, wanted) {
            (_, None) => poller.remove(&self.fd)?,
            (None, Some(flags)) => poller.add(&self.fd, self.token, flags)?,
            (Some(_), Some(flags)) => poller.modify(&self.fd, self.token, flags)?,
        }
        self.watched = wanted;
        Ok(())
    }
}

/// Sends one packet, whole or not at all.
fn send_packet(fd: &OwnedFd, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match sendmsg(fd, parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            // The kernel is out of buffers: the same as a full socket.
            Err(Errno::NOBUFS | Errno::NOMEM) => return Err(Errno::AGAIN),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Client, OwnedFd, Poller<Token>) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let poller = Poller::new().unwrap();
        let client = Client::new(ours, Token::Client(0), &poller).unwrap();
        (client, theirs, poller)
    }

    /// Every packet that can be received now.
    fn packets(fd: &OwnedFd) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut buffer = [0; PAYLOAD + 1];
        while let Ok((count, _)) = recv(fd, &mut buffer, RecvFlags::empty()) {
            if count == 0 {
                break;
            }
            packets.push(buffer[..count].to_vec());
        }
        packets
    }

    #[test]
    fn packets_carry_their_stream() {
        let (mut client, theirs, _poller) = pair();
        client.send(Stream::Stdout, b"out", Instant::now());
        client.send(Stream::Stderr, b"err", Instant::now());
        assert_eq!(packets(&theirs), [b"\x02out".to_vec(), b"\x03err".to_vec()]);
    }

    #[test]
    fn a_slow_client_loses_nothing() {
        let (mut client, theirs, _poller) = pair();
        let now = Instant::now();
        let mut sent = 0_usize;
        while !client.is_congested(now) {
            client.send(Stream::Stdout, &[b'x'; PAYLOAD], now);
            sent += PAYLOAD;
        }
        assert!(sent >= BACKLOG);
        let mut got = 0;
        // Takes a little every now and then, for longer than the patience.
        for step in 1..200_u32 {
            let later = now + PATIENCE / 2 * step;
            got += packets(&theirs)
                .iter()
                .map(|packet| packet.len() - 1)
                .sum::<usize>();
            client.is_congested(later);
            client.flush(later);
        }
        assert_eq!(got, sent);
        assert_eq!(client.queued, 0);
    }

    #[test]
    fn a_stalled_client_is_left_behind_and_told() {
        let (mut client, theirs, _poller) = pair();
        let start = Instant::now();
        let packet = [b'x'; PAYLOAD];
        while !client.is_congested(start) {
            client.send(Stream::Stdout, &packet, start);
        }
        let later = start + PATIENCE;
        assert!(!client.is_congested(later));
        client.send(Stream::Stdout, &packet, later);
        client.send(Stream::Stdout, b"abc", later);
        let mut all = Vec::new();
        for _ in 0..200 {
            all.extend(packets(&theirs));
            client.flush(later);
        }
        client.send(Stream::Stdout, b"again", later);
        all.extend(packets(&theirs));
        let tail = &all[all.len() - 2..];
        assert_eq!(
            String::from_utf8_lossy(&tail[0]),
            format!(
                "\u{3}\nqshim: attached too slow a reader: {} bytes are missing here\n",
                PAYLOAD + 3
            )
        );
        assert_eq!(tail[1], b"\x02again");
    }

    #[test]
    fn who_started_the_container_gets_more_time_and_after_its_end_all_there_is() {
        let (mut client, theirs, _poller) = pair();
        client.make_starter();
        let start = Instant::now();
        let mut sent = 0;
        while !client.is_congested(start) {
            client.send(Stream::Stdout, &[b'x'; PAYLOAD], start);
            sent += PAYLOAD;
        }
        assert!(client.is_congested(start + STARTERS_PATIENCE - PATIENCE));
        let later = start + 100 * FAREWELL;
        assert!(!client.is_finished(later));
        let mut got = 0;
        while !client.is_finished(later) {
            let lengths = packets(&theirs).into_iter().map(|packet| packet.len() - 1);
            got += lengths.sum::<usize>();
        }
        got += packets(&theirs)
            .iter()
            .map(|packet| packet.len() - 1)
            .sum::<usize>();
        assert_eq!(got, sent);
        while !client.is_congested(later) {
            client.send(Stream::Stdout, &[b'x'; PAYLOAD], later);
        }
        assert!(!client.is_congested(later + STARTERS_PATIENCE));
        // Unless it goes: then nobody is there to wait for.
        drop(theirs);
        assert!(client.is_finished(later));
    }

    #[test]
    fn half_a_close_ends_only_the_input() {
        let (mut client, theirs, _poller) = pair();
        let mut buffer = [0; 100];
        rustix::io::write(&theirs, b"typed").unwrap();
        rustix::net::shutdown(&theirs, rustix::net::Shutdown::Write).unwrap();
        assert_eq!(client.receive(&mut buffer), Received::Input(5));
        assert_eq!(client.receive(&mut buffer), Received::End);
        assert!(!client.is_gone());
        client.send(Stream::Stdout, b"still", Instant::now());
        assert_eq!(packets(&theirs), [b"\x02still".to_vec()]);
        drop(theirs);
        client.hang_up();
        assert!(client.is_gone());
    }

    #[test]
    fn large_packets_are_announced() {
        let (mut client, theirs, _poller) = pair();
        rustix::io::write(&theirs, &[0; 5000]).unwrap();
        let mut small = [0; 1000];
        assert_eq!(client.receive(&mut small), Received::TooLarge(5000));
        let mut large = [0; 5000];
        assert_eq!(client.receive(&mut large), Received::Input(5000));
    }
}
