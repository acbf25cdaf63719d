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

/// containerd, with `ctr` to drive it, in a namespace of its own.
#[derive(Debug)]
pub struct Containerd {
    directory: tempfile::TempDir,
    server: Child,
}

impl Containerd {
    /// Starts it. It finds the programs under test before those of the machine.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start() -> Self {
        let directory = place();
        match serve(directory.path()) {
            Ok(server) => {
                let containerd = Self { directory, server };
                containerd.wait_for_answer();
                containerd
            }
            Err(error) => panic!("start containerd: {error}"),
        }
    }

    /// Ends it and starts it again; containers go on.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn restart(&mut self) {
        self.end();
        match serve(self.directory.path()) {
            Ok(server) => self.server = server,
            Err(error) => panic!("start containerd again: {error}"),
        }
        self.wait_for_answer();
    }

    fn wait_for_answer(&self) {
        until("containerd answers", || {
            let output = self.ctr("version").output();
            output
                .is_ok_and(|output| output.status.success())
                .then_some(())
        });
    }

    fn end(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.server.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        if crate::command::wait(&mut self.server, std::time::Duration::from_secs(10)).is_none() {
            let _ = self.server.kill();
        }
    }

    /// Where all of it is, the tests' own files too.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The namespace of its containers: no other's, for the cgroups and the runtime's state are named after it.
    #[must_use]
    pub fn namespace(&self) -> String {
        let name = self.directory.path().file_name();
        name.unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The command `ctr LINE`; `~` is a busybox root file system.
    #[must_use]
    pub fn ctr(&self, line: &str) -> Command {
        let place = self.directory.path();
        let mut command = Command::new("ctr");
        command.arg("--address").arg(place.join("sock"));
        command.args(["--namespace", &self.namespace()]);
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

    /// The bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self.directory.path();
        let tasks = tasks.join("state/io.containerd.runtime.v2.task");
        tasks.join(self.namespace()).join(id)
    }

    /// The process ids of the shims that serve its containers.
    #[must_use]
    pub fn shims(&self) -> Vec<i32> {
        let named = host::processes_naming(self.directory.path());
        named
            .into_iter()
            .filter(|(_, line)| line.contains("containerd-shim-qrun-v2"))
            .map(|(pid, _)| pid)
            .collect()
    }

    fn remove_containers(&self) {
        let Ok(list) = self.ctr("container ls --quiet").output() else {
            return;
        };
        for id in String::from_utf8_lossy(&list.stdout).lines() {
            let _ = self.ctr(&format!("task resume {id}")).output();
            let _ = self.ctr(&format!("task rm --force {id}")).output();
            let _ = self.ctr(&format!("container rm {id}")).output();
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.remove_containers();
        self.end();
        scrub(self.directory.path());
        host::remove_empty_cgroups(&self.namespace());
        let _ = std::fs::remove_dir_all(Path::new("/run/containerd/qrun").join(self.namespace()));
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
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.join("log"))?;
    Command::new("containerd")
        .arg("--config")
        .arg(config)
        .env("PATH", path_with_ours())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// `$PATH`, with the programs under test before those of the machine.
#[must_use]
pub fn path_with_ours() -> std::ffi::OsString {
    let mut path = crate::programs::directory().into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// Ends processes that name `place`, and unmounts what is mounted below it.
fn scrub(place: &Path) {
    for (pid, _) in host::processes_naming(place) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    host::unmount_below(place);
}
