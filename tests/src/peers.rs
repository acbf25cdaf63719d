//! Podman and containerd with storage and sockets of their own, driving the runtime under test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bundle::unpack_busybox;
use crate::host;
use crate::programs::built;
use crate::wait::{until, within};
use crate::words;

/// A directory with a busybox root file system and all a peer keeps.
fn place() -> tempfile::TempDir {
    let directory = tempfile::Builder::new().prefix("qpeer").tempdir_in("/tmp");
    let directory = directory.unwrap_or_else(|error| panic!("make a directory: {error}"));
    if let Err(error) = unpack_busybox(&directory.path().join("rootfs")) {
        panic!("unpack busybox: {error:#}");
    }
    directory
}

/// Podman with `--runtime qrun`.
#[derive(Debug)]
pub struct Podman {
    directory: tempfile::TempDir,
}

impl Podman {
    /// Makes a podman without containers.
    #[must_use]
    pub fn new() -> Self {
        let directory = place();
        // Its defaults may be above the machine's hard limits, and Debian's CNI file may name
        // plugins that are not there.
        let config = "[containers]\ndefault_ulimits = [\"nofile=1024:2048\", \"nproc=1024:2048\"]\n\
                      [network]\nnetwork_backend = \"netavark\"\n";
        if let Err(error) = std::fs::write(directory.path().join("containers.conf"), config) {
            panic!("write containers.conf: {error}");
        }
        Self { directory }
    }

    /// A root file system to run: `podman run --rootfs DIR …`.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// The command `podman LINE`; `~` is the root file system.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        self.with_runtime(&built("qrun").display().to_string(), line)
    }

    /// The same, with another runtime.
    #[must_use]
    pub fn with_runtime(&self, runtime: &str, line: &str) -> Command {
        let place = self.directory.path();
        let mut command = Command::new("podman");
        command.arg("--root").arg(place.join("root"));
        command.arg("--runroot").arg(place.join("run"));
        command.arg("--tmpdir").arg(place.join("tmp"));
        command.args(["--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"]);
        command.args(["--events-backend", "none"]);
        command.args(["--runtime", runtime]);
        command.env("CONTAINERS_CONF", place.join("containers.conf"));
        let rootfs = self.rootfs().display().to_string();
        command.args(
            words::split(line)
                .iter()
                .map(|word| word.replace('~', &rootfs)),
        );
        command
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command("rm --all --force --time 0").output();
        let clean = || {
            host::traces(self.directory.path(), &[])
                .is_empty()
                .then_some(())
        };
        if within(std::time::Duration::from_secs(5), clean).is_none() {
            scrub(self.directory.path());
        }
        host::remove_empty_cgroups("libpod_parent");
    }
}

/// containerd, with `ctr` to drive it.
#[derive(Debug)]
pub struct Containerd {
    directory: tempfile::TempDir,
    server: Child,
}

impl Containerd {
    /// Starts it.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start() -> Self {
        let directory = place();
        match serve(directory.path()) {
            Ok(server) => {
                let containerd = Self { directory, server };
                until("containerd answers", || {
                    let output = containerd.ctr("version").output();
                    output
                        .is_ok_and(|output| output.status.success())
                        .then_some(())
                });
                containerd
            }
            Err(error) => panic!("start containerd: {error}"),
        }
    }

    /// The command `ctr LINE`; `~` is a busybox root file system.
    #[must_use]
    pub fn ctr(&self, line: &str) -> Command {
        let place = self.directory.path();
        let mut command = Command::new("ctr");
        command.arg("--address").arg(place.join("sock"));
        let rootfs = place.join("rootfs").display().to_string();
        command.args(
            words::split(line)
                .iter()
                .map(|word| word.replace('~', &rootfs)),
        );
        command
    }

    /// The options of `ctr run` that make containerd use the runtime under test.
    #[must_use]
    pub fn runtime(&self) -> String {
        let state = self.directory.path().join("qrun");
        format!(
            "--runc-binary {} --runc-root {}",
            built("qrun").display(),
            state.display()
        )
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.server.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        if crate::command::wait(&mut self.server, std::time::Duration::from_secs(10)).is_none() {
            let _ = self.server.kill();
        }
        scrub(self.directory.path());
        host::remove_empty_cgroups("default");
    }
}

fn serve(place: &Path) -> std::io::Result<Child> {
    let config = place.join("config.toml");
    let text = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\",\
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
         [grpc]\naddress = \"{0}/sock\"\n[ttrpc]\naddress = \"{0}/ttrpc\"\n",
        place.display()
    );
    std::fs::write(&config, text)?;
    let log = File::create(place.join("log"))?;
    Command::new("containerd")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Ends processes that name `place`, and unmounts what is mounted below it.
fn scrub(place: &Path) {
    for (pid, _) in host::processes_naming(place) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    host::unmount_below(place);
}
