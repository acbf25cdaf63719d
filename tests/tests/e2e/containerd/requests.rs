//! The shim asked by its own protocol, for what `ctr` never asks.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::executable;
use stack_tests::peers::Containerd;
use stack_tests::ttrpc::{Message, call, call_service};
use stack_tests::usage::{Usage, times};
use stack_tests::wait::until;

use super::{bird, ok, remove, socket, wait_for_end};

pub(super) fn descriptors_do_not_pile_up() {
    let containerd = Containerd::start();
    bird(&containerd);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim");
    };
    let config = containerd.directory().join("config.toml");
    let open = std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap();
    let open: Vec<_> = open
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    assert!(
        !open.contains(&config),
        "containerd's own is open: {open:?}"
    );
    let count = || Usage::of(shim).descriptors;
    let by_client = |id: &str| {
        let line = format!("task exec --exec-id {id} bird /bin/echo inside");
        assert_eq!(ok(&containerd, &line), "inside");
    };
    by_client("first");
    let before = count();
    let socket = socket(&containerd, "bird");
    for number in 1..=200 {
        let process = process(&number.to_string());
        let exec = process.clone().with(7, program(&["/bin/true"]));
        live(&socket, &process, &exec).unwrap();
        if number % 20 == 0 {
            by_client(&format!("client-{number}"));
        }
    }
    until("as many descriptors as before", || {
        (count() <= before).then_some(())
    });
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn children_that_keep_the_pipe_cost_nothing() {
    let all = times(100, 1000);
    let containerd = Containerd::start();
    bird(&containerd);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim");
    };
    let socket = socket(&containerd, "bird");
    let log = containerd.directory().join("bird.log");
    let spec = program(&["/bin/sh", "-c", "sleep 1000 & echo done"]);
    let mut early = None;
    for number in 1..=all {
        let process = process(&number.to_string());
        let exec = process.clone().with(5, format!("file://{}", log.display()));
        let exec = exec.with(7, &spec);
        live(&socket, &process, &exec).unwrap();
        if number == all / 10 {
            early = Some(Usage::of(shim));
        }
    }
    early.unwrap().is_not_exceeded_by(shim);
    let text = std::fs::read_to_string(log).unwrap();
    assert_eq!(text, "done\n".repeat(all));
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

/// The methods of the task service that a container has to be there for.
const METHODS: [&str; 14] = [
    "State",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
];

pub(super) fn both_versions_of_the_service_have_all_methods() {
    let containerd = Containerd::start();
    bird(&containerd);
    let socket = socket(&containerd, "bird");
    let message = |id: &str| Message::default().with(1, id);
    let (bird, nobody) = (message("bird"), message("nobody"));
    for version in ["v2", "v3"] {
        let service = format!("containerd.task.{version}.Task");
        let ask =
            |method: &str, payload: &Message| call_service(&socket, &service, method, payload);
        let state = ask("State", &bird).unwrap();
        // Field 1, the id.
        assert!(state.starts_with(b"\x0a\x04bird"), "{state:?}");
        for method in METHODS {
            let request = match method {
                "Exec" => nobody.clone().with(2, "1"),
                _ => nobody.clone(),
            };
            let refusal = ask(method, &request).unwrap_err();
            assert!(
                refusal.contains("not found"),
                "{version} {method}: {refusal}"
            );
        }
        // Who the shim is, it says whatever it is asked about; and it goes only when it has nothing.
        assert!(ask("Connect", &nobody).unwrap().starts_with(&[8]));
        ask("Shutdown", &bird).unwrap();
        let refusal = ask("Sing", &bird).unwrap_err();
        assert!(
            refusal.contains("method Sing is not implemented"),
            "{refusal}"
        );
    }
    let refusal = call_service(&socket, "containerd.task.v1.Task", "State", &bird).unwrap_err();
    assert!(refusal.contains("is not implemented"), "{refusal}");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

/// The process `id` of `bird`.
fn process(id: &str) -> Message {
    Message::default().with(1, "bird").with(2, id)
}

/// Leads an exec session through its life, from the request that makes it to its deletion.
fn live(socket: &Path, process: &Message, exec: &Message) -> Result<(), String> {
    call(socket, "Exec", exec)?;
    for method in ["Start", "Wait", "Delete"] {
        call(socket, method, process)?;
    }
    Ok(())
}

/// What to run, in a request for an exec session.
fn program(words: &[&str]) -> Message {
    let spec = serde_json::json!({"args": words, "cwd": "/", "user": {"uid": 0, "gid": 0}});
    Message::default()
        .with(1, "Process")
        .with(2, spec.to_string())
}

pub(super) fn an_exec_without_its_output_can_be_started_again() {
    let containerd = Containerd::start();
    bird(&containerd);
    let socket = socket(&containerd, "bird");
    let file = containerd.directory().join("late");
    let exec = process("1")
        .with(5, format!("fifo://{}", file.display()))
        .with(7, program(&["/bin/echo", "inside"]));
    call(&socket, "Exec", &exec).unwrap();
    let refusal = call(&socket, "Start", &process("1")).unwrap_err();
    assert!(refusal.contains(file.to_str().unwrap()), "{refusal}");
    std::fs::write(&file, "").unwrap();
    call(&socket, "Start", &process("1")).unwrap();
    call(&socket, "Wait", &process("1")).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "inside\n");
    call(&socket, "Delete", &process("1")).unwrap();
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn a_terminals_output_goes_to_a_program() {
    let containerd = Containerd::start();
    bird(&containerd);
    let socket = socket(&containerd, "bird");
    let place = containerd.directory();
    let (logger, log) = (place.join("logger"), place.join("log"));
    let script = format!("#!/bin/sh\nexec 5>&-\ncat <&3 >{}\n", log.display());
    executable::script(&logger, &script);
    let exec = process("1")
        .with_true(3)
        .with(5, format!("binary://{}", logger.display()))
        .with(7, program(&["/bin/sh", "-c", "tty; echo inside"]));
    call(&socket, "Exec", &exec).unwrap();
    call(&socket, "Start", &process("1")).unwrap();
    call(&socket, "Wait", &process("1")).unwrap();
    until("the logger has it", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        // By lines: it may have written before the terminal was told to add carriage returns.
        let mut lines = text.lines();
        let whole = lines
            .next()
            .is_some_and(|line| line.starts_with("/dev/pts/"))
            && lines.next() == Some("inside");
        whole.then_some(())
    });
    call(&socket, "Delete", &process("1")).unwrap();
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn a_failed_exec_has_an_end() {
    let containerd = Containerd::start();
    bird(&containerd);
    let socket = socket(&containerd, "bird");
    let exec = |id: &str| {
        let request = process(id).with(7, program(&["/no/such"]));
        call(&socket, "Exec", &request).unwrap();
        // Who waits before it is started, or after: both are answered.
        let (socket, request) = (socket.clone(), process(id));
        std::thread::spawn(move || call(&socket, "Wait", &request))
    };
    let waiter = exec("fails");
    let refusal = call(&socket, "Start", &process("fails")).unwrap_err();
    assert!(refusal.contains("/no/such"), "{refusal}");
    // Field 1, the code: 255.
    for answer in [
        waiter.join().unwrap(),
        call(&socket, "Wait", &process("fails")),
    ] {
        let answer = answer.unwrap();
        assert!(answer.starts_with(&[8, 255, 1]), "{answer:?}");
    }
    call(&socket, "Delete", &process("fails")).unwrap();
    let waiter = exec("never");
    call(&socket, "Delete", &process("never")).unwrap();
    let refusal = waiter.join().unwrap().unwrap_err();
    assert!(refusal.contains("not found"), "{refusal}");
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn signals_do_not_end_a_shim() {
    let containerd = Containerd::start();
    bird(&containerd);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim");
    };
    let socket = socket(&containerd, "bird");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // At every moment, that in which it starts a program too.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for signal in [Signal::SIGTERM, Signal::SIGHUP] {
                    let _ = kill(Pid::from_raw(shim), signal);
                }
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        let outcome = (1..=20).try_for_each(|number| {
            let process = process(&number.to_string());
            let exec = process.clone().with(7, program(&["/bin/true"]));
            live(&socket, &process, &exec)
        });
        over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    assert_eq!(containerd.shims(), [shim]);
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}

pub(super) fn a_root_can_have_many_layers() {
    const LAYERS: usize = 100;
    let containerd = Containerd::start();
    bird(&containerd);
    let place = containerd.directory();
    let layers = place.join("layers-with-a-name-that-is-not-short-either");
    std::fs::create_dir(&layers).unwrap();
    let base = layers.join("base");
    std::os::unix::fs::symlink(place.join("rootfs"), &base).unwrap();
    let mut lower = vec![base.display().to_string()];
    for number in 0..LAYERS {
        let layer = layers.join(number.to_string());
        std::fs::create_dir(&layer).unwrap();
        std::fs::write(layer.join(format!("from-{number}")), "").unwrap();
        lower.push(layer.display().to_string());
    }
    let bundle = place.join("bundle");
    std::fs::create_dir(&bundle).unwrap();
    let config = std::fs::read(containerd.bundle("bird").join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["root"]["path"] = "rootfs".into();
    config["process"]["args"] =
        serde_json::json!(["/bin/sh", "-c", "set -- /from-*; [ $# = 100 ]"]);
    let cgroup = format!("/{}/wren", containerd.namespace());
    config["linux"]["cgroupsPath"] = cgroup.into();
    std::fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let overlay = Message::default()
        .with(1, "overlay")
        .with(2, "overlay")
        .with(4, "ro")
        .with(4, format!("lowerdir={}", lower.join(":")));
    let wren = Message::default().with(1, "wren");
    let create = wren
        .clone()
        .with(2, bundle.display().to_string())
        .with(3, overlay);
    let socket = socket(&containerd, "bird");
    call(&socket, "Create", &create).unwrap();
    call(&socket, "Start", &wren).unwrap();
    let answer = call(&socket, "Wait", &wren).unwrap();
    // A code of 0 is left out: the first field is the second, the time.
    assert!(answer.starts_with(&[0x12]), "{answer:?}");
    call(&socket, "Delete", &wren).unwrap();
    remove(&containerd, "bird");
    wait_for_end(&containerd);
}
