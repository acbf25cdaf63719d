//! The few rtnetlink(7) messages that moving a network device takes.
//!
//! Written and read by hand: five messages do not pay for a library in a program that every container start loads. All
//! numbers are in the machine's byte order, attributes are padded to four bytes; see netlink(7).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};

// Message types and flags (linux/netlink.h, linux/rtnetlink.h).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_CREATE_NEW: u16 = 0x600;

// Attributes (linux/if_link.h, linux/if_addr.h).
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// `IFF_UP`.
const UP: u32 = 1;
/// `IFA_F_PERMANENT`: configured by somebody, not by an autoconfiguration that is at home in the namespace.
const PERMANENT: u32 = 0x80;
/// `IFA_F_NODAD` and `IFA_F_NOPREFIXROUTE`: how it was configured; the other flags are states.
const KEPT_FLAGS: u32 = 0x02 | 0x200;
/// `RT_SCOPE_UNIVERSE`.
const GLOBAL: u8 = 0;

/// Bytes of the headers: of a message, of a link, of an address.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;

/// A route socket; it belongs to the network namespace in which it was opened, wherever the process goes.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its number.
    pub(crate) index: u32,
    /// Whether it is up.
    pub(crate) up: bool,
}

/// An address of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    family: u8,
    prefix: u8,
    scope: u8,
    flags: u32,
    /// `IFA_ADDRESS`, `IFA_LOCAL` and `IFA_BROADCAST`, as far as they are there.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Whether it goes with the device to another namespace: configured by somebody, and not bound to one link or host.
    pub(crate) fn travels(&self) -> bool {
        self.flags & PERMANENT != 0 && self.scope == GLOBAL
    }
}

impl Socket {
    /// Opens a socket in the network namespace that this process is in.
    pub(crate) fn open() -> Result<Self, Errno> {
        let kind = SocketType::RAW;
        // Protocol 0 is NETLINK_ROUTE.
        socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None).map(Self)
    }

    /// The device of this name.
    pub(crate) fn link(&self, name: &str) -> Result<Link, Errno> {
        let mut message = Message::link(RTM_GETLINK, 0, 0, 0);
        message.attribute(IFLA_IFNAME, &with_nul(name));
        let answer = self.request(message, NLM_F_ACK)?;
        let link = answer.first().and_then(|body| {
            Some(Link {
                index: number(body, 4)?,
                up: number(body, 8)? & UP != 0,
            })
        });
        link.ok_or(Errno::NODEV)
    }

    /// Takes a device up or down.
    pub(crate) fn set_up(&self, link: Link, up: bool) -> Result<(), Errno> {
        let flags = if up { UP } else { 0 };
        let message = Message::link(RTM_NEWLINK, link.index, flags, UP);
        self.request(message, NLM_F_ACK).map(drop)
    }

    /// Moves a device to another namespace and renames it. Where its old name is taken there it arrives by the new one. Else
    /// it arrives by the old one and is renamed then; when the new one is taken, that fails, and the device is there all the
    /// same.
    pub(crate) fn move_link(
        &self,
        link: Link,
        name: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let mut message = Message::link(RTM_NEWLINK, link.index, 0, 0);
        message.attribute(IFLA_IFNAME, &with_nul(name));
        message.attribute(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.request(message, NLM_F_ACK).map(drop)
    }

    /// The addresses of a device.
    pub(crate) fn addresses(&self, link: Link) -> Result<Vec<Address>, Errno> {
        let message = Message::new(RTM_GETADDR, &[0; ADDRESS_HEADER]);
        let answers = self.request(message, NLM_F_DUMP)?;
        let own = answers
            .iter()
            .filter(|body| number(body, 4) == Some(link.index));
        Ok(own.filter_map(|body| read_address(body)).collect())
    }

    /// Gives a device an address.
    pub(crate) fn add_address(&self, link: Link, address: &Address) -> Result<(), Errno> {
        let mut header = [0; ADDRESS_HEADER];
        header[..4].copy_from_slice(&[address.family, address.prefix, 0, address.scope]);
        header[4..].copy_from_slice(&link.index.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, &header);
        for (kind, value) in &address.attributes {
            message.attribute(*kind, value);
        }
        message.attribute(IFA_FLAGS, &(address.flags & KEPT_FLAGS).to_ne_bytes());
        self.request(message, NLM_F_ACK | NLM_F_CREATE_NEW)
            .map(drop)
    }

    /// Sends a request; gives the bodies of what is answered before the kernel says that this was all.
    fn request(&self, message: Message, flags: u16) -> Result<Vec<Vec<u8>>, Errno> {
        send(
            &self.0,
            &message.finish(flags | NLM_F_REQUEST),
            SendFlags::empty(),
        )?;
        let mut bodies = Vec::new();
        // The kernel splits a dump at 32 KiB at most.
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let (length, _) = rustix::io::retry_on_intr(|| {
                recv(self.0.as_fd(), &mut bytes[..], RecvFlags::empty())
            })?;
            let mut rest = &bytes[..length];
            while let Some((kind, body, next)) = split_message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(bodies),
                    NLMSG_ERROR => {
                        return match number(body, 0).unwrap_or(0).cast_signed() {
                            0 => Ok(bodies),
                            errno => Err(Errno::from_raw_os_error(-errno)),
                        };
                    }
                    _ => bodies.push(body.to_vec()),
                }
                rest = next;
            }
        }
    }
}

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// One about a link: `struct ifinfomsg`.
    fn link(kind: u16, index: u32, flags: u32, change: u32) -> Self {
        let mut header = [0; LINK_HEADER];
        for (offset, value) in [(4, index), (8, flags), (12, change)] {
            header[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        Self::new(kind, &header)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Names, addresses and numbers: none is longer than 16 bytes.
        let length = u16::try_from(4 + value.len()).unwrap_or(4);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(0);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.0
    }
}

/// The first message of several: its type, its body, and the others.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(number(bytes, 0)?).ok()?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    Some((kind, body, next))
}

/// The 32-bit number at an offset.
fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// A name as attributes hold it.
fn with_nul(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Reads `struct ifaddrmsg` and what follows it.
fn read_address(body: &[u8]) -> Option<Address> {
    let [family, prefix, flags, scope] = *body.first_chunk()?;
    let mut address = Address {
        family,
        prefix,
        scope,
        flags: flags.into(),
        attributes: Vec::new(),
    };
    let mut rest = body.get(ADDRESS_HEADER..)?;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*after.first_chunk()?);
        let value = rest.get(4..length)?;
        match kind {
            IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => {
                address.attributes.push((kind, value.to_vec()));
            }
            IFA_FLAGS => address.flags = number(value, 0)?,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_length_and_padding() {
        let mut message = Message::link(RTM_NEWLINK, 7, UP, UP);
        message.attribute(IFLA_IFNAME, &with_nul("eth12"));
        let bytes = message.finish(NLM_F_REQUEST);
        assert_eq!(bytes.len(), HEADER + LINK_HEADER + 4 + 8);
        let (kind, body, rest) = split_message(&bytes).unwrap();
        assert_eq!(
            (kind, number(body, 4), rest.len()),
            (RTM_NEWLINK, Some(7), 0)
        );
        assert_eq!(&body[LINK_HEADER + 4..], b"eth12\0\0\0");
        assert!(split_message(&bytes[..20]).is_none());
    }

    #[test]
    fn addresses_are_read() {
        let mut message = Message::new(RTM_NEWADDR, &[2, 24, 0x80, 0, 3, 0, 0, 0]);
        message.attribute(IFA_LOCAL, &[10, 0, 0, 1]);
        message.attribute(3, b"label\0");
        message.attribute(IFA_FLAGS, &0x280_u32.to_ne_bytes());
        let address = read_address(&message.0[HEADER..]).unwrap();
        assert_eq!((address.prefix, address.flags), (24, 0x280));
        assert_eq!(address.attributes, [(IFA_LOCAL, vec![10, 0, 0, 1])]);
        assert!(address.travels());
        let link_local = Address {
            scope: 253,
            ..address.clone()
        };
        assert!(!link_local.travels());
        assert!(
            !Address {
                flags: 0,
                ..address
            }
            .travels()
        );
    }

    #[test]
    fn the_loopback_device_is_there() {
        let socket = Socket::open().unwrap();
        let link = socket.link("lo").unwrap();
        assert_eq!(link.index, 1);
        assert_eq!(socket.link("nosuchdevice"), Err(Errno::NODEV));
        // Where it is up it has 127.0.0.1, which is of host scope.
        let addresses = socket.addresses(link).unwrap();
        assert!(
            addresses.iter().all(|address| !address.travels()),
            "{addresses:?}"
        );
    }
}
