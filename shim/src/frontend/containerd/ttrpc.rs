//! ttrpc: requests and responses in frames over a stream socket, many at once on one connection.
//!
//! A frame is a header of ten bytes (length of what follows, stream id, both big-endian; kind; flags) and a message. Only
//! unary calls are spoken here: one request, one response, on the same stream id. Governing text: containerd/ttrpc,
//! `PROTOCOL.md`.

use std::os::fd::OwnedFd;

use prost::Message;
use rustix::io::Errno;

use super::message::{Request, Response, Status};

/// Bytes of a header.
const HEADER: usize = 10;

/// Longest message, as containerd's implementation has it.
const LONGEST: usize = 4 << 20;

/// Kind of frame.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// The codes of gRPC that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Everything without a code of its own.
    Unknown = 2,
    /// The request makes no sense.
    InvalidArgument = 3,
    /// What it is about is not there.
    NotFound = 5,
    /// It is there already.
    AlreadyExists = 6,
    /// Not in this state.
    FailedPrecondition = 9,
    /// There is no such method.
    Unimplemented = 12,
}

/// A call that failed, as the caller is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Refusal {
    /// What kind of failure.
    pub(crate) code: Code,
    /// Why.
    pub(crate) text: String,
}

impl Refusal {
    /// A failure of that kind.
    pub(crate) fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

/// What the other side sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Incoming {
    /// A call, and the stream to answer on.
    Request(u32, Request),
    /// The answer to a call of ours.
    Response(u32, Response),
}

/// One connection, of a server or a client.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// Whether the poller watches for room to write.
    pub(crate) watches_output: bool,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Closed;

impl Connection {
    /// Wraps a connected, non-blocking socket.
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            received: Vec::new(),
            unsent: Vec::new(),
            watches_output: false,
        }
    }

    /// The socket.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Takes what has arrived. What is complete of it comes from [`Connection::next`].
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Result<(), Closed> {
        match rustix::io::read(&self.fd, &mut *buffer) {
            Ok(0) => Err(Closed),
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(_) => Err(Closed),
        }
    }

    /// The next complete frame. What is not understood is passed over; what cannot be a frame ends the connection.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, Closed> {
        while let Some((header, rest)) = self.received.split_first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let stream = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            let length = usize::try_from(length).map_err(|_| Closed)?;
            if length > LONGEST {
                return Err(Closed);
            }
            let Some(body) = rest.get(..length) else {
                break;
            };
            let incoming = match header[8] {
                REQUEST => Request::decode(body)
                    .ok()
                    .map(|request| Incoming::Request(stream, request)),
                RESPONSE => Response::decode(body)
                    .ok()
                    .map(|response| Incoming::Response(stream, response)),
                _ => None,
            };
            self.received.drain(..HEADER + length);
            if incoming.is_some() {
                return Ok(incoming);
            }
        }
        if self.received.is_empty() {
            // Requests can be large, and come seldom.
            self.received.shrink_to(0);
        }
        Ok(None)
    }

    /// Answers a call.
    pub(crate) fn respond(&mut self, stream: u32, outcome: Result<Vec<u8>, Refusal>) {
        let response = match outcome {
            Ok(payload) => Response {
                status: None,
                payload,
            },
            Err(refusal) => Response {
                status: Some(Status {
                    code: refusal.code as i32,
                    message: refusal.text,
                }),
                payload: Vec::new(),
            },
        };
        self.queue(stream, RESPONSE, &response);
    }

    /// Makes a call.
    pub(crate) fn request(&mut self, stream: u32, request: &Request) {
        self.queue(stream, REQUEST, request);
    }

    fn queue(&mut self, stream: u32, kind: u8, message: &impl Message) {
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        self.unsent.extend_from_slice(&length.to_be_bytes());
        self.unsent.extend_from_slice(&stream.to_be_bytes());
        self.unsent.extend_from_slice(&[kind, 0]);
        self.unsent.extend_from_slice(&message.encode_to_vec());
    }

    /// Whether something waits to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what can be sent now.
    pub(crate) fn flush(&mut self) -> Result<(), Closed> {
        while !self.unsent.is_empty() {
            let flags = rustix::net::SendFlags::NOSIGNAL;
            match rustix::net::send(&self.fd, &self.unsent, flags) {
                Ok(count) => {
                    self.unsent.drain(..count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(_) => return Err(Closed),
            }
        }
        self.unsent.shrink_to(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Connection, Connection) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (Connection::new(a), Connection::new(b))
    }

    #[test]
    fn calls_arrive_whole_however_they_are_cut() {
        let (mut client, mut server) = pair();
        for stream in [1, 3] {
            client.request(
                stream,
                &Request {
                    service: "s".into(),
                    method: format!("m{stream}"),
                    ..Request::default()
                },
            );
        }
        client.flush().unwrap();
        let mut seen = Vec::new();
        for _ in 0..100 {
            server.receive(&mut [0; 3]).unwrap();
            while let Some(Incoming::Request(stream, request)) = server.next().unwrap() {
                seen.push((stream, request.method));
            }
        }
        assert_eq!(seen, [(1, "m1".to_owned()), (3, "m3".to_owned())]);
        server.respond(3, Err(Refusal::new(Code::NotFound, "no")));
        server.flush().unwrap();
        client.receive(&mut [0; 100]).unwrap();
        let Some(Incoming::Response(3, response)) = client.next().unwrap() else {
            panic!("no response");
        };
        assert_eq!(response.status.unwrap().code, 5);
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_connection() {
        let (client, mut server) = pair();
        rustix::io::write(&client.fd, b"\xff\xff\xff\xff\0\0\0\x01\x01\0").unwrap();
        server.receive(&mut [0; 64]).unwrap();
        assert!(server.next().is_err());
    }
}
