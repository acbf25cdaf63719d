//! Servers inside containers, and clients of theirs: threads of the test that visit a container's
//! network namespace, so that the image needs no programs for it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::engine::Engine;

/// How often a server looks whether it shall go on.
const LOOK: Duration = Duration::from_millis(20);

/// Longest silence of a peer.
const SILENCE: Duration = Duration::from_secs(10);

/// Does something in a container's network namespace, on a thread of its own.
///
/// # Panics
/// When the container does not run, or `deed` does.
pub fn inside<T: Send>(engine: &Engine, container: &str, deed: impl FnOnce() -> T + Send) -> T {
    let pid = engine.look(container, "/State/Pid");
    let namespace = match File::open(format!("/proc/{pid}/ns/net")) {
        Ok(namespace) => namespace,
        Err(error) => panic!("open the network namespace of {container}, pid {pid}: {error}"),
    };
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            if let Err(error) = setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET) {
                panic!("enter the network namespace of {container}: {error}");
            }
            deed()
        });
        match there.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A server; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a TCP port of a container, and serves each connection with `serve` on its own thread.
    ///
    /// # Panics
    /// When the port can't be had.
    pub fn tcp(
        engine: &Engine,
        container: &str,
        port: u16,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = inside(engine, container, || TcpListener::bind(("0.0.0.0", port)));
        let listener = listener.unwrap_or_else(|error| panic!("listen on {port}: {error}"));
        let serve = Arc::new(serve);
        Self::start(move |stop| {
            drop(listener.set_nonblocking(true));
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        drop(stream.set_nonblocking(false));
                        let serve = Arc::clone(&serve);
                        std::thread::spawn(move || serve(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        })
    }

    /// Listens on a TCP port of a container and sends `says` to each client.
    pub fn greeting(engine: &Engine, container: &str, port: u16, says: &'static str) -> Self {
        Self::tcp(engine, container, port, move |mut stream| {
            drop(stream.write_all(says.as_bytes()));
        })
    }

    /// Answers each datagram to a UDP port of a container with `says`, a blank, and the datagram.
    ///
    /// # Panics
    /// When the port can't be had.
    pub fn udp(engine: &Engine, container: &str, port: u16, says: &'static str) -> Self {
        let socket = inside(engine, container, || UdpSocket::bind(("0.0.0.0", port)));
        let socket = socket.unwrap_or_else(|error| panic!("bind {port}: {error}"));
        Self::start(move |stop| {
            drop(socket.set_read_timeout(Some(LOOK)));
            let mut buffer = [0; 65536];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                    let mut answer = format!("{says} ").into_bytes();
                    answer.extend(&buffer[..count]);
                    drop(socket.send_to(&answer, peer));
                }
            }
        })
    }

    fn start(run: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        Self {
            stop,
            thread: Some(std::thread::spawn(move || run(&asked))),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Connects to `HOST:PORT` within two seconds.
///
/// # Errors
/// When there is no connection.
pub fn connect(address: &str) -> std::io::Result<TcpStream> {
    let address = address.to_socket_addrs()?.next();
    let address = address.ok_or(ErrorKind::AddrNotAvailable)?;
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    Ok(stream)
}

/// What a TCP server at `HOST:PORT` says before it closes; `None` when it can't be reached, or says nothing.
#[must_use]
pub fn hear(address: &str) -> Option<String> {
    let mut text = String::new();
    connect(address).ok()?.read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty())
}

/// What a UDP server at `HOST:PORT` answers to `text` within a second.
#[must_use]
pub fn ask(address: &str, text: &str) -> Option<String> {
    let of_every = if address.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(of_every).ok()?;
    ask_from(&socket, address, text)
}

/// The same from a socket that is there.
#[must_use]
pub fn ask_from(socket: &UdpSocket, address: &str, text: &str) -> Option<String> {
    // Connected, so that an answer from any other address does not count.
    socket.connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    socket.send(text.as_bytes()).ok()?;
    let mut buffer = [0; 65536];
    let count = socket.recv(&mut buffer).ok()?;
    String::from_utf8(buffer[..count].to_vec()).ok()
}
