//! A container's monitor under load and in trouble: whatever becomes of clients, disks and directories, the container goes
//! on, its output is kept as far as there is room, its exit code is told, and the monitor takes no more than before.

mod apart;
mod clients;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{RecvFlags, recv};
use stack_tests::command::run;
use stack_tests::monitored::Monitored;
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::usage::{Usage, times};
use stack_tests::wait::until;

use apart::{
    a_hangup_opens_the_log_again, a_monitor_dumps_no_core,
    the_engines_monitor_leaves_its_callers_cgroup,
    what_serves_several_containers_leaves_its_callers_cgroup,
};
use clients::{a_stopped_client_stalls_nobody, execs_whose_children_keep_the_pipe_leave_nothing};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "monitor",
        &[Need::Root, Need::Host],
        [
            clients_come_and_go,
            sizes_change_again_and_again,
            a_client_that_reads_nothing_costs_a_bounded_amount,
            a_full_disk_costs_lines_and_nothing_else,
            one_log_of_two_is_on_a_full_disk,
            a_log_may_lose_its_directory,
            signals_that_mean_nothing_do_nothing,
            a_hangup_opens_the_log_again,
            the_engines_monitor_leaves_its_callers_cgroup,
            what_serves_several_containers_leaves_its_callers_cgroup,
            a_monitor_dumps_no_core,
            a_stopped_client_stalls_nobody,
            execs_whose_children_keep_the_pipe_leave_nothing,
        ]
    );
    all.extend(tests!(
        "monitor",
        &[Need::Program("conmon")],
        [conmons_options_are_all_known]
    ));
    all
}

fn conmons_options_are_all_known() {
    let ask = |program: &mut Command| run(program.arg("--help")).ok().to_owned();
    let (conmon, ours) = (
        ask(&mut Command::new("conmon")),
        ask(&mut Command::new(built("qshim"))),
    );
    let options = |text: &str| -> BTreeSet<String> {
        let words = text
            .lines()
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
        words.map(str::to_owned).collect()
    };
    // Plugins are code of the host's that a static program cannot load: asked for by name, they are refused.
    let plugins = ["--seccomp-notify-plugins", "--seccomp-notify-socket"].map(String::from);
    let conmon = options(&conmon);
    assert!(conmon.len() > 30, "{conmon:?}");
    let missing: Vec<_> = conmon.difference(&options(&ours)).cloned().collect();
    assert_eq!(missing, plugins);
    for option in plugins {
        let outcome = run(Command::new(built("qshim")).args([option.as_str(), "x"]));
        outcome.code(1).err("plugins are not supported");
    }
}

fn clients_come_and_go() {
    const ALL: usize = 10_000;
    let container = Monitored::new(
        Runtime::new(),
        "cat",
        "--stdin --leave-stdin-open --log-path k8s-file:~/log",
    );
    container.start();
    let mut early = None;
    for number in 1..=ALL {
        let client = container.attach();
        if number % 10 == 0 {
            let word = format!("word {number}\n");
            rustix::io::write(&client, word.as_bytes()).unwrap();
            let mut packet = [0; 100];
            let (count, _) = recv(&client, &mut packet[..], RecvFlags::empty()).unwrap();
            assert_eq!(&packet[1..count], word.as_bytes());
        }
        drop(client);
        if number == ALL / 10 {
            early = Some(settled(container.pid));
        }
    }
    early.unwrap().is_not_exceeded_by(container.pid);
    end(&container);
    assert_eq!(container.exit_code(), 137);
}

/// Ends the container.
fn end(container: &Monitored) {
    let pid = std::fs::read_to_string(container.bundle.path().join("pid")).unwrap();
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}

/// What a monitor holds when it has seen that clients are gone.
fn settled(pid: i32) -> Usage {
    let mut last = None;
    until("the monitor rests", || {
        let usage = Usage::of(pid);
        let same = last.replace(usage) == Some(usage);
        same.then_some(usage)
    })
}

fn sizes_change_again_and_again() {
    const ALL: usize = 10_000;
    let script = "while [ ! -e /go ]; do usleep 10000; done; stty size; exit 4";
    let container = Monitored::new(
        Runtime::new(),
        script,
        "--terminal --log-path k8s-file:~/log",
    );
    container.start();
    let fifo = |name: &str| {
        let path = container.bundle.path().join(name);
        File::options().write(true).open(path).unwrap()
    };
    let (mut control, mut sizes) = (fifo("ctl"), fifo("winsz"));
    let mut early = None;
    for number in 1..=ALL {
        // The last of them by the one fifo, all others by both.
        writeln!(sizes, "{} 80", number % 500 + 1).unwrap();
        writeln!(control, "1 {} 90", number % 300 + 1).unwrap();
        if number == ALL / 10 {
            early = Some(settled(container.pid));
        }
    }
    early.unwrap().is_not_exceeded_by(container.pid);
    let size = || {
        let inside = std::fs::read_to_string(container.bundle.path().join("pid")).unwrap();
        let terminal = File::open(format!("/proc/{inside}/fd/0")).unwrap();
        rustix::termios::tcgetwinsize(terminal).unwrap()
    };
    // Nothing says which of the two is read first.
    until("all of them were read", || {
        let left = rustix::io::ioctl_fionread(&sizes).unwrap();
        (left == 0).then_some(())
    });
    writeln!(control, "1 33 77").unwrap();
    until("the last size holds", || {
        let size = size();
        ((size.ws_row, size.ws_col) == (33, 77)).then_some(())
    });
    File::create(container.inside("go")).unwrap();
    assert_eq!(container.exit_code(), 4);
    let log = std::fs::read_to_string(container.place().join("log")).unwrap();
    assert!(log.contains("33 77"), "{log}");
}

/// What two clients may be behind, with as much again for how it is kept, in KiB.
const BACKLOG: usize = 4 * 1024;

/// What is in memory of the program and its buffers when it is at work, and not when it waits, in KiB.
const WORKING: usize = 1024;

fn a_client_that_reads_nothing_costs_a_bounded_amount() {
    let bytes = times(20_000_000, 100_000_000);
    let script = format!(
        "yes 123456789012345678901234567890123456789 | head -c {bytes}; echo END; cat; exit 5"
    );
    let options = "--stdin --log-path k8s-file:~/log";
    let container = Monitored::new(Runtime::new(), &script, options);
    let stopped = container.attach();
    let reader = container.attach();
    let before = Usage::of(container.pid);
    container.start();
    let mut buffer = [0; 8193];
    let mut read = 0;
    let mut most = 0;
    while read < bytes + 4 {
        let (count, _) = recv(&reader, &mut buffer[..], RecvFlags::empty()).unwrap();
        assert!(count > 0, "the end after {read} bytes");
        read += count - 1;
        most = most.max(Usage::of(container.pid).private);
    }
    assert!(
        most <= before.private + BACKLOG + WORKING,
        "{most} KiB, {before:?} before"
    );
    drop(stopped);
    before.is_not_exceeded_by(container.pid);
    rustix::net::shutdown(&reader, rustix::net::Shutdown::Write).unwrap();
    assert_eq!(container.exit_code(), 5);
    let log = std::fs::read_to_string(container.place().join("log")).unwrap();
    let whole = log.lines().filter(|line| line.contains(" F ")).count();
    assert_eq!(whole, bytes / 40 + 1);
    assert!(log.ends_with("END\n"));
}

/// Bytes that leave room for a small part of it.
const BALLAST: usize = 3_900_000;

/// A disk that holds all that is said, and [`BALLAST`] at first; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some("size=4m")).unwrap();
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Says more than fits on a disk, waits until there is room again, and says one thing more.
const MUCH: &str =
    "seq 1 30000; touch /said; while [ ! -e /go ]; do usleep 10000; done; echo after; exit 6";

fn a_full_disk_costs_lines_and_nothing_else() {
    for driver in ["k8s-file", "json-file"] {
        let runtime = Runtime::new();
        let disk = Disk::mount(runtime.directory().join("disk"));
        let options = format!("--log-path {driver}:~/disk/log");
        std::fs::write(disk.0.join("ballast"), vec![0; BALLAST]).unwrap();
        let container = Monitored::new(runtime, MUCH, &options);
        // Unmounted before what it is in is removed.
        let disk = disk;
        container.start();
        let said = container.inside("said");
        until("the container goes on", || said.exists().then_some(()));
        std::fs::remove_file(disk.0.join("ballast")).unwrap();
        File::create(container.inside("go")).unwrap();
        assert_eq!(container.exit_code(), 6);
        let log = std::fs::read_to_string(disk.0.join("log")).unwrap();
        let (kept, lost) = counted(&log);
        assert_eq!(kept + lost, 30_001, "{kept} lines kept, {lost} lost");
        assert!(kept > 1000 && lost > 1000, "{kept} lines kept, {lost} lost");
        let end = log.lines().last().unwrap();
        assert!(end.contains("after"), "{end}");
    }
}

/// How many lines a log has, and how many it says were lost. They are in order, and whole but for one whose beginning was
/// the last thing to find room.
fn counted(log: &str) -> (usize, usize) {
    let (mut kept, mut lost, mut last, mut broken) = (0, 0, 0, 0);
    let mut begun = String::new();
    for line in log.lines() {
        let text = match serde_json::from_str::<serde_json::Value>(line) {
            Ok(record) => record["log"].as_str().unwrap().trim_end().to_owned(),
            Err(_) => {
                let (tag, text) = line[43..].split_once(' ').unwrap();
                match (tag, text.starts_with("qshim: ")) {
                    (_, true) => text.to_owned(),
                    ("P", _) => {
                        begun += text;
                        continue;
                    }
                    _ => std::mem::take(&mut begun) + text,
                }
            }
        };
        if let Some(told) = text.strip_prefix("qshim: ") {
            assert!(told.contains(" log lines lost"), "{told}");
            lost += told.split(' ').next().unwrap().parse::<usize>().unwrap();
            broken += usize::from(!std::mem::take(&mut begun).is_empty());
            continue;
        }
        kept += 1;
        if let Ok(number) = text.parse::<usize>() {
            assert!(number > last, "{number} after {last}");
            last = number;
        }
    }
    assert!(broken <= 1, "{broken} lines are broken");
    (kept, lost)
}

fn one_log_of_two_is_on_a_full_disk() {
    let runtime = Runtime::new();
    let disk = Disk::mount(runtime.directory().join("disk"));
    std::fs::write(disk.0.join("ballast"), vec![0; BALLAST]).unwrap();
    let options = "--log-path k8s-file:~/disk/log --log-path json-file:~/log";
    let container = Monitored::new(runtime, MUCH, options);
    let _disk = disk;
    File::create(container.inside("go")).unwrap();
    container.start();
    assert_eq!(container.exit_code(), 6);
    let whole = std::fs::read_to_string(container.place().join("log")).unwrap();
    assert_eq!(counted(&whole), (30_001, 0));
}

fn a_log_may_lose_its_directory() {
    const LIMIT: u64 = 100_000;
    let runtime = Runtime::new();
    let directory = runtime.directory().join("logs");
    std::fs::create_dir(&directory).unwrap();
    let options =
        format!("--log-path k8s-file:~/logs/log --log-size-max {LIMIT} --log-max-files 2");
    let container = Monitored::new(runtime, MUCH, &options);
    std::fs::remove_dir_all(&directory).unwrap();
    container.start();
    let said = container.inside("said");
    until("the container goes on", || said.exists().then_some(()));
    until("what nobody can read takes no room", || {
        (open_log(container.pid, &directory)? <= LIMIT).then_some(())
    });
    // It comes back with the next file.
    std::fs::create_dir(&directory).unwrap();
    File::create(container.inside("go")).unwrap();
    assert_eq!(container.exit_code(), 6);
}

fn signals_that_mean_nothing_do_nothing() {
    let script = "while [ ! -e /go ]; do usleep 10000; done; echo end; exit 7";
    let container = Monitored::new(Runtime::new(), script, "--log-path k8s-file:~/log");
    container.start();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGPIPE,
        Signal::SIGTSTP,
        Signal::SIGXFSZ,
    ] {
        kill(Pid::from_raw(container.pid), signal).unwrap();
    }
    File::create(container.inside("go")).unwrap();
    assert_eq!(container.exit_code(), 7);
    let log = std::fs::read_to_string(container.place().join("log")).unwrap();
    assert!(log.ends_with(" F end\n"), "{log}");
}

/// The size of the log that a monitor has open, of that directory.
fn open_log(pid: i32, directory: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let log = paths
        .find(|path| std::fs::read_link(path).is_ok_and(|target| target.starts_with(directory)))?;
    Some(std::fs::metadata(log).ok()?.len())
}
