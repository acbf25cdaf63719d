//! `network connect` and `network disconnect`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::connect;
use qengine::container::find::Handle;
use qengine::network;

use super::super::Context;
use crate::flags::endpoint::Place;

/// Connect a container to a network
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  qengine network connect --alias db backend postgres")]
pub(crate) struct Connect {
    /// Address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address on the network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Hardware address of the interface
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Further name of the container on the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Name or id of the network
    network: String,
    /// Name or id of the container, running or not
    container: String,
}

/// Take a container off a network
#[derive(Debug, Args)]
pub(crate) struct Disconnect {
    /// A container that is not there is no failure: what is left of it on the network goes
    #[arg(short, long)]
    force: bool,
    /// Name or id of the network
    network: String,
    /// Name or id of the container, running or not
    container: String,
}

impl Connect {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        let mut endpoint = network::Endpoint::new(&self.network);
        let place = Place {
            aliases: &self.alias,
            ip: self.ip.as_deref(),
            ip6: self.ip6.as_deref(),
            mac: self.mac_address.as_deref(),
        };
        place.apply(&mut endpoint)?;
        let handle = Handle::find(store, &self.container)?;
        connect::connect(store, &context.programs, &handle, &endpoint)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Disconnect {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        match Handle::find(store, &self.container) {
            Err(qengine::container::Error::NotFound(_)) if self.force => network::collect(store)?,
            handle => connect::disconnect(store, &handle?, &self.network)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
