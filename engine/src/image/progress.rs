//! What a pull or a push tells about its layers while it works.

use bundle_tools::Digest;

/// What happens to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState<'a> {
    /// Its turn has not come.
    Waiting,
    /// There is nothing to do.
    Exists,
    /// Bytes have arrived.
    Downloading {
        /// Bytes so far.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// Bytes were sent.
    Uploading {
        /// Bytes so far.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// The connection failed for this reason, and will be tried again.
    Retrying(&'a str),
    /// All bytes are there and checked; the last are being unpacked.
    Extracting,
    /// Fetched and unpacked, or sent.
    Complete,
    /// The registry took it over from this repository of its own.
    Mounted(&'a str),
}

/// Is told what a pull or a push does. Called from several threads.
pub trait Progress: Sync {
    /// A layer's state changed.
    fn layer(&self, layer: &Digest, state: LayerState<'_>);
    /// Something worth knowing.
    fn warning(&self, message: &str);
}

/// Nobody wants to know.
impl Progress for () {
    fn layer(&self, _: &Digest, _: LayerState<'_>) {}
    fn warning(&self, _: &str) {}
}
