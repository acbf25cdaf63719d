//! Connections that the kernel remembers from before a port was published.
//!
//! Translation is decided by a connection's first packet. With UDP anything that goes on between two ports is one
//! connection, so a peer that never pauses would go on talking to nobody, or to the container that had the port
//! before, for as long as it does. Such connections are forgotten; the next packet is a first one then.

use std::net::IpAddr;

use super::nftables::batch::{Attributes, Channel, FAMILY_IPV4, FAMILY_IPV6, attribute};
use super::{Failure, PortRule};
use crate::network::Protocol;

/// `NFNL_SUBSYS_CTNETLINK` with `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;

/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_ID`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;

/// Forgets connections to published UDP ports that don't lead to where the ports lead now.
pub(super) fn forget(ports: &[PortRule]) -> Result<(), Failure> {
    let ports: Vec<_> = ports
        .iter()
        .filter(|port| port.protocol == Protocol::Udp)
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    let channel = Channel::open()?;
    for family in [FAMILY_IPV4, FAMILY_IPV6] {
        let ports: Vec<_> = ports.iter().filter(|port| is_of(port, family)).collect();
        if !ports.is_empty() {
            forget_family(&channel, family, &ports)?;
        }
    }
    Ok(())
}

fn is_of(port: &PortRule, family: u8) -> bool {
    port.target.is_ipv4() == (family == FAMILY_IPV4)
}

fn forget_family(channel: &Channel, family: u8, ports: &[&&PortRule]) -> Result<(), Failure> {
    for connection in channel.list(GET, family)? {
        let original = attribute(&connection, ORIGINAL).unwrap_or_default();
        let reply = attribute(&connection, REPLY).unwrap_or_default();
        let stale = ports.iter().any(|port| is_stale(original, reply, port));
        if let (true, Some(id)) = (stale, attribute(&connection, ID)) {
            let attributes = Attributes::new()
                .bytes(NESTED | ORIGINAL, original)
                .bytes(ID, id);
            channel.tell(DELETE, family, &attributes)?;
        }
    }
    Ok(())
}

/// `NLA_F_NESTED`
const NESTED: u16 = 0x8000;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Whether the connection went to the port's number, but is not answered by the container that has the port now.
fn is_stale(original: &[u8], reply: &[u8], port: &PortRule) -> bool {
    // CTA_TUPLE_IP {CTA_IP_V4_SRC, _V4_DST, _V6_SRC, _V6_DST}, CTA_TUPLE_PROTO {CTA_PROTO_NUM, _SRC_PORT, _DST_PORT}
    let address = |tuple, kind| attribute(attribute(tuple, 1)?, kind);
    let (source, destination) = match port.target {
        IpAddr::V4(_) => (1, 2),
        IpAddr::V6(_) => (3, 4),
    };
    let protocol = |tuple, kind| attribute(attribute(tuple, 2)?, kind);
    protocol(original, 1) == Some(&[port.protocol.number()])
        && protocol(original, 3) == Some(&port.host_port.to_be_bytes())
        && port
            .host
            .is_none_or(|host| address(original, destination) == Some(octets(host).as_slice()))
        && address(reply, source) != Some(octets(port.target).as_slice())
}
