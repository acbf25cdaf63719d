//! The documents an image consists of: descriptors, manifests, indexes, configurations.
//!
//! Docker's schema 2 documents are read as the OCI ones they correspond to:
//! the bytes, and so the digests, stay as they are. Schema 1 is refused.
//!
//! Governing text: image-spec, manifest.md, image-index.md, config.md.

mod config;
mod document;
pub mod media_type;
mod platform;

pub use config::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use document::{
    Descriptor, Document, Index, MAX_DOCUMENT, Manifest, parse_config, parse_document,
};
pub use platform::{Platform, choose};

use crate::digest::{Digest, Hasher};

/// The annotation that names an entry of a layout's `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image document can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is larger than any honest one.
    #[error("{what} of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// What was read: `manifest`, `image configuration`.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// The bytes are not the JSON they should be.
    #[error("read {what}")]
    Json {
        /// What was read.
        what: &'static str,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A schema 1 manifest, which registries stopped serving years ago.
    #[error(
        "docker schema 1 manifests are not supported: push the image again with a current tool"
    )]
    Schema1,
    /// A document that could be read as two kinds, or does not say which it is.
    #[error("refuse ambiguous manifest: {0}")]
    Ambiguous(&'static str),
    /// A media type that is neither a manifest nor an index.
    #[error("media type {0:?} is neither an image manifest nor an image index")]
    MediaType(String),
    /// The index has nothing for the platform.
    #[error("no image for platform {wanted}; there is: {available}")]
    NoPlatform {
        /// The platform asked for.
        wanted: String,
        /// The platforms of the index, separated by commas.
        available: String,
    },
    /// A platform string is malformed.
    #[error("platform {0:?}: expected os/architecture[/variant]")]
    Platform(String),
    /// The configuration's layers and the manifest's do not pair up.
    #[error("the configuration lists {diff_ids} layers, the manifest {layers}")]
    LayerCount {
        /// Entries in `rootfs.diff_ids`.
        diff_ids: usize,
        /// Entries in `layers`.
        layers: usize,
    },
}

/// Computes the chain id of every layer, lowest first.
///
/// image-spec, config.md, "Layer ChainID": it names the stack up to and with
/// a layer, where the diff id names the layer alone.
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => {
                let mut hasher = Hasher::sha256();
                hasher.update(format!("{below} {diff_id}").as_bytes());
                hasher.finish()
            }
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_recursion() {
        let layers = [
            Digest::sha256_of(b"a"),
            Digest::sha256_of(b"b"),
            Digest::sha256_of(b"c"),
        ];
        let chain = chain_ids(&layers);
        assert_eq!(chain[0], layers[0]);
        let second = Digest::sha256_of(format!("{} {}", layers[0], layers[1]).as_bytes());
        assert_eq!(chain[1], second);
        let third = Digest::sha256_of(format!("{second} {}", layers[2]).as_bytes());
        assert_eq!(chain[2], third);
        assert!(chain_ids(&[]).is_empty());
    }
}
