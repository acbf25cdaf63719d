//! `qbundle inspect`: an image's documents, as one JSON object.

use std::io::Write;
use std::process::ExitCode;

use bundle_tools::image::{Platform, chain_ids};
use serde_json::json;

use super::source::Source;

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The image: a layout directory, and the image's name in it
    #[arg(long, value_name = "LAYOUT[:NAME]")]
    image: Source,
    /// The platform, where the image has several; this machine's by default
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let (_, image) = flags.image.open(flags.platform.as_ref())?;
    let shown = json!({
        "name": image.name,
        "descriptor": image.descriptor,
        "manifest": image.manifest,
        "config": image.config,
        "chainIDs": chain_ids(&image.config.rootfs.diff_ids),
    });
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &shown)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
