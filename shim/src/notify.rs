//! Relays the container's sd_notify(3) messages to the host's socket.
//!
//! The container has its own socket, `notify/notify.sock` in the bundle. Only
//! lines that tell about the service pass: others (`MAINPID=`, `FDSTORE=1`, …)
//! would give the container power over its unit.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod};
use rustix::net::{RecvFlags, SocketType, recv};

use crate::diag;
use crate::error::Error;
use crate::socket::{Bound, bind_in};

/// The relay.
#[derive(Debug)]
pub(crate) struct Notify {
    inside: Bound,
    outside: UnixDatagram,
    host: PathBuf,
}

impl Notify {
    /// Makes the container's socket in `bundle` and remembers the host's.
    pub(crate) fn relay(bundle: &Path, host: &Path) -> Result<Self, Error> {
        let mode = Mode::from_raw_mode(0o777);
        let inside = bind_in(
            &bundle.join("notify"),
            "notify.sock",
            SocketType::DGRAM,
            mode,
        )?;
        // Any user in the container may notify; the umask took that away.
        chmod(inside.name.path(), mode)
            .map_err(Error::path("set mode of socket", inside.name.path()))?;
        let outside = UnixDatagram::unbound().map_err(Error::call("socket for sd_notify"))?;
        outside
            .set_nonblocking(true)
            .map_err(Error::call("make sd_notify socket non-blocking"))?;
        Ok(Self {
            inside,
            outside,
            host: host.to_owned(),
        })
    }

    /// The descriptor to watch.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.inside.fd
    }

    /// Passes one message on.
    pub(crate) fn pass(&self) {
        let mut buffer = [0_u8; 4096];
        let Ok((count, _)) = recv(&self.inside.fd, &mut buffer, RecvFlags::empty()) else {
            return;
        };
        let message = filter(&String::from_utf8_lossy(&buffer[..count]));
        if message.is_empty() {
            return;
        }
        if let Err(error) = self.outside.send_to(message.as_bytes(), &self.host) {
            diag::warning!("sd_notify to {}: {error}", self.host.display());
        }
    }
}

fn filter(message: &str) -> String {
    const WHOLE: [&str; 5] = [
        "READY=1",
        "RELOADING=1",
        "STOPPING=1",
        "WATCHDOG=1",
        "WATCHDOG=trigger",
    ];
    const BEGINNINGS: [&str; 4] = ["STATUS=", "ERRNO=", "BUSERROR=", "MONOTONIC_USEC="];
    let passes = |line: &&str| {
        WHOLE.contains(line)
            || BEGINNINGS
                .iter()
                .any(|beginning| line.starts_with(beginning))
    };
    let lines: Vec<&str> = message.split(['\n', '\r']).filter(passes).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_lines_pass() {
        assert_eq!(
            filter("READY=1\nMAINPID=1\nSTATUS=up\r\nFDSTORE=1\nREADY=12\n"),
            "READY=1\nSTATUS=up"
        );
        assert_eq!(filter("BARRIER=1"), "");
    }
}
