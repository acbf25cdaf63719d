//! Connects containers, disconnects them, and takes away what nobody needs any more.
//!
//! `<run>/network/<bridge>/<container id>` says that the container is, or is about to be, a port of that bridge, and
//! with which ports published. The file is written before the kernel is changed and removed afterwards, so whatever is
//! in the kernel can be found and undone whoever was killed when. A member counts only while its container's directory
//! and its veth interface exist.
//!
//! One lock, `<run>/network/.lock`: shared while a container is plugged into a bridge that is there, or pulled out;
//! exclusive while bridges come and go or members are judged. So containers don't wait for each other, and nobody who
//! is being connected is taken for dead.

use std::fs::{self, DirEntry};
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::firewall::{Firewall, NetworkRule, PortRule, Rules};
use super::link::{self, Link};
use super::netlink::Socket;
use super::{
    Attachment, Error, KernelContext, PublishedPort, Result, Setup, Subnet, address, definition, port,
};
use crate::store::{self, Context, Durability, Lock, Store, make_dir};

/// What a member file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) attachment: Attachment,
    #[serde(default)]
    pub(super) ports: Vec<PublishedPort>,
}

/// The name of the host's end of a container's veth pair on a network: always the same one.
pub(super) fn host_interface(id: &str, network_id: &str) -> String {
    let digest = Sha256::digest(format!("{id} {network_id}"));
    let number = digest.iter().take(6).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    // 15 bytes is what the kernel takes, and `veth…` is what network managers know to leave alone.
    format!("veth{:011x}", number >> 4)
}

/// Connects the network namespace `netns` of the container `id`, which nothing runs in yet, as it was reserved.
///
/// # Errors
/// When any part of it fails; what was done is undone then.
pub fn connect(store: &Store, id: &str, setup: &Setup, netns: impl AsFd) -> Result<()> {
    let netns = netns.as_fd();
    if !setup.own_namespace {
        return Ok(());
    }
    if setup.attachments.is_empty() {
        return link::configure_inside(netns, &[]);
    }
    make_dir(&directory(store))?;
    let mut work = Work::new(store)?;
    let lock = Lock::shared(&lock_path(store))?;
    let bridges = work.find_bridges(&setup.attachments)?;
    match bridges {
        Some(bridges) => {
            let connected = work.plug(id, setup, &bridges, netns);
            let filtered = connected.and_then(|()| work.add_ports(setup));
            drop(lock);
            match filtered {
                Ok(true) => Ok(()),
                // The table is not as we left it: write it anew.
                Ok(false) => work.exclusively(|work| work.rewrite_rules()),
                Err(error) => Err(error),
            }
        }
        None => {
            drop(lock);
            work.exclusively(|work| {
                work.sweep()?;
                let bridges = work.make_bridges(&setup.attachments)?;
                work.plug(id, setup, &bridges, netns)?;
                work.rewrite_rules()?;
                switch_forwarding_on(store)
            })
        }
    }
    .inspect_err(|_| {
        // The error that matters is the one at hand; what this leaves, the next one's sweep takes.
        let _ = disconnect(store, id, setup);
    })
}

/// Takes a container off its networks, and away what only it needed. Fine when that happened before.
///
/// # Errors
/// When something can't be removed; the rest is removed all the same.
pub fn disconnect(store: &Store, id: &str, setup: &Setup) -> Result<()> {
    if setup.attachments.is_empty() || !directory(store).exists() {
        return Ok(());
    }
    let mut work = Work::new(store)?;
    let lock = Lock::shared(&lock_path(store))?;
    let clean = work.remove_ports(setup);
    let unplugged = work.unplug(id, setup);
    let mut needed = clean;
    for attachment in &setup.attachments {
        needed &= work.is_needed(&attachment.bridge)?;
    }
    drop(lock);
    if !needed {
        work.exclusively(|work| {
            work.sweep()?;
            if clean { Ok(()) } else { work.rewrite_rules() }
        })?;
    }
    unplugged
}

/// Takes away what no living container needs: interfaces, bridges, rules, and reservations of containers that are
/// gone.
///
/// # Errors
/// When something can't be removed.
pub fn collect(store: &Store) -> Result<()> {
    if directory(store).exists() {
        Work::new(store)?.exclusively(Work::sweep)?;
    }
    port::collect(store)?;
    address::collect(store)
}

/// The members of a bridge that are really connected, by container id.
pub(super) fn members(store: &Store, bridge: &str) -> Result<Vec<(String, Member)>> {
    let mut work = Work::new(store)?;
    let mut members = Vec::new();
    for (id, member) in read_members(&directory(store).join(bridge))? {
        if work.is_alive(&id, &member)? {
            members.push((id, member));
        }
    }
    Ok(members)
}

/// What all of the above need.
struct Work<'a> {
    store: &'a Store,
    socket: Socket,
    firewall: Firewall,
}

impl<'a> Work<'a> {
    fn new(store: &'a Store) -> Result<Work<'a>> {
        Ok(Work {
            store,
            socket: Socket::open()?,
            firewall: Firewall::new(store),
        })
    }

    /// Runs `body` while nobody else is connecting or disconnecting.
    fn exclusively(&mut self, body: impl FnOnce(&mut Work<'a>) -> Result<()>) -> Result<()> {
        let _lock = Lock::exclusive(&lock_path(self.store))?;
        body(self)
    }

    /// The bridges of all attachments, if every one is there.
    fn find_bridges(&mut self, attachments: &[Attachment]) -> Result<Option<Vec<Link>>> {
        attachments
            .iter()
            .map(|attachment| link::find(&mut self.socket, &attachment.bridge))
            .collect()
    }

    /// The bridges of all attachments, made where they are missing.
    fn make_bridges(&mut self, attachments: &[Attachment]) -> Result<Vec<Link>> {
        let mut bridges = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            let bridge = match link::find(&mut self.socket, &attachment.bridge)? {
                Some(bridge) => bridge,
                None => self.make_bridge(attachment)?,
            };
            bridges.push(bridge);
        }
        Ok(bridges)
    }

    fn make_bridge(&mut self, attachment: &Attachment) -> Result<Link> {
        let network = definition::find(self.store, &attachment.network)?;
        let ipam = network.bridge()?;
        let routes = link::host_routes(&mut self.socket)?;
        definition::check_conflict(&network, &routes)?;
        let mtu = link::outward_mtu(&mut self.socket, &routes)?;
        // Before the bridge, because a sweep finds bridges by their directories.
        make_dir(&directory(self.store).join(&attachment.bridge))?;
        link::create_bridge(&mut self.socket, &attachment.bridge, ipam.gateway, ipam.subnet, mtu)
    }

    /// Makes the container's interfaces and configures them.
    fn plug(
        &mut self,
        id: &str,
        setup: &Setup,
        bridges: &[Link],
        netns: BorrowedFd<'_>,
    ) -> Result<()> {
        for (position, (attachment, bridge)) in setup.attachments.iter().zip(bridges).enumerate() {
            let member = Member {
                attachment: attachment.clone(),
                ports: if position == 0 { setup.ports.clone() } else { Vec::new() },
            };
            let path = member_path(self.store, &attachment.bridge, id);
            store::write_json(&path, &member, Durability::Volatile)?;
            let made = link::create_pair(&mut self.socket, attachment, *bridge, netns);
            if is_exists(&made) {
                // Left by a start of this very container that was killed; the name is nobody else's.
                link::delete(&mut self.socket, &attachment.host_interface)?;
                link::create_pair(&mut self.socket, attachment, *bridge, netns)?;
            } else {
                made?;
            }
        }
        link::configure_inside(netns, &setup.attachments)
    }

    /// Removes the container's interfaces and member files.
    fn unplug(&mut self, id: &str, setup: &Setup) -> Result<()> {
        let mut outcome = Ok(());
        for attachment in &setup.attachments {
            let deleted = link::delete(&mut self.socket, &attachment.host_interface);
            if deleted.is_ok() {
                remove_member(&member_path(self.store, &attachment.bridge, id))?;
            }
            outcome = outcome.and(deleted);
        }
        outcome
    }

    /// Adds the rules of published ports to those that are there; `false` when they could not be added.
    fn add_ports(&mut self, setup: &Setup) -> Result<bool> {
        let rules = port_rules(setup.attachments.first(), &setup.ports);
        Ok(self.firewall.is_present() && (rules.is_empty() || self.firewall.add_ports(&rules).is_ok()))
    }

    /// Removes the rules of published ports; `false` when they could not be removed one by one.
    fn remove_ports(&mut self, setup: &Setup) -> bool {
        let rules = port_rules(setup.attachments.first(), &setup.ports);
        rules.is_empty() || self.firewall.remove_ports(&rules).is_ok()
    }

    /// Whether a living container is a member of the bridge. Stops at the first.
    fn is_needed(&mut self, bridge: &str) -> Result<bool> {
        for (id, member) in read_members(&directory(self.store).join(bridge))? {
            if self.is_alive(&id, &member)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_alive(&mut self, id: &str, member: &Member) -> Result<bool> {
        Ok(self.store.container(id).exists()
            && link::find(&mut self.socket, &member.attachment.host_interface)?.is_some())
    }

    /// Removes members that are dead, bridges without members, and their rules. Only under the exclusive lock.
    fn sweep(&mut self) -> Result<()> {
        let mut changed = false;
        for bridge in entries(&directory(self.store))? {
            if !bridge.path().is_dir() {
                continue;
            }
            let mut needed = false;
            for (id, member) in read_members(&bridge.path())? {
                if self.is_alive(&id, &member)? {
                    needed = true;
                    continue;
                }
                link::delete(&mut self.socket, &member.attachment.host_interface)?;
                remove_member(&bridge.path().join(id))?;
                changed = true;
            }
            if !needed {
                link::delete(&mut self.socket, &bridge.file_name().to_string_lossy())?;
                fs::remove_dir_all(bridge.path()).context("remove", &bridge.path())?;
                changed = true;
            }
        }
        if changed { self.rewrite_rules() } else { Ok(()) }
    }

    /// Replaces all rules by those that the member files ask for; none at all when there are no members.
    fn rewrite_rules(&mut self) -> Result<()> {
        let mut rules = Rules::default();
        for bridge in entries(&directory(self.store))? {
            if !bridge.path().is_dir() {
                continue;
            }
            for (_, member) in read_members(&bridge.path())? {
                rules.add_network(network_rule(&member.attachment));
                rules.ports.extend(port_rules(Some(&member.attachment), &member.ports));
            }
        }
        if rules.networks.is_empty() {
            self.firewall.clear()
        } else {
            self.firewall.replace(&rules)
        }
    }
}

fn network_rule(attachment: &Attachment) -> NetworkRule {
    let address = match attachment.address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    NetworkRule {
        bridge: attachment.bridge.clone(),
        subnet: Subnet::containing(address, attachment.prefix_length),
        internal: attachment.internal,
    }
}

fn port_rules(attachment: Option<&Attachment>, ports: &[PublishedPort]) -> Vec<PortRule> {
    let Some(IpAddr::V4(target)) = attachment.map(|attachment| attachment.address) else {
        return Vec::new();
    };
    ports
        .iter()
        .filter_map(|port| match port.host_ip {
            IpAddr::V4(host) => Some(PortRule {
                host: (!host.is_unspecified()).then_some(host),
                protocol: port.protocol,
                host_port: port.host_port,
                target,
                target_port: port.container_port,
            }),
            IpAddr::V6(_) => None,
        })
        .collect()
}

/// Lets the kernel pass packets on between interfaces. It stays on, as others may rely on it by the time we could
/// switch it off; `<run>/network/.forwarding` tells that it was us.
fn switch_forwarding_on(store: &Store) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    let value = fs::read(path).context("read", path)?;
    if !value.starts_with(b"0") {
        return Ok(());
    }
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(b"1"))
        .kernel("switch on", "IP forwarding")?;
    let record = directory(store).join(".forwarding");
    Ok(store::write_atomic(&record, b"switched on\n", Durability::Volatile)?)
}

fn is_exists(outcome: &Result<()>) -> bool {
    matches!(outcome, Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST))
}

fn directory(store: &Store) -> PathBuf {
    store.run().join("network")
}

fn lock_path(store: &Store) -> PathBuf {
    directory(store).join(".lock")
}

fn member_path(store: &Store, bridge: &str, id: &str) -> PathBuf {
    directory(store).join(bridge).join(id)
}

fn remove_member(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Ok(Err(error).context("remove", path)?),
        _ => Ok(()),
    }
}

/// All members of a bridge, dead or alive. One that can't be read was never written in full, hence never plugged in.
fn read_members(directory: &Path) -> Result<Vec<(String, Member)>> {
    let mut members = Vec::new();
    for entry in entries(directory)? {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        if let Ok(Some(member)) = store::read_json(&entry.path()) {
            members.push((id, member));
        }
    }
    Ok(members)
}

fn entries(directory: &Path) -> Result<Vec<DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => Ok(other
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .context("list", directory)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_and_differ() {
        let one = host_interface("aa", "net");
        assert_eq!(one.len(), 15);
        assert_eq!(one, host_interface("aa", "net"));
        assert_ne!(one, host_interface("aa", "other"));
        assert_ne!(one, host_interface("ab", "net"));
    }
}
