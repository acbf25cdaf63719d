//! Giving a container another name.

use super::find::Handle;
use super::{Error, Result, create};
use crate::store::{Store, reserve};

/// Renames a container, running or not.
///
/// The new name is reserved before the old one is let go. Whoever is killed between leaves a reservation that is not
/// its owner's name, which the next one in need of that name takes over.
///
/// # Errors
/// When the name is not valid, or belongs to another container, or is the container's own already.
pub fn rename(store: &Store, handle: &Handle, new: &str) -> Result<()> {
    let new = new.strip_prefix('/').unwrap_or(new);
    create::check_name(new)?;
    let _lock = handle.lock()?;
    let mut handle = handle.latest()?;
    let old = handle.name().to_owned();
    if new == old {
        return Err(Error::Invalid(format!(
            "renaming a container with the same name as its current name: {new}"
        )));
    }
    create::take_this_name(store, handle.id(), new)?;
    let change = handle.change(|changes| changes.name = Some(new.to_owned()));
    let lost = if change.is_ok() { &old } else { new };
    reserve::release(store, &store.names().join(lost), handle.id())?;
    change?;
    store.emit(&handle.event("rename").with("oldName", format!("/{old}")));
    Ok(())
}
