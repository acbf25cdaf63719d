//! Messages on the sync and attach pipes: one JSON object a line.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::diag;
use crate::log::json_file::escape;
use crate::plan::Api;

/// Most bytes in one write. The pipe is often a packet socket, whose reader
/// loses what does not fit its buffer; podman's and bufio's is this large.
const PACKET: usize = 4096;

/// The writing end of a sync or attach pipe.
#[derive(Debug)]
pub(crate) struct SyncPipe {
    fd: Option<OwnedFd>,
    api: Api,
    exec: bool,
}

impl SyncPipe {
    /// Wraps the pipe for one kind of session.
    pub(crate) fn new(fd: OwnedFd, api: Api, exec: bool) -> Self {
        Self {
            fd: Some(fd),
            api,
            exec,
        }
    }

    /// Says that the attach socket is ready. For the attach pipe.
    pub(crate) fn ready(&mut self) {
        self.send(0, None);
    }

    /// Reports the pid of the container's or exec session's process. The old
    /// API has no such message for exec.
    pub(crate) fn started(&mut self, pid: i32) {
        if self.api == Api::Current || !self.exec {
            self.send(pid, None);
        }
        if !self.exec {
            // Nothing more is said about a container: its caller gets its end of
            // file, and the descriptor is free.
            self.fd = None;
        }
    }

    /// Reports that there will be no process, and why.
    pub(crate) fn failure(&mut self, message: &str) {
        self.send(-1, Some(message));
        self.fd = None;
    }

    /// Reports the exit code of an exec session.
    pub(crate) fn exited(&mut self, code: i32, message: Option<&str>) {
        if self.exec {
            self.send(code, message);
        }
        self.fd = None;
    }

    fn send(&mut self, value: i32, message: Option<&str>) {
        let Some(fd) = &self.fd else { return };
        let line = line(key(self.api, self.exec), value, message);
        for packet in line.chunks(PACKET) {
            if let Err(errno) = write_all(fd, packet) {
                // The caller is gone. The container does not depend on it.
                diag::warning!("write to sync pipe: {errno}");
                self.fd = None;
                return;
            }
        }
    }
}

fn write_all(fd: &OwnedFd, mut data: &[u8]) -> Result<(), Errno> {
    while !data.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(fd, data))?;
        data = &data[count..];
    }
    Ok(())
}

/// The name of the number, which depends on the version of the interface.
fn key(api: Api, exec: bool) -> &'static str {
    match (api, exec) {
        (Api::Current, _) => "data",
        (Api::Legacy, true) => "exit_code",
        (Api::Legacy, false) => "pid",
    }
}

fn line(key: &str, value: i32, message: Option<&str>) -> Vec<u8> {
    let mut line = format!("{{\"{key}\": {value}").into_bytes();
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        line.extend_from_slice(b", \"message\": \"");
        escape(message.as_bytes(), &mut line);
        line.push(b'"');
    }
    line.extend_from_slice(b"}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn lines() {
        assert_eq!(line("data", 42, None), b"{\"data\": 42}\n");
        assert_eq!(
            line("data", -1, Some("no \"x\"\n")),
            b"{\"data\": -1, \"message\": \"no \\\"x\\\"\\n\"}\n"
        );
        assert_eq!(line("pid", 7, Some("")), b"{\"pid\": 7}\n");
        assert_eq!(key(Api::Legacy, true), "exit_code");
        assert_eq!(key(Api::Legacy, false), "pid");
    }

    /// Everything that `speak` writes.
    fn said(api: Api, exec: bool, speak: impl FnOnce(&mut SyncPipe)) -> String {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut pipe = SyncPipe::new(writer.into(), api, exec);
        speak(&mut pipe);
        drop(pipe);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn conversations() {
        let whole = |pipe: &mut SyncPipe| {
            pipe.started(5);
            pipe.exited(3, None);
        };
        assert_eq!(said(Api::Current, false, whole), "{\"data\": 5}\n");
        assert_eq!(
            said(Api::Current, true, whole),
            "{\"data\": 5}\n{\"data\": 3}\n"
        );
        assert_eq!(said(Api::Legacy, true, whole), "{\"exit_code\": 3}\n");
        assert_eq!(said(Api::Legacy, false, whole), "{\"pid\": 5}\n");
    }
}
