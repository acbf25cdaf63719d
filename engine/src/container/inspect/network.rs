//! `NetworkSettings`.

use serde_json::{Map, Value, json};

use super::super::find::Handle;
use super::super::live::Live;
use crate::network::{Attachment, Endpoint, Mode, Setup, endpoint_id, names};

/// What a container is connected to while it runs; which networks it will be on when it does not.
pub(super) fn settings(handle: &Handle, setup: Option<&Setup>, live: Live) -> Value {
    let setup = setup.filter(|_| live.is_running());
    let mut ports = Map::new();
    for published in setup.iter().flat_map(|setup| &setup.ports) {
        let key = format!("{}/{}", published.container_port, published.protocol);
        let entry =
            json!({"HostIp": published.host_ip, "HostPort": published.host_port.to_string()});
        if let Some(list) = ports.entry(key).or_insert_with(|| json!([])).as_array_mut() {
            list.push(entry);
        }
    }
    let endpoints = match &handle.config.options.network {
        Mode::Networks(endpoints) => endpoints.as_slice(),
        _ => &[],
    };
    let asked = |network: &str| endpoints.iter().find(|one| one.network == network);
    let mut networks = Map::new();
    if let Some(setup) = setup {
        for attachment in &setup.attachments {
            let entry = attached(handle, attachment, asked(&attachment.network));
            networks.insert(attachment.network.clone(), entry);
        }
    } else {
        for endpoint in endpoints {
            networks.insert(endpoint.network.clone(), wanted(endpoint));
        }
    }
    // Docker has these of the default network only; here they are those of the first network.
    let first = setup
        .and_then(|setup| setup.attachments.first())
        .and_then(|attachment| networks.get(&attachment.network))
        .cloned()
        .unwrap_or_else(|| wanted(&Endpoint::default()));
    let of_first = |key: &str| first.get(key).cloned().unwrap_or_else(|| json!(""));
    let mut settings = json!({
        "Ports": ports,
        "Networks": networks,
    });
    for key in [
        "EndpointID",
        "Interface",
        "Gateway",
        "IPAddress",
        "IPPrefixLen",
        "IPv6Gateway",
        "GlobalIPv6Address",
        "GlobalIPv6PrefixLen",
        "MacAddress",
    ] {
        settings[key] = of_first(key);
    }
    settings
}

/// A place on a network that the container has.
fn attached(handle: &Handle, attachment: &Attachment, endpoint: Option<&Endpoint>) -> Value {
    let ipv6 = attachment.ipv6;
    let text = |value: Option<String>| value.unwrap_or_default();
    json!({
        "NetworkID": attachment.network_id,
        "EndpointID": endpoint_id(handle.id(), &attachment.network_id),
        "Interface": attachment.interface,
        "HostInterface": attachment.host_interface,
        "Gateway": text(attachment.gateway.map(|gateway| gateway.to_string())),
        "IPAddress": attachment.address,
        "IPPrefixLen": attachment.prefix_length,
        "IPv6Gateway": text(ipv6.map(|side| side.gateway.to_string())),
        "GlobalIPv6Address": text(ipv6.map(|side| side.address.to_string())),
        "GlobalIPv6PrefixLen": ipv6.map_or(0, |side| side.prefix_length),
        "MacAddress": attachment.mac.to_string(),
        "IPAMConfig": endpoint.and_then(ipam_config),
        "Aliases": attachment.aliases,
        "DNSNames": dns_names(handle, attachment),
    })
}

/// A place on a network that the container will have.
fn wanted(endpoint: &Endpoint) -> Value {
    json!({
        "NetworkID": "",
        "EndpointID": "",
        "Interface": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "MacAddress": endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        "IPAMConfig": ipam_config(endpoint),
        "Aliases": endpoint.aliases,
    })
}

/// The addresses that were asked for.
fn ipam_config(endpoint: &Endpoint) -> Option<Value> {
    let mut config = Map::new();
    if let Some(address) = endpoint.address {
        config.insert("IPv4Address".to_owned(), json!(address));
    }
    if let Some(address) = endpoint.address6 {
        config.insert("IPv6Address".to_owned(), json!(address));
    }
    (!config.is_empty()).then_some(Value::Object(config))
}

/// What the network's resolver knows the container by.
fn dns_names(handle: &Handle, attachment: &Attachment) -> Option<Vec<String>> {
    if !names::has_resolver(attachment) {
        return None;
    }
    let config = &handle.config;
    let mut names = vec![config.name.clone()];
    names.extend(attachment.aliases.iter().cloned());
    names.push(config.short_id().to_owned());
    names.extend(config.options.hostname.clone());
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    Some(names)
}
