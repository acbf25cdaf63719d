//! `cleanup`: what the monitor runs when a container has ended. Not for people.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::cleanup::finish;
use qengine::container::find::Handle;
use qengine::container::restart::carry_on;

use super::Context;

/// Record the end of a container and take away what it had
#[derive(Debug, Args)]
pub(crate) struct Cleanup {
    /// Whole id
    id: String,
}

impl Cleanup {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if let Some(handle) = Handle::open(&context.store, &self.id)? {
            // What could not be taken away is no reason to leave the container ended.
            let finished = finish(&context.store, &context.programs, &handle);
            carry_on(&context.store, &context.programs, &handle)?;
            finished?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
