//! Questions that are not about our names go to the servers that the host asks itself.
//!
//! Bytes are passed on as they came, but for the id: each attempt has a random one and a socket of its own, so that an
//! answer can't be made up by somebody who does not see the question. One server is asked after the other, the next
//! one as soon as one fails or has not answered for a while, and the first good answer counts.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::message;

/// So long a server may take before the next one is asked as well.
const HEAD_START: Duration = Duration::from_millis(700);
/// So long it may take before it is asked a second time: a datagram may have been lost.
const AGAIN: Duration = Duration::from_millis(1500);
/// So long it may take at all. A client asks again after five seconds.
const PATIENCE: Duration = Duration::from_millis(4500);
/// More servers than any resolver library asks.
const SERVERS: usize = 4;
/// The largest datagram that is worth room.
const DATAGRAM: usize = 4096;

/// How a question came, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// Asks the servers; `None` when none of them had an answer. The reply has the query's id.
pub(super) async fn ask(
    query: &[u8],
    question_length: usize,
    servers: &[SocketAddr],
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut rest = servers[..servers.len().min(SERVERS)].iter();
    let mut attempts = FuturesUnordered::new();
    let attempt = |server: SocketAddr| async move {
        let outcome = timeout(PATIENCE, ask_one(query, question_length, server, transport));
        outcome.await.ok()?.ok()
    };
    attempts.push(attempt(*rest.next()?));
    let mut failure = None;
    loop {
        let more = !rest.as_slice().is_empty();
        tokio::select! {
            Some(reply) = attempts.next() => {
                match reply {
                    Some(reply) if !message::is_failure(&reply) => return Some(restore(reply, query)),
                    Some(reply) => failure = Some(reply),
                    None => {}
                }
                if let Some(server) = rest.next() {
                    attempts.push(attempt(*server));
                } else if attempts.is_empty() {
                    return failure.map(|reply| restore(reply, query));
                }
            }
            () = sleep(HEAD_START), if more => attempts.extend(rest.next().map(|server| attempt(*server))),
        }
    }
}

fn restore(reply: Vec<u8>, query: &[u8]) -> Vec<u8> {
    let id = [query[0], query[1]];
    message::with_id(&reply, id).into_owned()
}

async fn ask_one(
    query: &[u8],
    question_length: usize,
    server: SocketAddr,
    transport: Transport,
) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let query = message::with_id(query, id);
    let reply = match transport {
        Transport::Udp => ask_by_udp(&query, question_length, server).await?,
        Transport::Tcp => ask_by_tcp(&query, server).await?,
    };
    if message::answers(&reply, &query, question_length) {
        Ok(reply)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

async fn ask_by_udp(
    query: &[u8],
    question_length: usize,
    server: SocketAddr,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel passes on only what this server sends from now on, and its "nobody is there".
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; DATAGRAM];
    let mut is_repeated = false;
    loop {
        let received = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                // Something else is a late answer, or made up: the right one may still come.
                if message::answers(&buffer[..length], query, question_length) {
                    return io::Result::Ok(length);
                }
            }
        };
        if is_repeated {
            let length = received.await?;
            buffer.truncate(length);
            return Ok(buffer);
        }
        match timeout(AGAIN, received).await {
            Ok(length) => {
                let length = length?;
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => {
                socket.send(query).await?;
                is_repeated = true;
            }
        }
    }
}

async fn ask_by_tcp(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

/// A message in a stream has its length in front (RFC 1035, 4.2.2).
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    // At once: some servers can't do with the two bytes in a segment of their own.
    let mut bytes = Vec::with_capacity(2 + message.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await
}

pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The servers of `/etc/resolv.conf`, read again when the file has changed.
#[derive(Debug, Default)]
pub(super) struct HostServers {
    read_at: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl HostServers {
    /// The servers as of now, those on the host's own loopback addresses included.
    pub(super) fn now(&mut self) -> &[SocketAddr] {
        let path = Path::new("/etc/resolv.conf");
        let changed = fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok();
        if changed.is_none() || changed != self.read_at {
            self.read_at = changed;
            self.servers = parse(&fs::read_to_string(path).unwrap_or_default());
        }
        &self.servers
    }
}

/// Those of `resolv.conf(5)`; the machine's own server where none is named, as there.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then_some(())?;
            let address: IpAddr = words.next()?.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

/// Where servers listen.
pub(super) const PORT: u16 = 53;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nnameserver 127.0.0.53\n nameserver\t::1 \nnameserver fe80::1%eth0\nsearch a\nnameserver\n";
        let servers = parse(text);
        assert_eq!(
            servers,
            [
                "127.0.0.53:53".parse().unwrap(),
                "[::1]:53".parse().unwrap()
            ]
        );
        assert_eq!(parse(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    /// A server that answers each datagram with what `answer` makes of it.
    async fn serve(answer: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let reply = answer(buffer[..length].to_vec());
                drop(socket.send_to(&reply, peer).await);
            }
        });
        address
    }

    fn reply(mut query: Vec<u8>, code: u8) -> Vec<u8> {
        query[2] |= 0x80;
        query[3] |= code;
        query
    }

    /// `example.org`, type A.
    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03org\0\0\x01\0\x01";
    const QUESTION: usize = QUERY.len() - message::HEADER;

    #[tokio::test]
    async fn the_first_good_answer_counts() {
        let refuses = serve(|query| reply(query, 5)).await;
        let lies = serve(|mut query| {
            query[0] ^= 1;
            reply(query, 0)
        })
        .await;
        let good = serve(|query| reply(query, 0)).await;
        let answer = ask(QUERY, QUESTION, &[refuses, lies, good], Transport::Udp).await;
        let answer = answer.unwrap();
        assert_eq!((&answer[..2], answer[3]), (&[0x12, 0x34][..], 0));
    }

    #[tokio::test]
    async fn a_failure_is_told_when_there_is_nothing_better() {
        let refuses = serve(|query| reply(query, 5)).await;
        let answer = ask(QUERY, QUESTION, &[refuses], Transport::Udp)
            .await
            .unwrap();
        assert_eq!(answer[3], 5);
        assert!(ask(QUERY, QUESTION, &[], Transport::Udp).await.is_none());
    }
}
