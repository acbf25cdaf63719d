//! What `create` and `run` share: from what was typed to a container.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::Request;
use crate::cli::Parsed;
use crate::console;
use crate::failure::During;
use crate::plan::{self, Extra, Plan};
use crate::readiness;
use crate::rootless;
use crate::self_image;
use crate::setup::parent::{self, Created};
use crate::setup::report::Report;
use crate::spec::Spec;
use crate::state;
use crate::sys::memory::release_code;
use crate::sys::process::is_inherited;

/// A bundle, read and checked.
pub(super) struct Bundle {
    /// Its spec.
    pub(super) spec: Spec,
    /// What will be done.
    pub(super) plan: Plan,
}

/// Goes to the bundle, reads and checks it.
pub(super) fn load(request: &Request<'_>) -> Result<Bundle> {
    let id = request.parsed.id();
    state::check_id(id)?;
    self_image::protect()?;
    let extra = extra(request.parsed, &request.store.path(id))?;
    enter_bundle(request.parsed.path("bundle").as_deref())?;
    let bundle = std::env::current_dir().during("getwd", ".")?;
    let spec = plan::load_spec()?;
    let plan = Plan::new(&spec, &bundle, id, extra)?;
    crate::rootfs::check_root(&plan.root)?;
    // Reading and planning are over; what comes is other code.
    release_code();
    Ok(Bundle { spec, plan })
}

/// Makes the bundle the current directory.
pub(super) fn enter_bundle(bundle: Option<&Path>) -> Result<()> {
    if let Some(bundle) = bundle {
        std::env::set_current_dir(bundle).during("chdir", bundle)?;
    }
    Ok(())
}

/// What the command line and the environment add to the bundle.
fn extra(parsed: &Parsed, state: &Path) -> Result<Extra> {
    let preserve_fds = parsed.number("preserve-fds")?.unwrap_or(0);
    let listen_fds = listen_fds();
    check_inherited(preserve_fds + listen_fds)?;
    Ok(Extra {
        no_pivot: parsed.is_on("no-pivot"),
        no_new_keyring: parsed.is_on("no-new-keyring"),
        preserve_fds,
        listen_fds,
        rootless: rootless::is_other_user(),
        notify_directory: readiness::directory(state),
    })
}

/// How many sockets systemd's socket activation has given to this process.
fn listen_fds() -> u32 {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u32>().ok())
    };
    let for_us = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|_| for_us).unwrap_or(0)
}

/// Checks that descriptors to be passed on are there: otherwise something of our own would take their numbers.
pub(super) fn check_inherited(count: u32) -> Result<()> {
    for number in 3..3 + i32::try_from(count).unwrap_or(i32::MAX - 3) {
        if !is_inherited(number) {
            bail!(
                "please check that preserved-fd {} (of {count}) is present",
                number - 3
            );
        }
    }
    Ok(())
}

/// Who wants to know the process.
pub(super) fn report(parsed: &Parsed) -> Report {
    Report {
        pid_file: parsed.path("pid-file"),
        pidfd_socket: parsed.path("pidfd-socket"),
    }
}

/// Where a terminal's master end goes, after a check that the options go together.
pub(super) fn console_socket(
    path: Option<&Path>,
    terminal: bool,
    detach: bool,
) -> Result<Option<OwnedFd>, console::Error> {
    if detach && terminal && path.is_none() {
        return Err(console::Error::NoSocket);
    }
    if (!detach || !terminal) && path.is_some() {
        return Err(console::Error::UnusedSocket);
    }
    Ok(path.map(console::connect_socket).transpose()?)
}

/// Creates the container.
pub(super) fn create(
    request: &Request<'_>,
    bundle: &Bundle,
    report: Report,
    wait_for_start: bool,
    console_socket: Option<&OwnedFd>,
) -> Result<Created> {
    let wanted = parent::Request {
        store: &request.store,
        plan: &bundle.plan,
        spec: &bundle.spec,
        systemd_cgroup: request.global.systemd_cgroup,
        rootless: request.global.rootless,
        wait_for_start,
        console_socket,
        report,
    };
    match parent::create(&wanted) {
        Err(crate::setup::Error::State(error)) => Err(error.into()),
        other => other.context("unable to start container process"),
    }
}

/// Receives the master end of a terminal that was made for the foreground.
pub(super) fn receive_terminal(socket: &OwnedFd) -> Result<OwnedFd> {
    Ok(console::receive_descriptor(socket.as_fd()).during("recvmsg", "terminal")?)
}
