//! `push`: from the store into a registry.
//!
//! The manifest goes as it is, byte for byte, so that an image that was pulled has the same digest wherever it is
//! pushed, and one made here always gets the same one. In this order, because a registry refuses what refers to
//! something it does not have: the layers, several at a time; the configuration; the manifest under its tag.
//!
//! Layers lie in the store compressed, ready to be sent. Their files are opened before the first request: an image that
//! is removed meanwhile is pushed all the same, and nobody has to wait for us.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bundle_tools::Digest;
use bundle_tools::image::{Descriptor, Index, MAX_DOCUMENT, Manifest, media_type};
use bundle_tools::layout::Layout;
use futures_util::{StreamExt, TryStreamExt};

use super::progress::{LayerState, Progress};
use super::registry::{self, Access, Content, Fault, Oci, Use, connect, with_retries};
use super::{Image, Reference, SOURCE_DIGEST, find, guard, layout, require};
use crate::store::{Event, Kind, Store};

/// How many layers are sent at once, as docker does.
const PARALLEL: usize = 5;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// How to push.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// How to get at the registry.
    pub access: Access,
}

/// What a push came to.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
}

/// Why an image could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination is no place for an image.
    #[error("cannot push to {0}: a tag is needed, not a digest")]
    Digest(String),
    /// The registry can't be used.
    #[error(transparent)]
    Registry(#[from] registry::Refusal),
    /// Something of the image could not be sent.
    #[error("cannot push {what} to {reference}")]
    Send {
        /// `the manifest`, `layer sha256:…`.
        what: String,
        /// The destination.
        reference: String,
        /// Why.
        source: Fault,
    },
    /// What the machine says about the registry can't be used.
    #[error(transparent)]
    Access(#[from] registry::Error),
    /// No runtime for the network part.
    #[error("cannot start the network threads")]
    Runtime(#[source] std::io::Error),
    /// The store can't be read.
    #[error(transparent)]
    Image(#[from] super::Error),
}

impl From<bundle_tools::layout::Error> for Error {
    fn from(error: bundle_tools::layout::Error) -> Error {
        Error::Image(error.into())
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Sends the image that `source` finds to `destination`.
///
/// # Errors
/// No such image; see [`Error`] for the rest. What was sent stays in the registry then, and is not sent again.
pub fn push(
    store: &Store,
    source: &str,
    destination: &Reference,
    options: &PushOptions,
    progress: &dyn Progress,
) -> Result<Pushed> {
    if destination.digest().is_some() {
        return Err(Error::Digest(destination.familiar()));
    }
    let parcel = Parcel::pack(store, source, destination)?;
    let endpoints = registry::endpoints(destination, &options.access, Use::Push)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(parcel.send(destination, &endpoints, progress))?;
    runtime.shutdown_background();
    record(store, destination, &parcel.digest)?;
    let name = destination.to_string();
    store.emit(&Event::new(Kind::Image, "push", &name).with("name", &name));
    Ok(Pushed {
        size: parcel.manifest.len() as u64,
        digest: parcel.digest,
    })
}

/// Everything of an image that a registry gets, its files open.
struct Parcel {
    layers: Vec<Content>,
    config: Content,
    manifest: Vec<u8>,
    media_type: String,
    digest: Digest,
    /// Other repositories of the registry that are thought to have a layer.
    elsewhere: HashMap<Digest, String>,
}

impl Parcel {
    fn pack(store: &Store, source: &str, destination: &Reference) -> Result<Parcel> {
        // Until the files are open, nobody may remove the image.
        let _guard = guard(store)?;
        let image = require(store, source)?;
        let layout = layout(store)?;
        let bytes = layout.read_blob(&image.manifest.digest, MAX_DOCUMENT)?;
        let (_, manifest) = find::read_manifest(&layout, &image.manifest)?;
        let mut layers: Vec<Content> = Vec::new();
        for layer in &manifest.layers {
            // Some layers may not be passed on, and are fetched from elsewhere (Windows).
            let foreign = media_type::is_foreign_layer(&layer.media_type) && !layer.urls.is_empty();
            if !foreign && !layers.iter().any(|other| other.digest == layer.digest) {
                layers.push(open(&layout, layer)?);
            }
        }
        Ok(Parcel {
            config: open(&layout, &manifest.config)?,
            layers,
            manifest: bytes,
            media_type: type_of(&image, &manifest),
            elsewhere: elsewhere(&layout, &layout.index()?, destination),
            digest: image.manifest.digest,
        })
    }

    async fn send(
        &self,
        destination: &Reference,
        endpoints: &[registry::Endpoint],
        progress: &dyn Progress,
    ) -> Result<()> {
        let (registry, config_is_there) = connect(endpoints, Use::Push, async |it| {
            it.has_blob(&self.config.digest).await
        })
        .await
        .map_err(|fault| explain(destination, "the configuration", fault))?;
        for layer in &self.layers {
            progress.layer(&layer.digest, LayerState::Waiting);
        }
        futures_util::stream::iter(&self.layers)
            .map(|layer| self.send_layer(&registry, layer, progress))
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await
            .map_err(|(digest, fault)| explain(destination, &format!("layer {digest}"), fault))?;
        if !config_is_there {
            registry
                .upload(&self.config, None, |_| {})
                .await
                .map_err(|fault| explain(destination, "the configuration", fault))?;
        }
        let at = destination.tag().unwrap_or(self.digest.as_str());
        with_retries(async || {
            registry
                .put_manifest(at, &self.media_type, &self.manifest)
                .await
        })
        .await
        .map_err(|fault| explain(destination, "the manifest", fault))
    }

    async fn send_layer(
        &self,
        registry: &Oci,
        layer: &Content,
        progress: &dyn Progress,
    ) -> std::result::Result<(), (Digest, Fault)> {
        let digest = &layer.digest;
        let failed = |fault| (digest.clone(), fault);
        if with_retries(async || registry.has_blob(digest).await)
            .await
            .map_err(failed)?
        {
            progress.layer(digest, LayerState::Exists);
            return Ok(());
        }
        let from = self.elsewhere.get(digest).map(String::as_str);
        let retrying = |fault: &Fault| {
            progress.layer(digest, LayerState::Retrying(&fault.to_string()));
        };
        let upload = registry.upload(layer, from, retrying);
        tokio::pin!(upload);
        let mut tick = tokio::time::interval(TICK);
        let mounted = loop {
            tokio::select! {
                result = &mut upload => break result.map_err(failed)?,
                _ = tick.tick() => {
                    let done = layer.sent.load(Ordering::Relaxed);
                    if done > 0 {
                        progress.layer(digest, LayerState::Uploading { done, total: layer.size });
                    }
                }
            }
        };
        match from {
            Some(from) if mounted => progress.layer(digest, LayerState::Mounted(from)),
            _ => progress.layer(digest, LayerState::Complete),
        }
        Ok(())
    }
}

fn open(layout: &Layout, blob: &Descriptor) -> Result<Content> {
    let file = layout.open_blob(&blob.digest)?;
    // One byte more than there should be tells a file that is too long, or too short, before it goes over the network.
    let mut past = [0];
    let whole = |size: u64| {
        let last = size == 0 || file.read_exact_at(&mut [0], size - 1).is_ok();
        last && file.read_at(&mut past, size).is_ok_and(|read| read == 0)
    };
    let mut whole = whole;
    if !whole(blob.size) {
        return Err(super::Error::Damaged {
            digest: blob.digest.clone(),
            source: format!("it does not have the {} bytes it should have", blob.size).into(),
        }
        .into());
    }
    Ok(Content {
        file: Arc::new(file),
        digest: blob.digest.clone(),
        size: blob.size,
        sent: Arc::new(AtomicU64::new(0)),
    })
}

/// What the registry is told about the manifest: its own word before the index's.
fn type_of(image: &Image, manifest: &Manifest) -> String {
    manifest
        .media_type
        .clone()
        .unwrap_or_else(|| image.manifest.media_type.clone())
}

/// Which repository of the destination's registry may have which layer, by the names that images have here.
fn elsewhere(layout: &Layout, index: &Index, destination: &Reference) -> HashMap<Digest, String> {
    let mut found = HashMap::new();
    for entry in &index.manifests {
        let name = entry
            .ref_name()
            .and_then(|name| name.parse::<Reference>().ok());
        let Some(name) = name.filter(|name| {
            name.registry() == destination.registry()
                && name.repository() != destination.repository()
                // Only those that were pulled from there or pushed there.
                && entry.annotations.contains_key(SOURCE_DIGEST)
        }) else {
            continue;
        };
        if let Ok((_, manifest)) = find::read_manifest(layout, entry) {
            for layer in manifest.layers {
                found
                    .entry(layer.digest)
                    .or_insert_with(|| name.repository().to_owned());
            }
        }
    }
    found
}

/// Writes down that the registry knows the image by that digest, if it has the destination's name here.
fn record(store: &Store, destination: &Reference, digest: &Digest) -> Result<()> {
    let name = destination.to_string();
    layout(store)?.update_index(|index| -> Result<()> {
        let entry = index
            .manifests
            .iter_mut()
            .find(|entry| entry.ref_name() == Some(&name) && entry.digest == *digest);
        if let Some(entry) = entry {
            entry
                .annotations
                .insert(SOURCE_DIGEST.to_owned(), digest.to_string());
        }
        Ok(())
    })
}

/// The fault as what it means to somebody who pushes.
fn explain(destination: &Reference, what: &str, fault: Fault) -> Error {
    match fault.into_refusal("push", destination) {
        Ok(refusal) => refusal.into(),
        Err(source) => Error::Send {
            what: what.to_owned(),
            reference: destination.familiar(),
            source,
        },
    }
}
