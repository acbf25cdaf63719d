//! Programs that take the output: `binary://…`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::error::Error;
use crate::process::{SELF, Streams, spawn};

/// Longest that a logger may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// A `binary://` URI: a program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    /// The program.
    pub(crate) path: PathBuf,
    /// Its arguments: key and value of each part of the query.
    pub(crate) arguments: Vec<String>,
    /// Whether it must write a byte to be ready (`binary-v2`); else closing is enough.
    pub(crate) says_ready: bool,
}

/// How a logger is told whose output it gets.
#[derive(Debug)]
pub(crate) struct LoggerName<'a> {
    /// Container, or exec session.
    pub(crate) id: &'a str,
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
}

/// A logger that runs, or has ended: its pidfd, as it is collected with all other children.
#[derive(Debug)]
pub(crate) struct Logger(OwnedFd);

/// A logger that was just started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) logger: Logger,
    pub(crate) ready: Ready,
    /// Where its output goes.
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Where a logger says that it is ready.
#[derive(Debug)]
pub(crate) struct Ready {
    pipe: OwnedFd,
    program: PathBuf,
    /// Whether it says so by a byte; else by closing.
    by_byte: bool,
    deadline: Instant,
}

impl Logger {
    /// Starts the program: descriptor 3 is stdout, 4 stderr, and 5 is closed when it is ready.
    pub(crate) fn start(binary: &Binary, name: &LoggerName<'_>) -> Result<Started, Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::call("pipe2"));
        let (stdout_reader, stdout) = pipe()?;
        let (stderr_reader, stderr) = pipe()?;
        let (ready, said) = pipe()?;
        let mut words: Vec<OsString> = vec![SELF.into(), super::LOGGER.into()];
        words.push(binary.path.clone().into());
        words.extend(binary.arguments.iter().map(Into::into));
        // Where the program finds them is arranged by ourselves, started again: no code runs between fork and exec.
        let streams = Streams {
            stdin: Some(stdout_reader),
            stdout: Some(stderr_reader),
            stderr: Some(said),
        };
        let told = [
            ("CONTAINER_ID", name.id),
            ("CONTAINER_NAMESPACE", name.namespace),
        ];
        let kept =
            std::env::vars_os().filter(|(name, _)| told.iter().all(|(told, _)| name != told));
        let told = told.map(|(name, value)| (name.into(), value.into()));
        let pid = spawn(&words, &streams, kept.chain(told))
            .map_err(Error::path("start logger", &binary.path))?;
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            // Not collected yet: the number is its.
            let _ = kill_process(pid, Signal::KILL);
            Error::call("pidfd_open")(errno)
        })?;
        Ok(Started {
            logger: Self(process),
            ready: Ready {
                pipe: ready,
                program: binary.path.clone(),
                by_byte: binary.says_ready,
                deadline: Instant::now() + PATIENCE,
            },
            stdout,
            stderr,
        })
    }

    /// Sends it a signal, if it is still there.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.0, signal);
    }
}

impl Ready {
    /// The descriptor to watch.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.pipe
    }

    /// When it is too late.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Takes what it has said; before it has said anything it has been too long.
    pub(crate) fn heard(&self, now: Instant) -> Result<(), Error> {
        let fail = |text: &str| {
            let program = self.program.display();
            Err(Error::Runtime(format!("logger {program}: {text}")))
        };
        if now >= self.deadline {
            return fail("it did not get ready in 10 s");
        }
        match rustix::io::read(&self.pipe, &mut [0]) {
            Ok(0) if self.by_byte => fail("it ended before it was ready"),
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::call("read from the logger")(errno)),
        }
    }
}
