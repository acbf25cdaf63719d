//! The processes of a cgroup: who they are, putting one in, and killing all.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::{Error, Result, file, freezer};

/// How long killing may take before it is given up: a task in uninterruptible sleep dies only when that ends.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to freeze a cgroup before its processes are killed all the same.
const FREEZE_PATIENCE: Duration = Duration::from_millis(500);

/// Puts a process into a cgroup.
pub(super) fn join(directory: &Path, pid: Pid) -> Result<()> {
    let path = directory.join("cgroup.procs");
    let value = pid.as_raw_nonzero().to_string();
    for _ in 0..5 {
        match file::write_raw(&path, &value) {
            // A task that clone has not finished with yet (TASK_NEW).
            Err(Errno::INVAL) => std::thread::sleep(Duration::from_millis(30)),
            result => {
                return result.map_err(|source| Error::Write {
                    path,
                    value,
                    source,
                });
            }
        }
    }
    Err(Error::Write {
        path,
        value,
        source: Errno::INVAL,
    })
}

/// Every process in a cgroup and its child cgroups. A cgroup that is gone has none.
pub(super) fn pids(directory: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    collect(directory, &mut found)?;
    Ok(found)
}

fn collect(directory: &Path, found: &mut Vec<Pid>) -> Result<()> {
    let path = directory.join("cgroup.procs");
    let content = match file::read_raw(&path) {
        // A threaded cgroup does not show processes.
        Err(Errno::OPNOTSUPP) => file::read_raw(&directory.join("cgroup.threads")),
        result => result,
    };
    let gone = |errno| matches!(errno, Errno::NOENT | Errno::NODEV);
    match content {
        Ok(content) => found.extend(
            content
                .lines()
                .filter_map(|line| Pid::from_raw(line.parse().ok()?)),
        ),
        Err(errno) if gone(errno) => return Ok(()),
        Err(source) => return Err(Error::Read { path, source }),
    }
    match file::children(directory) {
        Ok(children) => children.iter().try_for_each(|child| collect(child, found)),
        Err(errno) if gone(errno) => Ok(()),
        Err(source) => Err(Error::Read {
            path: directory.to_owned(),
            source,
        }),
    }
}

/// Sends a signal to all of them, once.
pub(super) fn signal(directory: &Path, signal: Signal) -> Result<()> {
    for pid in pids(directory)? {
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(source) => {
                return Err(Error::Kill {
                    pid: pid.as_raw_nonzero().get(),
                    source,
                });
            }
        }
    }
    Ok(())
}

/// Kills all of them and waits until they are gone, on v2.
pub(super) fn kill_v2(directory: &Path) -> Result<()> {
    match file::write_raw(&directory.join("cgroup.kill"), "1") {
        Ok(()) => {}
        // Before Linux 5.14, or a threaded cgroup; or gone.
        Err(Errno::NOENT | Errno::OPNOTSUPP) => {
            return kill_each(directory, Some((directory, true)));
        }
        Err(Errno::NODEV) => return Ok(()),
        Err(source) => {
            return Err(Error::Write {
                path: directory.join("cgroup.kill"),
                value: "1".to_owned(),
                source,
            });
        }
    }
    match freezer::wait_for_event(directory, "populated 0", PATIENCE) {
        Err(Error::Read {
            source: Errno::NOENT | Errno::NODEV,
            ..
        }) => Ok(()),
        result => result,
    }
}

/// Freezes a cgroup so that no process can fork away, kills each, and lets them die; until none is left.
///
/// Takes the directory whose processes are meant, and the one that freezing acts on with whether it is a v2 one.
pub(super) fn kill_each(members: &Path, freezer: Option<(&Path, bool)>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    loop {
        let left = pids(members)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Error::StillAlive {
                path: members.to_owned(),
                pids: left.iter().map(|pid| pid.as_raw_nonzero().get()).collect(),
            });
        }
        // A cgroup that will not freeze is killed all the same; it only may take more rounds.
        if let Some((directory, v2)) = freezer
            && left.len() > 1
        {
            let _ = freezer::freeze(directory, v2, FREEZE_PATIENCE);
        }
        let killed = signal(members, Signal::KILL);
        if let Some((directory, v2)) = freezer {
            // Also what was frozen before: a frozen v1 task does not die.
            match freezer::thaw(directory, v2) {
                Err(Error::Write {
                    source: Errno::NOENT | Errno::NODEV,
                    ..
                })
                | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        killed?;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
