//! Where a process's standard streams lead: containerd's fifos, a logger's pipes, a file, nowhere.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fchown, open, stat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Signal, Uid};

use super::logger::{Binary, Logger, LoggerName, Ready};
use super::pump::Pump;
use super::uri::Uri;
use crate::error::Error;
use crate::process::Streams;
use crate::stdio::{nonblocking, null};

/// What a request says of the streams: paths, URIs, or nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// A fifo, or empty.
    pub(crate) stdin: String,
    /// A fifo, `file://…`, `binary://…`, or empty.
    pub(crate) stdout: String,
    /// As above; empty with a terminal.
    pub(crate) stderr: String,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
}

/// Our side of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// From the fifo into the container.
    pub(crate) input: Option<Pump>,
    /// Keeps the fifo of stdin from ending before CloseIO.
    pub(crate) stdin_writer: Option<OwnedFd>,
    /// From the container into what it leads to, and its path if that is a fifo.
    pub(crate) outputs: Vec<(Pump, Option<PathBuf>)>,
    /// The program that takes the output.
    pub(crate) logger: Option<Logger>,
    /// Where that says that it is ready: then the runtime may start.
    pub(crate) ready: Option<Ready>,
    /// What the terminal is to be connected with when it comes.
    ends: Option<Ends>,
}

/// What a terminal is connected with.
#[derive(Debug)]
struct Ends {
    stdin: Option<OwnedFd>,
    sink: OwnedFd,
    fifo: Option<PathBuf>,
}

/// Who must be able to open the pipes again, `/dev/stdout` say: `io_uid` and `io_gid` of the options.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    /// User id on the host.
    pub(crate) uid: u32,
    /// Group id on the host.
    pub(crate) gid: u32,
}

impl Opened {
    /// Opens everything for a process without a terminal: our side, and what the runtime is started with.
    pub(crate) fn pipes(
        wanted: &Wanted,
        owner: Owner,
        name: &LoggerName<'_>,
    ) -> Result<(Self, Streams), Error> {
        let mut ours = Self::default();
        let stdin = if wanted.stdin.is_empty() {
            null()?
        } else {
            let (fifo, keeper) = open_input(&wanted.stdin)?;
            let (reader, writer) = owned_pipe(owner)?;
            ours.input = Some(Pump::new(fifo, nonblocking(writer)?));
            ours.stdin_writer = Some(keeper);
            reader
        };
        let (stdout, stderr) = match Uri::parse(&wanted.stdout) {
            Uri::Path(path) => {
                let Uri::Path(other) = Uri::parse(&wanted.stderr) else {
                    let text = format!("stderr {} beside a fifo", wanted.stderr);
                    return Err(Error::Usage(text));
                };
                (ours.output(path, owner)?, ours.output(other, owner)?)
            }
            Uri::File(path) => {
                let file = log_file(&path)?;
                let copy = file.try_clone().map_err(Error::call("duplicate a log"))?;
                (file, copy)
            }
            Uri::Binary(binary) => ours.start_logger(&binary, name)?,
            Uri::Unknown(scheme) => return Err(unknown(&scheme)),
        };
        let theirs = Streams {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
        };
        Ok((ours, theirs))
    }

    /// Opens what a terminal will be connected with.
    pub(crate) fn for_terminal(wanted: &Wanted, name: &LoggerName<'_>) -> Result<Self, Error> {
        let mut ours = Self::default();
        let mut stdin = None;
        if !wanted.stdin.is_empty() {
            let (fifo, keeper) = open_input(&wanted.stdin)?;
            stdin = Some(fifo);
            ours.stdin_writer = Some(keeper);
        }
        let mut fifo = None;
        let sink = match Uri::parse(&wanted.stdout) {
            Uri::Path(path) if path.as_os_str().is_empty() => null()?,
            Uri::Path(path) => {
                let sink = open_output(&path)?;
                fifo = Some(path);
                sink
            }
            Uri::File(path) => log_file(&path)?,
            Uri::Binary(binary) => nonblocking(ours.start_logger(&binary, name)?.0)?,
            Uri::Unknown(scheme) => return Err(unknown(&scheme)),
        };
        ours.ends = Some(Ends { stdin, sink, fifo });
        Ok(ours)
    }

    /// Connects the terminal's master end.
    pub(crate) fn connect_terminal(&mut self, master: OwnedFd) -> Result<(), Error> {
        let Some(ends) = self.ends.take() else {
            return Ok(());
        };
        if let Some(fifo) = ends.stdin {
            let copy = master
                .try_clone()
                .map_err(Error::call("duplicate the terminal"))?;
            self.input = Some(Pump::new(fifo, copy));
        }
        self.outputs.push((Pump::new(master, ends.sink), ends.fifo));
        Ok(())
    }

    /// The process did not come about.
    pub(crate) fn abandon(self) {
        if let Some(logger) = self.logger {
            logger.signal(Signal::KILL);
        }
    }

    /// Starts the program that takes the output; returns where to write that.
    fn start_logger(
        &mut self,
        binary: &Binary,
        name: &LoggerName<'_>,
    ) -> Result<(OwnedFd, OwnedFd), Error> {
        let started = Logger::start(binary, name)?;
        self.logger = Some(started.logger);
        self.ready = Some(started.ready);
        Ok((started.stdout, started.stderr))
    }

    /// The container's end of an output stream.
    fn output(&mut self, path: PathBuf, owner: Owner) -> Result<OwnedFd, Error> {
        if path.as_os_str().is_empty() {
            return null();
        }
        let is_fifo = stat(&path)
            .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
            .map_err(Error::path("look at output", &path))?;
        if !is_fifo {
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
            return open(&path, flags, Mode::empty()).map_err(Error::path("open output", &path));
        }
        let (reader, writer) = owned_pipe(owner)?;
        let sink = open_output(&path)?;
        self.outputs
            .push((Pump::new(nonblocking(reader)?, sink), Some(path)));
        Ok(writer)
    }
}

fn unknown(scheme: &str) -> Error {
    Error::Usage(format!("unknown STDIO scheme {scheme}"))
}

/// Opens a fifo for output, with a reading end of our own: a client that goes away is no end of the container.
fn open_output(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    open(path, flags, Mode::empty()).map_err(Error::path("open fifo", path))
}

/// Opens the fifo of stdin, and a writing end: it ends when CloseIO comes, not when a client goes away.
fn open_input(place: &str) -> Result<(OwnedFd, OwnedFd), Error> {
    let path = Path::new(place);
    let common = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let open = |flags| {
        open(path, flags | common, Mode::empty()).map_err(Error::path("open stdin fifo", path))
    };
    let reader = open(OFlags::RDONLY)?;
    let writer = open(OFlags::WRONLY)?;
    Ok((reader, writer))
}

fn owned_pipe(owner: Owner) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::call("pipe2"))?;
    if owner.uid != 0 || owner.gid != 0 {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        // Both ends share the inode.
        fchown(&writer, Some(uid), Some(gid)).map_err(Error::call("fchown of a pipe"))?;
    }
    Ok((reader, writer))
}

/// Opens a log file for appending. Not through a symbolic link: who can write to the directory is not to choose the file.
fn log_file(path: &Path) -> Result<OwnedFd, Error> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(Error::path("make directory", directory))?;
    }
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::from_raw_mode(0o644)).map_err(Error::path("open log file", path))
}
