//! Changing limits and restart policy of a container, now and for its next starts.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::find::Handle;
use super::model::Resources;
use super::restart::Policy;
use super::{Error, Programs, Result, bundle, monitor};
use crate::store::Store;

/// Changes a container's limits to what `limits` makes of the present ones, and its restart policy to `restart`.
///
/// The kernel is asked first. When it refuses one of the values, the others are set back and nothing is recorded.
///
/// # Errors
/// When `limits` refuses, or the kernel does; a restart policy for a container that vanishes at its end.
pub fn update<E: From<Error>>(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    limits: impl FnOnce(&Resources) -> std::result::Result<Resources, E>,
    restart: Option<Policy>,
) -> std::result::Result<(), E> {
    let lock = handle.lock()?;
    let mut handle = handle.latest()?;
    let old = handle.config.options.resources.clone();
    let new = limits(&old)?;
    if handle.config.options.auto_remove && restart.is_some_and(|restart| restart != Policy::No) {
        return Err(Error::Invalid(
            "restart policy cannot be updated because AutoRemove is enabled for the container"
                .to_owned(),
        )
        .into());
    }
    let live = handle.live(store)?.1;
    if new != old && live.is_running() {
        set(store, programs, &handle, &old, &new).inspect_err(|_| {
            // What was written before the refusal.
            drop(set(store, programs, &handle, &new, &old));
        })?;
    }
    handle.change(|changes| {
        if new != old {
            changes.resources = Some(new);
        }
        if restart.is_some() {
            changes.restart = restart;
        }
    })?;
    drop(lock);
    store.emit(&handle.event("update"));
    Ok(())
}

/// Writes to the cgroup what differs, through the runtime, which knows both cgroup versions and in which order memory
/// and swap have to be written.
fn set(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    old: &Resources,
    new: &Resources,
) -> Result<()> {
    let program = monitor::runtime(programs, handle);
    let failed = |source| Error::Program {
        program: program.clone(),
        source,
    };
    let mut child = Command::new(&program)
        .arg("--root")
        .arg(store.runtime_root())
        .args(["update", "--resources", "-", handle.id()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        let text = serde_json::to_vec(&bundle::changed_limits(old, new)).unwrap_or_default();
        // One that ended early says why below.
        drop(input.write_all(&text));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(monitor::refused(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
