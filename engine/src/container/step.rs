//! Containers that work on an image instead of running it: the steps of a build.
//!
//! Such a container is one of the store's like any other, so that what a killed build leaves is collected by the same
//! code as what a killed `run` leaves: its directory, its address, its cgroup, its mount. It has no monitor and no
//! log: its process writes straight to the caller's streams, and becomes our child when the runtime that made it
//! ends. Listings leave it out.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, getpid, pidfd_open, waitid};

use super::create::{Created, create};
use super::find::Handle;
use super::model::{Options, Process, State, Status};
use super::{
    Error, Programs, Result, SystemContext, bundle, cleanup, files, monitor, overlay, recover,
    remove, start,
};
use crate::image::Image;
use crate::network;
use crate::store::{Lock, Store, make_dir};

/// How the process of a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code; 128 + signal for a signal.
    Exited(i32),
    /// The caller wanted no more of it.
    Cancelled,
}

/// A mounted root file system, and perhaps a process in it. Dropping it takes everything away.
#[derive(Debug)]
pub(crate) struct Step<'s> {
    store: &'s Store,
    programs: &'s Programs,
    handle: Handle,
    state: State,
    _lock: Lock,
}

impl<'s> Step<'s> {
    /// Makes the container and mounts the layers of `image` with an empty one on top.
    pub(crate) fn mount(
        store: &'s Store,
        programs: &'s Programs,
        image: &Image,
        mut options: Options,
    ) -> Result<Step<'s>> {
        options.build_step = true;
        options.auto_remove = true;
        let Created {
            handle,
            lock,
            state,
        } = create(store, image, options, true)?;
        let mut step = Step {
            store,
            programs,
            handle,
            state,
            _lock: lock,
        };
        // Before the first mount and the first reservation, so that whoever finds it abandoned takes both away.
        step.state.status = Status::Starting;
        step.handle.save(&step.state)?;
        start::overlay(store, &step.handle)?.mount()?;
        Ok(step)
    }

    /// The mounted tree.
    pub(crate) fn root(&self) -> PathBuf {
        self.handle.merged()
    }

    /// What was changed in it.
    pub(crate) fn upper(&self) -> PathBuf {
        self.handle.upper()
    }

    /// A directory of `<run>` that goes with the container.
    pub(crate) fn private_directory(&self) -> Result<PathBuf> {
        let directory = self.store.container_run(self.handle.id());
        make_dir(&directory)?;
        Ok(directory)
    }

    /// Runs the container's command to its end, on the caller's streams. When `cancel` becomes readable the process
    /// is killed.
    pub(crate) fn run(
        &mut self,
        (stdout, stderr): (OwnedFd, OwnedFd),
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Ended> {
        let id = self.handle.id().to_owned();
        let setup = self.reserve()?;
        self.state.network = Some(setup.clone());
        self.handle.save(&self.state)?;
        make_dir(&self.store.container_run(&id))?;
        files::write(self.store, &self.handle, &setup)?;
        let _pins = bundle::write(self.store, self.programs, &self.handle)?;

        let _adopts = Adopts::start()?;
        let process = self.runtime_create(stdout, stderr)?;
        if let Some(namespace) = start::network_namespace(&self.handle, process.pid)? {
            network::connect(self.store, &id, &setup, &namespace)?;
            let (engine, arguments) = (&self.programs.engine, &self.programs.engine_arguments);
            network::names::ensure(self.store, engine, arguments, &setup)?;
        }
        start::runtime_start(self.store, self.programs, &self.handle)?;
        let ended = wait(process, cancel)?;
        self.tear_down()?;
        Ok(ended)
    }

    /// Unmounts the root, and takes what a process had; the changes stay until this value goes.
    pub(crate) fn tear_down(&mut self) -> Result<()> {
        cleanup::tear_down(self.store, self.programs, &self.handle, &self.state)?;
        self.state.network = None;
        Ok(())
    }

    fn reserve(&self) -> Result<network::Setup> {
        let options = &self.handle.config.options;
        let attempt = || {
            network::reserve(
                self.store,
                self.handle.id(),
                &options.network,
                &options.ports,
            )
        };
        if let Ok(setup) = attempt() {
            return Ok(setup);
        }
        recover::sweep(self.store, self.programs)?;
        Ok(attempt()?)
    }

    /// `qrun create`: the container's init has our streams, and waits for `start`.
    fn runtime_create(&self, stdout: OwnedFd, stderr: OwnedFd) -> Result<Process> {
        let runtime = monitor::runtime(self.programs, &self.handle);
        let bundle = self.handle.bundle(self.store);
        let pid_file = bundle.join("pidfile");
        let log = bundle.join("runtime.log");
        let status = Command::new(&runtime)
            .arg("--root")
            .arg(self.store.runtime_root())
            .arg("--log")
            .arg(&log)
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(self.handle.id())
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .status()
            .map_err(|source| Error::Program {
                program: runtime,
                source,
            })?;
        if !status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(monitor::refused(text));
        }
        let text = std::fs::read_to_string(&pid_file).system("read", &pid_file)?;
        text.trim()
            .parse()
            .ok()
            .and_then(Process::remember)
            .ok_or_else(|| Error::MonitorLost {
                id: self.handle.id().to_owned(),
            })
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // What resists is an abandoned container from now on, and those are collected.
        if self.tear_down().is_ok() {
            drop(remove::erase(
                self.store,
                &self.handle,
                &mut self.state,
                remove::Volumes::RemoveAnonymous,
            ));
        } else {
            drop(overlay::unmount_all(&self.handle.merged()));
        }
    }
}

/// While it lives, processes whose parent ends become our children: that is how the exit code of a container's init
/// comes to us without a monitor between.
struct Adopts {
    before: bool,
}

impl Adopts {
    fn start() -> Result<Adopts> {
        let before = rustix::process::child_subreaper()
            .system("ask for", "PR_GET_CHILD_SUBREAPER")?
            .is_some();
        rustix::process::set_child_subreaper(Some(getpid()))
            .system("set", "PR_SET_CHILD_SUBREAPER")?;
        Ok(Adopts { before })
    }
}

impl Drop for Adopts {
    fn drop(&mut self) {
        if !self.before {
            // It can't fail where setting it did not.
            let _ = rustix::process::set_child_subreaper(None);
        }
    }
}

/// Waits for the container's init, which is our child by now.
fn wait(process: Process, cancel: Option<BorrowedFd<'_>>) -> Result<Ended> {
    let failed = |error: rustix::io::Errno| {
        Err(io::Error::from(error)).system("wait for", "the step's process")
    };
    let Some(pid) = Pid::from_raw(process.pid) else {
        return Ok(Ended::Exited(255));
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(error) => return failed(error),
    };
    let mut is_cancelled = false;
    loop {
        let mut waiting = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if let (Some(cancel), false) = (&cancel, is_cancelled) {
            waiting.push(PollFd::new(cancel, PollFlags::IN));
        }
        match poll(&mut waiting, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return failed(error),
        }
        if !waiting[0].revents().is_empty() {
            break;
        }
        if waiting.get(1).is_some_and(|it| !it.revents().is_empty()) {
            is_cancelled = true;
            // One that has just ended needs no signal.
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        }
    }
    let status = match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(status) => status,
        Err(error) => return failed(error),
    };
    if is_cancelled {
        return Ok(Ended::Cancelled);
    }
    let code = status.and_then(|status| {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        status.exit_status().or(signal)
    });
    Ok(Ended::Exited(code.unwrap_or(255)))
}
