//! `volume`: directories that outlive containers.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use qengine::container::create::new_volume_name;
use qengine::container::find::all;
use qengine::container::volumes::users;
use qengine::store::Store;
use qengine::volume::{self, CreateOptions, Volume};
use serde_json::{Value, json};

use super::for_each;
use super::inspect::describe_each;
use super::prune::confirm;
use crate::flags::pairs;
use crate::output::{Format, Listing, Row, say};

/// Manage volumes
#[derive(Debug, Args)]
#[command(
    name = "volume",
    after_help = "\
Examples:
  qengine volume create data
  qengine run --rm -v data:/data base sh -c 'echo kept > /data/file'
  qengine volume ls --filter dangling=true
  qengine volume create --opt type=tmpfs --opt device=tmpfs --opt o=size=64m scratch"
)]
pub(crate) struct VolumeArgs {
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
    Exists(Exists),
}

/// Make a volume; one of that name that is there already stays as it is
#[derive(Debug, Args)]
struct Create {
    /// How it is kept; there is "local"
    #[arg(short, long, default_value = volume::DRIVER)]
    driver: String,
    /// A label
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// What is mounted when it is used: type=tmpfs|nfs|none|…, device=…, o=OPTION,…
    #[arg(short = 'o', long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// The volume's name; made up when left out, and then it is an anonymous one
    name: Option<String>,
}

/// List volumes
#[derive(Debug, Args)]
struct Ls {
    /// Print only names
    #[arg(short, long)]
    quiet: bool,
    /// Only those that fit: dangling=true|false, name=PART, label=KEY[=VALUE], driver=NAME
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// table, json, a template such as '{{.Name}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
}

/// Show everything about volumes, as JSON
#[derive(Debug, Args)]
struct Inspect {
    /// A template that each is printed through, such as '{{.Mountpoint}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

/// Remove volumes that no container mentions
#[derive(Debug, Args)]
struct Rm {
    /// One that is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

/// Remove the anonymous volumes that no container mentions
#[derive(Debug, Args)]
struct Prune {
    /// Those with names of their own too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that fit: label=KEY[=VALUE], label!=KEY[=VALUE], all=true
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Answer by the exit code whether there is a volume of that name
#[derive(Debug, Args)]
struct Exists {
    /// The name
    volume: String,
}

impl VolumeArgs {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        match self.command {
            Command::Create(command) => command.run(store),
            Command::Ls(command) => command.run(store),
            Command::Inspect(command) => command.run(store),
            Command::Rm(command) => command.run(store),
            Command::Prune(command) => command.run(store),
            Command::Exists(command) => command.run(store),
        }
    }
}

impl Create {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let anonymous = self.name.as_deref().is_none_or(str::is_empty);
        let name = match self.name {
            Some(name) if !anonymous => name,
            _ => new_volume_name()?,
        };
        let volume = volume::create(
            store,
            &CreateOptions {
                name,
                driver: Some(self.driver),
                labels: pairs(&self.labels),
                options: pairs(&self.options),
                anonymous,
            },
        )?;
        say(format_args!("{}", volume.name))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Ls {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        let filters = self
            .filters
            .iter()
            .map(|text| Filter::parse(text))
            .collect::<Result<Vec<_>>>()?;
        let used = if filters
            .iter()
            .any(|filter| matches!(filter, Filter::Dangling(_)))
        {
            used_names(store)?
        } else {
            BTreeSet::new()
        };
        let mut volumes = volume::list(store)?;
        volumes.retain(|volume| filters.iter().all(|filter| filter.accepts(volume, &used)));
        if self.quiet {
            for volume in &volumes {
                say(format_args!("{}", volume.name))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Row> = volumes.iter().map(|volume| row(store, volume)).collect();
        Listing {
            headings: &[
                ("Driver", "DRIVER"),
                ("Name", "VOLUME NAME"),
                ("Mountpoint", "MOUNTPOINT"),
                ("Scope", "SCOPE"),
                ("Labels", "LABELS"),
            ],
            columns: &["Driver", "Name"],
        }
        .print(&format, &rows)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Names of all volumes that containers mention.
fn used_names(store: &Store) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for handle in all(store)? {
        let volumes = handle.config.options.volumes.iter();
        names.extend(volumes.filter_map(|volume| volume.name().map(str::to_owned)));
    }
    Ok(names)
}

fn row(store: &Store, volume: &Volume) -> Row {
    Row::new(json!({
        "Availability": "N/A",
        "Driver": volume::DRIVER,
        "Group": "N/A",
        "Links": "N/A",
        "Mountpoint": volume.data(store),
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    }))
    .with_labels(&volume.shown_labels())
}

/// One `--filter`.
enum Filter {
    Dangling(bool),
    Name(String),
    Driver(String),
    /// Key, value if one was given, and whether it has to be there.
    Label(String, Option<String>, bool),
    All(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Filter> {
        let Some((key, value)) = text.split_once('=') else {
            bail!("invalid argument {text:?} for \"--filter\" flag: expected KEY=VALUE");
        };
        let boolean = || match value {
            "1" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "false" | "FALSE" | "False" => Ok(false),
            _ => bail!("invalid filter '{text}': it takes true or false"),
        };
        Ok(match key {
            "dangling" => Filter::Dangling(boolean()?),
            "all" => Filter::All(boolean()?),
            "name" => Filter::Name(value.to_owned()),
            "driver" => Filter::Driver(value.to_owned()),
            "label" | "label!" => {
                let (label, wanted) = match value.split_once('=') {
                    Some((label, wanted)) => (label, Some(wanted.to_owned())),
                    None => (value, None),
                };
                Filter::Label(label.to_owned(), wanted, key == "label")
            }
            _ => bail!("invalid filter '{key}'"),
        })
    }

    fn accepts(&self, volume: &Volume, used: &BTreeSet<String>) -> bool {
        match self {
            Filter::Dangling(wanted) => used.contains(&volume.name) != *wanted,
            Filter::Name(part) => volume.name.contains(part),
            Filter::Driver(driver) => driver == volume::DRIVER,
            Filter::Label(key, value, wanted) => {
                let labels = volume.shown_labels();
                let found = labels.get(key);
                let fits = found.is_some_and(|has| value.as_ref().is_none_or(|value| value == has));
                fits == *wanted
            }
            Filter::All(_) => true,
        }
    }
}

impl Inspect {
    fn run(self, store: &Store) -> Result<ExitCode> {
        describe_each(self.format.as_deref(), &self.volumes, |name| {
            Ok(describe(store, &volume::find(store, name)?))
        })
    }
}

/// A volume under docker's key names.
pub(super) fn describe(store: &Store, volume: &Volume) -> Value {
    let options = (!volume.options.is_empty()).then_some(&volume.options);
    json!({
        "CreatedAt": volume.created.to_string(),
        "Driver": volume::DRIVER,
        "Labels": volume.shown_labels(),
        "Mountpoint": volume.data(store),
        "Name": volume.name,
        "Options": options,
        "Scope": "local",
    })
}

impl Rm {
    fn run(self, store: &Store) -> Result<ExitCode> {
        for_each(&self.volumes, |name| {
            match volume::remove(store, name, &|name| users(store, name)) {
                Err(volume::Error::NotFound(_)) if self.force => Ok(name.to_owned()),
                other => Ok(other.map(|()| name.to_owned())?),
            }
        })
    }
}

impl Prune {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let filters = self
            .filters
            .iter()
            .map(|text| Filter::parse(text))
            .collect::<Result<Vec<_>>>()?;
        for (filter, text) in filters.iter().zip(&self.filters) {
            if !matches!(filter, Filter::Label(..) | Filter::All(_)) {
                bail!("invalid filter '{text}': prune takes label, label! and all");
            }
        }
        let all = self.all
            || filters
                .iter()
                .any(|filter| matches!(filter, Filter::All(true)));
        let doomed = match all {
            true => "all volumes not used by at least one container",
            false => "all anonymous volumes not used by at least one container",
        };
        if !self.force && !confirm(&[doomed])? {
            return Ok(ExitCode::SUCCESS);
        }
        let none = BTreeSet::new();
        let chosen = |volume: &Volume| {
            (all || volume.anonymous) && filters.iter().all(|filter| filter.accepts(volume, &none))
        };
        let pruned = volume::prune(store, &chosen, &|name| users(store, name))?;
        if !pruned.is_empty() {
            say(format_args!("Deleted Volumes:"))?;
            for (volume, _) in &pruned {
                say(format_args!("{}", volume.name))?;
            }
            say(format_args!(""))?;
        }
        let bytes = pruned.iter().map(|(_, bytes)| bytes).sum();
        say(format_args!(
            "Total reclaimed space: {}",
            super::images::human_size(bytes)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Exists {
    fn run(self, store: &Store) -> Result<ExitCode> {
        match volume::find(store, &self.volume) {
            Ok(_) => Ok(ExitCode::SUCCESS),
            Err(volume::Error::NotFound(_)) => Ok(ExitCode::FAILURE),
            Err(error) => Err(error.into()),
        }
    }
}
