//! Telling others which process a container's, or a further one, is.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Error;
use crate::console;
use crate::failure::{CallFailed, During};
use crate::sys::process::Child;

/// Who is told which process it is.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A file for its id.
    pub(crate) pid_file: Option<PathBuf>,
    /// A socket for a pidfd.
    pub(crate) pidfd_socket: Option<PathBuf>,
}

impl Report {
    /// Whether nobody is to be told.
    pub(crate) fn is_empty(&self) -> bool {
        self.pid_file.is_none() && self.pidfd_socket.is_none()
    }

    /// Tells whoever wants to know.
    pub(crate) fn tell(&self, child: &Child) -> Result<(), Error> {
        if let Some(path) = &self.pid_file {
            write_pid_file(path, child.pid)?;
        }
        if let Some(path) = &self.pidfd_socket {
            let socket = console::connect_socket(path)?;
            let pidfd = child
                .pidfd
                .as_ref()
                .ok_or(Errno::NOSYS)
                .during("pidfd_open", path)?;
            console::send_descriptor(&socket, b"pidfd", pidfd).during("sendmsg", path)?;
        }
        Ok(())
    }
}

/// Writes a pid file, so that whoever waits for it finds it complete: in a hidden file beside it first.
fn write_pid_file(path: &Path, pid: Pid) -> Result<(), CallFailed> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}"));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = || openat(CWD, &hidden, flags, Mode::from_raw_mode(0o666));
    let file = match open() {
        Err(Errno::EXIST) => {
            // Left by somebody who was killed before the rename.
            std::fs::remove_file(&hidden).during("unlink", &hidden)?;
            open()
        }
        other => other,
    };
    let file = file.during("open", &hidden)?;
    let written = File::from(file).write_all(pid.as_raw_nonzero().to_string().as_bytes());
    let renamed = written.and_then(|()| std::fs::rename(&hidden, path));
    if renamed.is_err() {
        // The failure is told; the half file must not stay.
        let _ = std::fs::remove_file(&hidden);
    }
    renamed.during("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_are_complete() {
        let path = std::env::temp_dir().join(format!("qrun-pid-{}", std::process::id()));
        let hidden = path.with_file_name(format!(".qrun-pid-{}", std::process::id()));
        std::fs::write(&hidden, "half").unwrap();
        write_pid_file(&path, rustix::process::getpid()).unwrap();
        assert!(!hidden.exists());
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            std::process::id().to_string()
        );
        std::fs::remove_file(&path).unwrap();
        assert!(write_pid_file(Path::new("/nowhere/pid"), rustix::process::getpid()).is_err());
    }
}
