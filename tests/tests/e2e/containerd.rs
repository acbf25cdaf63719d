//! containerd with our shim: the runtime `io.containerd.qrun.v2`, as `ctr` drives it.

mod cri;
mod page;
mod requests;
mod wrapped;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::command::{run, run_with_input, wait};
use stack_tests::executable;
use stack_tests::needs::{Need, Test};
use stack_tests::peers::Containerd;
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::ttrpc::{Message, call};
use stack_tests::wait::{patience, until};

use cri::a_pod_of_cri_has_one_shim;
use page::{
    the_page_of_ctr_can_be_followed, the_page_of_kubernetes_is_understood,
    the_page_of_options_and_logs_can_be_followed,
};
use requests::{
    a_failed_exec_has_an_end, a_root_can_have_many_layers, a_terminals_output_goes_to_a_program,
    an_exec_without_its_output_can_be_started_again, both_versions_of_the_service_have_all_methods,
    children_that_keep_the_pipe_cost_nothing, descriptors_do_not_pile_up,
    signals_do_not_end_a_shim,
};
use wrapped::{
    a_process_without_its_terminal_is_ended, a_start_is_told_before_an_end_that_was_quicker,
};

pub(crate) fn tests() -> Vec<Test> {
    const CONTAINERD: &[Need] = &[
        Need::Root,
        Need::Host,
        Need::Program("containerd"),
        Need::Program("ctr"),
    ];
    const RUNC: &[Need] = &[
        Need::Root,
        Need::Host,
        Need::Program("containerd"),
        Need::Program("ctr"),
        Need::Program("runc"),
    ];
    const CRIU: &[Need] = &[
        Need::Root,
        Need::Host,
        Need::Program("containerd"),
        Need::Program("ctr"),
        Need::Criu,
    ];
    let mut all = tests!(
        "containerd",
        CONTAINERD,
        [
            a_run_gives_output_and_code,
            a_container_is_kept_paused_measured_and_removed,
            an_exec_has_streams_and_a_code,
            a_run_and_an_exec_have_terminals,
            events_tell_what_happens,
            much_output_comes_through_whole,
            containers_outlive_containerd,
            a_killed_shim_takes_its_container_along,
            output_goes_to_a_file,
            output_goes_to_a_program,
            an_exec_ends_though_its_child_keeps_the_pipe,
            a_kill_for_memory_is_told,
            a_pod_has_one_shim,
            a_pod_of_cri_has_one_shim,
            a_stopped_client_stalls_nobody_else,
            a_log_may_lose_its_directory,
            wrong_options_are_refused,
            a_checkpoint_without_criu_is_refused,
            limits_can_be_changed,
            both_versions_of_the_service_have_all_methods,
            descriptors_do_not_pile_up,
            children_that_keep_the_pipe_cost_nothing,
            a_failed_exec_has_an_end,
            signals_do_not_end_a_shim,
            an_exec_without_its_output_can_be_started_again,
            a_terminals_output_goes_to_a_program,
            a_logger_that_takes_its_time_stalls_nobody_else,
            a_root_can_have_many_layers,
            a_start_is_told_before_an_end_that_was_quicker,
            a_process_without_its_terminal_is_ended,
            the_page_of_ctr_can_be_followed,
            the_page_of_options_and_logs_can_be_followed,
            the_page_of_kubernetes_is_understood,
        ]
    );
    all.extend(tests!("containerd", RUNC, [another_runtime_can_be_used]));
    all.extend(tests!(
        "containerd",
        CRIU,
        [a_checkpoint_is_kept_by_containerd]
    ));
    all
}

/// What makes `ctr run` use the shim, and what it runs.
const RUN: &str = "run --runtime io.containerd.qrun.v2 --rootfs";

/// Runs a line of `ctr` that must succeed.
#[track_caller]
fn ok(containerd: &Containerd, line: &str) -> String {
    run(&mut containerd.ctr(line)).ok().to_owned()
}

/// Starts `bird`, which sleeps.
#[track_caller]
fn bird(containerd: &Containerd) {
    ok(containerd, &format!("{RUN} -d ~ bird /bin/sleep 1000"));
}

/// Ends a container and removes it.
#[track_caller]
fn remove(containerd: &Containerd, id: &str) {
    run(&mut containerd.ctr(&format!("task kill --signal SIGKILL {id}")));
    wait_for(containerd, id, "STOPPED");
    ok(containerd, &format!("task rm {id}"));
    ok(containerd, &format!("container rm {id}"));
}

/// Waits until `task ls` says `status` of a container.
#[track_caller]
fn wait_for(containerd: &Containerd, id: &str, status: &str) {
    until(&format!("{id} is {status}"), || {
        let list = ok(containerd, "task ls");
        let mut lines = list.lines().map(str::split_whitespace);
        lines.find_map(|mut words| {
            (words.next() == Some(id) && words.last() == Some(status)).then_some(())
        })
    });
}

/// Waits until no shim is left, nor what the runtime kept.
#[track_caller]
fn wait_for_end(containerd: &Containerd) {
    until("the shims are gone", || {
        containerd.shims().is_empty().then_some(())
    });
    let state = Path::new("/run/containerd/qrun").join(containerd.namespace());
    let left: Vec<_> = std::fs::read_dir(state).into_iter().flatten().collect();
    assert!(left.is_empty(), "left: {left:?}");
}

/// The socket of a container's shim.
fn socket(containerd: &Containerd, id: &str) -> PathBuf {
    let address = std::fs::read_to_string(containerd.bundle(id).join("address")).unwrap();
    PathBuf::from(address.strip_prefix("unix://").unwrap())
}

fn a_run_gives_output_and_code() {
    let containerd = Containerd::start();
    let line = format!("{RUN} --rm ~ bird /bin/sh -c 'echo out; echo err >&2; exit 3'");
    run(&mut containerd.ctr(&line))
        .code(3)
        .out("out")
        .err("err");
    let line = format!("{RUN} --rm ~ bird /no/such/program");
    run(&mut containerd.ctr(&line))
        .code(1)
        .err("/no/such/program");
    wait_for_end(&containerd);
}

fn a_container_is_kept_paused_measured_and_removed() {
    let containerd = Containerd::start();
    bird(&containerd);
    wait_for(&containerd, "bird", "RUNNING");
    assert_eq!(ok(&containerd, "task ps bird").lines().count(), 2);
    assert!(ok(&containerd, "task metrics bird").contains("pids.current"));
    ok(&containerd, "task pause bird");
    wait_for(&containerd, "bird", "PAUSED");
    ok(&containerd, "task resume bird");
    wait_for(&containerd, "bird", "RUNNING");
    run(&mut containerd.ctr("task rm bird")).code(1).err("bird");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn an_exec_has_streams_and_a_code() {
    let containerd = Containerd::start();
    bird(&containerd);
    let line = "task exec --exec-id 1 bird /bin/sh -c 'echo out; echo err >&2; exit 4'";
    run(&mut containerd.ctr(line)).code(4).out("out").err("err");
    let mut cat = containerd.ctr("task exec --exec-id 2 bird /bin/cat");
    assert_eq!(run_with_input(&mut cat, b"piped\n").ok(), "piped");
    // The names of its files are not those of the container's own.
    let line = "task exec --exec-id init bird /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    assert!(containerd.bundle("bird").join("init.pid").exists());
    let line = "task exec --exec-id 3 bird /no/such/program";
    run(&mut containerd.ctr(line))
        .code(1)
        .err("/no/such/program");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn a_run_and_an_exec_have_terminals() {
    let containerd = Containerd::start();
    bird(&containerd);
    for line in [
        format!("{RUN} --rm -t ~ wren /bin/sh"),
        "task exec --exec-id 1 -t bird /bin/sh".to_owned(),
    ] {
        let mut terminal = Pty::start(&containerd.ctr(&line));
        terminal.send("tty; echo $((6 * 7))\n");
        terminal.expect("/dev/pts/");
        terminal.expect("42");
        terminal
            .send("until stty size | grep -q '30 100'; do sleep 0.1; done; echo so' 'it' 'is\n");
        // Again and again: the client may not listen yet when its window changes.
        until("the new size is seen inside", || {
            terminal.resize(29, 100);
            terminal.resize(30, 100);
            std::thread::sleep(std::time::Duration::from_millis(100));
            terminal.heard().contains("so it is").then_some(())
        });
        terminal.send("exit 5\n");
        assert_eq!(terminal.exit(), 5, "{line}");
    }
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

/// A client that stays, with its output in a file; killed when dropped.
struct Listener {
    client: Child,
    path: PathBuf,
}

impl Listener {
    fn start(containerd: &Containerd, line: &str, name: &str) -> Self {
        let path = containerd.directory().join(name);
        let file = std::fs::File::create(&path).unwrap();
        let mut command = containerd.ctr(line);
        command.stdin(Stdio::null()).stdout(file);
        Self {
            client: command.spawn().unwrap(),
            path,
        }
    }

    fn heard(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap_or_default()
    }

    #[track_caller]
    fn expect(&self, text: &str) {
        until(&format!("{text} is heard"), || {
            self.heard().contains(text).then_some(())
        });
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.client.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Listens to events, once it is certain that they are heard.
fn listen(containerd: &Containerd) -> Listener {
    let events = Listener::start(containerd, "events", "events");
    let mut number = 0;
    until("events are heard", || {
        number += 1;
        ok(containerd, &format!("namespaces label default n={number}"));
        events.heard().contains("/namespaces/update").then_some(())
    });
    events
}

fn events_tell_what_happens() {
    let containerd = Containerd::start();
    let events = listen(&containerd);
    bird(&containerd);
    ok(&containerd, "task exec --exec-id 1 bird /bin/true");
    ok(&containerd, "task pause bird");
    ok(&containerd, "task resume bird");
    remove(&containerd, "bird");
    events.expect("/tasks/delete");
    let heard = events.heard();
    let topics: Vec<_> = heard
        .split_whitespace()
        .filter(|word| word.starts_with("/tasks/"))
        .collect();
    let expected = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ];
    let expected = expected.map(|topic| format!("/tasks/{topic}"));
    assert_eq!(topics, expected, "{heard}");
}

fn much_output_comes_through_whole() {
    const LINE: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz\n";
    const SIZE: usize = 100_000_000;
    let containerd = Containerd::start();
    let script = "yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 100000000";
    let mut command = containerd.ctr(&format!("{RUN} --rm ~ bird /bin/sh -c '{script}'"));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut client = command.spawn().unwrap();
    let mut output = client.stdout.take().unwrap();
    let (mut total, mut buffer) = (0, vec![0; LINE.len() * 4096]);
    loop {
        let count = output.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        let wanted = LINE.iter().cycle().skip(total % LINE.len());
        assert!(buffer[..count].iter().eq(wanted.take(count)), "at {total}");
        total += count;
    }
    assert_eq!(total, SIZE);
    assert_eq!(wait(&mut client, patience()), Some(0));
}

fn containers_outlive_containerd() {
    let mut containerd = Containerd::start();
    let names: Vec<_> = ('a'..='t').map(String::from).collect();
    for name in &names {
        let line = format!("{RUN} -d ~ {name} /bin/sh -c 'while [ ! -e /tmp/{name} ]; do :; done'");
        ok(&containerd, &line.replace(":;", "sleep 0.1;"));
    }
    let before = containerd.shims();
    containerd.restart();
    for name in &names {
        wait_for(&containerd, name, "RUNNING");
    }
    assert_eq!((containerd.shims(), before.len()), (before, names.len()));
    // One is still served, and one ends by itself.
    let line = "task exec --exec-id 1 a /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    ok(&containerd, "task exec --exec-id 1 b /bin/touch /tmp/b");
    wait_for(&containerd, "b", "STOPPED");
    for name in &names {
        remove(&containerd, name);
    }
    wait_for_end(&containerd);
}

fn a_killed_shim_takes_its_container_along() {
    let containerd = Containerd::start();
    bird(&containerd);
    let events = listen(&containerd);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim");
    };
    let name = std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
    assert_eq!(name, "containerd-shim\n", "as ps shows containerd's own");
    let init = std::fs::read_to_string(containerd.bundle("bird").join("init.pid")).unwrap();
    let socket = socket(&containerd, "bird");
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    events.expect("/tasks/exit");
    until("the container is gone", || {
        let gone = !Path::new("/proc").join(init.trim()).exists();
        (gone && !ok(&containerd, "task ls").contains("bird")).then_some(())
    });
    assert!(!socket.exists(), "{} is left", socket.display());
    ok(&containerd, "container rm bird");
    wait_for_end(&containerd);
}

fn output_goes_to_a_file() {
    let containerd = Containerd::start();
    let log = containerd.directory().join("bird.log");
    let uri = format!("file://{}", log.display());
    let script = "echo out; echo err >&2; exec sleep 1000";
    ok(
        &containerd,
        &format!("{RUN} -d --log-uri {uri} ~ bird /bin/sh -c '{script}'"),
    );
    until("the file has it", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (text == "out\nerr\n").then_some(())
    });
    remove(&containerd, "bird");
}

fn output_goes_to_a_program() {
    let containerd = Containerd::start();
    let log = containerd.directory().join("bird.log");
    let logger = containerd.directory().join("logger");
    // Descriptors 3 and 4 are the container's stdout and stderr; closing 5 says: ready.
    let script = format!(
        "#!/bin/sh\nexec >>{}\necho \"$CONTAINER_NAMESPACE $CONTAINER_ID $*\"\nexec 5>&-\n\
         cat <&3\ncat <&4\necho end\n",
        log.display()
    );
    executable::script(&logger, &script);
    let uri = format!("binary://{}?--tag=a%20b", logger.display());
    let line = "echo out; echo err >&2; until [ -e /tmp/go ]; do sleep 0.1; done";
    ok(
        &containerd,
        &format!("{RUN} -d --log-uri {uri} ~ bird /bin/sh -c '{line}'"),
    );
    ok(&containerd, "task exec --exec-id 1 bird /bin/touch /tmp/go");
    wait_for(&containerd, "bird", "STOPPED");
    let expected = format!("{} bird --tag a b\nout\nerr\nend\n", containerd.namespace());
    until("the logger has had all and ended", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (text == expected).then_some(())
    });
    remove(&containerd, "bird");
}

fn an_exec_ends_though_its_child_keeps_the_pipe() {
    let containerd = Containerd::start();
    bird(&containerd);
    let line = "task exec --exec-id 1 bird /bin/sh -c 'sleep 1000 & echo done'";
    assert_eq!(ok(&containerd, line), "done");
    assert!(ok(&containerd, "task ps bird").lines().count() == 3);
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn a_logger_that_takes_its_time_stalls_nobody_else() {
    let containerd = Containerd::start();
    let pod = "--annotation io.kubernetes.cri.sandbox-id=nest";
    ok(
        &containerd,
        &format!("{RUN} -d {pod} ~ bird /bin/sleep 1000"),
    );
    let place = containerd.directory();
    let logger = place.join("logger");
    let script = format!(
        "#!/bin/sh\necho asked >{0}/asked\nuntil [ -e {0}/go ]; do sleep 0.1; done\nexec 5>&-\ncat <&3 >{0}/log\n",
        place.display()
    );
    executable::script(&logger, &script);
    let uri = format!("binary://{}", logger.display());
    let line = "/bin/sh -c 'echo out; exec sleep 1000'";
    let line = format!("{RUN} -d {pod} --log-uri {uri} ~ jay {line}");
    let mut client = containerd.ctr(&line).stdin(Stdio::null()).spawn().unwrap();
    until("the logger was started", || {
        place.join("asked").exists().then_some(())
    });
    let line = "task exec --exec-id 1 bird /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    assert!(client.try_wait().unwrap().is_none());
    std::fs::write(place.join("go"), "").unwrap();
    assert_eq!(wait(&mut client, patience()), Some(0));
    until("the logger has it", || {
        let text = std::fs::read_to_string(place.join("log")).unwrap_or_default();
        (text == "out\n").then_some(())
    });
    remove(&containerd, "jay");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn a_kill_for_memory_is_told() {
    let containerd = Containerd::start();
    let events = listen(&containerd);
    let script = "head -c 200000000 /dev/zero | tail -c 100000000 | wc -c; sleep 1000";
    ok(
        &containerd,
        &format!("{RUN} -d --memory-limit 16000000 ~ bird /bin/sh -c '{script}'"),
    );
    events.expect("/tasks/oom");
    remove(&containerd, "bird");
}

fn a_pod_has_one_shim() {
    let containerd = Containerd::start();
    let pod = "--annotation io.kubernetes.cri.sandbox-id=nest";
    for name in ["nest", "a", "b"] {
        ok(
            &containerd,
            &format!("{RUN} -d {pod} ~ {name} /bin/sleep 1000"),
        );
    }
    assert_eq!(containerd.shims().len(), 1);
    bird(&containerd);
    assert_eq!(containerd.shims().len(), 2);
    remove(&containerd, "nest");
    let line = "task exec --exec-id 1 b /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    for name in ["a", "b", "bird"] {
        remove(&containerd, name);
    }
    wait_for_end(&containerd);
}

fn a_stopped_client_stalls_nobody_else() {
    let containerd = Containerd::start();
    let pod = "--annotation io.kubernetes.cri.sandbox-id=nest";
    ok(
        &containerd,
        &format!("{RUN} -d {pod} ~ bird /bin/sleep 1000"),
    );
    let loud = Listener::start(
        &containerd,
        &format!("{RUN} {pod} ~ jay /bin/sh -c 'while :; do echo loud; done'"),
        "jay",
    );
    wait_for(&containerd, "jay", "RUNNING");
    assert_eq!(containerd.shims().len(), 1);
    loud.signal(Signal::SIGSTOP);
    for number in 1..=10 {
        let line = format!("task exec --exec-id {number} bird /bin/echo inside");
        assert_eq!(ok(&containerd, &line), "inside");
    }
    loud.signal(Signal::SIGCONT);
    let before = loud.heard().len();
    until("the loud one goes on", || {
        (loud.heard().len() > before).then_some(())
    });
    // Killed: what it has left in the fifo is nobody's any more.
    drop(loud);
    remove(&containerd, "jay");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn a_log_may_lose_its_directory() {
    let containerd = Containerd::start();
    let directory = containerd.directory().join("logs");
    std::fs::create_dir(&directory).unwrap();
    let uri = format!("file://{}/bird.log", directory.display());
    let script = "while :; do echo tick; sleep 0.1; done";
    ok(
        &containerd,
        &format!("{RUN} -d --log-uri {uri} ~ bird /bin/sh -c '{script}'"),
    );
    std::fs::remove_dir_all(&directory).unwrap();
    let line = "task exec --exec-id 1 bird /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    wait_for(&containerd, "bird", "RUNNING");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

/// Writes options for `--runtime-config-path`.
fn options(containerd: &Containerd, text: &str) -> String {
    let path = containerd.directory().join("options.toml");
    std::fs::write(&path, text).unwrap();
    format!("--runtime-config-path {}", path.display())
}

fn wrong_options_are_refused() {
    let containerd = Containerd::start();
    for (text, why) in [
        ("BinaryNome = \"runc\"", "unknown option BinaryNome"),
        ("BinaryName = \"/no/such\"", "/no/such"),
    ] {
        let options = options(&containerd, text);
        let line = format!("{RUN} --rm {options} ~ bird /bin/true");
        run(&mut containerd.ctr(&line)).code(1).err(why);
    }
    wait_for_end(&containerd);
}

fn another_runtime_can_be_used() {
    let containerd = Containerd::start();
    let state = containerd.directory().join("runc");
    let text = format!("BinaryName = \"runc\"\nRoot = \"{}\"\n", state.display());
    let options = options(&containerd, &text);
    ok(
        &containerd,
        &format!("{RUN} -d {options} ~ bird /bin/sleep 1000"),
    );
    let mut list = Command::new("runc");
    list.arg("--root").arg(state.join(containerd.namespace()));
    list.args(["list", "--quiet"]);
    assert_eq!(run(&mut list).ok(), "bird");
    let line = "task exec --exec-id 1 bird /bin/sh -c 'echo inside; exit 3'";
    run(&mut containerd.ctr(line)).code(3).out("inside");
    ok(&containerd, "task pause bird");
    ok(&containerd, "task resume bird");
    remove(&containerd, "bird");
    assert_eq!(run(&mut list).ok(), "");
    wait_for_end(&containerd);
}

fn a_checkpoint_without_criu_is_refused() {
    let containerd = Containerd::start();
    // Debian's criu may be there, and of no use on this kernel: either way it is named.
    bird(&containerd);
    if Need::Criu.missing().is_some() {
        let outcome = run(&mut containerd.ctr("task checkpoint bird"));
        outcome.code(1).err("criu");
    }
    let line = "task exec --exec-id 1 bird /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn a_checkpoint_is_kept_by_containerd() {
    let containerd = Containerd::start();
    // A single sleep may end at once: criu interrupts it.
    let script = "while :; do sleep 1; done";
    ok(
        &containerd,
        &format!("{RUN} -d ~ bird /bin/sh -c '{script}'"),
    );
    let events = listen(&containerd);
    // Its name. 1.6 hands `--exit` and `--image-path` to its own type alone.
    let said = ok(&containerd, "task checkpoint bird");
    events.expect("/tasks/checkpointed");
    assert!(said.starts_with("containerd.io/checkpoint/bird"), "{said}");
    let stored = ok(&containerd, "content ls --quiet");
    let index = stored
        .lines()
        .map(|digest| ok(&containerd, &format!("content get {digest}")));
    assert!(
        index
            .into_iter()
            .any(|text| text.contains("container.criu")),
        "{stored}"
    );
    let line = "task exec --exec-id 1 bird /bin/echo inside";
    assert_eq!(ok(&containerd, line), "inside");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

fn limits_can_be_changed() {
    let containerd = Containerd::start();
    bird(&containerd);
    let limit = || {
        let metrics = ok(&containerd, "task metrics bird");
        let line = metrics.lines().find(|line| line.starts_with("pids.limit"));
        line.and_then(|line| line.split_whitespace().last().map(str::to_owned))
    };
    let resources = Message::default()
        .with(
            1,
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        )
        .with(2, r#"{"pids":{"limit":77}}"#);
    let request = Message::default().with(1, "bird").with(2, resources);
    call(&socket(&containerd, "bird"), "Update", &request).unwrap();
    assert_eq!(limit().as_deref(), Some("77"));
    let resources = Message::default().with(1, "LinuxResources").with(2, "{");
    let request = Message::default().with(1, "bird").with(2, resources);
    let refusal = call(&socket(&containerd, "bird"), "Update", &request).unwrap_err();
    assert!(refusal.contains("update"), "{refusal}");
    remove(&containerd, "bird");
}
