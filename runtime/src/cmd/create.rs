//! `create`: makes a container whose process waits for `start`.

use anyhow::{Context as _, Result};

use super::{Request, launch};
use crate::console::Holder;
use crate::help;

/// Runs the command.
pub(super) fn create(request: &Request<'_>) -> Result<u8> {
    create_container(request).with_context(|| format!("{} create failed", help::name()))
}

/// Does the work.
fn create_container(request: &Request<'_>) -> Result<u8> {
    // Paths that were typed are the caller's, so they come before the bundle becomes the current directory.
    let report = launch::report(request.parsed);
    let socket = request.parsed.path("console-socket");
    let bundle = launch::load(request)?;
    let socket = launch::console_socket(socket.as_deref(), bundle.plan.process.terminal, true)?;
    let holder = socket.as_ref().map(Holder::Caller);
    let wanted = launch::wanted(request, &bundle, report, true, holder);
    launch::create(&wanted)?;
    Ok(0)
}
