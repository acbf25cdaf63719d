//! Notices that the kernel killed something in the container for memory, and
//! leaves a file `oom` in the bundle and the persistent directory.
//!
//! cgroup v1: an eventfd on `memory.oom_control`. cgroup v2: inotify on
//! `memory.events`. Both are looked at once more at the container's end, since
//! the notification may come later than the end.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{Mode, OFlags, open, statfs};

use crate::diag;

const ROOT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC` of statfs(2).
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// A watch over one container's memory.
#[derive(Debug)]
pub(crate) struct OomWatch {
    fd: OwnedFd,
    /// The file with the counters.
    counters: PathBuf,
    /// v1: kept open as long as the eventfd is to be told.
    _control: Option<OwnedFd>,
    /// Where `oom` is written.
    places: Vec<PathBuf>,
    written: bool,
}

impl OomWatch {
    /// Watches the memory cgroup of a process, of the list of its cgroups. `None` where there is no such cgroup.
    pub(crate) fn new(cgroups: &str, places: Vec<PathBuf>) -> Option<Self> {
        let unified = statfs(ROOT).is_ok_and(|stat| stat.f_type == CGROUP2_MAGIC);
        let path = memory_cgroup(cgroups, unified)?;
        if path == "/" {
            // The whole machine's events would not be the container's.
            return None;
        }
        let watched = if unified {
            watch_events(Path::new(&format!("{ROOT}{path}/memory.events")))
        } else {
            watch_control(Path::new(&format!("{ROOT}/memory{path}")))
        };
        match watched {
            Ok((fd, counters, control)) => Some(Self {
                fd,
                counters,
                _control: control,
                places,
                written: false,
            }),
            Err(error) => {
                diag::debug!("no out-of-memory notifications for {path}: {error}");
                None
            }
        }
    }

    /// The descriptor to watch.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether something was killed for memory.
    pub(crate) fn happened(&self) -> bool {
        self.written
    }

    /// Takes a notification. `false`: no more will come.
    pub(crate) fn notified(&mut self) -> bool {
        let mut buffer = [0_u8; 4096];
        let _ = rustix::io::read(&self.fd, &mut buffer);
        match std::fs::read_to_string(&self.counters) {
            Ok(text) => {
                // A v1 notification precedes the kill and its counter.
                if kills(&text) > 0 || field(&text, "oom_kill_disable") == Some(0) {
                    self.write();
                }
                true
            }
            // The cgroup's removal is notified as well.
            Err(_) => false,
        }
    }

    /// Looks at the counters a last time.
    pub(crate) fn finish(&mut self) {
        if std::fs::read_to_string(&self.counters).is_ok_and(|text| kills(&text) > 0) {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.written {
            return;
        }
        diag::info!("the container ran out of memory");
        self.written = true;
        for place in &self.places {
            let path = place.join("oom");
            if let Err(error) = std::fs::write(&path, b"") {
                diag::warning!("write {}: {error}", path.display());
            }
        }
    }
}

type Watched = (OwnedFd, PathBuf, Option<OwnedFd>);

fn watch_events(events: &Path) -> std::io::Result<Watched> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&fd, events, WatchFlags::MODIFY)?;
    Ok((fd, events.to_owned(), None))
}

fn watch_control(cgroup: &Path) -> std::io::Result<Watched> {
    use std::os::fd::AsRawFd;
    let counters = cgroup.join("memory.oom_control");
    let control = open(&counters, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let request = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
    // Never created: a missing file must not become an ordinary one.
    let event_control = open(
        cgroup.join("cgroup.event_control"),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(&event_control, request.as_bytes())?;
    Ok((fd, counters, Some(control)))
}

/// Finds the memory controller's cgroup in the text of `/proc/PID/cgroup`.
fn memory_cgroup(list: &str, unified: bool) -> Option<String> {
    list.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = if unified {
            number == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|name| name == "memory")
        };
        found.then(|| path.to_owned())
    })
}

/// Processes killed, of either version's counters.
fn kills(text: &str) -> u64 {
    field(text, "oom_kill").unwrap_or(0)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found() {
        let hybrid = "5:freezer:/a\n4:cpu,memory:/m/x:y\n0::/u\n";
        assert_eq!(memory_cgroup(hybrid, false).as_deref(), Some("/m/x:y"));
        assert_eq!(memory_cgroup(hybrid, true).as_deref(), Some("/u"));
        assert_eq!(memory_cgroup("0::/u\n", false), None);
        assert_eq!(memory_cgroup("", true), None);
    }

    #[test]
    fn counters_are_read() {
        let v1 = "oom_kill_disable 0\nunder_oom 1\noom_kill 3\n";
        assert_eq!(kills(v1), 3);
        assert_eq!(field(v1, "oom_kill_disable"), Some(0));
        let v2 = "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(kills(v2), 1);
        assert_eq!(field(v2, "oom_kill_disable"), None);
        assert_eq!(kills(""), 0);
    }
}
