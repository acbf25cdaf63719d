//! Where a process's standard streams lead: containerd's fifos, a logger's pipes, a file, nowhere.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fchown, open, stat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Gid, Uid};

use super::pump::Pump;
use super::uri::Uri;
use crate::error::Error;
use crate::process::Streams;
use crate::stdio::{nonblocking, null};

/// Longest that a logger may take to say that it is ready.
const LOGGER_PATIENCE: Duration = Duration::from_secs(10);

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
    /// From the container into fifos.
    pub(crate) outputs: Vec<Pump>,
    /// The program that takes the output.
    pub(crate) logger: Option<Child>,
}

/// Who must be able to open the pipes again, `/dev/stdout` say: `io_uid` and `io_gid` of the options.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    /// User id on the host.
    pub(crate) uid: u32,
    /// Group id on the host.
    pub(crate) gid: u32,
}

/// Opens everything for a process without a terminal: our side, and what the runtime is started with.
pub(crate) fn open_pipes(
    wanted: &Wanted,
    owner: Owner,
    logger: &LoggerName<'_>,
) -> Result<(Opened, Streams), Error> {
    let mut ours = Opened::default();
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
        Uri::Path(_) => (
            output(&mut ours, &wanted.stdout, owner)?,
            output(&mut ours, &wanted.stderr, owner)?,
        ),
        Uri::File(path) => {
            let file = log_file(&path)?;
            let copy = file.try_clone().map_err(Error::call("duplicate a log"))?;
            (file, copy)
        }
        Uri::Binary(binary) => {
            let (child, stdout, stderr) = start_logger(&binary, logger)?;
            ours.logger = Some(child);
            (stdout, stderr)
        }
        Uri::Unknown(scheme) => {
            return Err(Error::Usage(format!("unknown STDIO scheme {scheme}")));
        }
    };
    let theirs = Streams {
        stdin: Some(stdin),
        stdout: Some(stdout),
        stderr: Some(stderr),
    };
    Ok((ours, theirs))
}

/// Connects a terminal's master end with the fifos.
pub(crate) fn open_terminal(
    wanted: &Wanted,
    master: OwnedFd,
    logger: &LoggerName<'_>,
) -> Result<Opened, Error> {
    let mut ours = Opened::default();
    let duplicate = |fd: &OwnedFd| {
        fd.try_clone()
            .map_err(Error::call("duplicate the terminal"))
    };
    if !wanted.stdin.is_empty() {
        let (fifo, keeper) = open_input(&wanted.stdin)?;
        ours.input = Some(Pump::new(fifo, duplicate(&master)?));
        ours.stdin_writer = Some(keeper);
    }
    let sink = match Uri::parse(&wanted.stdout) {
        Uri::Path(path) if path.as_os_str().is_empty() => null()?,
        Uri::Path(path) => open_output(&path)?,
        Uri::File(path) => log_file(&path)?,
        Uri::Binary(binary) => {
            let (child, stdout, _) = start_logger(&binary, logger)?;
            ours.logger = Some(child);
            nonblocking(stdout)?
        }
        Uri::Unknown(scheme) => {
            return Err(Error::Usage(format!("unknown STDIO scheme {scheme}")));
        }
    };
    ours.outputs.push(Pump::new(master, sink));
    Ok(ours)
}

/// The container's end of an output stream.
fn output(ours: &mut Opened, place: &str, owner: Owner) -> Result<OwnedFd, Error> {
    if place.is_empty() {
        return null();
    }
    let path = Path::new(place);
    let is_fifo = stat(path)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        .map_err(Error::path("look at output", path))?;
    if !is_fifo {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        return open(path, flags, Mode::empty()).map_err(Error::path("open output", path));
    }
    let (reader, writer) = owned_pipe(owner)?;
    let sink = open_output(path)?;
    ours.outputs.push(Pump::new(nonblocking(reader)?, sink));
    Ok(writer)
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

/// How a logger is told whose output it gets.
#[derive(Debug)]
pub(crate) struct LoggerName<'a> {
    /// Container, or exec session.
    pub(crate) id: &'a str,
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
}

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

/// Starts the program that takes the output: descriptor 3 is stdout, 4 stderr, and 5 is closed when it is ready.
fn start_logger(
    binary: &Binary,
    name: &LoggerName<'_>,
) -> Result<(Child, OwnedFd, OwnedFd), Error> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(Error::call("pipe2"));
    let (stdout_reader, stdout) = pipe()?;
    let (stderr_reader, stderr) = pipe()?;
    let (ready, said) = pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(super::LOGGER)
        .arg(&binary.path)
        .args(&binary.arguments)
        .env("CONTAINER_ID", name.id)
        .env("CONTAINER_NAMESPACE", name.namespace)
        // Where the program finds them is arranged by ourselves, started again: no code runs between fork and exec.
        .stdin(Stdio::from(stdout_reader))
        .stdout(Stdio::from(stderr_reader))
        .stderr(Stdio::from(said));
    let mut child = crate::process::spawn_unblocked(&mut command)
        .map_err(Error::path("start logger", &binary.path))?;
    // Our copies of the other ends are in it.
    drop(command);
    if let Err(error) = await_ready(&ready, binary) {
        let _ = child.kill();
        return Err(error);
    }
    Ok((child, stdout, stderr))
}

fn await_ready(ready: &OwnedFd, binary: &Binary) -> Result<(), Error> {
    let fail = |text: &str| {
        Err(Error::Runtime(format!(
            "logger {}: {text}",
            binary.path.display()
        )))
    };
    let deadline = Instant::now() + LOGGER_PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return fail("it did not get ready in 10 s"),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::call("poll")(errno)),
        }
    }
    let mut byte = [0];
    match rustix::io::read(ready, &mut byte) {
        Ok(0) if binary.says_ready => fail("it ended before it was ready"),
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::call("read from the logger")(errno)),
    }
}
