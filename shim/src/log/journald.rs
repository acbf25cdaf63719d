//! The systemd journal's native protocol: one datagram an entry, one field a
//! line (systemd.journal-fields(7)).
//!
//! A journal that hangs holds the container up once, for a second; after that
//! entries are dropped and counted until it answers again.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use super::json_file::Pending;
use super::{Labels, Stream};
use crate::diag;
use crate::error::Error;

const SOCKET: &str = "/run/systemd/journal/socket";

/// How long a send may wait for a slow journal.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection to the journal.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    /// The fields that are the same in each entry.
    fields: Vec<u8>,
    pending: [Pending; 2],
    entry: Vec<u8>,
    lost: u64,
}

impl Journal {
    /// Prepares the fields, and checks that there is a journal.
    pub(crate) fn connect(labels: &Labels) -> Result<Self, Error> {
        let fields = constant_fields(labels)?;
        let socket = UnixDatagram::unbound().map_err(Error::call("socket for the journal"))?;
        socket
            .set_write_timeout(Some(PATIENCE))
            .map_err(Error::call("set timeout of the journal's socket"))?;
        std::fs::metadata(SOCKET).map_err(Error::path("find the journal", Path::new(SOCKET)))?;
        Ok(Self {
            socket,
            fields,
            pending: Default::default(),
            entry: Vec::new(),
            lost: 0,
        })
    }

    /// Sends the whole lines of a chunk of output, and keeps the rest.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8]) {
        let mut pending = std::mem::take(&mut self.pending[stream.index()]);
        let mut rest = data;
        while !rest.is_empty() {
            rest = pending.next(rest, |text| self.send(stream, text));
        }
        self.pending[stream.index()] = pending;
    }

    /// Sends what is kept.
    pub(crate) fn finish(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut pending = std::mem::take(&mut self.pending[stream.index()]);
            pending.finish(|text| self.send(stream, text));
        }
    }

    fn send(&mut self, stream: Stream, text: &[u8]) {
        self.entry.clear();
        entry(stream, text, &mut self.entry);
        self.entry.extend_from_slice(&self.fields);
        match self.socket.send_to(&self.entry, SOCKET) {
            Ok(_) => {
                if self.lost > 0 {
                    diag::warning!("journal: {} entries lost", self.lost);
                    self.lost = 0;
                    let _ = self.socket.set_nonblocking(false);
                }
            }
            Err(error) => {
                if self.lost == 0 {
                    diag::error!("journal: entries are being lost: {error}");
                }
                self.lost += 1;
                if error.kind() == io::ErrorKind::WouldBlock {
                    let _ = self.socket.set_nonblocking(true);
                }
            }
        }
    }
}

/// The fields of `text` itself.
fn entry(stream: Stream, text: &[u8], out: &mut Vec<u8>) {
    let line = text.strip_suffix(b"\n");
    // Priorities of syslog(3): info and error.
    let priority: &[u8] = match stream {
        Stream::Stdout => b"PRIORITY=6\n",
        Stream::Stderr => b"PRIORITY=3\n",
    };
    out.extend_from_slice(priority);
    if line.is_none() {
        out.extend_from_slice(b"CONTAINER_PARTIAL_MESSAGE=true\n");
    }
    out.extend_from_slice(b"MESSAGE=");
    out.extend_from_slice(line.unwrap_or(text));
    out.push(b'\n');
}

fn constant_fields(labels: &Labels) -> Result<Vec<u8>, Error> {
    let short = labels.id.get(..12).unwrap_or(&labels.id);
    let identifier = labels
        .tag
        .as_deref()
        .or(labels.name.as_deref())
        .unwrap_or(short);
    let mut fields = Vec::new();
    let mut add = |name: &str, value: &str| {
        // A newline would begin a field of the caller's choice.
        if value.contains('\n') {
            return Err(Error::Usage(format!(
                "journald: the value of {name} contains a newline"
            )));
        }
        fields.extend_from_slice(format!("{name}={value}\n").as_bytes());
        Ok(())
    };
    add("CONTAINER_ID_FULL", &labels.id)?;
    add("CONTAINER_ID", short)?;
    if let Some(name) = &labels.name {
        add("CONTAINER_NAME", name)?;
    }
    if let Some(tag) = &labels.tag {
        add("CONTAINER_TAG", tag)?;
    }
    add("SYSLOG_IDENTIFIER", identifier)?;
    for label in &labels.extra {
        let (name, value) = label
            .split_once('=')
            .filter(|(name, _)| is_field_name(name))
            .ok_or_else(|| {
                Error::Usage(format!(
                    "--log-label '{label}': not LABEL=VALUE with a label of capital letters, digits and underscores"
                ))
            })?;
        add(name, value)?;
    }
    Ok(fields)
}

fn is_field_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let mut out = Vec::new();
        entry(Stream::Stderr, b"oops\n", &mut out);
        assert_eq!(out, b"PRIORITY=3\nMESSAGE=oops\n");
        out.clear();
        entry(Stream::Stdout, b"half", &mut out);
        assert_eq!(
            out,
            b"PRIORITY=6\nCONTAINER_PARTIAL_MESSAGE=true\nMESSAGE=half\n"
        );
    }

    #[test]
    fn fields_name_the_container() {
        let labels = Labels {
            id: "0123456789abcdef".into(),
            name: Some("web".into()),
            tag: None,
            extra: vec!["ROLE=front".into()],
        };
        assert_eq!(
            constant_fields(&labels).unwrap(),
            b"CONTAINER_ID_FULL=0123456789abcdef\nCONTAINER_ID=0123456789ab\nCONTAINER_NAME=web\n\
              SYSLOG_IDENTIFIER=web\nROLE=front\n"
        );
        for bad in ["role=x", "=x", "ROLE", "ROLE=a\nB=c"] {
            let labels = Labels {
                extra: vec![bad.into()],
                ..labels.clone()
            };
            assert!(constant_fields(&labels).is_err(), "{bad}");
        }
    }
}
