//! Reservations of names, addresses and ports.
//!
//! A reservation is a symbolic link whose target is the owner's container id: `symlink(2)` creates it, content and
//! all, for exactly one caller, without a lock and without a half-written state. It is worth nothing once the owner's
//! directory is gone, and then anyone may collect it; so nothing stays reserved after a SIGKILL at whatever moment,
//! provided the owner's directory is made before the first reservation and removed after the last.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{Context, Lock, Result, Store};

/// Who has what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is ours now (or was already).
    Taken,
    /// Somebody else has it: the id of that container.
    HeldBy(String),
}

/// Takes `link` for the container `id`.
///
/// # Errors
/// When the link can be neither made nor read.
pub fn reserve(store: &Store, link: &Path, id: &str) -> Result<Outcome> {
    loop {
        match std::os::unix::fs::symlink(id, link) {
            Ok(()) => return Ok(Outcome::Taken),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context("reserve", link),
        }
        match owner(link)? {
            Some(holder) if holder == id => return Ok(Outcome::Taken),
            Some(holder) if is_alive(store, &holder) => return Ok(Outcome::HeldBy(holder)),
            Some(_) => collect(store, link)?,
            None => {}
        }
    }
}

/// The container id that holds `link`, alive or not; `None` when nobody does.
///
/// # Errors
/// When the link is there and can't be read.
pub fn owner(link: &Path) -> Result<Option<String>> {
    match fs::read_link(link) {
        Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("read reservation", link),
    }
}

/// Gives `link` back, if it belongs to `id`. Anything else is left alone.
///
/// # Errors
/// When the link can't be read or removed.
pub fn release(store: &Store, link: &Path, id: &str) -> Result<()> {
    let _lock = collector_lock(store)?;
    if owner(link)?.as_deref() == Some(id) {
        remove(link)?;
    }
    Ok(())
}

/// Removes a reservation whose owner is gone.
///
/// Only under the collectors' lock, and after a second look: without it, two collectors that saw the same dead owner
/// could remove each other's fresh reservation.
fn collect(store: &Store, link: &Path) -> Result<()> {
    let _lock = collector_lock(store)?;
    match owner(link)? {
        Some(holder) if !is_alive(store, &holder) => remove(link),
        _ => Ok(()),
    }
}

fn collector_lock(store: &Store) -> Result<Lock> {
    Lock::exclusive(&store.root().join("reservations.lock"))
}

fn is_alive(store: &Store, id: &str) -> bool {
    store.container(id).exists()
}

fn remove(link: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("remove", link),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        (directory, store)
    }

    #[test]
    fn only_one_container_gets_a_name() {
        let (_directory, store) = store();
        for id in ["aa", "bb"] {
            super::super::make_dir(&store.container(id)).unwrap();
        }
        let link = store.names().join("web");
        assert_eq!(reserve(&store, &link, "aa").unwrap(), Outcome::Taken);
        assert_eq!(reserve(&store, &link, "aa").unwrap(), Outcome::Taken);
        assert_eq!(
            reserve(&store, &link, "bb").unwrap(),
            Outcome::HeldBy("aa".into())
        );
        release(&store, &link, "bb").unwrap();
        assert_eq!(owner(&link).unwrap().as_deref(), Some("aa"));
        release(&store, &link, "aa").unwrap();
        assert_eq!(reserve(&store, &link, "bb").unwrap(), Outcome::Taken);
    }

    #[test]
    fn a_dead_owners_reservation_is_collected() {
        let (_directory, store) = store();
        super::super::make_dir(&store.container("bb")).unwrap();
        let link = store.names().join("web");
        std::os::unix::fs::symlink("gone", &link).unwrap();
        assert_eq!(reserve(&store, &link, "bb").unwrap(), Outcome::Taken);
    }
}
