//! The real thing: cgroups made on the host's own hierarchies, whatever their version, and removed again.
//!
//! Need root and writable cgroups. A test that cannot run says so past the test harness, and fails where `QSTACK_NO_SKIPS`
//! is set.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::{Cgroup, Error, Hierarchies, Plan, Record, file};
use crate::spec::resources::Resources;
use crate::sys::process::{clone_process, is_open};

/// Says that a test has not run.
fn skipped(name: &str, lacks: &str) {
    let why = format!("cgroup test {name}: {lacks} needed");
    assert!(std::env::var_os("QSTACK_NO_SKIPS").is_none(), "{why}");
    writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
}

/// A cgroup for one test, removed at its end even when the test fails.
struct Scratch {
    path: String,
}

impl Scratch {
    /// `None`, with a note, where cgroups cannot be made.
    fn new(name: &str) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        let path = format!("/qrun-test-{name}-{}", std::process::id());
        let scratch = Self { path };
        if root
            && scratch
                .plan("{}")
                .and_then(|plan| plan.create(None))
                .is_ok()
        {
            scratch.remove();
            return Some(scratch);
        }
        skipped(name, "root and writable cgroups");
        None
    }

    fn plan(&self, resources: &str) -> Result<Plan, Error> {
        let resources: Resources = serde_json::from_str(resources).unwrap();
        let hierarchies = Hierarchies::detect()?;
        Plan::new(&hierarchies, "id", Some(&self.path), Some(&resources), None)
    }

    fn create(&self, resources: &str) -> Cgroup {
        self.plan(resources).unwrap().create(None).unwrap()
    }

    /// Every directory of that name in any hierarchy.
    fn left(&self) -> Vec<std::path::PathBuf> {
        let hierarchies = Hierarchies::detect().unwrap();
        let paths = hierarchies
            .list()
            .iter()
            .map(|found| found.mount_point.join(&self.path[1..]));
        paths.filter(|path| path.exists()).collect()
    }

    fn remove(&self) {
        for path in self.left() {
            let _ = super::freezer::thaw(&path, false);
            super::remove::remove(std::iter::once(path.as_path())).unwrap();
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Ok(cgroup) = self.plan("{}").and_then(|plan| plan.create(None)) {
                let _ = cgroup.kill_all(Signal::KILL);
            }
            self.remove();
        }
    }
}

/// A shell that waits for a line before it runs its script.
fn shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", &format!("read line; {script}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap()).unwrap()
}

fn go(child: &mut Child) {
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
}

/// Runs a script in a cgroup and gives its exit code.
fn run(cgroup: &Cgroup, script: &str) -> Option<i32> {
    let mut child = shell(script);
    cgroup.join(pid(&child)).unwrap();
    go(&mut child);
    child.wait().unwrap().code()
}

fn value(cgroup: &Cgroup, controller: &str, v1: &str, v2: &str) -> String {
    let name = if cgroup.is_pure_v2() { v2 } else { v1 };
    file::read(&cgroup.path(controller).unwrap().join(name))
        .unwrap()
        .trim()
        .to_owned()
}

#[test]
fn a_life() {
    let Some(scratch) = Scratch::new("life") else {
        return;
    };
    let limits =
        r#"{"memory":{"limit":33554432},"pids":{"limit":17},"cpu":{"quota":50000,"cpus":"0"}}"#;
    let cgroup = scratch.create(limits);
    assert_eq!(
        value(&cgroup, "memory", "memory.limit_in_bytes", "memory.max"),
        "33554432"
    );
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "17");
    assert_eq!(
        value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max")
            .split(' ')
            .next(),
        Some("50000")
    );
    assert_eq!(value(&cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert!(cgroup.pids().unwrap().is_empty());

    let mut child = shell("sleep 1000 & wait");
    cgroup.join(pid(&child)).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [pid(&child)]);
    go(&mut child);

    // A later command finds everything through the record alone.
    let record: Record =
        serde_json::from_value(serde_json::to_value(cgroup.record()).unwrap()).unwrap();
    assert_eq!(record, cgroup.record());
    let again = Cgroup::open(&record);
    assert_eq!(again.record(), record);
    assert!(again.exists());

    assert!(!again.is_frozen().unwrap());
    again.freeze().unwrap();
    assert!(again.is_frozen().unwrap());
    again.thaw().unwrap();
    assert!(!again.is_frozen().unwrap());

    let stats = again.stats().unwrap();
    assert_eq!(
        (stats.memory.usage.limit, stats.pids.limit),
        (33_554_432, 17)
    );
    assert!(!stats.memory.raw.is_empty() && stats.pids.current > 0);

    // Frozen processes die too, and nobody is left when it returns.
    again.freeze().unwrap();
    again.kill_all(Signal::KILL).unwrap();
    assert!(again.pids().unwrap().is_empty());
    child.wait().unwrap();
    again.remove().unwrap();
    assert!(!again.exists());
    assert_eq!(scratch.left(), Vec::<std::path::PathBuf>::new());
    // Once more, and for what is gone.
    again.remove().unwrap();
    assert!(again.pids().unwrap().is_empty());
    assert!(!again.is_frozen().unwrap());
    again.kill_all(Signal::KILL).unwrap();
}

#[test]
fn a_process_enters_by_itself() {
    let Some(scratch) = Scratch::new("entry") else {
        return;
    };
    let cgroup = scratch.create("{}");
    let Some(entry) = cgroup.entry() else {
        // Before Linux 5.7 there is none into a v2 tree.
        assert!(!crate::sys::process::has_clone_into_cgroup());
        cgroup.remove().unwrap();
        return;
    };
    let doors = entry.doors();
    assert_eq!(
        doors.len(),
        cgroup.nodes.iter().filter(|node| !node.is_v2()).count()
    );
    assert!(doors.iter().all(|door| is_open(*door)));
    // Only system calls in the child: other tests' threads may hold the allocator's lock.
    let pair = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    );
    let (child, channel) = clone_process(0, entry.birth(), pair.unwrap(), |channel| {
        let passed = entry.pass().is_ok();
        let closed = !doors.iter().any(|door| is_open(*door));
        let _ = rustix::io::write(&channel, &[u8::from(passed), u8::from(closed)]);
        let _ = rustix::io::read(&channel, &mut [0]);
        0
    })
    .unwrap();
    let mut said = [0; 2];
    rustix::io::read(&channel, &mut said).unwrap();
    let members: Vec<_> = cgroup
        .nodes
        .iter()
        .map(|node| super::member::pids(&node.directory).unwrap())
        .collect();
    drop(channel);
    rustix::process::waitpid(Some(child.pid), rustix::process::WaitOptions::empty()).unwrap();
    assert_eq!(said, [1, 1]);
    assert_eq!(members, vec![vec![child.pid]; cgroup.nodes.len()]);
    drop(entry);
    cgroup.remove().unwrap();
    // Nor a way into what is gone: it was opened already in a v2 tree.
    assert!(Cgroup::open(&cgroup.record()).entry().is_none());
}

#[test]
fn a_signal_reaches_all() {
    let Some(scratch) = Scratch::new("signal") else {
        return;
    };
    let cgroup = scratch.create("{}");
    let mut children = [shell("exit 0"), shell("exit 0"), shell("exit 0")];
    for child in &children {
        cgroup.join(pid(child)).unwrap();
    }
    cgroup.kill_all(Signal::TERM).unwrap();
    for child in &mut children {
        assert_eq!(child.wait().unwrap().code(), None);
    }
    cgroup.remove().unwrap();
}

#[test]
fn a_fork_bomb_is_killed() {
    let Some(scratch) = Scratch::new("bomb") else {
        return;
    };
    let cgroup = scratch.create(r#"{"pids":{"limit":60}}"#);
    let mut child = shell("f() { f & f & f & sleep 1; }; while :; do f; done");
    cgroup.join(pid(&child)).unwrap();
    go(&mut child);
    std::thread::sleep(Duration::from_millis(300));
    cgroup.kill_all(Signal::KILL).unwrap();
    assert!(cgroup.pids().unwrap().is_empty());
    child.wait().unwrap();
    cgroup.remove().unwrap();
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let Some(scratch) = Scratch::new("failed") else {
        return;
    };
    // CPUs that the machine does not have; a period below the kernel's least.
    for limits in [r#"{"cpu":{"cpus":"9999"}}"#, r#"{"cpu":{"period":1}}"#] {
        let nested = Scratch {
            path: format!("{}/deep/down", scratch.path),
        };
        let error = nested.plan(limits).unwrap().create(None).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error:?}");
        assert_eq!(scratch.left(), Vec::<std::path::PathBuf>::new(), "{limits}");
    }
}

#[test]
fn a_used_cgroup_is_refused() {
    let Some(scratch) = Scratch::new("used") else {
        return;
    };
    let cgroup = scratch.create("{}");
    let mut child = shell("exit 0");
    cgroup.join(pid(&child)).unwrap();
    let error = scratch.plan("{}").unwrap().create(None).unwrap_err();
    assert!(
        matches!(error, Error::NotEmpty { count: 1, .. }),
        "{error:?}"
    );
    assert!(cgroup.exists());
    go(&mut child);
    child.wait().unwrap();

    cgroup.freeze().unwrap();
    let error = scratch.plan("{}").unwrap().create(None).unwrap_err();
    assert!(matches!(error, Error::Frozen { .. }), "{error:?}");
    cgroup.thaw().unwrap();

    // Empty and thawed it may be used again, with other limits.
    let cgroup = scratch.create(r#"{"pids":{"limit":3}}"#);
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "3");
    cgroup.remove().unwrap();
}

#[test]
fn child_cgroups_go_with_it() {
    let Some(scratch) = Scratch::new("children") else {
        return;
    };
    let cgroup = scratch.create("{}");
    for directory in cgroup.record().paths.values() {
        std::fs::create_dir_all(directory.join("one/two")).unwrap();
    }
    let below = cgroup.path("devices").unwrap().join("one/two");
    let mut child = shell("sleep 1000");
    super::member::join(&below, pid(&child)).unwrap();
    assert_eq!(cgroup.pids().unwrap(), [pid(&child)]);
    cgroup.kill_all(Signal::KILL).unwrap();
    child.wait().unwrap();
    cgroup.remove().unwrap();
    assert!(!cgroup.exists());
}

#[test]
fn devices_are_denied() {
    let Some(scratch) = Scratch::new("devices") else {
        return;
    };
    let open = "exec 3</dev/kmsg";
    let usual = scratch.create(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    assert_ne!(run(&usual, open), Some(0));
    assert_eq!(run(&usual, "exec 3<>/dev/null 4</dev/urandom"), Some(0));
    // The same cgroup again, now with the device; with children, which a v1 list must not be reset under.
    std::fs::create_dir(usual.path("devices").unwrap().join("child")).unwrap();
    let json = r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    let allowed = scratch.create(json);
    assert_eq!(run(&allowed, open), Some(0));
    let denied = scratch.create(r#"{"devices":[{"allow":false}]}"#);
    assert_ne!(run(&denied, open), Some(0));
    denied.remove().unwrap();
    let privileged = scratch.create(r#"{"devices":[{"allow":true}]}"#);
    assert_eq!(run(&privileged, open), Some(0));
    privileged.remove().unwrap();
}

#[test]
fn a_cgroup_can_be_given_away() {
    use std::os::unix::fs::MetadataExt;
    let Some(scratch) = Scratch::new("owner") else {
        return;
    };
    let mut plan = scratch.plan("{}").unwrap();
    plan.set_owner(1234);
    let cgroup = plan.create(None).unwrap();
    let owner = |name: &str| {
        let path = cgroup.path("").unwrap().join(name);
        std::fs::metadata(path).unwrap().uid()
    };
    let (given, kept) = if cgroup.is_pure_v2() {
        (1234, 0)
    } else {
        (0, 0)
    };
    let found = ["", "cgroup.procs", "cgroup.subtree_control"].map(owner);
    assert_eq!(found, [given; 3]);
    assert_eq!(owner("cgroup.max.depth"), kept);
    cgroup.remove().unwrap();
}

#[test]
fn limits_change() {
    let Some(scratch) = Scratch::new("update") else {
        return;
    };
    let cgroup =
        scratch.create(r#"{"memory":{"limit":67108864},"cpu":{"quota":20000,"period":50000}}"#);
    let memory = || value(&cgroup, "memory", "memory.limit_in_bytes", "memory.max");
    let update = |json: &str| cgroup.update(&serde_json::from_str(json).unwrap());
    for limit in [16_777_216, 134_217_728, 33_554_432] {
        update(&format!(r#"{{"memory":{{"limit":{limit}}}}}"#)).unwrap();
        assert_eq!(memory(), limit.to_string());
    }
    // Raising and lowering both at once fits the kernel's check of one against the other.
    for limit in [100_663_296_u64, 25_165_824] {
        let result = update(&format!(
            r#"{{"memory":{{"limit":{limit},"swap":{limit}}}}}"#
        ));
        // Kernels without swap accounting have no such file on v1.
        if result.is_ok() {
            assert_eq!(memory(), limit.to_string());
        }
    }
    update(r#"{"memory":{"limit":-1},"pids":{"limit":9}}"#).unwrap();
    assert_eq!(value(&cgroup, "pids", "pids.max", "pids.max"), "9");
    // One half of the pair keeps the other.
    update(r#"{"cpu":{"period":40000}}"#).unwrap();
    let quota = value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(
        quota,
        if cgroup.is_pure_v2() {
            "20000 40000"
        } else {
            "20000"
        }
    );
    update(r#"{"cpu":{"quota":-1}}"#).unwrap();
    let quota = value(&cgroup, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(
        quota,
        if cgroup.is_pure_v2() {
            "max 40000"
        } else {
            "-1"
        }
    );
    cgroup.remove().unwrap();
}

#[test]
fn memory_beyond_the_limit_is_heard_of() {
    let Some(scratch) = Scratch::new("oom") else {
        return;
    };
    let cgroup = scratch.create(r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    let mut watch = super::Watch::new(&cgroup).unwrap().unwrap();
    let mut heard = || {
        let mut poll = [rustix::event::PollFd::from_borrowed_fd(
            watch.fd(),
            rustix::event::PollFlags::IN,
        )];
        let patience = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut poll, Some(&patience)).unwrap() {
            0 => panic!("nothing heard"),
            _ => watch.hear().unwrap(),
        }
    };
    assert_ne!(run(&cgroup, "tail /dev/zero"), Some(0));
    let mut told = heard();
    while !told.out_of_memory {
        // What is killed ends, and that is heard of no sooner.
        assert!(!told.end);
        told = heard();
    }
    // What comes afterwards is another matter.
    if cgroup.is_pure_v2() {
        while !told.end {
            told = heard();
        }
        assert_eq!(run(&cgroup, "exit 0"), Some(0));
        assert!(!heard().out_of_memory);
    }
    cgroup.remove().unwrap();
    if !cgroup.is_pure_v2() {
        let end = super::Heard {
            out_of_memory: false,
            end: true,
        };
        assert_eq!(heard(), end);
    }
}

/// Set for the run of [`one_creation`] under strace: the name to use.
const TRACED: &str = "QRUN_TEST_TRACED_CGROUP";

/// What [`creation_is_cheap`] traces.
#[test]
fn one_creation() {
    let Ok(path) = std::env::var(TRACED) else {
        return;
    };
    let scratch = Scratch { path };
    let hierarchies = Hierarchies::detect().unwrap();
    let cgroup = scratch
        .create(r#"{"devices":[{"allow":false,"access":"rwm"}],"memory":{"limit":33554432}}"#);
    cgroup.join(rustix::process::getpid()).unwrap();
    for hierarchy in hierarchies.list() {
        super::member::join(&hierarchy.mount_point, rustix::process::getpid()).unwrap();
    }
    cgroup.remove().unwrap();
}

/// Nothing creeps in: the system calls that name the cgroup's directories are counted.
#[test]
fn creation_is_cheap() {
    let Some(scratch) = Scratch::new("cheap") else {
        return;
    };
    let log = std::env::temp_dir().join(format!("qrun-trace-{}", std::process::id()));
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=file", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "cgroup::tests::one_creation", "--test-threads=1"])
        .env(TRACED, &scratch.path)
        .stdout(Stdio::null())
        .status();
    if !traced.is_ok_and(|status| status.success()) {
        return skipped("cheap", "a working strace");
    }
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    let count = text
        .lines()
        .filter(|line| line.contains(&scratch.path[1..]))
        .count();
    let hierarchies = Hierarchies::detect().unwrap();
    let each = hierarchies.list().len();
    // A directory made, joined and removed in each; the two device lists, two files of cpuset, the memory limit. On v2:
    // opened for the device program, looked at for missing controllers, the limit.
    let allowed = if hierarchies.is_pure_v2() {
        3 + 3
    } else {
        3 * each + 5
    };
    assert!(
        count <= allowed,
        "{count} calls, {allowed} expected:\n{text}"
    );
}
