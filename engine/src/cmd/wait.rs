//! `wait`: until containers have ended.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::cleanup;
use qengine::container::find::Handle;
use qengine::container::wait::wait;

use super::{Context, for_each};

/// Wait for the end of one or more containers, and print their exit codes
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        for_each(&self.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            let code = wait(&context.store, &handle)?;
            cleanup::finish(&context.store, &context.programs, &handle)?;
            Ok(code.to_string())
        })
    }
}
