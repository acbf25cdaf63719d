//! Descriptors that the caller left open in this process.
//!
//! The protocol hands pipes over by number, in environment variables. A number
//! becomes an owned descriptor through pidfd_getfd(2) on ourselves (Linux 5.6),
//! which checks it, duplicates it close-on-exec and needs no unsafe code.

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// Descriptors found open, by number, at the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Lists what is open beyond the standard streams. To be called before the
    /// process opens anything itself.
    pub(crate) fn list() -> Self {
        let mut found = Vec::new();
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            for entry in entries.flatten() {
                let number = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok());
                if let Some(number) = number.filter(|&number: &RawFd| number > 2) {
                    found.push(number);
                }
            }
        }
        // The directory's own descriptor was in the list too and is closed now.
        found.retain(|number| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
        Self(found)
    }

    /// Takes the descriptor `number` out of the list and owns it.
    pub(crate) fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let fd = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
        if let Some(index) = self.0.iter().position(|&entry| entry == number) {
            self.0.swap_remove(index);
            nix::unistd::close(number)?;
        }
        Ok(fd)
    }

    /// Takes the descriptor that the environment variable `name` announces.
    /// `None` when the variable is not set.
    pub(crate) fn take_from_env(&mut self, name: &str) -> io::Result<Option<OwnedFd>> {
        let Some(value) = std::env::var_os(name) else {
            return Ok(None);
        };
        let number = value
            .to_str()
            .and_then(|text| text.parse().ok())
            .filter(|&number: &RawFd| number > 2)
            .ok_or_else(|| io::Error::from(rustix::io::Errno::BADF))?;
        self.take(number).map(Some)
    }

    /// Closes what is left in the list.
    pub(crate) fn close(&mut self) {
        for number in self.0.drain(..) {
            // EBADF is the only possible answer besides success, and harmless.
            let _ = nix::unistd::close(number);
        }
    }
}
