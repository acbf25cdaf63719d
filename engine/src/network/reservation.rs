//! What a container needs before it is connected, taken all or not at all.

use std::net::IpAddr;

use super::{
    Attachment, Endpoint, Error, MacAddress, Mode, PortMapping, Result, Setup, address, connection,
    definition, port,
};
use crate::store::Store;

/// Takes addresses and host ports for the container `id`, whose directory exists.
///
/// # Errors
/// When a network isn't there, or an address or port can't be had; nothing is taken then.
pub fn reserve(store: &Store, id: &str, mode: &Mode, ports: &[PortMapping]) -> Result<Setup> {
    let endpoints = match mode {
        Mode::Host | Mode::Container(_) => return Ok(Setup::default()),
        Mode::None => &[][..],
        Mode::Networks(endpoints) => endpoints.as_slice(),
    };
    let mut setup = Setup {
        own_namespace: true,
        ..Setup::default()
    };
    let reserved = reserve_addresses(store, id, endpoints, &mut setup).and_then(|()| {
        // Without an address there is nowhere for a port to lead; docker ignores them too.
        let Some(first) = setup.attachments.first() else {
            return Ok(());
        };
        let has_ipv6 = first.ipv6.is_some();
        let on_ipv6 = |mapping: &&PortMapping| mapping.host_ip.is_some_and(|ip| ip.is_ipv6());
        if let (false, Some(mapping)) = (has_ipv6, ports.iter().find(on_ipv6)) {
            return Err(Error::Invalid(format!(
                "can't publish port {} on an IPv6 address: network {} has no IPv6; make one with `network create --ipv6`",
                mapping.container_port, first.network
            )));
        }
        setup.ports = port::take_all(store, id, ports)?;
        if has_ipv6 {
            port::take_ipv6_too(store, id, ports, &mut setup.ports)?;
        }
        Ok(())
    });
    match reserved {
        Ok(()) => Ok(setup),
        Err(error) => {
            // The failure that matters is the first; whatever stays is collected with the container.
            let _ = release(store, id, &setup);
            Err(error)
        }
    }
}

/// Takes addresses for the container `id` on one more network, which becomes the last of `setup`.
///
/// # Errors
/// When the network isn't there, or the address can't be had; nothing is taken then.
pub fn reserve_one(store: &Store, id: &str, endpoint: &Endpoint, setup: &mut Setup) -> Result<()> {
    reserve_address(store, id, endpoint, setup)
}

/// Gives everything back. Fine when that happened before.
///
/// # Errors
/// When a reservation can't be removed; the others are removed all the same.
pub fn release(store: &Store, id: &str, setup: &Setup) -> Result<()> {
    let ports = setup
        .ports
        .iter()
        .map(|port| port::give_back(store, port, id));
    let addresses = setup.attachments.iter().flat_map(|attachment| {
        let ipv6 = attachment.ipv6.map(|side| IpAddr::V6(side.address));
        std::iter::once(attachment.address)
            .chain(ipv6)
            .map(|address| address::give_back(store, &attachment.network, address, id))
    });
    // Collected first, so that one failure does not keep the rest.
    let outcomes: Vec<Result<()>> = ports.chain(addresses).collect();
    outcomes.into_iter().collect()
}

fn reserve_addresses(
    store: &Store,
    id: &str,
    endpoints: &[Endpoint],
    setup: &mut Setup,
) -> Result<()> {
    for endpoint in endpoints {
        reserve_address(store, id, endpoint, setup)?;
    }
    Ok(())
}

/// Takes addresses on one more network; the attachment is added to `setup`.
fn reserve_address(store: &Store, id: &str, endpoint: &Endpoint, setup: &mut Setup) -> Result<()> {
    let network = definition::find(store, &endpoint.network)?;
    network.bridge()?;
    let network = definition::move_out_of_the_way(store, network)?;
    let _lock = definition::hold(store)?;
    // Looked up again now that nobody can remove it.
    let network = definition::find(store, &network.name)?;
    let ipam = network.bridge()?;
    if setup
        .attachments
        .iter()
        .any(|other| other.network == network.name)
    {
        return Err(Error::Invalid(format!(
            "network {} is given more than once",
            network.name
        )));
    }
    let address = address::take(store, &network, id, endpoint.address)?;
    let ipv6 = address::take6(store, &network, id, endpoint.address6).inspect_err(|_| {
        // Not in `setup` yet, so nobody else would.
        drop(address::give_back(store, &network.name, address.into(), id));
    })?;
    setup.attachments.push(Attachment {
        host_interface: connection::host_interface(id, &network.id),
        interface: free_interface(&setup.attachments),
        bridge: network.interface,
        network: network.name,
        network_id: network.id,
        address: IpAddr::V4(address),
        prefix_length: ipam.subnet.length(),
        gateway: Some(IpAddr::V4(ipam.gateway)),
        mac: endpoint.mac.unwrap_or(MacAddress::from_ipv4(address)),
        internal: network.internal,
        aliases: endpoint.aliases.clone(),
        ipv6,
    });
    Ok(())
}

/// The first of `eth0`, `eth1`, … that no attachment has.
fn free_interface(attachments: &[Attachment]) -> String {
    let is_free = |name: &String| attachments.iter().all(|other| other.interface != *name);
    (0..=attachments.len())
        .map(|number| format!("eth{number}"))
        .find(is_free)
        .unwrap_or_else(|| format!("eth{}", attachments.len()))
}
