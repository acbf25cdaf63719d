//! Puts back what others took away: settings of bridges, forwarding, all rules.

use super::super::firewall::PacketFilter;
use super::super::{Result, link, member};
use super::{Firewall, Work};
use crate::store::Store;

/// What the packet filter of this store is done with.
///
/// # Errors
/// When the one that was asked for is not there.
pub fn packet_filter(store: &Store) -> Result<PacketFilter> {
    Ok(Firewall::open(store)?.filter())
}

/// Makes bridges, ports, sysctls and rules be again what the containers that are connected need, and says which these
/// are, by id. Can be repeated; whatever is as it should be stays, and connections with it.
///
/// # Errors
/// When something can't be set.
pub fn reload(store: &Store) -> Result<Vec<String>> {
    let (mut ids, mut attachments) = (Vec::new(), Vec::new());
    if !member::directory(store).exists() {
        return Ok(ids);
    }
    Work::new(store)?.exclusively(|work| {
        work.sweep(None)?;
        for bridge in member::bridges(store)? {
            for (id, member) in member::read_all(&bridge)? {
                // Makes the bridge if somebody has deleted it.
                let attachment = std::slice::from_ref(&member.attachment);
                for bridge in work.make_bridges(attachment)? {
                    link::plug_again(&mut work.socket, &member.attachment, bridge)?;
                }
                link::route_loopback(&member.attachment.bridge, work.is_filtered())?;
                ids.push(id);
                attachments.push(member.attachment);
            }
        }
        work.rewrite_rules()?;
        for bridge in member::bridges(store)? {
            for (_, member) in member::read_all(&bridge)? {
                let ports = super::port_rules(Some(&member.attachment), &member.ports);
                work.firewall.settle(&ports)?;
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        work.switch_forwarding_on(&attachments)
    })?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
