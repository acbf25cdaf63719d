//! Which sockets there shall be, and where they lead.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;

use super::watch::{Changes, Watch};
use super::{Error, Forward, Listen, Result};
use crate::container::Handle;
use crate::container::model::Process;
use crate::network::{self, Mode};
use crate::store::Store;

/// Where a socket leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The container's id.
    pub(super) container: String,
    /// Its address and port; none while it does not run.
    pub(super) address: Option<SocketAddr>,
    /// A process in whose network namespace that address is to be looked for, if not in the host's.
    pub(super) inside: Option<Process>,
}

impl Target {
    /// Makes a socket where the address can be reached from.
    pub(super) fn socket<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let Some(process) = self.inside else {
            return make();
        };
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", process.pid))?;
        // Looked at after the namespace is open: from here on it is the right one.
        if !process.is_alive() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        network::inside(namespace.as_fd(), make).map_err(io::Error::other)?
    }
}

/// All sockets, and where each leads.
pub(super) type Wanted = BTreeMap<Listen, Target>;

/// What a forwarder serves.
#[derive(Debug)]
pub(super) enum Source {
    /// Every published port.
    Published,
    /// One port of the container with this id.
    Container(String, Forward),
}

impl Source {
    /// What there shall be now; whatever changes it afterwards is seen by `watch`.
    pub(super) fn wanted(&self, store: &Store, watch: &Watch) -> Result<Wanted> {
        match self {
            Source::Published => published(store, watch),
            Source::Container(id, forward) => {
                let target = container(store, watch, id, forward.container_port)?;
                let sockets = forward.listens().into_iter();
                Ok(sockets.map(|listen| (listen, target.clone())).collect())
            }
        }
    }
}

fn published(store: &Store, watch: &Watch) -> Result<Wanted> {
    // Watched before they are read, so that no change falls in between.
    let (all, bridges) = network::directories(store)?;
    watch.add(&all, Changes::Directories)?;
    for bridge in bridges {
        watch.add(&bridge, Changes::Files)?;
    }
    let mut wanted = Wanted::new();
    for publisher in network::publishers(store)? {
        // What has no way to the outside has none from there.
        if publisher.attachment.internal {
            continue;
        }
        for port in publisher.ports {
            let listen = Listen {
                protocol: port.protocol,
                address: SocketAddr::new(port.host_ip, port.host_port),
            };
            let target = Target {
                container: publisher.id.clone(),
                address: Some(SocketAddr::new(
                    publisher.attachment.address,
                    port.container_port,
                )),
                inside: None,
            };
            wanted.insert(listen, target);
        }
    }
    Ok(wanted)
}

/// Where a port of a container is to be found: at its address, else through its own loopback interface.
fn container(store: &Store, watch: &Watch, id: &str, port: u16) -> Result<Target> {
    let removed = || Error::Removed(id.chars().take(12).collect());
    if !watch.add(&store.container(id), Changes::Files)? {
        return Err(removed());
    }
    let handle = Handle::open(store, id)?.ok_or_else(removed)?;
    let (state, live) = handle.live(store)?;
    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let mut target = Target {
        container: id.to_owned(),
        address: None,
        inside: None,
    };
    if !live.is_running() {
        return Ok(target);
    }
    match &handle.config.options.network {
        Mode::Host => target.address = Some(loopback),
        Mode::Container(other) => {
            // Its end is not ours: a container that joined it lives on in the same namespace.
            if let Ok(of_other) = container(store, watch, other, port) {
                target.address = of_other.address;
                target.inside = of_other.inside;
            }
        }
        Mode::None | Mode::Networks(_) => {
            let setup = state.network.unwrap_or_default();
            match setup.attachments.first() {
                Some(attachment) => {
                    target.address = Some(SocketAddr::new(attachment.address, port));
                }
                None => {
                    target.address = Some(loopback);
                    target.inside = state.process;
                }
            }
        }
    }
    Ok(target)
}
