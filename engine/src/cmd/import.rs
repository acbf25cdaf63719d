//! `import`: an image out of a root file system's archive.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use bundle_tools::image::Platform;
use clap::Args;
use qengine::image::{ImportOptions, Reference, import};
use qengine::store::Store;

use super::load;
use crate::output::say;

/// Make an image out of the archive of a root file system
#[derive(Debug, Args)]
#[command(after_help = "\
  qengine export web | qengine import --change 'CMD [\"nginx\"]' - web:flat
  qengine import -m 'from the vendor' rootfs.tar.gz vendor:1")]
pub(crate) struct Import {
    /// Apply this instruction of a Dockerfile to the image, such as 'CMD sh' or 'ENV A=b'; may be given several times
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// What the image's history says
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What the image runs on [default: this machine's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Accepted for podman's sake: only the image's id is printed anyway
    #[arg(short, long, hide = true)]
    quiet: bool,
    /// The archive (tar, also compressed with gzip or zstd); - is standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Import {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = self.quiet;
        let options = ImportOptions {
            reference: self
                .name
                .as_deref()
                .map(str::parse::<Reference>)
                .transpose()?,
            changes: self.change,
            message: self.message,
            platform: self
                .platform
                .as_deref()
                .map(str::parse::<Platform>)
                .transpose()?,
        };
        let archive = load::open(Some(Path::new(&self.file)))?;
        let image = import(store, archive, &self.file, &options)?;
        say(format_args!("{}", image.id))?;
        Ok(ExitCode::SUCCESS)
    }
}
