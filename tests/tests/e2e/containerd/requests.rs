//! The shim asked by its own protocol, for what `ctr` never asks.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::peers::Containerd;
use stack_tests::ttrpc::{Message, call};
use stack_tests::wait::until;

use super::{bird, ok, remove, socket, wait_for_end};

pub(super) fn descriptors_do_not_pile_up() {
    let containerd = Containerd::start();
    bird(&containerd);
    let [shim] = containerd.shims()[..] else {
        panic!("expected one shim");
    };
    let count = || {
        std::fs::read_dir(format!("/proc/{shim}/fd"))
            .unwrap()
            .count()
    };
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
        for (method, request) in [
            ("Exec", &exec),
            ("Start", &process),
            ("Wait", &process),
            ("Delete", &process),
        ] {
            call(&socket, method, request).unwrap();
        }
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

/// The process `id` of `bird`.
fn process(id: &str) -> Message {
    Message::default().with(1, "bird").with(2, id)
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
    std::fs::write(&logger, script).unwrap();
    std::fs::set_permissions(&logger, std::fs::Permissions::from_mode(0o755)).unwrap();
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
            call(&socket, "Exec", &exec)?;
            for method in ["Start", "Wait", "Delete"] {
                call(&socket, method, &process)?;
            }
            Ok::<(), String>(())
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
