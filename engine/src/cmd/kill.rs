//! `kill`: send a signal.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::stop::{kill, parse_signal};

use super::{Context, for_each};

/// Send a signal to one or more running containers
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Signal by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Kill {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let signal = parse_signal(&self.signal)?;
        for_each(&self.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            kill(&context.store, &context.programs, &handle, signal)?;
            Ok(name.to_owned())
        })
    }
}
