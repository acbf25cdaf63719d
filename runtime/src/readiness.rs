//! Readiness: passing on what a service says to systemd's `NOTIFY_SOCKET`.
//!
//! The host's socket cannot be bound into the container: systemd wants to hear from a process it knows. So a directory of
//! the container's state is bound at `/run/notify`; `start` or `run` listens there, and when the container has said
//! `READY=1` says so to the host, together with the process id that the host is to watch. See sd_notify(3) and
//! sd_notify_barrier(3).

use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

use crate::failure::{CallFailed, During};

/// Directory of the socket within a container's state.
const DIRECTORY: &str = "notify";
/// The socket in it.
const SOCKET: &str = "notify.sock";

/// Where the host wants to be told, if it does.
fn host_address() -> Option<String> {
    std::env::var("NOTIFY_SOCKET")
        .ok()
        .filter(|address| !address.is_empty())
}

/// The directory to bind into a container whose state is kept at `state`, if the host wants to be told.
pub(crate) fn directory(state: &Path) -> Option<PathBuf> {
    host_address().map(|_| state.join(DIRECTORY))
}

/// The directory that was bound into the container whose state is kept at `state`, if one was.
pub(crate) fn bound_directory(state: &Path) -> Option<PathBuf> {
    Some(state.join(DIRECTORY)).filter(|directory| directory.is_dir())
}

/// A socket at which the container reports, and the host's.
#[derive(Debug)]
pub(crate) struct Relay {
    inside: UnixDatagram,
    host: String,
}

impl Relay {
    /// Listens for a container whose state is kept at `state`. Before its process runs, so that nothing is missed.
    ///
    /// `None` when the host does not want to be told, or did not when the container was created.
    pub(crate) fn listen(state: &Path) -> Result<Option<Self>, CallFailed> {
        let directory = state.join(DIRECTORY);
        let Some(host) = host_address().filter(|_| directory.is_dir()) else {
            return Ok(None);
        };
        let path = directory.join(SOCKET);
        // For whoever the service runs as. A chmod by path could meet what somebody else has put there.
        let former = umask(Mode::empty());
        let inside = UnixDatagram::bind(&path);
        umask(former);
        let inside = inside.during("bind", &path)?;
        inside.set_nonblocking(true).during("fcntl", &path)?;
        Ok(Some(Self { inside, host }))
    }

    /// Readable when there is something to pass on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }

    /// Takes what was said; when the service is ready tells the host, and that `pid` is the process to watch. Gives the
    /// socket by which it did.
    pub(crate) fn pass_on(&self, pid: i32) -> Result<Option<UnixDatagram>, CallFailed> {
        let mut bytes = [0; 4096];
        while let Ok(length) = self.inside.recv(&mut bytes) {
            if bytes[..length]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"READY=1")
            {
                return self.tell_host(pid).map(Some);
            }
        }
        Ok(None)
    }

    /// Waits until the service is ready, and the host has heard of it, or its process has ended.
    pub(crate) fn wait(&self, pid: i32, pidfd: Option<BorrowedFd<'_>>) -> Result<(), CallFailed> {
        loop {
            let mut watched = vec![PollFd::new(&self.inside, PollFlags::IN)];
            watched.extend(
                pidfd
                    .as_ref()
                    .map(|pidfd| PollFd::new(pidfd, PollFlags::IN)),
            );
            match poll(&mut watched, None) {
                Err(Errno::INTR) => continue,
                other => other.during("poll", &self.host)?,
            };
            let ended = watched
                .get(1)
                .is_some_and(|pidfd| !pidfd.revents().is_empty());
            if let Some(told) = self.pass_on(pid)? {
                return barrier(&told).during("sendmsg", &self.host);
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Tells the host that the service is ready, and which process it is.
    fn tell_host(&self, pid: i32) -> Result<UnixDatagram, CallFailed> {
        let address = match self.host.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&self.host),
        };
        let address = address.during("connect", &self.host)?;
        let socket = UnixDatagram::unbound().during("socket", &self.host)?;
        socket
            .connect_addr(&address)
            .during("connect", &self.host)?;
        for message in ["READY=1\n".to_owned(), format!("MAINPID={pid}\n")] {
            socket
                .send(message.as_bytes())
                .during("sendto", &self.host)?;
        }
        Ok(socket)
    }
}

/// Waits until the host has read what it was sent: systemd looks its sender up, which must still be there then. The host
/// closes the descriptor it is handed here when it comes to it.
fn barrier(told: &UnixDatagram) -> Result<(), Errno> {
    /// As long as sd_notify_barrier(3) suggests; a host that does not know the message never closes it.
    const PATIENCE: Timespec = Timespec {
        tv_sec: 30,
        tv_nsec: 0,
    };
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    crate::console::send_descriptor(told, b"BARRIER=1", &theirs)?;
    drop(theirs);
    let wait = || {
        poll(
            &mut [PollFd::new(&ours, PollFlags::empty())],
            Some(&PATIENCE),
        )
    };
    if rustix::io::retry_on_intr(wait)? == 0 {
        log::warn!("Timeout after waiting 30s for barrier. Ignored.");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_told_and_waited_for() {
        let directory = std::env::temp_dir().join(format!("qrun-ready-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("host.sock");
        let host = UnixDatagram::bind(&path).unwrap();
        let relay = Relay {
            inside: UnixDatagram::bind(directory.join("inside.sock")).unwrap(),
            host: path.display().to_string(),
        };
        let service = UnixDatagram::unbound().unwrap();
        let say = |text: &[u8]| {
            service
                .send_to(text, directory.join("inside.sock"))
                .unwrap()
        };
        say(b"STATUS=busy");
        say(b"STATUS=done\nREADY=1");
        let reader = std::thread::spawn(move || {
            let mut heard = Vec::new();
            for _ in 0..3 {
                let mut bytes = [0; 64];
                let length = host.recv(&mut bytes).unwrap();
                heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
            // What was handed over with the last one was not taken, so it is closed.
            heard
        });
        relay.wait(7, None).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(
            reader.join().unwrap(),
            ["READY=1\n", "MAINPID=7\n", "BARRIER=1"]
        );
    }
}
