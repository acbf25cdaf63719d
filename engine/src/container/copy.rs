//! `cp`: files into a container and out of it.
//!
//! A container may exchange a directory for a link to anywhere while it is being copied from or to (CVE-2018-15664), so
//! no path of its is ever used: both ends are descriptors of roots, every look-up is one of [`rooted`], and what is
//! found stays pinned. Between the ends runs an archive that never lies anywhere: one thread reads, another writes, as
//! [`bundle_tools::layer`] does with layers. Nothing of the container's is executed or loaded (CVE-2019-14271).
//!
//! The rules of what goes where are docker's; [`target`] is the table of them.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use bundle_tools::layer::{apply, compression, diff};
use bundle_tools::rooted;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat, readlinkat};
use rustix::io::Errno;

mod view;

pub use view::with_root;

/// What can go wrong with a copy. Paths are as typed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing there.
    #[error("Could not find the file {path} in container {container}")]
    NotInContainer {
        /// The path.
        path: String,
        /// The container.
        container: String,
    },
    /// Nothing there, on the host.
    #[error("lstat {0}: no such file or directory")]
    NotOnHost(String),
    /// The directory a copy should be made in is not there.
    #[error("invalid output path: directory {0:?} does not exist")]
    NoDirectory(String),
    /// A file can't become a directory that is not there.
    #[error("no such directory: {0}")]
    NoSuchDirectory(String),
    /// A path that ends in a slash, or has more behind it, leads to a file.
    #[error("not a directory: {0}")]
    NotADirectory(String),
    /// What is there is neither a directory nor a regular file.
    #[error("{0} is neither a directory nor a regular file, and is not replaced")]
    NotAFile(String),
    /// A directory can't become a file.
    #[error("cannot copy directory to file: {0}")]
    DirectoryToFile(String),
    /// An archive is unpacked into a directory only.
    #[error("destination {0:?} must be a directory")]
    MustBeDirectory(String),
    /// A path can't be looked up.
    #[error("cannot look up {path}")]
    Lookup {
        /// The path.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The source can't be read.
    #[error("cannot read {path}")]
    Read {
        /// The path.
        path: String,
        /// What went wrong.
        source: diff::Error,
    },
    /// The copy can't be written.
    #[error("cannot write to {path}")]
    Write {
        /// The path.
        path: String,
        /// What went wrong.
        source: Box<apply::Error>,
    },
    /// An archive from elsewhere is compressed in a way that can't be undone.
    #[error("cannot read the archive")]
    Compression(#[from] compression::Error),
    /// No pipe.
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
    /// The container's files can't be reached.
    #[error(transparent)]
    Container(#[from] Box<super::Error>),
}

impl From<super::Error> for Error {
    fn from(error: super::Error) -> Error {
        Error::Container(Box::new(error))
    }
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// One end of a copy: a path inside a root.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The root: the container's, or the host's.
    pub root: BorrowedFd<'a>,
    /// The path, as typed; from the root.
    pub path: &'a str,
    /// The container's name; `None` for the host.
    pub container: Option<&'a str>,
}

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Copy what a link leads to instead of the link, if the source is one.
    pub follow: bool,
    /// Keep owners; else everything belongs to root.
    pub archive: bool,
}

impl End<'_> {
    fn shown(&self) -> String {
        match self.container {
            Some(container) => format!("{container}:{}", self.path),
            None => self.path.to_owned(),
        }
    }

    fn not_found(&self) -> Error {
        match self.container {
            Some(container) => Error::NotInContainer {
                path: self.path.to_owned(),
                container: container.to_owned(),
            },
            None => Error::NotOnHost(self.path.to_owned()),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => self.not_found(),
            Some(Errno::NOTDIR) => Error::NotADirectory(self.path.to_owned()),
            _ => Error::Lookup {
                path: self.shown(),
                source,
            },
        }
    }

    /// The path's last part, and what is before it; `None` when it ends in no name.
    fn split(&self) -> Option<(&[u8], &[u8])> {
        let path = self.path.as_bytes();
        let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
        let start = path[..end]
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |slash| slash + 1);
        let name = &path[start..end];
        (!matches!(name, b"." | b"..")).then_some((&path[..start], name))
    }

    fn ends_in_slash(&self) -> bool {
        self.path.ends_with('/') || self.path.ends_with("/.") || self.path == "."
    }
}

/// What is to be copied.
#[derive(Debug)]
struct Source {
    /// Pinned, by `O_PATH`; of a link, the link itself.
    pinned: OwnedFd,
    is_directory: bool,
    /// The name it has; empty when only what is in it is meant.
    name: Vec<u8>,
}

/// Copies `from` to `to`.
///
/// # Errors
/// A source that is not there, a target that does not fit, or a failing read or write; the target then may have a part.
pub fn copy(from: End<'_>, to: End<'_>, options: Options) -> Result<()> {
    let source = source(from, options.follow)?;
    let (below, name) = target(&source, to)?;
    let (reader, writer) = io::pipe().map_err(Error::Pipe)?;
    let applied = apply::Options {
        owner: (!options.archive).then_some((0, 0)),
        ..options_of_copy(below)
    };
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let out = io::BufWriter::with_capacity(256 << 10, writer);
            diff::write_at(source.pinned, &name, out, &plain())
        });
        // The reader goes with this call, so that a failure here ends the other thread too.
        let written = apply::apply(reader, to.root, &applied);
        let read = match reading.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (read, written) {
            (Err(error), _) if !is_broken_pipe(&error) => Err(Error::Read {
                path: from.shown(),
                source: error,
            }),
            (_, Err(error)) => Err(write_failed(to, error)),
            _ => Ok(()),
        }
    })
}

/// Writes `from` as an archive.
///
/// # Errors
/// A source that is not there, or a failing read or write.
pub fn pack(from: End<'_>, out: impl Write, follow: bool) -> Result<()> {
    let source = source(from, follow)?;
    let out = io::BufWriter::with_capacity(256 << 10, out);
    diff::write_at(source.pinned, &source.name, out, &plain())
        .map(|_| ())
        .map_err(|source| Error::Read {
            path: from.shown(),
            source,
        })
}

/// Unpacks an archive, compressed or not, into the directory `to`. Owners are the archive's.
///
/// # Errors
/// A target that is no directory, a malformed archive, or a failing write; the target then may have a part.
pub fn unpack(archive: impl Read + Send, to: End<'_>) -> Result<()> {
    let found = rooted::walk(to.root, to.path.as_bytes()).map_err(|error| to.failed(error))?;
    if kind(&found.fd).map_err(|error| to.failed(error))? != FileType::Directory {
        return Err(Error::MustBeDirectory(to.shown()));
    }
    let plain = compression::decoder(io::BufReader::with_capacity(64 << 10, archive))?;
    apply::apply(plain, to.root, &options_of_copy(found.path))
        .map(|_| ())
        .map_err(|error| write_failed(to, error))
}

fn plain() -> diff::Options {
    diff::Options {
        plain: true,
        ..diff::Options::default()
    }
}

fn options_of_copy(below: Vec<u8>) -> apply::Options {
    apply::Options {
        whiteouts: apply::Whiteouts::Plain,
        merge: true,
        below,
        ..apply::Options::default()
    }
}

fn is_broken_pipe(error: &diff::Error) -> bool {
    matches!(error, diff::Error::Write(source) if source.kind() == io::ErrorKind::BrokenPipe)
}

fn write_failed(to: End<'_>, source: apply::Error) -> Error {
    Error::Write {
        path: to.shown(),
        source: Box::new(source),
    }
}

fn kind(fd: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// Pins what is to be copied.
fn source(from: End<'_>, follow: bool) -> Result<Source> {
    let failed = |error: io::Error| from.failed(error);
    let slash = from.ends_in_slash();
    let named = from.split().filter(|_| !follow && !slash);
    let (pinned, mut name) = match named {
        Some((parent, name)) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let parent = rooted::open(from.root, parent, flags).map_err(failed)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let pinned = openat(&parent, name, flags, Mode::empty())
                .map_err(|errno| failed(errno.into()))?;
            (pinned, name.to_vec())
        }
        None => {
            let found = rooted::walk(from.root, from.path.as_bytes()).map_err(failed)?;
            // With the name it was called by, if there is one: `cp -L` of a link makes a file of the link's name.
            let name = match from.split() {
                Some((_, name)) => name.to_vec(),
                None => last(&found.path).to_vec(),
            };
            (found.fd, name)
        }
    };
    let is_directory = kind(&pinned).map_err(failed)? == FileType::Directory;
    if slash && !is_directory {
        return Err(Error::NotADirectory(from.path.to_owned()));
    }
    let means_content = from.path.ends_with("/.") || from.path == "." || name.is_empty();
    if is_directory && means_content {
        name.clear();
    }
    Ok(Source {
        pinned,
        is_directory,
        name,
    })
}

fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

fn split_at_last(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (path[..slash].to_vec(), path[slash + 1..].to_vec()),
        None => (Vec::new(), path.to_vec()),
    }
}

/// Where a source goes, by docker's rules: a directory of the root, as a path without links, and the name in it.
///
/// | target | a file | a directory `d` | `d/.` |
/// | --- | --- | --- | --- |
/// | is a directory | into it | into it, as `d` | what is in `d`, into it |
/// | is a regular file | replaces it | refused | refused |
/// | is anything else | refused | refused | refused |
/// | is not there | is called so | is called so | is called so |
/// | is not there, ends in `/` | refused | is called so | is called so |
fn target(source: &Source, to: End<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let failed = |error: io::Error| to.failed(error);
    let path = match rooted::walk(to.root, to.path.as_bytes()) {
        Ok(found) => {
            if kind(&found.fd).map_err(failed)? == FileType::Directory {
                return Ok((found.path, source.name.clone()));
            }
            if source.is_directory {
                return Err(Error::DirectoryToFile(to.shown()));
            }
            if to.ends_in_slash() {
                return Err(Error::NotADirectory(to.shown()));
            }
            // Never a device, a pipe or a socket: `cp web:/x /dev/null` would leave a host without it.
            if kind(&found.fd).map_err(failed)? != FileType::RegularFile {
                return Err(Error::NotAFile(to.shown()));
            }
            return Ok(split_at_last(&found.path));
        }
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => to.path.as_bytes(),
        Err(error) => return Err(failed(error)),
    };
    if to.ends_in_slash() && !source.is_directory {
        return Err(Error::NoSuchDirectory(to.shown()));
    }
    let trimmed = path.strip_suffix(b"/.").unwrap_or(path);
    new_place(to, trimmed)
}

/// The place of what is not there yet: its directory has to be. A link to what is not there stands for that.
fn new_place(to: End<'_>, path: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut path = path.to_vec();
    for _ in 0..MAX_LINKS {
        let shown = String::from_utf8_lossy(&path).into_owned();
        let end = End { path: &shown, ..to };
        let Some((parent, name)) = end.split() else {
            return Err(to.not_found());
        };
        let found = rooted::walk(to.root, parent).map_err(|error| no_parent(to, parent, error))?;
        if kind(&found.fd).map_err(|error| to.failed(error))? != FileType::Directory {
            return Err(Error::NotADirectory(to.shown()));
        }
        match readlinkat(&found.fd, name, Vec::new()) {
            Ok(link) if link.to_bytes().starts_with(b"/") => path = link.into_bytes(),
            Ok(link) => path = [&found.path, &b"/"[..], link.to_bytes()].concat(),
            Err(_) => return Ok((found.path, name.to_vec())),
        }
    }
    Err(to.failed(Errno::LOOP.into()))
}

/// The kernel's own limit on links in one path.
const MAX_LINKS: u32 = 40;

fn no_parent(to: End<'_>, parent: &[u8], error: io::Error) -> Error {
    let parent = OsStr::from_bytes(parent).display().to_string();
    match (Errno::from_io_error(&error), to.container) {
        (Some(Errno::NOENT), None) => Error::NoDirectory(parent),
        (Some(Errno::NOENT), Some(container)) => Error::NotInContainer {
            path: parent,
            container: container.to_owned(),
        },
        _ => to.failed(error),
    }
}

/// The host's root, for the end of a copy that is on the host.
///
/// # Errors
/// When it can't be opened.
pub fn host_root() -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, "/", flags, Mode::empty()).map_err(|errno| Error::Lookup {
        path: "/".to_owned(),
        source: errno.into(),
    })
}
