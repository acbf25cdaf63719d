//! `system df`: what the engine occupies on disk.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use qengine::image::Reference;
use qengine::system::usage::{Usage, usage};
use serde_json::json;

use super::super::Context;
use super::super::images::human_size;
use crate::output::{Format, Listing, Row, say, span, table};

/// Show what images, containers and volumes occupy on disk
#[derive(Debug, Args)]
pub(super) struct Df {
    /// Each image, container and volume on its own
    #[arg(short, long)]
    verbose: bool,
    /// table, json, a template such as '{{.Type}} {{.Size}}', or `table TEMPLATE`
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    format: String,
}

impl Df {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode> {
        let format = Format::parse(&self.format)?;
        let usage = usage(&context.store)?;
        if self.verbose {
            return verbose(&usage);
        }
        Listing {
            headings: &[
                ("Type", "TYPE"),
                ("TotalCount", "TOTAL"),
                ("Active", "ACTIVE"),
                ("Size", "SIZE"),
                ("Reclaimable", "RECLAIMABLE"),
            ],
            columns: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
        }
        .print(&format, &rows(&usage))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn rows(usage: &Usage) -> Vec<Row> {
    let row = |kind: &str, total: usize, active: usize, size: u64, reclaimable: u64| {
        let share = match size {
            0 => String::new(),
            _ => format!(" ({}%)", u128::from(reclaimable) * 100 / u128::from(size)),
        };
        Row::new(json!({
            "Type": kind,
            "TotalCount": total.to_string(),
            "Active": active.to_string(),
            "Size": human_size(size),
            "Reclaimable": format!("{}{share}", human_size(reclaimable)),
        }))
    };
    let containers = &usage.containers;
    let is_idle = |live: qengine::container::Live| !live.is_running();
    let idle = containers.iter().filter(|it| is_idle(it.live));
    let volumes = &usage.volumes;
    let unused = volumes.iter().filter(|it| it.containers == 0);
    vec![
        row(
            "Images",
            usage.images.len(),
            usage.images.iter().filter(|it| it.containers > 0).count(),
            usage.image_bytes,
            usage.image_bytes.saturating_sub(usage.image_bytes_in_use),
        ),
        row(
            "Containers",
            containers.len(),
            containers.iter().filter(|it| !is_idle(it.live)).count(),
            containers.iter().map(|it| it.size).sum(),
            idle.map(|it| it.size).sum(),
        ),
        row(
            "Local Volumes",
            volumes.len(),
            volumes.iter().filter(|it| it.containers > 0).count(),
            volumes.iter().map(|it| it.size).sum(),
            unused.map(|it| it.size).sum(),
        ),
        row(
            "Build Cache",
            usage.cached,
            0,
            usage.cached_bytes,
            usage.cached_bytes,
        ),
    ]
}

fn verbose(usage: &Usage) -> Result<ExitCode> {
    let now = Timestamp::now();
    let mut images = Vec::new();
    for it in &usage.images {
        let image = &it.image;
        let name: Option<Reference> = image.names.first().and_then(|name| name.parse().ok());
        let none = || "<none>".to_owned();
        images.push(vec![
            name.as_ref().map_or_else(none, Reference::familiar_name),
            name.as_ref()
                .and_then(Reference::tag)
                .map_or_else(none, str::to_owned),
            image.id.short().to_owned(),
            image
                .created()
                .map_or_else(none, |created| format!("{} ago", span(created, now))),
            human_size(it.size),
            human_size(it.shared),
            human_size(it.size.saturating_sub(it.shared)),
            it.containers.to_string(),
        ]);
    }
    say(format_args!("Images space usage:\n"))?;
    let heading = [
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ];
    say(format_args!("{}", table(&heading, &images)))?;
    let containers: Vec<Vec<String>> = usage
        .containers
        .iter()
        .map(|it| {
            let config = &it.handle.config;
            vec![
                config.short_id().to_owned(),
                config.options.image.clone(),
                config.options.volumes.len().to_string(),
                human_size(it.size),
                format!("{} ago", span(config.created, now)),
                it.live.word().to_owned(),
                it.handle.name().to_owned(),
            ]
        })
        .collect();
    say(format_args!("Containers space usage:\n"))?;
    let heading = [
        "CONTAINER ID",
        "IMAGE",
        "VOLUMES",
        "SIZE",
        "CREATED",
        "STATUS",
        "NAMES",
    ];
    say(format_args!("{}", table(&heading, &containers)))?;
    let volumes: Vec<Vec<String>> = usage
        .volumes
        .iter()
        .map(|it| {
            vec![
                it.name.clone(),
                it.containers.to_string(),
                human_size(it.size),
            ]
        })
        .collect();
    say(format_args!("Local Volumes space usage:\n"))?;
    say(format_args!(
        "{}",
        table(&["VOLUME NAME", "LINKS", "SIZE"], &volumes).trim_end()
    ))?;
    Ok(ExitCode::SUCCESS)
}
