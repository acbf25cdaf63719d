//! Unix sockets bound in a directory, however long its path is.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, open, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use crate::error::Error;

/// Longest path that fits `sockaddr_un.sun_path` with its final zero.
pub(crate) const LONGEST_PATH: usize = 107;

/// A socket bound to a name in a directory.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The socket, non-blocking.
    pub(crate) fd: OwnedFd,
    /// The directory, opened `O_PATH`.
    pub(crate) directory: OwnedFd,
    /// Where the socket is in the file system.
    pub(crate) name: Named,
}

/// A name in the file system that lasts as long as this value.
#[derive(Debug)]
pub(crate) struct Named(PathBuf);

impl Named {
    /// Takes over a name that was just made.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The name.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // Whoever removed it first, or its directory, did what we wanted.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds a socket to `directory/name` with exactly `mode`, replacing what a
/// monitor that was killed left there.
///
/// The address goes through `/proc/self/fd`, since `sun_path` has 108 bytes and
/// the paths of bundles are often longer.
pub(crate) fn bind_in(
    directory: &Path,
    name: &str,
    kind: SocketType,
    mode: Mode,
) -> Result<Bound, Error> {
    let path = directory.join(name);
    let dir = open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::path("open directory", directory))?;
    match unlinkat(dir.as_fd(), Path::new(name), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(Error::path("remove old socket", &path)(errno)),
    }
    let fd = socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(Error::call("socket(AF_UNIX)"))?;
    // Before bind, because the inode takes its mode from the socket: there is
    // no moment in which somebody else could connect.
    fchmod(&fd, mode).map_err(Error::path("set mode of socket", &path))?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
        .map_err(Error::path("make address of socket", &path))?;
    bind(&fd, &address).map_err(Error::path("bind socket", &path))?;
    Ok(Bound {
        fd,
        directory: dir,
        name: Named(path),
    })
}
