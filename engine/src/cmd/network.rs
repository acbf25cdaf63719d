//! `network`: the networks that containers can be put on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use qengine::container::Handle;
use qengine::network::{self, CreateOptions};
use qengine::store::Store;
use serde_json::json;

use super::inspect::describe_each;
use super::prune::{Filter, confirm, networks};
use super::{Context, for_each};
use crate::flags::pairs;
use crate::output::{Format, Listing, Row, moment, say};

mod connect;

/// Manage networks
#[derive(Debug, Args)]
pub(crate) struct Network {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(Create),
    #[command(visible_alias = "list")]
    Ls(Ls),
    Inspect(Inspect),
    #[command(visible_alias = "remove")]
    Rm(Rm),
    Prune(Prune),
    Reload(Reload),
    Connect(connect::Connect),
    Disconnect(connect::Disconnect),
}

/// Make a network
#[derive(Debug, Args)]
struct Create {
    /// How it is made; there is "bridge"
    #[arg(short, long, default_value = "bridge")]
    driver: String,
    /// Its addresses, as ADDRESS/LENGTH, one of each family; chosen from what the host does not use when left out
    #[arg(long = "subnet", value_name = "SUBNET")]
    subnets: Vec<String>,
    /// The bridge's own address; the first one of the subnet when left out
    #[arg(long = "gateway", value_name = "ADDRESS")]
    gateways: Vec<IpAddr>,
    /// With IPv6 beside IPv4; an IPv6 subnet means the same
    #[arg(long, value_name = "BOOL", default_value_t = false, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    ipv6: bool,
    /// No way to the outside, and none in
    #[arg(long)]
    internal: bool,
    /// A label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// The network's name
    name: String,
}

/// List networks
#[derive(Debug, Args)]
struct Ls {
    /// Print only ids
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
    /// table, json, a template such as '{{.ID}} {{.Name}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
}

/// Show everything about networks, as JSON
#[derive(Debug, Args)]
struct Inspect {
    /// A template that each is printed through, such as '{{.Id}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Remove networks that no container is on
#[derive(Debug, Args)]
struct Rm {
    /// One that is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

/// Remove every network that no container is on
#[derive(Debug, Args)]
struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

/// Put back packet filter rules and settings that something else has removed
///
/// Rules are one whole for all containers, so all are put back, whichever container is named. Prints the ids of
/// those that were asked for.
#[derive(Debug, Args)]
struct Reload {
    /// Every container that is connected
    #[arg(short, long)]
    all: bool,
    /// Names or ids
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONTAINER"
    )]
    containers: Vec<String>,
}

impl Network {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        match self.command {
            Command::Create(command) => command.run(store),
            Command::Ls(command) => command.run(store),
            Command::Inspect(command) => command.run(store),
            Command::Rm(command) => command.run(store),
            Command::Prune(command) => command.run(store),
            Command::Reload(command) => command.run(context),
            Command::Connect(command) => command.run(context),
            Command::Disconnect(command) => command.run(context),
        }
    }
}

impl Create {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let network = network::create(
            store,
            CreateOptions {
                name: self.name,
                driver: Some(self.driver),
                subnets: self.subnets,
                gateways: self.gateways,
                ipv6: self.ipv6,
                internal: self.internal,
                labels: pairs(&self.labels),
                options: BTreeMap::new(),
            },
        )?;
        say(format_args!("{}", network.id))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Ls {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        let networks = network::list(store)?;
        let id = |network: &network::Network| {
            let shown = if self.no_trunc { 64 } else { 12 };
            network.id.chars().take(shown).collect::<String>()
        };
        if self.quiet {
            for network in &networks {
                say(format_args!("{}", id(network)))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = networks
            .iter()
            .map(|network| {
                Row::new(json!({
                    "ID": id(network),
                    "Name": network.name,
                    "Driver": network.driver.name(),
                    "Scope": "local",
                    "IPv6": network.ipam6.is_some().to_string(),
                    "Internal": network.internal.to_string(),
                    "CreatedAt": moment(network.created),
                }))
                .with_labels(&network.labels)
            })
            .collect();
        Listing {
            headings: &[
                ("ID", "NETWORK ID"),
                ("Name", "NAME"),
                ("Driver", "DRIVER"),
                ("Scope", "SCOPE"),
                ("IPv6", "IPV6"),
                ("Internal", "INTERNAL"),
                ("Labels", "LABELS"),
                ("CreatedAt", "CREATED AT"),
            ],
            columns: &["ID", "Name", "Driver", "Scope"],
        }
        .print(&format, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Inspect {
    fn run(self, store: &Store) -> Result<ExitCode> {
        describe_each(self.format.as_deref(), &self.networks, |name| {
            Ok(serde_json::to_value(network::inspect(store, name)?)?)
        })
    }
}

impl Rm {
    fn run(self, store: &Store) -> Result<ExitCode> {
        for_each(&self.networks, |name| match network::remove(store, name) {
            Err(network::Error::NotFound(_)) if self.force => Ok(name.to_owned()),
            other => Ok(other.map(|_| name.to_owned())?),
        })
    }
}

impl Prune {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let filter = Filter::parse(&self.filter)?;
        let doomed = "all networks not used by at least one container";
        if self.force || confirm(&[doomed])? {
            networks(store, &filter)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Reload {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        let reload = || -> Result<Vec<String>> {
            let ids = network::reload(store)?;
            let programs = &context.programs;
            network::names::ensure_all(store, &programs.engine, &programs.engine_arguments)?;
            Ok(ids)
        };
        if self.all {
            for id in reload()? {
                say(format_args!("{id}"))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut connected = None;
        for_each(&self.containers, |name| {
            let id = Handle::find(store, name)?.id().to_owned();
            // Once is enough for all.
            let ids = match &connected {
                Some(ids) => ids,
                None => connected.insert(reload()?),
            };
            if !ids.contains(&id) {
                anyhow::bail!("container {name} is not connected to a network now");
            }
            Ok(id)
        })
    }
}
