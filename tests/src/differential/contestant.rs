//! One bundle's whole life under one runtime.

use std::fs::{DirBuilder, File};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::{Case, Sight, host_view, sight};
use crate::command::wait;
use crate::host;
use crate::wait::{patience, within};

/// Where the probe is in the container.
const PROBE: &str = "/bin/probe";

/// A runtime with runc's command line, and a place for its bundles and states.
#[derive(Debug)]
pub struct Contestant {
    program: PathBuf,
    directory: PathBuf,
    probe: PathBuf,
}

/// A process with namespaces of its own, for others to join; ends when dropped.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no `unshare`.
    #[must_use]
    pub fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--uts", "--ipc", "--cgroup", "sleep", "10000"]);
        let child = match command.stdin(Stdio::null()).spawn() {
            Ok(child) => Self(child),
            Err(error) => panic!("start unshare: {error}"),
        };
        crate::wait::until("unshare has become sleep", || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", child.0.id())).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        child
    }

    /// Its namespaces, as `/proc/PID/ns` shows them.
    fn namespaces(&self) -> Vec<String> {
        let directory = format!("/proc/{}/ns", self.0.id());
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .filter_map(|it| Some(std::fs::read_link(it.path()).ok()?.display().to_string()))
            .collect()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Contestant {
    /// Makes one that keeps everything below `directory`. Two with the same directory take turns.
    #[must_use]
    pub fn new(program: &Path, directory: &Path, probe: &Path) -> Self {
        Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            probe: probe.to_owned(),
        }
    }

    /// Takes a container through its life and tells what was seen.
    ///
    /// # Panics
    /// When the bundle cannot be written.
    #[must_use]
    pub fn run(&self, case: &Case, holder: &Holder) -> Sight {
        let bundle = self.directory.join("bundle");
        let _ = std::fs::remove_dir_all(&bundle);
        if let Err(error) = self.write(&bundle, case, holder) {
            panic!("write the bundle of {}: {error}", case.name);
        }
        let id = format!("qdiff{}-{}", std::process::id(), case.name);
        let mut seen = self.live(&bundle, case, &id, holder);
        drop(self.command("delete", &["--force", &id]).output());
        let path = case.config["linux"]["cgroupsPath"].as_str().unwrap_or("");
        let left: Vec<_> = host::cgroups()
            .into_iter()
            .filter(|it| it.contains(&id) || !path.is_empty() && it.contains(path))
            .collect();
        seen.insert("left cgroups".into(), left.join(" "));
        for cgroup in left.iter().rev() {
            let _ = std::fs::remove_dir(cgroup);
        }
        let place = self.directory.display().to_string();
        let left: Vec<_> = host::mounts()
            .into_iter()
            .filter(|it| it.contains(&place))
            .collect();
        seen.insert("left mounts".into(), left.join(" "));
        host::unmount_below(&self.directory);
        seen.insert("left states".into(), entries(&self.directory.join("state")));
        let _ = std::fs::remove_dir_all(self.directory.join("state"));
        tree(&bundle.join("rootfs"), "", &mut seen);
        let log = std::fs::read_to_string(bundle.join("data/hooks")).unwrap_or_default();
        hooks(&log, &mut seen);
        for value in seen.values_mut() {
            *value = value.replace(&place, "@").replace(&id, "ID");
            if !path.is_empty() {
                *value = value.replace(path, "/PATH");
            }
        }
        seen
    }

    /// From `create` to the end of the process.
    fn live(&self, bundle: &Path, case: &Case, id: &str, holder: &Holder) -> Sight {
        let pid_file = bundle.join("pid");
        let out = bundle.join("out");
        let (path, pid_path) = (bundle.display().to_string(), pid_file.display().to_string());
        let mut words = vec!["--bundle", &path, "--pid-file", &pid_path];
        let socket = bundle.join("socket").display().to_string();
        let terminal = case.config["process"]["terminal"] == true;
        let console = terminal.then(|| Console::listen(Path::new(&socket)));
        if terminal {
            words.extend(["--console-socket", &socket]);
        }
        words.push(id);
        let mut seen = Sight::new();
        let created = self.to_end("create", &words, &out, bundle);
        let works = created == "works";
        seen.insert("create".into(), created);
        let pid = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let (true, Ok(pid)) = (works, pid.trim().parse::<i32>()) else {
            return seen;
        };
        let started = self.to_end("start", &[id], &out, bundle);
        seen.insert("start".into(), started);
        let said = || match &console {
            Some(console) => console.heard(),
            None => std::fs::read_to_string(&out).unwrap_or_default(),
        };
        // Under a filter that ends it, the probe ends without a last word.
        within(patience(), || {
            (said().trim_end().ends_with("\nend") || ended(pid)).then_some(())
        });
        let text = said();
        let report = text.rfind("\nend").map_or("", |end| &text[..end]);
        match serde_json::from_str::<Value>(report) {
            Ok(report) => {
                seen.extend(sight::read(&report, &holder.namespaces()));
                host_view::cgroups(pid, &mut seen);
            }
            Err(_) => drop(seen.insert("probe".into(), "no report".into())),
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        within(patience(), || ended(pid).then_some(()));
        seen
    }

    fn command(&self, command: &str, words: &[&str]) -> Command {
        let mut it = Command::new(&self.program);
        it.arg("--root")
            .arg(self.directory.join("state"))
            .arg(command)
            .args(words)
            .stdin(Stdio::null());
        it
    }

    /// `works`, or what the runtime said.
    fn to_end(&self, command: &str, words: &[&str], out: &Path, bundle: &Path) -> String {
        let errors = bundle.join("errors");
        let streams = File::options()
            .create(true)
            .append(true)
            .open(out)
            .and_then(|out| Ok((out, File::create(&errors)?)));
        let (out, err) = match streams {
            Ok(streams) => streams,
            Err(error) => panic!("open a file of {}: {error}", bundle.display()),
        };
        let spawned = self.command(command, words).stdout(out).stderr(err).spawn();
        let code = match spawned {
            Ok(mut child) => wait(&mut child, patience()),
            Err(error) => panic!("start {}: {error}", self.program.display()),
        };
        if code == Some(0) {
            return "works".into();
        }
        let said = std::fs::read_to_string(&errors).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        // What a logger puts around it.
        let last = last.split_once("msg=\"").map_or(last, |(_, text)| text);
        format!("refused: {}", last.trim_end_matches('"'))
    }

    /// A bundle with the smallest root file system that a runtime can be run with.
    fn write(&self, bundle: &Path, case: &Case, holder: &Holder) -> std::io::Result<()> {
        let rootfs = bundle.join("rootfs");
        for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var/lib"] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(rootfs.join(name))?;
        }
        let world = || std::fs::Permissions::from_mode(0o1777);
        std::fs::set_permissions(rootfs.join("tmp"), world())?;
        crate::executable::copy(&self.probe, &rootfs.join(&PROBE[1..]));
        std::fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nbird:x:1000:1000::/var:/bin/sh\n",
        )?;
        std::fs::write(rootfs.join("etc/group"), "root:x:0:\nbird:x:1000:\n")?;
        std::os::unix::fs::symlink("etc", rootfs.join("link"))?;
        std::fs::create_dir_all(bundle.join("data/inner"))?;
        std::fs::set_permissions(bundle.join("data"), world())?;
        std::fs::write(bundle.join("data/file"), "data\n")?;
        std::fs::write(bundle.join("data/inner/file"), "inner\n")?;
        let text = case
            .config
            .to_string()
            .replace("@bundle@", &bundle.display().to_string())
            .replace("@pid@", &holder.0.id().to_string());
        let mut config: Value = serde_json::from_str(&text)?;
        if config["process"]["args"].is_null() {
            config["process"]["args"] = command_line(&config).into();
        }
        std::fs::write(bundle.join("config.json"), config.to_string())
    }
}

/// The probe's command line: with all paths that the configuration does something to.
fn command_line(config: &Value) -> Vec<String> {
    let linux = &config["linux"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut words = vec![PROBE.to_owned(), "/".into(), "/etc".into()];
    let mut add = |path: &Value| words.extend(path.as_str().map(str::to_owned));
    for part in ["maskedPaths", "readonlyPaths"] {
        list(&linux[part]).iter().for_each(&mut add);
    }
    for mount in list(&config["mounts"]) {
        let to = mount["destination"].as_str().unwrap_or("");
        let shown = ["/proc", "/dev", "/sys"]
            .iter()
            .any(|it| to.starts_with(it));
        if !shown {
            add(&mount["destination"]);
        }
    }
    for (name, _) in linux["sysctl"].as_object().into_iter().flatten() {
        add(&format!("/proc/sys/{}", name.replace('.', "/")).into());
    }
    words
}

/// Says whether a process has ended, waited for or not.
fn ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("X", |(_, rest)| rest);
    state.starts_with(['Z', 'X'])
}

fn entries(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names: Vec<_> = entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    names.join(" ")
}

/// What the runtime left in the root file system: mount points, device files.
fn tree(directory: &Path, name: &str, seen: &mut Sight) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let mode = metadata.permissions().mode();
        seen.insert(format!("made {name}"), format!("{mode:o}"));
        if metadata.is_dir() {
            tree(&entry.path(), &name, seen);
        }
    }
}

/// The lines that hooks wrote: which, and the state that each was given.
fn hooks(log: &str, seen: &mut Sight) {
    let mut lines: Vec<_> = log.lines().collect();
    // libcontainer runs those of poststart while the process may still be at its own.
    lines.sort_by_key(|line| ["poststop ", "poststart "].map(|name| line.starts_with(name)));
    for (n, line) in lines.into_iter().enumerate() {
        let (name, state) = line.split_once('{').unwrap_or((line, ""));
        seen.insert(format!("hook {n}"), name.trim().to_owned());
        let state: Value = serde_json::from_str(&format!("{{{state}")).unwrap_or_default();
        for (key, value) in state.as_object().into_iter().flatten() {
            let value = match key.as_str() {
                "pid" => "a pid".to_owned(),
                _ => value.to_string(),
            };
            seen.insert(format!("hook {n} {key}"), value);
        }
    }
}

/// The other end of a container's terminal, read all the time.
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn listen(path: &Path) -> Self {
        let listener = match UnixListener::bind(path) {
            Ok(listener) => listener,
            Err(error) => panic!("listen on {}: {error}", path.display()),
        };
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = heard.clone();
        // Ends with the container's last descriptor of the terminal, or with the test.
        std::thread::spawn(move || {
            let Some(mut terminal) = receive(&listener).map(File::from) else {
                return;
            };
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = terminal.read(&mut buffer) {
                if let Ok(mut heard) = shared.lock() {
                    heard.extend_from_slice(&buffer[..count]);
                }
            }
        });
        Self(heard)
    }

    fn heard(&self) -> String {
        let heard = self.0.lock();
        heard.map_or(String::new(), |it| {
            String::from_utf8_lossy(&it).into_owned()
        })
    }
}

/// The descriptor that comes with the first message.
fn receive(listener: &UnixListener) -> Option<OwnedFd> {
    let (stream, _) = listener.accept().ok()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 4096];
    let mut name = [std::io::IoSliceMut::new(&mut name)];
    recvmsg(&stream, &mut name, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}
