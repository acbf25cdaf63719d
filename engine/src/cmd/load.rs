//! `load`: images out of an archive.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::image::{Loaded, load};
use qengine::store::Store;

use crate::output::say;

/// Load images out of an archive that docker, podman, skopeo or qengine saved
#[derive(Debug, Args)]
#[command(after_help = "\
docker archives and OCI archives are read, plain or compressed with gzip or zstd.

  qengine load -i images.tar
  docker save web | qengine load")]
pub(crate) struct Load {
    /// Read this file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print only errors
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let loaded = load(store, open(self.input.as_deref())?)?;
        if !self.quiet {
            for image in &loaded {
                print(image)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The file, or standard input, which must not be a terminal.
pub(crate) fn open(path: Option<&Path>) -> Result<Box<dyn Read + Send>> {
    match path.filter(|path| *path != Path::new("-")) {
        Some(path) => {
            let file =
                File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
                bail!("{} is a directory, not an archive", path.display());
            }
            Ok(Box::new(file))
        }
        None if io::stdin().is_terminal() => {
            bail!("no archive given: name a file, or redirect one to standard input")
        }
        None => Ok(Box::new(io::stdin())),
    }
}

fn print(loaded: &Loaded) -> Result<()> {
    if loaded.names.is_empty() {
        say(format_args!("Loaded image ID: {}", loaded.image.id))?;
    }
    for name in &loaded.names {
        say(format_args!("Loaded image: {}", name.familiar()))?;
    }
    Ok(())
}
