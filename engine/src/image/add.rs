//! New images on this machine: one more layer on top of an image, or on nothing.

use std::io::{self, Write};

use bundle_tools::Digest;
use bundle_tools::digest::{HashWriter, Hasher};
use bundle_tools::image::{Descriptor, ImageConfig, Manifest, Platform, chain_ids, media_type};
use bundle_tools::layer::compression::{Compression, Encoder};
use bundle_tools::layout::{BlobWriter, Layout};

use super::layers::{self, Slot};
use super::unpack::{self, PipeWriter};
use super::{Error, Image, Reference, Result, WriterGuard, collect, find, layout, name, sync};
use crate::store::Store;

/// Writes an uncompressed layer archive.
pub type LayerSource<'a> = dyn FnOnce(&mut dyn Write) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>
    + 'a;

/// Makes an image out of `base` (or nothing) and one more layer.
///
/// `config` is what the new image's configuration shall be; its list of layers is filled in here, and so are
/// platform and time where they are missing. The archive is compressed into a blob and unpacked in the same pass.
///
/// # Errors
/// When the archive can't be made, written or unpacked. Nothing is left of the image then.
pub fn add_layer_image(
    store: &Store,
    base: Option<&Image>,
    layer: Box<LayerSource<'_>>,
    config: ImageConfig,
    reference: Option<&Reference>,
) -> Result<Image> {
    let result = write_and_publish(store, base, layer, config, reference);
    if result.is_err() {
        // The first error is the one to report; what can't be collected now is by the next command.
        let _ = collect(store);
    }
    result
}

fn write_and_publish(
    store: &Store,
    base: Option<&Image>,
    layer: Box<LayerSource<'_>>,
    mut config: ImageConfig,
    reference: Option<&Reference>,
) -> Result<Image> {
    let _guard = WriterGuard::take(store)?;
    let layout = layout(store)?;
    let (mut layers, mut diff_ids) = match base {
        Some(base) => base_layers(&layout, base)?,
        None => (Vec::new(), Vec::new()),
    };

    let written = write_layer(store, &layout, layer)?;
    diff_ids.push(written.diff_id.clone());
    layers.push(written.blob);
    let chain = chain_ids(&diff_ids);
    if let Some(top) = chain.last() {
        written.slot.finish_as(top, written.bytes)?;
    }

    complete(&mut config, diff_ids);
    let config = layout.put_json(&config, media_type::CONFIG)?;
    let manifest = layout.put_json(&Manifest::new(config.clone(), layers), media_type::MANIFEST)?;
    layers::inherit(store, &chain)?;
    sync(store)?;
    layers::settle(store, &chain)?;
    layout.update_index(|index| -> Result<()> {
        name::set(index, manifest.clone(), reference);
        Ok(())
    })?;
    find::load(&layout, &layout.index()?, &manifest)
}

/// The base's layers, called by their OCI types, and their diff ids.
pub(super) fn base_layers(layout: &Layout, base: &Image) -> Result<(Vec<Descriptor>, Vec<Digest>)> {
    let (_, manifest) = find::read_manifest(layout, &base.manifest)?;
    let mut layers = manifest.layers;
    for layer in &mut layers {
        if let Some(compression) = media_type::layer_compression(&layer.media_type) {
            layer.media_type = media_type::of_layer(compression).to_owned();
        }
    }
    Ok((layers, base.config.rootfs.diff_ids.clone()))
}

pub(super) fn complete(config: &mut ImageConfig, diff_ids: Vec<Digest>) {
    let host = Platform::host();
    if config.architecture.is_empty() {
        config.architecture = host.architecture;
        config.variant = host.variant;
    }
    if config.os.is_empty() {
        config.os = host.os;
    }
    let now = jiff::Timestamp::now().to_string();
    config.created.get_or_insert(now);
    "layers".clone_into(&mut config.rootfs.kind);
    config.rootfs.diff_ids = diff_ids;
}

struct Written {
    blob: Descriptor,
    diff_id: Digest,
    bytes: u64,
    slot: Slot,
}

/// The archive goes two ways at once: through gzip into a blob, and into a directory by another thread.
struct Fork {
    blob: Encoder<BlobWriter>,
    unpacker: PipeWriter,
}

impl Write for Fork {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unpacker.write_all(bytes)?;
        self.blob.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_layer(store: &Store, layout: &Layout, layer: Box<LayerSource<'_>>) -> Result<Written> {
    let slot = layers::anonymous(store)?;
    let into = slot.diff();
    let (writer, archive) = unpack::pipe();
    let fork = Fork {
        blob: Encoder::new(layout.blob_writer()?, Compression::Gzip)
            .map_err(|error| Error::NewLayer(error.into()))?,
        unpacker: writer,
    };
    std::thread::scope(|scope| {
        let unpacker = scope.spawn(move || unpack::apply_archive(archive, &into, Hasher::sha256()));
        let blob = feed(fork, layer);
        let unpacked = unpacker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (blob, unpacked) {
            (Ok((blob, diff_id)), Ok(unpacked)) => {
                slot.note_implied(&unpacked.implied)?;
                Ok(Written {
                    blob,
                    diff_id,
                    bytes: unpacked.bytes,
                    slot,
                })
            }
            // Nobody could write because the unpacker had given up: it knows the reason.
            (Err(error), Err(reason)) if is_broken_pipe(&error) => Err(reason.into()),
            (Err(error), _) => Err(error),
            (Ok(_), Err(error)) => Err(error.into()),
        }
    })
}

fn feed(fork: Fork, layer: Box<LayerSource<'_>>) -> Result<(Descriptor, Digest)> {
    let failed = |error: io::Error| Error::NewLayer(error.into());
    // Buffered, since archives are written in blocks of 512 bytes.
    let mut archive = io::BufWriter::with_capacity(1 << 17, HashWriter::new(fork));
    layer(&mut archive).map_err(Error::NewLayer)?;
    let archive = archive
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    let (diff_id, _, fork) = archive.finish();
    fork.unpacker
        .end()
        .map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?;
    let blob = fork.blob.finish().map_err(failed)?;
    let (digest, size) = blob.commit(None)?;
    let kind = media_type::of_layer(Compression::Gzip);
    Ok((Descriptor::new(kind, digest, size), diff_id))
}

fn is_broken_pipe(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            return true;
        }
        cause = error.source();
    }
    false
}
