//! `completion`: what a shell has to know to complete our command lines.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};

use super::Cli;

/// Write a shell's completion script to standard output
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  qengine completion bash > /usr/share/bash-completion/completions/qengine
  qengine completion zsh > /usr/share/zsh/vendor-completions/_qengine
  qengine completion fish > /usr/share/fish/vendor_completions.d/qengine.fish")]
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

impl Completion {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let shell = match self.shell {
            Kind::Bash => Shell::Bash,
            Kind::Zsh => Shell::Zsh,
            Kind::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "qengine", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
