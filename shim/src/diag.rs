//! The monitor's own messages: to stderr while it still has one, and to syslog
//! when asked (`--syslog`). They never go into the container's log.

use std::fmt;
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

/// How important a message is; also what `--log-level` selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Something is lost or will not happen.
    Error,
    /// Something is not as asked, the container goes on.
    Warn,
    /// A milestone of the container.
    Info,
    /// A step of the monitor.
    Debug,
}

impl Level {
    /// The names that `--log-level` takes.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "error" | "fatal" | "panic" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" | "trace" => Self::Debug,
            _ => return None,
        })
    }

    /// Severity of syslog(3).
    fn severity(self) -> u8 {
        match self {
            Self::Error => 3,
            Self::Warn => 4,
            Self::Info => 6,
            Self::Debug => 7,
        }
    }
}

/// Where messages go.
#[derive(Debug)]
struct Sink {
    level: Level,
    syslog: Option<UnixDatagram>,
    tag: String,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Chooses level, syslog and the container named in each message. Only the
/// first call counts.
pub(crate) fn configure(level: Level, syslog: bool, cid: &str) {
    let socket = syslog.then(connect_syslog).flatten();
    let tag = cid.chars().take(12).collect();
    let _ = SINK.set(Sink {
        level,
        syslog: socket,
        tag,
    });
}

fn connect_syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect("/dev/log").ok()?;
    // A syslog daemon that hangs must not hang the container's monitor.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// Writes one message.
pub(crate) fn message(level: Level, text: fmt::Arguments<'_>) {
    let sink = SINK.get();
    let wanted = sink.map_or(Level::Warn, |sink| sink.level);
    if level > wanted {
        return;
    }
    // Nobody is left to hear that a message could not be written.
    let _ = rustix::io::write(
        rustix::stdio::stderr(),
        format!("qshim: {text}\n").as_bytes(),
    );
    if let Some(Sink {
        syslog: Some(socket),
        tag,
        ..
    }) = sink
    {
        // Facility 3: system daemons.
        let priority = 3 * 8 + level.severity();
        let _ = socket.send(format!("<{priority}>qshim: {tag}: {text}").as_bytes());
    }
}

/// Reports something lost.
macro_rules! error {
    ($($arg:tt)*) => { $crate::diag::message($crate::diag::Level::Error, format_args!($($arg)*)) };
}
/// Reports something that is not as asked.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::diag::message($crate::diag::Level::Warn, format_args!($($arg)*)) };
}
/// Reports a milestone.
macro_rules! info {
    ($($arg:tt)*) => { $crate::diag::message($crate::diag::Level::Info, format_args!($($arg)*)) };
}
/// Reports a step.
macro_rules! debug {
    ($($arg:tt)*) => { $crate::diag::message($crate::diag::Level::Debug, format_args!($($arg)*)) };
}
pub(crate) use {debug, error, info, warning};
