//! The attach socket and its clients.
//!
//! `attach` is a `SOCK_SEQPACKET` socket in the bundle. To a client goes one
//! packet a chunk: a byte that names the stream (2 stdout, 3 stderr) and at most
//! [`PAYLOAD`] bytes. From a client comes stdin, raw; an empty packet or a
//! half-close ends it.
//!
//! What a client has not taken yet waits in memory, up to [`client::BACKLOG`]. While
//! a client has that much waiting but still takes something, the container is read
//! no faster than the client reads.
//!
//! No client can stop the container for good. As soon as one has taken nothing for
//! [`client::PATIENCE`], it counts as stalled: the container goes on, the client misses
//! what follows (the log does not), and when it comes back it is told on stderr
//! how much is missing.
//!
//! A client that was there before the container said anything is whoever started it:
//! to that one the container is a program whose output goes down a pipe, perhaps
//! to a pager or a slow disk. It has [`client::STARTERS_PATIENCE`], and after the
//! container's end as long as it wants.

pub(crate) mod client;

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with, listen};

use crate::diag;
use crate::error::Error;
use crate::log::Stream;
use crate::monitor::token::Token;
use crate::poller::Poller;
use crate::socket::{Bound, Named, bind_in};
use client::Client;

/// Most bytes of output in one packet: what conmon's clients have room for.
pub(crate) const PAYLOAD: usize = 8192;

/// Clients at a time. Keeps us below the usual limit of 1024 descriptors.
const CLIENTS: usize = 512;

/// How long to accept nobody after accepting has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a congested client is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The listener and everybody attached.
#[derive(Debug)]
pub(crate) struct Attach {
    listener: Option<Bound>,
    link: Option<Named>,
    clients: Vec<Option<Client>>,
    listening: bool,
    paused_until: Option<Instant>,
    /// The container has said something.
    spoken: bool,
}

impl Attach {
    /// Makes the socket in `directory`, and a link to the directory if asked.
    pub(crate) fn listen(directory: &Path, link: Option<&Path>) -> Result<Self, Error> {
        let bound = bind_in(
            directory,
            "attach",
            SocketType::SEQPACKET,
            Mode::from_raw_mode(0o600),
        )?;
        listen(&bound.fd, 128).map_err(Error::path("listen on", bound.name.path()))?;
        let link = link.map(|link| make_link(directory, link)).transpose()?;
        Ok(Self {
            listener: Some(bound),
            link,
            clients: Vec::new(),
            listening: false,
            paused_until: None,
            spoken: false,
        })
    }

    /// Lets in everybody who waits.
    pub(crate) fn accept(&mut self, poller: &Poller<Token>, now: Instant) {
        while let Some(listener) = &self.listener {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&listener.fd, flags) {
                Ok(fd) => self.admit(fd, poller),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    // Out of descriptors or memory: the client stays in the
                    // queue, and the loop must not spin over it.
                    diag::warning!("accept an attach client: {errno}");
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, fd: OwnedFd, poller: &Poller<Token>) {
        let slot = self
            .clients
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.clients.len());
        if slot >= CLIENTS {
            diag::warning!("attach client refused: {CLIENTS} are here");
            return;
        }
        let mut client = match Client::new(fd, Token::Client(slot), poller) {
            Ok(client) => client,
            Err(errno) => return diag::warning!("watch an attach client: {errno}"),
        };
        if !self.spoken {
            client.make_starter();
        }
        match self.clients.get_mut(slot) {
            Some(free) => *free = Some(client),
            None => self.clients.push(Some(client)),
        }
    }

    /// Sends a chunk of output to everybody.
    pub(crate) fn broadcast(&mut self, stream: Stream, data: &[u8], now: Instant) {
        self.spoken = true;
        for packet in data.chunks(PAYLOAD) {
            for client in self.clients.iter_mut().flatten() {
                client.send(stream, packet, now);
            }
        }
    }

    /// The client in `slot`.
    pub(crate) fn client(&mut self, slot: usize) -> Option<&mut Client> {
        self.clients.get_mut(slot)?.as_mut()
    }

    /// Lets the client in `slot` go.
    pub(crate) fn dismiss(&mut self, slot: usize) {
        if let Some(client) = self.clients.get_mut(slot) {
            *client = None;
        }
        while matches!(self.clients.last(), Some(None)) {
            self.clients.pop();
        }
    }

    /// Whether the container is to be read no further for a client's sake.
    /// Returns when to look again.
    pub(crate) fn congestion(&mut self, now: Instant) -> Option<Instant> {
        let mut congested = false;
        for client in self.clients.iter_mut().flatten() {
            congested |= client.is_congested(now);
        }
        congested.then(|| now + RETRY)
    }

    /// Watches the listener and each client for what can be handled now:
    /// `stdin_room` says whether input is wanted. Returns when to look again.
    pub(crate) fn watch(
        &mut self,
        poller: &Poller<Token>,
        stdin_room: bool,
        now: Instant,
    ) -> Result<Option<Instant>, Errno> {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        if let Some(listener) = &self.listener {
            let wanted = self.paused_until.is_none();
            if wanted != self.listening {
                if wanted {
                    poller.add(&listener.fd, Token::Listener, EventFlags::IN)?;
                } else {
                    poller.remove(&listener.fd)?;
                }
                self.listening = wanted;
            }
        }
        for slot in &mut self.clients {
            if let Some(client) = slot
                && let Err(errno) = client.watch(poller, stdin_room)
            {
                diag::warning!("watch an attach client: {errno}");
                *slot = None;
            }
        }
        Ok(self.paused_until)
    }

    /// Takes the socket and the link away. Whoever connected before stays.
    pub(crate) fn stop_listening(&mut self) {
        self.listener = None;
        self.link = None;
    }

    /// Whether somebody is here who is waited for without end after the container's.
    pub(crate) fn waits(&self) -> bool {
        self.clients.iter().flatten().any(Client::is_starter)
    }

    /// Lets everybody go who has got everything, and those who do not take the
    /// rest in time. Returns whether nobody is left.
    pub(crate) fn close_finished(&mut self, now: Instant) -> bool {
        for client in &mut self.clients {
            if client.as_mut().is_none_or(|client| client.is_finished(now)) {
                *client = None;
            }
        }
        self.clients.iter().all(Option::is_none)
    }
}

/// Makes the short name of a long directory.
fn make_link(directory: &Path, link: &Path) -> Result<Named, Error> {
    match std::fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::path("remove old attach link", link)(error));
        }
        _ => {}
    }
    symlink(directory, link).map_err(Error::path("make attach link", link))?;
    Ok(Named::new(link.to_owned()))
}
