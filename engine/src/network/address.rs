//! Addresses: `addresses/<network>/<address>`, a reservation each.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use super::{Error, Ipv6Side, Network, Result};
use crate::store::reserve::{self, Outcome};
use crate::store::{Context, Store, make_dir};

/// Takes an IPv4 address on `network` for the container `id`: the one `wanted`, or the lowest free one.
pub(super) fn take(
    store: &Store,
    network: &Network,
    id: &str,
    wanted: Option<IpAddr>,
) -> Result<Ipv4Addr> {
    let ipam = network.bridge()?;
    if let Some(address) = wanted {
        return match address {
            IpAddr::V4(address) if ipam.subnet.is_host(address) && address != ipam.gateway => {
                take_wanted(store, network, id, address.into()).map(|()| address)
            }
            _ => Err(unfit(network, address, &ipam.subnet, &ipam.gateway)),
        };
    }
    let hosts = ipam.subnet.hosts();
    let free = hosts.filter(|address| *address != ipam.gateway);
    take_lowest(store, network, id, free)?.ok_or_else(|| full(network, &ipam.subnet))
}

/// The same for IPv6; `None` on a network without.
pub(super) fn take6(
    store: &Store,
    network: &Network,
    id: &str,
    wanted: Option<Ipv6Addr>,
) -> Result<Option<Ipv6Side>> {
    let Some(ipam) = network.ipam6 else {
        return match wanted {
            None => Ok(None),
            Some(address) => Err(Error::Invalid(format!(
                "address {address} can't be had: network {} has no IPv6; make one with `network create --ipv6`",
                network.name
            ))),
        };
    };
    let address = match wanted {
        Some(address) if ipam.subnet.is_host(address) && address != ipam.gateway => {
            take_wanted(store, network, id, address.into())?;
            address
        }
        Some(address) => {
            return Err(unfit(network, address.into(), &ipam.subnet, &ipam.gateway));
        }
        None => {
            let hosts = ipam.subnet.hosts();
            let free = hosts.filter(|address| *address != ipam.gateway);
            take_lowest(store, network, id, free)?.ok_or_else(|| full(network, &ipam.subnet))?
        }
    };
    Ok(Some(Ipv6Side {
        address,
        prefix_length: ipam.subnet.length(),
        gateway: ipam.gateway,
    }))
}

/// Takes the first of `candidates` that nobody has; `None` when there is none.
fn take_lowest<A: Copy + Into<IpAddr>>(
    store: &Store,
    network: &Network,
    id: &str,
    candidates: impl Iterator<Item = A> + Clone,
) -> Result<Option<A>> {
    make_dir(&directory(store, &network.name))?;
    // One reading of the directory tells which addresses are worth trying; the links themselves are not read. Should
    // all be taken, each is tried after all: reserving collects what belonged to containers that are gone.
    let taken = listed(store, &network.name)?;
    let is_taken = |address: &A| taken.contains(&(*address).into());
    let free = candidates.clone().filter(|address| !is_taken(address));
    for address in free.chain(candidates.filter(is_taken).take(taken.len())) {
        let link = link(store, &network.name, address.into());
        if reserve::reserve(store, &link, id)? == Outcome::Taken {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

fn take_wanted(store: &Store, network: &Network, id: &str, address: IpAddr) -> Result<()> {
    make_dir(&directory(store, &network.name))?;
    match reserve::reserve(store, &link(store, &network.name, address), id)? {
        Outcome::Taken => Ok(()),
        Outcome::HeldBy(holder) => Err(Error::AddressTaken {
            address,
            network: network.name.clone(),
            holder,
        }),
    }
}

fn unfit(network: &Network, address: IpAddr, subnet: &dyn Display, gateway: &dyn Display) -> Error {
    Error::Invalid(format!(
        "address {address} is not one that a container can have on network {} ({subnet}, gateway {gateway})",
        network.name
    ))
}

fn full(network: &Network, subnet: &dyn Display) -> Error {
    Error::SubnetFull {
        network: network.name.clone(),
        subnet: subnet.to_string(),
    }
}

fn link(store: &Store, network: &str, address: IpAddr) -> PathBuf {
    directory(store, network).join(address.to_string())
}

/// Gives an address back.
pub(super) fn give_back(store: &Store, network: &str, address: IpAddr, id: &str) -> Result<()> {
    let link = link(store, network, address);
    Ok(reserve::release(store, &link, id)?)
}

/// Whether no link is there at all, alive or dead.
pub(super) fn is_unused(store: &Store, network: &str) -> bool {
    match fs::read_dir(directory(store, network)) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// The ids of the containers that have an address on the network and still exist.
pub(super) fn holders(store: &Store, network: &str) -> Result<Vec<String>> {
    let mut holders = Vec::new();
    for address in listed(store, network)? {
        let link = link(store, network, address);
        holders.extend(reserve::owner(&link)?.filter(|id| store.container(id).exists()));
    }
    Ok(holders)
}

/// Removes what is left of a network's reservations, which nobody alive has any more.
pub(super) fn forget(store: &Store, network: &str) -> Result<()> {
    let directory = directory(store, network);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context("remove", &directory)?
        }
        _ => Ok(()),
    }
}

/// Removes reservations of containers that are gone.
pub(super) fn collect(store: &Store) -> Result<()> {
    let directory = store.addresses();
    for network in fs::read_dir(&directory).context("list", &directory)? {
        let network = network.context("list", &directory)?;
        let name = network.file_name().to_string_lossy().into_owned();
        for address in listed(store, &name)? {
            let link = network.path().join(address.to_string());
            if let Some(owner) = reserve::owner(&link)?.filter(|id| !store.container(id).exists()) {
                reserve::release(store, &link, &owner)?;
            }
        }
    }
    Ok(())
}

fn listed(store: &Store, network: &str) -> Result<BTreeSet<IpAddr>> {
    let directory = directory(store, network);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.context("list", &directory)?,
    };
    let mut addresses = BTreeSet::new();
    for entry in entries {
        let name = entry.context("list", &directory)?.file_name();
        addresses.extend(name.to_str().and_then(|name| name.parse::<IpAddr>().ok()));
    }
    Ok(addresses)
}

fn directory(store: &Store, network: &str) -> PathBuf {
    store.addresses().join(network)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::super::Driver;
    use super::*;

    struct Fixture {
        _directory: tempfile::TempDir,
        store: Store,
        network: Network,
    }

    impl Fixture {
        fn new(subnet: &str) -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let store =
                Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
            let subnet: super::super::Subnet = subnet.parse().unwrap();
            let network = Network {
                name: "net".into(),
                id: "0".repeat(64),
                created: Timestamp::UNIX_EPOCH,
                driver: Driver::Bridge,
                interface: "qbr-test".into(),
                ipam6: None,
                ipam: Some(super::super::Ipam {
                    subnet,
                    gateway: subnet.first_host(),
                    automatic: false,
                }),
                internal: false,
                labels: BTreeMap::new(),
                options: BTreeMap::new(),
            };
            Fixture {
                _directory: directory,
                store,
                network,
            }
        }

        fn take(&self, id: &str, wanted: Option<&str>) -> Result<String> {
            make_dir(&self.store.container(id)).unwrap();
            let wanted = wanted.map(|text| text.parse().unwrap());
            take(&self.store, &self.network, id, wanted).map(|address| address.to_string())
        }
    }

    #[test]
    fn the_lowest_free_address_is_taken() {
        let fixture = Fixture::new("10.9.0.0/24");
        assert_eq!(fixture.take("a", None).unwrap(), "10.9.0.2");
        assert_eq!(fixture.take("b", None).unwrap(), "10.9.0.3");
        assert_eq!(fixture.take("c", Some("10.9.0.4")).unwrap(), "10.9.0.4");
        assert_eq!(fixture.take("d", None).unwrap(), "10.9.0.5");
        give_back(&fixture.store, "net", "10.9.0.3".parse().unwrap(), "b").unwrap();
        assert_eq!(fixture.take("e", None).unwrap(), "10.9.0.3");
        assert_eq!(
            holders(&fixture.store, "net").unwrap(),
            ["a", "e", "c", "d"]
        );
    }

    #[test]
    fn an_address_that_cannot_be_had_is_refused() {
        let fixture = Fixture::new("10.9.0.0/24");
        for address in ["10.9.0.0", "10.9.0.1", "10.9.0.255", "10.8.0.2", "fd00::2"] {
            assert!(
                matches!(fixture.take("a", Some(address)), Err(Error::Invalid(_))),
                "{address}"
            );
        }
        fixture.take("a", Some("10.9.0.9")).unwrap();
        assert!(matches!(
            fixture.take("b", Some("10.9.0.9")),
            Err(Error::AddressTaken { .. })
        ));
    }

    #[test]
    fn a_full_subnet_gives_what_the_dead_had() {
        let fixture = Fixture::new("10.9.0.0/29");
        for id in ["a", "b", "c", "d", "e"] {
            fixture.take(id, None).unwrap();
        }
        assert!(matches!(
            fixture.take("f", None),
            Err(Error::SubnetFull { .. })
        ));
        fs::remove_dir(fixture.store.container("c")).unwrap();
        assert_eq!(fixture.take("f", None).unwrap(), "10.9.0.4");
    }
}
