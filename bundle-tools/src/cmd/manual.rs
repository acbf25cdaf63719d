//! `completion` and `man`: what shells and the manual have to know, out of the definition of the flags.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::Arguments;

#[derive(Debug, clap::Args)]
pub(crate) struct Completion {
    /// Which shell
    shell: Kind,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Where to; made when it is not there
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub(crate) fn completion(flags: &Completion) -> anyhow::Result<ExitCode> {
    let shell = match flags.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "qbundle", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(flags: &Man) -> anyhow::Result<ExitCode> {
    let failed = || format!("write the manual into {}", flags.directory.display());
    std::fs::create_dir_all(&flags.directory).with_context(failed)?;
    clap_mangen::generate_to(Arguments::command(), &flags.directory).with_context(failed)?;
    Ok(ExitCode::SUCCESS)
}
