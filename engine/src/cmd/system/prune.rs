//! `system prune`: everything that nobody uses.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::super::images::human_size;
use super::super::prune::{self, Filter};
use super::super::{Context, rmi};
use crate::output::say;

/// Remove stopped containers, unused networks and images
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// All images without containers, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Anonymous volumes without containers as well
    #[arg(long)]
    volumes: bool,
    /// Only what fits: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode> {
        let filter = Filter::parse(&self.filter)?;
        let images = match self.all {
            true => "all images without at least one container associated to them",
            false => "all dangling images",
        };
        let mut doomed = vec![
            "all stopped containers",
            "all networks not used by at least one container",
            images,
            "unused build cache",
        ];
        if self.volumes {
            doomed.push("all anonymous volumes not used by at least one container");
        }
        if !self.force && !prune::confirm(&doomed)? {
            return Ok(ExitCode::SUCCESS);
        }
        let mut freed = prune::containers(context, &self.filter)?;
        prune::networks(&context.store, &filter)?;
        if self.volumes {
            freed += prune::volumes(&context.store, &filter)?;
        }
        // Steps have neither age nor labels: a filter means none of them.
        if self.filter.is_empty() {
            qengine::build::forget(&context.store)?;
        }
        freed += rmi::prune(&context.store, self.all, &filter)?;
        say(format_args!("Total reclaimed space: {}", human_size(freed)))?;
        Ok(ExitCode::SUCCESS)
    }
}
