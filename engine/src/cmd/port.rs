//! `port`: where a container's ports are published.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::find::Handle;
use qengine::network::{Protocol, PublishedPort};
use qengine::store::Store;

use crate::output::say;

/// Show where a container's ports are published
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  qengine port web          80/tcp -> 0.0.0.0:8080
  qengine port web 80       0.0.0.0:8080
  qengine port web 53/udp   0.0.0.0:53")]
pub(crate) struct Port {
    /// Name or id
    container: String,
    /// Only this port of the container; tcp when no protocol is given
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

impl Port {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let wanted = self.port.as_deref().map(parse).transpose()?;
        let handle = Handle::find(store, &self.container)?;
        let (state, live) = handle.live(store)?;
        let setup = state.network.filter(|_| live.is_running());
        let mut ports = setup.unwrap_or_default().ports;
        ports.sort_by_key(|port| {
            (
                port.container_port,
                port.protocol,
                port.host_ip,
                port.host_port,
            )
        });
        let host = |port: &PublishedPort| std::net::SocketAddr::new(port.host_ip, port.host_port);
        let Some((number, protocol)) = wanted else {
            for port in &ports {
                say(format_args!(
                    "{}/{} -> {}",
                    port.container_port,
                    port.protocol,
                    host(port)
                ))?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        ports.retain(|port| port.container_port == number && port.protocol == protocol);
        if ports.is_empty() {
            bail!(
                "no public port '{number}/{protocol}' published for {}",
                self.container
            );
        }
        for port in &ports {
            say(format_args!("{}", host(port)))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = match text.split_once('/') {
        Some((number, protocol)) => (number, protocol.parse().map_err(anyhow::Error::msg)?),
        None => (text, Protocol::Tcp),
    };
    match number.parse::<u16>() {
        Ok(number) => Ok((number, protocol)),
        Err(_) => {
            bail!("invalid port {text:?}: expected a number, or one with a protocol like 53/udp")
        }
    }
}
