//! Removing all containers that do not run.

use super::filter::Filter;
use super::find;
use super::live::Live;
use super::remove::{Volumes, remove};
use super::{Error, Programs, Result, recover, size};
use crate::store::Store;

/// What docker's prune can be narrowed by.
const KEYS: [&str; 3] = ["until", "label", "label!"];

/// A container that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Its id.
    pub id: String,
    /// Bytes that it had written.
    pub size: u64,
}

/// Removes every container that was never started or has ended, of those that `filters` (`KEY=VALUE` words) want. One
/// that can't be removed, because it was started just now, stays.
///
/// # Errors
/// For a filter that is not understood, or a store that can't be read.
pub fn prune(store: &Store, programs: &Programs, filters: &[String]) -> Result<Vec<Pruned>> {
    for word in filters {
        let key = word.split('=').next().unwrap_or_default();
        if !KEYS.contains(&key) {
            return Err(Error::Invalid(format!(
                "unknown filter {key:?}: there are {}",
                KEYS.join(", ")
            )));
        }
    }
    let filter = Filter::parse(store, filters)?;
    recover::sweep(store, programs)?;
    let mut pruned = Vec::new();
    for handle in find::all(store)? {
        let Ok((state, live)) = handle.live(store) else {
            continue;
        };
        if !matches!(live, Live::Created | Live::Exited) || !filter.accepts(&handle, &state, live) {
            continue;
        }
        // Being made or started just now, it says created too.
        let is_idle = handle.try_lock().is_ok_and(|lock| lock.is_some());
        let size = size::written(&handle);
        if is_idle && remove(store, programs, &handle, false, Volumes::Keep).is_ok() {
            pruned.push(Pruned {
                id: handle.id().to_owned(),
                size,
            });
        }
    }
    Ok(pruned)
}
