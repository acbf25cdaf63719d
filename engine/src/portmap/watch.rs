//! inotify: waits until something in watched directories has changed.

use std::io;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe::Receiver;

use super::{KernelContext, Result};

/// What is told of a directory, beside its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// Directories made and removed in it.
    Directories,
    /// Files replaced (which is how every file of the store is written) and removed in it.
    Files,
}

/// A set of watched directories.
#[derive(Debug)]
pub(super) struct Watch {
    /// Read like a pipe, which is the safe way to have it in the event loop.
    queue: Receiver,
}

impl Watch {
    /// Watches nothing yet.
    pub(super) fn new() -> Result<Watch> {
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(Receiver::from_owned_fd_unchecked)
            .kernel("watch", "the store")?;
        Ok(Watch { queue })
    }

    /// Watches a directory. Fine when it is watched already; `false` when it is not there.
    pub(super) fn add(&self, directory: &Path, changes: Changes) -> Result<bool> {
        let kind = match changes {
            Changes::Directories => WatchFlags::CREATE | WatchFlags::MOVED_FROM,
            Changes::Files => WatchFlags::MOVED_FROM,
        };
        let events = kind
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.queue, directory, events) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno).kernel("watch", directory),
        }
    }

    /// Waits for a change. What has changed is not told: whoever asked looks at everything again, which also covers a
    /// queue that has run over.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        let mut seen = false;
        while !seen {
            self.queue.readable().await?;
            loop {
                match self.queue.try_read(&mut events) {
                    Ok(count) => seen |= count > 0,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}
