//! Log lines in the two formats of runc, which engines parse: `--log FILE --log-format text|json`.
//!
//! Warnings and debug messages go through the `log` crate. The one error that ends a command comes from `main` through
//! [`fatal`], which also puts it on standard error when the log is a file.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::cli::{Global, LogFormat};
use crate::clock;
use crate::failure::{CallFailed, During};
use crate::sys;

/// Where the lines go, and how they look.
struct Logger {
    file: Option<File>,
    format: LogFormat,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Opens the log file and takes up logging.
pub(crate) fn start(global: &Global) -> Result<(), CallFailed> {
    let file = match &global.log {
        Some(path) => Some(
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o644)
                .custom_flags(libc::O_CLOEXEC)
                .open(path)
                .map(out_of_the_way)
                .during("open", path)?,
        ),
        None => None,
    };
    let logger = LOGGER.get_or_init(|| Logger {
        file,
        format: global.log_format,
    });
    log::set_max_level(if global.debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
    // Fails only when called twice, which nothing does.
    let _ = log::set_logger(logger);
    Ok(())
}

/// The same file under a number that nobody preserves for a container, or as it is if there is none.
fn out_of_the_way(file: File) -> File {
    /// Above what callers pass with `--preserve-fds`, which podman's user may number with gaps.
    const FIRST: i32 = 64;
    match rustix::io::fcntl_dupfd_cloexec(&file, FIRST) {
        Ok(moved) => moved.into(),
        Err(_) => file,
    }
}

/// The log's file, as long as there is one.
pub(crate) fn file() -> Option<BorrowedFd<'static>> {
    LOGGER.get()?.file.as_ref().map(AsFd::as_fd)
}

/// Ends logging in a process that goes on, and closes the log's file.
pub(crate) fn stop() {
    log::set_max_level(LevelFilter::Off);
    if let Some(file) = file() {
        sys::process::close_for_good(file);
    }
}

/// Tells the error that ends the command: in the log, and on standard error if that is not the log.
pub(crate) fn fatal(message: &str) {
    let fallback = Logger {
        file: None,
        format: LogFormat::Text,
    };
    let logger = LOGGER.get().unwrap_or(&fallback);
    logger.write("error", message);
    if logger.file.is_some() {
        // Nobody is left to be told when standard error is closed.
        let _ = writeln!(std::io::stderr(), "{message}");
    }
}

impl Logger {
    /// Writes one line in one call, so that lines of concurrent commands do not mix.
    fn write(&self, level: &str, message: &str) {
        let line = match (self.format, &self.file) {
            (LogFormat::Json, _) => json_line(level, message),
            (LogFormat::Text, None) if std::io::stderr().is_terminal() => {
                terminal_line(level, message)
            }
            (LogFormat::Text, _) => text_line(level, message),
        };
        // A log that cannot be written must not change what the command does.
        let _ = match &self.file {
            Some(file) => { file }.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = match record.level() {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        self.write(level, &record.args().to_string());
    }

    fn flush(&self) {}
}

/// `{"level":"error","msg":"…","time":"…"}`
fn json_line(level: &str, message: &str) -> String {
    let message = serde_json::Value::from(message);
    format!(
        "{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{}\"}}\n",
        clock::now_in_seconds()
    )
}

/// `time="…" level=error msg="…"`; the message is quoted only when it must be.
fn text_line(level: &str, message: &str) -> String {
    let plain =
        |character: char| character.is_ascii_alphanumeric() || "-._/@^+".contains(character);
    let message = if !message.is_empty() && message.chars().all(plain) {
        message.to_owned()
    } else {
        quote(message)
    };
    format!(
        "time=\"{}\" level={level} msg={message}\n",
        clock::now_in_seconds()
    )
}

/// The short form for people, without the time.
fn terminal_line(level: &str, message: &str) -> String {
    let tag: String = level.to_uppercase().chars().take(4).collect();
    format!("{tag}[0000] {message}\n")
}

/// The message in double quotes, escaped as Go's `%q` does.
pub(crate) fn quote(message: &str) -> String {
    let mut quoted = String::with_capacity(message.len() + 2);
    quoted.push('"');
    for character in message.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            other if other.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(other))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_as_runc_writes_them() {
        let text = text_line("error", "exec: \"x\": executable file not found");
        assert!(text.starts_with("time=\""), "{text}");
        assert!(
            text.ends_with("level=error msg=\"exec: \\\"x\\\": executable file not found\"\n"),
            "{text}"
        );
        let value: serde_json::Value =
            serde_json::from_str(&json_line("warning", "a\n\"b\"")).unwrap();
        assert_eq!(value["level"], "warning");
        assert_eq!(value["msg"], "a\n\"b\"");
        assert!(text_line("debug", "hello").ends_with("msg=hello\n"));
        assert_eq!(terminal_line("error", "x"), "ERRO[0000] x\n");
    }
}
