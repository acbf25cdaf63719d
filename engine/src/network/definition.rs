//! What networks there are: `networks/<name>.json`, and the three that are always there.
//!
//! Changes happen under an exclusive lock beside the files; whoever reserves an address holds it shared, so that no
//! network vanishes under a reservation.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::link;
use super::netlink::Socket;
use super::{Error, Ipam, Ipam6, Result, address};
use crate::store::{self, Context, Durability, Event, Kind, Lock, Store};

/// The network of a container that asks for none.
pub const DEFAULT_NETWORK: &str = "bridge";

/// How a network is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bridge on this host.
    #[default]
    Bridge,
    /// The host's own interfaces.
    Host,
    /// Nothing but the loopback interface.
    Null,
}

impl Driver {
    /// The name that `network ls` shows.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Bridge => "bridge",
            Driver::Host => "host",
            Driver::Null => "null",
        }
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// How it is made.
    pub driver: Driver,
    /// The bridge's interface name; empty for other drivers.
    pub interface: String,
    /// Its addresses; a bridge has them.
    pub ipam: Option<Ipam>,
    /// Its IPv6 addresses, where it was made with IPv6.
    #[serde(default)]
    pub ipam6: Option<Ipam6>,
    /// No way to the outside.
    #[serde(default)]
    pub internal: bool,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Driver options, as given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl Network {
    /// Its addresses.
    ///
    /// # Errors
    /// When it is not a bridge: such a network can't be combined with others.
    pub(super) fn bridge(&self) -> Result<Ipam> {
        self.ipam.ok_or_else(|| {
            Error::Invalid(format!(
                "network {} can't be connected to: it has no bridge",
                self.name
            ))
        })
    }

    /// Whether it is one of those that are always there.
    #[must_use]
    pub fn is_predefined(&self) -> bool {
        is_predefined(&self.name)
    }
}

fn is_predefined(name: &str) -> bool {
    matches!(name, DEFAULT_NETWORK | "host" | "none")
}

/// What is asked of a new network.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Its name.
    pub name: String,
    /// `bridge`, or nothing.
    pub driver: Option<String>,
    /// `ADDRESS/LENGTH`, one of each family at most; an address with host bits becomes the bridge's own.
    pub subnets: Vec<String>,
    /// The bridge's own addresses; each subnet's first when absent.
    pub gateways: Vec<IpAddr>,
    /// With IPv6 beside IPv4; a prefix is made up when none is given. An IPv6 subnet means the same.
    pub ipv6: bool,
    /// No way to the outside.
    pub internal: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options, kept as given.
    pub options: BTreeMap<String, String>,
}

/// Makes a network: its definition only, the bridge comes with the first container.
///
/// # Errors
/// When the name is bad or taken, or the subnet is bad or overlaps with something the host has.
pub fn create(store: &Store, options: CreateOptions) -> Result<Network> {
    check_name(&options.name)?;
    check_driver(options.driver.as_deref())?;
    let _lock = Lock::exclusive(&lock_path(store))?;
    if is_predefined(&options.name) || read(store, &options.name)?.is_some() {
        return Err(Error::Exists(options.name));
    }
    let others = stored(store)?;
    let routes = link::host_routes(&mut Socket::open()?)?;
    let wanted = Wanted::sort(&options)?;
    let ipam = match wanted.ipv4 {
        (Some(text), gateway) => {
            let ipam = Ipam::parse(text, gateway)?;
            ipam.check(&others, &routes)?;
            ipam
        }
        (None, _) => Ipam::choose(&options.name, &others, &routes)?,
    };
    let id = new_id()?;
    let ipam6 = match wanted.ipv6 {
        (Some(text), gateway) => Some(Ipam6::parse(text, gateway)?),
        (None, _) => options.ipv6.then(|| Ipam6::choose(&id)),
    };
    if let Some(ipam) = ipam6 {
        ipam.check(&others, &link::host_prefixes6(&mut Socket::open()?)?)?;
    }
    let network = Network {
        interface: format!("qbr-{}", &id[..11]),
        name: options.name,
        id,
        created: Timestamp::now(),
        driver: Driver::Bridge,
        ipam: Some(ipam),
        ipam6,
        internal: options.internal,
        labels: options.labels,
        options: options.options,
    };
    write(store, &network)?;
    tell(store, &network, "create");
    Ok(network)
}

/// The subnets and gateways asked for, by family.
struct Wanted<'a> {
    ipv4: (Option<&'a str>, Option<IpAddr>),
    ipv6: (Option<&'a str>, Option<IpAddr>),
}

impl<'a> Wanted<'a> {
    fn sort(options: &'a CreateOptions) -> Result<Wanted<'a>> {
        let mut wanted = Wanted {
            ipv4: (None, None),
            ipv6: (None, None),
        };
        let twice = |what: &str, family: &str| {
            Error::Invalid(format!("a network has one {family} {what}; two are given"))
        };
        for text in &options.subnets {
            let (place, family) = match text.contains(':') {
                false => (&mut wanted.ipv4.0, "IPv4"),
                true => (&mut wanted.ipv6.0, "IPv6"),
            };
            if place.replace(text.as_str()).is_some() {
                return Err(twice("subnet", family));
            }
        }
        for gateway in &options.gateways {
            let ((subnet, place), family) = match gateway {
                IpAddr::V4(_) => (&mut wanted.ipv4, "IPv4"),
                IpAddr::V6(_) => (&mut wanted.ipv6, "IPv6"),
            };
            if subnet.is_none() {
                return Err(Error::Invalid(format!(
                    "no matching subnet for gateway {gateway}: it can only be chosen together with one"
                )));
            }
            if place.replace(*gateway).is_some() {
                return Err(twice("gateway", family));
            }
        }
        Ok(wanted)
    }
}

fn tell(store: &Store, network: &Network, action: &str) {
    let event = Event::new(Kind::Network, action, &network.id)
        .with("name", &network.name)
        .with("type", network.driver.name());
    store.emit(&event);
}

/// Finds a network by name, id or id prefix.
///
/// # Errors
/// When there is none such, or more than one.
pub fn find(store: &Store, text: &str) -> Result<Network> {
    if is_predefined(text) {
        return predefined(store, text);
    }
    if is_name(text)
        && let Some(network) = read(store, text)?
    {
        return Ok(network);
    }
    let mut found = list(store)?
        .into_iter()
        .filter(|network| !text.is_empty() && network.id.starts_with(text));
    match (found.next(), found.next()) {
        (Some(network), None) => Ok(network),
        (Some(_), Some(_)) => Err(Error::Ambiguous(text.to_owned())),
        (None, _) => Err(Error::NotFound(text.to_owned())),
    }
}

/// Lists all networks, the predefined ones too, by name.
///
/// # Errors
/// When a definition can't be read.
pub fn list(store: &Store) -> Result<Vec<Network>> {
    let mut networks = stored(store)?;
    for name in [DEFAULT_NETWORK, "host", "none"] {
        if !networks.iter().any(|network| network.name == name) {
            networks.push(predefined(store, name)?);
        }
    }
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(networks)
}

/// Removes a network; returns it.
///
/// # Errors
/// When there is none such, it is predefined, or a container has an address on it.
pub fn remove(store: &Store, text: &str) -> Result<Network> {
    let network = find(store, text)?;
    if network.is_predefined() {
        return Err(Error::Predefined(network.name));
    }
    let _lock = Lock::exclusive(&lock_path(store))?;
    let containers = address::holders(store, &network.name)?;
    if !containers.is_empty() {
        return Err(Error::InUse {
            containers: super::inspect::display_names(store, &containers),
            name: network.name,
        });
    }
    let path = path(store, &network.name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::NotFound(text.to_owned()));
        }
        other => other.context("remove", &path)?,
    }
    address::forget(store, &network.name)?;
    tell(store, &network, "destroy");
    Ok(network)
}

/// Keeps the definitions as they are for as long as the lock is held.
pub(super) fn hold(store: &Store) -> Result<Lock> {
    Ok(Lock::shared(&lock_path(store))?)
}

/// Chooses another subnet for a network whose subnet we had chosen and the host has meanwhile taken for something
/// else; returns the network as it is then. Only while nobody has an address on it.
pub(super) fn move_out_of_the_way(store: &Store, network: Network) -> Result<Network> {
    let Some(ipam) = network.ipam.filter(|ipam| ipam.automatic) else {
        return Ok(network);
    };
    let mut socket = Socket::open()?;
    if !address::is_unused(store, &network.name)
        || link::find(&mut socket, &network.interface)?.is_some()
        || ipam.check(&[], &link::host_routes(&mut socket)?).is_ok()
    {
        return Ok(network);
    }
    let _lock = Lock::exclusive(&lock_path(store))?;
    let Some(mut network) = read(store, &network.name)? else {
        return Err(Error::NotFound(network.name));
    };
    let routes = link::host_routes(&mut socket)?;
    let ours = network
        .ipam
        .filter(|ipam| ipam.check(&[], &routes).is_err());
    if ours.is_some() && address::is_unused(store, &network.name) {
        let mut others = stored(store)?;
        others.retain(|other| other.name != network.name);
        network.ipam = Some(Ipam::choose(&network.name, &others, &routes)?);
        write(store, &network)?;
    }
    Ok(network)
}

/// One of the networks that are always there; the default one's addresses are chosen at its first use.
fn predefined(store: &Store, name: &str) -> Result<Network> {
    if name != DEFAULT_NETWORK {
        let driver = if name == "host" {
            Driver::Host
        } else {
            Driver::Null
        };
        return Ok(built_in(name, driver));
    }
    if let Some(network) = read(store, name)? {
        return Ok(network);
    }
    let _lock = Lock::exclusive(&lock_path(store))?;
    if let Some(network) = read(store, name)? {
        return Ok(network);
    }
    let routes = link::host_routes(&mut Socket::open()?)?;
    let id = new_id()?;
    // A second store on one machine has a default network too, whose bridge needs a name of its own.
    let interface = if is_main(store) {
        "qbr0".to_owned()
    } else {
        format!("qbr-{}", &id[..11])
    };
    let network = Network {
        name: name.to_owned(),
        id,
        created: Timestamp::now(),
        driver: Driver::Bridge,
        interface,
        ipam: Some(Ipam::choose(name, &stored(store)?, &routes)?),
        ipam6: None,
        internal: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    };
    write(store, &network)?;
    Ok(network)
}

/// Whether this is the machine's main store, whose names in the kernel are the plain ones.
pub(super) fn is_main(store: &Store) -> bool {
    store.root() == Path::new("/var/lib/qengine")
}

fn built_in(name: &str, driver: Driver) -> Network {
    use sha2::{Digest, Sha256};
    Network {
        name: name.to_owned(),
        id: hex(&Sha256::digest(format!("predefined network {name}"))),
        created: Timestamp::UNIX_EPOCH,
        driver,
        interface: String::new(),
        ipam: None,
        ipam6: None,
        internal: false,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
    }
}

fn new_id() -> Result<String> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; 32];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read", path)?;
    Ok(hex(&bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "invalid network name {name:?}: only letters, digits, `_`, `.` and `-`, the first a letter or digit"
    )))
}

fn is_name(name: &str) -> bool {
    name.len() <= 200 && store::is_name(name)
}

fn check_driver(driver: Option<&str>) -> Result<()> {
    match driver {
        None | Some("bridge" | "") => Ok(()),
        Some(driver @ ("host" | "null" | "none")) => Err(Error::Invalid(format!(
            "only one instance of the {driver:?} network is allowed, and it is there already"
        ))),
        Some(driver) => Err(Error::Invalid(format!(
            "network driver {driver:?} is not known; there is \"bridge\""
        ))),
    }
}

fn lock_path(store: &Store) -> PathBuf {
    store.networks().join(".lock")
}

fn path(store: &Store, name: &str) -> PathBuf {
    store.networks().join(format!("{name}.json"))
}

fn read(store: &Store, name: &str) -> Result<Option<Network>> {
    Ok(store::read_json(&path(store, name))?)
}

fn write(store: &Store, network: &Network) -> Result<()> {
    let path = path(store, &network.name);
    Ok(store::write_json(&path, network, Durability::Durable)?)
}

/// Every network that has a file.
fn stored(store: &Store) -> Result<Vec<Network>> {
    let directory = store.networks();
    let mut networks = Vec::new();
    for entry in fs::read_dir(&directory).context("list", &directory)? {
        let path = entry.context("list", &directory)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            // One that vanished meanwhile is not there.
            networks.extend(store::read_json::<Network>(&path)?);
        }
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for name in ["", ".", "..", "a/b", ".lock", "-a", "a b", "a\0"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("test_bridge-1.x").is_ok());
    }
}
