//! `export`: a container's file system as an archive.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::export::export;
use qengine::container::find::Handle;
use qengine::store::Store;

use super::outfile::write_to;

/// Write a container's file system as a tar archive
#[derive(Debug, Args)]
#[command(after_help = "\
What is mounted in the container (volumes, /proc) is left out. `import` makes an image of the archive.

  qengine export -o root.tar web
  qengine export web | tar -t")]
pub(crate) struct Export {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name or id
    container: String,
}

impl Export {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let handle = Handle::find(store, &self.container)?;
        write_to(self.output.as_deref(), |out| {
            Ok(export(store, &handle, out)?)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}
