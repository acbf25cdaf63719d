//! `import`: a root file system's archive as an image of one layer.

use std::io::{self, BufReader, Read};

use bundle_tools::image::{ContainerConfig, History, ImageConfig, Platform};
use bundle_tools::layer::compression::decoder;

use super::{Error, Image, LayerSource, Reference, Result, add_layer_image, collect::sweep};
use crate::build::change::change;
use crate::store::Store;

/// What the image says besides its files.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Its name; an image without one is found by its id.
    pub reference: Option<Reference>,
    /// Instructions that change its configuration, such as `CMD sh`.
    pub changes: Vec<String>,
    /// What its history says; `Imported from …` when absent.
    pub message: Option<String>,
    /// What it runs on; this machine's platform when absent.
    pub platform: Option<Platform>,
}

/// Makes an image out of an archive, plain or compressed. `origin` is what its history calls the archive.
///
/// # Errors
/// A malformed instruction, an unreadable archive, a store that can't be written. Nothing is left of the image then.
pub fn import(
    store: &Store,
    archive: impl Read + Send,
    origin: &str,
    options: &ImportOptions,
) -> Result<Image> {
    let mut inner = ContainerConfig::default();
    change(&mut inner, &options.changes).map_err(|error| Error::Change(error.message))?;
    sweep(store)?;
    let message = options.message.clone();
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let config = ImageConfig {
        config: inner,
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        history: vec![History {
            created: Some(jiff::Timestamp::now().to_string()),
            comment: Some(message.unwrap_or_else(|| format!("Imported from {origin}"))),
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let reader = BufReader::with_capacity(1 << 17, archive);
    let layer: Box<LayerSource<'_>> = Box::new(move |out| {
        io::copy(&mut decoder(reader)?, out)?;
        Ok(())
    });
    add_layer_image(store, None, layer, config, options.reference.as_ref())
}
