//! `create`: make a container without starting it.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::Context;
use super::run::{PullFlags, Way, make};
use crate::flags::ContainerFlags;
use crate::output::say;

/// Create a container without starting it
#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pull: PullFlags,
    #[command(flatten)]
    container: ContainerFlags,
    /// Image to make it of
    image: String,
    /// Command and arguments; the image's own when not given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Create {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let created = make(
            context,
            &self.pull,
            self.container,
            self.image,
            self.command,
            Way::Create,
        )?;
        say(format_args!("{}", created.handle.id()))?;
        Ok(ExitCode::SUCCESS)
    }
}
