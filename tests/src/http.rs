//! The least of an HTTP client, over plain TCP from the calling thread's network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;

/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(20);

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head, without the status line.
    pub head: String,
    /// The body, as text.
    pub body: String,
}

impl Answer {
    /// The value of a header line.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .next()
    }
}

/// Something to send: its type, its length in bytes, and where they come from.
pub struct Body<'a>(pub &'a str, pub u64, pub &'a mut dyn Read);

impl std::fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {}", self.1, self.0)
    }
}

/// Sends one request on a connection of its own and reads the answer.
///
/// # Errors
/// When there is no connection, or no complete answer.
pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    body: Option<Body<'_>>,
) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, SILENCE)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n"
    )?;
    match body {
        Some(Body(kind, length, from)) => {
            write!(
                stream,
                "Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            )?;
            std::io::copy(from, &mut stream)?;
        }
        None if method == "GET" => write!(stream, "\r\n")?,
        None => write!(stream, "Content-Length: 0\r\n\r\n")?,
    }
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("read from {server}"))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no HTTP answer from {server}: {answer:?}"))?;
    let (first, head) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = first.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Fetches `path` from `host:port`.
///
/// # Errors
/// When there is no connection, or no complete answer.
pub fn get(host: &str, port: u16, path: &str) -> anyhow::Result<Answer> {
    request(SocketAddr::new(host.parse()?, port), "GET", path, None)
}

/// Says whether `host:port` answers with nginx's own page.
#[must_use]
pub fn is_nginx(host: &str, port: u16) -> bool {
    let page = |answer: Answer| answer.status == 200 && answer.body.contains("Welcome to nginx");
    get(host, port, "/").is_ok_and(page)
}

/// A port of 127.0.0.1 that nobody listens on at the moment.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    match listener.and_then(|listener| listener.local_addr()) {
        Ok(address) => address.port(),
        Err(error) => panic!("find a free port: {error}"),
    }
}
