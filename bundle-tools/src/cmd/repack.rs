//! `qbundle repack`: what changed in a bundle's root file system becomes a layer on top of its image.
//!
//! The original is unpacked once more, beside the bundle, and compared with: slower
//! than a list of checksums kept from the time of unpacking, but it sees every
//! change, also one that kept size and time.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bundle_tools::digest::HashWriter;
use bundle_tools::image::{
    Descriptor, History, ImageConfig, Manifest, Platform, REF_NAME, media_type,
};
use bundle_tools::layer::compression::{Compression, Encoder};
use bundle_tools::layer::diff;
use bundle_tools::layout::{self, Image, Layout};

use super::source::{Record, Source};
use super::unpack::{Made, apply_options, unpack_layers};

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// Where to put the new image: a layout directory, and a name in it
    #[arg(long, value_name = "LAYOUT:NAME")]
    image: Source,
    /// What to say in the history about the new layer
    #[arg(long, value_name = "TEXT", default_value = "qbundle repack")]
    created_by: String,
    /// The layer's compression
    #[arg(long, value_enum, default_value = "gzip")]
    compression: CompressionFlag,
    /// The bundle's directory
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CompressionFlag {
    None,
    Gzip,
    Zstd,
}

pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let Some(name) = &flags.image.name else {
        bail!(
            "--image {}: a name is missing behind the layout",
            flags.image.layout.display()
        );
    };
    let record = Record::read(&flags.bundle)?;
    let from = Layout::open(&record.layout)?;
    let base = find_base(&from, &record)?;
    let into = Layout::create(&flags.image.layout)?;
    // Before the first blob: what is copied now is named only at the end.
    let _lease = into.lease()?;

    let beside = PathBuf::from(format!(
        "{}.repack-{}",
        trimmed(&flags.bundle),
        std::process::id()
    ));
    let scratch = Made::directory(&beside)?;
    let original = beside.join("rootfs");
    unpack_layers(&from, &base, &original, &apply_options(record.rootless))?;
    let layer = new_layer(&into, &original, flags)?;
    drop(scratch);

    for layer in &base.manifest.layers {
        copy_blob(&from, &into, layer)?;
    }
    publish(&into, &base, layer, flags, name)?;
    Ok(ExitCode::SUCCESS)
}

fn trimmed(path: &Path) -> String {
    path.to_string_lossy().trim_end_matches('/').to_owned()
}

/// The image the bundle was made of: by its digest, for the name may mean another by now.
fn find_base(layout: &Layout, record: &Record) -> anyhow::Result<Image> {
    use bundle_tools::image::{Document, MAX_DOCUMENT, parse_config, parse_document};
    let bytes = layout.read_blob(&record.manifest.digest, MAX_DOCUMENT)?;
    let Document::Manifest(manifest) = parse_document(&bytes, Some(&record.manifest.media_type))?
    else {
        bail!("{} is no image manifest", record.manifest.digest);
    };
    let config = parse_config(&layout.read_blob(&manifest.config.digest, MAX_DOCUMENT)?)?;
    manifest.check_layers(&config)?;
    Ok(Image {
        name: record.name.clone(),
        descriptor: record.manifest.clone(),
        manifest,
        config,
    })
}

/// A layer that was stored: as it is stored, and its digest unpacked. `None`: nothing changed.
type NewLayer = Option<(Descriptor, bundle_tools::Digest)>;

fn new_layer(into: &Layout, original: &Path, flags: &Flags) -> anyhow::Result<NewLayer> {
    let compression = match flags.compression {
        CompressionFlag::None => Compression::None,
        CompressionFlag::Gzip => Compression::Gzip,
        CompressionFlag::Zstd => Compression::Zstd,
    };
    let blob = BufWriter::with_capacity(128 << 10, into.blob_writer()?);
    let mut archive = HashWriter::new(Encoder::new(blob, compression)?);
    let changed = flags.bundle.join("rootfs");
    let summary = diff::write_changes(original, &changed, &mut archive, &diff::Options::default())
        .context("compare the bundle with its image")?;
    let (diff_id, _, encoder) = archive.finish();
    let mut blob = encoder.finish().context("write the layer")?;
    blob.flush().context("write the layer")?;
    if summary.entries == 0 {
        return Ok(None);
    }
    let mut blob = blob
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    blob.sync()?;
    let (digest, size) = blob.commit(None)?;
    let layer = Descriptor::new(media_type::of_layer(compression), digest, size);
    Ok(Some((layer, diff_id)))
}

fn copy_blob(from: &Layout, into: &Layout, blob: &Descriptor) -> anyhow::Result<()> {
    if into.has_blob(&blob.digest, Some(blob.size)) {
        return Ok(());
    }
    let mut writer = into.blob_writer()?;
    std::io::copy(&mut from.open_blob(&blob.digest)?, &mut writer)
        .with_context(|| format!("copy {}", blob.digest))?;
    writer.sync()?;
    writer.commit(Some(&blob.digest))?;
    Ok(())
}

fn publish(
    into: &Layout,
    base: &Image,
    layer: NewLayer,
    flags: &Flags,
    name: &str,
) -> anyhow::Result<()> {
    let mut config: ImageConfig = base.config.clone();
    let mut layers = base.manifest.layers.clone();
    let history = History {
        created_by: Some(flags.created_by.clone()),
        empty_layer: layer.is_none(),
        ..History::default()
    };
    if let Some((descriptor, diff_id)) = layer {
        layers.push(descriptor);
        config.rootfs.diff_ids.push(diff_id);
    }
    config.history.push(history);
    let config = into.put_json(&config, media_type::CONFIG)?;
    let mut manifest = Manifest::new(config, layers);
    manifest.annotations.clone_from(&base.manifest.annotations);
    let mut entry = into.put_json(&manifest, media_type::MANIFEST)?;
    entry
        .annotations
        .insert(REF_NAME.to_owned(), name.to_owned());
    entry.platform = Some(Platform::new(
        &base.config.os,
        &base.config.architecture,
        base.config.variant.as_deref(),
    ));
    into.sync()?;
    into.update_index(|index| -> Result<(), layout::Error> {
        index
            .manifests
            .retain(|entry| entry.ref_name() != Some(name));
        index.manifests.push(entry);
        Ok(())
    })?;
    Ok(())
}
