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

#[cfg(test)]
mod tests {
    use super::super::super::{Attachment, Ipv6Side};
    use super::super::Identity;
    use super::*;
    use crate::store::make_dir;

    const ONE: &str = "aaaaaaaaaaaa1111";
    const TWO: &str = "bbbbbbbbbbbb2222";
    const BOTH: &str = "cccccccccccc3333";

    fn attachment(network: &str, address: &str, aliases: &[&str]) -> Attachment {
        Attachment {
            network: network.into(),
            network_id: network.into(),
            interface: "eth0".into(),
            host_interface: "veth".into(),
            bridge: format!("qbr-{network}"),
            address: address.parse().unwrap(),
            prefix_length: 24,
            gateway: None,
            mac: "02:42:00:00:00:01".parse().unwrap(),
            internal: network == "inside",
            aliases: aliases.iter().map(|&alias| alias.into()).collect(),
            ipv6: (network == "a").then(|| Ipv6Side {
                address: "fd00::2".parse().unwrap(),
                prefix_length: 64,
                gateway: "fd00::1".parse().unwrap(),
            }),
        }
    }

    /// `One` is on `a`, `two` on `inside`, `both` on both; `idle` is on none now.
    fn table() -> (tempfile::TempDir, Table) {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        for (name, id) in [("One", ONE), ("two", TWO), ("both", BOTH), ("idle", "dd")] {
            std::os::unix::fs::symlink(id, store.names().join(name)).unwrap();
        }
        for network in ["a", "inside"] {
            fs::write(store.networks().join(format!("{network}.json")), "{}").unwrap();
        }
        for (id, attachment) in [
            (ONE, attachment("a", "10.0.0.2", &["db"])),
            (BOTH, attachment("a", "10.0.0.3", &["db"])),
            (BOTH, attachment("inside", "10.0.1.3", &[])),
            (TWO, attachment("inside", "10.0.1.2", &["Secret"])),
        ] {
            make_dir(&member::of_bridge(&store, &attachment.bridge)).unwrap();
            let member = Member {
                attachment,
                ports: Vec::new(),
                identity: Identity {
                    names: vec![format!("host-{}", &id[..1])],
                    servers: Vec::new(),
                },
            };
            member::write(&store, id, &member).unwrap();
        }
        let mut table = Table::new(&store);
        table.refresh();
        (directory, table)
    }

    fn asker(table: &Table, network: &str, address: &str) -> Asker {
        let bridge = member::of_bridge(&table.store, &format!("qbr-{network}"));
        table.asker(&bridge, address.parse().unwrap(), network == "inside")
    }

    fn found(addresses: &[&str]) -> Finding {
        Finding::Found(addresses.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn each_name_of_a_neighbour_leads_to_it() {
        let (_directory, table) = table();
        let one = asker(&table, "a", "10.0.0.2");
        for name in ["one", "aaaaaaaaaaaa", "host-a", "one.a", "host-a.a"] {
            let finding = table.find(&one, name);
            assert_eq!(finding, found(&["10.0.0.2", "fd00::2"]), "{name}");
        }
        let Finding::Found(all) = table.find(&one, "db") else {
            panic!("an alias of two");
        };
        assert!(all.contains(&"10.0.0.2".parse().unwrap()));
        assert!(all.contains(&"10.0.0.3".parse().unwrap()));
    }

    #[test]
    fn names_of_others_are_hidden_and_not_passed_on() {
        let (_directory, table) = table();
        let one = asker(&table, "a", "10.0.0.2");
        for name in ["two", "secret", "host-b", "two.inside", "idle", "idle.a"] {
            assert_eq!(table.find(&one, name), Finding::Hidden, "{name}");
        }
        for name in ["example.org", "nosuch", "two.example", "", "..", "../x"] {
            assert_eq!(table.find(&one, name), Finding::Unknown, "{name}");
        }
    }

    #[test]
    fn who_is_on_two_networks_hears_of_both() {
        let (_directory, table) = table();
        let both = asker(&table, "a", "10.0.0.3");
        assert_eq!(table.find(&both, "two"), found(&["10.0.1.2"]));
        assert!(both.may_ask_outside);
        // The same container, asking on the network that leads nowhere.
        assert!(asker(&table, "inside", "10.0.1.3").may_ask_outside);
        assert!(!asker(&table, "inside", "10.0.1.2").may_ask_outside);
        assert!(!asker(&table, "inside", "10.0.1.77").may_ask_outside);
    }

    #[test]
    fn addresses_have_names_too() {
        let (_directory, table) = table();
        let one = asker(&table, "a", "10.0.0.2");
        let find = |text: &str| table.find_address(&one, text.parse().unwrap());
        assert_eq!(find("10.0.0.3"), Ok("both.a".into()));
        assert_eq!(find("10.0.0.77"), Err(Finding::Hidden));
        assert_eq!(find("10.0.1.2"), Err(Finding::Unknown));
        assert_eq!(find("192.0.2.1"), Err(Finding::Unknown));
    }

    #[test]
    fn what_changes_is_seen_at_once() {
        let (_directory, mut table) = table();
        let one = asker(&table, "a", "10.0.0.2");
        let names = table.store.names();
        fs::rename(names.join("One"), names.join("uno")).unwrap();
        fs::remove_file(member::of_bridge(&table.store, "qbr-a").join(BOTH)).unwrap();
        table.refresh();
        assert!(matches!(table.find(&one, "uno"), Finding::Found(_)));
        assert_eq!(table.find(&one, "one"), Finding::Unknown);
        assert_eq!(table.find(&one, "both"), Finding::Hidden);
    }
}
