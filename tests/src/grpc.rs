//! Calls of containerd's services by hand: one request and one answer over HTTP/2, as far as gRPC needs it.
//!
//! A connection a call; no flow control, for neither message is large; of an answer's headers nothing is understood: one
//! without a message is a refusal, whose reason is in the server's log.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::ttrpc::Message;

// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

/// The flag of DATA and HEADERS: nothing follows; of SETTINGS and PING: this is the answer.
const LAST: u8 = 1;
/// The flag of HEADERS: these are all.
const ALL_HEADERS: u8 = 4;

/// Calls `method` (`/package.Service/Method`) of the server at the socket `path`.
///
/// # Errors
/// When it could not be asked, or refused.
pub fn call(path: &Path, method: &str, payload: &Message) -> Result<Vec<u8>> {
    let mut socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut request, SETTINGS, 0, 0, &[]);
    frame(&mut request, HEADERS, ALL_HEADERS, 1, &headers(method));
    frame(&mut request, DATA, LAST, 1, &prefixed(payload.as_ref()));
    socket.write_all(&request)?;
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head)?;
        let [high, middle, low, kind, flags, ..] = head;
        let mut body = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        socket.read_exact(&mut body)?;
        let is_last = flags & LAST != 0;
        match kind {
            SETTINGS | PING if !is_last => {
                let mut reply = Vec::new();
                let content = if kind == PING { &body[..] } else { &[] };
                frame(&mut reply, kind, LAST, 0, content);
                socket.write_all(&reply)?;
            }
            DATA => answer.extend_from_slice(&body),
            RESET | GO_AWAY => return Err(refusal(method, &body)),
            _ => {}
        }
        if is_last && matches!(kind, DATA | HEADERS) {
            // Whether it is compressed, and its length, come before the message.
            let message = answer.get(5..).map(<[u8]>::to_vec);
            return message.ok_or_else(|| refusal(method, &body));
        }
    }
}

fn refusal(method: &str, body: &[u8]) -> Error {
    let body = String::from_utf8_lossy(body);
    Error::new(
        ErrorKind::Unsupported,
        format!("{method} is refused: {body}"),
    )
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u8, body: &[u8]) {
    out.extend_from_slice(&length(body)[1..]);
    out.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    out.extend_from_slice(body);
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&length(message));
    body.extend_from_slice(message);
    body
}

fn length(of: &[u8]) -> [u8; 4] {
    u32::try_from(of.len()).unwrap_or(u32::MAX).to_be_bytes()
}

/// The request's headers, each spelled out (RFC 7541, section 6.2.2), none longer than one byte of length can say.
fn headers(method: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        out.push(0);
        for text in [name, value] {
            out.push(length(text.as_bytes())[3]);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}
