//! Reads and writes below a `/proc` that is known to be one.
//!
//! A container can arrange for something else to lie at a path below its `/proc` (CVE-2019-19921, CVE-2025-52881). So the
//! handle is taken from the host's `/proc` before any namespace is entered, its type is checked, and paths are resolved
//! beneath it without crossing a mount.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs, openat, openat2};
use rustix::io::Errno;

/// The host's `/proc`.
#[derive(Debug)]
pub(crate) struct HostProc(OwnedFd);

impl HostProc {
    /// Opens and checks it.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::check(openat(CWD, c"/proc", flags, Mode::empty())?)
    }

    /// Takes a directory for `/proc` if it is one.
    pub(crate) fn check(directory: OwnedFd) -> Result<Self, Errno> {
        if is_procfs(&directory)? {
            Ok(Self(directory))
        } else {
            Err(Errno::XDEV)
        }
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Reads a small file below it in one call.
    pub(crate) fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let mut text = [0; 256];
        let length = rustix::io::read(self.open_file(path, OFlags::RDONLY)?, &mut text)?;
        Ok(text[..length].to_vec())
    }

    /// Writes a file below it in one call.
    pub(crate) fn write(&self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let file = self.open_file(path, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, value)?;
        if written == value.len() {
            Ok(())
        } else {
            Err(Errno::IO)
        }
    }

    /// Reads a link below it, the last component of the path.
    pub(crate) fn link(&self, path: &str) -> Result<String, Errno> {
        let link = self.open_file(path, OFlags::PATH)?;
        let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
        target.into_string().map_err(|_| Errno::ILSEQ)
    }

    /// Opens a file below it.
    fn open_file(&self, path: &str, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let file = match openat2(&self.0, path, flags, Mode::empty(), resolve) {
            // Before Linux 5.6.
            Err(Errno::NOSYS) => self.walk(path, flags)?,
            other => other?,
        };
        if is_procfs(&file)? {
            Ok(file)
        } else {
            Err(Errno::XDEV)
        }
    }

    /// The same by hand: one component after the other, none of which may be a link, but for the kernel's own `self` and
    /// `thread-self` at the beginning, or be on another file system.
    fn walk(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut here: Option<OwnedFd> = None;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let directory = here.as_ref().unwrap_or(&self.0);
            if names.peek().is_none() {
                return openat(directory, name, flags, Mode::empty());
            }
            let mut step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if name == ".." || here.is_some() || !matches!(name, "self" | "thread-self") {
                step |= OFlags::NOFOLLOW;
            }
            let next = openat(directory, name, step, Mode::empty())?;
            if name == ".." || !is_procfs(&next)? {
                return Err(Errno::XDEV);
            }
            here = Some(next);
        }
        Err(Errno::NOENT)
    }
}

/// Whether a file is on procfs.
fn is_procfs(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(fstatfs(file)?.f_type == PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_procfs_is_written() {
        let tmp = openat(CWD, c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(HostProc::check(tmp).err(), Some(Errno::XDEV));
        let proc = HostProc::open().unwrap();
        // Its own score, written as it is.
        let score = std::fs::read("/proc/self/oom_score_adj").unwrap();
        proc.write("thread-self/oom_score_adj", &score).unwrap();
        assert_eq!(proc.read("thread-self/oom_score_adj").unwrap(), score);
        assert!(proc.write("../etc/passwd", b"").is_err());
        assert!(proc.write("self/root/etc/passwd", b"").is_err());
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        assert_eq!(proc.link("self/exe").unwrap(), exe.to_str().unwrap());
    }

    #[test]
    fn walking_by_hand_keeps_the_same_rules() {
        let proc = HostProc::open().unwrap();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        assert!(proc.walk("self/status", flags).is_ok());
        assert!(proc.walk("sys/kernel/hostname", flags).is_ok());
        for path in [
            "self/root/etc/passwd",
            "../etc/passwd",
            "self/exe",
            "mounts",
        ] {
            assert!(proc.walk(path, flags).is_err(), "{path}");
        }
    }
}
