//! A monitor apart from whoever started it, and from whoever looks on.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::command::run;
use stack_tests::engine::Engine;
use stack_tests::executable;
use stack_tests::host::processes_naming;
use stack_tests::monitored::Monitored;
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::user::{USER, give};
use stack_tests::wait::{until, within};

pub(super) fn a_hangup_opens_the_log_again() {
    let script = "echo before; while [ ! -e /go ]; do usleep 10000; done; echo after; exit 8";
    for driver in ["k8s-file", "json-file"] {
        let options = format!("--log-path {driver}:~/log");
        let container = Monitored::new(Runtime::new(), script, &options);
        container.start();
        let (log, aside) = (
            container.place().join("log"),
            container.place().join("aside"),
        );
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        until("it has spoken", || {
            read(&log).contains("before").then_some(())
        });
        std::fs::rename(&log, &aside).unwrap();
        kill(Pid::from_raw(container.pid), Signal::SIGHUP).unwrap();
        until("there is a log again", || log.exists().then_some(()));
        File::create(container.inside("go")).unwrap();
        assert_eq!(container.exit_code(), 8);
        let (old, new) = (read(&aside), read(&log));
        assert!(old.contains("before") && !old.contains("after"), "{old}");
        assert!(new.contains("after") && !new.contains("before"), "{new}");
    }
}

/// A cgroup in the hierarchy by which a service manager would know its services; removed when dropped.
struct Service {
    path: PathBuf,
    /// How lines of `/proc/PID/cgroup` about it begin.
    key: &'static str,
}

impl Service {
    fn new() -> Self {
        let mounts = [
            ("", "0::"),
            ("unified", "0::"),
            ("systemd", ":name=systemd:"),
        ];
        let top = Path::new("/sys/fs/cgroup");
        let (mount, key) = mounts
            .into_iter()
            .find(|(name, _)| top.join(name).join("cgroup.procs").exists())
            .unwrap();
        let path = top
            .join(mount)
            .join(format!("qt{}-service", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self { path, key }
    }

    /// Starts a command in it.
    fn of(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args([
            "-c",
            "echo 0 > \"$1\"/cgroup.procs && shift && exec \"$@\"",
            "sh",
        ]);
        inside.arg(&self.path).arg(command.get_program());
        inside.args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    fn is_left(&self) -> bool {
        std::fs::read_to_string(self.path.join("cgroup.procs"))
            .unwrap()
            .is_empty()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What a failed test left in it takes a moment to die.
        within(Duration::from_secs(5), || {
            std::fs::remove_dir(&self.path).ok()
        });
    }
}

pub(super) fn the_engines_monitor_leaves_its_callers_cgroup() {
    let service = Service::new();
    let engine = Engine::new().with_base();
    let line = "run -d --name bird --network none base sh -c 'while [ ! -e /go ]; do usleep 10000; done; exit 9'";
    run(&mut service.of(&engine.command(line))).ok();
    // Already, not soon: the service may be stopped as soon as its last command has ended.
    assert!(service.is_left());
    let pid = engine.look("bird", "/State/Pid");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let monitor = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim();
    let name = std::fs::read_to_string(format!("/proc/{monitor}/comm")).unwrap();
    assert_eq!(name, "qshim\n");
    let cgroups = std::fs::read_to_string(format!("/proc/{monitor}/cgroup")).unwrap();
    let line = cgroups
        .lines()
        .find(|line| line.contains(service.key))
        .unwrap();
    assert!(line.ends_with(":/"), "{cgroups}");
    drop(service);
    engine.ok("exec bird touch /go");
    engine.wait_for("bird", "exited");
    assert_eq!(engine.look("bird", "/State/ExitCode"), 9);
    engine.ok("rm bird");
}

pub(super) fn what_serves_several_containers_leaves_its_callers_cgroup() {
    let service = Service::new();
    let engine = Engine::new().with_base().with_firewall("none");
    engine.ok("network create nest");
    for line in [
        "run -d --network nest --name bird base sleep 1000",
        "portmap start -d",
    ] {
        run(&mut service.of(&engine.command(line))).ok();
        assert!(service.is_left(), "{line}");
    }
    let serves = |word: &str| {
        let ours = processes_naming(engine.directory());
        ours.iter().any(|(_, line)| line.contains(word))
    };
    assert!(serves(" resolver ") && serves(" portmap start --detached"));
    engine.ok("portmap stop");
    engine.ok("rm --force bird");
}

/// What stands in for a runtime: starts `sleep` and says where it is.
const SLEEPER: &str = "#!/bin/sh
while [ \"$1\" != --pid-file ]; do shift; done
sleep 1000 &
echo $! > \"$2\"
";

pub(super) fn a_monitor_dumps_no_core() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let (runtime, shim) = (place.join("runtime"), place.join("qshim"));
    executable::script(&runtime, SLEEPER);
    executable::copy(&built("qshim"), &shim);
    give(place);
    let line = format!(
        "--api-version 1 --cid c --cuuid c --full-attach --runtime {} --bundle ~ --exit-dir ~ --container-pidfile ~/pid \
         --conmon-pidfile ~/monitor --log-path none",
        runtime.display()
    );
    let line = line.replace('~', &place.display().to_string());
    let mut command = Command::new(&shim);
    command
        .args(line.split(' '))
        .stdin(Stdio::null())
        .current_dir("/")
        .uid(USER)
        .gid(USER);
    run(&mut command).ok();
    let pid = |name: &str| {
        until("there is a pid", || {
            std::fs::read_to_string(place.join(name))
                .ok()?
                .trim()
                .parse::<i32>()
                .ok()
        })
    };
    let (monitor, container) = (pid("monitor"), pid("pid"));
    // What the kernel dumps no core of belongs to root there (proc(5)).
    let owner = |pid: i32| {
        std::fs::metadata(format!("/proc/{pid}/environ"))
            .unwrap()
            .uid()
    };
    let owners = (owner(monitor), owner(container));
    kill(Pid::from_raw(container), Signal::SIGKILL).unwrap();
    until("there is an exit code", || {
        place.join("c").exists().then_some(())
    });
    assert_eq!(std::fs::read_to_string(place.join("c")).unwrap(), "137");
    assert_eq!(owners, (0, USER));
}
