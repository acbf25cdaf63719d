//! Collection of what no image needs: blobs, unpacked layers, and what killed commands left.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Result, find, layers, layout};
use crate::store::{Lock, Store};

/// What a collection removed.
#[derive(Debug, Clone, Default)]
pub struct Freed {
    /// Chain ids of unpacked layers, as hex digits.
    pub layers: Vec<String>,
    /// Bytes of blobs.
    pub bytes: u64,
}

/// The lock file that writers hold shared while what they add is not mentioned yet.
pub(super) fn writers_lock(store: &Store) -> PathBuf {
    store.root().join("images-writers.lock")
}

/// Whether nobody adds content at this moment.
#[must_use]
pub fn nobody_writes(store: &Store) -> bool {
    matches!(Lock::try_exclusive(&writers_lock(store)), Ok(Some(_)))
}

/// Removes what killed commands left half done. Layers and blobs that they completed stay, for the next attempt.
///
/// # Errors
/// When something can't be removed.
pub fn sweep(store: &Store) -> Result<()> {
    let Some(_nobody_writes) = Lock::try_exclusive(&writers_lock(store))? else {
        return Ok(());
    };
    layers::remove_except(store, &|_| true)?;
    layout(store)?.sweep()?;
    Ok(())
}

/// Removes everything that no entry of `index.json` and no remembered build step leads to.
///
/// Nothing happens while somebody adds content: whoever collects next gets what is left over now.
///
/// # Errors
/// When an image can't be read (what it needs is then unknown, so nothing is removed), or something can't be removed.
pub fn collect(store: &Store) -> Result<Freed> {
    let Some(_nobody_writes) = Lock::try_exclusive(&writers_lock(store))? else {
        return Ok(Freed::default());
    };
    let layout = layout(store)?;
    let index = layout.index()?;
    let mut needed: HashSet<String> = HashSet::new();
    for entry in &index.manifests {
        let image = find::load(&layout, &index, entry)?;
        needed.extend(image.layers.iter().map(|chain| chain.hex().to_owned()));
    }
    // What builds may go on from.
    needed.extend(crate::build::cached_layers(store)?);
    let layers = layers::remove_except(store, &|hex| needed.contains(hex))?;
    let freed = layout.gc(Duration::ZERO)?;
    Ok(Freed {
        layers,
        bytes: freed.bytes,
    })
}
