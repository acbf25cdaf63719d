//! Podman and containerd with storage and sockets of their own, driving the runtime under test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bundle::unpack_busybox;
use crate::executable;
use crate::host;
use crate::programs::built;
use crate::user::{USER, give};
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

/// Where podman keeps network namespaces; it makes a mount point of it, and leaves that.
const NETNS: &str = "/run/netns";

/// Podman with `--runtime qrun`.
#[derive(Debug)]
pub struct Podman {
    directory: tempfile::TempDir,
    /// [`NETNS`] was a mount point before.
    had_netns: bool,
    /// Whether [`USER`] calls it.
    of_user: bool,
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
        let had_netns = host::is_mount_point(NETNS);
        Self {
            directory,
            had_netns,
            of_user: false,
        }
    }

    /// Makes one that is called by [`USER`], whom [`crate::user::introduce`] has to make known first, with ids to hand out.
    ///
    /// # Panics
    /// When a program is not built.
    #[must_use]
    pub fn of_user() -> Self {
        let mut podman = Self::new();
        let place = podman.directory.path();
        for directory in ["bin", "home", "user"] {
            if let Err(error) = std::fs::create_dir(place.join(directory)) {
                panic!("make a directory for {directory}: {error}");
            }
        }
        for program in ["qrun", "qshim"] {
            executable::copy(&built(program), &place.join("bin").join(program));
        }
        give(place);
        podman.of_user = true;
        podman
    }

    /// The path of a program under test: the user may not see where it is built.
    fn program(&self, name: &str) -> String {
        let path = match self.of_user {
            true => self.directory.path().join("bin").join(name),
            false => built(name),
        };
        path.display().to_string()
    }

    /// A root file system to run: `podman run --rootfs DIR …`.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.directory.path().join("rootfs")
    }

    /// The command `podman LINE`; `~` is the root file system.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        self.with_runtime(&self.program("qrun"), line)
    }

    /// The same, with the monitor under test instead of conmon.
    #[must_use]
    pub fn monitored(&self, line: &str) -> Command {
        self.command(&format!("--conmon {} {line}", self.program("qshim")))
    }

    /// Where it keeps what it knows of a container.
    #[must_use]
    pub fn userdata(&self, id: &str) -> PathBuf {
        let containers = self.directory.path().join("root/vfs-containers");
        containers.join(id).join("userdata")
    }

    /// Fails unless nothing of its containers is left: no process, no mount, no cgroup of one of `ids`.
    #[track_caller]
    pub fn assert_nothing_left(&self, ids: &[String]) {
        until("nothing is left", || {
            host::traces(self.directory.path(), ids)
                .is_empty()
                .then_some(())
        });
    }

    /// The same, with another runtime.
    #[must_use]
    pub fn with_runtime(&self, runtime: &str, line: &str) -> Command {
        let place = self.directory.path();
        let mut command = Command::new("podman");
        if self.of_user {
            let user = USER.to_string();
            command = Command::new("setpriv");
            command.args(["--reuid", &user, "--regid", &user]);
            command
                .args(["--clear-groups", "podman"])
                .current_dir(place);
            command.env("HOME", place.join("home"));
            command.env("XDG_RUNTIME_DIR", place.join("user"));
        }
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
        if self.of_user {
            // Ends the process that keeps the user's namespaces.
            let _ = self.command("system migrate").output();
        }
        let clean = || {
            host::traces(self.directory.path(), &[])
                .is_empty()
                .then_some(())
        };
        if within(std::time::Duration::from_secs(5), clean).is_none() {
            scrub(self.directory.path());
        }
        host::remove_empty_cgroups("libpod_parent");
        if !self.had_netns && host::is_mount_point(NETNS) {
            let _ = rustix::mount::unmount(NETNS, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Who serves the containers of the runtime type `io.containerd.runc.v2`, containerd's default and Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shim {
    /// containerd's own shim.
    Theirs,
    /// The one under test, installed under the name of theirs.
    Ours,
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
        Self::start_with(Shim::Theirs)
    }

    /// As above, with a shim in the place of its default.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start_with(shim: Shim) -> Self {
        let directory = place();
        if shim == Shim::Ours
            && let Err(error) = rename_ours(&first_on_path(directory.path()))
        {
            panic!("install the shim under another name: {error}");
        }
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

    /// Restarts it with its CRI, configured by `text`.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn restart_with_cri(&mut self, text: &str) {
        if let Err(error) = std::fs::write(self.directory.path().join(CRI), text) {
            panic!("configure CRI: {error}");
        }
        self.restart();
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
        self.ctr_in(&self.namespace(), line)
    }

    fn ctr_in(&self, namespace: &str, line: &str) -> Command {
        let place = self.directory.path();
        let mut command = Command::new("ctr");
        command.arg("--address").arg(place.join("sock"));
        command.args(["--namespace", namespace]);
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

    /// The process ids of the shims that serve its containers; not of those that only start one, or clean up after one.
    #[must_use]
    pub fn shims(&self) -> Vec<i32> {
        let named = host::processes_naming(self.directory.path());
        let serves = |line: &str| !line.ends_with(" start") && !line.ends_with(" delete");
        named
            .into_iter()
            .filter(|(_, line)| line.contains("containerd-shim-") && serves(line))
            .map(|(pid, _)| pid)
            .collect()
    }

    fn remove_containers(&self, namespace: &str) {
        let ctr = |line: &str| self.ctr_in(namespace, line).output();
        let Ok(list) = ctr("container ls --quiet") else {
            return;
        };
        for id in String::from_utf8_lossy(&list.stdout).lines() {
            let _ = ctr(&format!("task resume {id}"));
            let _ = ctr(&format!("task rm --force {id}"));
            let _ = ctr(&format!("container rm {id}"));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.remove_containers(&self.namespace());
        // CRI's own.
        self.remove_containers("k8s.io");
        self.end();
        scrub(self.directory.path());
        host::remove_empty_cgroups(&self.namespace());
        for runtime in ["qrun", "runc"] {
            let state = Path::new("/run/containerd").join(runtime);
            let _ = std::fs::remove_dir_all(state.join(self.namespace()));
        }
    }
}

/// The file with the configuration of CRI, which is there if it is wanted.
const CRI: &str = "cri.toml";

fn serve(place: &Path) -> std::io::Result<Child> {
    let config = place.join("config.toml");
    let (cri, disabled) = match std::fs::read_to_string(place.join(CRI)) {
        Ok(text) => (text, ""),
        Err(_) => (String::new(), "\"io.containerd.grpc.v1.cri\","),
    };
    let text = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [{disabled} \"io.containerd.snapshotter.v1.btrfs\",\
         \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
         [grpc]\naddress = \"{0}/sock\"\n[ttrpc]\naddress = \"{0}/ttrpc\"\n{cri}",
        place.display()
    );
    std::fs::write(&config, text)?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.join("log"))?;
    let mut path = first_on_path(place).into_os_string();
    path.push(":");
    path.push(path_with_ours());
    // A descriptor is left open in it, as whoever starts a server may do: it passes that on to all it starts.
    Command::new("sh")
        .args([
            "-c",
            "exec 9<\"$1\" && exec containerd --config \"$1\"",
            "sh",
        ])
        .arg(config)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Where containerd looks for programs before it does elsewhere.
fn first_on_path(place: &Path) -> PathBuf {
    place.join("bin")
}

/// Puts the shim under test into `directory` as containerd's own.
fn rename_ours(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir(directory)?;
    let link = directory.join("containerd-shim-runc-v2");
    std::os::unix::fs::symlink(built("containerd-shim-qrun-v2"), link)
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
