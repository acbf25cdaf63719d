//! `rename`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::rename::rename;

use super::Context;

/// Give a container another name
#[derive(Debug, Args)]
pub(crate) struct Rename {
    /// Name or id
    container: String,
    /// The new name
    name: String,
}

impl Rename {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let handle = Handle::find(&context.store, &self.container)?;
        rename(&context.store, &handle, &self.name)?;
        Ok(ExitCode::SUCCESS)
    }
}
