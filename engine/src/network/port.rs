//! Host ports: `ports/<protocol>-<address>-<port>`, a reservation each.
//!
//! A port on `0.0.0.0` excludes the same port on every other address, which single links can't express; so whoever
//! takes one holds a lock for the few system calls it needs.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::{Error, PortHolder, PortMapping, Protocol, PublishedPort, Result};
use crate::store::reserve::{self, Outcome};
use crate::store::{Context, Lock, Store};

mod holder;

/// Where ports come from that nobody chose: the dynamic range of RFC 6335, which docker begins with too.
const DYNAMIC: (u16, u16) = (49153, 65535);

/// Takes a host port for each mapping; gives all back when one can't be had.
pub(super) fn take_all(
    store: &Store,
    id: &str,
    mappings: &[PortMapping],
) -> Result<Vec<PublishedPort>> {
    let mut taken = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        match take(store, id, mapping, &taken) {
            // Said twice, it is still one port.
            Ok(port) if taken.contains(&port) => {}
            Ok(port) => taken.push(port),
            Err(error) => {
                for port in &taken {
                    // The first failure is the one to tell; what stays is collected with the container.
                    let _ = give_back(store, port, id);
                }
                return Err(error);
            }
        }
    }
    Ok(taken)
}

/// Takes what was taken on every IPv4 address, because no address was named, on every IPv6 address too.
pub(super) fn take_ipv6_too(
    store: &Store,
    id: &str,
    mappings: &[PortMapping],
    taken: &mut Vec<PublishedPort>,
) -> Result<()> {
    let of_no_address = |port: &PublishedPort| {
        let key = (port.container_port, port.protocol);
        let mut mappings = mappings.iter();
        port.host_ip.is_unspecified()
            && mappings
                .any(|one| one.host_ip.is_none() && (one.container_port, one.protocol) == key)
    };
    let wanted: Vec<_> = taken.iter().copied().filter(of_no_address).collect();
    for port in wanted {
        let port = PublishedPort {
            host_ip: Ipv6Addr::UNSPECIFIED.into(),
            ..port
        };
        take_one(store, id, &port)?;
        taken.push(port);
    }
    Ok(())
}

/// Gives one port back.
pub(super) fn give_back(store: &Store, port: &PublishedPort, id: &str) -> Result<()> {
    Ok(reserve::release(store, &link(store, port), id)?)
}

fn take(
    store: &Store,
    id: &str,
    mapping: &PortMapping,
    before: &[PublishedPort],
) -> Result<PublishedPort> {
    let host_ip = mapping.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let published = |host_port| PublishedPort {
        host_ip,
        host_port,
        container_port: mapping.container_port,
        protocol: mapping.protocol,
    };
    let (first, last, start) = match (mapping.host_port, mapping.host_port_last) {
        (None | Some(0), _) => {
            let (first, last) = DYNAMIC;
            (first, last, random_from(first, last)?)
        }
        (Some(first), Some(last)) => (first, last, first),
        (Some(port), None) => {
            let port = published(port);
            return take_new(store, id, &port, before).map(|()| port);
        }
    };
    for host_port in (start..=last).chain(first..start) {
        let port = published(host_port);
        match take_new(store, id, &port, before) {
            Err(Error::PortTaken { .. }) => {}
            other => return other.map(|()| port),
        }
    }
    Err(Error::NoPortLeft {
        host_ip,
        protocol: mapping.protocol,
        first,
        last,
    })
}

/// Takes exactly this port, unless the container has it already for another port of its own.
fn take_new(store: &Store, id: &str, port: &PublishedPort, before: &[PublishedPort]) -> Result<()> {
    let key = |port: &PublishedPort| (port.protocol, port.host_ip, port.host_port);
    let other = before.iter().find(|other| key(other) == key(port));
    if other.is_some_and(|other| other.container_port != port.container_port) {
        return Err(Error::PortTaken {
            host_ip: port.host_ip,
            port: port.host_port,
            holder: PortHolder::Container(id.to_owned()),
        });
    }
    take_one(store, id, port)
}

/// Takes exactly this port.
pub(super) fn take_one(store: &Store, id: &str, port: &PublishedPort) -> Result<()> {
    let taken = |holder| Error::PortTaken {
        host_ip: port.host_ip,
        port: port.host_port,
        holder,
    };
    let _lock = Lock::exclusive(&store.ports().join(".lock"))?;
    let link = link(store, port);
    // Asked for twice by one container with one meaning: it is ours already, and its rules may hold the port.
    if reserve::owner(&link)?.as_deref() == Some(id) {
        return Ok(());
    }
    if let Some(holder) = conflicting_holder(store, port)? {
        return Err(taken(PortHolder::Container(holder)));
    }
    try_bind(port)
        .or_else(|error| holder::judge(store, port, error, || try_bind(port)))
        .map_err(taken)?;
    match reserve::reserve(store, &link, id)? {
        Outcome::Taken => Ok(()),
        Outcome::HeldBy(holder) => Err(taken(PortHolder::Container(holder))),
    }
}

/// The container that has this port on an address that excludes ours.
pub(crate) fn conflicting_holder(store: &Store, port: &PublishedPort) -> Result<Option<String>> {
    let directory = store.ports();
    for entry in fs::read_dir(&directory).context("list", &directory)? {
        let entry = entry.context("list", &directory)?;
        let name = entry.file_name();
        let Some((protocol, address, number)) = name.to_str().and_then(parse_name) else {
            continue;
        };
        let same = protocol == port.protocol.name() && number == port.host_port;
        let of_one_family = address.is_ipv4() == port.host_ip.is_ipv4();
        let overlap = address == port.host_ip
            || of_one_family && (address.is_unspecified() || port.host_ip.is_unspecified());
        if !same || !overlap {
            continue;
        }
        let owner = reserve::owner(&entry.path())?;
        if let Some(owner) = owner.filter(|owner| store.container(owner).exists()) {
            return Ok(Some(owner));
        }
    }
    Ok(None)
}

/// Binds the port for a moment, to see whether a process of the host has it. (`TcpListener` sets `SO_REUSEADDR`, which
/// on Linux ignores connections in TIME_WAIT but no listener.)
fn try_bind(port: &PublishedPort) -> io::Result<()> {
    let address = (port.host_ip, port.host_port);
    if let IpAddr::V6(address) = port.host_ip {
        return try_bind6(
            SocketAddrV6::new(address, port.host_port, 0, 0),
            port.protocol,
        );
    }
    match port.protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
        // Not a port of the same space, and no host without the module has it.
        Protocol::Sctp => Ok(()),
    }
}

/// The same for IPv6 alone: `::` would stand for IPv4's `0.0.0.0` too, which is a port of its own here.
fn try_bind6(address: SocketAddrV6, protocol: Protocol) -> io::Result<()> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => return Ok(()),
    };
    let socket = socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None)?;
    set_ipv6_v6only(&socket, true)?;
    if protocol == Protocol::Tcp {
        set_socket_reuseaddr(&socket, true)?;
    }
    Ok(bind(&socket, &address)?)
}

fn random_from(first: u16, last: u16) -> Result<u16> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 2];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read", path)?;
    Ok(first + u16::from_ne_bytes(bytes) % (last - first + 1))
}

fn link(store: &Store, port: &PublishedPort) -> PathBuf {
    let name = format!("{}-{}-{}", port.protocol, port.host_ip, port.host_port);
    store.ports().join(name)
}

fn parse_name(name: &str) -> Option<(&str, IpAddr, u16)> {
    let (protocol, rest) = name.split_once('-')?;
    let (address, port) = rest.rsplit_once('-')?;
    Some((protocol, address.parse().ok()?, port.parse().ok()?))
}

/// Removes reservations of containers that are gone.
pub(super) fn collect(store: &Store) -> Result<()> {
    let directory = store.ports();
    let _lock = Lock::exclusive(&directory.join(".lock"))?;
    for entry in fs::read_dir(&directory).context("list", &directory)? {
        let path = entry.context("list", &directory)?.path();
        let owner = match reserve::owner(&path) {
            // The lock file is no link.
            Err(crate::store::Error::File { source, .. })
                if source.kind() == ErrorKind::InvalidInput =>
            {
                None
            }
            other => other?,
        };
        if let Some(owner) = owner.filter(|owner| !store.container(owner).exists()) {
            reserve::release(store, &path, &owner)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        for id in ["aa", "bb"] {
            crate::store::make_dir(&store.container(id)).unwrap();
        }
        (directory, store)
    }

    fn mappings(text: &str) -> Vec<PortMapping> {
        PortMapping::parse(text).unwrap()
    }

    /// A port that nobody had a moment ago.
    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    #[test]
    fn every_address_excludes_each() {
        let (_directory, store) = store();
        let port = free_port();
        for (first, second, expected) in [
            (format!("{port}:80"), format!("127.0.0.1:{port}:80"), false),
            (format!("127.0.0.1:{port}:80"), format!("{port}:80"), false),
            (
                format!("127.0.0.1:{port}:80"),
                format!("127.0.0.2:{port}:80"),
                true,
            ),
            (format!("{port}:80"), format!("{port}:80/udp"), true),
        ] {
            let taken = take_all(&store, "aa", &mappings(&first)).unwrap();
            let outcome = take_all(&store, "bb", &mappings(&second));
            assert_eq!(outcome.is_ok(), expected, "{first} {second}");
            for port in taken {
                give_back(&store, &port, "aa").unwrap();
            }
            for port in outcome.unwrap_or_default() {
                give_back(&store, &port, "bb").unwrap();
            }
        }
    }

    #[test]
    fn a_listening_process_of_the_host_has_its_port() {
        let (_directory, store) = store();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = take_all(&store, "aa", &mappings(&format!("{port}:80"))).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("Bind for 0.0.0.0:{port} failed: port is already allocated")
        );
        drop(listener);
        take_all(&store, "aa", &mappings(&format!("{port}:80"))).unwrap();
    }

    #[test]
    fn all_or_nothing() {
        let (_directory, store) = store();
        let (one, other) = (free_port(), free_port());
        let held = take_all(&store, "bb", &mappings(&format!("{other}:80"))).unwrap();
        let both = [
            mappings(&format!("{one}:80")),
            mappings(&format!("{other}:81")),
        ]
        .concat();
        assert!(take_all(&store, "aa", &both).is_err());
        assert!(
            reserve::owner(&store.ports().join(format!("tcp-0.0.0.0-{one}")))
                .unwrap()
                .is_none()
        );
        give_back(&store, &held[0], "bb").unwrap();
        assert_eq!(take_all(&store, "aa", &both).unwrap().len(), 2);
    }

    #[test]
    fn one_port_leads_to_one_place() {
        let (_directory, store) = store();
        let port = free_port();
        let twice = |one: &str, other: &str| {
            let one = mappings(&one.replace('P', &port.to_string()));
            let other = mappings(&other.replace('P', &port.to_string()));
            take_all(&store, "aa", &[one, other].concat())
        };
        assert!(twice("P:80", "P:81").is_err());
        assert_eq!(twice("P:80", "P:80").unwrap().len(), 1);
        let range = format!("{port}-{}:80", port.saturating_add(200));
        let taken = twice("P:80", &range).unwrap();
        assert_eq!(taken.len(), 1);
        let taken = twice("P:80", &range.replace(":80", ":81")).unwrap();
        assert_ne!(taken[0].host_port, taken[1].host_port);
    }

    #[test]
    fn ports_nobody_chose() {
        let (_directory, store) = store();
        let ports = take_all(&store, "aa", &mappings("80-83")).unwrap();
        assert_eq!(ports.len(), 4);
        assert!(ports.iter().all(|port| port.host_port >= DYNAMIC.0));
    }

    #[test]
    fn what_the_dead_had_is_collected() {
        let (_directory, store) = store();
        let port = free_port();
        take_all(&store, "aa", &mappings(&format!("{port}:80"))).unwrap();
        fs::remove_dir(store.container("aa")).unwrap();
        collect(&store).unwrap();
        assert!(
            reserve::owner(&store.ports().join(format!("tcp-0.0.0.0-{port}")))
                .unwrap()
                .is_none()
        );
        take_all(&store, "bb", &mappings(&format!("{port}:80"))).unwrap();
    }
}
