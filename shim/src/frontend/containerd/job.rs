//! Calls of the runtime that are under way, and what follows when they end.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use prost::Message;
use rustix::event::epoll::EventFlags;
use rustix::process::Pid;

use super::call::Runtime;
use super::container::{Caller, Container, Phase, code};
use super::message::{
    DeleteResponse, Empty, PidResponse, TaskCheckpointed, TaskCreate, TaskDelete, TaskExec, TaskIo,
    TaskOnly, TaskStart,
};
use super::mounts;
use super::server::Server;
use super::stats::Cgroup;
use super::stream::{LoggerName, Opened, open_terminal};
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
    /// The runtime's process.
    pub(super) pid: Pid,
    /// Who is answered when it has ended.
    pub(super) caller: Option<Caller>,
    /// Container.
    pub(super) id: String,
    /// What it is for.
    pub(super) purpose: Purpose,
}

/// What a call is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// Makes the container. It joins the others when that has succeeded.
    Create {
        container: Box<Container>,
        rootfs: Vec<super::message::Mount>,
        opened: Opened,
        console: Option<ConsoleSocket>,
    },
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
        files: Vec<PathBuf>,
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

/// A call of the runtime that was to start a process, and has ended.
struct Run<'a> {
    /// What the process is called.
    name: &'a str,
    /// Where the runtime wrote its id.
    pid_file: PathBuf,
    runtime: &'a Runtime,
    /// The command.
    what: &'a str,
    status: ExitStatus,
    /// containerd's namespace.
    namespace: &'a str,
}

impl Run<'_> {
    /// The process, its terminal connected if it has one; or what the runtime says is wrong.
    fn outcome(
        &self,
        process: &mut super::container::Process,
        console: Option<ConsoleSocket>,
        opened: &mut Opened,
    ) -> Result<Pid, Refusal> {
        if self.status != ExitStatus(0) {
            let what = format!("OCI runtime {} failed", self.what);
            return Err(self.runtime.complaint(&what, self.status));
        }
        let pid = process::read_pidfile(&self.pid_file).map_err(|error| refuse(&error))?;
        if let Some(console) = console {
            let name = LoggerName {
                id: self.name,
                namespace: self.namespace,
            };
            *opened = take_terminal(process, &console, &name).map_err(|error| refuse(&error))?;
        }
        Ok(pid)
    }
}

/// Starts a runtime; none of its output is wanted but what it logs.
pub(super) fn spawn(words: &[std::ffi::OsString], streams: Streams) -> Result<Pid, Error> {
    process::start_runtime(words, streams, false)
}

/// Streams that lead nowhere, with `stdin` in place of the first if there is one.
pub(super) fn quiet(stdin: Option<OwnedFd>) -> Result<Streams, Error> {
    Ok(Streams {
        stdin: Some(stdin.map_or_else(crate::stdio::null, Ok)?),
        stdout: Some(crate::stdio::null()?),
        stderr: Some(crate::stdio::null()?),
    })
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
    /// A call of the runtime has ended.
    pub(super) fn finish_job(&mut self, job: Job, status: ExitStatus) {
        let Job {
            caller,
            id,
            purpose,
            ..
        } = job;
        let outcome = match purpose {
            Purpose::Create {
                container,
                rootfs,
                opened,
                console,
            } => self.created(*container, rootfs, opened, console, status),
            Purpose::Restore { opened, console } => self.restored(&id, opened, console, status),
            Purpose::Exec {
                exec_id,
                opened,
                console,
                files,
            } => {
                let outcome = self.exec_started(&id, &exec_id, opened, console, status);
                for file in files {
                    let _ = std::fs::remove_file(file);
                }
                outcome
            }
            other => self.simple_job(&id, other, status),
        };
        if let Some(caller) = caller {
            self.answer(caller, outcome);
        }
        self.release_init(&id);
    }

    fn created(
        &mut self,
        mut container: Container,
        rootfs: Vec<super::message::Mount>,
        mut opened: Opened,
        console: Option<ConsoleSocket>,
        status: ExitStatus,
    ) -> Result<Vec<u8>, Refusal> {
        let id = container.id.clone();
        let run = Run {
            name: &id,
            pid_file: container.bundle.join("init.pid"),
            runtime: &container.runtime,
            what: "create",
            status,
            namespace: &self.place.namespace,
        };
        let made = run.outcome(&mut container.init, console, &mut opened);
        let pid = match made {
            Ok(pid) => pid,
            Err(refusal) => {
                self.discard(&mut container, &mut opened, status == ExitStatus(0));
                return Err(refusal);
            }
        };
        container.init.pid = Some(pid);
        container.init.phase = Phase::Created;
        container.cgroup = Cgroup::of(pid);
        container.kills_all = shares_pid_namespace(pid);
        self.connect(&mut container.init, opened);
        self.watch_memory(&mut container, pid);
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
            pid: container.init.number(),
        };
        let number = container.init.number();
        self.containers.insert(id.clone(), container);
        self.publisher
            .publish("/tasks/create", "containerd.events.TaskCreate", &event);
        self.take_early(pid);
        Ok(PidResponse { pid: number }.encode_to_vec())
    }

    /// Undoes a create that failed.
    fn discard(&mut self, container: &mut Container, opened: &mut Opened, made: bool) {
        if made {
            let words = container
                .runtime
                .command(["delete", "--force", container.id.as_str()]);
            if let Ok(pid) = quiet(None).and_then(|streams| spawn(&words, streams)) {
                let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            }
        }
        if let Some(logger) = &mut opened.logger {
            let _ = logger.kill();
        }
        if let Some(slot) = self.places.get_mut(container.place) {
            *slot = None;
        }
        if container.has_mounts {
            mounts::unmount_all(&container.bundle.join("rootfs"));
        }
    }

    /// Watches for the kernel's kills for memory.
    fn watch_memory(&mut self, container: &mut Container, pid: Pid) {
        container.oom = OomWatch::new(pid, Vec::new());
        if let Some(oom) = &container.oom
            && let Err(errno) =
                self.poller
                    .add(oom.fd(), Token::Oom(container.place), EventFlags::IN)
        {
            diag::warning!("watch for out of memory: {errno}");
        }
    }

    /// Puts a process's streams to work.
    fn connect(&mut self, process: &mut super::container::Process, opened: Opened) {
        process.input = opened.input.and_then(|pump| self.add_pump(pump));
        process.outputs = opened
            .outputs
            .into_iter()
            .filter_map(|pump| self.add_pump(pump))
            .collect();
        process.stdin_writer = opened.stdin_writer.filter(|_| !process.stdin_closed);
        process.logger = opened.logger;
    }

    fn restored(
        &mut self,
        id: &str,
        mut opened: Opened,
        console: Option<ConsoleSocket>,
        status: ExitStatus,
    ) -> Result<Vec<u8>, Refusal> {
        let mut container = self.containers.remove(id).ok_or_else(gone)?;
        container.init.busy = false;
        let run = Run {
            name: id,
            pid_file: container.bundle.join("init.pid"),
            runtime: &container.runtime,
            what: "restore",
            status,
            namespace: &self.place.namespace,
        };
        let made = run.outcome(&mut container.init, console, &mut opened);
        let outcome = made.map(|pid| {
            container.init.pid = Some(pid);
            container.init.phase = Phase::Running;
            container.cgroup = Cgroup::of(pid);
            container.kills_all = shares_pid_namespace(pid);
            self.connect(&mut container.init, opened);
            self.watch_memory(&mut container, pid);
            (pid, container.init.number())
        });
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
        status: ExitStatus,
    ) -> Result<Vec<u8>, Refusal> {
        let mut container = self.containers.remove(id).ok_or_else(gone)?;
        let run = Run {
            name: exec_id,
            pid_file: container.bundle.join(format!("{exec_id}.pid")),
            runtime: &container.runtime,
            what: "exec",
            status,
            namespace: &self.place.namespace,
        };
        let outcome = match container.execs.get_mut(exec_id) {
            None => Err(gone()),
            Some(process) => {
                process.busy = false;
                match run.outcome(process, console, &mut opened) {
                    Ok(pid) => {
                        process.pid = Some(pid);
                        process.phase = Phase::Running;
                        self.connect(process, opened);
                        Ok((pid, process.number()))
                    }
                    Err(refusal) => {
                        process.phase = Phase::Stopped;
                        Err(refusal)
                    }
                }
            }
        };
        self.containers.insert(id.to_owned(), container);
        let (pid, number) = outcome?;
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

    /// Calls after which nothing has to be connected.
    fn simple_job(
        &mut self,
        id: &str,
        purpose: Purpose,
        status: ExitStatus,
    ) -> Result<Vec<u8>, Refusal> {
        let container = self.containers.get_mut(id).ok_or_else(gone)?;
        let runtime = container.runtime.clone();
        let check = |what: &str| match status {
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
            Purpose::Create { .. } | Purpose::Restore { .. } | Purpose::Exec { .. } => Ok(empty()),
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
        let mut container = self.containers.remove(id).ok_or_else(gone)?;
        if let Some(slot) = self.places.get_mut(container.place) {
            *slot = None;
        }
        self.close_streams(&mut container.init);
        let mut execs = std::mem::take(&mut container.execs);
        for process in execs.values_mut() {
            self.close_streams(process);
        }
        if container.has_mounts {
            mounts::unmount_all(&container.bundle.join("rootfs"));
        }
        let response = DeleteResponse {
            pid: container.init.number(),
            exit_status: container.init.end.map_or(0, |end| code(end.status)),
            exited_at: container.init.end.map(|end| end.at),
        };
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

    /// Ends a process's streams; its logger is asked to end, and collected when it has.
    pub(super) fn close_streams(&mut self, process: &mut super::container::Process) {
        for index in std::mem::take(&mut process.outputs) {
            self.drop_pump(index);
        }
        if let Some(index) = process.input.take() {
            self.drop_pump(index);
        }
        process.stdin_writer = None;
        process.terminal = None;
        if let Some(logger) = process.logger.take()
            && let Ok(pid) = process::pid_of(&logger)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// Kills what is left of a container whose first process has ended.
    pub(super) fn kill_all(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let words = container.runtime.command(["kill", "--all", id, "KILL"]);
        match quiet(None).and_then(|streams| spawn(&words, streams)) {
            Ok(pid) => self.jobs.push(Job {
                pid,
                caller: None,
                id: id.to_owned(),
                purpose: Purpose::Kill,
            }),
            Err(error) => diag::error!("{}", error.chain()),
        }
    }

    /// Goes on with a deletion once the streams are drained.
    pub(super) fn delete_now(&mut self, id: &str, exec_id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if exec_id.is_empty() {
            let Some((caller, _)) = container.init.deleting.take() else {
                return;
            };
            container.init.busy = true;
            let words = container.runtime.command(["delete", id]);
            match quiet(None).and_then(|streams| spawn(&words, streams)) {
                Ok(pid) => self.jobs.push(Job {
                    pid,
                    caller: Some(caller),
                    id: id.to_owned(),
                    purpose: Purpose::Delete,
                }),
                Err(error) => {
                    container.init.busy = false;
                    self.answer(caller, Err(refuse(&error)));
                }
            }
            return;
        }
        let Some(mut process) = container.execs.remove(exec_id) else {
            return;
        };
        self.close_streams(&mut process);
        let response = DeleteResponse {
            pid: process.number(),
            exit_status: process.end.map_or(0, |end| code(end.status)),
            exited_at: process.end.map(|end| end.at),
        };
        if let Some((caller, _)) = process.deleting {
            self.answer(caller, Ok(response.encode_to_vec()));
        }
    }
}

/// Takes the terminal that the runtime sent and connects it.
fn take_terminal(
    process: &mut super::container::Process,
    console: &ConsoleSocket,
    name: &LoggerName<'_>,
) -> Result<Opened, Error> {
    let Some(master) = console.receive()? else {
        return Err(Error::Runtime(
            "the runtime did not set up a terminal".into(),
        ));
    };
    crate::console::configure(&master);
    let master = crate::stdio::nonblocking(master)?;
    process.terminal = Some(
        master
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::call("duplicate the terminal"))?,
    );
    open_terminal(&process.wanted, master, name)
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

/// Runs a command that reads `input` from a temporary file as its stdin.
pub(super) fn input_file(path: &std::path::Path, input: &[u8]) -> Result<OwnedFd, Error> {
    std::fs::write(path, input).map_err(Error::path("write", path))?;
    let file = File::open(path).map_err(Error::path("open", path))?;
    let _ = std::fs::remove_file(path);
    Ok(file.into())
}

/// What a short call of the runtime prints, waited for; for actions outside of the loop.
pub(super) fn output_of(words: &[std::ffi::OsString]) -> Result<Vec<u8>, Error> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::Usage("no runtime".into()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(Error::path("run", std::path::Path::new(program)))?;
    Ok(output.stdout)
}

/// The moment until which a deletion waits for its streams.
pub(super) fn patience() -> Instant {
    Instant::now() + super::server::STALLED
}
