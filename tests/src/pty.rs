//! A program on a terminal of its own, driven as a person would: read what is there, type, read on.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::command::{typed, wait};
use crate::wait::{patience, within};

/// A program on a pseudo-terminal; killed when dropped.
#[derive(Debug)]
pub struct Pty {
    line: String,
    child: Child,
    terminal: File,
    said: Arc<Mutex<Vec<u8>>>,
    /// How much of what was said earlier expectations have used up.
    used: usize,
}

impl Pty {
    /// Starts `command` as the leader of a new session on a new terminal of 80 by 24.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start(command: &Command) -> Self {
        match Self::try_start(command) {
            Ok(pty) => pty,
            Err(error) => panic!("start {} on a terminal: {error}", typed(command)),
        }
    }

    fn try_start(command: &Command) -> std::io::Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&terminal)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?;
        let terminal = File::from(terminal);
        tcsetwinsize(&terminal, size(24, 80))?;
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_string_lossy().as_ref())?;
        // util-linux's setsid makes the terminal the controlling one, then becomes the program.
        let mut wrapped = Command::new("setsid");
        wrapped
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let child = wrapped
            .env("TERM", "xterm")
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave))
            .spawn()?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let (shared, mut reader) = (said.clone(), terminal.try_clone()?);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: nobody has the other end open any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if let Ok(mut said) = shared.lock() {
                    said.extend_from_slice(&buffer[..count]);
                }
            }
        });
        Ok(Self {
            line: typed(command),
            child,
            terminal,
            said,
            used: 0,
        })
    }

    /// Waits until the program has said `text` after what was expected before.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let used = self.used;
        let found = within(patience(), || self.heard()[used..].find(text));
        match found {
            Some(place) => self.used += place + text.len(),
            None => panic!("expected {text:?} on the terminal{}", self.report()),
        }
    }

    /// Types `text`.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        if let Err(error) = self.terminal.write_all(text.as_bytes()) {
            panic!("type {text:?}: {error}{}", self.report());
        }
    }

    /// Changes the size of the terminal's window.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let Err(error) = tcsetwinsize(&self.terminal, size(rows, columns)) {
            panic!("resize the terminal: {error}");
        }
    }

    /// Waits for the end of the program and gives its exit code.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn exit(&mut self) -> i32 {
        match wait(&mut self.child, patience()) {
            Some(code) => code,
            None => panic!("expected the program to end{}", self.report()),
        }
    }

    /// The program's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything said so far.
    #[must_use]
    pub fn heard(&self) -> String {
        let said = self.said.lock();
        said.map_or(String::new(), |said| {
            String::from_utf8_lossy(&said).into_owned()
        })
    }

    fn report(&self) -> String {
        format!(
            "\n--- command\n{}\n--- terminal\n{}",
            self.line,
            self.heard()
        )
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
