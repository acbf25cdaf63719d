//! `ps`: the list of containers.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use qengine::container::filter::{Filter, labels};
use qengine::container::find::{Handle, all};
use qengine::container::model::State;
use qengine::container::{self, Live, recover};
use qengine::network::{Mode, describe_ports};
use qengine::store::Store;
use serde_json::json;

use super::Context;
use super::images::human_size;
use crate::output::{Format, Listing, Row, moment, say, shorten, span};

/// List containers
#[derive(Debug, Args)]
#[command(
    after_help = "Filters: id, name (regular expressions), label=KEY[=VALUE], status, exited=CODE, \
ancestor=IMAGE, before=CONTAINER,
since=CONTAINER, network, volume, publish=PORT[/PROTOCOL], expose=PORT[/PROTOCOL].

Fields of templates: .ID .Image .Command .CreatedAt .RunningFor .Ports .State .Status .Size .Names .Labels
.Label \"KEY\" .Mounts .Networks .LocalVolumes .Pid

  qengine ps -a --filter status=exited --format 'table {{.ID}}\\t{{.Names}}\\t{{.Status}}'"
)]
pub(crate) struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only those that KEY=VALUE fits
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// table, json, a template such as '{{.ID}} {{.Names}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
    /// The last COUNT made, whether they run or not
    #[arg(short = 'n', long, value_name = "COUNT", allow_negative_numbers = true)]
    last: Option<i64>,
    /// The last one made, whether it runs or not
    #[arg(short, long)]
    latest: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// How much each has written
    #[arg(short, long)]
    size: bool,
}

const HEADINGS: [(&str, &str); 17] = [
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Names", "NAMES"),
    ("Pid", "PID"),
    ("Status", "STATUS"),
    ("Command", "COMMAND"),
    ("UpTime", "UP TIME"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("Size", "SIZE"),
    ("CreatedAt", "CREATED AT"),
    ("State", "STATE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Platform", "PLATFORM"),
];

/// Columns of the usual table; `--size` adds one.
const COLUMNS: usize = 9;

impl Ps {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        recover::sweep(&context.store, &context.programs)?;
        let filter = Filter::parse(&context.store, &self.filter)?;
        // As in docker, none and fewer are no limit.
        let last = match self.latest {
            true => Some(1),
            false => self.last.and_then(|last| usize::try_from(last).ok()),
        };
        let last = last.filter(|&last| last > 0);
        let all_states = self.all || last.is_some() || filter.asks_for_ended();
        let mut found = Vec::new();
        for handle in all(&context.store)? {
            // One that vanishes while we look is left out.
            let Ok((state, live)) = handle.live(&context.store) else {
                continue;
            };
            let wanted = all_states || live.is_running() || live == Live::Restarting;
            if wanted && filter.accepts(&handle, &state, live) {
                found.push((handle, state, live));
            }
            if last.is_some_and(|last| found.len() == last) {
                break;
            }
        }
        if self.quiet {
            for (handle, ..) in &found {
                say(format_args!("{}", self.id(handle)))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let now = Timestamp::now();
        let sized = self.size || format.mentions("Size");
        let rows: Vec<Row> = found
            .iter()
            .map(|(handle, state, live)| {
                let size = sized.then(|| size(&context.store, handle));
                self.row(handle, state, *live, now, size)
            })
            .collect();
        let columns = HEADINGS.map(|(field, _)| field);
        Listing {
            headings: &HEADINGS,
            columns: &columns[..COLUMNS + usize::from(self.size)],
        }
        .print(&format, &rows)?;
        Ok(ExitCode::SUCCESS)
    }

    fn id<'a>(&self, handle: &'a Handle) -> &'a str {
        match self.no_trunc {
            true => handle.id(),
            false => handle.config.short_id(),
        }
    }

    fn row(
        &self,
        handle: &Handle,
        state: &State,
        live: Live,
        now: Timestamp,
        size: Option<String>,
    ) -> Row {
        let cut = |text: &str, width: usize| match self.no_trunc {
            true => text.to_owned(),
            false => shorten(text, width),
        };
        let options = &handle.config.options;
        let created = handle.config.created;
        let command = format!("\"{}\"", handle.config.args.join(" "));
        let pid = state.process.filter(|_| live.is_running());
        let mounts: Vec<String> = options
            .volumes
            .iter()
            .filter_map(|volume| Some(cut(volume.source.name()?, 15)))
            .collect();
        let local = options
            .volumes
            .iter()
            .filter(|volume| volume.source.is_volume())
            .count();
        Row::new(json!({
            "ID": self.id(handle),
            "Image": options.image,
            "Names": handle.name(),
            "Pid": pid.map_or_else(|| "-".to_owned(), |process| process.pid.to_string()),
            "State": live.word(),
            "Status": status(state, live, now),
            "Command": cut(&command, 24),
            "UpTime": up_time(state, live, now).unwrap_or_else(|| "-".to_owned()),
            "RunningFor": format!("{} ago", span(created, now)),
            "CreatedAt": moment(created),
            "Ports": ports(handle, state, live),
            "Size": size.unwrap_or_else(|| "0B".to_owned()),
            "Mounts": mounts.join(","),
            "LocalVolumes": local.to_string(),
            "Networks": networks(&options.network).join(","),
            "Platform": "linux",
        }))
        .with_labels(&labels(handle))
    }
}

/// `2B (virtual 4.3MB)`: what it wrote itself, and with its image.
fn size(store: &Store, handle: &Handle) -> String {
    let own = container::size::written(handle);
    let whole = own + container::size::below(store, handle);
    format!("{} (virtual {})", human_size(own), human_size(whole))
}

fn networks(mode: &Mode) -> Vec<String> {
    match mode {
        Mode::None => vec!["none".to_owned()],
        Mode::Host => vec!["host".to_owned()],
        Mode::Container(_) => Vec::new(),
        Mode::Networks(endpoints) => endpoints
            .iter()
            .map(|endpoint| endpoint.network.clone())
            .collect(),
    }
}

fn up_time(state: &State, live: Live, now: Timestamp) -> Option<String> {
    let started = state.started.filter(|_| live.is_running())?;
    Some(span(started, now))
}

fn status(state: &State, live: Live, now: Timestamp) -> String {
    let up = || up_time(state, live, now).unwrap_or_default();
    match live {
        Live::Created => "Created".to_owned(),
        Live::Running => format!("Up {}", up()),
        Live::Paused => format!("Up {} (Paused)", up()),
        Live::Removing => "Removal In Progress".to_owned(),
        Live::Exited | Live::Restarting => {
            let ago = state
                .finished
                .map(|finished| format!(" {} ago", span(finished, now)));
            format!(
                "{} ({}){}",
                if live == Live::Exited {
                    "Exited"
                } else {
                    "Restarting"
                },
                state.exit_code.unwrap_or(0),
                ago.unwrap_or_default()
            )
        }
    }
}

/// `0.0.0.0:110->80/tcp`
fn ports(handle: &Handle, state: &State, live: Live) -> String {
    match state.network.as_ref().filter(|_| live.is_running()) {
        Some(setup) if !setup.attachments.is_empty() => {
            let of_image = handle.config.image_config.config.exposed_ports.keys();
            let exposed = of_image.chain(&handle.config.options.expose);
            describe_ports(&setup.ports, exposed.map(String::as_str))
        }
        _ => String::new(),
    }
}
