//! `qrun checkpoint` and `restore`: what was running goes on, and nothing but the live request decides with what.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::{Outcome, shell, tool, wait};
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::wait::{patience, until};

mod memory;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "checkpoint",
        &[Need::Root, Need::Criu],
        [
            goes_on_where_it_was,
            in_every_cgroup_mode,
            a_paused_container,
            and_lives_on,
            pipes_are_the_restorers,
            a_terminal,
            in_the_foreground,
            mounts_are_those_of_the_bundle,
            hooks_run_again,
            what_fails_leaves_nothing,
            a_hostile_directory,
        ]
    );
    all.extend(memory::tests());
    all.extend(tests!(
        "checkpoint",
        &[Need::Root, Need::Criu, Need::Program("ip")],
        [connections_and_a_network_namespace_from_outside]
    ));
    all.extend(tests!(
        "checkpoint",
        &[
            Need::Root,
            Need::Criu,
            Need::Program("flock"),
            Need::Program("ldd")
        ],
        [file_locks]
    ));
    all.extend(tests!(
        "checkpoint",
        &[Need::Root],
        [without_criu, only_what_runs]
    ));
    all
}

/// Counts in `/count`, some twenty times a second. The file is never truncated: whoever restores while it is open wants it
/// to be as long as it was.
const COUNT: &str =
    "i=0; while true; do i=$((i+1)); printf '%08d\\n' $i 1<> /count; usleep 50000; done";

/// A runtime, a bundle, and a place for a checkpoint.
struct Scene {
    runtime: Runtime,
    bundle: Bundle,
    image: PathBuf,
}

impl Scene {
    fn new(script: &str) -> Self {
        let runtime = Runtime::new();
        let image = runtime.directory().join("image");
        Self {
            bundle: Bundle::new(&["sh", "-c", script]),
            runtime,
            image,
        }
    }

    /// Runs a command after which a container lives on, with no streams that are the host's.
    #[track_caller]
    fn leave(&self, line: &str) {
        let outcome = self.try_leave(line);
        assert!(outcome.is_ok(), "{line}: {}", outcome.unwrap_err());
    }

    /// The same; what it had to say when it failed.
    fn try_leave(&self, line: &str) -> Result<(), String> {
        let log = self.runtime.directory().join("log");
        let _ = fs::remove_file(&log);
        let mut child = self
            .runtime
            .command(&format!("--log {} {line}", log.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        match wait(&mut child, patience()) {
            Some(0) => Ok(()),
            code => Err(format!(
                "{code:?}: {}",
                fs::read_to_string(log).unwrap_or_default()
            )),
        }
    }

    /// Starts a container of the bundle.
    #[track_caller]
    fn started(&self, name: &str) -> String {
        let id = self.runtime.id(name);
        self.leave(&format!(
            "run -d --bundle {} {id}",
            self.bundle.path().display()
        ));
        id
    }

    #[track_caller]
    fn checkpoint(&self, id: &str, options: &str) -> Outcome {
        let image = self.image.display();
        self.runtime
            .run(&format!("checkpoint --image-path {image} {options} {id}"))
    }

    fn restore_line(&self, id: &str, options: &str) -> String {
        format!(
            "restore --bundle {} --image-path {} {options} {id}",
            self.bundle.path().display(),
            self.image.display()
        )
    }

    #[track_caller]
    fn restore(&self, id: &str, options: &str) {
        self.leave(&self.restore_line(id, &format!("-d {options}")));
        assert_eq!(self.runtime.state(id)["status"], "running");
    }

    /// What the container has counted to.
    fn count(&self) -> u64 {
        let count = || {
            let text = fs::read_to_string(self.bundle.rootfs().join("count")).ok()?;
            text.trim().parse().ok()
        };
        until("it counts", count)
    }

    #[track_caller]
    fn counts_beyond(&self, count: u64) {
        until("it counts on", || (self.count() > count).then_some(()));
    }

    #[track_caller]
    fn exec(&self, id: &str, script: &str) -> Outcome {
        let mut command = self.runtime.command(&format!("exec {id} sh -c"));
        stack_tests::command::run(command.arg(script))
    }

    /// The container has so many processes or more, and every one is in its cgroups.
    #[track_caller]
    fn assert_cgroups(&self, id: &str, least: usize) {
        let ps = self.runtime.run(&format!("ps --format json {id}"));
        let pids: Vec<u32> = serde_json::from_str(ps.ok()).unwrap();
        assert!(pids.len() >= least, "{pids:?}");
        for pid in pids {
            // One that only slept a moment may be gone, or dead, and then it is in no cgroup of v1 any more.
            let Ok(cgroups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
                continue;
            };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if !status.contains("\nState:") || status.contains("\nState:\tZ") {
                continue;
            }
            let own = |name: &str| {
                let mut lines = cgroups.lines().filter(|line| line.contains(name));
                lines.all(|line| line.ends_with(&format!("/{id}")))
            };
            assert!(
                own(":memory:") && own(":freezer:") && cgroups.contains(id),
                "{pid}: {cgroups}"
            );
        }
    }
}

fn goes_on_where_it_was() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.counts_beyond(3);
    let pid_file = scene.runtime.directory().join("pid");
    for round in 1..=3 {
        scene
            .exec(&id, "sleep 1000 < /dev/null > /dev/null 2>&1 &")
            .ok();
        let before = scene.count();
        scene.checkpoint(&id, "").ok();
        scene
            .runtime
            .run(&format!("state {id}"))
            .code(1)
            .err("does not exist");
        scene.restore(&id, &format!("--pid-file {}", pid_file.display()));
        scene.counts_beyond(before);
        scene.assert_cgroups(&id, 1 + round);
        let pid = fs::read_to_string(&pid_file).unwrap();
        assert_eq!(pid, scene.runtime.state(&id)["pid"].to_string());
        scene.exec(&id, "kill -0 1 && hostname").out("nest");
    }
    // Under another name, in another cgroup.
    scene.checkpoint(&id, "--manage-cgroups-mode ignore").ok();
    let other = scene.runtime.id("other");
    scene.restore(&other, "--manage-cgroups-mode ignore");
    scene.assert_cgroups(&other, 4);
    scene.runtime.run(&format!("delete --force {other}")).ok();
    scene.runtime.assert_nothing_left();
}

fn in_every_cgroup_mode() {
    let mut scene = Scene::new(COUNT);
    scene.bundle = scene
        .bundle
        .with("/linux/resources/pids", json!({"limit": 50}));
    let id = scene.started("bird");
    for mode in ["ignore", "soft", "full", "strict"] {
        let mode = format!("--manage-cgroups-mode {mode}");
        scene.checkpoint(&id, &mode).ok();
        // The cgroup is there already when criu is to bring the processes back: strict minds that.
        if mode.ends_with("strict") {
            let restored = scene.try_leave(&scene.restore_line(&id, &format!("-d {mode}")));
            if restored.is_err() {
                scene.runtime.assert_nothing_left();
                return;
            }
        } else {
            scene.restore(&id, &mode);
        }
        scene.assert_cgroups(&id, 1);
        scene
            .exec(&id, "grep -q nest /etc/hostname || hostname")
            .out("nest");
    }
    scene.runtime.run(&format!("delete --force {id}")).ok();
}

fn a_paused_container() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.counts_beyond(1);
    scene.runtime.run(&format!("pause {id}")).ok();
    let before = scene.count();
    scene.checkpoint(&id, "").ok();
    scene.restore(&id, "");
    scene.counts_beyond(before);
    scene.runtime.run(&format!("delete --force {id}")).ok();
    scene.runtime.assert_nothing_left();
}

fn and_lives_on() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.counts_beyond(1);
    scene.checkpoint(&id, "--leave-running").ok();
    let before = scene.count();
    scene.counts_beyond(before + 3);
    scene.runtime.run(&format!("delete --force {id}")).ok();
    let ended = scene.count();
    scene.restore(&id, "");
    until("it counts on from the checkpoint", || {
        (scene.count() < ended).then_some(())
    });
    scene.runtime.run(&format!("delete --force {id}")).ok();
    scene.runtime.assert_nothing_left();
}

/// Runs `qrun LINE` with pipes as its streams.
fn with_pipes(scene: &Scene, line: &str) -> Child {
    scene
        .runtime
        .command(line)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Says a word to the container and hears it back.
fn talk(child: &mut Child, word: &str) {
    let input = child.stdin.as_mut().unwrap();
    input.write_all(format!("{word}\n").as_bytes()).unwrap();
    let mut heard = vec![0; word.len() + 1];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut heard)
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), format!("{word}\n"));
}

fn pipes_are_the_restorers() {
    let mut scene = Scene::new("");
    scene.bundle = scene.bundle.with("/process/args", json!(["cat"]));
    let id = scene.runtime.id("bird");
    let run = format!("run -d --bundle {} {id}", scene.bundle.path().display());
    let mut first = with_pipes(&scene, &run);
    assert_eq!(wait(&mut first, patience()), Some(0));
    talk(&mut first, "before");
    scene.checkpoint(&id, "").ok();
    let mut second = with_pipes(&scene, &scene.restore_line(&id, "-d"));
    assert_eq!(wait(&mut second, patience()), Some(0));
    talk(&mut second, "after");
    // Also the second time, when the pipes are those of a restore.
    scene.checkpoint(&id, "").ok();
    let mut third = with_pipes(&scene, &scene.restore_line(&id, "-d"));
    assert_eq!(wait(&mut third, patience()), Some(0));
    talk(&mut third, "again");
    drop(third.stdin.take());
    scene.runtime.wait_for(&id, "stopped");
    scene.runtime.run(&format!("delete {id}")).ok();
}

fn a_terminal() {
    let mut scene = Scene::new("while read word; do echo heard $word; done");
    scene.bundle = scene.bundle.with("/process/terminal", json!(true));
    let id = scene.runtime.id("bird");
    let run = format!("run --bundle {} {id}", scene.bundle.path().display());
    let mut before = Pty::start(&scene.runtime.command(&run));
    before.send("one\n");
    before.expect("heard one");
    for word in ["two", "three"] {
        scene.checkpoint(&id, "").ok();
        before.exit();
        before = Pty::start(&scene.runtime.command(&scene.restore_line(&id, "")));
        before.send(&format!("{word}\n"));
        before.expect(&format!("heard {word}"));
    }
    before.send("\x04");
    before.exit();
    scene.runtime.assert_nothing_left();
}

fn in_the_foreground() {
    let scene = Scene::new("trap 'exit 9' TERM; while true; do usleep 10000; done");
    let id = scene.started("bird");
    scene.checkpoint(&id, "").ok();
    let mut child = scene
        .runtime
        .command(&scene.restore_line(&id, ""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("it is restored", || {
        let state = scene.runtime.run(&format!("state {id}"));
        state.stdout.contains("running").then_some(())
    });
    // A signal is passed on, and the exit code comes back.
    shell(&format!("kill -TERM {}", child.id()));
    assert_eq!(wait(&mut child, patience()), Some(9));
    scene.runtime.assert_nothing_left();
}

fn file_locks() {
    let mut scene = Scene::new("");
    let copy = format!(
        "cp -L --parents $(command -v flock) $(ldd $(command -v flock) | grep -o '/[^ ]*') {}",
        scene.bundle.rootfs().display()
    );
    tool("sh", &["-c", &copy]);
    let args = json!(["/usr/bin/flock", "/lock", "sleep", "1000"]);
    scene.bundle = scene.bundle.with("/process/args", args);
    let id = scene.started("bird");
    let locked = || {
        scene
            .exec(&id, "/usr/bin/flock -n /lock true; echo $?")
            .stdout
            == "1\n"
    };
    until("it is locked", || locked().then_some(()));
    scene
        .checkpoint(&id, "")
        .code(1)
        .err("criu failed: type DUMP")
        .err("--file-locks");
    assert_eq!(scene.runtime.state(&id)["status"], "running");
    scene.checkpoint(&id, "--file-locks").ok();
    scene.restore(&id, "--file-locks");
    assert!(locked());
    scene.runtime.run(&format!("delete --force {id}")).ok();
}

fn mounts_are_those_of_the_bundle() {
    let mut scene = Scene::new(COUNT);
    let data = scene.runtime.directory().join("data");
    fs::create_dir_all(data.join("inner")).unwrap();
    fs::write(data.join("who"), "old").unwrap();
    let inner = scene.runtime.directory().join("inner");
    fs::create_dir(&inner).unwrap();
    symlink("/real/place", scene.bundle.rootfs().join("link")).unwrap();
    let bind = |from: &Path, to: &str| json!({"destination": to, "source": from, "type": "bind", "options": ["bind"]});
    scene.bundle = scene
        .bundle
        .with("/mounts/-", bind(&data, "/link"))
        .with("/mounts/-", bind(&inner, "/link/inner/most"))
        .with(
            "/linux/maskedPaths",
            json!(["/proc/kcore", "/proc/timer_list", "/proc/scsi"]),
        );
    let id = scene.started("bird");
    scene.checkpoint(&id, "").ok();
    // Mount points come into being again, and what the bundle names now is what is mounted.
    fs::remove_dir_all(data.join("inner")).unwrap();
    let other = scene.runtime.directory().join("other");
    fs::rename(&data, &other).unwrap();
    fs::write(other.join("who"), "new").unwrap();
    let place = scene.bundle.config["mounts"].as_array().unwrap().len() - 2;
    scene.bundle = scene
        .bundle
        .with(&format!("/mounts/{place}/source"), json!(other));
    scene.restore(&id, "");
    scene
        .exec(&id, "cat /real/place/who; touch /link/inner/most/here")
        .out("new");
    assert!(inner.join("here").exists());
    let masked = scene.exec(
        &id,
        "head -c 10 /proc/timer_list | wc -c; ls /proc/scsi | wc -l",
    );
    assert_eq!(masked.ok(), "0\n0");
    scene
        .exec(&id, "echo 1 > /proc/sys/kernel/panic")
        .code(1)
        .err("Read-only");
    scene.runtime.run(&format!("delete --force {id}")).ok();
    scene.runtime.assert_nothing_left();
}

fn hooks_run_again() {
    let mut scene = Scene::new(COUNT);
    let log = scene.runtime.directory().join("hooks");
    let hook = |name: &str| {
        let script = format!("echo {name} $(cat) >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let points = ["prestart", "createRuntime", "poststart", "poststop"];
    let hooks: serde_json::Map<_, _> = points
        .map(|it| (it.to_owned(), hook(it)))
        .into_iter()
        .collect();
    scene.bundle = scene.bundle.with("/hooks", json!(hooks));
    let id = scene.started("bird");
    fs::remove_file(&log).unwrap();
    scene.checkpoint(&id, "").ok();
    scene.restore(&id, "");
    let pid = scene.runtime.state(&id)["pid"].to_string();
    let text = fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    for (line, name) in lines.iter().zip(["poststop", "prestart", "createRuntime"]) {
        assert!(line.starts_with(name), "{text}");
        assert_eq!(name == "poststop", !line.contains(&pid), "{text}");
    }
    // A hook that fails ends the restore.
    scene.checkpoint(&id, "").ok();
    let failing = json!([{"path": "/bin/false"}]);
    scene.bundle = scene.bundle.with("/hooks/createRuntime", failing);
    let error = scene.try_leave(&scene.restore_line(&id, "-d")).unwrap_err();
    assert!(
        error.contains("error running createRuntime hook #0"),
        "{error}"
    );
    scene.runtime.assert_nothing_left();
}

fn what_fails_leaves_nothing() {
    // With no file that it may have open in the checkpoint, and change while it goes on.
    let scene = Scene::new("exec sleep 1000");
    let id = scene.started("bird");
    let fails = |line: &str, text: &str| {
        let error = scene.try_leave(line).unwrap_err();
        assert!(error.contains(text), "{line}: {error}");
    };
    scene.checkpoint(&id, "--leave-running").ok();
    fails(&scene.restore_line(&id, "-d"), "already exists");
    assert_eq!(scene.runtime.state(&id)["status"], "running");
    scene.runtime.run(&format!("delete --force {id}")).ok();
    let nowhere = scene.runtime.directory().join("nowhere/pid");
    let pid_file = format!("-d --pid-file {}", nowhere.display());
    fails(&scene.restore_line(&id, &pid_file), "nowhere");
    scene.runtime.assert_nothing_left();
    fs::write(scene.image.join("inventory.img"), "no image").unwrap();
    fails(&scene.restore_line(&id, "-d"), "criu failed");
    scene.runtime.assert_nothing_left();
    fs::remove_dir_all(&scene.image).unwrap();
    fails(&scene.restore_line(&id, "-d"), "no such file or directory");
    scene.runtime.assert_nothing_left();
}

fn a_hostile_directory() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.checkpoint(&id, "").ok();
    let victim = scene.runtime.directory().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let work = scene.runtime.directory().join("work");
    fs::create_dir(&work).unwrap();
    let lines = [
        scene.restore_line(&id, "-d"),
        scene.restore_line(&id, &format!("-d --work-path {}", work.display())),
    ];
    for (directory, line) in [&scene.image, &work].iter().zip(lines) {
        for name in ["restore.log", "stats-restore", "pages-99.img"] {
            let path = directory.join(name);
            let _ = fs::remove_file(&path);
            symlink(&victim, &path).unwrap();
            let error = scene.try_leave(&line).unwrap_err();
            assert!(error.contains("has no links"), "{name}: {error}");
            fs::remove_file(&path).unwrap();
        }
    }
    // Names that are no pipes are not taken over.
    fs::write(
        scene.image.join("descriptors.json"),
        r#"["extRootNetNS","/etc/passwd","pipe:[x]"]"#,
    )
    .unwrap();
    scene.restore(&id, "");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    scene.runtime.run(&format!("delete --force {id}")).ok();
    scene.runtime.assert_nothing_left();
}

/// A network namespace, held by a process that ends when this is dropped. Not one with a name: `ip netns` leaves a mount.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let script = "ip link set lo up && echo ready && exec sleep 1000";
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 6];
        holder.stdout.take().unwrap().read_exact(&mut word).unwrap();
        Self(holder)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connections_and_a_network_namespace_from_outside() {
    // Two processes of one container talk over loopback: what goes in at one end is counted at the other.
    let mut scene = Scene::new(
        "sleep 100000 | nc -l -p 7000 | while read line; do echo $line > /count; done & \
         usleep 300000; i=0; while true; do i=$((i+1)); echo $i; usleep 50000; done | nc 127.0.0.1 7000",
    );
    let namespace = Namespace::new();
    let path = namespace.path();
    let list = scene.bundle.config["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .position(|it| it["type"] == "network")
        .unwrap();
    scene.bundle = scene
        .bundle
        .with(&format!("/linux/namespaces/{list}/path"), json!(path));
    let id = scene.started("bird");
    scene.counts_beyond(3);
    for _ in 0..2 {
        let before = scene.count();
        scene.checkpoint(&id, "--tcp-established").ok();
        scene.restore(&id, "--tcp-established");
        scene.counts_beyond(before + 2);
        let pid = &scene.runtime.state(&id)["pid"];
        let inode = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(path).unwrap().ino()
        };
        assert_eq!(inode(&format!("/proc/{pid}/ns/net")), inode(&path));
    }
    scene.runtime.run(&format!("delete --force {id}")).ok();
}

fn without_criu() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    let outcome = stack_tests::command::run(
        scene
            .runtime
            .command(&format!(
                "checkpoint --image-path {} {id}",
                scene.image.display()
            ))
            .env("PATH", "/nowhere"),
    );
    outcome
        .code(1)
        .err("executable file not found in $PATH (install criu 4");
    assert_eq!(scene.runtime.state(&id)["status"], "running");
    scene.runtime.run(&format!("delete --force {id}")).ok();
    fs::write(scene.image.join("descriptors.json"), "[]").unwrap();
    let mut restore = scene.runtime.command(&scene.restore_line(&id, "-d"));
    stack_tests::command::run(restore.env("PATH", "/nowhere"))
        .code(1)
        .err("install criu 4");
    scene.runtime.assert_nothing_left();
}

fn only_what_runs() {
    let scene = Scene::new("true");
    let id = scene.runtime.id("bird");
    scene.leave(&format!(
        "create --bundle {} {id}",
        scene.bundle.path().display()
    ));
    scene
        .checkpoint(&id, "")
        .code(1)
        .err("Container cannot be checkpointed in created state");
    scene.runtime.run(&format!("start {id}")).ok();
    scene.runtime.wait_for(&id, "stopped");
    scene
        .checkpoint(&id, "")
        .code(1)
        .err("Container cannot be checkpointed in stopped state");
    assert!(!scene.image.exists());
    scene.runtime.run(&format!("delete {id}")).ok();
    scene
        .checkpoint(&id, "")
        .code(1)
        .err("container does not exist");
}
