//! `commit`: a container's changes as an image.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::commit::{Options, commit};
use qengine::container::find::Handle;

use super::Context;
use crate::output::say;

/// Make a new image of a container's changes
#[derive(Debug, Args)]
pub(crate) struct Commit {
    /// Who made it
    #[arg(short, long)]
    author: Option<String>,
    /// Why
    #[arg(short, long)]
    message: Option<String>,
    /// Apply this instruction of a Dockerfile to the image, such as 'CMD sh' or 'ENV A=b'; may be given several times
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Freeze the container meanwhile
    #[arg(short, long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pause: bool,
    /// Name or id
    container: String,
    /// Name of the image
    #[arg(value_name = "IMAGE[:TAG]")]
    image: Option<String>,
}

impl Commit {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let handle = Handle::find(&context.store, &self.container)?;
        let options = Options {
            reference: self.image.as_deref().map(str::parse).transpose()?,
            author: self.author,
            message: self.message,
            changes: self.change,
            pause: self.pause,
        };
        let image = commit(&context.store, &context.programs, &handle, &options)?;
        say(format_args!("{}", image.id))?;
        Ok(ExitCode::SUCCESS)
    }
}
