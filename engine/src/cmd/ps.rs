//! `ps`: the list of containers.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use qengine::container::find::{Handle, all};
use qengine::container::model::State;
use qengine::container::{Live, recover};
use serde_json::{Value, json};

use super::Context;
use crate::output::{say, shorten, span, table};

/// List containers
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// `table` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
}

const HEADING: [&str; 9] = [
    "CONTAINER ID",
    "IMAGE",
    "NAMES",
    "PID",
    "STATUS",
    "COMMAND",
    "UP TIME",
    "CREATED",
    "PORTS",
];

impl Ps {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        recover::sweep(&context.store, &context.programs)?;
        let now = Timestamp::now();
        let mut rows = Vec::new();
        for handle in all(&context.store)? {
            // One that vanishes while we look is left out.
            let Ok((state, live)) = handle.live(&context.store) else {
                continue;
            };
            if self.all || live.is_running() || live == Live::Restarting {
                rows.push((handle, state, live));
            }
        }
        if self.quiet {
            for (handle, ..) in &rows {
                say(format_args!(
                    "{}",
                    if self.no_trunc {
                        handle.id()
                    } else {
                        handle.config.short_id()
                    }
                ))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        match self.format.as_str() {
            "table" => {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|(handle, state, live)| self.row(handle, state, *live, now))
                    .collect();
                say(format_args!("{}", table(&HEADING, &rows).trim_end()))?;
            }
            "json" | "{{json .}}" => {
                for (handle, state, live) in &rows {
                    say(format_args!("{}", self.object(handle, state, *live, now)))?;
                }
            }
            other => bail!("unknown format {other:?}: table and json are there"),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn row(&self, handle: &Handle, state: &State, live: Live, now: Timestamp) -> Vec<String> {
        let command = format!("\"{}\"", handle.config.args.join(" "));
        let pid = state.process.filter(|_| live.is_running());
        vec![
            if self.no_trunc {
                handle.id()
            } else {
                handle.config.short_id()
            }
            .to_owned(),
            handle.config.options.image.clone(),
            handle.name().to_owned(),
            pid.map_or_else(|| "-".to_owned(), |process| process.pid.to_string()),
            status(state, live, now),
            if self.no_trunc {
                command
            } else {
                shorten(&command, 24)
            },
            up_time(state, live, now).unwrap_or_else(|| "-".to_owned()),
            format!("{} ago", span(handle.config.created, now)),
            ports(state, live),
        ]
    }

    fn object(&self, handle: &Handle, state: &State, live: Live, now: Timestamp) -> Value {
        json!({
            "ID": if self.no_trunc { handle.id() } else { handle.config.short_id() },
            "Image": handle.config.options.image,
            "Names": handle.name(),
            "Pid": state.process.filter(|_| live.is_running()).map_or(0, |process| process.pid),
            "State": live.word(),
            "Status": status(state, live, now),
            "Command": format!("\"{}\"", handle.config.args.join(" ")),
            "RunningFor": format!("{} ago", span(handle.config.created, now)),
            "CreatedAt": handle.config.created.to_string(),
            "Ports": ports(state, live),
        })
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
fn ports(state: &State, live: Live) -> String {
    let Some(setup) = state.network.as_ref().filter(|_| live.is_running()) else {
        return String::new();
    };
    let list: Vec<String> = setup
        .ports
        .iter()
        .map(|port| {
            format!(
                "{}:{}->{}/{}",
                port.host_ip, port.host_port, port.container_port, port.protocol
            )
        })
        .collect();
    list.join(", ")
}
