//! `qbundle spec`: the configuration that `runc spec` writes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bundle_tools::generate;

use super::Hint;

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The directory to write config.json to
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// For a container run without root rights
    #[arg(long)]
    rootless: bool,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let spec = if flags.rootless {
        generate::default_rootless_spec()
    } else {
        generate::default_spec()
    };
    let path = flags.bundle.join("config.json");
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Hint::ConfigExists(path).into());
        }
        other => other.with_context(|| format!("create {}", path.display()))?,
    };
    file.write_all(&generate::to_json(&spec)?)
        .with_context(|| format!("write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}
