//! `save`: images as an archive, or a container's file system.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use qengine::container::export::export;
use qengine::container::find::Handle;
use qengine::image::{ArchiveFormat, save};
use qengine::store::Store;

use super::outfile::write_to;

/// Write images into an archive, or a container's file system
#[derive(Debug, Args)]
#[command(after_help = "\
The archive can be loaded by docker, podman and skopeo, and by `qengine load`.

  qengine save -o images.tar web:1.0 base
  qengine save web:1.0 | ssh host qengine load
  qengine save -o root.tar -c CONTAINER")]
pub(crate) struct Save {
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The archive's form
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    format: Format,
    /// Write this container's file system instead, as `export` does
    #[arg(short, long, value_name = "CONTAINER", conflicts_with = "images")]
    container: Option<String>,
    /// Accepted for podman's sake: nothing is printed
    #[arg(short, long, hide = true)]
    quiet: bool,
    /// Accepted for podman's sake: archives of several images are the rule
    #[arg(short, long, hide = true)]
    multi_image_archive: bool,
    /// Names, ids or id prefixes; a name without a tag means all tags
    #[arg(value_name = "IMAGE", required_unless_present = "container")]
    images: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    DockerArchive,
    OciArchive,
}

impl Save {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = (self.quiet, self.multi_image_archive);
        let output = self.output.as_deref();
        if let Some(container) = &self.container {
            let handle = Handle::find(store, container)?;
            write_to(output, |out| Ok(export(store, &handle, out)?))?;
            return Ok(ExitCode::SUCCESS);
        }
        let format = match self.format {
            Format::DockerArchive => ArchiveFormat::Docker,
            Format::OciArchive => ArchiveFormat::Oci,
        };
        write_to(output, |out| Ok(save(store, &self.images, format, out)?))?;
        Ok(ExitCode::SUCCESS)
    }
}
