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
use super::model::{Process, Sharing, State, Status};
use super::{Programs, Result, SystemContext, bundle, monitor, overlay, remove, restart, volumes};
use crate::network;
use crate::store::{Store, reserve};

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
    match &state.network {
        Some(setup) => {
            if state.status == Status::Running {
                super::start::tell_networks(store, handle, setup, "disconnect");
            }
            keep(network::disconnect(store, id, setup).map_err(Into::into));
            keep(network::release(store, id, setup).map_err(Into::into));
        }
        // Killed between the first reservation and the record of it.
        None if state.status == Status::Starting => keep(release_by_owner(store, id)),
        None => {}
    }
    if state.reconnecting {
        keep(release_by_owner(store, id));
    }
    keep(overlay::unmount_all(&handle.merged()));
    if handle.config.options.ipc == Sharing::Shareable {
        keep(overlay::unmount_all(&bundle::shm(store, handle)));
    }
    keep(volumes::release(store, handle));
    let run = store.container_run(id);
    // Never a walk into what may be a part of a volume.
    if let Err(error) = bundle::remove_pins(&run) {
        keep(Err(error));
        return first;
    }
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != ErrorKind::NotFound => keep(Err(error).system("remove", run)),
        _ => {}
    }
    first
}

/// Gives back every port and address that a container holds, found by looking at all of them.
fn release_by_owner(store: &Store, id: &str) -> Result<()> {
    let addresses = store.addresses();
    let networks = fs::read_dir(&addresses).system("read", &addresses)?;
    let directories = networks.flatten().map(|entry| entry.path());
    for directory in std::iter::once(store.ports()).chain(directories) {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Reservations are links; lock files lie beside them.
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                reserve::release(store, &entry.path(), id)?;
            }
        }
    }
    Ok(())
}

/// Ends the monitor of a start that did not come to its end, and the runtime if it is still at work: they must not
/// publish an exit, or run their exit command, into a later start.
pub(super) fn end_monitor(state: &State) {
    let Some(monitor) = state.monitor else { return };
    // Held open, so that the pid stays its own while its children are looked up: after a reboot it is another's.
    let Some(descriptor) = monitor.open() else {
        return;
    };
    let children = format!("/proc/{0}/task/{0}/children", monitor.pid);
    let children: Vec<Process> = fs::read_to_string(children)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| Process::remember(pid.parse().ok()?))
        .collect();
    if !monitor.is_alive() {
        return;
    }
    let children = children.iter().filter_map(|child| child.open());
    for process in std::iter::once(descriptor).chain(children) {
        // One that has just ended needs no signal.
        let _ = rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL);
    }
}

/// Removes exit codes that nobody has come for: of containers that are gone, older than a minute.
pub(super) fn collect_exits(store: &Store) {
    for entry in fs::read_dir(store.exits()).into_iter().flatten().flatten() {
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age.as_secs() > 60));
        let is_orphan = entry
            .file_name()
            .to_str()
            .is_some_and(|id| !store.container(id).exists());
        if is_old && is_orphan {
            drop(fs::remove_file(entry.path()));
        }
    }
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
    // Name, limits and policy may have been changed since it was looked up.
    let handle = &handle.latest()?;
    let exit = live::published_exit(store, handle.id());
    state.oom_killed = was_oom_killed(store, handle);
    let was_here = store.container_run(handle.id()).exists();
    let torn_down = tear_down(store, programs, handle, &state);
    state.status = Status::Exited;
    // No exit code was published: the host went down under it, or its monitor was killed.
    state.exit_code = Some(exit.map_or(255, |exit| exit.code));
    // A file's time is that of the last clock tick, which may lie before the start.
    let finished = exit.map_or_else(Timestamp::now, |exit| exit.time);
    state.finished = Some(
        state
            .started
            .map_or(finished, |started| finished.max(started)),
    );
    state.process = None;
    state.network = None;
    state.reconnecting = false;
    tell_end(store, handle, &state);
    // Neither an exit code nor the directory below <run>: the host was started anew, which is for `start --all`.
    if (exit.is_some() || was_here) && handle.config.options.restart.wants(&state) {
        // The monitor runs the exit command that goes on from here; the exit code stays for who waits for it.
        restart::schedule(&mut state);
        handle.save(&state)?;
        return torn_down;
    }
    state.monitor = None;
    if handle.config.options.auto_remove && !state.kept {
        collect_exits(store);
        remove::erase(store, handle, &mut state, remove::Volumes::RemoveAnonymous)?;
    } else {
        handle.save(&state)?;
        drop(fs::remove_file(store.exits().join(handle.id())));
    }
    torn_down
}

/// The events of an end.
pub(super) fn tell_end(store: &Store, handle: &Handle, state: &State) {
    if state.oom_killed {
        store.emit(&handle.event("oom"));
    }
    let code = live::published_exit(store, handle.id()).map(|exit| exit.code);
    let code = code.or(state.exit_code).unwrap_or(255);
    store.emit(&handle.event("die").with("exitCode", code.to_string()));
}

/// The monitor leaves a file where it saw the kernel's out-of-memory notice.
fn was_oom_killed(store: &Store, handle: &Handle) -> bool {
    store.container_run(handle.id()).join("oom").exists() || handle.directory().join("oom").exists()
}
