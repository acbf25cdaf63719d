//! Removing volumes, and letting go of them.

use std::fs;
use std::io::ErrorKind;

use super::{DATA, Error, Result, Volume, device, find, home, list, load, tell};
use crate::store::{Context, Lock, Store, make_dir};

/// Removes a volume that no container mentions; `users` tells which do.
///
/// # Errors
/// No such volume, one in use, or a store that can't be written.
pub fn remove(store: &Store, name: &str, users: &dyn Fn(&str) -> Vec<String>) -> Result<()> {
    find(store, name)?;
    let not_found = || Error::NotFound(name.to_owned());
    let _lock = super::lock(store, name, Lock::exclusive)?.ok_or_else(not_found)?;
    let volume = load(store, name)?.ok_or_else(not_found)?;
    let users = users(name);
    if !users.is_empty() {
        return Err(Error::InUse {
            name: name.to_owned(),
            users,
        });
    }
    erase(store, &volume)
}

/// Under the volume's lock.
fn erase(store: &Store, volume: &Volume) -> Result<()> {
    let home = home(store, &volume.name);
    let data = home.join(DATA);
    device::unmount(&data);
    if volume.is_mounted_on_use() || device::is_mounted(&data) {
        // Never a walk into what belongs to others: only an empty directory goes, and no mount point does.
        match fs::remove_dir(&data) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).context("remove", &data).map_err(Into::into);
            }
            _ => {}
        }
    }
    let trash = store.root().join("trash");
    make_dir(&trash)?;
    let target = trash.join(format!("volume-{}-{}", volume.name, std::process::id()));
    // Of an earlier life of the same name and pid.
    drop(fs::remove_dir_all(&target));
    fs::rename(&home, &target).context("remove", &home)?;
    tell(store, &volume.name, "destroy");
    // It is gone from here on; what resists now is taken by the next removal of a container.
    drop(bundle_tools::remove_tree(&target));
    Ok(())
}

/// Removes one container's anonymous volume unless another mentions it; one that is gone already is fine.
///
/// # Errors
/// When the store can't be written.
pub fn remove_anonymous(
    store: &Store,
    name: &str,
    others: &dyn Fn(&str) -> Vec<String>,
) -> Result<()> {
    match remove(store, name, others) {
        Ok(()) | Err(Error::NotFound(_) | Error::InUse { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the volumes that `chosen` accepts and no container mentions, and gives them with the bytes each held.
///
/// # Errors
/// When the store can't be read or written.
pub fn prune(
    store: &Store,
    chosen: &dyn Fn(&Volume) -> bool,
    users: &dyn Fn(&str) -> Vec<String>,
) -> Result<Vec<(Volume, u64)>> {
    let mut pruned = Vec::new();
    for volume in list(store)? {
        if !chosen(&volume) {
            continue;
        }
        let bytes = if volume.is_mounted_on_use() {
            0
        } else {
            size_of(&volume.data(store))
        };
        match remove(store, &volume.name, users) {
            Ok(()) => pruned.push((volume, bytes)),
            Err(Error::InUse { .. } | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pruned)
}

/// Bytes of the files below a directory; no link is followed.
fn size_of(directory: &std::path::Path) -> u64 {
    let mut open = vec![directory.to_owned()];
    let mut total = 0;
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}

/// Takes the mount of a volume away after its last user; `users` tells who has it mounted.
///
/// # Errors
/// When the store can't be read.
pub fn release(store: &Store, name: &str, users: &dyn Fn(&str) -> Vec<String>) -> Result<()> {
    let mounted = |volume: &Volume| volume.is_mounted_on_use();
    if !load(store, name)?.as_ref().is_some_and(mounted) {
        return Ok(());
    }
    let Some(_lock) = super::lock(store, name, Lock::exclusive)? else {
        return Ok(());
    };
    if users(name).is_empty() {
        device::unmount(&super::data(store, name));
    }
    Ok(())
}
