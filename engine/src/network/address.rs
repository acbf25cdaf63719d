//! Addresses: `addresses/<network>/<address>`, a reservation each.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::{Error, Ipam, Network, Result};
use crate::store::reserve::{self, Outcome};
use crate::store::{Context, Store, make_dir};

/// Takes an address on `network` for the container `id`: the one `wanted`, or the lowest free one.
pub(super) fn take(
    store: &Store,
    network: &Network,
    id: &str,
    wanted: Option<IpAddr>,
) -> Result<Ipv4Addr> {
    let ipam = network.bridge()?;
    let directory = directory(store, &network.name);
    make_dir(&directory)?;
    if let Some(address) = wanted {
        return take_wanted(store, network, ipam, id, address);
    }
    // One reading of the directory tells which addresses are worth trying; the links themselves are not read. Should
    // all be taken, each is tried after all: reserving collects what belonged to containers that are gone.
    let taken = listed(store, &network.name)?;
    let free = ipam
        .subnet
        .hosts()
        .filter(|address| !taken.contains(address));
    let collectable = taken.iter().copied();
    for address in free
        .chain(collectable)
        .filter(|address| *address != ipam.gateway)
    {
        let link = directory.join(address.to_string());
        if reserve::reserve(store, &link, id)? == Outcome::Taken {
            return Ok(address);
        }
    }
    Err(Error::SubnetFull {
        network: network.name.clone(),
        subnet: ipam.subnet,
    })
}

fn take_wanted(
    store: &Store,
    network: &Network,
    ipam: Ipam,
    id: &str,
    wanted: IpAddr,
) -> Result<Ipv4Addr> {
    let address = match wanted {
        IpAddr::V4(address) if ipam.subnet.is_host(address) && address != ipam.gateway => address,
        _ => {
            return Err(Error::Invalid(format!(
                "address {wanted} is not one that a container can have on network {} ({}, gateway {})",
                network.name, ipam.subnet, ipam.gateway
            )));
        }
    };
    let link = directory(store, &network.name).join(address.to_string());
    match reserve::reserve(store, &link, id)? {
        Outcome::Taken => Ok(address),
        Outcome::HeldBy(holder) => Err(Error::AddressTaken {
            address: wanted,
            network: network.name.clone(),
            holder,
        }),
    }
}

/// Gives an address back.
pub(super) fn give_back(store: &Store, network: &str, address: IpAddr, id: &str) -> Result<()> {
    let link = directory(store, network).join(address.to_string());
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
        let link = directory(store, network).join(address.to_string());
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

fn listed(store: &Store, network: &str) -> Result<BTreeSet<Ipv4Addr>> {
    let directory = directory(store, network);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other.context("list", &directory)?,
    };
    let mut addresses = BTreeSet::new();
    for entry in entries {
        let name = entry.context("list", &directory)?.file_name();
        addresses.extend(name.to_str().and_then(|name| name.parse::<Ipv4Addr>().ok()));
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
                ipam: Some(Ipam {
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
