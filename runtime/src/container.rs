//! An existing container: its state file, its process and its cgroup taken together.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::Cgroup;
use crate::failure::{CallFailed, During};
use crate::state::{self, Directory, Record, START_FIFO, Store};
use crate::sys::signal;

/// What a container is doing. Names as in runc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Its process waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are stopped by `pause`.
    Paused,
    /// Its process has ended, or never was.
    Stopped,
}

impl Status {
    /// Name as runtime.md "State" has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// An existing container.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its directory.
    pub(crate) directory: Directory,
    /// Its state file.
    pub(crate) record: Record,
    /// Its cgroup.
    pub(crate) cgroup: Cgroup,
}

impl Container {
    /// Loads a container.
    pub(crate) fn load(store: &Store, id: &str) -> Result<Self, state::Error> {
        let directory = store.open(id)?;
        let record = directory.read()?;
        Ok(Self::new(directory, record))
    }

    /// The container of a directory whose state has been read.
    pub(crate) fn new(directory: Directory, record: Record) -> Self {
        let cgroup = Cgroup::open(&record.cgroup);
        Self {
            directory,
            record,
            cgroup,
        }
    }

    /// Its init process, if that still lives: the process of that id that started when it did.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let pid = Pid::from_raw(self.record.pid)?;
        let (start_time, alive) = state::start_time(pid)?;
        (alive && start_time == self.record.start_time).then_some(pid)
    }

    /// A descriptor of its init process, if that still lives.
    pub(crate) fn pidfd(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.record.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: now the id cannot mean another process.
        self.pid().map(|_| pidfd)
    }

    /// What it is doing.
    pub(crate) fn status(&self) -> Status {
        if self.pid().is_none() {
            return Status::Stopped;
        }
        if self.cgroup.is_frozen().unwrap_or(false) {
            return Status::Paused;
        }
        if self.directory.has(START_FIFO) {
            Status::Created
        } else {
            Status::Running
        }
    }

    /// Sends a signal to the init process; false when it is no more.
    pub(crate) fn signal(&self, number: i32) -> Result<bool, CallFailed> {
        let sent = self
            .pidfd()
            .map(|pidfd| signal::pidfd_send_signal(&pidfd, number));
        let sent = match sent {
            // Before Linux 5.3, or 5.1.
            None | Some(Err(Errno::NOSYS)) => match self.pid() {
                Some(pid) => signal::kill(pid, number),
                None => return Ok(false),
            },
            Some(other) => other,
        };
        match sent {
            Err(Errno::SRCH) => Ok(false),
            other => other
                .during("kill", self.record.pid.to_string())
                .map(|()| true),
        }
    }
}
