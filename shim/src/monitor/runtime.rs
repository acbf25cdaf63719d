//! The part of the monitor that deals with the runtime: starting it, and
//! finding out what came of it.

use std::path::Path;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::token::Token;
use super::{Monitor, Phase};
use crate::console::ConsoleSocket;
use crate::diag;
use crate::error::Error;
use crate::log::Stream;
use crate::oom::OomWatch;
use crate::plan::{Detach, StdioKind};
use crate::process::{self, ExitStatus};
use crate::stdio::{self, Chunk};

/// Most bytes of the runtime's stderr held back. More is not an error message
/// any more, and goes where output goes.
const HELD: usize = 64 * 1024;

/// `oom_score_adj` of a process that is killed last of all.
const PROTECTED: &str = "-1000";

impl Monitor {
    /// Starts the runtime.
    pub(super) fn start_runtime(&mut self) -> Result<(), Error> {
        let console = self.console.as_ref().map(ConsoleSocket::argument);
        let words = self.plan.runtime_command(console);
        let Some(streams) = self.streams.take() else {
            return Ok(());
        };
        let passthrough = self.plan.stdio == StdioKind::Passthrough;
        if !passthrough {
            stdio::disconnect()?;
        }
        if self.closes_early() {
            self.inherited.close();
        }
        diag::debug!("runtime: {words:?}");
        let pid = process::start_runtime(&words, &streams, self.plan.replace_listen_pid)?;
        self.phase = Phase::Creating(pid);
        drop(streams);
        // All of this after the start, because the runtime, and through it the
        // container, would inherit it.
        if passthrough {
            stdio::disconnect()?;
        }
        if self.plan.detach == Detach::NoDaemon {
            self.inherited.close();
            // Before the caller hears of the container, and may end. conmon's callers see to it themselves.
            process::leave_cgroup();
        }
        self.oom_score = protect_from_oom();
        // Keeps no file system busy.
        std::env::set_current_dir("/").map_err(Error::call("chdir to /"))
    }

    /// The caller of an attached exec session has attached, or is gone.
    pub(super) fn started_by_caller(&mut self) -> Result<(), Error> {
        self.start = None;
        if self.phase == Phase::Waiting {
            self.start_runtime()?;
        }
        Ok(())
    }

    /// Keeps stderr of the runtime, the first `count` bytes of the buffer.
    pub(super) fn hold(&mut self, count: usize) {
        if self.held.len() + count > HELD {
            // A runtime that says this much must not block on us, and what it
            // says must not be lost.
            self.release();
        }
        self.held.extend_from_slice(&self.buffer[..count]);
    }

    /// Passes on what was held back.
    fn release(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() {
            return;
        }
        self.logs.write(Stream::Stderr, &held);
        if let Some(attach) = &mut self.attach {
            attach.broadcast(Stream::Stderr, &held, Instant::now());
        }
    }

    /// The runtime has done its work, or failed to.
    pub(super) fn runtime_ended(&mut self, status: ExitStatus) -> Result<(), Error> {
        // The terminal was sent before the end, but perhaps not yet received.
        self.phase = Phase::Waiting;
        self.receive_terminal()?;
        if status != ExitStatus(0) {
            return Err(Error::Runtime(self.complaint(status)));
        }
        let pid = process::read_pidfile(&self.plan.container_pidfile)?;
        if self.console.take().is_some() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            return Err(Error::Runtime(
                "the runtime did not set up a terminal".into(),
            ));
        }
        // What a quick process wrote to its stdout comes before what it wrote to its stderr, which
        // was held back: more likely its order than the other way round. Not after the message,
        // for its reader may attach and must miss nothing.
        self.pump(Stream::Stdout);
        if let Some(sync) = &mut self.sync {
            sync.started(pid.as_raw_nonzero().get());
        }
        diag::info!("the container's pid is {}", pid.as_raw_nonzero());
        self.phase = Phase::Running(pid);
        self.deadline = self.plan.timeout.map(|timeout| Instant::now() + timeout);
        self.release();
        let early = std::mem::take(&mut self.early);
        if let Some((_, status)) = early.iter().find(|(child, _)| *child == pid) {
            self.container_ended(*status);
            return Ok(());
        }
        self.watch_container(pid)
    }

    /// Watches what can only be watched now that the container is there.
    fn watch_container(&mut self, pid: rustix::process::Pid) -> Result<(), Error> {
        let places = [&self.plan.persist_dir, &self.plan.bundle];
        let places = places.into_iter().flatten().cloned().collect();
        self.oom = OomWatch::new(&process::cgroups_of(pid), places);
        if let Some(oom) = &self.oom {
            self.poller
                .add(oom.fd(), Token::Oom, EventFlags::IN)
                .map_err(Error::call("watch for out of memory"))?;
        }
        // A runtime that is not what started the container (but asked systemd
        // to, say) leaves us without a child to wait for.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), options).is_ok() {
            return Ok(());
        }
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => {
                self.poller
                    .add(&fd, Token::Container, EventFlags::IN)
                    .map_err(Error::call("watch the container's pidfd"))?;
                self.foreign = Some(fd);
            }
            Err(errno) => {
                diag::warning!("pidfd_open({}): {errno}", pid.as_raw_nonzero());
                self.container_ended(ExitStatus(-1));
            }
        }
        Ok(())
    }

    /// Why the runtime failed: in its own words, from stderr or from its log.
    fn complaint(&mut self, status: ExitStatus) -> String {
        if let Some(stderr) = &mut self.stdio.stderr {
            while let Chunk::Data(count) = stderr.read(&mut self.buffer) {
                self.held.extend_from_slice(&self.buffer[..count]);
                if self.held.len() > HELD {
                    break;
                }
            }
        }
        let stderr = String::from_utf8_lossy(&self.held).trim().to_owned();
        if !stderr.is_empty() {
            return stderr;
        }
        let logged = runtime_log(&self.plan.runtime)
            .and_then(|path| std::fs::read_to_string(path).ok())
            .and_then(|text| last_error(&text));
        logged.unwrap_or_else(|| {
            let runtime = self.plan.runtime.first().map(Path::new);
            let runtime = runtime.unwrap_or(Path::new("runtime")).display();
            format!("{runtime} ended with status {} and said nothing", status.0)
        })
    }
}

/// The file that the runtime was told to log to.
fn runtime_log(words: &[std::ffi::OsString]) -> Option<std::path::PathBuf> {
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        if word == "--log" {
            return words.next().map(Into::into);
        }
        if let Some(path) = word.to_str().and_then(|word| word.strip_prefix("--log=")) {
            return Some(path.into());
        }
    }
    None
}

/// The message of the last error in a runtime's log: JSON lines, or any text.
pub(crate) fn last_error(text: &str) -> Option<String> {
    let last = text.lines().rev().find(|line| {
        !line.trim().is_empty()
            && !line.contains("\"level\":\"debug\"")
            && !line.contains("\"level\":\"info\"")
    })?;
    let message = serde_json::from_str::<serde_json::Value>(last)
        .ok()
        .and_then(|entry| entry.get("msg")?.as_str().map(str::to_owned));
    Some(message.unwrap_or_else(|| last.to_owned()))
}

/// Makes the kernel kill anything but us when memory runs out, and returns the
/// old value. Needs a privilege that not every caller has.
fn protect_from_oom() -> Option<String> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let old = std::fs::read_to_string(FILE).ok()?;
    if let Err(error) = std::fs::write(FILE, PROTECTED) {
        diag::debug!("write {FILE}: {error}");
        return None;
    }
    Some(old)
}

/// Undoes [`protect_from_oom`], for what we start.
pub(super) fn unprotect_from_oom(old: Option<&str>) {
    if let Some(old) = old {
        // Raising the value is always allowed.
        let _ = std::fs::write("/proc/self/oom_score_adj", old.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_found_in_logs() {
        let json = "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"no \\\"x\\\"\"}\n\
                    {\"level\":\"debug\",\"msg\":\"done\"}\n";
        assert_eq!(last_error(json).as_deref(), Some("no \"x\""));
        assert_eq!(
            last_error("plain words\n\n").as_deref(),
            Some("plain words")
        );
        assert_eq!(last_error("\n"), None);
    }

    #[test]
    fn log_arguments() {
        let find = |line: &str| {
            let words: Vec<_> = line.split(' ').map(Into::into).collect();
            runtime_log(&words)
        };
        assert_eq!(find("runc --log /a --debug"), Some("/a".into()));
        assert_eq!(find("runc --log-format=json --log=/b"), Some("/b".into()));
        assert_eq!(find("runc --log-format json"), None);
    }
}
