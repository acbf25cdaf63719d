//! `image build-base` (`buildBase`): an image out of a root file system's archive, or of this machine's busybox.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::image::{Reference, build_base};
use qengine::store::Store;

use crate::output::say;

/// Make the image "base" out of a root file system's archive, or of this machine's static busybox.
#[derive(Debug, Args)]
pub(crate) struct BuildBase {
    /// Archive of a root file system (tar, also compressed); busybox of this machine when left out
    #[arg(value_name = "TAR")]
    source: Option<PathBuf>,
    /// Name of the image
    #[arg(short, long, value_name = "NAME[:TAG]", default_value = "base")]
    tag: String,
}

impl BuildBase {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let reference: Reference = self.tag.parse()?;
        let image = build_base(store, self.source.as_deref(), &reference)?;
        say(format_args!("{}", image.id))?;
        Ok(ExitCode::SUCCESS)
    }
}
