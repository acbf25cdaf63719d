//! `builder`: what builds leave for the next build.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use qengine::build::forget;
use qengine::image::{collect, layers};
use qengine::store::Store;

use crate::output::say;

/// Manage the build cache
#[derive(Debug, Args)]
pub(crate) struct Builder {
    #[command(subcommand)]
    command: BuilderCommand,
}

#[derive(Debug, Subcommand)]
enum BuilderCommand {
    Prune(Prune),
}

/// Forget all build steps, and remove the layers that only they need
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Nothing is asked in any case
    #[arg(short, long, hide = true)]
    force: bool,
    /// All steps are forgotten in any case
    #[arg(short, long, hide = true)]
    all: bool,
}

impl Builder {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let BuilderCommand::Prune(_) = self.command;
        let before = layers::total_size(store)?;
        let steps = forget(store)?;
        let freed = collect(store)?;
        let unpacked = before.saturating_sub(layers::total_size(store)?);
        say(format_args!("Forgotten build steps: {steps}"))?;
        say(format_args!(
            "Total reclaimed space: {}",
            super::images::human_size(freed.bytes + unpacked)
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
