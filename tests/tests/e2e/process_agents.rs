//! Those a runtime talks with while it sets a process up: hooks, the agent of a seccomp filter, the service manager, and
//! the host's network.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use stack_tests::bundle::Bundle;
use stack_tests::command::{Outcome, shell};
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::runtime::Runtime;
use stack_tests::wait::{until, within};
use stack_tests::{netns, tests};

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "process_agents",
        &[Need::Root],
        [
            every_hook_runs_in_its_namespace_with_the_state,
            a_create_whose_hook_fails_leaves_nothing,
            a_failed_poststart_hook_stops_the_container,
            a_failed_poststop_hook_is_a_warning,
            hooks_in_the_container_are_filtered,
            the_agent_gets_the_listener,
            the_agent_may_be_asked_about_sendmsg,
            a_filter_that_asks_needs_its_agent,
            the_service_manager_hears_of_readiness,
            a_terminal_is_as_who_shows_it_expects,
        ]
    );
    all.extend(tests!(
        "process_agents",
        &[Need::Root, Need::Program("ip")],
        [
            network_devices_move_in_with_their_addresses,
            network_devices_come_back_when_the_create_fails,
            network_devices_that_cannot_move_stay_as_they_are,
        ]
    ));
    all
}

fn run(runtime: &Runtime, bundle: &Bundle) -> Outcome {
    let id = runtime.id("r");
    runtime.run(&format!("run --bundle {} {id}", bundle.path().display()))
}

fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]})
}

const KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn every_hook_runs_in_its_namespace_with_the_state() {
    let runtime = Runtime::new();
    let log = runtime.directory().join("log");
    std::fs::write(&log, "").unwrap();
    // One line a hook: what it is, its mount namespace, the state.
    let say = |kind: &str, file: &str| {
        hook(&format!(
            "echo {kind} $(readlink /proc/self/ns/mnt) $(cat) >> {file}"
        ))
    };
    let mut hooks = json!({});
    for kind in KINDS {
        // In the container the log is at another place.
        let file = match kind {
            "startContainer" => "/log".into(),
            _ => log.display().to_string(),
        };
        hooks[kind] = json!([say(kind, &file)]);
    }
    let mount = json!({"destination": "/log", "type": "bind", "source": log, "options": ["bind"]});
    let bundle = Bundle::new(&["sleep", "1000"])
        .with("/mounts/-", mount)
        .with("/annotations", json!({"bird": "heron"}))
        .with("/hooks", hooks);
    let id = runtime.started("a", &bundle);
    let pid = runtime.state(&id)["pid"].as_i64().unwrap();
    let inside = shell(&format!("readlink /proc/{pid}/ns/mnt"));
    let outside = shell("readlink /proc/self/ns/mnt");
    runtime.run(&format!("delete --force {id}")).ok();
    let said = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Vec<&str>> = said
        .lines()
        .map(|line| line.splitn(3, ' ').collect())
        .collect();
    let order: Vec<_> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(order, KINDS, "{said}");
    for line in &lines {
        let state: Value = serde_json::from_str(line[2]).unwrap();
        let (status, of_host) = match line[0] {
            "createContainer" => ("creating", false),
            "startContainer" => ("created", false),
            "poststart" => ("running", true),
            "poststop" => ("stopped", true),
            _ => ("creating", true),
        };
        let namespace = if of_host { &outside } else { &inside };
        assert_eq!(line[1], namespace.trim(), "{said}");
        assert_eq!(state["status"], status, "{said}");
        assert_eq!(state["id"], *id);
        assert_eq!(state["bundle"], *bundle.path().display().to_string());
        assert_eq!(state["annotations"]["bird"], "heron");
        let expected = match line[0] {
            "poststop" => Value::Null,
            _ if of_host => json!(pid),
            _ => json!(1),
        };
        assert_eq!(state["pid"], expected, "{said}");
    }
}

fn a_create_whose_hook_fails_leaves_nothing() {
    let runtime = Runtime::new();
    let mark = runtime.directory().join("mark");
    for kind in &KINDS[..3] {
        let bundle = Bundle::new(&["true"])
            .with(
                "/hooks",
                json!({"poststop": [hook(&format!("echo gone >> {}", mark.display()))]}),
            )
            .with(
                &format!("/hooks/{kind}"),
                json!([hook("true"), hook("echo no; exit 3")]),
            );
        let id = runtime.id("a");
        let created = runtime.run(&format!("create --bundle {} {id}", bundle.path().display()));
        created.code(1).err(&format!(
            "error running {kind} hook #1: exit status 3, stdout: no"
        ));
        runtime.assert_nothing_left();
    }
    // The end of a container, though it never began.
    assert_eq!(
        std::fs::read_to_string(&mark).unwrap(),
        "gone\ngone\ngone\n"
    );
    let slow = json!([{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]);
    let bundle = Bundle::new(&["true"]).with("/hooks", json!({"createRuntime": slow}));
    run(&runtime, &bundle)
        .code(1)
        .err("hook ran past specified timeout of 1s");
}

fn a_failed_poststart_hook_stops_the_container() {
    let runtime = Runtime::new();
    let hooks = json!({"poststart": [hook("true"), hook("exit 1")]});
    let bundle = Bundle::new(&["sleep", "1000"]).with("/hooks", hooks);
    run(&runtime, &bundle)
        .code(1)
        .err("error running poststart hook #1");
    runtime.assert_nothing_left();
    let id = runtime.id("a");
    runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    runtime
        .run(&format!("start {id}"))
        .code(1)
        .err("error running poststart hook #1");
    runtime.wait_for(&id, "stopped");
    runtime.run(&format!("delete {id}")).ok();
}

fn a_failed_poststop_hook_is_a_warning() {
    let runtime = Runtime::new();
    let mark = runtime.directory().join("mark");
    let second = hook(&format!("touch {}", mark.display()));
    let hooks = json!({"poststop": [hook("exit 1"), second]});
    let outcome = run(&runtime, &Bundle::new(&["true"]).with("/hooks", hooks));
    outcome.code(0).err("error running poststop hook #0");
    assert!(mark.exists(), "the second poststop hook did not run");
}

fn hooks_in_the_container_are_filtered() {
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"});
    let bundle = Bundle::new(&["true"])
        .with(
            "/process/rlimits",
            json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]),
        )
        .with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}),
        )
        .with(
            "/hooks",
            json!({"startContainer": [{"path": "/bin/mkdir", "args": ["mkdir", "/x"]}]}),
        );
    run(&Runtime::new(), &bundle)
        .code(1)
        .err("error running startContainer hook #0: signal: bad system call");
}

/// Receives a container process state, and the descriptor that comes with it.
fn receive(agent: &UnixListener) -> (Value, OwnedFd) {
    let (bytes, listener) = receive_bytes(agent);
    (serde_json::from_slice(&bytes).unwrap(), listener)
}

/// Receives all that is said until the other end is closed, and the descriptor that comes with it.
fn receive_bytes(agent: &UnixListener) -> (Vec<u8>, OwnedFd) {
    let (mut stream, _) = agent.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 4096];
    let received = recvmsg(
        &stream,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    bytes.truncate(received.unwrap().bytes);
    let listener = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    // The runtime closes its end when it has said all.
    stream.read_to_end(&mut bytes).unwrap();
    (bytes, listener.unwrap())
}

/// A filter that asks the agent at `socket` about these calls.
fn asking(socket: &Path, names: &[&str]) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "listenerMetadata": "swan",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
    })
}

fn the_agent_gets_the_listener() {
    let runtime = Runtime::new();
    let socket = runtime.directory().join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new(&["sleep", "1000"])
            .with("/process/noNewPrivileges", json!(no_new_privileges))
            .with("/linux/seccomp", asking(&socket, &["mkdir", "mkdirat"]));
        let id = runtime.id("a");
        let line = format!("create --bundle {} {id}", bundle.path().display());
        let (state, listener) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| receive(&agent));
            runtime.leave(&line);
            asked.join().unwrap()
        });
        let pid = &runtime.state(&id)["pid"];
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "swan");
        assert_eq!((&state["pid"], &state["state"]["pid"]), (pid, pid));
        assert_eq!(state["state"]["status"], "creating");
        assert_eq!(state["state"]["id"], *id);
        runtime.run(&format!("start {id}")).ok();
        // A filter of its own for what exec starts; nobody answers once the listener is closed.
        let (state, outcome) = std::thread::scope(|scope| {
            let asked = scope.spawn(|| receive(&agent).0);
            let outcome = runtime.run(&format!("exec {id} mkdir /tmp/x"));
            (asked.join().unwrap(), outcome)
        });
        assert_eq!(state["state"]["status"], "running");
        assert_ne!(state["pid"], state["state"]["pid"]);
        outcome.code(1).err("Function not implemented");
        drop(listener);
    }
}

fn the_agent_may_be_asked_about_sendmsg() {
    let runtime = Runtime::new();
    let socket = runtime.directory().join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    let bundle = Bundle::new(&["true"]).with("/linux/seccomp", asking(&socket, &["sendmsg"]));
    let outcome = std::thread::scope(|scope| {
        // Closed at once: whoever asks from then on gets ENOSYS.
        scope.spawn(|| drop(receive(&agent)));
        run(&runtime, &bundle)
    });
    outcome.ok();
}

fn a_filter_that_asks_needs_its_agent() {
    let runtime = Runtime::new();
    let nowhere = runtime.directory().join("nowhere");
    let with = |filter: Value| {
        run(
            &runtime,
            &Bundle::new(&["true"]).with("/linux/seccomp", filter),
        )
    };
    with(asking(&nowhere, &["mkdir"]))
        .code(1)
        .err("failed to connect with seccomp agent");
    with(asking(Path::new("@nobody-listens-here"), &["mkdir"]))
        .code(1)
        .err("failed to connect with seccomp agent");
    with(asking(Path::new(""), &["mkdir"]))
        .code(1)
        .err("seccomp listenerPath is not set");
    with(asking(&nowhere, &["write"]))
        .code(1)
        .err("SCMP_ACT_NOTIFY cannot be used for the write syscall");
    with(json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": nowhere})).ok();
    runtime.assert_nothing_left();
}

fn the_service_manager_hears_of_readiness() {
    let runtime = Runtime::new();
    let address = runtime.directory().join("manager");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let bundle = Bundle::new(&["sh", "-c", "echo $NOTIFY_SOCKET > /seen; exec sleep 1000"]);
    let id = runtime.id("a");
    let told = |line: &str| {
        let mut command = runtime.command(line);
        command.env("NOTIFY_SOCKET", &address);
        command
    };
    let mut create = told(&format!("create --bundle {} {id}", bundle.path().display()));
    // Not the test's own streams, which the container would keep.
    let null = || std::process::Stdio::null();
    let created = create.stdin(null()).stdout(null()).stderr(null()).status();
    assert!(created.unwrap().success(), "create failed");
    let pid = runtime.state(&id)["pid"].clone();
    let mut start = told(&format!("start {id}"));
    let heard = std::thread::scope(|scope| {
        let started = scope.spawn(|| stack_tests::command::run(&mut start));
        let inside = runtime.root().join(&id).join("notify/notify.sock");
        let service = UnixDatagram::unbound().unwrap();
        until("the runtime listens", || {
            service.send_to(b"READY=1\n", &inside).ok()
        });
        let mut heard = Vec::new();
        for _ in 0..3 {
            let mut bytes = [0; 256];
            let length = manager.recv(&mut bytes).unwrap();
            heard.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
        }
        started.join().unwrap().ok();
        heard
    });
    assert_eq!(
        heard,
        [
            "READY=1\n".to_owned(),
            format!("MAINPID={pid}\n"),
            "BARRIER=1".to_owned()
        ]
    );
    let seen = bundle.rootfs().join("seen");
    let told = within(Duration::from_secs(10), || {
        std::fs::read_to_string(&seen)
            .ok()
            .filter(|text| !text.is_empty())
    });
    assert_eq!(told.as_deref(), Some("/run/notify/notify.sock\n"));
}

/// A device with addresses in the test's own network namespace.
fn device() {
    netns::isolate();
    shell("ip link add qtd0 address 02:00:00:00:00:07 mtu 1400 type veth peer name qtd1");
    shell("ip addr add 10.77.0.1/24 dev qtd0");
    shell("ip addr add 10.77.1.1/32 scope link dev qtd0");
    shell("ip link set qtd0 up");
}

fn network_devices_move_in_with_their_addresses() {
    device();
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["ip", "addr", "show", "dev", "lan0"])
        .with("/linux/netDevices", json!({"qtd0": {"name": "lan0"}}));
    let outcome = run(&runtime, &bundle);
    outcome
        .code(0)
        .out("10.77.0.1/24")
        .out("02:00:00:00:00:07")
        .out("mtu 1400")
        .out("UP")
        .no_out("10.77.1.1");
    let missing = Bundle::new(&["true"]).with("/linux/netDevices", json!({"qtdx": {}}));
    run(&runtime, &missing)
        .code(1)
        .err("link not found for interface qtdx on runtime namespace");
    let shared = Bundle::new(&["true"])
        .with(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "pid"}]),
        )
        .with("/hostname", json!(""))
        .with("/linux/netDevices", json!({"lo": {}}));
    run(&runtime, &shared)
        .code(1)
        .err("unable to move network devices without a NET namespace");
}

fn network_devices_come_back_when_the_create_fails() {
    device();
    let runtime = Runtime::new();
    let bundle = Bundle::new(&["true"])
        .with("/linux/netDevices", json!({"qtd0": {"name": "lan0"}}))
        .with("/hooks", json!({"createRuntime": [hook("exit 1")]}));
    run(&runtime, &bundle).code(1).err("createRuntime hook #0");
    let back = shell("ip addr show dev qtd0");
    for part in ["10.77.0.1/24", "02:00:00:00:00:07", "mtu 1400", "UP"] {
        assert!(back.contains(part), "no {part} in {back}");
    }
}

fn network_devices_that_cannot_move_stay_as_they_are() {
    device();
    let runtime = Runtime::new();
    for (devices, name) in [
        // The container's network namespace has a device of this name, as every one has.
        (json!({"lo": {}}), "lo"),
        (json!({"qtd0": {"name": "lo"}}), "qtd0"),
        // After one that has moved.
        (
            json!({"qtd0": {"name": "lan0"}, "qtd1": {"name": "lo"}}),
            "qtd1",
        ),
        // One that the kernel keeps where it is, which comes out when it has been taken down.
        (json!({"lo": {"name": "lan0"}}), "lo"),
    ] {
        let bundle = Bundle::new(&["true"]).with("/linux/netDevices", devices.clone());
        let outcome = run(&runtime, &bundle);
        outcome
            .code(1)
            .err(&format!("unable to move network device {name} "));
        assert!(
            !outcome.stderr.contains("cannot take network device"),
            "{}",
            outcome.report()
        );
        for (device, parts) in [
            ("lo", ["127.0.0.1/8", ",UP"]),
            ("qtd0", ["10.77.0.1/24", ",UP"]),
        ] {
            let is = shell(&format!("ip addr show dev {device}"));
            for part in parts {
                assert!(is.contains(part), "after {devices}: no {part} in {is}");
            }
        }
    }
    runtime.assert_nothing_left();
}

/// What runc's callers are used to: whoever listens for the terminal gets the kernel's settings, carriage returns and all,
/// and changes them if they like; in the foreground there are none, for the terminal around it adds its own.
fn a_terminal_is_as_who_shows_it_expects() {
    let runtime = Runtime::new();
    let script = "echo quick; stty -a 2>/dev/null | grep -o -e '-*onlcr'";
    let bundle = Bundle::new(&["sh", "-c", script]).with("/process/terminal", json!(true));
    let id = runtime.id("a");
    let socket = runtime.directory().join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let line = format!("--bundle {} {id}", bundle.path().display());
    runtime.leave(&format!(
        "run --detach --console-socket {} {line}",
        socket.display()
    ));
    let (_, terminal) = receive_bytes(&listener);
    let mut heard = Vec::new();
    // Ends with an error when nobody has the other end open any more.
    let _ = std::fs::File::from(terminal).read_to_end(&mut heard);
    assert_eq!(String::from_utf8_lossy(&heard), "quick\r\nonlcr\r\n");
    runtime.run(&format!("delete --force {id}")).ok();
    let mut front = Pty::start(&runtime.command(&format!("run {line}")));
    front.expect("-onlcr");
    assert_eq!(front.exit(), 0);
}
