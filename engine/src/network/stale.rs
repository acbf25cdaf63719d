//! What is left of connections whose containers are gone, without changing anything.

use super::{Result, member};
use crate::store::Store;

/// Interfaces whose container is gone, and bridges that nobody is on any more, each in words.
///
/// [`super::collect`] takes them away.
///
/// # Errors
/// When the records can't be read.
pub fn stale(store: &Store) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for bridge in member::bridges(store)? {
        let name = bridge.file_name().unwrap_or_default().to_string_lossy();
        for (id, member) in member::read_all(&bridge)? {
            if !store.container(&id).exists() {
                found.push(format!(
                    "interface {} on bridge {name} belongs to container {}, which is gone",
                    member.attachment.host_interface,
                    id.chars().take(12).collect::<String>()
                ));
            }
        }
    }
    Ok(found)
}
