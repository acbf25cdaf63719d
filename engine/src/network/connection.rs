//! Connects containers, disconnects them, and takes away what nobody needs any more.
//!
//! Who is connected is in member files ([`member`]); a member counts only while its container's directory and its veth
//! interface exist.
//!
//! One lock, `<run>/network/.lock`: shared while a container is plugged into a bridge that is there, or pulled out;
//! exclusive while bridges come and go or members are judged. So containers don't wait for each other, and nobody who
//! is being connected is taken for dead.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::firewall::{Firewall, NetworkRule, PortRule, Rules};
use super::link::{self, Link, WaysOut};
use super::member::{self, Member, lock_path};
use super::netlink::Socket;
use super::{
    Attachment, Error, PacketFilter, PublishedPort, Result, Setup, Subnet, Subnet6, address,
    definition, names, port,
};
use crate::store::{Context, Lock, Store, make_dir};

mod forwarding;
mod reload;

pub use reload::{packet_filter, reload};

/// The name of the host's end of a container's veth pair on a network: always the same one.
pub(super) fn host_interface(id: &str, network_id: &str) -> String {
    let digest = Sha256::digest(format!("{id} {network_id}"));
    let number = digest
        .iter()
        .take(6)
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
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
        return link::configure_inside(netns, &[], WaysOut::default());
    }
    plug_in(store, id, Part::whole(setup), netns)
}

/// Connects a running container to one more network: the last attachment of `setup`.
///
/// # Errors
/// When any part of it fails; what was done is undone then.
pub fn attach(store: &Store, id: &str, setup: &Setup, netns: impl AsFd) -> Result<()> {
    let last = setup.attachments.len().saturating_sub(1);
    let part = Part {
        setup,
        attachments: &setup.attachments[last..],
    };
    plug_in(store, id, part, netns.as_fd())
}

/// Takes a running container off the network of one attachment; `rest` is what remains of its set-up. Published ports
/// that led there lead to its next network then, and so does the default route.
///
/// # Errors
/// When something can't be removed or changed.
pub fn detach(
    store: &Store,
    id: &str,
    setup: &Setup,
    attachment: &Attachment,
    rest: &Setup,
    netns: impl AsFd,
) -> Result<()> {
    let part = Part {
        setup,
        attachments: std::slice::from_ref(attachment),
    };
    pull_out(store, id, part)?;
    let ports_move = part.has_ports() && !setup.ports.is_empty();
    if let (true, Some(next)) = (ports_move, rest.attachments.first()) {
        let mut work = Work::new(store)?;
        work.exclusively(|work| {
            member::write(store, id, &Part::whole(rest).member(next))?;
            work.rewrite_rules()?;
            work.settle(Part::whole(rest))
        })?;
    }
    link::reroute_inside(netns.as_fd(), WaysOut::of(&rest.attachments))
}

/// Takes a container off its networks, and away what only it needed. Fine when that happened before.
///
/// # Errors
/// When something can't be removed; the rest is removed all the same.
pub fn disconnect(store: &Store, id: &str, setup: &Setup) -> Result<()> {
    pull_out(store, id, Part::whole(setup))
}

/// Some of a container's attachments: those that come or go.
#[derive(Clone, Copy)]
struct Part<'a> {
    setup: &'a Setup,
    attachments: &'a [Attachment],
}

impl<'a> Part<'a> {
    fn whole(setup: &'a Setup) -> Part<'a> {
        Part {
            setup,
            attachments: &setup.attachments,
        }
    }

    /// Whether the published ports lead to one of these.
    fn has_ports(self) -> bool {
        let first = self.setup.attachments.first();
        self.attachments.iter().any(|one| Some(one) == first)
    }

    fn port_rules(self) -> Vec<PortRule> {
        if self.has_ports() {
            port_rules(self.setup.attachments.first(), &self.setup.ports)
        } else {
            Vec::new()
        }
    }

    fn member(self, attachment: &Attachment) -> Member {
        let is_first = self.setup.attachments.first() == Some(attachment);
        Member {
            attachment: attachment.clone(),
            ports: if is_first {
                self.setup.ports.clone()
            } else {
                Vec::new()
            },
            identity: self.setup.identity.clone(),
        }
    }

    fn is_on(self, bridge: &Path) -> bool {
        let name = bridge.file_name();
        self.attachments
            .iter()
            .any(|attachment| name == Some(attachment.bridge.as_ref()))
    }
}

fn plug_in(store: &Store, id: &str, part: Part<'_>, netns: BorrowedFd<'_>) -> Result<()> {
    make_dir(&member::directory(store))?;
    let mut work = Work::new(store)?;
    let lock = Lock::shared(&lock_path(store))?;
    let bridges = work.find_bridges(part.attachments)?;
    match bridges {
        Some(bridges) => {
            let connected = work.plug(id, part, &bridges, netns);
            let filtered = connected.and_then(|()| work.add_ports(part));
            drop(lock);
            match filtered {
                Ok(true) => work.settle(part),
                // The table is not as we left it, or a dead container has our ports in it: write it anew.
                Ok(false) => work.exclusively(|work| {
                    work.sweep(None)?;
                    work.rewrite_rules()?;
                    work.settle(part)
                }),
                Err(error) => Err(error),
            }
        }
        None => {
            drop(lock);
            work.exclusively(|work| {
                work.sweep(None)?;
                let bridges = work.make_bridges(part.attachments)?;
                work.plug(id, part, &bridges, netns)?;
                work.rewrite_rules()?;
                work.settle(part)?;
                work.switch_forwarding_on(part.attachments)
            })
        }
    }
    .inspect_err(|_| {
        // The error that matters is the one at hand; what this leaves, the next one's sweep takes.
        let _ = pull_out(store, id, part);
    })
}

fn pull_out(store: &Store, id: &str, part: Part<'_>) -> Result<()> {
    if part.attachments.is_empty() || !member::directory(store).exists() {
        return Ok(());
    }
    let mut work = Work::new(store)?;
    let lock = Lock::shared(&lock_path(store))?;
    if work.is_last(id, part)? {
        drop(lock);
        return work.exclusively(|work| work.sweep(Some((id, part))));
    }
    let outcome = work.unplug(id, part);
    // Whoever was there may have been leaving at the same time.
    let is_last = work.is_last(id, part)?;
    drop(lock);
    if is_last || outcome.is_err() {
        return work.exclusively(|work| work.sweep(Some((id, part))));
    }
    Ok(())
}

/// Adds rules that lead to addresses of the host itself, to those that are there.
pub(super) fn publish(store: &Store, rules: &[PortRule]) -> Result<()> {
    let mut work = Work::new(store)?;
    let lock = Lock::shared(&lock_path(store))?;
    if work.firewall.is_present() && work.firewall.add_ports(rules).is_ok() {
        return Ok(());
    }
    drop(lock);
    // Another port than before, or a table that somebody has flushed.
    work.exclusively(Work::rewrite_rules)
}

/// Takes away what no living container needs: interfaces, bridges, rules, and reservations of containers that are
/// gone.
///
/// # Errors
/// When something can't be removed.
pub fn collect(store: &Store) -> Result<()> {
    if member::directory(store).exists() {
        Work::new(store)?.exclusively(|work| work.sweep(None))?;
    }
    port::collect(store)?;
    address::collect(store)
}

/// The members of a bridge that are really connected, by container id.
pub(super) fn members(store: &Store, bridge: &str) -> Result<Vec<(String, Member)>> {
    let mut work = Work::new(store)?;
    let mut members = Vec::new();
    for (id, member) in member::read_all(&member::of_bridge(store, bridge))? {
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
            firewall: Firewall::open(store)?,
        })
    }

    /// Runs `body` while nobody else is connecting or disconnecting.
    fn exclusively(&mut self, body: impl FnOnce(&mut Work<'a>) -> Result<()>) -> Result<()> {
        let _lock = Lock::exclusive(&lock_path(self.store))?;
        body(self)
    }

    /// The bridges of all attachments, if every one is there, and a place for its members too.
    fn find_bridges(&mut self, attachments: &[Attachment]) -> Result<Option<Vec<Link>>> {
        let mut bridges = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            let bridge = link::find(&mut self.socket, &attachment.bridge)?;
            let Some(bridge) =
                bridge.filter(|_| member::of_bridge(self.store, &attachment.bridge).exists())
            else {
                return Ok(None);
            };
            bridges.push(bridge);
        }
        Ok(Some(bridges))
    }

    /// The bridges of all attachments, made where they are missing.
    fn make_bridges(&mut self, attachments: &[Attachment]) -> Result<Vec<Link>> {
        let mut bridges = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            // Before the bridge, because a sweep finds bridges by their directories.
            make_dir(&member::of_bridge(self.store, &attachment.bridge))?;
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
        ipam.check(&[], &routes)?;
        let mtu = link::outward_mtu(&mut self.socket, &routes)?;
        let name = &attachment.bridge;
        let bridge = link::create_bridge(&mut self.socket, name, ipam, network.ipam6, mtu)?;
        link::route_loopback(name, self.is_filtered())?;
        Ok(bridge)
    }

    fn is_filtered(&self) -> bool {
        self.firewall.filter() != PacketFilter::None
    }

    /// Lets the kernel pass packets on between interfaces; not without a packet filter, which would have to keep
    /// networks apart.
    fn switch_forwarding_on(&self, attachments: &[Attachment]) -> Result<()> {
        if !self.is_filtered() {
            return Ok(());
        }
        if attachments.iter().any(|one| one.ipv6.is_some()) {
            forwarding::switch_ipv6_on()?;
        }
        forwarding::switch_on(self.store)
    }

    /// Makes the container's interfaces and configures them.
    fn plug(
        &mut self,
        id: &str,
        part: Part<'_>,
        bridges: &[Link],
        netns: BorrowedFd<'_>,
    ) -> Result<()> {
        for (attachment, bridge) in part.attachments.iter().zip(bridges) {
            member::write(self.store, id, &part.member(attachment))?;
            if !self.is_filtered() {
                // The bridge may be of a time when there was a filter that made it harmless.
                link::route_loopback(&attachment.bridge, false)?;
            }
            let made = link::create_pair(&mut self.socket, attachment, *bridge, netns);
            if is_exists(&made) {
                // Left by a start of this very container that was killed; the name is nobody else's.
                link::delete(&mut self.socket, &attachment.host_interface)?;
                link::create_pair(&mut self.socket, attachment, *bridge, netns)?;
            } else {
                made?;
            }
        }
        let ways_out = WaysOut::of(&part.setup.attachments);
        link::configure_inside(netns, part.attachments, ways_out)?;
        part.attachments.iter().try_for_each(|attachment| {
            link::wait_until_operational(&mut self.socket, &attachment.host_interface)
        })
    }

    /// Removes the container's interfaces, rules and member files.
    fn unplug(&mut self, id: &str, part: Part<'_>) -> Result<()> {
        let rules = part.port_rules();
        let (firewall, socket) = (&self.firewall, &mut self.socket);
        // Both mostly wait for the kernel to wait for others, which can be done at the same time.
        let (filtered, deleted) = at_once(
            || {
                if rules.is_empty() {
                    Ok(())
                } else {
                    firewall.remove_ports(&rules)
                }
            },
            || {
                let interfaces = part
                    .attachments
                    .iter()
                    .map(|attachment| &attachment.host_interface);
                interfaces
                    .map(|name| link::delete(socket, name))
                    .fold(Ok(()), Result::and)
            },
        );
        // What could not be removed keeps its file, so that it is found again.
        deleted.and(filtered)?;
        for attachment in part.attachments {
            member::remove(&member::of_bridge(self.store, &attachment.bridge).join(id))?;
        }
        Ok(())
    }

    /// Adds the rules of published ports to those that are there; `false` when they could not be added.
    fn add_ports(&mut self, part: Part<'_>) -> Result<bool> {
        let rules = part.port_rules();
        Ok(self.firewall.is_present()
            && (rules.is_empty() || self.firewall.add_ports(&rules).is_ok()))
    }

    /// Makes the ports' rules take effect on what is under way.
    fn settle(&self, part: Part<'_>) -> Result<()> {
        self.firewall.settle(&part.port_rules())
    }

    /// Whether one of the container's bridges has no other member that lives.
    fn is_last(&mut self, id: &str, part: Part<'_>) -> Result<bool> {
        for attachment in part.attachments {
            let mut needed = false;
            for (other, member) in
                member::read_all(&member::of_bridge(self.store, &attachment.bridge))?
            {
                // Stops at the first.
                if other != id && self.is_alive(&other, &member)? {
                    needed = true;
                    break;
                }
            }
            if !needed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_alive(&mut self, id: &str, member: &Member) -> Result<bool> {
        Ok(self.store.container(id).exists()
            && link::find(&mut self.socket, &member.attachment.host_interface)?.is_some())
    }

    /// Removes members that are dead, and `leaving` with them, bridges without members, and their rules. Only under
    /// the exclusive lock.
    fn sweep(&mut self, leaving: Option<(&str, Part<'_>)>) -> Result<()> {
        let mut dead: Vec<PathBuf> = Vec::new();
        let (mut interfaces, mut bridges) = (Vec::new(), Vec::new());
        let mut rules = Rules::default();
        for bridge in member::bridges(self.store)? {
            let mut interfaces_here = Vec::new();
            let mut needed = false;
            let leaves =
                |other: &str| leaving.is_some_and(|(id, part)| id == other && part.is_on(&bridge));
            for (id, member) in member::read_all(&bridge)? {
                if !leaves(&id) && self.is_alive(&id, &member)? {
                    needed = true;
                    rules.add(&member);
                } else {
                    dead.push(bridge.join(id));
                    interfaces_here.push(member.attachment.host_interface);
                }
            }
            if needed {
                interfaces.append(&mut interfaces_here);
                rules.ports.extend(names::redirects(&bridge));
            } else {
                bridges.push(bridge);
            }
        }
        if dead.is_empty() && bridges.is_empty() {
            return Ok(());
        }
        let resolvers: Vec<_> = bridges.iter().filter_map(|path| names::end(path)).collect();
        let (firewall, socket) = (&self.firewall, &mut self.socket);
        let (filtered, deleted) = at_once(
            || apply(firewall, &rules),
            || {
                let ports = interfaces.iter().map(|name| link::delete(socket, name));
                let outcome = ports.fold(Ok(()), Result::and);
                let names = bridges.iter().filter_map(|path| path.file_name());
                names
                    .map(|name| link::delete_bridge(socket, &name.to_string_lossy()))
                    .fold(outcome, Result::and)
            },
        );
        resolvers.into_iter().for_each(names::Ending::wait);
        deleted.and(filtered)?;
        for path in dead {
            member::remove(&path)?;
        }
        for bridge in bridges {
            fs::remove_dir_all(&bridge).context("remove", &bridge)?;
        }
        Ok(())
    }

    /// Replaces all rules by those that living members ask for. Only under the exclusive lock.
    fn rewrite_rules(&mut self) -> Result<()> {
        let mut rules = Rules::default();
        for bridge in member::bridges(self.store)? {
            for (id, member) in member::read_all(&bridge)? {
                if self.is_alive(&id, &member)? {
                    rules.add(&member);
                }
            }
            rules.ports.extend(names::redirects(&bridge));
        }
        apply(&self.firewall, &rules)
    }
}

/// Makes the rules be these; none at all when there are no networks.
fn apply(firewall: &Firewall, rules: &Rules) -> Result<()> {
    if rules.networks.is_empty() {
        firewall.clear()
    } else {
        firewall.replace(rules)
    }
}

impl Rules {
    /// Adds what a member needs.
    fn add(&mut self, member: &Member) {
        self.add_network(network_rule(&member.attachment));
        self.ports
            .extend(port_rules(Some(&member.attachment), &member.ports));
    }
}

/// Runs both at the same time, the first in a thread of its own.
fn at_once<A: Send, B>(first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        let first = first
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (first, second)
    })
}

fn network_rule(attachment: &Attachment) -> NetworkRule {
    let address = match attachment.address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    NetworkRule {
        bridge: attachment.bridge.clone(),
        subnet: Subnet::containing(address, attachment.prefix_length),
        subnet6: attachment
            .ipv6
            .map(|side| Subnet6::containing(side.address, side.prefix_length)),
        internal: attachment.internal,
    }
}

fn port_rules(attachment: Option<&Attachment>, ports: &[PublishedPort]) -> Vec<PortRule> {
    let Some(attachment) = attachment else {
        return Vec::new();
    };
    let target = |host: IpAddr| match host {
        IpAddr::V4(_) => Some(attachment.address),
        IpAddr::V6(_) => Some(IpAddr::V6(attachment.ipv6?.address)),
    };
    ports
        .iter()
        .filter_map(|port| {
            Some(PortRule {
                host: (!port.host_ip.is_unspecified()).then_some(port.host_ip),
                protocol: port.protocol,
                host_port: port.host_port,
                target: target(port.host_ip)?,
                target_port: port.container_port,
            })
        })
        .collect()
}

fn is_exists(outcome: &Result<()>) -> bool {
    matches!(outcome, Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST))
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
