//! nfnetlink: attributes, and messages that the kernel takes as one transaction.
//!
//! Numbers are named as in `linux/netfilter/nfnetlink.h` and `nf_tables.h`; in attributes they are big-endian.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::super::Failure;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// `NFPROTO_INET`, the family of our table.
pub(super) const FAMILY_INET: u8 = 1;
/// `NFPROTO_IPV4`, the family of what iptables-nft makes.
pub(in super::super) const FAMILY_IPV4: u8 = 2;
/// `NFPROTO_IPV6`
pub(in super::super) const FAMILY_IPV6: u8 = 10;

/// What a message does (`enum nf_tables_msg_types`).
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Operation {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    NewSet = 9,
    NewElement = 12,
    DeleteElement = 14,
}

impl Operation {
    /// For the message that says what failed.
    fn name(self) -> &'static str {
        match self {
            Operation::NewTable => "add a table",
            Operation::GetTable => "look up a table",
            Operation::DeleteTable => "delete a table",
            Operation::NewChain => "add a chain",
            Operation::GetChain => "look up a chain",
            Operation::NewRule => "add a rule",
            Operation::NewSet => "add a set",
            Operation::NewElement => "add elements to a set",
            Operation::DeleteElement => "delete elements from a set",
        }
    }
}

/// A list of attributes, each with its length, its type and its value, padded to four bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(in super::super) fn new() -> Attributes {
        Attributes::default()
    }

    /// One list after the other.
    pub(super) fn concatenate(lists: &[Attributes]) -> Attributes {
        Attributes(
            lists
                .iter()
                .flat_map(|list| list.0.iter().copied())
                .collect(),
        )
    }

    pub(in super::super) fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        // No value here comes near 64 KiB: element lists, the only long ones, are cut in pieces.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn signed(self, kind: u16, value: i32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, value: &Attributes) -> Attributes {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }
}

/// Messages that take effect together or not at all.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    operations: Vec<Operation>,
}

impl Batch {
    pub(super) fn new() -> Batch {
        let mut bytes = Vec::with_capacity(4096);
        // The subsystem goes where other messages have their resource id.
        append(
            &mut bytes,
            NFNL_MSG_BATCH_BEGIN,
            NLM_F_REQUEST,
            0,
            0,
            NFNL_SUBSYS_NFTABLES,
        );
        Batch {
            bytes,
            operations: Vec::new(),
        }
    }

    /// Appends a message about our family of tables.
    pub(super) fn add(&mut self, operation: Operation, flags: u16, attributes: &Attributes) {
        self.operations.push(operation);
        let sequence = u32::try_from(self.operations.len()).unwrap_or(u32::MAX);
        let start = append(
            &mut self.bytes,
            NFNL_SUBSYS_NFTABLES << 8 | operation as u16,
            NLM_F_REQUEST | NLM_F_ACK | flags,
            sequence,
            FAMILY_INET,
            0,
        );
        self.bytes.extend(&attributes.0);
        set_length(&mut self.bytes, start);
    }

    /// What the message of this number does.
    fn operation(&self, sequence: u32) -> &'static str {
        let index = usize::try_from(sequence)
            .ok()
            .and_then(|number| number.checked_sub(1));
        index
            .and_then(|index| self.operations.get(index))
            .map_or("begin a batch", |operation| operation.name())
    }
}

/// A socket of the netfilter kind.
///
/// Closing it after something was deleted waits until the kernel has really freed it, some ten milliseconds. So one
/// is opened for all a command has to say, and left to the end.
pub(in super::super) struct Channel(Socket);

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Channel").finish_non_exhaustive()
    }
}

impl Channel {
    /// Opens one in the calling thread's network namespace.
    pub(in super::super) fn open() -> Result<Channel, Failure> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        open().map(Channel).map_err(|source| Failure::Kernel {
            operation: "open a netfilter socket",
            source,
        })
    }

    /// Sends all messages of a batch and returns what the kernel says to the first it refuses.
    pub(super) fn commit(&self, mut batch: Batch) -> Result<(), Failure> {
        append(
            &mut batch.bytes,
            NFNL_MSG_BATCH_END,
            NLM_F_REQUEST,
            0,
            0,
            NFNL_SUBSYS_NFTABLES,
        );
        let fail = |operation, source| Failure::Kernel { operation, source };
        self.send(&batch.bytes)
            .map_err(|source| fail("send a batch", source))?;
        // The kernel answers while it takes the message, so whatever it has to say is here by now.
        let mut answered = false;
        let mut refusal = None;
        while let Some(answer) = self
            .receive()
            .map_err(|source| fail("read the answer", source))?
        {
            for (kind, sequence, payload) in messages(&answer) {
                let Some(code) = error_code(kind, payload) else {
                    continue;
                };
                answered = true;
                if code != 0 && refusal.is_none() {
                    let error = io::Error::from_raw_os_error(code);
                    refusal = Some(fail(batch.operation(sequence), error));
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if answered => Ok(()),
            None => Err(fail("read the answer", io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Asks for one object; the bytes of its attributes, or `None` when there is none such.
    pub(super) fn query(
        &self,
        operation: Operation,
        family: u8,
        attributes: &Attributes,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let fail = |source| Failure::Kernel {
            operation: operation.name(),
            source,
        };
        let mut bytes = Vec::new();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | operation as u16;
        let start = append(&mut bytes, kind, NLM_F_REQUEST, 1, family, 0);
        bytes.extend(&attributes.0);
        set_length(&mut bytes, start);
        self.send(&bytes).map_err(fail)?;
        while let Some(answer) = self.receive().map_err(fail)? {
            if let Some((kind, _, payload)) = messages(&answer).next() {
                return match error_code(kind, payload) {
                    Some(libc::ENOENT) => Ok(None),
                    Some(code) => Err(fail(io::Error::from_raw_os_error(code))),
                    None => Ok(Some(payload.get(4..).unwrap_or_default().to_vec())),
                };
            }
        }
        Err(fail(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Asks for all objects of a kind; the bytes of each one's attributes.
    pub(in super::super) fn list(&self, kind: u16, family: u8) -> Result<Vec<Vec<u8>>, Failure> {
        const NLM_F_DUMP: u16 = 0x300;
        let fail = |source| Failure::Kernel {
            operation: "list connections",
            source,
        };
        let mut bytes = Vec::new();
        append(&mut bytes, kind, NLM_F_REQUEST | NLM_F_DUMP, 1, family, 0);
        self.send(&bytes).map_err(fail)?;
        let mut found = Vec::new();
        // Each reading makes the kernel prepare the next part, so that there is one until all is said.
        while let Some(answer) = self.receive().map_err(fail)? {
            for (kind, _, payload) in messages(&answer) {
                match error_code(kind, payload) {
                    Some(code) => return Err(fail(io::Error::from_raw_os_error(code))),
                    None if kind == NLMSG_DONE => return Ok(found),
                    None => found.push(payload.get(4..).unwrap_or_default().to_vec()),
                }
            }
        }
        Ok(found)
    }

    /// Sends one message that is its own transaction. What the kernel says to it is not asked for.
    pub(in super::super) fn tell(
        &self,
        kind: u16,
        family: u8,
        attributes: &Attributes,
    ) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let start = append(&mut bytes, kind, NLM_F_REQUEST, 0, family, 0);
        bytes.extend(&attributes.0);
        set_length(&mut bytes, start);
        self.send(&bytes).map_err(|source| Failure::Kernel {
            operation: "change connections",
            source,
        })?;
        // Only refusals are answered: it was gone already.
        while let Ok(Some(_)) = self.receive() {}
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.0.send(bytes, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    /// One datagram, or `None` when no more is waiting.
    fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = Vec::with_capacity(32 * 1024);
        loop {
            match self.0.recv(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(Some(buffer)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The value of one attribute in a list of them.
pub(in super::super) fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some((length, kind)) = word(list, 0).zip(word(list, 2)) {
        let length = usize::from(length);
        if kind & !NLA_F_NESTED == wanted {
            return list.get(4..length);
        }
        list = list.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Appends the two headers; returns where they start.
fn append(
    bytes: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
) -> usize {
    let start = bytes.len();
    bytes.extend([0; 4]);
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    set_length(bytes, start);
    start
}

fn set_length(bytes: &mut [u8], start: usize) {
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Type, sequence number and payload of each message in a datagram.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(long(bytes, 0)?).ok()?;
        let message = bytes
            .get(..length)
            .filter(|message| message.len() >= HEADER)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((word(message, 4)?, long(message, 8)?, &message[HEADER..]))
    })
}

/// The errno in an answer, 0 for an acknowledgement; `None` when it is no answer of that kind.
fn error_code(kind: u16, payload: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(-code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found_again() {
        let inner = Attributes::new().number(1, 0x0102_0304);
        let list = Attributes::new()
            .text(1, "ab")
            .nested(2, &inner)
            .bytes(3, &[7]);
        assert_eq!(list.0.len(), 8 + 12 + 8);
        assert_eq!(attribute(&list.0, 1), Some(&b"ab\0"[..]));
        assert_eq!(
            attribute(attribute(&list.0, 2).unwrap(), 1),
            Some(&[1, 2, 3, 4][..])
        );
        assert_eq!(attribute(&list.0, 3), Some(&[7][..]));
        assert_eq!(attribute(&list.0, 4), None);
        assert_eq!(attribute(&[1, 0, 9, 0], 4), None);
    }

    #[test]
    fn every_message_has_its_length() {
        let mut batch = Batch::new();
        batch.add(Operation::NewTable, 0, &Attributes::new().text(1, "x"));
        let found: Vec<_> = messages(&batch.bytes)
            .map(|(kind, sequence, payload)| (kind, sequence, payload.len()))
            .collect();
        assert_eq!(
            found,
            [
                (NFNL_MSG_BATCH_BEGIN, 0, 4),
                (NFNL_SUBSYS_NFTABLES << 8, 1, 4 + 8)
            ]
        );
    }
}
