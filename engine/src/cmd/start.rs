//! `start`: start containers that were created or have ended.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::attach::DetachKeys;
use qengine::container::find::Handle;
use qengine::container::start::{Streams, start};

use super::run::stay;
use super::{Context, for_each};

/// Start one or more containers
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Attach to the container's streams
    #[arg(short, long)]
    attach: bool,
    /// Attach standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container running and give the terminal back
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Start {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if !self.attach && !self.interactive {
            return for_each(&self.containers, |name| {
                let handle = Handle::find(&context.store, name)?;
                start(&context.store, &context.programs, &handle, Streams::Leave)?;
                Ok(name.to_owned())
            });
        }
        let [name] = self.containers.as_slice() else {
            bail!("only one container can be attached to at a time");
        };
        let mut handle = Handle::find(&context.store, name)?;
        let keys = DetachKeys::parse(&self.detach_keys)?;
        match start(&context.store, &context.programs, &handle, Streams::Attach)? {
            Some(connection) => {
                let monitor = handle.state()?.monitor;
                handle.config.options.interactive &= self.interactive;
                stay(context, &handle, (&connection, monitor), keys, true)
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }
}
