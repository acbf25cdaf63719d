//! Blocking route netlink: requests with acknowledgements, several in one send, and dumps.

use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket as RawSocket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{KernelContext, Result};

/// More than the kernel puts in one datagram of a dump (32 KiB at most).
const BUFFER: usize = 64 * 1024;

/// One change, and what to say if the kernel refuses it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    message: RouteNetlinkMessage,
    flags: u16,
    action: &'static str,
    object: &'a str,
    optional: bool,
}

impl<'a> Request<'a> {
    /// A change; `action` and `object` name it in the error. `flags` beyond `NLM_F_REQUEST | NLM_F_ACK`.
    pub(super) fn new(
        message: RouteNetlinkMessage,
        flags: u16,
        action: &'static str,
        object: &'a str,
    ) -> Request<'a> {
        Request {
            message,
            flags,
            action,
            object,
            optional: false,
        }
    }

    /// A refusal is no failure.
    pub(super) fn optional(self) -> Request<'a> {
        Request {
            optional: true,
            ..self
        }
    }
}

/// A route netlink socket; it stays in the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Socket {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub(super) fn open() -> Result<Socket> {
        let open = || -> io::Result<RawSocket> {
            let mut socket = RawSocket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // An acknowledgement without a copy of the request fits any buffer.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Socket {
            socket: open().kernel("open", "a route netlink socket")?,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Sends all requests at once and waits for each one's answer. The kernel works them off in order and doesn't stop
    /// at a refused one; the first refusal is returned.
    pub(super) fn change(&mut self, requests: Vec<Request<'_>>) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let first = self.sequence + 1;
        let mut bytes = Vec::new();
        let mut labels = Vec::with_capacity(requests.len());
        for request in requests {
            labels.push((request.action, request.object, request.optional));
            self.append(&mut bytes, request.message, request.flags | NLM_F_ACK);
        }
        self.send(&bytes)?;
        let mut outcome = Ok(());
        let mut missing = labels.len();
        while missing > 0 {
            for answer in self.receive()? {
                let NetlinkPayload::Error(error) = answer.payload else {
                    continue;
                };
                let label = answer
                    .header
                    .sequence_number
                    .checked_sub(first)
                    .and_then(|index| labels.get(usize::try_from(index).ok()?));
                let Some((action, object, optional)) = label else {
                    continue;
                };
                missing -= 1;
                if error.code.is_some() && !optional && outcome.is_ok() {
                    outcome = Err(error.to_io()).kernel(action, object);
                }
            }
        }
        outcome
    }

    /// Asks for one object; `None` when there is none such.
    pub(super) fn query(
        &mut self,
        message: RouteNetlinkMessage,
        object: &str,
    ) -> Result<Option<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        // Without NLM_F_ACK: the object itself is the answer.
        let sequence = self.append(&mut bytes, message, 0);
        self.send(&bytes)?;
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) => {
                        let error = error.to_io();
                        return match error.raw_os_error() {
                            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH) => Ok(None),
                            _ => Err(error).kernel("look up", object),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for every object of a kind.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        objects: &str,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        let mut bytes = Vec::new();
        let sequence = self.append(&mut bytes, message, NLM_F_DUMP);
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) => {
                        return Err(error.to_io()).kernel("list", objects);
                    }
                    NetlinkPayload::Done(_) => return Ok(found),
                    _ => {}
                }
            }
        }
    }

    /// Appends a message to what will be sent; returns its sequence number.
    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        rustix::io::retry_on_intr(|| {
            self.socket.send(bytes, 0).map_err(|error| {
                rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
            })
        })
        .map(drop)
        .kernel(
            "send to",
            &format!("netlink socket {}", self.socket.as_raw_fd()),
        )
    }

    /// Waits for one datagram and takes it apart.
    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        const SOCKET: &str = "a netlink socket";
        self.buffer.clear();
        while let Err(error) = self.socket.recv(&mut self.buffer, 0) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error).kernel("receive from", SOCKET);
            }
        }
        let mut messages = Vec::new();
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
                .kernel("understand an answer of", SOCKET)?;
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}
