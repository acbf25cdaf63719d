//! Layers and images out of a build's steps.
//!
//! A step's changes lie in an overlay's upper directory, which already has the form of an unpacked layer: it is
//! renamed to its chain id instead of being packed and unpacked again. The archive is made in any case, since its
//! digest is the layer's name; it is compressed and kept only when an image will list it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use bundle_tools::Digest;
use bundle_tools::digest::HashWriter;
use bundle_tools::image::{Descriptor, ImageConfig, Manifest, chain_ids, media_type};
use bundle_tools::layer::compression::{Compression, Encoder};
use bundle_tools::layer::diff;
use bundle_tools::layout::{BlobWriter, Layout};

use super::{Error, Image, Reference, Result, add, find, layers, layout, name, sync};
use crate::store::{Context, Event, Kind, Store};

/// A layer that a step has made.
#[derive(Debug, Clone)]
pub(crate) struct BuiltLayer {
    pub(crate) diff_id: Digest,
    pub(crate) chain: Digest,
    /// Its archive in the store, if it was kept.
    pub(crate) blob: Option<Descriptor>,
}

/// Where an archive goes whose digest is computed in passing.
enum Out {
    Blob(Box<Encoder<BlobWriter>>),
    Nowhere,
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Out::Blob(encoder) => encoder.write(bytes),
            Out::Nowhere => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a layer of an unmounted upper directory, which is gone afterwards; `None` when nothing has changed in it.
///
/// `below` are the diff ids of the layers it lay on. The caller holds a [`super::WriterGuard`].
pub(crate) fn layer_of_upper(
    store: &Store,
    upper: &Path,
    below: &[Digest],
    keep_archive: bool,
) -> Result<Option<BuiltLayer>> {
    let (summary, diff_id, blob) = archive(&layout(store)?, upper, keep_archive)?;
    if summary.entries == 0 {
        return Ok(None);
    }
    let mut diff_ids = below.to_vec();
    diff_ids.push(diff_id.clone());
    let Some(chain) = chain_ids(&diff_ids).pop() else {
        return Ok(None);
    };
    let slot = layers::anonymous(store)?;
    fs::remove_dir(slot.diff()).context("remove", &slot.diff())?;
    fs::rename(upper, slot.diff()).context("rename", upper)?;
    slot.finish_as(&chain, summary.bytes)?;
    Ok(Some(BuiltLayer {
        diff_id,
        chain,
        blob,
    }))
}

/// The archive of a layer that is unpacked in the store.
pub(crate) fn blob_of_layer(store: &Store, chain: &Digest, diff_id: &Digest) -> Result<Descriptor> {
    let directory = layers::directory(store, chain).join(layers::DIFF);
    let (_, actual, blob) = archive(&layout(store)?, &directory, true)?;
    match blob {
        Some(blob) if actual == *diff_id => Ok(blob),
        _ => Err(Error::NewLayer(
            format!(
                "{} is not what it was when it was made",
                directory.display()
            )
            .into(),
        )),
    }
}

/// Whether the store still has a layer's archive.
pub(crate) fn has_blob(store: &Store, blob: &Descriptor) -> Result<bool> {
    Ok(layout(store)?.has_blob(&blob.digest, Some(blob.size)))
}

/// The layers' archives of an image, in the order of its diff ids.
pub(crate) fn blobs_of(store: &Store, image: &Image) -> Result<Vec<Descriptor>> {
    Ok(add::base_layers(&layout(store)?, image)?.0)
}

fn archive(
    layout: &Layout,
    directory: &Path,
    keep: bool,
) -> Result<(diff::Summary, Digest, Option<Descriptor>)> {
    let failed = |error: io::Error| Error::NewLayer(error.into());
    let out = if keep {
        let encoder = Encoder::new(layout.blob_writer()?, Compression::Gzip);
        Out::Blob(Box::new(
            encoder.map_err(|error| Error::NewLayer(error.into()))?,
        ))
    } else {
        Out::Nowhere
    };
    let mut archive = io::BufWriter::with_capacity(1 << 17, HashWriter::new(out));
    let summary = diff::write_upper(directory, &mut archive, &diff::Options::default())
        .map_err(|error| Error::NewLayer(error.into()))?;
    let archive = archive
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    let (diff_id, _, out) = archive.finish();
    let blob = match out {
        Out::Blob(encoder) if summary.entries > 0 => {
            let (digest, size) = encoder.finish().map_err(failed)?.commit(None)?;
            let kind = media_type::of_layer(Compression::Gzip);
            Some(Descriptor::new(kind, digest, size))
        }
        _ => None,
    };
    Ok((summary, diff_id, blob))
}

/// Writes an image of these layers, under all of `names` or under none. An image that is there already under the same
/// names costs nothing.
///
/// `unpacked` are further layers that shall outlive a power cut.
pub(crate) fn publish(
    store: &Store,
    mut config: ImageConfig,
    blobs: Vec<Descriptor>,
    names: &[Reference],
    unpacked: &[Digest],
) -> Result<Image> {
    let layout = layout(store)?;
    let diff_ids = std::mem::take(&mut config.rootfs.diff_ids);
    let chain = chain_ids(&diff_ids);
    add::complete(&mut config, diff_ids);
    let config = layout.put_json(&config, media_type::CONFIG)?;
    let manifest = layout.put_json(&Manifest::new(config, blobs), media_type::MANIFEST)?;
    let index = layout.index()?;
    let is_there = |name: &Reference| {
        let name = name.to_string();
        let mut entries = index.manifests.iter();
        entries.any(|it| it.ref_name() == Some(&name) && it.digest == manifest.digest)
    };
    let is_known = index
        .manifests
        .iter()
        .any(|entry| entry.digest == manifest.digest);
    if !is_known || !names.iter().all(is_there) {
        sync(store)?;
        layers::settle(store, &chain)?;
        layers::settle(store, unpacked)?;
        layout.update_index(|index| -> Result<()> {
            if names.is_empty() {
                name::set(index, manifest.clone(), None);
            }
            for reference in names {
                name::set(index, manifest.clone(), Some(reference));
            }
            Ok(())
        })?;
    }
    let image = find::load(&layout, &layout.index()?, &manifest)?;
    for name in names {
        let event = Event::new(Kind::Image, "tag", image.id.to_string());
        store.emit(&event.with("name", name.to_string()));
    }
    Ok(image)
}
