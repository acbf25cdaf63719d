//! The user's terminal while it belongs to a container: raw mode, window size, signals.

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use qengine::container::attach::{Connection, DetachKeys, Ended, Ends, resize};
use qengine::container::model::Process;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode; dropping it puts the old mode back.
struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    fn enter() -> Result<Option<RawMode>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let terminal = stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("cannot duplicate the terminal")?;
        let before = tcgetattr(&terminal).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)
            .context("cannot set the terminal to raw mode")?;
        Ok(Some(RawMode { terminal, before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about it here, and nobody would read a message.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// A terminal inside needs one outside, where its keys come from.
///
/// # Errors
/// When standard input is none.
pub(crate) fn require(tty: bool, interactive: bool) -> Result<()> {
    if tty && interactive && !stdin().is_terminal() {
        anyhow::bail!("the input device is not a TTY: leave -t away, or use a terminal");
    }
    Ok(())
}

/// How the user's streams are tied to a container's.
pub(crate) struct Relay<'a> {
    /// The container has a terminal.
    pub(crate) tty: bool,
    /// What is typed goes to the container.
    pub(crate) input: bool,
    /// The sequence that detaches.
    pub(crate) detach_keys: DetachKeys,
    /// Where window sizes go.
    pub(crate) control: PathBuf,
    /// Called with each signal that is the container's to handle.
    pub(crate) on_signal: &'a dyn Fn(Signal),
}

/// Signals that are passed on to the container's process, as docker's `--sig-proxy` does.
const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGIO,
];

/// Blocks the signals that a relay handles and returns the descriptor that tells of them.
///
/// Called after the last program was started, since a program inherits the mask.
///
/// Without `proxy` only changes of the window's size are taken; everything else does to us what it does to anybody.
pub(crate) fn signals(proxy: bool) -> Result<SignalFd> {
    let set = handled(proxy);
    set.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot open a signalfd")
}

fn handled(proxy: bool) -> SigSet {
    let mut set = SigSet::empty();
    for signal in PASSED_ON.into_iter().filter(|_| proxy) {
        set.add(signal);
    }
    set.add(Signal::SIGWINCH);
    set
}

/// Passes signals on until a process has ended: for a container that has our own streams.
pub(crate) fn pass_signals(
    signals: &SignalFd,
    process: Option<Process>,
    on_signal: &dyn Fn(Signal),
) -> Result<()> {
    let Some(process) = process.and_then(|process| process.open()) else {
        return Ok(());
    };
    loop {
        let mut list = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut list, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("cannot wait for the container")?,
        };
        if !list[0].revents().is_empty() {
            return Ok(());
        }
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).ok();
            if let Some(signal) = number.and_then(|number| Signal::try_from(number).ok())
                && signal != Signal::SIGWINCH
            {
                on_signal(signal);
            }
        }
    }
}

impl Relay<'_> {
    /// Ties the streams together until the container has ended or the user has detached.
    pub(crate) fn run(mut self, connection: &Connection, signals: &SignalFd) -> Result<Ended> {
        let raw = if self.tty && self.input {
            RawMode::enter()?
        } else {
            None
        };
        if self.tty {
            self.send_size();
        }
        let input = stdin();
        let output = stdout();
        let error = std::io::stderr();
        let ends = Ends {
            input: self.input.then(|| input.as_fd()),
            output: output.as_fd(),
            error: error.as_fd(),
            wake: Some(signals.as_fd()),
        };
        let mut keys = std::mem::replace(&mut self.detach_keys, DetachKeys::none());
        let ended = connection.relay(&ends, &mut keys, || self.handle_signals(signals));
        drop(raw);
        // Nobody reads the descriptor from here on: Ctrl-C has to work again.
        let _ = handled(true).thread_unblock();
        Ok(ended?)
    }

    fn handle_signals(&self, signals: &SignalFd) {
        while let Ok(Some(info)) = signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo)
                .ok()
                .and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGWINCH) => self.send_size(),
                Some(signal) => (self.on_signal)(signal),
                None => {}
            }
        }
    }

    fn send_size(&self) {
        if let Ok(size) = tcgetwinsize(stdout())
            && size.ws_row > 0
            && size.ws_col > 0
        {
            // A container that has just ended has no fifo any more.
            drop(resize(&self.control, size.ws_row, size.ws_col));
        }
    }
}
