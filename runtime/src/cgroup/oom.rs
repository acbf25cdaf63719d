//! Hearing of it when the OOM killer strikes in a cgroup, and of the cgroup's end.
//!
//! v1 tells through an eventfd that is registered in `cgroup.event_control` (Documentation/admin-guide/cgroup-v1/memory.rst,
//! "OOM Control"), and once more when the cgroup is removed. On v2 `memory.events` and `cgroup.events` are watched by inotify.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, Error, Result, file};

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Somebody ran out of memory.
    OutOfMemory,
    /// The container's last process has ended, or its cgroup is gone.
    End,
    /// Something else that there need be no fuss about.
    Nothing,
}

/// A watch on a cgroup. Its descriptor becomes readable when there is something to hear.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: OwnedFd,
    directory: PathBuf,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    V1 {
        /// Kept open: the registration ends with it.
        _control: OwnedFd,
    },
    V2 {
        memory: i32,
    },
}

impl Watch {
    /// Starts to listen; `None` where there is no memory controller to hear it from.
    pub(crate) fn new(cgroup: &Cgroup) -> Result<Option<Self>> {
        let Some(directory) = cgroup.path("memory") else {
            return Ok(None);
        };
        match cgroup.is_pure_v2() {
            true => Self::v2(directory),
            false => Self::v1(directory).map(Some),
        }
    }

    fn v1(directory: &Path) -> Result<Self> {
        let path = directory.join("memory.oom_control");
        let open = rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let control = open.map_err(|source| Error::Open {
            path: path.clone(),
            source,
        })?;
        let fd =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|source| Error::Read { path, source })?;
        let line = format!("{} {} ", fd.as_raw_fd(), control.as_raw_fd());
        file::write(&directory.join("cgroup.event_control"), &line)?;
        let kind = Kind::V1 { _control: control };
        Ok(Self {
            fd,
            directory: directory.to_owned(),
            kind,
        })
    }

    fn v2(directory: &Path) -> Result<Option<Self>> {
        let events = directory.join("memory.events");
        let failed = |path: &Path, source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let fd = inotify::init(CreateFlags::CLOEXEC).map_err(|errno| failed(&events, errno))?;
        let memory = match inotify::add_watch(&fd, &events, WatchFlags::MODIFY) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(|errno| failed(&events, errno))?,
        };
        let populated = directory.join("cgroup.events");
        inotify::add_watch(&fd, &populated, WatchFlags::MODIFY)
            .map_err(|errno| failed(&populated, errno))?;
        let kind = Kind::V2 { memory };
        Ok(Some(Self {
            fd,
            directory: directory.to_owned(),
            kind,
        }))
    }

    /// What to poll for reading.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Takes up what there is to hear; the descriptor has to be readable.
    pub(crate) fn hear(&self) -> Result<Heard> {
        let lost = |source| Error::Read {
            path: self.directory.clone(),
            source,
        };
        let Kind::V2 { memory } = self.kind else {
            rustix::io::read(&self.fd, &mut [0; 8]).map_err(lost)?;
            return Ok(match self.directory.join("cgroup.event_control").exists() {
                true => Heard::OutOfMemory,
                false => Heard::End,
            });
        };
        // Events of watches on files have no names, so that some 250 of them fit.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut heard = Heard::Nothing;
        loop {
            let watch = reader.next().map_err(lost)?.wd();
            let figure = |name, key| {
                file::read_key(&self.directory.join(name), key)
                    .ok()
                    .flatten()
            };
            if watch == memory {
                if figure("memory.events", "oom_kill") != Some(0) {
                    heard = Heard::OutOfMemory;
                }
            } else if figure("cgroup.events", "populated").unwrap_or(0) == 0 {
                return Ok(Heard::End);
            }
            if reader.is_buffer_empty() {
                return Ok(heard);
            }
        }
    }
}
