//! `system`: the engine as a whole.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::Context;

mod check;
mod df;
mod info;
mod prune;

pub(crate) use info::Info;

/// Look after the engine as a whole
#[derive(Debug, Args)]
pub(crate) struct System {
    #[command(subcommand)]
    command: SystemCommand,
}

#[derive(Debug, Subcommand)]
enum SystemCommand {
    Df(df::Df),
    Info(Info),
    Prune(prune::Prune),
    Check(check::Check),
}

impl System {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            SystemCommand::Df(command) => command.run(context),
            SystemCommand::Info(command) => command.run(context),
            SystemCommand::Prune(command) => command.run(context),
            SystemCommand::Check(command) => command.run(context),
        }
    }
}
