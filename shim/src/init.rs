//! A container's init, for `--init`: passes signals on, collects orphans, ends with the child's exit code.
//!
//! The same program under another name: bound read-only into a container as `/dev/init`, it finds that it is called
//! `init` and does this and nothing else. The pages of its code are those that every monitor on the host shares.
//!
//! The child has a process group of its own, so that the keys of a terminal reach it alone. Before its program starts,
//! that group has to become the terminal's foreground one, or the first read would stop it; and signals have to be
//! unblocked, but in the child alone, or PID 1 would lose some. So the child is this program once more ([`CHILD`]), which
//! does both and then becomes the user's.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;
use rustix::process::{Pid, WaitOptions};
use rustix::termios;

use crate::process::ExitStatus;

/// The name under which it is an init.
const NAME: &str = "init";

/// First argument of the second start.
const CHILD: &str = "--child";

/// Whether the program was started as an init.
pub(crate) fn is_wanted(arguments: &[OsString]) -> bool {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    name == Some(OsStr::new(NAME))
}

/// Runs the command after `--`, and ends when it does.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let is_child = arguments.get(1).is_some_and(|word| word == CHILD);
    let at = arguments.iter().position(|word| word == "--");
    let words = at.map_or(&[][..], |at| &arguments[at + 1..]);
    let Some(program) = words.first() else {
        return complain("usage: init -- COMMAND [ARGUMENT...]", 2);
    };
    let result = if is_child {
        Err(become_program(words))
    } else {
        supervise(&arguments[0], words)
    };
    match result {
        Ok(ExitStatus(code)) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Err(error) => {
            let is_missing = error.kind() == io::ErrorKind::NotFound;
            let text = format!("exec {}: {error}", program.display());
            complain(&text, if is_missing { 127 } else { 126 })
        }
    }
}

fn complain(text: &str, code: u8) -> ExitCode {
    // Nobody may be there to read it.
    let _ = writeln!(io::stderr(), "{NAME}: {text}");
    ExitCode::from(code)
}

/// The second start: on return, something has failed.
fn become_program(words: &[OsString]) -> io::Error {
    // Asked for from the background this means SIGTTOU, which is blocked; without a terminal it just fails.
    let group = rustix::process::getpgrp();
    let _ = termios::tcsetpgrp(rustix::stdio::stdin(), group);
    // What was sent meanwhile takes effect here, as it would have on the program.
    if let Err(errno) = SigSet::empty().thread_set_mask() {
        return errno.into();
    }
    Command::new(&words[0]).args(&words[1..]).exec()
}

fn supervise(own: &OsStr, words: &[OsString]) -> io::Result<ExitStatus> {
    // Before the child, so that nothing sent from now on is lost; a signal without a handler never reaches PID 1.
    SigSet::all().thread_block()?;
    let signals = SignalFd::new(&SigSet::all())?;
    if rustix::process::getpid() != Pid::INIT {
        // In somebody else's pid namespace orphans come to us only on request.
        let _ = rustix::process::set_child_subreaper(Pid::from_raw(1));
    }
    let child = Command::new(own)
        .args([CHILD, "--"])
        .args(words)
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    loop {
        while let Ok(Some((ended, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if ended == pid
                && let Some(status) = ExitStatus::of(status)
            {
                return Ok(status);
            }
        }
        if let Ok(Some(signal)) = signals.read_signal() {
            pass_on(signal.ssi_signo, pid);
        }
    }
}

fn pass_on(number: u32, child: Pid) {
    let named = i32::try_from(number)
        .ok()
        .and_then(rustix::process::Signal::from_named_raw);
    match named {
        // Our own: the loop asks for the dead anyway.
        None | Some(rustix::process::Signal::CHILD) => {}
        // One that has just ended needs no signal.
        Some(signal) => {
            let _ = rustix::process::kill_process(child, signal);
        }
    }
}
