//! Networks: how a container's network namespace is connected to the host, to its neighbours and to the outside.
//!
//! The order of one container's life, and which module does it:
//!
//! ```text
//! reserve     before anything runs: an address on each network, the host ports          (address, port)
//! connect     the namespace exists, nothing runs in it yet: bridge, veth pair, address,
//!             routes, firewall                                                          (connection, link, firewall)
//! disconnect  the container has ended: everything of the above that was its own, and
//!             whatever nobody needs any more: bridge, sets, table                       (connection)
//! release     address and ports are free again                                          (address, port)
//! ```
//!
//! Definitions (`networks/<name>.json`) are durable; reservations are links of the store; what is connected right now
//! is the kernel's to know, with one small file a member under the run directory so that it can be undone by name.
//! [`collect`] puts right what a killed command left.
//!
//! IPv6 is there on networks that were made with it; on the interfaces of all others it is switched off, so that nothing
//! listens or routes there unnoticed. Names are resolved by a process of each network's own ([`names`]).

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

mod address;
mod connection;
mod definition;
mod firewall;
mod inspect;
mod ipam;
mod link;
mod mac;
mod mapping;
mod member;
pub mod names;
mod netlink;
mod port;
mod published;
mod reservation;
mod resolver;
mod stale;
mod subnet;
mod subnet6;

pub use connection::{attach, collect, connect, detach, disconnect, packet_filter, reload};
pub use definition::{CreateOptions, DEFAULT_NETWORK, Driver, Network, create, find, list, remove};
pub use inspect::{Addresses, Description, Member, Pool, endpoint_id, inspect};
pub use ipam::Ipam;
pub(crate) use link::inside;
pub use mac::MacAddress;
pub use mapping::{PortMapping, Protocol, describe_ports};
pub(crate) use port::conflicting_holder;
pub(crate) use published::{directories, publishers};
pub use reservation::{release, reserve, reserve_one};
pub use resolver::{HostResolver, host_resolver};
pub use stale::stale;
pub use subnet::Subnet;
pub use subnet6::{Ipam6, Subnet6};

/// How a container is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A namespace of its own with nothing but the loopback interface.
    None,
    /// The host's own namespace.
    Host,
    /// The namespace of another container, by its id.
    Container(String),
    /// A namespace of its own on these networks; the first that leads outside gives the default route.
    Networks(Vec<Endpoint>),
}

impl Default for Mode {
    /// The default bridge network.
    fn default() -> Mode {
        Mode::Networks(vec![Endpoint::new(DEFAULT_NETWORK)])
    }
}

/// One network that a container shall be on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Endpoint {
    /// The network's name or id.
    pub network: String,
    /// The IPv4 address wanted; the next free one when absent.
    pub address: Option<IpAddr>,
    /// The IPv6 address wanted; the next free one when absent. Only on a network that has IPv6.
    pub address6: Option<Ipv6Addr>,
    /// The hardware address wanted; made from the address when absent.
    pub mac: Option<MacAddress>,
    /// Further names under which neighbours shall find the container.
    pub aliases: Vec<String>,
}

impl Endpoint {
    /// An endpoint on `network` with nothing special asked for.
    #[must_use]
    pub fn new(network: &str) -> Endpoint {
        Endpoint {
            network: network.to_owned(),
            ..Endpoint::default()
        }
    }
}

/// One interface of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The network's id.
    pub network_id: String,
    /// The interface's name inside: `eth0`, `eth1`, ….
    pub interface: String,
    /// The other end, on the host.
    pub host_interface: String,
    /// The bridge that end is a port of.
    pub bridge: String,
    /// The IPv4 address inside.
    pub address: IpAddr,
    /// The length of the network's prefix.
    pub prefix_length: u8,
    /// The bridge's own address; the next hop of the default route where there is one.
    pub gateway: Option<IpAddr>,
    /// The hardware address inside.
    pub mac: MacAddress,
    /// The network has no way to the outside: no default route, no translation.
    #[serde(default)]
    pub internal: bool,
    /// Further names of the container on this network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The IPv6 side, on a network that has one.
    #[serde(default)]
    pub ipv6: Option<Ipv6Side>,
}

/// What an interface has of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Side {
    /// The address inside.
    pub address: Ipv6Addr,
    /// The length of the network's prefix.
    pub prefix_length: u8,
    /// The bridge's own address.
    pub gateway: Ipv6Addr,
}

/// One port of the host that leads into a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The host's address; `0.0.0.0` stands for each.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The port inside.
    pub container_port: u16,
    /// Which kind of port.
    pub protocol: Protocol,
}

/// What was reserved for a container: everything [`connect`] needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Setup {
    /// The container gets a network namespace of its own (it has not joined the host's or another container's).
    pub own_namespace: bool,
    /// Its interfaces, in order.
    pub attachments: Vec<Attachment>,
    /// Its published ports; they lead to the first attachment.
    pub ports: Vec<PublishedPort>,
    /// What resolvers have to know of it; not reserved, but said by whoever connects it.
    pub identity: names::Identity,
}

/// What can go wrong with a network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network of that name or id.
    #[error("network {0} not found")]
    NotFound(String),
    /// An id prefix that several networks share.
    #[error("network id prefix {0} is ambiguous: more than one network starts with it")]
    Ambiguous(String),
    /// The name of a new network belongs to another one.
    #[error("network with name {0} already exists")]
    Exists(String),
    /// A container was to be connected to a network that it is on.
    #[error("endpoint with name {container} already exists in network {network}")]
    Connected {
        /// The container's name.
        container: String,
        /// The network.
        network: String,
    },
    /// A container was to be taken off a network that it is not on.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container's name.
        container: String,
        /// The network.
        network: String,
    },
    /// Something typed that can't be meant.
    #[error("{0}")]
    Invalid(String),
    /// A published port that can't be parsed.
    #[error("invalid published port {text:?}: {reason}")]
    BadMapping {
        /// As typed.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A subnet that is already used.
    #[error("subnet {subnet} overlaps with {with}")]
    Overlap {
        /// The subnet wanted.
        subnet: Subnet,
        /// Whose it is.
        with: String,
    },
    /// Every subnet of the pool is used.
    #[error(
        "no free subnet left for network {0}: every one in the pool overlaps with a network, an address or a route"
    )]
    PoolExhausted(String),
    /// A network with containers on it was to be removed.
    #[error("network {name} is in use by {}", containers.join(", "))]
    InUse {
        /// The network.
        name: String,
        /// Names or short ids of the containers.
        containers: Vec<String>,
    },
    /// `bridge`, `host` or `none` was to be removed.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// An address that was asked for belongs to another container.
    #[error("address {address} of network {network} is already in use by container {holder}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// The container's id.
        holder: String,
    },
    /// Every address of a network is taken.
    #[error("no free address left in {subnet} of network {network}")]
    SubnetFull {
        /// The network.
        network: String,
        /// Its subnet.
        subnet: String,
    },
    /// A host port belongs to another container, or to a process of the host.
    #[error("Bind for {host_ip}:{port} failed: port is already allocated")]
    PortTaken {
        /// The address.
        host_ip: IpAddr,
        /// The port.
        port: u16,
        /// Who has it, where we know.
        #[source]
        holder: PortHolder,
    },
    /// No host port is left to choose from.
    #[error("all {protocol} ports of {host_ip} from {first} to {last} are allocated")]
    NoPortLeft {
        /// The address.
        host_ip: IpAddr,
        /// Which kind of port.
        protocol: Protocol,
        /// First port tried.
        first: u16,
        /// Last port tried.
        last: u16,
    },
    /// The kernel refused something.
    #[error("cannot {action} {object}")]
    Kernel {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A network's resolver could not be started.
    #[error("cannot start the resolver of network {network}: {reason}")]
    Resolver {
        /// The network.
        network: String,
        /// What it said.
        reason: String,
    },
    /// The packet filter refused something.
    #[error("cannot {action}")]
    Firewall {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: firewall::Failure,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
}

pub use firewall::{Failure as FirewallFailure, PacketFilter};

/// Who has a port.
#[derive(Debug, thiserror::Error)]
pub enum PortHolder {
    /// A container.
    #[error("container {0} publishes it")]
    Container(String),
    /// A mapping by hand.
    #[error("`portmap forward`, process {0}, listens on it")]
    Forward(i32),
    /// A process of the host (or the address is not the host's).
    #[error("the host refuses to bind it")]
    Host(#[source] io::Error),
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was attempted, and on what, to an [`io::Error`].
trait KernelContext<T> {
    /// Turns the error into [`Error::Kernel`].
    fn kernel(self, action: &'static str, object: &str) -> Result<T>;
}

impl<T, E: Into<io::Error>> KernelContext<T> for std::result::Result<T, E> {
    fn kernel(self, action: &'static str, object: &str) -> Result<T> {
        self.map_err(|error| Error::Kernel {
            action,
            object: object.to_owned(),
            source: error.into(),
        })
    }
}
