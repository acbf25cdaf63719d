//! `events`: what happens, as it happens.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use jiff::tz::TimeZone;
use qengine::store::event::{Event, Filter, Kind, Span, follow};
use serde_json::json;

use super::Context;
use crate::flags::time;
use crate::template::Template;

/// Show what happens to containers, images, networks and volumes
#[derive(Debug, Args)]
#[command(after_help = "\
Without --until it goes on until it is interrupted.

Examples:
  qengine events --filter container=web --filter event=die
  qengine events --since 1h --until 0s --format json")]
pub(crate) struct Events {
    /// Also what has happened since: a time (2026-01-31T12:00:00Z), or a span up to now (10m)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End at that time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only those: type, event, container, image, network, volume, label
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `json` for one object a line, or a template such as '{{.Type}} {{.Action}} {{.Actor.ID}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

enum Format {
    Line,
    Json,
    Template(Template),
}

impl Events {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let format = match self.format.as_deref() {
            None | Some("") => Format::Line,
            Some("json") => Format::Json,
            Some(text) => Format::Template(Template::parse_escaped(text)?),
        };
        let span = Span {
            since: self.since.as_deref().map(time::parse).transpose()?,
            until: self.until.as_deref().map(time::parse).transpose()?,
        };
        let filter = filter(&self.filter)?;
        let mut output = io::stdout().lock();
        follow(&context.store, span, &filter, &mut |event| {
            let text = match &format {
                Format::Line => line(event),
                Format::Json => object(event).to_string(),
                Format::Template(template) => template
                    .render(&template_object(event))
                    .map_err(io::Error::other)?,
            };
            writeln!(output, "{text}")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn filter(entries: &[String]) -> Result<Filter> {
    let mut filter = Filter::default();
    for entry in entries {
        let Some((key, value)) = entry.split_once('=') else {
            bail!("invalid filter {entry:?}: expected KEY=VALUE");
        };
        let list = match key {
            "type" => &mut filter.kinds,
            "event" => &mut filter.actions,
            "container" => &mut filter.containers,
            "image" => &mut filter.images,
            "network" => &mut filter.networks,
            "volume" => &mut filter.volumes,
            "label" => &mut filter.labels,
            _ => bail!(
                "invalid filter '{key}': type, event, container, image, network, volume and label are there"
            ),
        };
        list.push(value.to_owned());
    }
    Ok(filter)
}

/// `TIME TYPE ACTION ID (KEY=VALUE, …)`
fn line(event: &Event) -> String {
    let time = event
        .time()
        .to_zoned(TimeZone::system())
        .strftime("%Y-%m-%dT%H:%M:%S.%9f%:z");
    let attributes: Vec<String> = event
        .actor
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let mut text = format!(
        "{time} {} {} {}",
        event.kind.word(),
        event.action,
        event.actor.id
    );
    if !attributes.is_empty() {
        text.push_str(&format!(" ({})", attributes.join(", ")));
    }
    text
}

/// Docker's object, with the fields of its first version where it has them.
fn object(event: &Event) -> serde_json::Value {
    let mut object = json!({
        "Type": event.kind,
        "Action": event.action,
        "Actor": event.actor,
        "scope": "local",
        "time": event.nanoseconds / 1_000_000_000,
        "timeNano": event.nanoseconds,
    });
    if matches!(event.kind, Kind::Container | Kind::Image) {
        object["status"] = json!(event.action);
        object["id"] = json!(event.actor.id);
        if let Some(image) = event.actor.attributes.get("image") {
            object["from"] = json!(image);
        }
    }
    object
}

/// The names that docker's templates know the fields by.
fn template_object(event: &Event) -> serde_json::Value {
    let mut object = object(event);
    for (name, template_name) in [
        ("scope", "Scope"),
        ("time", "Time"),
        ("timeNano", "TimeNano"),
        ("status", "Status"),
        ("id", "ID"),
        ("from", "From"),
    ] {
        object[template_name] = object.get(name).cloned().unwrap_or_else(|| json!(""));
    }
    object
}
