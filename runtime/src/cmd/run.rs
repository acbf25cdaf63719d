//! `run`: create and start in one, and, unless detached, waiting for the end and deleting.

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Request, launch};
use crate::container::Container;
use crate::failure::During;
use crate::hook::{self, Point};
use crate::setup::handshake::FromInit;
use crate::setup::parent::Created;
use crate::supervise::{Foreground, Terminal};
use crate::{cgroup, setup};

/// Runs the command.
pub(super) fn run(request: &Request<'_>) -> Result<u8> {
    run_container(request).context("qrun run failed")
}

/// Does the work.
fn run_container(request: &Request<'_>) -> Result<u8> {
    let detach = request.parsed.is_on("detach");
    let report = launch::report(request.parsed)?;
    let bundle = launch::load(request)?;
    let terminal = bundle.plan.process.terminal;
    let outside = launch::console_socket(request.parsed, terminal, detach)?;
    if detach {
        let created = launch::create(request, &bundle, report, false, outside.as_ref())?;
        executed(&created, &bundle.spec.hooks)?;
        return Ok(0);
    }
    if !request.parsed.is_on("no-subreaper") {
        crate::sys::process::set_child_subreaper().during("prctl", "subreaper")?;
    }
    let own = match terminal {
        true => Some(
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .during("socketpair", "terminal")?,
        ),
        false => None,
    };
    let foreground = Foreground::begin()?;
    let created = launch::create(request, &bundle, report, false, own.as_ref().map(|(_, inside)| inside))?;
    let code = attend(request, &created, &foreground, own.as_ref().map(|(outside, _)| outside), &bundle.spec.hooks);
    let keep = request.parsed.is_on("keep");
    // What failed above is told; the container goes either way.
    let removed = if keep && code.is_ok() { Ok(()) } else { remove(created) };
    let code = code?;
    removed?;
    Ok(code)
}

/// Stays with the process until its end.
fn attend(
    _request: &Request<'_>,
    created: &Created,
    foreground: &Foreground,
    console: Option<&std::os::fd::OwnedFd>,
    hooks: &Option<crate::spec::Hooks>,
) -> Result<u8> {
    let terminal = console.map(launch::receive_terminal).transpose()?.map(Terminal::new).transpose()?;
    if hooks.as_ref().is_some_and(|hooks| !hooks.poststart.is_empty()) {
        executed(created, hooks)?;
    }
    let code = foreground.wait_for(&created.child, terminal.as_ref())?;
    match created.channel.receive_now().during("recvmsg", "init")? {
        Some(FromInit::Failed(fault)) => {
            Err(setup::Error::Init(fault)).context("unable to start container process")
        }
        _ => Ok(code),
    }
}

/// Waits until the program has been executed, then runs the poststart hooks.
fn executed(created: &Created, hooks: &Option<crate::spec::Hooks>) -> Result<()> {
    if let Some(FromInit::Failed(fault)) = created.channel.receive().during("recvmsg", "init")? {
        let error = setup::Error::Init(fault);
        crate::setup::parent::end(&created.child);
        let directory = crate::cgroup::Cgroup::open(&created.record.cgroup);
        directory.remove()?;
        created.directory.remove()?;
        return Err(error).context("unable to start container process");
    }
    if let Some(hooks) = hooks {
        hook::run_all(Point::Poststart, &hooks.poststart, &created.record, Some(created.record.pid));
    }
    Ok(())
}

/// Removes all traces of a container whose process has ended.
fn remove(created: Created) -> Result<()> {
    let Created { directory, record, .. } = created;
    let cgroup = cgroup::Cgroup::open(&record.cgroup);
    super::delete::destroy(Container { directory, record, cgroup })
}
