//! `tag`: another name for an image.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::image::{Reference, tag};
use qengine::store::Store;

/// Give an image another name.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image
    #[arg(value_name = "SOURCE_IMAGE[:TAG]")]
    source: String,
    /// The new name
    #[arg(value_name = "TARGET_IMAGE[:TAG]")]
    target: String,
}

impl Tag {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let target: Reference = self.target.parse()?;
        if target.digest().is_some() {
            bail!(
                "refusing to create a tag with a digest reference: {}",
                self.target
            );
        }
        tag(store, &self.source, &target)?;
        Ok(ExitCode::SUCCESS)
    }
}
