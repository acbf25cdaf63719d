//! `run`: create and start in one, and, unless detached, waiting for the end and deleting.

use anyhow::{Context as _, Result};

use super::Request;
use super::launch::{self, Attended};
use crate::failure::During;
use crate::help;
use crate::hook::{self, Point};
use crate::setup;
use crate::setup::fault::{Fault, Step};
use crate::setup::handshake::FromInit;
use crate::setup::parent::Created;
use crate::spec::Hook;

/// Runs the command.
pub(super) fn run(request: &Request<'_>) -> Result<u8> {
    run_container(request).with_context(|| format!("{} run failed", help::name()))
}

/// Does the work.
fn run_container(request: &Request<'_>) -> Result<u8> {
    let parsed = request.parsed;
    let detach = parsed.is_on("detach");
    // Paths that were typed are the caller's, so they come before the bundle becomes the current directory.
    let report = launch::report(parsed);
    let socket = parsed.path("console-socket");
    let bundle = launch::load(request)?;
    let front = launch::Front::new(socket.as_deref(), bundle.plan.process.terminal, detach)?;
    if !detach {
        launch::adopt_orphans(parsed)?;
    }
    let wanted = launch::wanted(request, &bundle, report, false, front.holder());
    let created = launch::create(&wanted)?;
    // From here on others may deal with the container as well.
    created.directory.unlock();
    let poststart = bundle
        .spec
        .hooks
        .as_ref()
        .map_or(&[][..], |hooks| &hooks.poststart);
    let outcome = match &front.attended {
        None => detached(&created, poststart),
        Some(attended) => attend(&created, attended, poststart),
    };
    if outcome.is_ok() && (detach || parsed.is_on("keep")) {
        return outcome;
    }
    launch::end(outcome, &created.child, created.directory, created.record)
}

/// Stays with the process until its end.
fn attend(created: &Created, attended: &Attended, poststart: &[Hook]) -> Result<u8> {
    let terminal = attended.terminal()?;
    if !poststart.is_empty() {
        executed(created, poststart)?;
    }
    let code = attended.wait(&created.child, terminal.as_ref(), created.relay.as_ref())?;
    match created.channel.receive_now().during("recvmsg", "init")? {
        Some(FromInit::Failed(fault)) if fault.step == Step::Exec => Ok(not_executed(&fault)),
        Some(FromInit::Failed(fault)) => {
            Err(setup::Error::Init(fault)).context("unable to start container process")
        }
        _ => Ok(code),
    }
}

/// Says that the program could not be executed although it is there, as the process itself would on its standard error:
/// the container was set up, so that this is no failure of ours for the log. Returns the exit code.
fn not_executed(fault: &Fault) -> u8 {
    use std::io::Write as _;
    // Nobody is left to be told when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{fault}");
    255
}

/// Waits until the process is on its own feet.
fn detached(created: &Created, poststart: &[Hook]) -> Result<u8> {
    executed(created, poststart)?;
    if let Some(relay) = &created.relay {
        use std::os::fd::AsFd;
        relay.wait(
            created.record.pid,
            created.child.pidfd.as_ref().map(AsFd::as_fd),
        )?;
    }
    Ok(0)
}

/// Waits until the program has been executed, then runs the poststart hooks.
fn executed(created: &Created, poststart: &[Hook]) -> Result<()> {
    if let Some(FromInit::Failed(fault)) = created.channel.receive().during("recvmsg", "init")? {
        return Err(setup::Error::Init(fault)).context("unable to start container process");
    }
    let pid = Some(created.record.pid);
    Ok(hook::run(
        Point::Poststart,
        poststart,
        &created.record,
        pid,
    )?)
}
