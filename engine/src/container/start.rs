//! Starting a container. [`steps`] is the whole order of things, one call a step.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use jiff::Timestamp;

use super::attach::Connection;
use super::find::Handle;
use super::live::Live;
use super::log::Driver;
use super::model::{State, Status};
use super::overlay::Overlay;
use super::{Error, Programs, Result, bundle, cleanup, files, monitor, recover, restart};
use crate::store::{Event, Kind, Lock, Store, make_dir};
use crate::{image, network};

/// Whether the caller wants the container's streams from the very first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    /// Connect before the process starts.
    Attach,
    /// Nobody listens; the log has it all.
    Leave,
}

/// Starts a container that has been created or has ended. One that runs already is left alone.
///
/// # Errors
/// When it is paused or being removed, or a step fails; everything done until then is undone.
pub fn start(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    streams: Streams,
) -> Result<Option<Connection>> {
    recover::collect(store, programs, handle.id())?;
    let lock = handle.lock()?;
    let handle = &handle.latest()?;
    let (mut state, live) = handle.live(store)?;
    match live {
        Live::Running if streams == Streams::Attach => {
            drop(lock);
            return super::attach::connect(store, handle).map(Some);
        }
        Live::Running => return Ok(None),
        Live::Created | Live::Exited | Live::Restarting => {}
        Live::Paused | Live::Removing => {
            return Err(Error::WrongStatus {
                id: handle.name().to_owned(),
                status: live.word().to_owned(),
                action: "start it",
            });
        }
    }
    // Ended, and nobody has tidied up yet: that comes first.
    cleanup::finish_locked(store, programs, handle)?;
    if state.status == Status::Running {
        state = handle.state()?;
    }
    if state.status == Status::Restarting {
        restart::give_up(&mut state);
    }
    state.restart_count = 0;
    state.restart_pause = None;
    start_locked(store, programs, handle, &mut state, streams, &lock)
}

/// Starts a container under a lock that is held already.
///
/// # Errors
/// When a step fails; everything done until then is undone and the state says why.
pub fn start_locked(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    state: &mut State,
    streams: Streams,
    _lock: &Lock,
) -> Result<Option<Connection>> {
    let before = state.status;
    steps(store, programs, handle, state, streams).inspect_err(|error| {
        cleanup::end_monitor(state);
        drop(cleanup::tear_down(store, programs, handle, state));
        drop(std::fs::remove_file(store.exits().join(handle.id())));
        state.status = match before {
            Status::Exited | Status::Restarting => Status::Exited,
            _ => Status::Created,
        };
        state.disposable = false;
        state.network = None;
        state.process = None;
        state.monitor = None;
        state.restarter = None;
        state.restart_at = None;
        state.error = error.to_string();
        state.exit_code = Some(match error {
            Error::Runtime { exit_code, .. } => i32::from(*exit_code),
            _ => 128,
        });
        drop(handle.save(state));
    })
}

/// The order of a start. Whatever fails, [`cleanup::tear_down`] undoes all of it.
fn steps(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    state: &mut State,
    streams: Streams,
) -> Result<Option<Connection>> {
    let id = handle.id();
    drop(std::fs::remove_file(store.exits().join(id)));

    // Before the first reservation, so that a killed start is known as one.
    state.status = Status::Starting;
    // The last run's monitor may be the parent of this very process, which carries out a restart policy.
    state.monitor = None;
    state.network = None;
    state.stopped_by_user = false;
    state.kept = false;
    state.error = String::new();
    handle.save(state)?;
    let mut setup = reserve(store, programs, handle)?;
    setup.identity = files::identity(handle);
    state.network = Some(setup.clone());

    make_dir(&store.container_run(id))?;
    overlay(store, handle)?.mount()?;
    files::write(store, handle, &setup)?;
    let pins = bundle::write(store, programs, handle)?;

    let process = monitor::create(store, programs, handle, |monitor| {
        state.monitor = monitor;
        handle.save(state)
    })?;
    drop(pins);
    if let Some(namespace) = network_namespace(handle, process.pid)? {
        network::connect(store, id, &setup, &namespace)?;
        let arguments = &programs.engine_arguments;
        network::names::ensure(store, &programs.engine, arguments, &setup)?;
        tell_networks(store, handle, &setup, "connect");
    }
    // Before the start: the first byte of output has somewhere to go.
    let connection = match streams {
        // With `passthrough` they are ours already.
        Streams::Attach if Driver::of(handle) != Driver::Passthrough => {
            Some(super::attach::connect(store, handle)?)
        }
        Streams::Attach | Streams::Leave => None,
    };
    runtime_start(store, programs, handle)?;

    state.status = Status::Running;
    state.disposable = false;
    state.process = Some(process);
    state.started = Some(Timestamp::now());
    state.oom_killed = false;
    state.restart_at = None;
    state.restarter = None;
    handle.save(state)?;
    store.emit(&handle.event("start"));
    Ok(connection)
}

/// The events of joining and leaving networks.
pub(super) fn tell_networks(store: &Store, handle: &Handle, setup: &network::Setup, action: &str) {
    for attachment in &setup.attachments {
        let event = Event::new(Kind::Network, action, &attachment.network_id)
            .with("name", &attachment.network)
            .with("type", "bridge")
            .with("container", handle.id());
        store.emit(&event);
    }
}

/// Addresses and ports. What is taken may belong to a container whose maker was killed: those are put right before a
/// refusal is final.
fn reserve(store: &Store, programs: &Programs, handle: &Handle) -> Result<network::Setup> {
    let options = &handle.config.options;
    let attempt = || network::reserve(store, handle.id(), &options.network, &options.ports);
    if let Ok(setup) = attempt() {
        return Ok(setup);
    }
    recover::sweep(store, programs)?;
    Ok(attempt()?)
}

/// The overlay of a container's layers and its own changes.
pub(super) fn overlay(store: &Store, handle: &Handle) -> Result<Overlay> {
    Ok(Overlay {
        lower: layers(store, handle)?,
        upper: handle.upper(),
        work: handle.work(),
        merged: handle.merged(),
    })
}

/// The unpacked layers, highest first. Where one is missing, the image is asked to unpack it again.
fn layers(store: &Store, handle: &Handle) -> Result<Vec<PathBuf>> {
    let config = &handle.config;
    let directory = |chain| image::layers::directory(store, chain).join(image::layers::DIFF);
    let lower: Vec<PathBuf> = config.layers.iter().rev().map(directory).collect();
    if lower.iter().all(|path| path.is_dir()) {
        return Ok(lower);
    }
    let image = image::require(store, &config.image_id.to_string())?;
    Ok(image::lower_directories(store, &image)?)
}

/// Where a process's network namespace is found.
pub(super) fn namespace_path(pid: i32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// The network namespace that the runtime made; `None` when the container uses somebody else's.
pub(super) fn network_namespace(handle: &Handle, pid: i32) -> Result<Option<std::fs::File>> {
    use super::SystemContext;
    match handle.config.options.network {
        network::Mode::Host | network::Mode::Container(_) => Ok(None),
        network::Mode::None | network::Mode::Networks(_) => {
            let path = namespace_path(pid);
            std::fs::File::open(&path).system("open", path).map(Some)
        }
    }
}

pub(super) fn runtime_start(store: &Store, programs: &Programs, handle: &Handle) -> Result<()> {
    let runtime = monitor::runtime(programs, handle);
    let output = Command::new(&runtime)
        .arg("--root")
        .arg(store.runtime_root())
        .args(["start", handle.id()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|source| Error::Program {
            program: runtime,
            source,
        })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(monitor::refused(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        ))
    }
}
