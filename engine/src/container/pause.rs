//! Freezing a container's processes, and letting them go on.

use super::find::Handle;
use super::live::Live;
use super::{Error, Programs, Result, stop};
use crate::store::Store;

/// Freezes all processes of a running container.
///
/// # Errors
/// When it does not run, or is frozen already.
pub fn pause(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let _lock = handle.lock()?;
    let name = handle.name();
    match handle.live(store)?.1 {
        Live::Running => {}
        Live::Paused => {
            return Err(Error::Invalid(format!(
                "container {name} is already paused"
            )));
        }
        Live::Restarting => return Err(restarting(name)),
        _ => return Err(Error::Invalid(format!("container {name} is not running"))),
    }
    stop::runtime(store, programs, handle, "pause")?;
    store.emit(&handle.latest()?.event("pause"));
    Ok(())
}

/// Lets the processes of a frozen container go on.
///
/// # Errors
/// When it is not frozen.
pub fn unpause(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let _lock = handle.lock()?;
    let name = handle.name();
    if handle.live(store)?.1 != Live::Paused {
        return Err(Error::Invalid(format!("container {name} is not paused")));
    }
    stop::runtime(store, programs, handle, "resume")?;
    store.emit(&handle.latest()?.event("unpause"));
    Ok(())
}

fn restarting(name: &str) -> Error {
    Error::Invalid(format!(
        "container {name} is restarting, wait until the container is running"
    ))
}
