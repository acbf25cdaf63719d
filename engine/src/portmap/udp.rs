//! UDP: a session a client, each with a socket of its own towards the container, so that answers find their way back.
//!
//! An answer leaves from the very address that the client wrote to, which on a socket for every address has to be
//! asked for (`IP_PKTINFO`). Sessions that rest are forgotten; when there are too many, those nobody answered go first.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_recv_buffer_size_force};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, connect, socket_with};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{AbortHandle, coop::consume_budget};
use tokio::time::timeout;

use super::budget::Budget;
use super::source::Target;

/// A client that was answered may rest so long before it is forgotten; as the kernel's own table has it.
const ANSWERED: Duration = Duration::from_secs(120);

/// And one that was not.
const UNANSWERED: Duration = Duration::from_secs(30);

/// Sessions of one port at the same time.
const SESSIONS: usize = 4096;

/// Bytes of datagrams that may wait for us, with the kernel's own overhead.
const WAITING: usize = 4 << 20;

/// The longest datagram there is.
const DATAGRAM: usize = 65536;

/// Opens a socket that tells which of the host's addresses a datagram came to.
pub(super) fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(family(address), SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    // All clients of the port share it. Refused, it has its usual size.
    let _ = set_socket_recv_buffer_size_force(&socket, WAITING);
    bind(&socket, &address)?;
    UdpSocket::from_std(socket.into())
}

fn family(address: SocketAddr) -> AddressFamily {
    match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    }
}

/// A client, and the address of the host that it writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Peer {
    client: SocketAddr,
    host: Option<IpAddr>,
}

struct Session {
    /// Connected to the container.
    socket: UdpSocket,
    /// When something last passed, in milliseconds since the port was opened.
    last: AtomicU64,
    answered: AtomicBool,
    _descriptor: OwnedSemaphorePermit,
}

type Sessions = Arc<Mutex<HashMap<Peer, (Arc<Session>, AbortHandle)>>>;

struct Port {
    socket: Arc<UdpSocket>,
    sessions: Sessions,
    opened: Instant,
    budget: Budget,
}

/// Serves one port for ever.
pub(super) async fn serve(socket: UdpSocket, mut target: watch::Receiver<Target>, budget: Budget) {
    let port = Port {
        socket: Arc::new(socket),
        sessions: Sessions::default(),
        opened: Instant::now(),
        budget,
    };
    let mut buffer = vec![0; DATAGRAM];
    let mut goal = target.borrow_and_update().clone();
    loop {
        consume_budget().await;
        tokio::select! {
            received = receive(&port.socket, &mut buffer) => {
                // An error is of one datagram, if of any: an earlier answer that found nobody.
                if let Ok((count, peer)) = received {
                    port.pass(peer, &buffer[..count], &goal);
                }
            }
            changed = target.changed() => {
                if changed.is_err() {
                    return;
                }
                goal = target.borrow_and_update().clone();
                port.forget_all();
            }
        }
    }
}

impl Port {
    /// Passes a datagram on to the container. What it does not take at once is lost, as datagrams are.
    fn pass(&self, peer: Peer, datagram: &[u8], goal: &Target) {
        let known = self
            .lock()
            .get(&peer)
            .map(|(session, _)| Arc::clone(session));
        let session = match known {
            Some(session) => session,
            None => match self.begin(peer, goal) {
                Some(session) => session,
                None => return,
            },
        };
        session.last.store(self.now(), Ordering::Relaxed);
        // Straight to the kernel: the event loop does not know yet that a new socket can be written to.
        let send = || rustix::net::send(&session.socket, datagram, SendFlags::DONTWAIT);
        // A refusal is of an earlier one; this one may be welcome.
        if send() == Err(Errno::CONNREFUSED) {
            let _ = send();
        }
    }

    fn begin(&self, peer: Peer, goal: &Target) -> Option<Arc<Session>> {
        if self.lock().len() >= SESSIONS {
            self.make_room();
        }
        let descriptor = self.budget.take(1).or_else(|| {
            self.make_room();
            self.budget.take(1)
        })?;
        let session = Arc::new(Session {
            socket: towards(goal).ok()?,
            last: AtomicU64::new(self.now()),
            answered: AtomicBool::new(false),
            _descriptor: descriptor,
        });
        let answers = answers(
            Arc::clone(&session),
            Arc::clone(&self.socket),
            peer,
            self.opened,
        );
        let sessions = Arc::clone(&self.sessions);
        let mut table = self.lock();
        let task = tokio::spawn(async move {
            answers.await;
            lock(&sessions).remove(&peer);
        });
        table.insert(peer, (Arc::clone(&session), task.abort_handle()));
        Some(session)
    }

    /// Forgets an eighth of the sessions: those that nobody answered first, and of these the ones that rest longest.
    fn make_room(&self) {
        let mut table = self.lock();
        let mut order: Vec<_> = table
            .iter()
            .map(|(peer, (session, _))| {
                let answered = session.answered.load(Ordering::Relaxed);
                (answered, session.last.load(Ordering::Relaxed), *peer)
            })
            .collect();
        order.sort_unstable_by_key(|(answered, last, _)| (*answered, *last));
        for (_, _, peer) in order.iter().take(order.len().div_ceil(8)) {
            if let Some((_, task)) = table.remove(peer) {
                task.abort();
            }
        }
    }

    fn forget_all(&self) {
        for (_, (_, task)) in self.lock().drain() {
            task.abort();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Peer, (Arc<Session>, AbortHandle)>> {
        lock(&self.sessions)
    }

    fn now(&self) -> u64 {
        milliseconds(self.opened.elapsed())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.forget_all();
    }
}

fn lock(
    sessions: &Sessions,
) -> std::sync::MutexGuard<'_, HashMap<Peer, (Arc<Session>, AbortHandle)>> {
    // Nothing is left half done under this lock.
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn towards(goal: &Target) -> io::Result<UdpSocket> {
    let address = goal.address.ok_or(io::ErrorKind::ConnectionRefused)?;
    let socket = goal.socket(|| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(family(address), SocketType::DGRAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(socket)
    })?;
    UdpSocket::from_std(socket.into())
}

/// Passes on what the container answers, until both sides have rested.
async fn answers(session: Arc<Session>, out: Arc<UdpSocket>, peer: Peer, opened: Instant) {
    let mut buffer = Vec::new();
    loop {
        let answered = session.answered.load(Ordering::Relaxed);
        let limit = milliseconds(if answered { ANSWERED } else { UNANSWERED });
        let rested =
            milliseconds(opened.elapsed()).saturating_sub(session.last.load(Ordering::Relaxed));
        if rested >= limit {
            return;
        }
        let left = Duration::from_millis(limit - rested);
        consume_budget().await;
        match timeout(left, session.socket.readable()).await {
            Err(_) => continue,
            Ok(Err(_)) => return,
            Ok(Ok(())) => {}
        }
        // Only while something is to be read: resting sessions hold no buffer.
        buffer.resize(DATAGRAM, 0);
        while let Ok(count) = session.socket.try_recv(&mut buffer) {
            session
                .last
                .store(milliseconds(opened.elapsed()), Ordering::Relaxed);
            session.answered.store(true, Ordering::Relaxed);
            drop(send(&out, peer, &buffer[..count]));
            consume_budget().await;
        }
        buffer = Vec::new();
    }
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    socket
        .async_io(Interest::READABLE, || {
            let mut control = nix::cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let host = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(IpAddr::from(info.ipi6_addr.s6_addr))
                }
                _ => None,
            });
            let client = message
                .address
                .as_ref()
                .and_then(address_of)
                .ok_or(io::ErrorKind::InvalidData)?;
            Ok((message.bytes, Peer { client, host }))
        })
        .await
}

fn address_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|it| SocketAddr::V4((*it).into()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|it| SocketAddr::V6((*it).into()))
    })
}

/// Sends an answer from the address that the client wrote to.
fn send(socket: &UdpSocket, peer: Peer, datagram: &[u8]) -> io::Result<()> {
    let to = SockaddrStorage::from(peer.client);
    let parts = [IoSlice::new(datagram)];
    let (v4, v6);
    let control = match peer.host {
        Some(IpAddr::V4(host)) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(host.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(IpAddr::V6(host)) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: host.octets(),
                },
                ipi6_ifindex: 0,
            };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    let flags = MsgFlags::MSG_DONTWAIT;
    sendmsg(
        socket.as_raw_fd(),
        &parts,
        control.as_slice(),
        flags,
        Some(&to),
    )?;
    Ok(())
}
