//! `network inspect`: docker's key names.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use serde::Serialize;

use super::{Network, Result, connection, definition};
use crate::store::{Store, reserve};

/// A network and the containers connected to it, as docker's `network inspect` shows them.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(
    missing_docs,
    clippy::struct_excessive_bools,
    reason = "the names, and how many there are, are docker's"
)]
pub struct Description {
    pub name: String,
    pub id: String,
    pub created: String,
    pub scope: &'static str,
    pub driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    pub enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub ipam: Addresses,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_only: bool,
    pub containers: BTreeMap<String, Member>,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// Where a network's addresses come from.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are docker's")]
pub struct Addresses {
    pub driver: &'static str,
    pub options: Option<BTreeMap<String, String>>,
    pub config: Vec<Pool>,
}

/// One prefix of a network.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are docker's")]
pub struct Pool {
    pub subnet: String,
    pub gateway: String,
}

/// One container on a network.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
#[expect(missing_docs, reason = "the names are docker's")]
pub struct Member {
    pub name: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    pub mac_address: String,
    #[serde(rename = "IPv4Address")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    pub ipv6_address: String,
}

/// Describes a network and the containers connected to it.
///
/// # Errors
/// When there is no such network, or the members can't be read.
pub fn inspect(store: &Store, text: &str) -> Result<Description> {
    let network = definition::find(store, text)?;
    let pool = network.ipam.map(|ipam| Pool {
        subnet: ipam.subnet.to_string(),
        gateway: ipam.gateway.to_string(),
    });
    let pool6 = network.ipam6.map(|ipam| Pool {
        subnet: ipam.subnet.to_string(),
        gateway: ipam.gateway.to_string(),
    });
    Ok(Description {
        containers: containers(store, &network)?,
        options: options(&network),
        name: network.name,
        id: network.id,
        created: network.created.to_string(),
        scope: "local",
        driver: network.driver.name(),
        enable_ipv4: true,
        enable_ipv6: network.ipam6.is_some(),
        ipam: Addresses {
            driver: "default",
            options: None,
            config: pool.into_iter().chain(pool6).collect(),
        },
        internal: network.internal,
        attachable: false,
        ingress: false,
        config_only: false,
        labels: network.labels,
    })
}

/// The driver's options, with the bridge's name under the key that docker has for it.
fn options(network: &Network) -> BTreeMap<String, String> {
    let mut options = network.options.clone();
    if !network.interface.is_empty() {
        options
            .entry("com.docker.network.bridge.name".to_owned())
            .or_insert_with(|| network.interface.clone());
    }
    options
}

fn containers(store: &Store, network: &Network) -> Result<BTreeMap<String, Member>> {
    if network.interface.is_empty() {
        return Ok(BTreeMap::new());
    }
    let names = names(store);
    let members = connection::members(store, &network.interface)?;
    Ok(members
        .into_iter()
        .map(|(id, member)| {
            let attachment = member.attachment;
            let description = Member {
                name: names.get(&id).cloned().unwrap_or_default(),
                endpoint_id: endpoint_id(&id, &network.id),
                mac_address: attachment.mac.to_string(),
                ipv4_address: format!("{}/{}", attachment.address, attachment.prefix_length),
                ipv6_address: attachment
                    .ipv6
                    .map(|side| format!("{}/{}", side.address, side.prefix_length))
                    .unwrap_or_default(),
            };
            (id, description)
        })
        .collect())
}

/// The id of a container's place on a network: docker makes one up, ours follows from the two.
pub fn endpoint_id(container: &str, network_id: &str) -> String {
    use sha2::{Digest, Sha256};
    definition::hex(&Sha256::digest(format!(
        "endpoint {container} {network_id}"
    )))
}

/// Containers as a user knows them: by name, or by short id.
pub(super) fn display_names(store: &Store, ids: &[String]) -> Vec<String> {
    let names = names(store);
    ids.iter()
        .map(|id| {
            let short = id.get(..12).unwrap_or(id);
            names.get(id).map_or(short, String::as_str).to_owned()
        })
        .collect()
}

/// Names by id. A name that can't be read is no reason to show nothing.
fn names(store: &Store) -> HashMap<String, String> {
    let entries = fs::read_dir(store.names()).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let owner = reserve::owner(&entry.path()).ok()??;
            Some((owner, entry.file_name().into_string().ok()?))
        })
        .collect()
}
