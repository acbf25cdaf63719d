//! Thousands of connections at the same time, from one thread, and a server that stands them.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::engine::Engine;
use crate::traffic::inside;

/// What each connection says, and wants to hear again.
const TEXT: &[u8; 64] = &[b'q'; 64];

/// How it went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Connections that heard what they had said, all of them open until the last had.
    pub answered: usize,
    /// Connections that failed.
    pub failed: usize,
    /// From the first `connect` until all were connected and had spoken.
    pub connected_after: Duration,
    /// And until the last answer.
    pub answered_after: Duration,
}

/// Opens `count` connections to `address` and keeps them open until each has had its answer.
///
/// # Panics
/// When `address` is none, or there are too few descriptors.
#[must_use]
pub fn run(address: &str, count: usize, limit: Duration) -> Outcome {
    raise_limit();
    let address: SocketAddr = match address.parse() {
        Ok(address) => address,
        Err(error) => panic!("{address}: {error}"),
    };
    let start = Instant::now();
    let mut clients: Vec<Client> = (0..count).map(|_| Client::start(address)).collect();
    let mut outcome = Outcome::default();
    while start.elapsed() < limit && clients.iter().any(|client| client.wants().is_some()) {
        let waiting: Vec<usize> = (0..count)
            .filter(|&n| clients[n].wants().is_some())
            .collect();
        let mut events: Vec<PollFd<'_>> = waiting
            .iter()
            .map(|&n| {
                PollFd::from_borrowed_fd(
                    clients[n].stream.as_fd(),
                    clients[n].wants().unwrap_or(PollFlags::empty()),
                )
            })
            .collect();
        let pause = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(&mut events, Some(&pause));
        let ready: Vec<bool> = events
            .iter()
            .map(|event| !event.revents().is_empty())
            .collect();
        for (n, _) in waiting.iter().zip(ready).filter(|(_, ready)| *ready) {
            clients[*n].go_on();
        }
        if outcome.connected_after.is_zero()
            && clients.iter().all(|client| client.sent || client.failed)
        {
            outcome.connected_after = start.elapsed();
        }
    }
    outcome.answered_after = start.elapsed();
    outcome.answered = clients
        .iter()
        .filter(|client| client.heard == TEXT.len())
        .count();
    outcome.failed = clients.iter().filter(|client| client.failed).count();
    outcome
}

struct Client {
    stream: TcpStream,
    sent: bool,
    heard: usize,
    failed: bool,
}

impl Client {
    fn start(address: SocketAddr) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let socket: OwnedFd = match socket_with(family, SocketType::STREAM, flags, None) {
            Ok(socket) => socket,
            Err(errno) => panic!("make a socket: {errno}"),
        };
        let failed = !matches!(
            connect(&socket, &address),
            Ok(()) | Err(rustix::io::Errno::INPROGRESS)
        );
        Self {
            stream: socket.into(),
            sent: false,
            heard: 0,
            failed,
        }
    }

    fn wants(&self) -> Option<PollFlags> {
        match (self.failed || self.heard == TEXT.len(), self.sent) {
            (true, _) => None,
            (false, true) => Some(PollFlags::IN),
            (false, false) => Some(PollFlags::OUT),
        }
    }

    fn go_on(&mut self) {
        let step = if self.sent {
            self.stream.read(&mut [0; TEXT.len()]).and_then(|count| {
                self.heard += count;
                if count == 0 {
                    Err(ErrorKind::UnexpectedEof.into())
                } else {
                    Ok(())
                }
            })
        } else {
            self.stream.write(TEXT).map(|_| self.sent = true)
        };
        self.failed = step.is_err_and(|error: io::Error| error.kind() != ErrorKind::WouldBlock);
    }
}

/// An echo server in a container: one thread, any number of connections.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens on a port of a container.
    ///
    /// # Panics
    /// When the port can't be had.
    pub fn start(engine: &Engine, container: &str, port: u16) -> Self {
        raise_limit();
        let listener = inside(engine, container, || TcpListener::bind(("0.0.0.0", port)));
        let listener = listener.unwrap_or_else(|error| panic!("listen on {port}: {error}"));
        // As many may knock at once as the kernel lets.
        let _ = rustix::net::listen(&listener, 4096);
        drop(listener.set_nonblocking(true));
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        Self {
            stop,
            thread: Some(std::thread::spawn(move || serve(&listener, &asked))),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut streams: Vec<TcpStream> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut events = vec![PollFd::new(listener, PollFlags::IN)];
        events.extend(
            streams
                .iter()
                .map(|stream| PollFd::new(stream, PollFlags::IN)),
        );
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let _ = poll(&mut events, Some(&pause));
        let ready: Vec<bool> = events[1..]
            .iter()
            .map(|event| !event.revents().is_empty())
            .collect();
        let mut ready = ready.into_iter();
        streams.retain_mut(|stream| !ready.next().unwrap_or(false) || answer(stream));
        while let Ok((stream, _)) = listener.accept() {
            drop(stream.set_nonblocking(true));
            streams.push(stream);
        }
    }
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

/// Lets this process have as many descriptors as it may.
pub fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
}
