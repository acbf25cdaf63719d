//! After the end of a container: everything that a start made is taken away again.
//!
//! [`tear_down`] does not ask how far the start had come. It can be called at any moment, any number of times, by
//! whoever holds the container's lock: the monitor's exit command, the client in the foreground, `rm -f`, or a later
//! command that finds what a killed one left.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use jiff::Timestamp;

use super::find::Handle;
use super::live::{self, Live};
use super::model::{State, Status};
use super::{Programs, Result, SystemContext, monitor, overlay, remove};
use crate::network;
use crate::store::Store;

/// Takes away processes, cgroups, links, rules, mounts and sockets of a container.
///
/// Every step is tried even if one before it failed; the first failure is reported.
pub(super) fn tear_down(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    state: &State,
) -> Result<()> {
    let id = handle.id();
    let mut first = Ok(());
    let mut keep = |result: Result<()>| {
        if first.is_ok() {
            first = result;
        }
    };
    keep(delete_from_runtime(store, programs, handle));
    if let Some(setup) = &state.network {
        keep(network::disconnect(store, id, setup).map_err(Into::into));
        keep(network::release(store, id, setup).map_err(Into::into));
    }
    keep(overlay::unmount_all(&handle.merged()));
    let run = store.container_run(id);
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != ErrorKind::NotFound => keep(Err(error).system("remove", run)),
        _ => {}
    }
    first
}

/// `qrun delete --force`, which is silent about a container it does not know. Not even started when the runtime has
/// no record of it.
fn delete_from_runtime(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    if !store.runtime_root().join(handle.id()).exists() && handle.config.options.runtime.is_none() {
        return Ok(());
    }
    let runtime = monitor::runtime(programs, handle);
    let status = Command::new(&runtime)
        .arg("--root")
        .arg(store.runtime_root())
        .args(["delete", "--force", handle.id()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|source| super::Error::Program {
            program: runtime.clone(),
            source,
        })?;
    if status.success() || !store.runtime_root().join(handle.id()).exists() {
        Ok(())
    } else {
        Err(super::Error::Runtime {
            message: format!(
                "{} delete --force {} failed ({status})",
                runtime.display(),
                handle.id()
            ),
            exit_code: 125,
        })
    }
}

/// Records the end of a container that has ended, and takes away what it had. Does nothing for one that runs, or whose
/// end is recorded already. Removes it when that was asked for (`--rm`).
///
/// # Errors
/// When something can't be taken away; the end is recorded all the same.
pub fn finish(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let Ok(_lock) = handle.lock() else {
        return Ok(()); // Removed meanwhile: nothing is left to do.
    };
    finish_locked(store, programs, handle)
}

/// As [`finish`], under a lock that the caller holds.
pub(super) fn finish_locked(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let (mut state, live) = handle.live(store)?;
    if state.status != Status::Running || live != Live::Exited {
        return Ok(());
    }
    let exit = live::published_exit(store, handle.id());
    state.oom_killed = was_oom_killed(store, handle);
    let torn_down = tear_down(store, programs, handle, &state);
    state.status = Status::Exited;
    // No exit code was published: the host went down under it, or its monitor was killed.
    state.exit_code = Some(exit.map_or(255, |exit| exit.code));
    state.finished = Some(exit.map_or_else(Timestamp::now, |exit| exit.time));
    state.process = None;
    state.monitor = None;
    state.network = None;
    if handle.config.options.auto_remove {
        remove::erase(store, handle, &mut state, remove::Volumes::RemoveAnonymous)?;
    } else {
        handle.save(&state)?;
        drop(fs::remove_file(store.exits().join(handle.id())));
    }
    torn_down
}

/// The monitor leaves a file where it saw the kernel's out-of-memory notice.
fn was_oom_killed(store: &Store, handle: &Handle) -> bool {
    store.container_run(handle.id()).join("oom").exists() || handle.directory().join("oom").exists()
}
