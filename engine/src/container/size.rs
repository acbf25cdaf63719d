//! How much disk a container takes.

use super::find::Handle;
use crate::image::layers;
use crate::store::Store;

/// Bytes that the container wrote itself: its own layer. What vanishes while we look is not counted.
#[must_use]
pub fn written(handle: &Handle) -> u64 {
    crate::store::size::of_tree(&handle.upper())
}

/// Bytes of the image's layers below.
#[must_use]
pub fn below(store: &Store, handle: &Handle) -> u64 {
    handle
        .config
        .layers
        .iter()
        .map(|chain| layers::size(store, chain))
        .sum()
}
