//! Removing a container for good.

use std::fs;
use std::io::ErrorKind;

use super::find::Handle;
use super::live::Live;
use super::model::{State, Status};
use super::{Error, Programs, Result, SystemContext, cleanup, overlay, restart, stop, volumes};
use crate::store::{Store, make_dir, reserve};

/// What becomes of the container's anonymous volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volumes {
    /// They stay.
    Keep,
    /// They go with it (`rm -v`, `run --rm`).
    RemoveAnonymous,
}

/// Removes a container; a running one only with `force`, by SIGKILL.
///
/// # Errors
/// When it runs and `force` is not set, or something of it can't be removed.
pub fn remove(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    force: bool,
    volumes: Volumes,
) -> Result<()> {
    let lock = handle.lock()?;
    let handle = &handle.latest()?;
    let (mut state, live) = handle.live(store)?;
    if live.is_running() {
        if !force {
            return Err(Error::WrongStatus {
                id: handle.name().to_owned(),
                status: live.word().to_owned(),
                action: "remove it; stop it first, or use `rm -f`",
            });
        }
        state.stopped_by_user = true;
        handle.save(&state)?;
        stop::kill_and_wait(store, programs, handle, &state)?;
        cleanup::tell_end(store, handle, &state);
    }
    if live == Live::Restarting {
        if !force {
            return Err(Error::WrongStatus {
                id: handle.name().to_owned(),
                status: live.word().to_owned(),
                action: "remove it; stop it first, or use `rm -f`",
            });
        }
        restart::give_up(&mut state);
    }
    cleanup::tear_down(store, programs, handle, &state)?;
    let result = erase(store, handle, &mut state, volumes);
    drop(fs::remove_file(store.exits().join(handle.id())));
    drop(lock);
    result
}

/// Removes everything durable of a container that has been torn down. The caller holds its lock.
pub(super) fn erase(
    store: &Store,
    handle: &Handle,
    state: &mut State,
    with: Volumes,
) -> Result<()> {
    state.status = Status::Removing;
    handle.save(state)?;
    overlay::unmount_all(&handle.merged())?;
    if with == Volumes::RemoveAnonymous {
        volumes::remove_anonymous(store, handle)?;
    }
    let name = handle.name();
    reserve::release(store, &store.names().join(name), handle.id())?;
    erase_directory(store, handle.id())?;
    if !handle.config.options.build_step {
        store.emit(&handle.event("destroy"));
    }
    Ok(())
}

/// Moves a container's directory out of sight in one step, then empties it. What a kill leaves in `trash` is emptied
/// by the next removal.
pub(super) fn erase_directory(store: &Store, id: &str) -> Result<()> {
    let trash = store.root().join("trash");
    make_dir(&trash)?;
    let target = trash.join(id);
    match fs::rename(store.container(id), &target) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).system("remove", store.container(id));
        }
        _ => {}
    }
    // The container is gone from here on; what resists now is taken by the next removal.
    drop(remove_tree(&target));
    empty_trash(store);
    Ok(())
}

/// Removes what removals that were killed have left behind.
fn empty_trash(store: &Store) {
    let Ok(entries) = fs::read_dir(store.root().join("trash")) else {
        return;
    };
    for entry in entries.flatten() {
        drop(bundle_tools::remove_tree(&entry.path()));
    }
}

/// Removes a directory and all below it. Somebody may be at the same work, or may just be putting a last file there:
/// then it is tried again, for a fifth of a second.
fn remove_tree(path: &std::path::Path) -> Result<()> {
    for attempt in 0.. {
        match bundle_tools::remove_tree(path) {
            Err(error) if attempt == 20 => return Err(error).system("remove", path),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            Ok(()) => break,
        }
    }
    Ok(())
}
