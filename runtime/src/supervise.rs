//! The foreground: waiting for a process while passing signals on to it, and its terminal's content both ways.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use rustix::termios::{
    OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::failure::{CallFailed, During};
use crate::readiness::Relay;
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
        for signal in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGABRT,
            libc::SIGTSTP,
        ] {
            held.remove(signal);
        }
        held.block().during("sigprocmask", "")?;
        Ok(Self { held })
    }

    /// Waits for the end of a child and passes every signal on to it until then; returns its exit code.
    pub(crate) fn wait_for(
        &self,
        child: &Child,
        terminal: Option<&Terminal>,
        relay: Option<&Relay>,
    ) -> Result<u8, CallFailed> {
        match (terminal, relay) {
            (None, None) => self.wait_for_signals(child.pid),
            _ => self.wait_for_descriptors(child.pid, terminal, relay),
        }
    }

    /// Sleeps until a signal comes.
    fn wait_for_signals(&self, pid: Pid) -> Result<u8, CallFailed> {
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

    /// Copies between the terminals, passes readiness on, and looks for signals in between.
    fn wait_for_descriptors(
        &self,
        pid: Pid,
        terminal: Option<&Terminal>,
        relay: Option<&Relay>,
    ) -> Result<u8, CallFailed> {
        let signals = self.held.descriptor().during("signalfd", "")?;
        let mut open = Open {
            terminal,
            relay,
            input: terminal.is_some(),
            pending: Vec::new(),
        };
        let mut ended = None;
        loop {
            let ready = open.wait(&signals)?;
            if ready.signal {
                while let Ok(signal) = self.held.wait(Some(0)) {
                    // Once it has been waited for, its id may be another process's.
                    if ended.is_none() {
                        pass_on(pid, signal, terminal);
                    }
                }
                if ended.is_none() {
                    ended = reap(pid)?;
                }
            }
            if ready.relay
                && open
                    .relay
                    // The host watches this process, which ends as the container does.
                    .is_some_and(|relay| !matches!(relay.pass_on(own_pid()), Ok(None)))
            {
                open.relay = None;
            }
            if ready.input {
                open.input = Terminal::read_input(&mut open.pending);
            }
            if let Some(terminal) = open.terminal {
                terminal.write_input(&mut open.pending);
            }
            if ready.output && !open.terminal.is_some_and(Terminal::copy_output) {
                open.terminal = None;
            }
            // What the process wrote before it ended is shown before we end.
            if let Some(code) = ended.filter(|_| open.terminal.is_none() || !ready.output) {
                return Ok(code);
            }
        }
    }
}

/// What is watched besides signals.
struct Open<'a> {
    terminal: Option<&'a Terminal>,
    relay: Option<&'a Relay>,
    input: bool,
    /// What was typed and the process's terminal has not taken yet. More is read when it has.
    pending: Vec<u8>,
}

/// What can be read.
struct Ready {
    signal: bool,
    output: bool,
    relay: bool,
    input: bool,
}

impl Open<'_> {
    /// Waits until something can be read.
    fn wait(&self, signals: &OwnedFd) -> Result<Ready, CallFailed> {
        let input = inherited_fd(0)
            .ok()
            .filter(|_| self.input && self.pending.is_empty() && self.terminal.is_some());
        let sources = [
            Some(signals.as_fd()),
            self.terminal.map(|terminal| terminal.master.as_fd()),
            self.relay.map(Relay::fd),
            input,
        ];
        let master = match self.pending.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        let flags = [PollFlags::IN, master, PollFlags::IN, PollFlags::IN];
        let mut watched: Vec<PollFd<'_>> = sources
            .iter()
            .zip(flags)
            .filter_map(|(fd, flags)| Some(PollFd::from_borrowed_fd((*fd)?, flags)))
            .collect();
        rustix::io::retry_on_intr(|| poll(&mut watched, None)).during("poll", "terminal")?;
        let mut results = watched.iter().map(|fd| !fd.revents().is_empty());
        let mut result = |index: usize| sources[index].is_some() && results.next() == Some(true);
        Ok(Ready {
            signal: result(0),
            output: result(1),
            relay: result(2),
            input: result(3),
        })
    }
}

impl Terminal {
    /// Takes the master end of a terminal; the caller's own, if there is one, stops interpreting what is typed.
    pub(crate) fn new(master: OwnedFd) -> Result<Self, CallFailed> {
        let mut terminal = Self {
            master,
            saved: None,
        };
        terminal.resize();
        // A process that reads nothing must not keep us from showing what it writes, which may be what it waits for.
        ioctl_fionbio(&terminal.master, true).during("ioctl", "terminal")?;
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

    /// Takes the size of the caller's terminal over.
    fn resize(&self) {
        if let Ok(own) = inherited_fd(0)
            && let Ok(size) = tcgetwinsize(own)
            && (size.ws_row, size.ws_col) != (0, 0)
        {
            // The process may be gone; then its terminal needs no size.
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Passes on what the process wrote; false at its end.
    fn copy_output(&self) -> bool {
        let Ok(output) = inherited_fd(1) else {
            return false;
        };
        copy(&self.master, output)
    }

    /// Reads what was typed; false at its end.
    #[inline(never)] // Who waits without a terminal needs no room for it on the stack.
    fn read_input(pending: &mut Vec<u8>) -> bool {
        let mut bytes = [0; CHUNK];
        match inherited_fd(0).and_then(|input| rustix::io::read(input, &mut bytes)) {
            Ok(length) => {
                pending.extend_from_slice(&bytes[..length]);
                length > 0
            }
            Err(errno) => matches!(errno, Errno::INTR | Errno::AGAIN),
        }
    }

    /// Passes on of what was typed as much as the terminal takes.
    fn write_input(&self, pending: &mut Vec<u8>) {
        while !pending.is_empty() {
            match rustix::io::write(&self.master, pending) {
                Ok(written) => drop(pending.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody is there to read it.
                Err(_) => pending.clear(),
            }
        }
    }
}

impl Drop for Terminal {
    /// Gives the caller's terminal its former settings.
    fn drop(&mut self) {
        if let (Some(modes), Ok(own)) = (&self.saved, inherited_fd(0)) {
            // A terminal that is gone needs none.
            let _ = tcsetattr(own, OptionalActions::Now, modes);
        }
    }
}

/// This process.
fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Copies what is there to be read; false at the end of either side.
#[inline(never)] // As above.
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
