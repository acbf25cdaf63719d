//! Putting a container on a network, and taking it off, whether it runs or not.
//!
//! What shall be is a change of the container's record and holds for its next starts too. A running container gets or
//! loses the interface at once. The record of what it has (`state.json`) is written before the kernel is changed, so
//! that the end of the container takes away whatever a killed command has left.

use std::fs::File;

use super::find::Handle;
use super::model::{Process, State};
use super::{Error, Programs, Result, SystemContext, files, start};
use crate::network::{self, DEFAULT_NETWORK, Endpoint, Mode, Network, Setup};
use crate::store::{Event, Kind, Store};

/// Puts a container on one more network.
///
/// # Errors
/// When it is on that network already, has no network namespace of its own, or the address can't be had; nothing has
/// changed then.
pub fn connect(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    endpoint: &Endpoint,
) -> Result<()> {
    let network = network::find(store, &endpoint.network)?;
    let _lock = handle.lock()?;
    let mut handle = handle.latest()?;
    let mut endpoints = endpoints(&handle, &network)?;
    if network.name == DEFAULT_NETWORK && !endpoint.aliases.is_empty() {
        return Err(Error::Invalid(
            "network-scoped aliases are only supported for user-defined networks".to_owned(),
        ));
    }
    if find(store, &endpoints, &network).is_some() {
        return Err(network::Error::Connected {
            container: handle.name().to_owned(),
            network: network.name,
        }
        .into());
    }
    let endpoint = Endpoint {
        network: network.name.clone(),
        ..endpoint.clone()
    };
    if let Some(running) = Running::of(store, &handle)? {
        running.connect(store, programs, &handle, &endpoint)?;
    }
    endpoints.push(endpoint);
    handle.change(|changes| changes.network = Some(Mode::Networks(endpoints)))?;
    tell(store, &handle, &network, "connect");
    Ok(())
}

/// Takes a container off a network.
///
/// # Errors
/// When it is not on that network, or something of it can't be removed.
pub fn disconnect(store: &Store, handle: &Handle, network: &str) -> Result<()> {
    let _lock = handle.lock()?;
    let mut handle = handle.latest()?;
    let network = match network::find(store, network) {
        Err(network::Error::NotFound(name)) if forget(&mut handle, &name)? => return Ok(()),
        network => network?,
    };
    let mut endpoints = endpoints(&handle, &network)?;
    let running = Running::of(store, &handle)?;
    let has = running
        .as_ref()
        .is_some_and(|running| running.position(&network).is_some());
    let position = find(store, &endpoints, &network);
    if position.is_none() && !has {
        return Err(network::Error::NotConnected {
            container: handle.name().to_owned(),
            network: network.name,
        }
        .into());
    }
    if let Some(running) = running {
        running.disconnect(store, &handle, &network)?;
    }
    if let Some(position) = position {
        endpoints.remove(position);
        handle.change(|changes| changes.network = Some(Mode::Networks(endpoints)))?;
    }
    tell(store, &handle, &network, "disconnect");
    Ok(())
}

/// Takes a network that was removed out of the record of a container; returns whether it was in it.
fn forget(handle: &mut Handle, name: &str) -> Result<bool> {
    let Mode::Networks(mut endpoints) = handle.config.options.network.clone() else {
        return Ok(false);
    };
    let before = endpoints.len();
    endpoints.retain(|endpoint| endpoint.network != name);
    if endpoints.len() == before {
        return Ok(false);
    }
    handle.change(|changes| changes.network = Some(Mode::Networks(endpoints)))?;
    Ok(true)
}

/// The networks that a container shall be on, where that can be changed.
fn endpoints(handle: &Handle, network: &Network) -> Result<Vec<Endpoint>> {
    let refuse = |reason: &str| Err(Error::Invalid(reason.to_owned()));
    if network.name == "host" || network.name == "none" {
        return refuse(
            "a container cannot be connected to, or disconnected from, the networks `host` and `none`",
        );
    }
    match &handle.config.options.network {
        Mode::Networks(endpoints) => Ok(endpoints.clone()),
        Mode::None => refuse(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ),
        Mode::Host | Mode::Container(_) => refuse(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ),
    }
}

/// Which of the endpoints is on this network; they name it as the user did.
fn find(store: &Store, endpoints: &[Endpoint], network: &Network) -> Option<usize> {
    endpoints.iter().position(|endpoint| {
        endpoint.network == network.name
            || network::find(store, &endpoint.network).is_ok_and(|other| other.id == network.id)
    })
}

fn tell(store: &Store, handle: &Handle, network: &Network, action: &str) {
    let event = Event::new(Kind::Network, action, &network.id)
        .with("name", &network.name)
        .with("type", network.driver.name())
        .with("container", handle.id());
    store.emit(&event);
}

/// A container that runs, and what it is connected to.
struct Running {
    state: State,
    setup: Setup,
    namespace: File,
}

impl Running {
    /// `None` when it does not run. The caller holds the container's lock.
    fn of(store: &Store, handle: &Handle) -> Result<Option<Running>> {
        let (state, live) = handle.live(store)?;
        let (true, Some(process), Some(setup)) =
            (live.is_running(), state.process, state.network.clone())
        else {
            return Ok(None);
        };
        Ok(namespace(process)?.map(|namespace| Running {
            state,
            setup,
            namespace,
        }))
    }

    fn position(&self, network: &Network) -> Option<usize> {
        let mut attachments = self.setup.attachments.iter();
        attachments.position(|attachment| attachment.network_id == network.id)
    }

    fn connect(
        mut self,
        store: &Store,
        programs: &Programs,
        handle: &Handle,
        endpoint: &Endpoint,
    ) -> Result<()> {
        let id = handle.id();
        // Left by a `connect` that was killed before the record said so.
        let network = network::find(store, &endpoint.network)?;
        if let Some(position) = self.position(&network) {
            self.take_off(store, handle, position)?;
        }
        let before = self.setup.clone();
        self.state.reconnecting = true;
        handle.save(&self.state)?;
        let outcome = network::reserve_one(store, id, endpoint, &mut self.setup)
            .map_err(Error::from)
            .and_then(|()| {
                self.setup.identity = files::identity(handle);
                self.state.network = Some(self.setup.clone());
                handle.save(&self.state)?;
                network::attach(store, id, &self.setup, &self.namespace)?;
                let arguments = &programs.engine_arguments;
                network::names::ensure(store, &programs.engine, arguments, &self.setup)?;
                files::rewrite(store, handle, &before, &self.setup)?;
                let joined = Setup {
                    attachments: self.setup.attachments.last().cloned().into_iter().collect(),
                    ..Setup::default()
                };
                start::tell_networks(store, handle, &joined, "connect");
                Ok(())
            });
        if outcome.is_err()
            && let Some(position) = self.position(&network)
        {
            // The error that matters is the one at hand.
            drop(self.take_off(store, handle, position));
        }
        self.state.reconnecting = false;
        handle.save(&self.state)?;
        outcome
    }

    fn disconnect(mut self, store: &Store, handle: &Handle, network: &Network) -> Result<()> {
        match self.position(network) {
            Some(position) => self.take_off(store, handle, position),
            None => Ok(()),
        }
    }

    /// Takes it off the network of one attachment.
    fn take_off(&mut self, store: &Store, handle: &Handle, position: usize) -> Result<()> {
        let before = self.setup.clone();
        let attachment = self.setup.attachments.remove(position);
        let id = handle.id();
        network::detach(
            store,
            id,
            &before,
            &attachment,
            &self.setup,
            &self.namespace,
        )?;
        let gone = Setup {
            attachments: vec![attachment],
            ..Setup::default()
        };
        network::release(store, id, &gone)?;
        start::tell_networks(store, handle, &gone, "disconnect");
        files::rewrite(store, handle, &before, &self.setup)?;
        self.state.network = Some(self.setup.clone());
        handle.save(&self.state)
    }
}

/// The network namespace of a container's init; `None` when it has ended.
fn namespace(process: Process) -> Result<Option<File>> {
    // Held while the path is opened, so that it is not another process's by then.
    let Some(_descriptor) = process.open() else {
        return Ok(None);
    };
    let path = start::namespace_path(process.pid);
    let namespace = File::open(&path).system("open", path)?;
    Ok(process.is_alive().then_some(namespace))
}
