//! `create`: makes a container whose process waits for `start`.

use anyhow::{Context as _, Result};

use super::{Request, launch};

/// Runs the command.
pub(super) fn create(request: &Request<'_>) -> Result<u8> {
    create_container(request).context("qrun create failed")
}

/// Does the work.
fn create_container(request: &Request<'_>) -> Result<u8> {
    let report = launch::report(request.parsed);
    let bundle = launch::load(request)?;
    let console_socket =
        launch::console_socket(request.parsed, bundle.plan.process.terminal, true)?;
    launch::create(request, &bundle, report, true, console_socket.as_ref())?;
    Ok(0)
}
