//! Who listens on a port of the host: nobody else than our own forwarder, perhaps.
//!
//! The forwarder closes a port when its container ends, but it is told of that by a file, and a container that is
//! started again at once can be quicker. So a port that is taken is looked at a second time: if every socket on it
//! belongs to the forwarder's process, the port is free for a container.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::{PortHolder, Protocol, PublishedPort};
use crate::portmap::{self, Kind};
use crate::store::Store;

/// Judges a port that could not be bound because of `error`: `Ok` when only the forwarder of published ports has it.
pub(super) fn judge(
    store: &Store,
    port: &PublishedPort,
    error: io::Error,
    try_again: impl FnOnce() -> io::Result<()>,
) -> Result<(), PortHolder> {
    if error.kind() != io::ErrorKind::AddrInUse {
        return Err(PortHolder::Host(error));
    }
    let forwarders = portmap::list(store).unwrap_or_default();
    if forwarders.is_empty() {
        return Err(PortHolder::Host(error));
    }
    let sockets = listening(port);
    if sockets.is_empty() {
        // Closed in this very moment.
        return try_again().map_err(PortHolder::Host);
    }
    for forwarder in forwarders {
        let theirs = sockets_of(forwarder.process.pid);
        match forwarder.kind {
            Kind::Published if sockets.is_subset(&theirs) => return Ok(()),
            Kind::Forward if !sockets.is_disjoint(&theirs) => {
                return Err(PortHolder::Forward(forwarder.process.pid));
            }
            Kind::Published | Kind::Forward => {}
        }
    }
    Err(PortHolder::Host(error))
}

/// Inode numbers of the sockets that listen where the port would.
fn listening(port: &PublishedPort) -> HashSet<u64> {
    let files = match port.protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
        Protocol::Sctp => return HashSet::new(),
    };
    // Of the thread, as threads may be in network namespaces of their own.
    let text = files.map(|file| {
        fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
    });
    text.iter()
        .flat_map(|text| text.lines().skip(1))
        .filter_map(Row::parse)
        .filter(|row| row.is_in_the_way_of(port))
        .map(|row| row.inode)
        .collect()
}

/// A line of `/proc/net/tcp` and its like.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    address: IpAddr,
    port: u16,
    /// `TCP_LISTEN`; the other states have their port by a listener that may be gone.
    listens: bool,
    inode: u64,
}

impl Row {
    fn parse(line: &str) -> Option<Row> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        Some(Row {
            address: address_of(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            listens: *fields.get(3)? == "0A",
            inode: fields.get(9)?.parse().ok()?,
        })
    }

    fn is_in_the_way_of(&self, port: &PublishedPort) -> bool {
        let wanted = port.host_ip;
        let overlaps =
            self.address == wanted || self.address.is_unspecified() || wanted.is_unspecified();
        // A UDP socket has no such state: whatever is bound receives.
        overlaps && self.port == port.host_port && (self.listens || port.protocol == Protocol::Udp)
    }
}

/// Words of 32 bits in the machine's order, hexadecimal.
fn address_of(text: &str) -> Option<IpAddr> {
    let words: Option<Vec<u32>> = text
        .as_bytes()
        .chunks(8)
        .map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())
        .collect();
    let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    let bytes = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(Ipv6Addr::from(bytes).to_canonical())
}

/// Inode numbers of a process's sockets.
fn sockets_of(pid: i32) -> HashSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    links
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let inode = target
                .to_str()?
                .strip_prefix("socket:[")?
                .strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_both_families() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let row = Row::parse(line).unwrap();
        let expected = Row {
            address: [127, 0, 0, 1].into(),
            port: 8080,
            listens: true,
            inode: 4711,
        };
        assert_eq!(row, expected);
        let every = "00000000000000000000000000000000";
        assert_eq!(address_of(every), Some(Ipv6Addr::UNSPECIFIED.into()));
        let mapped = "0000000000000000FFFF00000100007F";
        assert_eq!(address_of(mapped), Some([127, 0, 0, 1].into()));
        assert_eq!(address_of("x"), None);
    }
}
