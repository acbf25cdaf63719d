//! `man`: the manual, one page a command, made of the same definition as `--help`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory};

use super::Cli;

/// Write the manual's pages into a directory
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where to; made when it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let directory = &self.directory;
        let failed = || format!("cannot write the manual into {}", directory.display());
        fs::create_dir_all(directory).with_context(failed)?;
        clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), directory)
            .with_context(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}
