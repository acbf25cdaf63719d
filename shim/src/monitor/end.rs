//! After the container: the rest of its output, the exit code, the exit command.
//!
//! The order is a promise to those who wait: when the exit code can be read,
//! all output is in the log and the sockets are free for another monitor of
//! the same container; when the exit command runs, all of that is on disk.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::WaitOptions;

use super::runtime::unprotect_from_oom;
use super::{Monitor, Phase};
use crate::attach::Attach;
use crate::diag;
use crate::error::Error;
use crate::exit::{self, Unpublished};
use crate::log::Stream;
use crate::process::ExitStatus;
use crate::stdio::Chunk;

/// Most bytes taken from a terminal after the end; pipes tell how much they have.
const TERMINAL_REST: u64 = 1024 * 1024;

/// How often clients and the exit command are looked after.
const TICK: Duration = Duration::from_millis(20);

/// The same when that has lasted for so long that a pager may be behind it.
const LONG_TICK: Duration = Duration::from_millis(100);

/// How long it lasts before that is supposed.
const IMPATIENT: Duration = Duration::from_secs(5);

/// Longest time that clients get to take what waits for them, however slowly,
/// unless they are waited for.
const FAREWELL: Duration = Duration::from_secs(120);

impl Monitor {
    /// Winds up, and returns the exit code.
    pub(super) fn end(mut self, status: ExitStatus) -> i32 {
        if let Some(oom) = &mut self.oom {
            oom.finish();
        }
        if let Some(attach) = &mut self.attach {
            // Whoever connected before the end gets the rest of the output.
            attach.accept(&self.poller, Instant::now());
        }
        self.drain(Stream::Stdout);
        self.drain(Stream::Stderr);
        self.logs.finish();
        self.close_doors();
        let (code, message) = if self.timed_out {
            (-1, Some("command timed out"))
        } else {
            (status.0, None)
        };
        let mut unpublished = Unpublished::new(&self.plan, code);
        unpublished.publish();
        if let Some(sync) = &mut self.sync {
            sync.exited(code, message);
        }
        self.close_finished_clients();
        unpublished.sync();
        if self.plan.sync_logs {
            self.logs.sync();
        }
        self.wind_down();
        unpublished.insist();
        code
    }

    /// Undoes everything after a failure. If the caller was told of a container
    /// before, its end is returned, which has to be told as well.
    pub(super) fn abandon(&mut self, error: &Error) -> Option<ExitStatus> {
        let told = matches!(self.phase, Phase::Running(_));
        let mut status = None;
        if let Phase::Creating(pid) | Phase::Running(pid) = self.phase {
            // Left alone, it would run without anybody who knows of it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            let end = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            status = end.ok().flatten().and_then(|(_, end)| ExitStatus::of(end));
        }
        if told {
            diag::error!("{}", error.chain());
            return Some(status.unwrap_or(ExitStatus(-1)));
        }
        self.close_doors();
        if let Some(sync) = &mut self.sync {
            sync.failure(&error.chain());
        }
        None
    }

    /// Reads what a stream still has. Somebody else may have it open, and may
    /// even write to it without end: what was there at the end is all we take.
    fn drain(&mut self, stream: Stream) {
        let mut left = None;
        loop {
            let output = match stream {
                Stream::Stdout => &mut self.stdio.stdout,
                Stream::Stderr => &mut self.stdio.stderr,
            };
            let Some(output) = output else { return };
            let rest = left.unwrap_or_else(|| {
                if output.may_come_back() {
                    TERMINAL_REST
                } else {
                    output.waiting()
                }
            });
            let most = self
                .buffer
                .len()
                .min(usize::try_from(rest).unwrap_or(usize::MAX));
            if most == 0 {
                return;
            }
            match output.read(&mut self.buffer[..most]) {
                Chunk::Data(count) => {
                    left = Some(rest - count as u64);
                    self.deliver(stream, count);
                }
                Chunk::Nothing | Chunk::End => return,
            }
        }
    }

    /// Removes sockets, fifos and links, and closes what the caller left open
    /// (podman's reserved ports among it).
    fn close_doors(&mut self) {
        if let Some(attach) = &mut self.attach {
            attach.stop_listening();
        }
        self.control = None;
        self.window_size = None;
        self.notify = None;
        self.console = None;
        self.stdio.stdin = None;
        self.inherited.close();
    }

    /// Whether no client is left.
    fn close_finished_clients(&mut self) -> bool {
        self.attach
            .as_mut()
            .is_none_or(|attach| attach.close_finished(Instant::now()))
    }

    /// Whether a client is left that gets all the time it wants.
    fn waits_for_a_client(&self) -> bool {
        self.attach.as_ref().is_some_and(Attach::waits)
    }

    /// Runs the exit command, and lets clients take their rest meanwhile.
    fn wind_down(&mut self) {
        let begin = Instant::now();
        let mut command = self.plan.exit_command.take();
        let mut running = None;
        let mut clients_done = false;
        unprotect_from_oom(self.oom_score.as_deref());
        loop {
            if let Some(due) = command.take_if(|command| begin.elapsed() >= command.delay) {
                match exit::start_command(&due) {
                    Ok(pid) => running = Some(pid),
                    Err(error) => diag::error!("{}", error.chain()),
                }
            }
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if running == Some(pid) {
                    running = None;
                    if let Some(ExitStatus(code @ 1..)) = ExitStatus::of(status) {
                        diag::warning!("the exit command ended with status {code}");
                    }
                }
            }
            let elapsed = begin.elapsed();
            clients_done |=
                self.close_finished_clients() || elapsed >= FAREWELL && !self.waits_for_a_client();
            if command.is_none() && running.is_none() && clients_done {
                return;
            }
            let tick = if elapsed < IMPATIENT { TICK } else { LONG_TICK };
            self.rest((command.is_some() || !clients_done).then_some(tick));
        }
    }

    /// Waits for a signal, of which the end of a child is one.
    fn rest(&self, longest: Option<Duration>) {
        // Not through the loop's epoll instance: clients and streams in it have
        // things to report that nobody handles any more.
        let timeout = longest.map(|longest| Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(longest.subsec_nanos()),
        });
        let mut signals = [PollFd::new(&self.signals, PollFlags::IN)];
        // An error makes one turn of the caller's loop quicker, no more.
        let _ = poll(&mut signals, timeout.as_ref());
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }
}
