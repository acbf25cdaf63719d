//! `pause` and `unpause`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::Live;
use qengine::container::find::Handle;
use qengine::container::stop::runtime;

use super::{Context, for_each};

/// Freeze all processes of one or more containers
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Let frozen containers go on
#[derive(Debug, Args)]
pub(crate) struct Unpause {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Pause {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        for_each(&self.containers, |name| {
            change(context, name, Live::Running, "pause")
        })
    }
}

impl Unpause {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        for_each(&self.containers, |name| {
            change(context, name, Live::Paused, "resume")
        })
    }
}

fn change(context: &Context, name: &str, from: Live, command: &str) -> Result<String> {
    let handle = Handle::find(&context.store, name)?;
    let _lock = handle.lock()?;
    let live = handle.live(&context.store)?.1;
    if live != from {
        bail!(
            "container {} is {}, not {}",
            handle.name(),
            live.word(),
            from.word()
        );
    }
    runtime(&context.store, &context.programs, &handle, command)?;
    Ok(name.to_owned())
}
