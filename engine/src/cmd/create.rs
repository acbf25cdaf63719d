//! `create`: make a container without starting it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::Context;
use super::run::{PullFlags, Way, make};
use crate::flags::{ContainerFlags, Words};
use crate::output::say;

/// Create a container without starting it
#[derive(Debug, Args)]
#[command(override_usage = "qengine create [OPTIONS] IMAGE [COMMAND]...")]
#[command(disable_help_flag = true)]
pub(crate) struct Create {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    pull: PullFlags,
    #[command(flatten)]
    container: ContainerFlags,
    #[command(flatten)]
    words: Words,
}

impl Create {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let what = self.words.meaning()?;
        let created = make(
            context,
            &self.pull,
            self.container,
            what.image,
            what.command,
            Way::Create,
        )?;
        say(format_args!("{}", created.handle.id()))?;
        Ok(ExitCode::SUCCESS)
    }
}
