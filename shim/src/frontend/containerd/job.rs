//! Calls of the runtime that are under way, and what follows when they end.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use prost::Message;
use rustix::event::epoll::EventFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::call::Runtime;
use super::container::{Caller, Container, End, Phase, Process};
use super::logger::Ready;
use super::message::{
    Empty, PidResponse, TaskCheckpointed, TaskCreate, TaskDelete, TaskExec, TaskIo, TaskOnly,
    TaskStart, Timestamp,
};
use super::mounts;
use super::output::Output;
use super::server::{Server, free_slot};
use super::stream::Opened;
use super::task::waited;
use super::token::Token;
use super::ttrpc::{Code, Refusal};
use crate::console::ConsoleSocket;
use crate::diag;
use crate::error::Error;
use crate::oom::OomWatch;
use crate::process::{self, ExitStatus, Streams};

/// A call of the runtime.
#[derive(Debug)]
pub(crate) struct Job {
    /// Who is answered when it has ended.
    pub(super) caller: Option<Caller>,
    /// Container.
    pub(super) id: String,
    /// What it is for.
    pub(super) purpose: Purpose,
}

impl Job {
    /// A call about the container `id`.
    pub(super) fn new(caller: impl Into<Option<Caller>>, id: &str, purpose: Purpose) -> Self {
        Self {
            caller: caller.into(),
            id: id.to_owned(),
            purpose,
        }
    }
}

/// What a call is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// Makes the container. It joins the others when that has succeeded.
    Create(Box<Creation>),
    /// Removes what was made of one whose creation failed all the same; that is the answer.
    Discard(Box<Container>, Refusal),
    /// Starts the first process.
    Start,
    /// Makes and starts the container from a checkpoint.
    Restore {
        opened: Opened,
        console: Option<ConsoleSocket>,
    },
    /// Starts an exec session.
    Exec {
        exec_id: String,
        opened: Opened,
        console: Option<ConsoleSocket>,
        files: [PathBuf; 2],
    },
    /// Freezes.
    Pause,
    /// Thaws.
    Resume,
    /// Sends a signal.
    Kill,
    /// Changes limits.
    Update,
    /// Saves the processes' state there.
    Checkpoint { path: String, work: Option<PathBuf> },
    /// Removes the container.
    Delete,
}

/// A container that is being made.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(super) container: Container,
    pub(super) rootfs: Vec<super::message::Mount>,
    pub(super) opened: Opened,
    pub(super) console: Option<ConsoleSocket>,
}

impl Purpose {
    /// Whether a container's id is taken though the container is not among the others.
    pub(super) fn is_creation(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Discard(..))
    }
}

/// A call of the runtime that is made when a logger is ready.
#[derive(Debug)]
pub(crate) struct Prepared {
    ready: Ready,
    words: Vec<OsString>,
    streams: Streams,
    job: Job,
}

impl Prepared {
    /// What is prepared.
    pub(super) fn job(&self) -> &Job {
        &self.job
    }

    /// When it is given up.
    pub(super) fn deadline(&self) -> Instant {
        self.ready.deadline()
    }
}

/// What a call came to: the runtime's status, or why it was not started.
type Ended = Result<ExitStatus, Refusal>;

/// The end of a process that did not come about: containerd's own word for a code that nobody knows.
const UNKNOWN: ExitStatus = ExitStatus(255);

/// A call of the runtime that was to start a process, and has ended.
struct Run<'a> {
    /// Where the runtime wrote its id.
    pid_file: PathBuf,
    runtime: &'a Runtime,
    /// The command.
    what: &'a str,
    ended: Ended,
    /// Processes collected meanwhile.
    early: &'a [(Pid, ExitStatus)],
}

impl Run<'_> {
    /// The process, its terminal connected if it has one; or what the runtime says is wrong.
    fn outcome(
        self,
        process: &mut Process,
        console: Option<ConsoleSocket>,
        opened: &mut Opened,
    ) -> Result<Pid, Refusal> {
        let status = self.ended?;
        if status != ExitStatus(0) {
            let what = format!("OCI runtime {} failed", self.what);
            return Err(self.runtime.complaint(&what, status));
        }
        let pid = process::read_pidfile(&self.pid_file).map_err(|error| refuse(&error))?;
        if let Some(console) = console
            && let Err(error) = take_terminal(process, &console, opened)
        {
            // Nobody would know of it any more, and nobody can talk to it. One that was collected may have lent its number on.
            if !self.early.iter().any(|(found, _)| *found == pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
            return Err(refuse(&error));
        }
        Ok(pid)
    }
}

/// An error of ours as an answer.
pub(super) fn refuse(error: &Error) -> Refusal {
    let code = match error {
        Error::Usage(_) => Code::InvalidArgument,
        _ => Code::Unknown,
    };
    Refusal::new(code, error.chain())
}

impl Server {
    /// Calls the runtime for something that has no streams.
    pub(super) fn call_runtime(
        &mut self,
        words: &[OsString],
        caller: Option<Caller>,
        id: &str,
        purpose: Purpose,
    ) {
        let job = Job::new(caller, id, purpose);
        match Streams::null() {
            Ok(streams) => self.launch(words, &streams, job),
            Err(error) => self.finish_job(job, Err(refuse(&error))),
        }
    }

    /// Calls the runtime.
    pub(super) fn launch(&mut self, words: &[OsString], streams: &Streams, job: Job) {
        match process::start_runtime(words, streams, false) {
            Ok(pid) => self.jobs.push((pid, job)),
            Err(error) => {
                if job.caller.is_none() {
                    diag::error!("{}", error.chain());
                }
                self.finish_job(job, Err(refuse(&error)));
            }
        }
    }

    /// Calls the runtime, when the logger is ready if there is one.
    pub(super) fn launch_after(
        &mut self,
        ready: Option<Ready>,
        words: Vec<OsString>,
        streams: Streams,
        job: Job,
    ) {
        let Some(ready) = ready else {
            return self.launch(&words, &streams, job);
        };
        let index = free_slot(&mut self.prepared);
        let token = Token::Logger(index);
        if let Err(errno) = self.poller.add(ready.fd(), token, EventFlags::IN) {
            let error = Error::call("watch a logger")(errno);
            return self.finish_job(job, Err(refuse(&error)));
        }
        self.prepared[index] = Some(Prepared {
            ready,
            words,
            streams,
            job,
        });
    }

    /// A logger has said something, or its time is over.
    pub(super) fn logger_is_ready(&mut self, index: usize, now: Instant) {
        let Some(prepared) = self.prepared.get_mut(index).and_then(Option::take) else {
            return;
        };
        match prepared.ready.heard(now) {
            Ok(()) => self.launch(&prepared.words, &prepared.streams, prepared.job),
            Err(error) => self.finish_job(prepared.job, Err(refuse(&error))),
        }
    }

    /// Gives up what waits for loggers that do not get ready.
    pub(super) fn give_up_loggers(&mut self, now: Instant) {
        for index in 0..self.prepared.len() {
            let slot = self.prepared[index].as_ref();
            if slot.is_some_and(|prepared| prepared.deadline() <= now) {
                self.logger_is_ready(index, now);
            }
        }
    }

    /// A call of the runtime has ended.
    pub(super) fn finish_job(&mut self, job: Job, ended: Ended) {
        let Job {
            caller,
            id,
            purpose,
        } = job;
        let outcome = match purpose {
            Purpose::Create(creation) => return self.created(caller, *creation, ended),
            Purpose::Discard(container, refusal) => {
                self.discard(&container);
                Err(refusal)
            }
            Purpose::Restore { opened, console } => self.restored(&id, opened, console, ended),
            Purpose::Exec {
                exec_id,
                opened,
                console,
                files,
            } => {
                let outcome = self.exec_started(&id, &exec_id, opened, console, ended);
                for file in files {
                    let _ = std::fs::remove_file(file);
                }
                outcome
            }
            other => self.simple_job(&id, other, ended),
        };
        if let Some(caller) = caller {
            self.answer(caller, outcome);
        }
        self.release_init(&id);
    }

    fn created(&mut self, caller: Option<Caller>, creation: Creation, ended: Ended) {
        let Creation {
            mut container,
            rootfs,
            mut opened,
            console,
        } = creation;
        let id = container.id.clone();
        let made = ended == Ok(ExitStatus(0));
        let run = Run {
            pid_file: container.bundle.join("init.pid"),
            runtime: &container.runtime,
            what: "create",
            ended,
            early: &self.early,
        };
        let pid = match run.outcome(&mut container.init, console, &mut opened) {
            Ok(pid) => pid,
            Err(refusal) => {
                opened.abandon();
                let words = container.runtime.command(["delete", "--force", &id]);
                let purpose = Purpose::Discard(Box::new(container), refusal.clone());
                if made {
                    return self.call_runtime(&words, caller, &id, purpose);
                }
                return self.finish_job(Job::new(caller, &id, purpose), Err(refusal));
            }
        };
        container.init.phase = Phase::Created;
        self.has_started(&mut container, pid, opened);
        let number = container.init.number();
        let event = TaskCreate {
            container_id: id.clone(),
            bundle: container.bundle.display().to_string(),
            rootfs,
            io: Some(TaskIo {
                stdin: container.init.wanted.stdin.clone(),
                stdout: container.init.wanted.stdout.clone(),
                stderr: container.init.wanted.stderr.clone(),
                terminal: container.init.wanted.terminal,
            }),
            checkpoint: String::new(),
            pid: number,
        };
        self.containers.insert(id, container);
        self.publisher
            .publish("/tasks/create", "containerd.events.TaskCreate", &event);
        self.take_early(pid);
        if let Some(caller) = caller {
            self.answer(caller, Ok(PidResponse { pid: number }.encode_to_vec()));
        }
    }

    /// Lets go of a container that is in no list, or in none any more.
    fn discard(&mut self, container: &Container) {
        if let Some(slot) = self.places.get_mut(container.place) {
            *slot = None;
        }
        if container.has_mounts {
            mounts::unmount_all(&container.bundle.join("rootfs"));
        }
    }

    /// Takes the first process of a container.
    fn has_started(&mut self, container: &mut Container, pid: Pid, opened: Opened) {
        container.init.pid = Some(pid);
        container.cgroup_list = process::cgroups_of(pid);
        container.kills_all = shares_pid_namespace(pid);
        self.connect(&mut container.init, opened);
        self.watch_memory(container);
    }

    /// Watches for the kernel's kills for memory.
    fn watch_memory(&mut self, container: &mut Container) {
        container.oom = OomWatch::new(&container.cgroup_list, Vec::new());
        if let Some(oom) = &container.oom
            && let Err(errno) =
                self.poller
                    .add(oom.fd(), Token::Oom(container.place), EventFlags::IN)
        {
            diag::warning!("watch for out of memory: {errno}");
        }
    }

    /// Puts a process's streams to work.
    fn connect(&mut self, process: &mut Process, opened: Opened) {
        process.input = opened.input.and_then(|pump| self.add_pump(pump));
        process.outputs = opened
            .outputs
            .into_iter()
            .map(|(pump, fifo)| Output::new(self.add_pump(pump), fifo))
            .collect();
        process.stdin_writer = opened.stdin_writer.filter(|_| !process.stdin_closed);
        process.logger = opened.logger;
    }

    fn restored(
        &mut self,
        id: &str,
        mut opened: Opened,
        console: Option<ConsoleSocket>,
        ended: Ended,
    ) -> Result<Vec<u8>, Refusal> {
        let mut container = self.containers.remove(id).ok_or_else(gone)?;
        container.init.busy = false;
        let run = Run {
            pid_file: container.bundle.join("init.pid"),
            runtime: &container.runtime,
            what: "restore",
            ended,
            early: &self.early,
        };
        let outcome = match run.outcome(&mut container.init, console, &mut opened) {
            Ok(pid) => {
                container.init.phase = Phase::Running;
                self.has_started(&mut container, pid, opened);
                Ok((pid, container.init.number()))
            }
            Err(refusal) => {
                opened.abandon();
                Err(refusal)
            }
        };
        self.containers.insert(id.to_owned(), container);
        let (pid, number) = outcome?;
        self.tell_started(id, number);
        self.take_early(pid);
        Ok(PidResponse { pid: number }.encode_to_vec())
    }

    fn exec_started(
        &mut self,
        id: &str,
        exec_id: &str,
        mut opened: Opened,
        console: Option<ConsoleSocket>,
        ended: Ended,
    ) -> Result<Vec<u8>, Refusal> {
        let container = self.containers.get_mut(id).ok_or_else(gone)?;
        let mut process = container.execs.remove(exec_id).ok_or_else(gone)?;
        process.busy = false;
        let run = Run {
            pid_file: exec_pid_file(container, exec_id),
            runtime: &container.runtime,
            what: "exec",
            ended,
            early: &self.early,
        };
        let outcome = run.outcome(&mut process, console, &mut opened);
        match outcome {
            Ok(pid) => {
                process.pid = Some(pid);
                process.phase = Phase::Running;
                self.connect(&mut process, opened);
            }
            Err(_) => {
                opened.abandon();
                let end = End {
                    status: UNKNOWN,
                    at: Timestamp::now(),
                };
                process.phase = Phase::Stopped;
                process.end = Some(end);
                for caller in std::mem::take(&mut process.waiters) {
                    self.answer(caller, Ok(waited(end)));
                }
            }
        }
        let number = process.number();
        if let Some(container) = self.containers.get_mut(id) {
            container.execs.insert(exec_id.to_owned(), process);
        }
        let pid = outcome?;
        let event = TaskExec {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid: number,
        };
        self.publisher.publish(
            "/tasks/exec-started",
            "containerd.events.TaskExecStarted",
            &event,
        );
        self.take_early(pid);
        Ok(PidResponse { pid: number }.encode_to_vec())
    }

    fn tell_started(&mut self, id: &str, pid: u32) {
        let event = TaskStart {
            container_id: id.to_owned(),
            pid,
        };
        self.publisher
            .publish("/tasks/start", "containerd.events.TaskStart", &event);
    }

    /// The end of a process that was shorter than the call that started it.
    fn take_early(&mut self, pid: Pid) {
        if let Some(index) = self.early.iter().position(|(found, _)| *found == pid) {
            let (pid, status) = self.early.swap_remove(index);
            self.process_ended(pid, status);
        }
    }

    /// Whether the runtime is at it to start a container's first process: that may be over before the call is.
    pub(super) fn is_starting(&self, id: &str) -> bool {
        let mut jobs = self.jobs.iter();
        jobs.any(|(_, job)| job.id == id && matches!(job.purpose, Purpose::Start))
    }

    /// Calls after which nothing has to be connected.
    fn simple_job(&mut self, id: &str, purpose: Purpose, ended: Ended) -> Result<Vec<u8>, Refusal> {
        let container = self.containers.get_mut(id).ok_or_else(gone)?;
        let runtime = container.runtime.clone();
        let check = |what: &str| match ended? {
            ExitStatus(0) => Ok(()),
            status => Err(runtime.complaint(what, status)),
        };
        let only = TaskOnly {
            container_id: id.to_owned(),
        };
        match purpose {
            Purpose::Start => {
                container.init.busy = false;
                check("OCI runtime start failed")?;
                // It may have ended already.
                if container.init.phase == Phase::Created {
                    container.init.phase = Phase::Running;
                }
                let pid = container.init.number();
                self.tell_started(id, pid);
                Ok(PidResponse { pid }.encode_to_vec())
            }
            Purpose::Pause => {
                check("OCI runtime pause failed")?;
                container.paused = true;
                self.publisher
                    .publish("/tasks/paused", "containerd.events.TaskPaused", &only);
                Ok(empty())
            }
            Purpose::Resume => {
                check("OCI runtime resume failed")?;
                container.paused = false;
                self.publisher
                    .publish("/tasks/resumed", "containerd.events.TaskResumed", &only);
                Ok(empty())
            }
            Purpose::Kill => check("OCI runtime kill failed").map(|()| empty()),
            Purpose::Update => check("OCI runtime update failed").map(|()| empty()),
            Purpose::Checkpoint { path, work } => {
                let bundle = container.bundle.clone();
                let outcome = check("OCI runtime checkpoint failed");
                if let Some(work) = work {
                    if outcome.is_err() {
                        let _ = std::fs::copy(work.join("dump.log"), bundle.join("criu-dump.log"));
                    }
                    let _ = std::fs::remove_dir_all(work);
                }
                outcome?;
                let event = TaskCheckpointed {
                    container_id: id.to_owned(),
                    checkpoint: path,
                };
                self.publisher.publish(
                    "/tasks/checkpointed",
                    "containerd.events.TaskCheckpointed",
                    &event,
                );
                Ok(empty())
            }
            Purpose::Delete => self.deleted(id, check("failed to delete task")),
            Purpose::Create(_)
            | Purpose::Discard(..)
            | Purpose::Restore { .. }
            | Purpose::Exec { .. } => Ok(empty()),
        }
    }

    /// The runtime has removed the container, or knew nothing of it any more.
    fn deleted(&mut self, id: &str, outcome: Result<(), Refusal>) -> Result<Vec<u8>, Refusal> {
        match outcome {
            Err(refusal) if !refusal.text.contains("does not exist") => {
                if let Some(container) = self.containers.get_mut(id) {
                    container.init.busy = false;
                }
                return Err(refusal);
            }
            _ => {}
        }
        // It may have ended just now, by the runtime's hand.
        self.tell_end(id, "");
        let mut container = self.containers.remove(id).ok_or_else(gone)?;
        let response = container.init.delete_response();
        let execs = std::mem::take(&mut container.execs).into_values();
        for process in execs {
            self.retire(process);
        }
        self.discard(&container);
        self.retire(container.init);
        let event = TaskDelete {
            container_id: id.to_owned(),
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: String::new(),
        };
        self.publisher
            .publish("/tasks/delete", "containerd.events.TaskDelete", &event);
        Ok(response.encode_to_vec())
    }

    /// Lets go of a process: its streams end, its logger is asked to end, and whoever still waits is answered.
    pub(super) fn retire(&mut self, process: Process) {
        let pumps = process.outputs.iter().filter_map(|output| output.pump);
        for index in pumps.chain(process.input) {
            self.drop_pump(index);
        }
        if let Some(logger) = &process.logger {
            logger.signal(Signal::TERM);
        }
        if let Some((caller, _)) = process.deleting {
            let response = process.delete_response().encode_to_vec();
            self.answer(caller, Ok(response));
        }
        for caller in process.waiters {
            self.answer(caller, process.end.map(waited).ok_or_else(gone));
        }
    }

    /// Kills what is left of a container whose first process has ended.
    pub(super) fn kill_all(&mut self, id: &str) {
        if let Some(container) = self.containers.get(id) {
            let words = container.runtime.command(["kill", "--all", id, "KILL"]);
            self.call_runtime(&words, None, id, Purpose::Kill);
        }
    }

    /// Goes on with a deletion once the streams are drained.
    pub(super) fn delete_now(&mut self, id: &str, exec_id: &str) {
        self.tell_end(id, exec_id);
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if !exec_id.is_empty() {
            if let Some(process) = container.execs.remove(exec_id) {
                self.retire(process);
            }
        } else if let Some((caller, _)) = container.init.deleting.take() {
            container.init.busy = true;
            let words = container.runtime.command(["delete", id]);
            self.call_runtime(&words, Some(caller), id, Purpose::Delete);
        }
    }
}

/// Where the runtime writes the id of an exec session's process.
pub(super) fn exec_pid_file(container: &Container, exec_id: &str) -> PathBuf {
    // Not the id alone: one may be called `init`.
    container.bundle.join(format!("exec-{exec_id}.pid"))
}

/// Takes the terminal that the runtime sent and connects it.
fn take_terminal(
    process: &mut Process,
    console: &ConsoleSocket,
    opened: &mut Opened,
) -> Result<(), Error> {
    let Some(master) = console.receive()? else {
        return Err(Error::Runtime(
            "the runtime did not set up a terminal".into(),
        ));
    };
    crate::console::configure(&master);
    let master = crate::stdio::nonblocking(master)?;
    process.terminal = Some(
        master
            .try_clone()
            .map_err(Error::call("duplicate the terminal"))?,
    );
    opened.connect_terminal(master)
}

/// Whether a process is in the pid namespace that we are in: then its end is not the end of what it started.
fn shares_pid_namespace(pid: Pid) -> bool {
    let of = |name: &str| std::fs::read_link(format!("/proc/{name}/ns/pid"));
    let theirs = of(&pid.as_raw_nonzero().to_string());
    match (of("self"), theirs) {
        (Ok(ours), Ok(theirs)) => ours == theirs || !is_first_in_namespace(pid),
        _ => false,
    }
}

/// Whether a process is number 1 in its innermost pid namespace (`NSpid` of proc_pid_status(5)).
fn is_first_in_namespace(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).is_ok_and(|text| {
        text.lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|numbers| numbers.split_whitespace().last())
            == Some("1")
    })
}

/// The answer without content.
pub(super) fn empty() -> Vec<u8> {
    Empty {}.encode_to_vec()
}

/// The answer about a container that is not here.
pub(super) fn gone() -> Refusal {
    Refusal::new(Code::NotFound, "container not created: not found")
}

/// An open temporary file with `input`, to be read as stdin.
pub(super) fn input_file(path: &std::path::Path, input: &[u8]) -> Result<OwnedFd, Error> {
    std::fs::write(path, input).map_err(Error::path("write", path))?;
    let file = File::open(path).map_err(Error::path("open", path))?;
    let _ = std::fs::remove_file(path);
    Ok(file.into())
}

/// The moment until which a deletion waits for its streams.
pub(super) fn patience() -> Instant {
    Instant::now() + super::server::STALLED
}
