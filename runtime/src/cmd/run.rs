//! `run`: create and start in one, and, unless detached, waiting for the end and deleting.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Request, delete, launch};
use crate::cgroup::Cgroup;
use crate::container::Container;
use crate::failure::During;
use crate::help;
use crate::hook::{self, Point};
use crate::setup;
use crate::setup::fault::{Fault, Step};
use crate::setup::handshake::FromInit;
use crate::setup::parent::Created;
use crate::setup::spawn;
use crate::spec::Hook;
use crate::state::{Directory, Record};
use crate::supervise::{Foreground, Terminal};

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
    let outside = launch::console_socket(socket.as_deref(), bundle.plan.process.terminal, detach)?;
    let (own, foreground) = match detach {
        true => (None, None),
        false => (
            own_terminal(bundle.plan.process.terminal)?,
            Some(prepare_foreground(parsed.is_on("no-subreaper"))?),
        ),
    };
    let console_socket = outside.as_ref().or(own.as_ref().map(|(_, inside)| inside));
    let created = launch::create(request, &bundle, report, false, console_socket)?;
    // From here on others may deal with the container as well.
    created.directory.unlock();
    let poststart = bundle
        .spec
        .hooks
        .as_ref()
        .map_or(&[][..], |hooks| &hooks.poststart);
    let outcome = match &foreground {
        None => detached(&created, poststart),
        Some(foreground) => attend(
            &created,
            foreground,
            own.as_ref().map(|(outside, _)| outside),
            poststart,
        ),
    };
    if outcome.is_ok() && (detach || parsed.is_on("keep")) {
        return outcome;
    }
    if outcome.is_err() {
        spawn::end(&created.child);
    }
    let removed = remove(created.directory, created.record);
    // What failed first is told.
    let code = outcome?;
    removed?;
    Ok(code)
}

/// Both ends of what a terminal for the foreground comes through.
pub(super) fn own_terminal(wanted: bool) -> Result<Option<(OwnedFd, OwnedFd)>> {
    if !wanted {
        return Ok(None);
    }
    let ends = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    Ok(Some(ends.during("socketpair", "terminal")?))
}

/// Takes up signals, and the container's orphans.
pub(super) fn prepare_foreground(no_subreaper: bool) -> Result<Foreground> {
    if !no_subreaper {
        crate::sys::process::set_child_subreaper().during("prctl", "subreaper")?;
    }
    Ok(Foreground::begin()?)
}

/// Stays with the process until its end.
fn attend(
    created: &Created,
    foreground: &Foreground,
    console: Option<&OwnedFd>,
    poststart: &[Hook],
) -> Result<u8> {
    let terminal = console
        .map(launch::receive_terminal)
        .transpose()?
        .map(Terminal::new)
        .transpose()?;
    if !poststart.is_empty() {
        executed(created, poststart)?;
    }
    let code = foreground.wait_for(&created.child, terminal.as_ref(), created.relay.as_ref())?;
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

/// Removes all traces of a container whose process has ended.
pub(super) fn remove(directory: Directory, record: Record) -> Result<()> {
    directory.lock()?;
    if directory.is_removed() {
        // Somebody deleted it while it ran.
        return Ok(());
    }
    let cgroup = Cgroup::open(&record.cgroup);
    delete::destroy(Container {
        directory,
        record,
        cgroup,
    })
}
