//! Whether every image's blobs and layers are there, and what they should be.

use std::collections::HashSet;
use std::io::{Read, copy};

use bundle_tools::digest::HashReader;
use bundle_tools::image::{Descriptor, MAX_DOCUMENT, parse_config};
use bundle_tools::layout::Layout;

use super::{Result, find, layers, layout};
use crate::store::Store;

/// Something that is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The image as people call it.
    pub image: String,
    /// What is wrong.
    pub problem: String,
    /// Whether unpacking the image's layers again helps.
    pub can_unpack: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Everything that is wrong.
    pub faults: Vec<Fault>,
    /// Images looked at.
    pub images: usize,
    /// Blobs looked at.
    pub blobs: usize,
    /// Bytes that were hashed.
    pub hashed: u64,
}

/// Looks at every image. With `hash` the blobs are read in full and compared with their digests; without, only their
/// presence and sizes count.
///
/// # Errors
/// When `index.json` can't be read.
pub fn verify(store: &Store, hash: bool) -> Result<Verdict> {
    let layout = layout(store)?;
    let index = layout.index()?;
    let mut verdict = Verdict::default();
    let mut seen = HashSet::new();
    for entry in &index.manifests {
        let name = entry
            .ref_name()
            .map_or_else(|| entry.digest.to_string(), str::to_owned);
        let mut fault = |problem: String, can_unpack: bool| {
            verdict.faults.push(Fault {
                image: name.clone(),
                problem,
                can_unpack,
            });
        };
        if !seen.insert(entry.digest.clone()) {
            continue;
        }
        verdict.images += 1;
        let manifest = match find::read_manifest(&layout, entry) {
            Ok((_, manifest)) => manifest,
            Err(error) => {
                fault(
                    format!("its manifest can't be read: {}", chain(&error)),
                    false,
                );
                continue;
            }
        };
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if !seen.insert(blob.digest.clone()) {
                continue;
            }
            verdict.blobs += 1;
            match examine(&layout, blob, hash) {
                Ok(bytes) => verdict.hashed += bytes,
                Err(problem) => fault(format!("blob {} {problem}", blob.digest), false),
            }
        }
        let config = layout
            .read_blob(&manifest.config.digest, MAX_DOCUMENT)
            .ok()
            .and_then(|bytes| parse_config(&bytes).ok());
        let Some(config) = config else {
            fault("its configuration can't be read".to_owned(), false);
            continue;
        };
        for layer in bundle_tools::image::chain_ids(&config.rootfs.diff_ids) {
            if !layers::is_ready(store, &layer)? {
                fault(
                    format!(
                        "layer {} is not unpacked, or was not when the power failed",
                        layer.hex()
                    ),
                    true,
                );
            }
        }
    }
    Ok(verdict)
}

/// Bytes hashed, or what is wrong.
fn examine(layout: &Layout, blob: &Descriptor, hash: bool) -> std::result::Result<u64, String> {
    let file = match layout.open_blob(&blob.digest) {
        Ok(file) => file,
        Err(error) => {
            return match layout.has_blob(&blob.digest, None) {
                false => Err("is missing".to_owned()),
                true => Err(format!("can't be opened: {error}")),
            };
        }
    };
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    if size != blob.size {
        return Err(format!("has {size} bytes instead of {}", blob.size));
    }
    if !hash {
        return Ok(0);
    }
    let hasher = bundle_tools::digest::Hasher::like(&blob.digest);
    let mut reader = HashReader::with(file.take(size), hasher);
    copy(&mut reader, &mut std::io::sink()).map_err(|error| format!("can't be read: {error}"))?;
    let (digest, _) = reader.finish();
    match digest == blob.digest {
        true => Ok(size),
        false => Err("does not match its digest".to_owned()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
