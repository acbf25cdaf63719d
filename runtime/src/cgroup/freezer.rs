//! Freezing and thawing, on v1 by the `freezer` controller's state file, on v2 by `cgroup.freeze`.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Error, Result, file};

/// How long freezing may take: a task in uninterruptible sleep holds it up, and must not hold up its caller for ever.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Stops every process in a cgroup; returns when all have stopped.
pub(super) fn freeze(directory: &Path, v2: bool, patience: Duration) -> Result<()> {
    let result = if v2 {
        freeze_v2(directory, patience)
    } else {
        freeze_v1(directory, patience)
    };
    if result.is_err() {
        // Half frozen is worse than not frozen.
        let _ = thaw(directory, v2);
    }
    result
}

/// Lets them run again.
pub(super) fn thaw(directory: &Path, v2: bool) -> Result<()> {
    match v2 {
        true => file::write(&directory.join("cgroup.freeze"), "0"),
        false => file::write(&directory.join("freezer.state"), "THAWED"),
    }
}

/// Whether a cgroup was frozen itself, not just one above it. A missing one is not.
pub(super) fn is_frozen(directory: &Path, v2: bool) -> Result<bool> {
    let path = directory.join(if v2 { "cgroup.freeze" } else { "freezer.state" });
    let state = match file::read_raw(&path) {
        // Gone, going, or a kernel without the file.
        Err(Errno::NOENT | Errno::NODEV) => return Ok(false),
        result => result.map_err(|source| Error::Read { path, source })?,
    };
    if v2 {
        return Ok(state.trim() == "1");
    }
    // Most are thawed, and then the second file need not be read.
    Ok(state.trim() != "THAWED"
        && file::read_raw(&directory.join("freezer.self_freezing"))
            .map_or(true, |own| own.trim() == "1"))
}

fn freeze_v2(directory: &Path, patience: Duration) -> Result<()> {
    file::write(&directory.join("cgroup.freeze"), "1")?;
    wait_for_event(directory, "frozen 1", patience)
}

/// Waits until a line of `cgroup.events` appears. The file is polled for, as cgroup-v2.rst says, with POLLPRI.
pub(super) fn wait_for_event(directory: &Path, line: &str, patience: Duration) -> Result<()> {
    let path = directory.join("cgroup.events");
    let failed = |source| Error::Read {
        path: path.clone(),
        source,
    };
    let events = rustix::fs::openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(failed)?;
    let end = Instant::now() + patience;
    loop {
        let mut content = [0; 256];
        let length = rustix::io::pread(&events, &mut content, 0).map_err(failed)?;
        if content[..length]
            .split(|byte| *byte == b'\n')
            .any(|found| found == line.as_bytes())
        {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout {
                path: directory.to_owned(),
                event: line.to_owned(),
            });
        }
        let timeout = Timespec::try_from(left).map_err(|_| failed(Errno::INVAL))?;
        let mut poll = [PollFd::new(&events, PollFlags::PRI)];
        match rustix::event::poll(&mut poll, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// v1 does not stop tasks that come into being while it freezes, so the state is written again until it holds, with a
/// thaw now and then so that forks under way can finish (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
fn freeze_v1(directory: &Path, patience: Duration) -> Result<()> {
    let path = directory.join("freezer.state");
    let end = Instant::now() + patience;
    let mut round = 0u32;
    loop {
        file::write(&path, "FROZEN")?;
        if file::read(&path)?.trim() == "FROZEN" {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Error::Timeout {
                path: directory.to_owned(),
                event: "FROZEN".to_owned(),
            });
        }
        round += 1;
        if round.is_multiple_of(50) {
            file::write(&path, "THAWED")?;
            std::thread::sleep(Duration::from_millis(10));
        } else {
            std::thread::sleep(Duration::from_micros(20 * u64::from(round.min(50))));
        }
    }
}
