//! Hearing of it when the OOM killer strikes in a cgroup, and of the cgroup's end.
//!
//! v1 tells through an eventfd that is registered in `cgroup.event_control` (Documentation/admin-guide/cgroup-v1/memory.rst,
//! "OOM Control"), and once more when the cgroup is removed. On v2 `memory.events` and `cgroup.events` are watched by inotify.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, Error, Result, file};

/// What was heard: any of it, or something else that there need be no fuss about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Somebody ran out of memory, since it was last heard of.
    pub(crate) out_of_memory: bool,
    /// The container's last process has ended, or its cgroup is gone.
    pub(crate) end: bool,
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
        /// The watch on `memory.events`.
        memory: i32,
        /// How many processes had been killed when it was last heard.
        killed: u64,
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
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|errno| failed(&events, errno))?;
        let memory = match inotify::add_watch(&fd, &events, WatchFlags::MODIFY) {
            Err(Errno::NOENT) => return Ok(None),
            result => result.map_err(|errno| failed(&events, errno))?,
        };
        let populated = directory.join("cgroup.events");
        inotify::add_watch(&fd, &populated, WatchFlags::MODIFY)
            .map_err(|errno| failed(&populated, errno))?;
        // Once it is watched, so that no later one is passed over.
        let killed = killed(directory).unwrap_or(0);
        let kind = Kind::V2 { memory, killed };
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
    pub(crate) fn hear(&mut self) -> Result<Heard> {
        let lost = |source| Error::Read {
            path: self.directory.clone(),
            source,
        };
        let Kind::V2 {
            memory,
            killed: before,
        } = &mut self.kind
        else {
            let mut count = [0; size_of::<u64>()];
            rustix::io::read(&self.fd, &mut count).map_err(lost)?;
            let end = !self.directory.join("cgroup.event_control").exists();
            // The end counts as one.
            let out_of_memory = u64::from_ne_bytes(count) > u64::from(end);
            return Ok(Heard { out_of_memory, end });
        };
        // Events of watches on files have no names, so that some 250 of them fit.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut told = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    told |= event.wd() == *memory && event.events().contains(ReadFlags::MODIFY);
                }
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(lost(errno)),
            }
        }
        // Both whatever was told of: the kernel holds back what comes soon after another event of the same file.
        let now = killed(&self.directory);
        let populated = figure(&self.directory, "cgroup.events", "populated");
        let heard = Heard {
            // Of a cgroup that is gone already the worst is taken to be true, as with runc.
            out_of_memory: now.map_or(told, |now| now > *before),
            end: populated.unwrap_or(0) == 0,
        };
        *before = now.unwrap_or(*before);
        Ok(heard)
    }
}

/// How many processes of a v2 cgroup the OOM killer has ended.
fn killed(directory: &Path) -> Option<u64> {
    figure(directory, "memory.events", "oom_kill")
}

/// A figure of a file with several; none when the cgroup is gone.
fn figure(directory: &Path, file: &str, key: &str) -> Option<u64> {
    file::read_key(&directory.join(file), key).ok().flatten()
}
