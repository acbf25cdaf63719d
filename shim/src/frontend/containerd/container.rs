//! What the server knows of a container and its processes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use rustix::process::Pid;

use super::call::Runtime;
use super::logger::Logger;
use super::message::{DeleteResponse, RuncOptions, StateResponse, TaskStatus, Timestamp};
use super::output::{Output, Untold};
use super::stats::Cgroup;
use super::stream::{Owner, Wanted};
use super::ttrpc::{Code, Refusal};
use crate::oom::OomWatch;
use crate::process::ExitStatus;

/// Where an answer goes: a connection's place, the number that tells it from its successor there, and a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Place in the list of connections.
    pub(crate) connection: usize,
    /// Which connection of those that had the place.
    pub(crate) generation: u64,
    /// Stream on it.
    pub(crate) stream: u32,
}

/// Where in its life a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Known, not started: an exec session before Start, a container to be restored.
    Added,
    /// The runtime has made it; it waits.
    Created,
    /// It runs.
    Running,
    /// It has ended.
    Stopped,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct End {
    /// With which code.
    pub(crate) status: ExitStatus,
    /// When.
    pub(crate) at: Timestamp,
}

/// A process: a container's first, or an exec session's.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the first.
    pub(crate) exec_id: String,
    pub(crate) phase: Phase,
    pub(crate) pid: Option<Pid>,
    pub(crate) wanted: Wanted,
    /// The process's specification, until it is started.
    pub(crate) spec: Vec<u8>,
    pub(crate) end: Option<End>,
    /// Set from the end until that is told.
    pub(crate) untold: Option<Untold>,
    /// Who waits for the end.
    pub(crate) waiters: Vec<Caller>,
    /// Who waits for the streams to be drained, and until when.
    pub(crate) deleting: Option<(Caller, Instant)>,
    /// Place of the pump of its stdin in the server's list.
    pub(crate) input: Option<usize>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) stdin_writer: Option<OwnedFd>,
    /// Whether CloseIO has come, perhaps before there was anything to close.
    pub(crate) stdin_closed: bool,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) logger: Option<Logger>,
    /// Whether a call of the runtime about it is under way.
    pub(crate) busy: bool,
}

impl Process {
    /// One that is known and not started.
    pub(crate) fn new(exec_id: &str, wanted: Wanted) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            phase: Phase::Added,
            pid: None,
            wanted,
            spec: Vec::new(),
            end: None,
            untold: None,
            waiters: Vec::new(),
            deleting: None,
            input: None,
            outputs: Vec::new(),
            stdin_writer: None,
            stdin_closed: false,
            terminal: None,
            logger: None,
            busy: false,
        }
    }

    /// The pid as messages have it; 0 for none.
    pub(crate) fn number(&self) -> u32 {
        self.pid
            .and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
            .unwrap_or(0)
    }

    /// The answer to Delete.
    pub(crate) fn delete_response(&self) -> DeleteResponse {
        DeleteResponse {
            pid: self.number(),
            exit_status: self.end.map_or(0, |end| code(end.status)),
            exited_at: self.end.map(|end| end.at),
        }
    }
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) options: RuncOptions,
    pub(crate) init: Process,
    pub(crate) execs: BTreeMap<String, Process>,
    pub(crate) paused: bool,
    /// The checkpoint it is restored from at Start.
    pub(crate) checkpoint: String,
    /// Whether `rootfs` in the bundle was mounted here.
    pub(crate) has_mounts: bool,
    /// The list of its cgroups, as they were when it was made.
    pub(crate) cgroup_list: String,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) oom: Option<OomWatch>,
    /// Whether the end of its first process ends the others: it has no pid namespace of its own, where the kernel does it.
    pub(crate) kills_all: bool,
    /// The end of the first process, held back until the others' ends were told.
    pub(crate) held: Option<End>,
    /// Its place in the server's list.
    pub(crate) place: usize,
}

impl Container {
    /// Who must be able to open its pipes.
    pub(crate) fn owner(&self) -> Owner {
        Owner {
            uid: self.options.io_uid,
            gid: self.options.io_gid,
        }
    }

    /// A process; the first for an empty exec id.
    pub(crate) fn process(&mut self, exec_id: &str) -> Result<&mut Process, Refusal> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs.get_mut(exec_id).ok_or_else(|| {
            Refusal::new(
                Code::NotFound,
                format!("process does not exist {exec_id}: not found"),
            )
        })
    }

    /// All of its processes, the first first.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.init).chain(self.execs.values())
    }

    /// As above.
    pub(crate) fn processes_mut(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.init).chain(self.execs.values_mut())
    }

    /// Its cgroups, looked for when they are first asked for.
    pub(crate) fn cgroup(&mut self) -> Option<&Cgroup> {
        if self.cgroup.is_none() {
            self.cgroup = Cgroup::listed(&self.cgroup_list);
        }
        self.cgroup.as_ref()
    }

    /// Whether a process that Exec started still runs, or is being started, or has ended and that is not told yet.
    pub(crate) fn has_running_execs(&self) -> bool {
        self.execs.values().any(|process| {
            process.phase == Phase::Running || process.busy || process.untold.is_some()
        })
    }

    /// The answer to State.
    pub(crate) fn state(&mut self, exec_id: &str) -> Result<StateResponse, Refusal> {
        let (id, bundle, paused) = (self.id.clone(), self.bundle.clone(), self.paused);
        let process = self.process(exec_id)?;
        let status = match process.phase {
            Phase::Stopped => TaskStatus::Stopped,
            _ if paused => TaskStatus::Paused,
            Phase::Added | Phase::Created => TaskStatus::Created,
            Phase::Running => TaskStatus::Running,
        };
        Ok(StateResponse {
            id: if exec_id.is_empty() {
                id
            } else {
                exec_id.to_owned()
            },
            bundle: bundle.display().to_string(),
            pid: process.number(),
            status: status.into(),
            stdin: process.wanted.stdin.clone(),
            stdout: process.wanted.stdout.clone(),
            stderr: process.wanted.stderr.clone(),
            terminal: process.wanted.terminal,
            exit_status: process.end.map_or(0, |end| code(end.status)),
            exited_at: process.end.map(|end| end.at),
            exec_id: exec_id.to_owned(),
        })
    }
}

/// An exit status as messages have it.
pub(crate) fn code(status: ExitStatus) -> u32 {
    u32::try_from(status.0).unwrap_or(255)
}
