//! The commands of `qbundle`.

mod inspect;
mod manual;
mod repack;
mod source;
mod spec;
mod unpack;
mod validate;

use std::process::ExitCode;

/// A command and its flags.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Write a config.json to start from
    Spec(spec::Flags),
    /// Make a bundle of an image
    Unpack(unpack::Flags),
    /// Put the changes to a bundle's root file system back as a new image
    Repack(repack::Flags),
    /// Check a bundle against the runtime specification
    Validate(validate::Flags),
    /// Show an image's manifest and configuration as JSON
    Inspect(inspect::Flags),
    /// Write a shell's completion script to standard output
    Completion(manual::Completion),
    /// Write the manual's pages into a directory
    #[command(hide = true)]
    Man(manual::Man),
}

impl Command {
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Spec(flags) => spec::run(flags),
            Command::Unpack(flags) => unpack::run(flags),
            Command::Repack(flags) => repack::run(flags),
            Command::Validate(flags) => validate::run(flags),
            Command::Inspect(flags) => inspect::run(flags),
            Command::Completion(flags) => manual::completion(flags),
            Command::Man(flags) => manual::man(flags),
        }
    }
}

/// A failure for which there is a remedy to name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Hint {
    #[error("unpack owners and devices without root rights")]
    NotRoot,
    #[error("write {0}: it exists")]
    ConfigExists(std::path::PathBuf),
}

impl Hint {
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Hint::NotRoot => "--rootless makes a bundle that belongs to you",
            Hint::ConfigExists(_) => "remove it first, or name another directory with --bundle",
        }
    }
}
