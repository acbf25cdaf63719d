//! The foreground: waiting for a process while passing signals on to it, and its terminal's content both ways.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::failure::{CallFailed, During};
use crate::sys::process::{Child, inherited_fd};
use crate::sys::signal::{SignalSet, kill};

/// Signals held back until [`Foreground::wait_for`] deals with them.
#[derive(Debug)]
pub(crate) struct Foreground {
    held: SignalSet,
}

/// A terminal of which this process holds the master end.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    /// What the caller's terminal was set to.
    saved: Option<Termios>,
}

/// How many bytes are passed on at once.
const CHUNK: usize = 16 * 1024;

impl Foreground {
    /// Holds signals back from now on: before the process exists, so that none is lost.
    pub(crate) fn begin() -> Result<Self, CallFailed> {
        let mut held = SignalSet::full();
        // Faults of our own, and stopping by hand, keep their effect.
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTSTP] {
            held.remove(signal);
        }
        held.block().during("sigprocmask", "")?;
        Ok(Self { held })
    }

    /// Waits for the end of a child and passes every signal on to it until then; returns its exit code.
    pub(crate) fn wait_for(&self, child: &Child, terminal: Option<&Terminal>) -> Result<u8, CallFailed> {
        let code = match terminal {
            None => self.wait_without_terminal(child.pid),
            Some(terminal) => self.wait_with_terminal(child.pid, terminal),
        };
        if let Some(terminal) = terminal {
            terminal.restore();
        }
        code
    }

    /// Sleeps until a signal comes.
    fn wait_without_terminal(&self, pid: Pid) -> Result<u8, CallFailed> {
        loop {
            // The process may have ended before the signals were looked at.
            if let Some(code) = reap(pid)? {
                return Ok(code);
            }
            match self.held.wait(None) {
                Ok(signal) => pass_on(pid, signal, None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).during("sigtimedwait", ""),
            }
        }
    }

    /// Copies between the terminals, and looks for signals in between.
    fn wait_with_terminal(&self, pid: Pid, terminal: &Terminal) -> Result<u8, CallFailed> {
        let signals = self.held.descriptor().during("signalfd", "")?;
        let mut input_open = true;
        let mut ended = None;
        loop {
            let input = inherited_fd(0).ok().filter(|_| input_open && ended.is_none());
            let mut watched = vec![PollFd::new(&signals, PollFlags::IN), PollFd::new(&terminal.master, PollFlags::IN)];
            watched.extend(input.as_ref().map(|input| PollFd::new(input, PollFlags::IN)));
            match poll(&mut watched, None) {
                Err(Errno::INTR) => continue,
                other => other.during("poll", "terminal")?,
            };
            let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                while let Ok(signal) = self.held.wait(Some(0)) {
                    pass_on(pid, signal, Some(terminal));
                }
                ended = ended.or(reap(pid)?);
            }
            // What the process wrote before it ended is shown before we end.
            let drained = ready[1] && !terminal.copy_output();
            if let (Some(code), true) = (ended, drained || !ready[1]) {
                return Ok(code);
            }
            if drained {
                return self.wait_without_terminal(pid);
            }
            if ready.get(2) == Some(&true) {
                input_open = terminal.copy_input();
            }
        }
    }
}

impl Terminal {
    /// Takes the master end of a terminal; the caller's own, if there is one, stops interpreting what is typed.
    pub(crate) fn new(master: OwnedFd) -> Result<Self, CallFailed> {
        let mut terminal = Self { master, saved: None };
        terminal.resize();
        if let Ok(own) = inherited_fd(0)
            && isatty(own)
        {
            let modes = tcgetattr(own).during("tcgetattr", "stdin")?;
            let mut raw = modes.clone();
            raw.make_raw();
            tcsetattr(own, OptionalActions::Now, &raw).during("tcsetattr", "stdin")?;
            terminal.saved = Some(modes);
        }
        Ok(terminal)
    }

    /// Gives the caller's terminal its former settings.
    fn restore(&self) {
        if let (Some(modes), Ok(own)) = (&self.saved, inherited_fd(0)) {
            // A terminal that is gone needs none.
            let _ = tcsetattr(own, OptionalActions::Now, modes);
        }
    }

    /// Takes the size of the caller's terminal over.
    fn resize(&self) {
        if let Ok(own) = inherited_fd(0)
            && let Ok(size) = tcgetwinsize(own)
        {
            // The process may be gone; then its terminal needs no size.
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Passes on what the process wrote; false at its end.
    fn copy_output(&self) -> bool {
        let Ok(output) = inherited_fd(1) else { return false };
        copy(&self.master, output)
    }

    /// Passes on what was typed; false at its end.
    fn copy_input(&self) -> bool {
        let Ok(input) = inherited_fd(0) else { return false };
        copy(input, &self.master)
    }
}

/// Copies what is there to be read; false at the end of either side.
fn copy(from: impl AsFd, to: impl AsFd) -> bool {
    let mut bytes = [0; CHUNK];
    let length = match rustix::io::read(from, &mut bytes) {
        Ok(0) => return false,
        Ok(length) => length,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        // EIO: the last process with the other end open has closed it.
        Err(_) => return false,
    };
    let mut left = &bytes[..length];
    while !left.is_empty() {
        match rustix::io::write(&to, left) {
            Ok(written) => left = &left[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                // An interrupted wait is followed by another try.
                let _ = poll(&mut [PollFd::new(&to, PollFlags::OUT)], None);
            }
            Err(_) => return false,
        }
    }
    true
}

/// Passes a signal on; a change of the window's size changes the process's terminal instead.
fn pass_on(pid: Pid, signal: i32, terminal: Option<&Terminal>) {
    match signal {
        libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG => {}
        libc::SIGWINCH if terminal.is_some() => {
            if let Some(terminal) = terminal {
                terminal.resize();
            }
        }
        // The process may have ended; its end is noticed by itself.
        other => {
            let _ = kill(pid, other);
        }
    }
}

/// Reaps children that have ended, and says how the one that matters did.
///
/// There are others when this process is the reaper of a container without a pid namespace of its own.
fn reap(pid: Pid) -> Result<Option<u8>, CallFailed> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if ended == pid => return Ok(Some(exit_code(status))),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(errno) => return Err(errno).during("wait", pid.as_raw_nonzero().to_string()),
        }
    }
}

/// The exit code for how a process ended, as a shell has it.
fn exit_code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code & 0xff).unwrap_or(255)
}
