//! The packet filter: published ports, translation to the outside, isolation.
//!
//! Callers say which rules there shall be; how they come about is the backend's business: nftables where the kernel
//! has it, else the iptables commands. A change is one transaction in either. Where neither is usable there are no
//! rules: containers are reached by address from the host, and published ports are the userland forwarder's.

use std::net::IpAddr;

use super::{Error, Protocol, Result, Subnet, Subnet6, definition};
use crate::store::Store;

mod command;
mod conntrack;
mod foreign;
mod iptables;
mod nftables;

pub use command::Failure;

/// One bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetworkRule {
    /// Its interface name.
    pub(super) bridge: String,
    /// Its addresses.
    pub(super) subnet: Subnet,
    /// Its IPv6 addresses, if it has any.
    pub(super) subnet6: Option<Subnet6>,
    /// No way to the outside, and none in.
    pub(super) internal: bool,
}

/// One published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortRule {
    /// The address of the host it is published on; each when absent.
    pub(super) host: Option<IpAddr>,
    /// Which kind of port.
    pub(super) protocol: Protocol,
    /// The host's port.
    pub(super) host_port: u16,
    /// The container's address, of the same family.
    pub(super) target: IpAddr,
    /// The container's port.
    pub(super) target_port: u16,
}

/// All there shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) networks: Vec<NetworkRule>,
    pub(super) ports: Vec<PortRule>,
}

impl Rules {
    fn with_ipv6(&self) -> Option<&NetworkRule> {
        self.networks
            .iter()
            .find(|network| network.subnet6.is_some())
    }

    /// Adds a network that may be there already.
    pub(super) fn add_network(&mut self, network: NetworkRule) {
        if !self.networks.contains(&network) {
            self.networks.push(network);
        }
    }
}

/// The rules of one store.
#[derive(Debug)]
pub(super) struct Firewall {
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Nftables {
        table: nftables::Table,
        acceptance: foreign::Acceptance,
    },
    Iptables(iptables::Chains),
    /// No rules at all; the suffix of the names of those there may have been before.
    None(Option<String>),
}

/// Set to `nftables`, `iptables` or `none`, it chooses the backend; else the first of these that is usable is taken.
const CHOICE: &str = "QENGINE_FIREWALL";

/// What the packet filter is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketFilter {
    /// nftables, by netlink.
    Nftables,
    /// iptables, by its commands.
    Iptables,
    /// Nothing: the kernel has neither, or none is wanted.
    None,
}

impl Firewall {
    /// The rules of `store`; changes nothing yet.
    ///
    /// # Errors
    /// When the backend chosen is not there.
    pub(super) fn open(store: &Store) -> Result<Firewall> {
        // Stores don't know of each other, so each has a table of its own.
        let suffix = (!definition::is_main(store)).then(|| short_hash(store));
        let suffix = suffix.as_deref();
        let opened = |table: std::result::Result<nftables::Table, Failure>| -> Result<Backend> {
            Ok(Backend::Nftables {
                table: table.map_err(|source| failed("open the packet filter", source))?,
                acceptance: foreign::Acceptance::new(suffix),
            })
        };
        let iptables = || Backend::Iptables(iptables::Chains::new(suffix));
        let none = || Backend::None(suffix.map(str::to_owned));
        let choice = std::env::var_os(CHOICE).unwrap_or_default();
        let backend = match choice.to_str() {
            Some("nftables") => opened(nftables::Table::open(suffix))?,
            Some("iptables") => iptables(),
            Some("none") => none(),
            Some("") => match nftables::Table::open(suffix) {
                Err(error) if error.is_unsupported() && iptables::is_usable() => iptables(),
                Err(error) if error.is_unsupported() => none(),
                table => opened(table)?,
            },
            _ => {
                return Err(Error::Invalid(format!(
                    "{CHOICE} is {}: nftables, iptables and none are there",
                    choice.display()
                )));
            }
        };
        Ok(Firewall { backend })
    }

    /// What the rules are made with.
    pub(super) fn filter(&self) -> PacketFilter {
        match &self.backend {
            Backend::Nftables { .. } => PacketFilter::Nftables,
            Backend::Iptables(_) => PacketFilter::Iptables,
            Backend::None(_) => PacketFilter::None,
        }
    }

    /// Whether the rules are there. Where finding out costs more than it is worth, the answer is yes.
    pub(super) fn is_present(&self) -> bool {
        match &self.backend {
            Backend::Nftables { table, .. } => table.is_present().unwrap_or(false),
            Backend::Iptables(_) | Backend::None(_) => true,
        }
    }

    /// Makes the rules be exactly these, whatever was there.
    pub(super) fn replace(&self, rules: &Rules) -> Result<()> {
        if let (Backend::Iptables(_), Some(network)) = (&self.backend, rules.with_ipv6()) {
            return Err(Error::Invalid(format!(
                "bridge {} has IPv6, which needs nftables to keep it apart from others; this store uses iptables",
                network.bridge
            )));
        }
        match &self.backend {
            Backend::Nftables { table, acceptance } => table
                .replace(rules)
                .and_then(|()| acceptance.replace(table, rules)),
            Backend::Iptables(chains) => chains.replace(rules),
            Backend::None(suffix) => clear_former(suffix.as_deref()),
        }
        .map_err(|source| failed("set up the packet filter", source))
    }

    /// Adds ports to rules that are there.
    pub(super) fn add_ports(&self, ports: &[PortRule]) -> Result<()> {
        match &self.backend {
            Backend::Nftables { table, .. } => table.add_ports(ports),
            Backend::Iptables(chains) => chains.add_ports(ports),
            Backend::None(_) => Ok(()),
        }
        .map_err(|source| failed("publish ports", source))
    }

    /// Makes ports that were just published take effect on connections that began before.
    pub(super) fn settle(&self, ports: &[PortRule]) -> Result<()> {
        if self.filter() == PacketFilter::None {
            return Ok(());
        }
        conntrack::forget(ports).map_err(|source| failed("forget connections", source))
    }

    /// Removes ports from rules that are there.
    pub(super) fn remove_ports(&self, ports: &[PortRule]) -> Result<()> {
        match &self.backend {
            Backend::Nftables { table, .. } => table.remove_ports(ports),
            Backend::Iptables(chains) => chains.remove_ports(ports),
            Backend::None(_) => Ok(()),
        }
        .map_err(|source| failed("take back published ports", source))
    }

    /// Removes every rule of ours; fine when there are none.
    pub(super) fn clear(&self) -> Result<()> {
        match &self.backend {
            Backend::Nftables { table, acceptance } => {
                acceptance.clear(table).and_then(|()| table.clear())
            }
            Backend::Iptables(chains) => chains.clear(),
            Backend::None(suffix) => clear_former(suffix.as_deref()),
        }
        .map_err(|source| failed("clear the packet filter", source))
    }
}

/// Removes the table of a time when there was a packet filter.
fn clear_former(suffix: Option<&str>) -> std::result::Result<(), Failure> {
    match nftables::Table::open(suffix) {
        Ok(table) => table.clear(),
        Err(_) => Ok(()),
    }
}

fn failed(action: &'static str, source: Failure) -> Error {
    Error::Firewall { action, source }
}

fn short_hash(store: &Store) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(store.root().as_os_str().as_bytes());
    format!(
        "{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    )
}
