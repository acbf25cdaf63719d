//! The server: one loop, without threads, for all containers of one pod.
//!
//! It takes containerd's calls ([`super::task`]), runs the OCI runtime as a child and goes on with others meanwhile
//! ([`super::job`]), moves the containers' output, collects whatever ends, and tells containerd of it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use rustix::event::epoll::EventFlags;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, WaitOptions};

use super::container::{Caller, Container, End, Phase, Process, code};
use super::event::Publisher;
use super::job::{Job, Prepared};
use super::message::{TaskExit, TaskOnly, Timestamp};
use super::output::{Output, Untold};
use super::pump::{Progress, Pump};
use super::token::Token;
use super::ttrpc::{Connection, Incoming, Refusal};
use crate::diag;
use crate::error::Error;
use crate::poller::{Batch, Poller};
use crate::process::ExitStatus;

/// Bytes read at once.
const BUFFER: usize = 32 * 1024;

/// How long the end is put off for events that containerd has not taken.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long the deletion of a process waits for those that have its output open, once nothing more comes from them.
const QUIET: Duration = Duration::from_secs(2);

/// How long it waits for a client that does not read.
pub(super) const STALLED: Duration = Duration::from_secs(10);

/// Where the server is and whom it serves.
#[derive(Debug)]
pub(crate) struct Place {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// containerd's ttrpc address, for events.
    pub(crate) events: Option<String>,
    /// The path of the listening socket, removed at the end.
    pub(crate) socket: Option<PathBuf>,
}

/// The state of everything.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) place: Place,
    pub(super) poller: Poller<Token>,
    signals: SignalFd,
    listener: OwnedFd,
    connections: Vec<Option<(u64, Connection)>>,
    generation: u64,
    pub(super) publisher: Publisher,
    pub(super) containers: BTreeMap<String, Container>,
    /// Calls of the runtime that are under way.
    pub(super) jobs: Vec<(Pid, Job)>,
    /// Those that wait for a logger.
    pub(super) prepared: Vec<Option<Prepared>>,
    /// Children that ended while a call of the runtime was under way: one of them may be what it started.
    pub(super) early: Vec<(Pid, ExitStatus)>,
    pumps: Vec<Option<Pump>>,
    /// Ids by their place in tokens.
    pub(super) places: Vec<Option<String>>,
    pub(super) shutting_down: Option<Instant>,
    buffer: Box<[u8]>,
}

impl Server {
    /// Makes the server around a listening, non-blocking socket.
    pub(crate) fn new(place: Place, listener: OwnedFd) -> Result<Self, Error> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(Error::call("prctl(PR_SET_CHILD_SUBREAPER)"))?;
        let signals = crate::monitor::catch_signals()?;
        let poller = Poller::new().map_err(Error::call("epoll_create1"))?;
        let publisher = Publisher::new(place.events.clone(), place.namespace.clone());
        let watch = || {
            poller.add(&signals, Token::Signals, EventFlags::IN)?;
            poller.add(&listener, Token::Listener, EventFlags::IN)
        };
        watch().map_err(Error::call("epoll_ctl"))?;
        Ok(Self {
            place,
            poller,
            signals,
            listener,
            connections: Vec::new(),
            generation: 0,
            publisher,
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            prepared: Vec::new(),
            early: Vec::new(),
            pumps: Vec::new(),
            places: Vec::new(),
            shutting_down: None,
            buffer: vec![0; BUFFER].into_boxed_slice(),
        })
    }

    /// Serves until containerd says that it is over.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        loop {
            let now = Instant::now();
            if self.is_over(now) {
                break;
            }
            self.give_up_loggers(now);
            self.tell_ends(now);
            self.finish_deletions(now);
            // After these, as they may have something to tell.
            self.advance_events(now);
            self.flush_connections();
            let timeout = self
                .next_deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            self.poller
                .wait(&mut batch, timeout, || {})
                .map_err(Error::call("epoll_wait"))?;
            for (token, flags) in batch.named() {
                self.handle(token, flags);
            }
        }
        if let Some(path) = &self.place.socket {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    fn is_over(&self, now: Instant) -> bool {
        let Some(since) = self.shutting_down else {
            return false;
        };
        let answered = self
            .connections
            .iter()
            .flatten()
            .all(|(_, connection)| !connection.has_unsent());
        (answered && self.publisher.is_idle()) || now.duration_since(since) > FAREWELL
    }

    fn next_deadline(&self) -> Option<Instant> {
        let deletions = self
            .processes()
            .filter_map(|process| process.deleting)
            // Looked at again before the last moment: it may be quiet by then.
            .map(|(_, until)| {
                (until + QUIET)
                    .checked_sub(STALLED)
                    .unwrap_or(until)
                    .max(Instant::now() + QUIET / 8)
            });
        let farewell = self.shutting_down.map(|since| since + FAREWELL);
        let untold = self
            .processes()
            .filter_map(|process| Some(process.untold.as_ref()?.next));
        let loggers = self.prepared.iter().flatten().map(Prepared::deadline);
        deletions
            .chain(untold)
            .chain(loggers)
            .chain(self.publisher.deadline())
            .chain(farewell)
            .min()
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.containers.values().flat_map(Container::processes)
    }

    fn handle(&mut self, token: Token, flags: EventFlags) {
        match token {
            Token::Signals => {
                while let Ok(Some(_)) = self.signals.read_signal() {}
                self.reap();
            }
            Token::Listener => self.accept(),
            Token::Publisher => {
                self.publisher.receive(&mut self.buffer, Instant::now());
            }
            Token::Connection(index) => self.serve(index, flags),
            Token::Pump(index) => self.pump(index),
            Token::Oom(place) => self.oom(place),
            Token::Logger(index) => self.logger_is_ready(index, Instant::now()),
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        while let Ok(fd) = accept_with(&self.listener, flags) {
            let index = free_slot(&mut self.connections);
            if let Err(errno) = self
                .poller
                .add(&fd, Token::Connection(index), EventFlags::IN)
            {
                diag::error!("watch a connection: {errno}");
                continue;
            }
            self.generation += 1;
            self.connections[index] = Some((self.generation, Connection::new(fd)));
        }
    }

    /// Takes calls from a connection and answers those that can be answered at once.
    fn serve(&mut self, index: usize, flags: EventFlags) {
        let Some(Some((generation, connection))) = self.connections.get_mut(index) else {
            return;
        };
        let generation = *generation;
        let mut calls = Vec::new();
        let mut open = true;
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            open = connection.receive(&mut self.buffer).is_ok();
            loop {
                match connection.next() {
                    Ok(Some(Incoming::Request(stream, request))) => calls.push((stream, request)),
                    Ok(Some(Incoming::Response(..))) => {}
                    Ok(None) => break,
                    Err(_) => {
                        open = false;
                        break;
                    }
                }
            }
        }
        for (stream, request) in calls {
            let caller = Caller {
                connection: index,
                generation,
                stream,
            };
            if let Some(outcome) = self.call(caller, &request) {
                self.answer(caller, outcome);
            }
        }
        if !open {
            // Its descriptor leaves epoll with its close.
            self.connections[index] = None;
        }
    }

    /// Answers a call, if who made it is still there.
    pub(super) fn answer(&mut self, caller: Caller, outcome: Result<Vec<u8>, Refusal>) {
        if let Some(Some((generation, connection))) = self.connections.get_mut(caller.connection)
            && *generation == caller.generation
        {
            connection.respond(caller.stream, outcome);
        }
    }

    fn flush_connections(&mut self) {
        for (index, slot) in self.connections.iter_mut().enumerate() {
            let Some((_, connection)) = slot else {
                continue;
            };
            if connection.has_unsent() && connection.flush().is_err() {
                *slot = None;
                continue;
            }
            let wanted = connection.has_unsent();
            if wanted != connection.watches_output {
                connection.watches_output = wanted;
                let flags = if wanted {
                    EventFlags::IN | EventFlags::OUT
                } else {
                    EventFlags::IN
                };
                let _ = self
                    .poller
                    .modify(connection.fd(), Token::Connection(index), flags);
            }
        }
    }

    fn advance_events(&mut self, now: Instant) {
        if self.publisher.advance(now)
            && let Some(connection) = self.publisher.connection()
            && let Err(errno) = self
                .poller
                .add(connection.fd(), Token::Publisher, EventFlags::IN)
        {
            diag::error!("watch containerd's socket: {errno}");
        }
    }

    /// Puts a pump to work; returns its place, or nothing if it has done its work already.
    pub(super) fn add_pump(&mut self, pump: Pump) -> Option<usize> {
        let index = free_slot(&mut self.pumps);
        self.pumps[index] = Some(pump);
        // Something may wait in it already; and it has to be watched.
        self.pump(index);
        self.pumps[index].is_some().then_some(index)
    }

    fn pump(&mut self, index: usize) {
        let Some(Some(pump)) = self.pumps.get_mut(index) else {
            return;
        };
        let progress = pump.turn(&mut self.buffer);
        pump.watch(&self.poller, index, progress);
        if progress == Progress::Ended {
            self.drop_pump(index);
        }
    }

    /// Ends a stream, and forgets its place.
    pub(super) fn drop_pump(&mut self, index: usize) {
        if let Some(slot) = self.pumps.get_mut(index) {
            *slot = None;
        }
        for container in self.containers.values_mut() {
            for process in container.processes_mut() {
                for output in &mut process.outputs {
                    output.pump.take_if(|place| *place == index);
                }
                if process.input == Some(index) {
                    process.input = None;
                }
            }
        }
    }

    /// Collects children.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let Some(status) = ExitStatus::of(status) else {
                continue;
            };
            if let Some(index) = self.jobs.iter().position(|(job, _)| *job == pid) {
                let (_, job) = self.jobs.swap_remove(index);
                self.finish_job(job, Ok(status));
                if self.jobs.is_empty() {
                    self.early.clear();
                }
            } else if !self.process_ended(pid, status) && !self.jobs.is_empty() {
                self.early.push((pid, status));
            }
        }
    }

    /// Notes the end of a process. `false`: it is nobody's here.
    pub(super) fn process_ended(&mut self, pid: Pid, status: ExitStatus) -> bool {
        let found = self.containers.values().find_map(|container| {
            container
                .processes()
                .find(|process| process.pid == Some(pid) && process.phase != Phase::Stopped)
                .map(|process| (container.id.clone(), process.exec_id.clone()))
        });
        let Some((id, exec_id)) = found else {
            return false;
        };
        let end = End {
            status,
            at: Timestamp::now(),
        };
        if exec_id.is_empty() {
            self.init_ended(&id, end);
        } else {
            self.end_process(&id, &exec_id, end);
        }
        true
    }

    /// The first process has ended: its end is told after those of all others.
    fn init_ended(&mut self, id: &str, end: End) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.held = Some(end);
        if let Some(oom) = &mut container.oom {
            oom.finish();
            let happened = oom.happened();
            container.oom = None;
            if happened {
                self.tell_oom(id);
            }
        }
        if self.containers.get(id).is_some_and(|found| found.kills_all) {
            self.kill_all(id);
        }
        self.release_init(id);
    }

    /// Tells of the first process's end if nothing is left to wait for.
    pub(super) fn release_init(&mut self, id: &str) {
        // Its start is told first: who hears of that last takes it for running ever after.
        if self.is_starting(id) {
            return;
        }
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if container.has_running_execs() {
            return;
        }
        if let Some(end) = container.held.take() {
            self.end_process(id, "", end);
        }
    }

    /// Notes an end. What was written before is moved on, and the end told when that has been read.
    fn end_process(&mut self, id: &str, exec_id: &str, end: End) {
        let now = Instant::now();
        let Some(process) = self.process_mut(id, exec_id) else {
            return;
        };
        process.phase = Phase::Stopped;
        process.end = Some(end);
        process.untold = Some(Untold::new(now));
        let pumps: Vec<usize> = process.outputs.iter().filter_map(|o| o.pump).collect();
        for index in pumps {
            self.pump(index);
        }
        if let Some(container) = self.containers.get_mut(id)
            && let Ok(process) = container.process(exec_id)
        {
            for output in &mut process.outputs {
                output.ended(pump_of(&self.pumps, output));
            }
        }
        self.tell_ends(now);
    }

    fn process_mut(&mut self, id: &str, exec_id: &str) -> Option<&mut Process> {
        self.containers.get_mut(id)?.process(exec_id).ok()
    }

    /// Tells of ends of which all output has been read.
    fn tell_ends(&mut self, now: Instant) {
        let mut over = Vec::new();
        for container in self.containers.values_mut() {
            let id = &container.id;
            let execs = container.execs.values_mut();
            for process in std::iter::once(&mut container.init).chain(execs) {
                let unread = process.outputs.iter().map(|output| {
                    let unread = output.unread(pump_of(&self.pumps, output));
                    let waits = unread > 0 && output.is_read(&mut self.pumps, &self.poller);
                    if waits { unread } else { 0 }
                });
                if let Some(untold) = &mut process.untold
                    && untold.next <= now
                    && untold.is_over(unread.sum(), now)
                {
                    over.push((id.clone(), process.exec_id.clone()));
                }
            }
        }
        for (id, exec_id) in over {
            self.tell_end(&id, &exec_id);
        }
    }

    /// Tells of an end, if that has not been done.
    pub(super) fn tell_end(&mut self, id: &str, exec_id: &str) {
        let Some(process) = self.process_mut(id, exec_id) else {
            return;
        };
        let (Some(_), Some(end)) = (process.untold.take(), process.end) else {
            return;
        };
        for output in &mut process.outputs {
            output.release();
        }
        let pid = process.number();
        let waiters = std::mem::take(&mut process.waiters);
        let event = TaskExit {
            container_id: id.to_owned(),
            id: if exec_id.is_empty() { id } else { exec_id }.to_owned(),
            pid,
            exit_status: code(end.status),
            exited_at: Some(end.at),
        };
        self.publisher
            .publish("/tasks/exit", "containerd.events.TaskExit", &event);
        for caller in waiters {
            self.answer(caller, Ok(super::task::waited(end)));
        }
        self.release_init(id);
    }

    fn oom(&mut self, place: usize) {
        let Some(id) = self.places.get(place).cloned().flatten() else {
            return;
        };
        let Some(container) = self.containers.get_mut(&id) else {
            return;
        };
        let Some(oom) = &mut container.oom else {
            return;
        };
        let before = oom.happened();
        let goes_on = oom.notified();
        let happened = oom.happened() && !before;
        if !goes_on {
            container.oom = None;
        }
        if happened {
            self.tell_oom(&id);
        }
    }

    fn tell_oom(&mut self, id: &str) {
        let event = TaskOnly {
            container_id: id.to_owned(),
        };
        self.publisher
            .publish("/tasks/oom", "containerd.events.TaskOOM", &event);
    }

    /// Goes on with deletions whose streams are drained, or were waited for long enough.
    fn finish_deletions(&mut self, now: Instant) {
        let mut ready = Vec::new();
        for container in self.containers.values() {
            for process in container.processes() {
                if is_drained(process, &mut self.pumps, &self.poller, now) {
                    ready.push((container.id.clone(), process.exec_id.clone()));
                }
            }
        }
        for (id, exec_id) in ready {
            self.delete_now(&id, &exec_id);
        }
    }
}

/// Whether a process that is being deleted has nothing more to say, or nobody to say it to.
fn is_drained(
    process: &Process,
    pumps: &mut [Option<Pump>],
    poller: &Poller<Token>,
    now: Instant,
) -> bool {
    let Some((_, until)) = process.deleting else {
        return false;
    };
    let asked = until.checked_sub(STALLED).unwrap_or(until);
    let (mut goes_on, mut waits) = (false, false);
    for output in &process.outputs {
        if pump_of(pumps, output).is_some() && output.is_read(pumps, poller) {
            goes_on = true;
            waits |= pump_of(pumps, output).is_some_and(|pump| pump.waiting() > 0);
        }
    }
    let drained = !goes_on || (!waits && now >= asked + QUIET);
    now >= until || (drained && process.untold.is_none())
}

/// The pump of an output, if it still has work.
fn pump_of<'a>(pumps: &'a [Option<Pump>], output: &Output) -> Option<&'a Pump> {
    pumps.get(output.pump?)?.as_ref()
}

/// A free place in a list, made if there is none.
pub(super) fn free_slot<T>(list: &mut Vec<Option<T>>) -> usize {
    match list.iter().position(Option::is_none) {
        Some(index) => index,
        None => {
            list.push(None);
            list.len() - 1
        }
    }
}
