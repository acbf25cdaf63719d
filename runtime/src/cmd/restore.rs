//! `restore`: makes a container of a checkpoint, and, unless detached, waits for its end and deletes it.

use anyhow::Result;

use super::{Request, launch, warn_of_rootless};
use crate::checkpoint::restore::{self as checkpoint, RestoreWanted};

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
    let front = launch::Front::new(socket.as_deref(), bundle.plan.process.terminal, detach)?;
    if !detach {
        launch::adopt_orphans(parsed)?;
    }
    let request = launch::wanted(request, &bundle, report, false, front.holder());
    let restored = checkpoint::restore(&request, &wanted)?;
    // From here on others may deal with the container as well.
    restored.directory.unlock();
    let Some(attended) = front.attended else {
        return Ok(0);
    };
    let outcome = attended
        .terminal()
        .and_then(|terminal| attended.wait(&restored.child, terminal.as_ref(), None));
    launch::end(
        outcome,
        &restored.child,
        restored.directory,
        restored.record,
    )
}
