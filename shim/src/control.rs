//! The fifos `ctl` and `winsz`, through which a caller resizes the terminal
//! (`1 ROWS COLUMNS`, or `ROWS COLUMNS` in `winsz`) and has logs opened again
//! (`2 0 0`; SIGHUP asks for the same). One line a message.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, mknodat, open};
use rustix::io::Errno;

use crate::diag;
use crate::error::Error;
use crate::socket::Named;

/// What a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// A new size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters a line.
        columns: u16,
    },
    /// Open the log files by their paths again.
    ReopenLogs,
}

/// The two languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Control,
    WindowSize,
}

/// One fifo.
#[derive(Debug)]
pub(crate) struct Fifo {
    fd: OwnedFd,
    language: Language,
    line: Vec<u8>,
    _name: Named,
}

/// Longest line that makes sense, with room to spare.
const LONGEST_LINE: usize = 200;

impl Fifo {
    /// Makes `ctl` in `directory`.
    pub(crate) fn control(directory: &Path) -> Result<Self, Error> {
        Self::make(directory, "ctl", Language::Control)
    }

    /// Makes `winsz` in `directory`.
    pub(crate) fn window_size(directory: &Path) -> Result<Self, Error> {
        Self::make(directory, "winsz", Language::WindowSize)
    }

    fn make(directory: &Path, name: &str, language: Language) -> Result<Self, Error> {
        let path = directory.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::path("remove old fifo", &path)(error));
            }
            _ => {}
        }
        let mode = Mode::from_raw_mode(0o600);
        mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0)
            .map_err(Error::path("make fifo", &path))?;
        let named = Named::new(path);
        // For writing too: then it never looks hung up when a caller closes it.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = open(named.path(), flags, Mode::empty())
            .map_err(Error::path("open fifo", named.path()))?;
        let kind = fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Fifo) {
            return Err(Error::path("open fifo", named.path())(Errno::INVAL));
        }
        Ok(Self {
            fd,
            language,
            line: Vec::new(),
            _name: named,
        })
    }

    /// The descriptor to watch.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Reads what is there and hands each request to `handle`.
    pub(crate) fn read(&mut self, mut handle: impl FnMut(Request)) {
        let mut buffer = [0_u8; LONGEST_LINE];
        let Ok(count) = rustix::io::read(&self.fd, &mut buffer) else {
            return;
        };
        for &byte in &buffer[..count] {
            if byte != b'\n' {
                // Of a line without end only the beginning is kept.
                if self.line.len() < LONGEST_LINE {
                    self.line.push(byte);
                }
                continue;
            }
            match parse(self.language, &self.line) {
                Some(request) => handle(request),
                None => diag::warning!(
                    "control message not understood: {}",
                    String::from_utf8_lossy(&self.line)
                ),
            }
            self.line.clear();
        }
    }
}

fn parse(language: Language, line: &[u8]) -> Option<Request> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let command = match language {
        Language::Control => words.next()?,
        Language::WindowSize => "1",
    };
    let mut number = || words.next()?.parse::<u16>().ok();
    match command {
        "1" => Some(Request::Resize {
            rows: number()?,
            columns: number()?,
        }),
        "2" => Some(Request::ReopenLogs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn messages() {
        let resize = Some(Request::Resize {
            rows: 24,
            columns: 80,
        });
        for (language, line, expected) in [
            (Language::Control, "1 24 80", resize),
            (Language::WindowSize, " 24  80 ", resize),
            (Language::Control, "2 0 0", Some(Request::ReopenLogs)),
            (Language::Control, "1 24", None),
            (Language::Control, "1 -1 80", None),
            (Language::Control, "3 1 1", None),
            (Language::Control, "", None),
            (Language::WindowSize, "24 99999", None),
        ] {
            assert_eq!(parse(language, line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn lines_come_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let mut fifo = Fifo::control(directory.path()).unwrap();
        let path = directory.path().join("ctl");
        let mut writer = std::fs::File::options().write(true).open(&path).unwrap();
        let mut requests = Vec::new();
        for piece in [
            "1 2",
            "4 80\n2 0",
            " 0\nnonsense\n",
            &"x".repeat(150),
            "\n1 1 2\n",
        ] {
            writer.write_all(piece.as_bytes()).unwrap();
            fifo.read(|request| requests.push(request));
        }
        assert_eq!(
            requests,
            [
                Request::Resize {
                    rows: 24,
                    columns: 80
                },
                Request::ReopenLogs,
                Request::Resize {
                    rows: 1,
                    columns: 2
                },
            ]
        );
        drop(fifo);
        assert!(!path.exists());
    }
}
