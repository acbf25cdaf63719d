//! `restore`: makes a container of a checkpoint, and, unless detached, waits for its end and deletes it.

use anyhow::{Context as _, Result};

use super::{Request, launch, run, warn_of_rootless};
use crate::checkpoint::restore::{self as checkpoint, RestoreWanted};
use crate::setup::parent;
use crate::setup::spawn;
use crate::supervise::Terminal;

/// Runs the command.
pub(super) fn restore(request: &Request<'_>) -> Result<u8> {
    let parsed = request.parsed;
    warn_of_rootless("restore");
    // Before the bundle becomes the current directory: paths are relative to the caller's.
    let wanted = RestoreWanted::parse(parsed)?;
    let report = launch::report(parsed);
    let socket = parsed.path("console-socket");
    let detach = parsed.is_on("detach");
    let bundle = launch::load(request)?;
    let terminal = bundle.plan.process.terminal;
    let outside = launch::console_socket(socket.as_deref(), terminal, detach)?;
    let (own, foreground) = match detach {
        true => (None, None),
        false => (
            run::own_terminal(terminal)?,
            Some(run::prepare_foreground(parsed.is_on("no-subreaper"))?),
        ),
    };
    let restored = checkpoint::restore(
        &parent::Request {
            store: &request.store,
            plan: &bundle.plan,
            spec: &bundle.spec,
            systemd_cgroup: request.global.systemd_cgroup,
            wait_for_start: false,
            console_socket: outside.as_ref().or(own.as_ref().map(|(_, inside)| inside)),
            report,
        },
        &wanted,
    )
    .context("restore failed")?;
    // From here on others may deal with the container as well.
    restored.directory.unlock();
    let Some(foreground) = foreground else {
        return Ok(0);
    };
    let outcome = own
        .as_ref()
        .map(|(outside, _)| launch::receive_terminal(outside))
        .transpose()
        .and_then(|master| Ok(master.map(Terminal::new).transpose()?))
        .and_then(|terminal| Ok(foreground.wait_for(&restored.child, terminal.as_ref(), None)?));
    if outcome.is_err() {
        spawn::end(&restored.child);
    }
    let removed = run::remove(restored.directory, restored.record);
    // What failed first is told.
    let code = outcome?;
    removed?;
    Ok(code)
}
