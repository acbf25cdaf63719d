//! Who has which name, out of the store's files.
//!
//! Read when a question comes, and again only if a directory has changed since. Nothing that a client sends ever
//! becomes part of a path.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::member::{self, Member};
use crate::store::{Store, reserve};

/// A directory that changed so shortly before it was read may have changed again without its time having moved on.
const SETTLED: Duration = Duration::from_millis(100);

/// What was read of a directory, and when.
#[derive(Debug)]
struct Kept<T> {
    value: T,
    stamp: Option<(SystemTime, u64)>,
}

impl<T: Default> Default for Kept<T> {
    fn default() -> Kept<T> {
        Kept {
            value: T::default(),
            stamp: None,
        }
    }
}

impl<T> Kept<T> {
    /// Reads again if `directory` may have changed.
    fn refresh(&mut self, directory: &Path, read: impl FnOnce() -> T) {
        let stamp = fs::metadata(directory)
            .and_then(|metadata| Ok((metadata.modified()?, metadata.ino())))
            .ok();
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        let is_settled = |(time, _): &(SystemTime, u64)| {
            SystemTime::now()
                .duration_since(*time)
                .is_ok_and(|age| age > SETTLED)
        };
        self.stamp = stamp.filter(is_settled);
        self.value = read();
    }
}

/// All names of all containers of a store.
#[derive(Debug)]
pub(super) struct Table {
    store: Store,
    /// Container names in lower case, by id.
    containers: Kept<HashMap<String, Vec<String>>>,
    /// Names of networks.
    networks: Kept<Vec<String>>,
    /// Connected containers by bridge, and by id.
    bridges: HashMap<PathBuf, Kept<HashMap<String, Member>>>,
}

/// The one who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asker {
    /// The directories of the bridges that it is on, the one that it asks through first.
    bridges: Vec<PathBuf>,
    /// Servers of its own (`--dns`).
    pub(super) servers: Vec<IpAddr>,
    /// Some network of it leads outside.
    pub(super) may_ask_outside: bool,
}

/// What there is to say about a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Containers that the asker can reach have it: these are their addresses.
    Found(Vec<IpAddr>),
    /// It is a name of ours, but of nobody whom the asker can reach.
    Hidden,
    /// Not a name of ours.
    Unknown,
}

impl Table {
    pub(super) fn new(store: &Store) -> Table {
        Table {
            store: store.clone(),
            containers: Kept::default(),
            networks: Kept::default(),
            bridges: HashMap::new(),
        }
    }

    /// Looks again at whatever has changed.
    pub(super) fn refresh(&mut self) {
        let directory = self.store.names();
        self.containers
            .refresh(&directory, || container_names(&directory));
        let directory = self.store.networks();
        self.networks
            .refresh(&directory, || network_names(&directory));
        let there = member::bridges(&self.store).unwrap_or_default();
        self.bridges.retain(|bridge, _| there.contains(bridge));
        for bridge in there {
            let kept = self.bridges.entry(bridge.clone()).or_default();
            kept.refresh(&bridge, || {
                member::read_all(&bridge)
                    .unwrap_or_default()
                    .into_iter()
                    .collect()
            });
        }
    }

    /// The container on `bridge` that has the address. An unknown one is taken for a neighbour on that bridge alone.
    pub(super) fn asker(&self, bridge: &Path, source: IpAddr, internal: bool) -> Asker {
        let members = |bridge: &PathBuf| self.bridges.get(bridge).map(|kept| &kept.value);
        let bridge = bridge.to_owned();
        let found = members(&bridge)
            .into_iter()
            .flatten()
            .find(|(_, member)| has(member, source));
        let Some((id, member)) = found else {
            return Asker {
                bridges: vec![bridge],
                servers: Vec::new(),
                may_ask_outside: !internal,
            };
        };
        let mut others: Vec<_> = self
            .bridges
            .iter()
            .filter(|(other, kept)| **other != bridge && kept.value.contains_key(id))
            .map(|(other, _)| other.clone())
            .collect();
        others.sort();
        let bridges: Vec<_> = std::iter::once(bridge).chain(others).collect();
        let outward = |bridge: &PathBuf| {
            members(bridge)
                .and_then(|members| members.get(id))
                .is_some_and(|member| !member.attachment.internal)
        };
        Asker {
            may_ask_outside: bridges.iter().any(outward),
            servers: member.identity.servers.clone(),
            bridges,
        }
    }

    /// What `asker` shall hear about `name`, which is in lower case.
    pub(super) fn find(&self, asker: &Asker, name: &str) -> Finding {
        let mut addresses = Vec::new();
        for bridge in &asker.bridges {
            addresses.extend(self.on_bridge(bridge, name));
        }
        if !addresses.is_empty() {
            return Finding::Found(addresses);
        }
        let mut networks = self.networks.value.iter();
        let of_network = networks.find_map(|network| strip_network(name, network));
        let is_ours = |name: &str| !name.contains('.') && self.is_anybodys(name);
        if is_ours(name) || of_network.is_some_and(is_ours) {
            return Finding::Hidden;
        }
        Finding::Unknown
    }

    /// The name of the container with this address, with its network's; `Hidden` when the address is one of a network
    /// of the asker that nobody has.
    pub(super) fn find_address(&self, asker: &Asker, address: IpAddr) -> Result<String, Finding> {
        for bridge in &asker.bridges {
            let Some(kept) = self.bridges.get(bridge) else {
                continue;
            };
            for (id, member) in &kept.value {
                if has(member, address) {
                    let own = self
                        .containers
                        .value
                        .get(id)
                        .and_then(|names| names.first());
                    let name = own.cloned().unwrap_or_else(|| short(id).to_owned());
                    return Ok(format!("{name}.{}", member.attachment.network));
                }
            }
            if kept
                .value
                .values()
                .any(|member| is_neighbour(member, address))
            {
                return Err(Finding::Hidden);
            }
        }
        Err(Finding::Unknown)
    }

    fn on_bridge(&self, bridge: &Path, name: &str) -> Vec<IpAddr> {
        let Some(kept) = self.bridges.get(bridge) else {
            return Vec::new();
        };
        let mut addresses = Vec::new();
        for (id, member) in &kept.value {
            let network = &member.attachment.network;
            // `web.mynet` is `web` of the network `mynet`.
            let bare = strip_network(name, network);
            if self.is_called(id, member, name)
                || bare.is_some_and(|bare| self.is_called(id, member, bare))
            {
                addresses.push(member.attachment.address);
                addresses.extend(member.attachment.ipv6.map(|side| IpAddr::V6(side.address)));
            }
        }
        addresses.sort();
        addresses
    }

    fn is_called(&self, id: &str, member: &Member, name: &str) -> bool {
        let is = |other: &String| other.eq_ignore_ascii_case(name);
        short(id) == name
            || self
                .containers
                .value
                .get(id)
                .is_some_and(|names| names.iter().any(is))
            || member.attachment.aliases.iter().any(is)
            || member.identity.names.iter().any(is)
    }

    /// Whether some container of the store has this name, wherever it is.
    fn is_anybodys(&self, name: &str) -> bool {
        let has_name = |names: &Vec<String>| names.iter().any(|other| other == name);
        self.containers.value.values().any(has_name)
            || self
                .bridges
                .values()
                .flat_map(|kept| &kept.value)
                .any(|(id, member)| self.is_called(id, member, name))
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn strip_network<'a>(name: &'a str, network: &str) -> Option<&'a str> {
    let at = name.len().checked_sub(network.len())?;
    let (bare, last) = (name.get(..at)?, name.get(at..)?);
    if last.eq_ignore_ascii_case(network) {
        bare.strip_suffix('.')
    } else {
        None
    }
}

fn has(member: &Member, address: IpAddr) -> bool {
    let attachment = &member.attachment;
    attachment.address == address
        || attachment
            .ipv6
            .is_some_and(|side| IpAddr::V6(side.address) == address)
}

fn is_neighbour(member: &Member, address: IpAddr) -> bool {
    use super::super::{Subnet, Subnet6};
    let attachment = &member.attachment;
    match (address, attachment.address) {
        (IpAddr::V4(address), IpAddr::V4(own)) => {
            Subnet::containing(own, attachment.prefix_length).contains(address)
        }
        (IpAddr::V6(address), _) => attachment.ipv6.is_some_and(|side| {
            Subnet6::containing(side.address, side.prefix_length).contains(address)
        }),
        _ => false,
    }
}

fn container_names(directory: &Path) -> HashMap<String, Vec<String>> {
    let mut names: HashMap<String, Vec<String>> = HashMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if let (Ok(Some(id)), Ok(name)) = (
            reserve::owner(&entry.path()),
            entry.file_name().into_string(),
        ) {
            names.entry(id).or_default().push(name.to_ascii_lowercase());
        }
    }
    names
}

fn network_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .collect()
}
