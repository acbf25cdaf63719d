//! Images: found, listed, pulled, added to, tagged and removed.
//!
//! The store's root is an OCI image layout, so every image is a manifest that `index.json` mentions, under its full
//! name or (an untagged image) under none. Beside the blobs lie the layers, each unpacked once per chain id; see
//! [`layers`]. An image appears in `index.json` last, after everything it needs has reached the disk, and disappears
//! from there first: at no instant can anyone see half an image.
//!
//! Two locks keep the collection of garbage ([`fn@collect`]) away from content that is about to be used:
//! - `images.lock`, held shared for the moment between finding an image and writing down that a container uses it
//!   ([`guard`]), and exclusively while an image is removed;
//! - `images-writers.lock`, held shared by whoever adds content that no `index.json` mentions yet. Collection never
//!   waits for it: it is left to the next one.

mod add;
mod base;
pub(crate) mod built;
mod collect;
mod filter;
mod find;
mod history;
mod import;
pub mod layers;
pub mod load;
mod name;
mod progress;
pub mod pull;
pub mod push;
pub mod reference;
pub mod registry;
mod remove;
pub mod save;
mod unpack;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use bundle_tools::Digest;
use bundle_tools::image::{Descriptor, ImageConfig};
use bundle_tools::layout::{Layout, Lease};

use crate::store::{self, Lock, Store};

pub use add::{LayerSource, add_layer_image};
pub use base::build_base;
pub use collect::{Freed, collect, nobody_writes, sweep};
pub use filter::Filter;
pub use find::{Listed, blobs, find, list, require};
pub use history::{Step, history};
pub use import::{ImportOptions, import};
pub use layers::lower_directories;
pub use load::{Loaded, load};
pub use name::tag;
pub use progress::{LayerState, Progress};
pub use pull::{PullOptions, Pulled, pull};
pub use push::{PushOptions, Pushed, push};
pub use reference::Reference;
pub use registry::Access;
pub use remove::{Removal, remove};
pub use save::{ArchiveFormat, save};

/// The digest a tag stood for in its registry, kept beside the name: for a multi-platform image that is the digest
/// of the index, which is not among the blobs.
pub(crate) const SOURCE_DIGEST: &str = "io.qengine.image.source-digest";

/// An image as the store has it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the configuration, which is what people call the image's id.
    pub id: Digest,
    /// The manifest as `index.json` mentions it.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: ImageConfig,
    /// Chain ids of the layers, lowest first.
    pub layers: Vec<Digest>,
    /// All its full references, sorted; empty for an untagged image.
    pub names: Vec<String>,
    /// Of those names that were pulled or pushed: the digest the registry knows the image by.
    pub digests: BTreeMap<String, Digest>,
}

impl Image {
    /// When it was made, if it says so in a way that can be read.
    #[must_use]
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config.created.as_ref()?.parse().ok()
    }

    /// The digest that the registry of `name` knows it by; of the index, if it was pulled through one.
    #[must_use]
    pub fn digest_of(&self, name: &Reference) -> Option<&Digest> {
        self.digests.get(&name.to_string())
    }

    /// Names with digests, as docker lists them.
    #[must_use]
    pub fn repository_digests(&self) -> Vec<String> {
        let named = self.digests.iter().filter_map(|(name, digest)| {
            let name: Reference = name.parse().ok()?;
            Some(format!("{}@{digest}", name.familiar_name()))
        });
        let unique: BTreeSet<String> = named.collect();
        unique.into_iter().collect()
    }
}

/// What can go wrong with images on this machine; what can go wrong with a registry is [`pull::Error`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image of that name or id.
    #[error("no such image: {0}")]
    NotFound(String),
    /// A prefix fits several ids.
    #[error("image id prefix {prefix} is ambiguous: it fits {count} images")]
    Ambiguous {
        /// What was asked for.
        prefix: String,
        /// How many images it fits.
        count: usize,
    },
    /// A name is malformed.
    #[error(transparent)]
    Reference(#[from] reference::ParseError),
    /// An image can't be removed as things are.
    #[error("conflict: unable to remove {target} (must be forced) - {reason}")]
    Conflict {
        /// What should be removed.
        target: String,
        /// Why not.
        reason: String,
    },
    /// An image in the store can't be read.
    #[error("image {digest} in the store can't be used")]
    Damaged {
        /// Digest of its manifest.
        digest: Digest,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image layout could not be read or written.
    #[error(transparent)]
    Layout(#[from] bundle_tools::layout::Error),
    /// A file of the store could not be handled.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A layer's archive can't be unpacked.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
    /// A new layer could not be made.
    #[error("cannot make the new layer")]
    NewLayer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An instruction of `--change` can't be used.
    #[error("{0}")]
    Change(String),
    /// The basic image can't be made.
    #[error("cannot make the basic image: {0}")]
    Base(String),
    /// The basic image can't be made because a file can't be handled.
    #[error("cannot make the basic image: {action} {path}")]
    BaseFile {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Keeps images from being removed while it is held.
///
/// Whoever starts to use an image holds it from before [`fn@find`] until it is on disk that a container uses the image.
///
/// # Errors
/// When the lock file can't be opened.
pub fn guard(store: &Store) -> Result<Lock> {
    Ok(Lock::shared(&store.root().join("images.lock"))?)
}

/// Keeps content that nothing mentions yet from being collected while it is held.
#[derive(Debug)]
pub(crate) struct WriterGuard {
    _layers: Lock,
    _blobs: Lease,
}

impl WriterGuard {
    pub(crate) fn take(store: &Store) -> Result<WriterGuard> {
        Ok(WriterGuard {
            _layers: Lock::shared(&collect::writers_lock(store))?,
            _blobs: layout(store)?.lease()?,
        })
    }
}

/// The image layout in the store's root, made when it is not there.
pub(crate) fn layout(store: &Store) -> Result<Layout> {
    match Layout::open(store.root()) {
        Err(bundle_tools::layout::Error::NotALayout { .. }) => Ok(Layout::create(store.root())?),
        other => Ok(other?),
    }
}

/// Writes everything in the store to the disk: one `syncfs(2)` instead of thousands of `fsync(2)`.
pub(crate) fn sync(store: &Store) -> Result<()> {
    Ok(layout(store)?.sync()?)
}

#[cfg(test)]
mod tests;
