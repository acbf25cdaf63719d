//! The life of one container, in one loop.
//!
//! 1. [`Monitor::prepare`]: own session, subreaper, signals, log, sockets.
//! 2. An attached exec session waits for its start message.
//! 3. The runtime runs ([`Phase::Creating`]); its stderr is held back, because
//!    it is the error message if it fails, and output if it does not.
//! 4. The container runs ([`Phase::Running`]): output to log and clients,
//!    clients' input to the container.
//! 5. The container's process has ended: what is in the pipes is read, and the
//!    loop is over; [`end`] publishes the rest.
//!
//! The loop sets up what to wait for, waits, and handles what came. Nothing it
//! calls blocks on a client, and in phase 4 nothing allocates unless a client is
//! slow or the container has said nothing for a while.

mod end;
mod runtime;
mod streams;
pub(crate) mod token;

pub(crate) use runtime::last_error;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as NixSignal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::epoll::EventFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::attach::Attach;
use crate::console::ConsoleSocket;
use crate::control::Fifo;
use crate::diag;
use crate::error::Error;
use crate::frontend::conmon::sync::SyncPipe;
use crate::inherited::Inherited;
use crate::log::{Logs, Stream};
use crate::notify::Notify;
use crate::oom::OomWatch;
use crate::plan::{Detach, Plan, StdioKind};
use crate::poller::{Batch, Poller};
use crate::process::{self, ExitStatus, Streams};
use crate::stdio::{self, Input, Stdio};
use token::Token;

/// Bytes read at once: what a busy pipe holds.
const BUFFER: usize = stdio::BUSY_PIPE;

/// Makes room for them, which takes no memory until something is read.
fn buffer() -> Box<[u8]> {
    vec![0; BUFFER].into_boxed_slice()
}

/// How long a container that was killed at its time limit may take to die.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What the caller's descriptors are for.
#[derive(Debug)]
pub(crate) struct Channels {
    /// Takes the pid or the failure.
    pub(crate) sync: Option<SyncPipe>,
    /// Is told when the attach socket is there.
    pub(crate) attach: Option<SyncPipe>,
    /// Says when an attached exec session may begin.
    pub(crate) start: Option<OwnedFd>,
}

/// Where in its life the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the runtime.
    Waiting,
    /// The runtime is at work.
    Creating(Pid),
    /// The container's process runs.
    Running(Pid),
    /// It has ended.
    Ended(ExitStatus),
}

/// The monitor of one container.
#[derive(Debug)]
pub(crate) struct Monitor {
    plan: Plan,
    phase: Phase,
    poller: Poller<Token>,
    signals: SignalFd,
    inherited: Inherited,
    sync: Option<SyncPipe>,
    start: Option<OwnedFd>,
    stdio: Stdio,
    /// The container's ends, until the runtime has them.
    streams: Option<Streams>,
    logs: Logs,
    attach: Option<Attach>,
    control: Option<Fifo>,
    window_size: Option<Fifo>,
    notify: Option<Notify>,
    console: Option<ConsoleSocket>,
    /// A size that came before the terminal.
    size: Option<(u16, u16)>,
    oom: Option<OomWatch>,
    /// A container that is not our child.
    foreign: Option<OwnedFd>,
    /// The runtime's stderr while it runs.
    held: Vec<u8>,
    /// Children that ended while the runtime was running.
    early: Vec<(Pid, ExitStatus)>,
    deadline: Option<Instant>,
    timed_out: bool,
    /// `oom_score_adj` before we changed it.
    oom_score: Option<String>,
    buffer: Box<[u8]>,
}

impl Monitor {
    /// Starts the container, stays until its end, and returns its exit code.
    pub(crate) fn run(plan: Plan, channels: Channels, inherited: Inherited) -> Result<i32, Error> {
        let Channels {
            mut sync,
            attach,
            start,
        } = channels;
        let mut monitor = match Self::prepare(plan, start, inherited) {
            Ok(monitor) => monitor,
            Err(error) => {
                if let Some(sync) = &mut sync {
                    sync.failure(&error.chain());
                }
                return Err(error);
            }
        };
        monitor.sync = sync;
        if let Some(mut attach) = attach {
            attach.ready();
        }
        match monitor.live() {
            Ok(status) => Ok(monitor.end(status)),
            Err(error) => match monitor.abandon(&error) {
                Some(status) => Ok(monitor.end(status)),
                None => Err(error),
            },
        }
    }

    /// Does everything up to, not including, the runtime's start.
    fn prepare(plan: Plan, start: Option<OwnedFd>, inherited: Inherited) -> Result<Self, Error> {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        process::dump_no_core();
        // Fails only for the leader of a group, which has then left its
        // caller's already.
        if let Err(errno) = rustix::process::setsid() {
            diag::debug!("setsid: {errno}");
        }
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(Error::call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        let signals = catch_signals()?;
        let poller = Poller::new().map_err(Error::call("epoll_create1"))?;
        let logs = Logs::open(&plan.logs, plan.limits, &plan.labels)?;
        let directory = plan.socket_dir().map(std::path::Path::to_owned);
        let attach = directory
            .as_deref()
            .map(|directory| Attach::listen(directory, plan.socket_link.as_deref()))
            .transpose()?;
        let control = directory.as_deref().map(Fifo::control).transpose()?;
        let window_size = directory.as_deref().map(Fifo::window_size).transpose()?;
        let notify = match (&plan.bundle, &plan.notify_socket) {
            (Some(bundle), Some(host)) => Some(Notify::relay(bundle, host)?),
            _ => None,
        };
        let console = (plan.stdio == StdioKind::Terminal)
            .then(|| ConsoleSocket::listen(directory.as_deref()))
            .transpose()?;
        let (stdio, streams) = stdio::open_streams(plan.stdio)?;
        let monitor = Self {
            phase: Phase::Waiting,
            poller,
            signals,
            inherited,
            sync: None,
            start,
            stdio,
            streams: Some(streams),
            logs,
            attach,
            control,
            window_size,
            notify,
            console,
            size: None,
            oom: None,
            foreign: None,
            held: Vec::new(),
            early: Vec::new(),
            deadline: None,
            timed_out: false,
            oom_score: None,
            buffer: buffer(),
            plan,
        };
        monitor
            .watch_fixed()
            .map_err(Error::call("epoll_ctl(EPOLL_CTL_ADD)"))?;
        Ok(monitor)
    }

    /// Watches what is watched from beginning to end.
    fn watch_fixed(&self) -> rustix::io::Result<()> {
        let input = EventFlags::IN;
        self.poller.add(&self.signals, Token::Signals, input)?;
        if let Some(fifo) = &self.control {
            self.poller.add(fifo.fd(), Token::Control, input)?;
        }
        if let Some(fifo) = &self.window_size {
            self.poller.add(fifo.fd(), Token::WindowSize, input)?;
        }
        if let Some(notify) = &self.notify {
            self.poller.add(notify.fd(), Token::Notify, input)?;
        }
        if let Some(console) = &self.console {
            self.poller.add(console.fd(), Token::Console, input)?;
        }
        if let Some(start) = &self.start {
            self.poller.add(start, Token::Start, input)?;
        }
        Ok(())
    }

    /// Starts the runtime and loops until the container has ended.
    fn live(&mut self) -> Result<ExitStatus, Error> {
        if self.start.is_none() {
            self.start_runtime()?;
        }
        let mut batch = Batch::new();
        loop {
            if let Phase::Ended(status) = self.phase {
                return Ok(status);
            }
            let wake = self
                .watch_variable(Instant::now())
                .map_err(Error::call("epoll_ctl"))?;
            let timeout = wake.map(|wake| wake.saturating_duration_since(Instant::now()));
            let settle = || {
                self.buffer = buffer();
                self.logs.settle();
            };
            self.poller
                .wait(&mut batch, timeout, settle)
                .map_err(Error::call("epoll_wait"))?;
            self.handle(&batch)?;
            self.check_deadline(Instant::now());
        }
    }

    /// Watches what is of use in the present state. Returns when to wake up even
    /// if nothing happens.
    fn watch_variable(&mut self, now: Instant) -> rustix::io::Result<Option<Instant>> {
        let mut wake = self.deadline;
        let mut sooner = |time: Option<Instant>| {
            wake = match (wake, time) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        };
        let mut congested = false;
        let room = self.takes_input();
        if let Some(attach) = &mut self.attach {
            let retry = attach.congestion(now);
            congested = retry.is_some();
            sooner(retry);
            sooner(attach.watch(&self.poller, room, now)?);
        }
        let running = matches!(self.phase, Phase::Running(_));
        if let Some(stdout) = &mut self.stdio.stdout {
            sooner(stdout.watch(&self.poller, running && !congested, now)?);
        }
        if let Some(stderr) = &mut self.stdio.stderr {
            let wanted = self.phase != Phase::Waiting && !congested;
            sooner(stderr.watch(&self.poller, wanted, now)?);
        }
        if let Some(stdin) = &mut self.stdio.stdin {
            stdin.watch(&self.poller)?;
        }
        Ok(wake)
    }

    fn handle(&mut self, batch: &Batch) -> Result<(), Error> {
        // Clients first: who connected before some output was written must get
        // it, and may be in the same batch or, if that is full, behind it.
        let knock = batch
            .named::<Token>()
            .any(|(token, _)| token == Token::Listener);
        if (knock || batch.is_full())
            && let Some(attach) = &mut self.attach
        {
            attach.accept(&self.poller, Instant::now());
        }
        for (token, flags) in batch.named() {
            match token {
                Token::Listener => {}
                Token::Signals => self.handle_signals()?,
                Token::Stdout => self.pump(Stream::Stdout),
                Token::Stderr => self.pump(Stream::Stderr),
                Token::Stdin => self.feed_stdin(Input::flush),
                Token::Console => self.receive_terminal()?,
                Token::Control => self.read_control(Token::Control),
                Token::WindowSize => self.read_control(Token::WindowSize),
                Token::Start => self.started_by_caller()?,
                Token::Oom => self.oom_notified(),
                Token::Notify => {
                    if let Some(notify) = &self.notify {
                        notify.pass();
                    }
                }
                Token::Container => self.foreign_container_ended(),
                Token::Client(slot) => self.serve_client(slot, flags),
            }
        }
        Ok(())
    }

    fn oom_notified(&mut self) {
        let Some(oom) = &mut self.oom else { return };
        if !oom.notified() {
            // The descriptor leaves epoll with its close.
            self.oom = None;
        }
    }

    fn handle_signals(&mut self) -> Result<(), Error> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match NixSignal::try_from(number) {
                Ok(NixSignal::SIGTERM) => self.forward(Signal::TERM)?,
                Ok(NixSignal::SIGINT) => self.forward(Signal::INT)?,
                Ok(NixSignal::SIGQUIT) => self.forward(Signal::QUIT)?,
                Ok(NixSignal::SIGHUP) => self.logs.reopen(),
                _ => {}
            }
        }
        self.reap()
    }

    /// Sends a signal that was meant to end us to what we watch over: its end
    /// is ours.
    fn forward(&self, signal: Signal) -> Result<(), Error> {
        let pid = match self.phase {
            Phase::Waiting => {
                return Err(Error::Runtime("terminated before the start".into()));
            }
            Phase::Creating(pid) | Phase::Running(pid) => pid,
            Phase::Ended(_) => return Ok(()),
        };
        if let Err(errno) = rustix::process::kill_process(pid, signal) {
            diag::debug!("kill({}): {errno}", pid.as_raw_nonzero());
        }
        Ok(())
    }

    /// Collects every child that has ended.
    fn reap(&mut self) -> Result<(), Error> {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(status) = ExitStatus::of(status) {
                        self.child_ended(pid, status)?;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                // ECHILD: there are none at all.
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, status: ExitStatus) -> Result<(), Error> {
        match self.phase {
            Phase::Creating(runtime) if runtime == pid => self.runtime_ended(status)?,
            // Perhaps the container, quicker than its runtime.
            Phase::Creating(_) => self.early.push((pid, status)),
            Phase::Running(container) if container == pid => self.container_ended(status),
            // An orphan of the container that became ours.
            _ => {}
        }
        Ok(())
    }

    fn container_ended(&mut self, status: ExitStatus) {
        diag::info!("the container ended with status {}", status.0);
        self.phase = Phase::Ended(status);
    }

    /// The pidfd of a container that is not our child has become readable. Its
    /// exit status is known to its parent alone.
    fn foreign_container_ended(&mut self) {
        if self.foreign.take().is_some() && matches!(self.phase, Phase::Running(_)) {
            diag::warning!("the container was not a child of ours: its exit code is unknown");
            self.container_ended(ExitStatus(-1));
        }
    }

    /// Kills a container whose time is over, and gives up waiting if that has
    /// no effect.
    fn check_deadline(&mut self, now: Instant) {
        let Phase::Running(pid) = self.phase else {
            return;
        };
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.timed_out {
            diag::error!("the container did not end when it was killed");
            self.phase = Phase::Ended(ExitStatus(-1));
            return;
        }
        diag::info!("the container's time is over");
        self.timed_out = true;
        self.deadline = Some(now + KILL_PATIENCE);
        // Its whole group, unless that is everybody's or our own.
        let ours = rustix::process::getpgrp();
        let group = rustix::process::getpgid(Some(pid))
            .ok()
            .filter(|&group| group != ours && group.as_raw_nonzero().get() > 1);
        let killed = match group {
            Some(group) => rustix::process::kill_process_group(group, Signal::KILL),
            None => rustix::process::kill_process(pid, Signal::KILL),
        };
        if let Err(errno) = killed {
            diag::warning!("kill({}): {errno}", pid.as_raw_nonzero());
        }
    }

    /// Whether descriptors that the caller left open are no use to the runtime
    /// either, because nothing on its command line or in its environment says so.
    fn closes_early(&self) -> bool {
        let options = self
            .plan
            .runtime_options
            .iter()
            .filter_map(|word| word.to_str());
        self.plan.detach == Detach::NoDaemon
            && std::env::var_os("LISTEN_FDS").is_none()
            && !options
                .into_iter()
                .any(|word| word.starts_with("--preserve-fds"))
    }
}

/// Has signals delivered through a descriptor: all there are, because none may end who alone knows the exit code. What is
/// no business of ours is read there and forgotten.
pub(crate) fn catch_signals() -> Result<SignalFd, Error> {
    let caught = SigSet::all();
    caught
        .thread_block()
        .map_err(Error::call("pthread_sigmask"))?;
    SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(Error::call("signalfd"))
}
