//! What the commands that start processes share: from what was typed to a container, and on to its end in the foreground.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{Request, delete};
use crate::cgroup::Cgroup;
use crate::cli::Parsed;
use crate::console::{self, Holder};
use crate::container::Container;
use crate::failure::{CallFailed, During};
use crate::plan::{self, Extra, Plan};
use crate::readiness::{self, Relay};
use crate::rootless;
use crate::self_image;
use crate::setup::parent::{self, Created};
use crate::setup::report::Report;
use crate::setup::spawn;
use crate::spec::Spec;
use crate::state::{self, Directory, Record};
use crate::supervise::{Foreground, Terminal};
use crate::sys::process::{Child, is_inherited};

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
///
/// A caller who passes single ones of higher numbers (`podman run --preserve-fd 7`) can only say how many there would be,
/// with gaps: `/dev/null` goes there.
pub(super) fn check_inherited(count: u32) -> Result<()> {
    let end = 3 + i32::try_from(count).unwrap_or(i32::MAX - 3);
    for number in 3..end {
        if is_inherited(number) || is_inherited(end - 1) && fill(number)? {
            continue;
        }
        bail!(
            "unable to stat preserved-fd {} (of {count}): no such file or directory",
            number - 3
        );
    }
    Ok(())
}

/// Opens `/dev/null` as `number`, for whoever we start. `false` when the number is taken.
fn fill(number: i32) -> Result<bool> {
    let null = Path::new("/dev/null");
    let fd = rustix::fs::open(null, OFlags::RDWR, Mode::empty()).during("open", null)?;
    let fits = fd.as_raw_fd() == number;
    if fits {
        // Ours no more.
        let _ = fd.into_raw_fd();
    }
    Ok(fits)
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

/// What is to be created, or restored.
pub(super) fn wanted<'a>(
    request: &'a Request<'_>,
    bundle: &'a Bundle,
    report: Report,
    wait_for_start: bool,
    holder: Option<Holder<'a>>,
) -> parent::Request<'a> {
    parent::Request {
        store: &request.store,
        plan: &bundle.plan,
        spec: &bundle.spec,
        cgroup_manager: request.global.cgroup_manager,
        rootless: request.global.rootless,
        wait_for_start,
        holder,
        report,
    }
}

/// Creates the container.
pub(super) fn create(wanted: &parent::Request<'_>) -> Result<Created> {
    match parent::create(wanted) {
        Err(crate::setup::Error::State(error)) => Err(error.into()),
        other => other.context("unable to start container process"),
    }
}

/// Where a process's terminal goes, and who stays with the process.
pub(super) struct Front {
    /// The caller's socket for the terminal.
    outside: Option<OwnedFd>,
    /// We ourselves, unless detached.
    pub(super) attended: Option<Attended>,
}

/// A process that is waited for.
pub(super) struct Attended {
    foreground: Foreground,
    /// Both ends of what its terminal comes through: ours and the process's.
    own: Option<(OwnedFd, OwnedFd)>,
}

impl Front {
    /// Takes up the caller's socket or, unless detached, makes one, and holds signals back for the process.
    pub(super) fn new(socket: Option<&Path>, terminal: bool, detach: bool) -> Result<Self> {
        let outside = console_socket(socket, terminal, detach)?;
        let attended = match detach {
            true => None,
            false => Some(Attended {
                own: terminal.then(socket_pair).transpose()?,
                foreground: Foreground::begin()?,
            }),
        };
        Ok(Self { outside, attended })
    }

    /// Where the terminal's master end goes.
    pub(super) fn holder(&self) -> Option<Holder<'_>> {
        let own = self.attended.as_ref().and_then(|it| it.own.as_ref());
        let outside = self.outside.as_ref().map(Holder::Caller);
        outside.or(own.map(|(_, inside)| Holder::Foreground(inside)))
    }
}

impl Attended {
    /// Receives the terminal that was made for the foreground.
    pub(super) fn terminal(&self) -> Result<Option<Terminal>> {
        let Some((outside, _)) = &self.own else {
            return Ok(None);
        };
        let master = console::receive_descriptor(outside.as_fd()).during("recvmsg", "terminal")?;
        Ok(Some(Terminal::new(master)?))
    }

    /// Stays with the process until its end; gives its exit code.
    pub(super) fn wait(
        &self,
        child: &Child,
        terminal: Option<&Terminal>,
        relay: Option<&Relay>,
    ) -> Result<u8> {
        Ok(self.foreground.wait_for(child, terminal, relay)?)
    }
}

fn socket_pair() -> Result<(OwnedFd, OwnedFd), CallFailed> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    socketpair(family, kind, SocketFlags::CLOEXEC, None).during("socketpair", "terminal")
}

/// Takes up the container's orphans, unless told not to.
pub(super) fn adopt_orphans(parsed: &Parsed) -> Result<()> {
    if !parsed.is_on("no-subreaper") {
        crate::sys::process::set_child_subreaper().during("prctl", "subreaper")?;
    }
    Ok(())
}

/// Ends the process of a container that could not be attended, and removes all traces of the container.
pub(super) fn end(
    outcome: Result<u8>,
    child: &Child,
    directory: Directory,
    record: Record,
) -> Result<u8> {
    if outcome.is_err() {
        spawn::end(child);
    }
    let removed = remove(directory, record);
    // What failed first is told.
    let code = outcome?;
    removed?;
    Ok(code)
}

/// Removes all traces of a container whose process has ended.
fn remove(directory: Directory, record: Record) -> Result<()> {
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
