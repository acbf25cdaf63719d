//! `qengine` with storage of its own, by default in a network namespace of its own, so that tests
//! never meet on a bridge, an address or a port.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::command::{Outcome, run, run_with_input};
use crate::host;
use crate::netns;
use crate::programs::built;
use crate::registry::{Door, Registry};
use crate::wait::{until, within};
use crate::words;

/// How the names of the tests' own directories begin; short, because socket paths may not be long.
pub const DIRECTORY_PREFIX: &str = "/tmp/qe";

/// An engine and all it made; gone without a trace when dropped.
#[derive(Debug)]
pub struct Engine {
    directory: tempfile::TempDir,
    registry: OnceCell<Registry>,
    /// Where registries.conf says that Docker Hub has a mirror here.
    hub: OnceCell<PathBuf>,
    ids: RefCell<BTreeSet<String>>,
    /// Links and packet filter rules there were before, unless the test makes networks, which stay.
    network: RefCell<Option<(BTreeSet<String>, BTreeSet<String>)>>,
    /// `QENGINE_FIREWALL`, where a test chooses the packet filter.
    firewall: Option<&'static str>,
}

impl Engine {
    /// Makes an engine and moves the calling thread into a new network namespace.
    #[must_use]
    pub fn new() -> Self {
        netns::isolate();
        Self::on_host()
    }

    /// Makes an engine in the calling thread's network namespace.
    ///
    /// # Panics
    /// When there is no room for its directory, or the programs are not built.
    #[must_use]
    pub fn on_host() -> Self {
        for program in ["qengine", "qshim", "qrun"] {
            drop(built(program));
        }
        let directory = tempfile::Builder::new()
            .prefix("qe")
            .rand_bytes(6)
            .tempdir_in("/tmp");
        match directory {
            Ok(directory) => Self {
                directory,
                registry: OnceCell::new(),
                hub: OnceCell::new(),
                ids: RefCell::default(),
                network: RefCell::new(Some((host::links(), host::rules()))),
                firewall: None,
            },
            Err(error) => panic!("make a directory for an engine: {error}"),
        }
    }

    /// Makes all commands use this packet filter: nftables, iptables or none.
    #[must_use]
    pub fn with_firewall(mut self, firewall: &'static str) -> Self {
        self.firewall = Some(firewall);
        self
    }

    /// A directory for what the test wants to keep; the engine's own are below it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The engine's `--root`.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.directory().join("root")
    }

    /// The command `qengine --root … --run-root … LINE`; `~` is [`Engine::directory`].
    #[must_use]
    pub fn command(&self, line: &str) -> Command {
        let home = self.directory().display().to_string();
        let mut command = Command::new(built("qengine"));
        command.arg("--root").arg(self.root());
        command.arg("--run-root").arg(self.directory().join("run"));
        command.args(
            words::split(line)
                .iter()
                .map(|word| word.replace('~', &home)),
        );
        command
            .env("HOME", self.directory())
            .env_remove("QENGINE_ROOT")
            .env_remove("QENGINE_FIREWALL")
            .envs(self.firewall.map(|firewall| ("QENGINE_FIREWALL", firewall)));
        command
            .env_remove("DOCKER_CONFIG")
            .env_remove("XDG_RUNTIME_DIR");
        if let Some(file) = self.hub.get() {
            command.env("CONTAINERS_REGISTRIES_CONF", file);
        }
        command
    }

    /// Runs `qengine LINE` to its end.
    #[track_caller]
    pub fn run(&self, line: &str) -> Outcome {
        self.run_with_input(line, b"")
    }

    /// Runs `qengine LINE` to its end, with `input` on its stdin.
    #[track_caller]
    pub fn run_with_input(&self, line: &str, input: &[u8]) -> Outcome {
        if line.starts_with("network create") {
            self.network.take();
        }
        let mut command = self.command(line);
        let mut outcome = if input.is_empty() {
            run(&mut command)
        } else {
            run_with_input(&mut command, input)
        };
        outcome.line = format!("qengine {line}");
        self.note_ids();
        outcome
    }

    /// Runs `qengine LINE`, which must succeed, and gives its stdout without the last line end.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok().to_owned()
    }

    /// The registry of this test, started now if it was not.
    pub fn registry(&self) -> &Registry {
        self.registry.get_or_init(Registry::start)
    }

    /// The registry of this test, started now on `port`.
    pub fn registry_on(&self, port: u16) -> &Registry {
        let door = Door {
            port: Some(port),
            ..Door::default()
        };
        self.registry.get_or_init(|| Registry::behind(door))
    }

    /// Lets the test's registry answer for Docker Hub, as a mirror in registries.conf.
    ///
    /// # Panics
    /// When that file can't be written.
    pub fn stand_in_for_docker_hub(&self) {
        let file = self.directory().join("registries.conf");
        let mirror = format!("localhost:{}", self.registry().port);
        let text = format!(
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        );
        if let Err(error) = std::fs::write(&file, text) {
            panic!("write {}: {error}", file.display());
        }
        self.hub.get_or_init(|| file);
    }

    /// Makes the image `base` out of the machine's busybox.
    #[track_caller]
    pub fn with_base(self) -> Self {
        self.ok("image build-base");
        self
    }

    /// Pulls an image from the test's registry and calls it `name`.
    #[track_caller]
    pub fn pull_as(&self, image: &str, name: &str) {
        let reference = self.registry().reference(image);
        self.ok(&format!("pull -q {reference}"));
        self.ok(&format!("tag {reference} {name}"));
    }

    /// What `inspect` says of a container.
    ///
    /// # Panics
    /// When that is not a JSON array of one object.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        let outcome = self.run(&format!("inspect {container}"));
        match serde_json::from_str::<Value>(outcome.ok()) {
            Ok(Value::Array(mut list)) if list.len() == 1 => list.remove(0),
            _ => panic!("expected a JSON array of one object{}", outcome.report()),
        }
    }

    /// The value at a JSON pointer of what `inspect` says.
    #[track_caller]
    pub fn look(&self, container: &str, pointer: &str) -> Value {
        let object = self.inspect(container);
        match object.pointer(pointer) {
            Some(value) => value.clone(),
            None => panic!("no {pointer} in the answer of inspect {container}:\n{object:#}"),
        }
    }

    /// Waits until a container's status is `status`.
    #[track_caller]
    pub fn wait_for(&self, container: &str, status: &str) {
        until(&format!("{container} is {status}"), || {
            (self.look(container, "/State/Status") == status).then_some(())
        });
    }

    /// Waits until the log of a container contains `text`.
    #[track_caller]
    pub fn wait_for_log(&self, container: &str, text: &str) {
        until(&format!("{container} says {text:?}"), || {
            let outcome = self.run(&format!("logs {container}"));
            outcome.code(0);
            (outcome.stdout + &outcome.stderr)
                .contains(text)
                .then_some(())
        });
    }

    /// Remembers every container there ever was, by its directory.
    fn note_ids(&self) {
        let containers = std::fs::read_dir(self.root().join("containers"));
        let names = containers.into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        self.ids
            .borrow_mut()
            .extend(names.filter(|name| name.len() == 64));
    }

    /// What of this engine is on the host although it has no container any more.
    fn traces(&self) -> Vec<String> {
        let ids: Vec<_> = self.ids.borrow().iter().cloned().collect();
        let mut found = host::traces(self.directory(), &ids);
        if let Some((links, rules)) = self.network.borrow().as_ref() {
            let (now, filters) = (host::links(), host::rules());
            found.extend(now.difference(links).map(|link| format!("link {link}")));
            found.extend(filters.difference(rules).map(|rule| format!("rule {rule}")));
        }
        found
    }

    /// Removes every container by force.
    fn remove_containers(&self) -> String {
        self.note_ids();
        let mut said = String::new();
        for id in self.ids.borrow().iter() {
            if self.root().join("containers").join(id).exists()
                && let Ok(output) = self.command(&format!("rm -f -v {id}")).output()
            {
                said.push_str(&String::from_utf8_lossy(&output.stderr));
            }
        }
        said
    }

    /// Removes every container and fails unless the host is as before.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let said = self.remove_containers();
        let clean = within(Duration::from_secs(5), || {
            self.traces().is_empty().then_some(())
        });
        assert!(
            clean.is_some(),
            "left behind: {:#?}\nrm -f said: {said}",
            self.traces()
        );
    }

    /// Tears down by force what a failed test may have left.
    fn scrub(&self) {
        self.remove_containers();
        for (pid, line) in host::processes_naming(self.directory()) {
            // Not the servers of the fixtures, which are this process's children.
            if !line.contains("docker-registry") && pid != std::process::id().cast_signed() {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        host::unmount_below(self.directory());
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Engine {
    #[expect(clippy::print_stderr, reason = "beside the panic of the test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in ["ps -a", "network ls", "images"] {
                if let Ok(output) = self.command(line).output() {
                    let said = [output.stdout, output.stderr].concat();
                    eprintln!("--- qengine {line}\n{}", String::from_utf8_lossy(&said));
                }
            }
            self.scrub();
        } else {
            self.assert_nothing_left();
        }
    }
}
