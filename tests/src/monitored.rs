//! `qshim` as podman starts it, by conmon's command line, with a container of `qrun`'s.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::bundle::Bundle;
use crate::command::run;
use crate::programs::built;
use crate::runtime::Runtime;
use crate::wait::until;

/// A container that was created, and its monitor.
#[derive(Debug)]
pub struct Monitored {
    runtime: Runtime,
    /// The container's bundle, in which the monitor's sockets are.
    pub bundle: Bundle,
    /// Its name, and that of its exit file.
    pub id: String,
    /// The monitor.
    pub pid: i32,
}

impl Monitored {
    /// Creates a container that runs `script` and is monitored with these options besides; each `~` among them
    /// is the directory of [`Monitored::place`].
    ///
    /// # Panics
    /// When there is none after that.
    #[must_use]
    #[track_caller]
    pub fn new(runtime: Runtime, script: &str, options: &str) -> Self {
        let terminal = options.split(' ').any(|word| word == "--terminal");
        let bundle = Bundle::new(&["sh", "-c", script]).with("/process/terminal", terminal.into());
        let id = runtime.id("m");
        let (place, path) = (runtime.directory().display(), bundle.path().display());
        let line = format!(
            "--api-version 1 --cid {id} --cuuid {id} --full-attach --runtime {} --runtime-arg --root --runtime-arg {} \
             --bundle {path} --exit-dir ~ --container-pidfile {path}/pid --conmon-pidfile {path}/monitor {options}",
            built("qrun").display(),
            runtime.root().display(),
        );
        let mut command = Command::new(built("qshim"));
        let line = line.replace('~', &place.to_string());
        command.args(line.split(' ')).stdin(Stdio::null());
        run(&mut command).ok();
        let monitored = Self {
            pid: until("the monitor has a pid", || {
                number(&bundle.path().join("monitor"))
            }),
            runtime,
            bundle,
            id,
        };
        until("the container is created", || {
            (monitored
                .runtime
                .run(&format!("state {}", monitored.id))
                .code
                == 0)
                .then_some(())
        });
        monitored
    }

    /// Lets the container go.
    #[track_caller]
    pub fn start(&self) {
        self.runtime.run(&format!("start {}", self.id)).ok();
    }

    /// The directory that `~` stands for.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.runtime.directory()
    }

    /// Where the runtime keeps its state.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.runtime.root()
    }

    /// A file of the container's.
    #[must_use]
    pub fn inside(&self, name: &str) -> PathBuf {
        self.bundle.rootfs().join(name)
    }

    /// Waits for the exit code.
    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        let file = self.place().join(&self.id);
        let code = until("there is an exit code", || number(&file));
        self.runtime
            .run(&format!("delete --force {}", self.id))
            .ok();
        code
    }

    /// Connects to the attach socket.
    ///
    /// # Panics
    /// When nobody listens there.
    #[must_use]
    #[track_caller]
    pub fn attach(&self) -> std::os::fd::OwnedFd {
        let address = SocketAddrUnix::new(self.bundle.path().join("attach"));
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        match (address, fd) {
            (Ok(address), Ok(fd)) if connect(&fd, &address).is_ok() => fd,
            failed => panic!("attach: {failed:?}"),
        }
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self
                .runtime
                .command(&format!("delete --force {}", self.id))
                .output();
        }
    }
}

/// The number in a file, when there is one.
fn number(file: &Path) -> Option<i32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
