//! Bridges, veth pairs, addresses and routes, made with as few round trips as the kernel allows.
//!
//! Everything here is idempotent in the direction of removal, and leaves IPv6 switched off on networks that were not
//! made with it: a container must not be able to configure the host's, or a neighbour's, interfaces by router
//! advertisements (CVE-2020-10749, CVE-2020-13401), and nothing shall listen on a link-local address that no option
//! speaks of (CVE-2024-32473).

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sha2::{Digest, Sha256};

use super::netlink::{Request, Socket};
use super::subnet::Subnet;
use super::subnet6::Subnet6;
use super::{Attachment, Ipam, Ipam6, KernelContext, MacAddress, Result};

/// A link that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// Its index in its namespace.
    pub(super) index: u32,
    /// The largest packet it takes, in bytes.
    pub(super) mtu: Option<u32>,
    /// Packets pass.
    pub(super) is_operational: bool,
}

/// Looks a link up by name.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    find_by(socket, message, name)
}

fn find_by(socket: &mut Socket, message: LinkMessage, object: &str) -> Result<Option<Link>> {
    let answer = socket.query(RouteNetlinkMessage::GetLink(message), object)?;
    let Some(RouteNetlinkMessage::NewLink(link)) = answer else {
        return Ok(None);
    };
    let attributes = || link.attributes.iter();
    Ok(Some(Link {
        index: link.header.index,
        mtu: attributes().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        }),
        is_operational: attributes()
            .any(|attribute| *attribute == LinkAttribute::OperState(State::Up)),
    }))
}

/// The number of the interface group that a bridge and its ports are in, so that all can be deleted at once.
fn group(bridge: &str) -> u32 {
    let digest = Sha256::digest(bridge);
    let number = digest
        .iter()
        .take(3)
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
    // Far from the small numbers that people choose, and never the default group 0.
    0x7100_0000 | number
}

/// Makes a bridge with its addresses, up, with IPv6 off unless the network has it; `mtu` is that of the way out.
pub(super) fn create_bridge(
    socket: &mut Socket,
    name: &str,
    ipam: Ipam,
    ipam6: Option<Ipam6>,
    mtu: Option<u32>,
) -> Result<Link> {
    let address = ipam.gateway;
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Group(group(name)));
    // A fixed address: left to itself a bridge takes that of one of its ports, and changes it as they come and go.
    let mac = MacAddress::from_ipv4(address).octets().to_vec();
    message.attributes.push(LinkAttribute::Address(mac));
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
        .attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
            InfoKind::Bridge,
        )]));
    socket.change(vec![Request::new(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
        "create bridge",
        name,
    )])?;
    let configure = |socket: &mut Socket| -> Result<Link> {
        let link = find(socket, name)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
            .kernel("find bridge", name)?;
        // Before it is up, because IPv6 gives itself an address at that moment.
        switch_ipv6(name, ipam6.is_some())?;
        let mut requests = vec![add_address(link.index, address, ipam.subnet.length(), name)];
        requests.extend(
            ipam6.map(|ipam| add_address6(link.index, ipam.gateway, ipam.subnet.length(), name)),
        );
        requests.push(set_up(name));
        socket.change(requests)?;
        Ok(link)
    };
    configure(socket).inspect_err(|_| drop(delete(socket, name)))
}

/// Lets the host reach published ports through 127.0.0.1, or not. The packet filter must drop what containers could
/// send there by themselves.
pub(super) fn route_loopback(bridge: &str, on: bool) -> Result<()> {
    let value = if on { "1" } else { "0" };
    write_sysctl("ipv4", bridge, "route_localnet", value)
}

/// Makes a bridge and an interface that is to be its port be so again, both up.
pub(super) fn plug_again(socket: &mut Socket, attachment: &Attachment, bridge: Link) -> Result<()> {
    let name = attachment.host_interface.as_str();
    let mut port = LinkMessage::default();
    port.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Controller(bridge.index),
    ];
    let port = RouteNetlinkMessage::SetLink(port);
    let mut requests = vec![
        set_up(&attachment.bridge),
        Request::new(port, 0, "plug in", name),
    ];
    requests.extend(reflect_if_filtered(name));
    requests.push(set_up(name));
    socket.change(requests)
}

/// Makes a veth pair, one end a port of `bridge`, the other inside `netns` under its final name; only the host's
/// end is up afterwards.
pub(super) fn create_pair(
    socket: &mut Socket,
    attachment: &Attachment,
    bridge: Link,
    netns: BorrowedFd<'_>,
) -> Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(attachment.interface.clone()),
        LinkAttribute::Address(attachment.mac.octets().to_vec()),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    peer.attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
    let name = attachment.host_interface.as_str();
    let mut pair = LinkMessage::default();
    pair.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Controller(bridge.index),
        LinkAttribute::Group(group(&attachment.bridge)),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    pair.attributes.extend(bridge.mtu.map(LinkAttribute::Mtu));
    let mut no_ipv6 = LinkMessage::default();
    no_ipv6.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    let mut requests = vec![
        Request::new(
            RouteNetlinkMessage::NewLink(pair),
            NLM_F_CREATE | NLM_F_EXCL,
            "create veth pair",
            name,
        ),
        // Refused by kernels without IPv6, where there is nothing to switch off.
        Request::new(RouteNetlinkMessage::SetLink(no_ipv6), 0, "configure", name).optional(),
    ];
    requests.extend(reflect_if_filtered(name));
    requests.push(set_up(name));
    socket.change(requests)
}

/// Lets a bridge port send a frame back where it came from. Needed when `br_netfilter` translates addresses while
/// it bridges, else a container could not reach its own published port.
fn reflect_if_filtered(name: &str) -> Option<Request<'_>> {
    let filtered = fs::read("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|value| value.starts_with(b"1"));
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
                true,
            )])),
        ]),
    ];
    let request = Request::new(
        RouteNetlinkMessage::NewLink(message),
        0,
        "configure port",
        name,
    );
    filtered.then_some(request)
}

/// Waits until packets pass a link that was brought up.
///
/// The kernel notices a carrier in its own time; until then the container's first packets would be lost, and their
/// repetition take a second or more. Being asked, newer kernels look at once; others take milliseconds.
/// A link that stays down is no failure here: what is wrong with it shows soon enough.
pub(super) fn wait_until_operational(socket: &mut Socket, name: &str) -> Result<()> {
    const ATTEMPTS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(1);
    for _ in 0..ATTEMPTS {
        match find(socket, name)? {
            Some(link) if !link.is_operational => std::thread::sleep(PAUSE),
            _ => break,
        }
    }
    Ok(())
}

/// Deletes a link; fine when there is none such.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let result = socket.change(vec![Request::new(
        RouteNetlinkMessage::DelLink(message),
        0,
        "delete link",
        name,
    )]);
    match result {
        Err(super::Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            Ok(())
        }
        other => other,
    }
}

/// Deletes a bridge and what is left of its ports. All at once, because the kernel waits some ten milliseconds after
/// each deletion for readers to leave, whatever it deletes.
pub(super) fn delete_bridge(socket: &mut Socket, name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group(name)));
    let request = RouteNetlinkMessage::DelLink(message);
    // One whose group was changed by hand is left to the second attempt.
    socket.change(vec![
        Request::new(request, 0, "delete bridge", name).optional(),
    ])?;
    match find(socket, name)? {
        Some(_) => delete(socket, name),
        None => Ok(()),
    }
}

/// Configures the container's side of `attachments` and its loopback interface, all up afterwards. The default routes
/// lead where `ways_out` says.
///
/// The calling thread visits the namespace for that: a thread of its own would have to be started and waited for, on
/// a path that `run` takes.
pub(super) fn configure_inside(
    netns: BorrowedFd<'_>,
    attachments: &[Attachment],
    ways_out: WaysOut<'_>,
) -> Result<()> {
    let _visit = Visit::to(netns)?;
    configure_here(attachments, ways_out)
}

/// The attachments that a container's default routes lead through, one for each family.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WaysOut<'a> {
    ipv4: Option<&'a Attachment>,
    ipv6: Option<&'a Attachment>,
}

impl<'a> WaysOut<'a> {
    /// The first attachments that lead outside.
    pub(super) fn of(attachments: &'a [Attachment]) -> WaysOut<'a> {
        let mut outward = attachments.iter().filter(|attachment| !attachment.internal);
        WaysOut {
            ipv4: outward.clone().next(),
            ipv6: outward.find(|attachment| attachment.ipv6.is_some()),
        }
    }

    fn is_through(self, interface: &str) -> (bool, bool) {
        let is = |way: Option<&Attachment>| way.is_some_and(|way| way.interface == interface);
        (is(self.ipv4), is(self.ipv6))
    }
}

/// Gives a container that was taken off a network, and may have lost its default routes with it, others.
pub(super) fn reroute_inside(netns: BorrowedFd<'_>, ways_out: WaysOut<'_>) -> Result<()> {
    let _visit = Visit::to(netns)?;
    let mut socket = Socket::open()?;
    let mut requests = Vec::new();
    let gateways = [
        (ways_out.ipv4, ways_out.ipv4.and_then(|way| way.gateway)),
        (
            ways_out.ipv6,
            ways_out
                .ipv6
                .and_then(|way| Some(IpAddr::V6(way.ipv6?.gateway))),
        ),
    ];
    for (attachment, gateway) in gateways {
        let (Some(attachment), Some(gateway)) = (attachment, gateway) else {
            continue;
        };
        let name = attachment.interface.as_str();
        if let Some(link) = find(&mut socket, name)? {
            // Refused where there is one, made by us or by the container itself.
            requests.push(default_route(link.index, gateway, name).optional());
        }
    }
    socket.change(requests)
}

/// Does something in another network namespace; what it must not do is start threads.
pub(crate) fn inside<T>(netns: BorrowedFd<'_>, deed: impl FnOnce() -> T) -> Result<T> {
    let _visit = Visit::to(netns)?;
    Ok(deed())
}

/// The calling thread is in another network namespace for as long as this lives. Its other threads are not.
struct Visit {
    home: File,
}

impl Visit {
    fn to(netns: BorrowedFd<'_>) -> Result<Visit> {
        let home =
            File::open("/proc/thread-self/ns/net").kernel("open", "our own network namespace")?;
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .kernel("join", "the container's network namespace")?;
        Ok(Visit { home })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let back = move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network));
        if back.is_err() {
            // Cannot happen to whoever could join the other one; and to go on there, as if at home, would be worse
            // than the end.
            std::process::abort();
        }
    }
}

fn configure_here(attachments: &[Attachment], ways_out: WaysOut<'_>) -> Result<()> {
    let mut socket = Socket::open()?;
    let mut requests = vec![set_up("lo")];
    for attachment in attachments {
        let name = attachment.interface.as_str();
        let link = find(&mut socket, name)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
            .kernel("find the container's interface", name)?;
        switch_ipv6(name, attachment.ipv6.is_some())?;
        if let IpAddr::V4(address) = attachment.address {
            let length = attachment.prefix_length;
            requests.push(add_address(link.index, address, length, name));
        }
        if let Some(side) = attachment.ipv6 {
            let length = side.prefix_length;
            requests.push(add_address6(link.index, side.address, length, name));
        }
        requests.push(set_up(name));
        let (ipv4, ipv6) = ways_out.is_through(name);
        if let (true, Some(gateway)) = (ipv4, attachment.gateway) {
            requests.push(default_route(link.index, gateway, name));
        }
        if let (true, Some(side)) = (ipv6, attachment.ipv6) {
            requests.push(default_route(link.index, side.gateway.into(), name));
        }
    }
    socket.change(requests)?;
    attachments
        .iter()
        .try_for_each(|attachment| wait_until_operational(&mut socket, &attachment.interface))
}

fn set_up(name: &str) -> Request<'_> {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    Request::new(RouteNetlinkMessage::SetLink(message), 0, "bring up", name)
}

fn add_address(index: u32, address: Ipv4Addr, length: u8, name: &str) -> Request<'_> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = length;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
        AddressAttribute::Broadcast(Subnet::containing(address, length).last()),
    ];
    Request::new(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
        "add an address to",
        name,
    )
}

/// Without duplicate address detection: the address was reserved, and would be of no use for its first second.
fn add_address6(index: u32, address: Ipv6Addr, length: u8, name: &str) -> Request<'_> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.prefix_len = length;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Address(address.into()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    Request::new(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
        "add an address to",
        name,
    )
}

fn default_route(index: u32, gateway: IpAddr, name: &str) -> Request<'_> {
    let mut message = RouteMessage::default();
    let (family, gateway) = match gateway {
        IpAddr::V4(gateway) => (AddressFamily::Inet, RouteAddress::Inet(gateway)),
        IpAddr::V6(gateway) => (AddressFamily::Inet6, RouteAddress::Inet6(gateway)),
    };
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
    Request::new(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_EXCL,
        "add the default route through",
        name,
    )
}

/// Switches IPv6 on or off for an interface that is not up yet. Router advertisements are never listened to.
fn switch_ipv6(name: &str, on: bool) -> Result<()> {
    write_sysctl("ipv6", name, "accept_ra", "0")?;
    if on {
        write_sysctl("ipv6", name, "accept_redirects", "0")?;
        // Neighbours are found with the link-local address, which must be usable at once as well.
        write_sysctl("ipv6", name, "accept_dad", "0")?;
        return write_sysctl("ipv6", name, "disable_ipv6", "0");
    }
    write_sysctl("ipv6", name, "disable_ipv6", "1")
}

/// Writes one per-interface setting of the calling thread's network namespace. A kernel without the protocol has no
/// such file, and needs none.
fn write_sysctl(protocol: &str, interface: &str, key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{protocol}/conf/{interface}/{key}");
    match fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.kernel("write", &path),
    }
}

/// What the host has already: prefixes that no network of ours may overlap, and the way out.
#[derive(Debug, Default)]
pub(super) struct HostRoutes {
    /// Where its routes lead, without the default route.
    pub(super) prefixes: Vec<Subnet>,
    /// The interface of the default route with the lowest metric.
    pub(super) default_interface: Option<u32>,
}

/// Lists what the host has. A link address shows as the kernel's own route to its prefix.
pub(super) fn host_routes(socket: &mut Socket) -> Result<HostRoutes> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let answers = socket.dump(RouteNetlinkMessage::GetRoute(query), "routes")?;
    let mut routes = HostRoutes::default();
    let mut best = u32::MAX;
    for answer in answers {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            continue;
        };
        if route.header.kind != RouteType::Unicast {
            continue;
        }
        let mut destination = Ipv4Addr::UNSPECIFIED;
        let (mut interface, mut metric) = (None, 0);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Priority(priority) => metric = *priority,
                _ => {}
            }
        }
        let length = route.header.destination_prefix_length;
        // A VPN that replaces the default route by two halves (0.0.0.0/1, 128.0.0.0/1) means no harm.
        if length > 1 {
            routes
                .prefixes
                .push(Subnet::containing(destination, length));
        } else if length == 0 && metric < best {
            best = metric;
            routes.default_interface = interface;
        }
    }
    Ok(routes)
}

/// Where the host's IPv6 routes lead, without the default route and what every host has (link-local, multicast).
pub(super) fn host_prefixes6(socket: &mut Socket) -> Result<Vec<Subnet6>> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet6;
    let answers = match socket.dump(RouteNetlinkMessage::GetRoute(query), "IPv6 routes") {
        // A kernel without IPv6.
        Err(super::Error::Kernel { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)
            ) =>
        {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let mut prefixes = Vec::new();
    for answer in answers {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            continue;
        };
        let length = route.header.destination_prefix_length;
        if route.header.kind != RouteType::Unicast || length <= 3 {
            continue;
        }
        for attribute in &route.attributes {
            if let RouteAttribute::Destination(RouteAddress::Inet6(address)) = attribute
                && address.segments()[0] & 0xffc0 != 0xfe80
            {
                prefixes.push(Subnet6::containing(*address, length));
            }
        }
    }
    Ok(prefixes)
}

/// The largest packet that gets out of this host by the default route.
pub(super) fn outward_mtu(socket: &mut Socket, routes: &HostRoutes) -> Result<Option<u32>> {
    let Some(index) = routes.default_interface else {
        return Ok(None);
    };
    let mut message = LinkMessage::default();
    message.header.index = index;
    let link = find_by(socket, message, "the default route's interface")?;
    Ok(link.and_then(|link| link.mtu))
}
