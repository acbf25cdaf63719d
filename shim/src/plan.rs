//! What the monitor of one container is to do, complete and checked. Made by a
//! front end, carried out by [`crate::monitor`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::diag::Level;
use crate::log::{Labels, Limits, Target};

/// Version of conmon's interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// Without `--api-version`.
    Legacy,
    /// `--api-version 1`.
    Current,
}

/// What the runtime is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A container.
    Create,
    /// A container from a checkpoint.
    Restore {
        /// The checkpoint's directory.
        image: PathBuf,
    },
    /// One more process in a running container.
    Exec {
        /// The process's JSON specification.
        process: PathBuf,
        /// Whether the process waits until the caller has attached.
        attach: bool,
    },
}

/// Where the container's standard streams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StdioKind {
    /// Three pipes; without `stdin` the first is `/dev/null`.
    Pipes {
        /// Whether clients can write to the container.
        stdin: bool,
    },
    /// A pseudo-terminal that the runtime makes.
    Terminal,
    /// The monitor's own: nothing is logged, nobody can attach.
    Passthrough,
}

/// How the monitor parts from its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// By starting itself again; the first process ends.
    Daemon,
    /// Not at all (`--sync`).
    Sync,
    /// Not at all, and leaked descriptors are closed early (`--no-daemon`).
    NoDaemon,
    /// It has: this is the second start.
    Done,
}

/// A program to run after the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExitCommand {
    /// The program.
    pub(crate) path: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<OsString>,
    /// How long to wait first.
    pub(crate) delay: Duration,
}

/// The whole task.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Version of the sync pipe's messages.
    pub(crate) api: Api,
    /// What to start.
    pub(crate) kind: Kind,
    /// Container id.
    pub(crate) cid: String,
    /// The runtime's path and its global arguments.
    pub(crate) runtime: Vec<OsString>,
    /// More options of the runtime's command.
    pub(crate) runtime_options: Vec<OsString>,
    /// The bundle, or the directory of the exec session. Sockets are here.
    pub(crate) bundle: Option<PathBuf>,
    /// Where the runtime writes the pid.
    pub(crate) container_pidfile: PathBuf,
    /// Where the monitor's pid is written.
    pub(crate) monitor_pidfile: Option<PathBuf>,
    /// Where a file named after the container tells its exit code.
    pub(crate) exit_dir: Option<PathBuf>,
    /// Where `exit` and `oom` are written.
    pub(crate) persist_dir: Option<PathBuf>,
    /// A symbolic link to the bundle, short enough for a socket's address.
    pub(crate) socket_link: Option<PathBuf>,
    /// The container's streams.
    pub(crate) stdio: StdioKind,
    /// Whether stdin outlives the client that writes to it.
    pub(crate) leave_stdin_open: bool,
    /// Whether LISTEN_PID is rewritten whatever its value.
    pub(crate) replace_listen_pid: bool,
    /// Logs.
    pub(crate) logs: Vec<Target>,
    /// Their sizes.
    pub(crate) limits: Limits,
    /// Their labels.
    pub(crate) labels: Labels,
    /// Whether the exit code is synced; not where it would not outlive a reboot anyway.
    pub(crate) sync_exit: bool,
    /// Whether logs are synced at the end.
    pub(crate) sync_logs: bool,
    /// What is run at the end.
    pub(crate) exit_command: Option<ExitCommand>,
    /// The longest that the container may run.
    pub(crate) timeout: Option<Duration>,
    /// The host's sd_notify socket.
    pub(crate) notify_socket: Option<PathBuf>,
    /// How to become independent.
    pub(crate) detach: Detach,
    /// Which messages are wanted.
    pub(crate) log_level: Level,
    /// Whether they go to syslog too.
    pub(crate) syslog: bool,
}

impl Plan {
    /// Whether this is an exec session.
    pub(crate) fn is_exec(&self) -> bool {
        matches!(self.kind, Kind::Exec { .. })
    }

    /// Whether this is an exec session that waits for its caller to attach.
    pub(crate) fn is_attached_exec(&self) -> bool {
        matches!(self.kind, Kind::Exec { attach: true, .. })
    }

    /// Where sockets and fifos are made, if any are.
    pub(crate) fn socket_dir(&self) -> Option<&Path> {
        if self.stdio == StdioKind::Passthrough {
            return None;
        }
        self.bundle.as_deref()
    }

    /// The runtime's command line, with the console socket's path if there is one.
    pub(crate) fn runtime_command(&self, console: Option<&Path>) -> Vec<OsString> {
        let mut words = self.runtime.clone();
        let mut add = |parts: &[&dyn AsRef<std::ffi::OsStr>]| {
            words.extend(parts.iter().map(|part| part.as_ref().to_owned()));
        };
        // Without a bundle there is only exec, which does not name it.
        let bundle = self.bundle.clone().unwrap_or_default();
        match &self.kind {
            Kind::Exec { process, .. } => add(&[
                &"exec",
                &"--pid-file",
                &self.container_pidfile,
                &"--process",
                process,
                &"--detach",
            ]),
            Kind::Create => add(&[
                &"create",
                &"--bundle",
                &bundle,
                &"--pid-file",
                &self.container_pidfile,
            ]),
            Kind::Restore { image } => add(&[
                &"restore",
                &"--bundle",
                &bundle,
                &"--pid-file",
                &self.container_pidfile,
                &"--detach",
                &"--image-path",
                image,
                &"--work-path",
                &bundle,
            ]),
        }
        words.extend(self.runtime_options.iter().cloned());
        if let Some(console) = console {
            words.push("--console-socket".into());
            words.push(console.into());
        }
        words.push(self.cid.clone().into());
        words
    }
}
