//! `pull`: from a registry into the store.
//!
//! In this order: find out how to talk to the registry and fetch the manifest for our platform (`resolve`); fetch
//! the configuration; fetch the layers, three at a time, each unpacked while it arrives (`blob`); write everything
//! to the disk with one `syncfs`; only then mention the image in `index.json`. Whatever fails or is killed before
//! leaves files that nothing mentions, and those are collected.
//!
//! The caller's world is synchronous. Only the network part is not: it runs on a small runtime that exists as long
//! as the pull.

mod blob;
mod resolve;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bundle_tools::Digest;
use bundle_tools::digest::{HashReader, Hasher};
use bundle_tools::image::{
    self as documents, Descriptor, ImageConfig, Manifest, Platform, chain_ids,
};
use bundle_tools::layout::Layout;

use super::layers::{self, Claim};
pub use super::progress::{LayerState, Progress};
use super::registry::{Access, Oci};
use super::{
    Image, Reference, SOURCE_DIGEST, WriterGuard, collect, collect::sweep, find, layout, name,
    registry, require, sync,
};
use crate::store::{Context, Event, Kind, Store};

pub use registry::Fault;

/// How many layers are fetched at once, as docker does.
const PARALLEL: usize = 3;

/// How to pull.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// For which platform; this machine's when absent.
    pub platform: Option<Platform>,
    /// How to get at the registry.
    pub access: Access,
}

/// What a pull came to.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// The digest the reference stands for: that of the manifest, or of the index that lists it.
    pub digest: Digest,
    /// Whether the reference stood for another image, or none, before.
    pub newer: bool,
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry has no such image.
    #[error("manifest for {reference} not found: {host} has no such repository or tag")]
    NotFound {
        /// What was asked for.
        reference: String,
        /// The registry.
        host: String,
    },
    /// The registry can't be used.
    #[error(transparent)]
    Registry(#[from] registry::Refusal),
    /// The registry's answer to a request for a manifest or configuration is no good.
    #[error("cannot get the {what} of {reference}")]
    Fetch {
        /// `manifest`, `configuration`.
        what: &'static str,
        /// What was asked for.
        reference: String,
        /// Why.
        source: Fault,
    },
    /// A document is malformed, or there is none for the platform.
    #[error("cannot use {reference}")]
    Document {
        /// What was asked for.
        reference: String,
        /// Why.
        source: Box<documents::Error>,
    },
    /// The image is for another platform than the one asked for.
    #[error("image {reference} is for {actual} and does not match the specified platform {wanted}")]
    Platform {
        /// What was asked for.
        reference: String,
        /// What the image says.
        actual: String,
        /// The platform asked for.
        wanted: String,
    },
    /// It is no image of a container.
    #[error("{reference} is not a container image: {what} has media type {media_type:?}")]
    NoImage {
        /// What was asked for.
        reference: String,
        /// Which part.
        what: &'static str,
        /// Its type.
        media_type: String,
    },
    /// A layer could not be fetched.
    #[error("cannot pull layer {digest}")]
    Layer {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: Fault,
    },
    /// A layer could not be unpacked.
    #[error("cannot unpack layer {digest}")]
    Unpack {
        /// The layer's blob.
        digest: Digest,
        /// Why.
        source: super::unpack::Error,
    },
    /// What the machine says about the registry can't be used.
    #[error(transparent)]
    Access(#[from] registry::Error),
    /// No runtime for the network part.
    #[error("cannot start the network threads")]
    Runtime(#[source] std::io::Error),
    /// The store can't be written.
    #[error(transparent)]
    Image(#[from] super::Error),
    /// Another layer failed first.
    #[error("given up because of another layer")]
    GivenUp,
}

impl From<crate::store::Error> for Error {
    fn from(error: crate::store::Error) -> Error {
        Error::Image(error.into())
    }
}

impl From<bundle_tools::layout::Error> for Error {
    fn from(error: bundle_tools::layout::Error) -> Error {
        Error::Image(error.into())
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Fetches an image, or finds that it is there already.
///
/// # Errors
/// See [`Error`]. Nothing of the image is left in the store then.
pub fn pull(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    sweep(store)?;
    let result = fetch_and_publish(store, reference, options, progress);
    // What this pull has left if it failed, and what killed ones have left.
    let collected = collect(store);
    let pulled = result?;
    let name = reference.to_string();
    store.emit(&Event::new(Kind::Image, "pull", &name).with("name", &name));
    if let Err(error) = collected {
        progress.warning(&format!(
            "cannot collect what is not needed any more: {error}"
        ));
    }
    Ok(pulled)
}

/// All tags that an image's repository has in its registry, as references, sorted.
///
/// # Errors
/// No such repository, or the registry can't be asked.
pub fn tags(reference: &Reference, access: &Access) -> Result<Vec<Reference>> {
    let endpoints = registry::endpoints(reference, access, registry::Use::Pull)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let connecting = registry::connect(&endpoints, registry::Use::Pull, async |it| it.tags().await);
    let (_, tags) = runtime
        .block_on(connecting)
        .map_err(|fault| resolve::explain(reference, "manifest", fault))?;
    let parse = |tag: String| {
        format!("{}:{tag}", reference.name())
            .parse::<Reference>()
            .ok()
    };
    let mut tags: Vec<Reference> = tags.into_iter().filter_map(parse).collect();
    tags.sort();
    Ok(tags)
}

fn fetch_and_publish(
    store: &Store,
    reference: &Reference,
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<Pulled> {
    let layout = layout(store)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let endpoints = registry::endpoints(reference, &options.access, registry::Use::Pull)?;

    let _guard = WriterGuard::take(store)?;
    let resolving = resolve::resolve(&layout, reference, &endpoints, options, progress);
    let (registry, resolved) = runtime.block_on(resolving)?;
    let before = find::find(store, &reference.to_string())?;
    let job = Job {
        store,
        layout: &layout,
        registry,
        runtime: runtime.handle(),
        progress,
        given_up: AtomicBool::new(false),
    };
    job.fetch_layers(&resolved)?;
    let manifest = publish(store, &layout, reference, &resolved)?;
    runtime.shutdown_background();
    Ok(Pulled {
        image: require(store, &reference.to_string())?,
        newer: before.is_none_or(|image| image.manifest.digest != manifest.digest),
        digest: resolved.source,
    })
}

/// An image in a registry, its layers aside.
#[derive(Debug)]
struct Resolved {
    /// The digest the reference stands for.
    source: Digest,
    /// The digest of its manifest.
    digest: Digest,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    media_type: String,
    config: ImageConfig,
    config_bytes: Vec<u8>,
    chain: Vec<Digest>,
}

impl Resolved {
    fn new(
        source: Digest,
        manifest: Manifest,
        manifest_bytes: Vec<u8>,
        config: ImageConfig,
        config_bytes: Vec<u8>,
    ) -> Resolved {
        let media_type = manifest.media_type.clone();
        Resolved {
            source,
            digest: Digest::sha256_of(&manifest_bytes),
            media_type: media_type.unwrap_or_else(|| documents::media_type::MANIFEST.to_owned()),
            chain: chain_ids(&config.rootfs.diff_ids),
            manifest,
            manifest_bytes,
            config,
            config_bytes,
        }
    }
}

fn publish(
    store: &Store,
    layout: &Layout,
    reference: &Reference,
    resolved: &Resolved,
) -> Result<Descriptor> {
    let documents = [
        (&resolved.config_bytes, &resolved.manifest.config.digest),
        (&resolved.manifest_bytes, &resolved.digest),
    ];
    for (bytes, digest) in documents {
        // Written even if there is such a file: one that nothing mentions may have been through a power cut.
        let mut blob = layout.blob_writer()?;
        blob.write_all(bytes)
            .context("write a blob in", layout.path())?;
        blob.commit(Some(digest))?;
    }
    let size = resolved.manifest_bytes.len() as u64;
    let mut manifest = Descriptor::new(&resolved.media_type, resolved.digest.clone(), size);
    layers::inherit(store, &resolved.chain)?;
    sync(store)?;
    layers::settle(store, &resolved.chain)?;
    let source = resolved.source.to_string();
    manifest
        .annotations
        .insert(SOURCE_DIGEST.to_owned(), source);
    layout.update_index(|index| -> Result<()> {
        name::set(index, manifest.clone(), Some(reference));
        Ok(())
    })?;
    Ok(manifest)
}

/// What the workers share.
struct Job<'a> {
    store: &'a Store,
    layout: &'a Layout,
    registry: Arc<Oci>,
    runtime: &'a tokio::runtime::Handle,
    progress: &'a dyn Progress,
    /// One of them failed: the others stop.
    given_up: AtomicBool,
}

/// One layer's names.
#[derive(Debug, Clone, Copy)]
struct LayerTask<'a> {
    blob: &'a Descriptor,
    diff_id: &'a Digest,
    chain: &'a Digest,
}

impl Job<'_> {
    fn fetch_layers(&self, resolved: &Resolved) -> Result<()> {
        let diff_ids = &resolved.config.rootfs.diff_ids;
        let tasks = resolved
            .manifest
            .layers
            .iter()
            .zip(diff_ids)
            .zip(&resolved.chain);
        let tasks: VecDeque<LayerTask<'_>> = tasks
            .map(|((blob, diff_id), chain)| LayerTask {
                blob,
                diff_id,
                chain,
            })
            .collect();
        if tasks.iter().all(|task| self.is_there(*task)) {
            return Ok(());
        }
        for task in &tasks {
            self.progress.layer(&task.blob.digest, LayerState::Waiting);
        }
        let workers = PARALLEL.min(tasks.len());
        let queue = Mutex::new(tasks);
        let next = || {
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front()
        };
        let work = || -> Result<()> {
            while let Some(task) = next() {
                self.fetch_layer(task)
                    .inspect_err(|_| self.given_up.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
        // The reason goes before what it led to.
        errors.sort_by_key(|error| matches!(error, Error::GivenUp));
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    fn has_blob(&self, task: LayerTask<'_>) -> bool {
        self.layout
            .has_blob(&task.blob.digest, Some(task.blob.size))
    }

    fn is_there(&self, task: LayerTask<'_>) -> bool {
        self.has_blob(task) && layers::is_ready(self.store, task.chain).unwrap_or(false)
    }

    /// Whether a blob that nothing mentions yet survived whatever happened since it was written.
    fn is_whole(&self, digest: &Digest) -> bool {
        let Ok(file) = self.layout.open_blob(digest) else {
            return false;
        };
        let mut content = HashReader::with(file, Hasher::like(digest));
        let mut buffer = vec![0; 1 << 18];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => return content.finish().0 == *digest,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    fn fetch_layer(&self, task: LayerTask<'_>) -> Result<()> {
        let LayerTask {
            blob,
            diff_id,
            chain,
        } = task;
        if self.given_up.load(Ordering::Relaxed) {
            return Err(Error::GivenUp);
        }
        let has_blob = || self.has_blob(task);
        match layers::claim(self.store, chain)? {
            Claim::Ready if has_blob() => {
                self.progress.layer(&blob.digest, LayerState::Exists);
                return Ok(());
            }
            // Unpacked from a blob of other compression: the layout has to have this one too.
            Claim::Ready => self.fetch_blob(task, None)?,
            Claim::Ours(slot) if has_blob() && self.is_whole(&blob.digest) => {
                self.progress.layer(&blob.digest, LayerState::Extracting);
                layers::from_blob(self.layout, &blob.digest, slot, diff_id)?;
            }
            Claim::Ours(slot) => self.fetch_blob(task, Some(slot))?,
        }
        self.progress.layer(&blob.digest, LayerState::Complete);
        Ok(())
    }
}
