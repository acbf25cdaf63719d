//! TCP: accepts, connects to the container, relays.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_reuseaddr, set_tcp_keepidle,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::budget::Budget;
use super::relay::relay;
use super::source::Target;
use super::{Event, Report};

/// Connections that wait to be accepted; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// What a connection of ours costs: the client's socket and the container's.
const DESCRIPTORS: u32 = 2;

/// How long a container's address may stay silent.
const CONNECT: Duration = Duration::from_secs(10);

/// How long connections may go on that lead to a container which is gone: for what it sent last.
const GRACE: Duration = Duration::from_secs(1);

/// Before accepting again when there were no descriptors or no memory.
const PAUSE: Duration = Duration::from_millis(50);

/// A peer that says nothing for so long is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Opens a listening socket.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if address.is_ipv6() {
        // The same port of IPv4 is a listener of its own.
        set_ipv6_v6only(&socket, true)?;
    }
    // Connections in TIME_WAIT don't count; listeners do.
    set_socket_reuseaddr(&socket, true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts for ever.
pub(super) async fn accept(
    listener: TcpListener,
    target: watch::Receiver<Target>,
    budget: Budget,
    report: Report,
) {
    let mut told = false;
    loop {
        // Accepted first, counted then: the listener's own share covers the one that waits here.
        match listener.accept().await {
            Ok((client, _)) => {
                told = false;
                let descriptors = budget.wait(DESCRIPTORS).await;
                let (target, budget) = (target.clone(), budget.clone());
                tokio::spawn(async move {
                    let _descriptors = descriptors;
                    connection(client, target, &budget).await;
                });
            }
            Err(error) if is_exhaustion(&error) => {
                if !told {
                    report(Event::Exhausted(&error));
                }
                told = true;
                sleep(PAUSE).await;
            }
            // Mostly the client's business, which went away before we came; should it be ours, it does not cost much.
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// One connection, from its accept to its end.
async fn connection(client: TcpStream, mut target: watch::Receiver<Target>, budget: &Budget) {
    let goal = target.borrow_and_update().clone();
    let container = match open(&goal).await {
        Ok(container) => container,
        // As the container's own kernel would answer.
        Err(_) => return reset(&client),
    };
    for stream in [&client, &container] {
        // Both are the kernel's to refuse, and no loss.
        let _ = stream.set_nodelay(true);
        let _ = set_socket_keepalive(stream, true);
        let _ = set_tcp_keepidle(stream, KEEP_ALIVE);
    }
    let both = relay(&client, &container, budget);
    tokio::pin!(both);
    let outcome = tokio::select! {
        outcome = &mut both => outcome,
        // Leads elsewhere by now, or nowhere.
        () = moved(&mut target, &goal) => {
            timeout(GRACE, both).await.unwrap_or_else(|elapsed| Err(elapsed.into()))
        }
    };
    if outcome.is_err() {
        // What failed on one side shall not look like an orderly end on the other.
        reset(&client);
        reset(&container);
    }
}

/// Waits until a port no longer leads to `goal`.
async fn moved(target: &mut watch::Receiver<Target>, goal: &Target) {
    // A closed channel is a port that is gone.
    drop(target.wait_for(|now| now != goal).await);
}

/// Makes the end of a connection, when it is dropped next, a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

async fn open(target: &Target) -> io::Result<TcpStream> {
    let address = target.address.ok_or(io::ErrorKind::ConnectionRefused)?;
    let socket = target.socket(|| {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(family, SocketType::STREAM, flags, None)?;
        Ok(std::net::TcpStream::from(socket))
    })?;
    let connected = TcpSocket::from_std_stream(socket).connect(address);
    timeout(CONNECT, connected).await?
}
