//! Putting right what a killed command left half done.

use std::fs;

use super::find::{self, Handle};
use super::live::Live;
use super::model::{State, Status};
use super::start::{Streams, start_locked};
use super::{Programs, Result, cleanup, remove, restart};
use crate::store::{Lock, Store, reserve};

/// Looks at every container and puts right what nobody is working on any more. Never waits for anybody.
///
/// # Errors
/// When the store can't be read. What can't be put right now is left for the next time.
pub fn sweep(store: &Store, programs: &Programs) -> Result<()> {
    collect_unborn(store);
    cleanup::collect_exits(store);
    for id in find::ids(store)? {
        drop(collect(store, programs, &id));
    }
    Ok(())
}

/// Puts one container right, if it is unfinished business and nobody works on it.
///
/// Returns whether it is gone now.
///
/// # Errors
/// When it can't be put right.
pub fn collect(store: &Store, programs: &Programs, id: &str) -> Result<bool> {
    let Some(handle) = Handle::open(store, id)? else {
        return collect_if_abandoned(store, id);
    };
    let (state, live) = handle.live(store)?;
    if !is_unfinished_in(&handle, &state, live) {
        return Ok(false);
    }
    let Some(lock) = handle.try_lock()? else {
        return Ok(false);
    };
    // What was read without the lock may be old.
    let mut state = handle.state()?;
    undo(store, programs, &handle, &mut state)?;
    if restart::is_orphaned(&state) {
        // The helper that would have waited is gone, and the pause with it.
        start_locked(store, programs, &handle, &mut state, Streams::Leave, &lock)?;
    }
    Ok(!handle.directory().exists())
}

/// Brings what is unfinished back to a status that is not. The caller holds the container's lock.
fn undo(store: &Store, programs: &Programs, handle: &Handle, state: &mut State) -> Result<()> {
    match state.status {
        Status::Running => {
            cleanup::finish_locked(store, programs, handle)?;
            *state = handle.state()?;
        }
        Status::Creating | Status::Starting if !state.disposable => {
            cleanup::end_monitor(state);
            cleanup::tear_down(store, programs, handle, state)?;
            state.network = None;
            state.process = None;
            state.monitor = None;
            state.status = match (state.restarter, state.finished) {
                // It was its restart policy that was killed at work.
                (Some(_), _) => Status::Restarting,
                (None, Some(_)) => Status::Exited,
                (None, None) => Status::Created,
            };
            handle.save(state)?;
        }
        Status::Creating | Status::Starting | Status::Removing => {
            // A removal that was cut short may have been told to keep the volumes.
            let volumes = if handle.config.options.auto_remove || state.disposable {
                remove::Volumes::RemoveAnonymous
            } else {
                remove::Volumes::Keep
            };
            cleanup::end_monitor(state);
            cleanup::tear_down(store, programs, handle, state)?;
            remove::erase(store, handle, state, volumes)?;
        }
        Status::Exited if handle.config.options.auto_remove && !state.kept => {
            remove::erase(store, handle, state, remove::Volumes::RemoveAnonymous)?;
        }
        Status::Created | Status::Exited | Status::Restarting => {}
    }
    Ok(())
}

/// Whether a container is half made or half gone: somebody is at it, or was killed.
///
/// # Errors
/// When its state can't be read.
pub fn is_unfinished(store: &Store, handle: &Handle) -> Result<bool> {
    let (state, live) = handle.live(store)?;
    Ok(is_unfinished_in(handle, &state, live))
}

fn is_unfinished_in(handle: &Handle, state: &State, live: Live) -> bool {
    match state.status {
        Status::Creating | Status::Starting | Status::Removing => true,
        Status::Running => live == Live::Exited,
        Status::Created => false,
        Status::Restarting => restart::is_orphaned(state),
        // Ended, was to vanish, and the one who was at it was killed.
        Status::Exited => handle.config.options.auto_remove && !state.kept,
    }
}

/// Collects a container that was abandoned before it even had a record. Returns whether it is gone.
pub(super) fn collect_if_abandoned(store: &Store, id: &str) -> Result<bool> {
    let directory = store.container(id);
    if !directory.exists() {
        return Ok(true);
    }
    if directory.join("container.json").exists() {
        // It has a record. Only one that was never finished is ours to take, and taking it down needs the programs;
        // beside this very process, that is.
        return collect(store, &programs_of(store), id);
    }
    let Some(_lock) = Lock::try_exclusive(&directory.join("lock"))? else {
        return Ok(false);
    };
    if directory.join("container.json").exists() {
        return Ok(false);
    }
    discard(store, id);
    Ok(true)
}

/// Gives back a name that is not its holder's: a `rename` was killed before it could. Returns whether it was one.
pub(super) fn release_stale_name(store: &Store, holder: &str, name: &str) -> Result<bool> {
    let Some(handle) = Handle::open(store, holder)? else {
        return Ok(false);
    };
    if handle.name() == name {
        return Ok(false);
    }
    let Some(_lock) = handle.try_lock()? else {
        return Ok(false); // Being renamed just now.
    };
    if handle.latest()?.name() == name {
        return Ok(false);
    }
    reserve::release(store, &store.names().join(name), holder)?;
    Ok(true)
}

/// The programs, started for this store.
fn programs_of(store: &Store) -> Programs {
    Programs::locate(vec![
        "--root".into(),
        store.root().into(),
        "--run-root".into(),
        store.run().into(),
    ])
}

/// Removes a container that has nothing but its directory, and perhaps a name, which stands in no record yet.
pub(super) fn discard(store: &Store, id: &str) {
    for name in fs::read_dir(store.names()).into_iter().flatten().flatten() {
        drop(reserve::release(store, &name.path(), id));
    }
    drop(remove::erase_directory(store, id));
}

/// Directories of makers that died before they had even taken the lock and renamed them.
fn collect_unborn(store: &Store) {
    let Ok(entries) = fs::read_dir(store.containers()) else {
        return;
    };
    for entry in entries.flatten() {
        let is_unborn = entry.file_name().to_string_lossy().starts_with(".new-");
        // An hour: its maker renames it within microseconds, unless the machine sleeps.
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 3600));
        if is_unborn && is_old {
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}
