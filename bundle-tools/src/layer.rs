//! File system layers: compression, applying an archive, making one.

pub mod apply;
pub(crate) mod archive;
pub mod compression;
mod copy;
pub mod diff;

pub use archive::Error as ArchiveError;
pub use copy::{Error as CopyError, copy_tree};

/// Prefix of a whiteout entry's name (image-spec, layer.md, "Whiteouts").
pub const WHITEOUT_PREFIX: &str = ".wh.";
/// Name of the entry that hides everything the lower layers have in its directory.
pub const WHITEOUT_OPAQUE: &str = ".wh..wh..opq";
