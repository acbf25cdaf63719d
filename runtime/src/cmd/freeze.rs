//! `pause` and `resume`: stops all processes of a container, and lets them go on.

use anyhow::{Result, bail};

use super::Request;
use crate::container::{Container, Status};

/// Runs `pause`.
pub(super) fn pause(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    match container.status() {
        Status::Running | Status::Created => container.cgroup.freeze()?,
        _ => bail!("container not running"),
    }
    Ok(0)
}

/// Runs `resume`.
pub(super) fn resume(request: &Request<'_>) -> Result<u8> {
    let container = Container::load(&request.store, request.parsed.id())?;
    match container.status() {
        Status::Paused => container.cgroup.thaw()?,
        _ => bail!("container not paused"),
    }
    Ok(0)
}
