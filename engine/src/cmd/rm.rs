//! `rm`, also `remove`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::remove::{Volumes, remove};
use qengine::container::{self, recover};

use super::{Context, for_each};

/// Remove one or more containers
#[derive(Debug, Args)]
#[command(visible_alias = "remove")]
pub(crate) struct Rm {
    /// Kill a running container first; say nothing of one that is not there
    #[arg(short, long)]
    force: bool,
    /// Remove its anonymous volumes too
    #[arg(short, long)]
    volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let volumes = if self.volumes {
            Volumes::RemoveAnonymous
        } else {
            Volumes::Keep
        };
        for_each(&self.containers, |name| {
            let handle = match Handle::find(&context.store, name) {
                Err(container::Error::NotFound(_)) if self.force => return Ok(name.to_owned()),
                other => other?,
            };
            recover::collect(&context.store, &context.programs, handle.id())?;
            match remove(
                &context.store,
                &context.programs,
                &handle,
                self.force,
                volumes,
            ) {
                // Gone meanwhile, by itself (`--rm`) or by another's hand.
                Err(container::Error::NotFound(_)) => {}
                other => other?,
            }
            Ok(name.to_owned())
        })
    }
}
