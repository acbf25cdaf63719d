//! dockerd with storage, sockets and a containerd of its own, driving the runtime under test, and `docker` to drive it.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::command::{run_with_input, tool};
use crate::host;
use crate::image::busybox_tar;
use crate::peers::{Containerd, Shim};
use crate::programs::{built, on_path};
use crate::wait::until;
use crate::words;

/// The runtime under test, as the daemon's configuration calls it.
const RUNTIME: &str = "qrun";

/// A Docker of the test's own, with an image `bird`: busybox.
#[derive(Debug)]
pub struct Docker {
    daemon: Child,
    /// After the daemon: it removes the directory.
    containerd: Containerd,
}

impl Docker {
    /// Starts it, with containers served by `shim`, in the calling thread's network namespace.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn start(shim: Shim) -> Self {
        let containerd = Containerd::start_with(shim);
        configure(&containerd, shim);
        let daemon = serve(containerd.directory());
        let docker = Self { daemon, containerd };
        docker.wait_for_answer();
        let mut tar = Vec::new();
        if let Err(error) = busybox_tar(&mut tar) {
            panic!("make a root file system: {error:#}");
        }
        run_with_input(&mut docker.command("import - bird"), &tar).ok();
        docker
    }

    /// Kills the daemon; containers go on.
    pub fn kill_daemon(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }

    /// Starts the daemon again.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn start_daemon(&mut self) {
        self.daemon = serve(self.containerd.directory());
        self.wait_for_answer();
    }

    /// The command `docker LINE`.
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        let place = self.containerd.directory();
        let mut command = Command::new("docker");
        command.env(
            "DOCKER_HOST",
            format!("unix://{}/docker.sock", place.display()),
        );
        command.env("DOCKER_CONFIG", place.join("client"));
        command.env_remove("DOCKER_CONTEXT");
        command.args(words::split(line));
        command
    }

    /// The value of a template of `docker inspect`.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    #[track_caller]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        let mut command = self.command("container inspect --format");
        command.args([template, name]);
        crate::command::run(&mut command).ok().to_owned()
    }

    /// Waits until `docker inspect` says so of a container.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_until(&self, name: &str, template: &str, value: &str) {
        until(&format!("{template} of {name} is {value}"), || {
            (self.inspect(name, template) == value).then_some(())
        });
    }

    /// The process ids of the shims.
    #[must_use]
    pub fn shims(&self) -> Vec<i32> {
        self.containerd.shims()
    }

    /// Removes what it has put into containerd's store. Docker 20.10 stumbles over that itself when it starts from a checkpoint:
    /// the bytes are there already since that was made.
    pub fn forget_uploads(&self) {
        let list = crate::command::run(&mut self.containerd.ctr("content ls --quiet"));
        for digest in list.ok().lines() {
            let _ = self
                .containerd
                .ctr(&format!("content rm {digest}"))
                .output();
        }
    }

    fn wait_for_answer(&self) {
        until("dockerd answers", || {
            let output = self.command("version").output();
            output
                .is_ok_and(|output| output.status.success())
                .then_some(())
        });
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Ok(list) = self.command("ps --all --quiet").output() {
            for id in String::from_utf8_lossy(&list.stdout).lines() {
                let _ = self.command(&format!("rm --force {id}")).output();
            }
        }
        let daemon = Pid::from_raw(self.daemon.id().cast_signed());
        let _ = kill(daemon, Signal::SIGTERM);
        if crate::command::wait(&mut self.daemon, Duration::from_secs(10)).is_none() {
            let _ = self.daemon.kill();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.containerd.directory().join("dockerd.log"));
            let log = log.unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(20).collect();
            for line in last.into_iter().rev() {
                eprintln!("dockerd: {line}");
            }
        }
        host::unmount_below(self.containerd.directory());
        // It makes these wherever its own are; with a Docker of the machine's they are that one's.
        if !Path::new("/run/docker.sock").exists() {
            let _ = std::fs::remove_dir("/run/docker/plugins");
            let _ = std::fs::remove_dir("/run/docker");
        }
    }
}

/// The page that says how Docker is given the runtime under test.
const PAGE: &str = include_str!("../../docs/docker.md");

/// The runtime under test as the page has it: by path, or its shim by name, which Docker knows from 23 on.
fn runtimes(shim: Shim, version: u32) -> serde_json::Value {
    let mut examples = PAGE.lines().filter(|line| line.starts_with("    {"));
    let chosen = usize::from(shim == Shim::Ours && version >= 23);
    let example = examples.nth(chosen).unwrap_or_default();
    let example = example.replace("/usr/local/bin/qrun", &built("qrun").display().to_string());
    match serde_json::from_str::<serde_json::Value>(&example) {
        Ok(mut config) => config["runtimes"].take(),
        Err(error) => panic!("docs/docker.md: {example}: {error}"),
    }
}

/// The first part of the daemon's version.
fn version() -> u32 {
    let text = tool("dockerd", &["--version"]);
    let number = text
        .strip_prefix("Docker version ")
        .and_then(|text| text.split('.').next());
    match number.map(str::parse) {
        Some(Ok(number)) => number,
        _ => panic!("dockerd --version says {text}"),
    }
}

/// Writes the daemon's configuration.
fn configure(containerd: &Containerd, shim: Shim) {
    let place = containerd.directory();
    let namespace = containerd.namespace();
    let version = version();
    let mut config = json!({
        "runtimes": runtimes(shim, version),
        "default-runtime": RUNTIME,
        "live-restore": true,
        // For checkpoints.
        "experimental": true,
        "data-root": place.join("data"),
        "exec-root": place.join("exec"),
        "pidfile": place.join("dockerd.pid"),
        "hosts": [format!("unix://{}/docker.sock", place.display())],
        "containerd": place.join("sock"),
        "containerd-namespace": namespace,
        "containerd-plugins-namespace": format!("{namespace}-plugins"),
        "cgroup-parent": format!("/{namespace}"),
        "iptables": false,
        "ip6tables": false,
        "ip-forward": false,
        "max-concurrent-downloads": 1,
    });
    // Up to 24 it has a key of its own, which would be put into /etc/docker.
    if version < 25 {
        config["deprecated-key-path"] = json!(place.join("key.json"));
    }
    if let Err(error) = std::fs::write(place.join("daemon.json"), config.to_string()) {
        panic!("write daemon.json: {error}");
    }
}

/// Starts the daemon.
fn serve(place: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.join("dockerd.log"));
    let spawned = log.and_then(|log| {
        Command::new("dockerd")
            .arg("--config-file")
            .arg(place.join("daemon.json"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    });
    match spawned {
        Ok(daemon) => daemon,
        Err(error) => panic!("start {:?}: {error}", on_path("dockerd")),
    }
}
