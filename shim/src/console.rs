//! The console socket: a runtime makes the container's pseudo-terminal and
//! sends its master end here (runtime-spec, and runc's `docs/terminals.md`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, mkdir};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, accept_with,
    listen, recvmsg,
};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::diag;
use crate::error::Error;
use crate::socket::{Bound, LONGEST_PATH, bind_in};

/// Name of the socket in its directory.
const NAME: &str = "console";

/// How long a runtime that has connected may take to send the terminal: it does that at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// A console socket that waits for the runtime.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    bound: Bound,
    argument: PathBuf,
    /// Made for the socket, where there was no directory for it.
    own_directory: Option<PathBuf>,
}

impl ConsoleSocket {
    /// Listens in `directory`, or in a fresh private one.
    pub(crate) fn listen(directory: Option<&Path>) -> Result<Self, Error> {
        let own_directory = match directory {
            Some(_) => None,
            None => Some(private_directory()?),
        };
        let place = directory
            .or(own_directory.as_deref())
            .unwrap_or(Path::new("/"));
        let bound = bind_in(place, NAME, SocketType::STREAM, Mode::from_raw_mode(0o600))?;
        listen(&bound.fd, 1).map_err(Error::call("listen on the console socket"))?;
        let argument = if bound.name.path().as_os_str().len() <= LONGEST_PATH {
            bound.name.path().to_owned()
        } else {
            // Runtimes connect to the path as it is. This one is short, and
            // good for as long as we keep the directory open.
            PathBuf::from(format!(
                "/proc/{}/fd/{}/{NAME}",
                std::process::id(),
                bound.directory.as_raw_fd()
            ))
        };
        Ok(Self {
            bound,
            argument,
            own_directory,
        })
    }

    /// What to call the socket on the runtime's command line.
    pub(crate) fn argument(&self) -> &Path {
        &self.argument
    }

    /// The listening socket.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.bound.fd
    }

    /// Takes the terminal, if the runtime has sent it.
    pub(crate) fn receive(&self) -> Result<Option<OwnedFd>, Error> {
        let connection = match accept_with(&self.bound.fd, SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(Error::call("accept on the console socket")(errno)),
        };
        set_socket_timeout(&connection, Timeout::Recv, Some(PATIENCE))
            .map_err(Error::call("limit the wait for the terminal"))?;
        let mut name = [0_u8; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        rustix::io::retry_on_intr(|| {
            recvmsg(
                &connection,
                &mut [IoSliceMut::new(&mut name)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
        .map_err(Error::call("receive the terminal"))?;
        let terminal = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match terminal {
            Some(fd) if rustix::termios::isatty(&fd) => Ok(Some(fd)),
            Some(_) => Err(Error::Runtime(
                "the runtime sent no terminal over the console socket".into(),
            )),
            // It failed after it had connected. Its own words, soon to come, say more.
            None => Ok(None),
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        if let Some(directory) = &self.own_directory {
            let _ = std::fs::remove_file(directory.join(NAME));
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Makes a directory only for us under the temporary one.
fn private_directory() -> Result<PathBuf, Error> {
    let base = std::env::temp_dir();
    let mut attempt = 0_u32;
    loop {
        let path = base.join(format!("qshim-{}-{attempt}", std::process::id()));
        // mkdir and not "make if missing": somebody else's is not ours.
        match mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) => return Ok(path),
            Err(rustix::io::Errno::EXIST) if attempt < 1000 => attempt += 1,
            Err(errno) => return Err(Error::path("make directory", &path)(errno)),
        }
    }
}

/// Sets what clients in raw mode expect: line feeds come with carriage returns.
/// Runtimes switch that off; conmon switches it on.
pub(crate) fn configure(terminal: &OwnedFd) {
    let set = || {
        let mut modes = tcgetattr(terminal)?;
        modes.output_modes |= OutputModes::ONLCR;
        tcsetattr(terminal, OptionalActions::Now, &modes)
    };
    if let Err(errno) = set() {
        diag::warning!("set modes of the terminal: {errno}");
    }
}

/// Tells the terminal its size, and so the programs on it.
pub(crate) fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    if let Err(errno) = tcsetwinsize(terminal, size) {
        diag::warning!("resize the terminal: {errno}");
    }
}
