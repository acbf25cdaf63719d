//! Bad input: one clear line, and the exit code docker or runc gives.

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::{Outcome, run, shell};
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::runtime::Runtime;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "errors",
        &[Need::Root],
        [
            an_unknown_image_is_named,
            a_name_taken_is_named,
            a_port_taken_is_named,
            bad_values_of_flags,
            command_not_found_is_127,
            command_not_executable_is_126,
            an_unknown_container_is_named,
            a_running_container_is_not_removed,
            a_failed_run_leaves_nothing,
            no_command_of_a_bad_kind,
            qrun_config_that_is_not_json,
            qrun_config_that_breaks_the_specification,
            qrun_bundle_without_rootfs,
            qrun_command_not_found,
            qrun_id_taken,
            qrun_bad_ids_never_become_paths,
            qrun_wrong_use_is_explained,
            without_root_rights,
        ]
    )
}

fn an_unknown_image_is_named() {
    let engine = Engine::new();
    // Nothing listens there: pulling fails at once.
    let outcome = engine.run("run --rm localhost:1/nothere:1 true");
    outcome.refused(125, "localhost:1/nothere:1");
    engine.run("rmi nothere").refused(1, "nothere");
    engine.run("inspect nothere").code(1).err("nothere");
}

fn a_name_taken_is_named() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird base sleep 1000");
    engine
        .run("run -d --name bird base sleep 1000")
        .refused(125, "bird");
    engine.ok("stop -t 0 bird");
    engine
        .run("create --name bird base true")
        .refused(1, "bird");
    engine.ok("rm bird");
    engine.ok("run --rm --name bird base true");
}

fn a_port_taken_is_named() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name first -p 8080:80 base sleep 1000");
    engine
        .run("run -d --name second -p 8080:80 base sleep 1000")
        .refused(125, "8080");
    let listener = std::net::TcpListener::bind("127.0.0.1:8081").unwrap();
    engine
        .run("run -d --name third -p 8081:80 base sleep 1000")
        .refused(125, "8081");
    drop(listener);
    engine.ok("rm -f first");
    engine.ok("run --rm -p 8080:80 base true");
    engine.ok("run --rm -p 8081:80 base true");
}

fn bad_values_of_flags() {
    let engine = Engine::new().with_base();
    for (flags, part) in [
        ("-p 80:http", "http"),
        ("-p 70000:80", "70000"),
        ("-p 1:2:3:4:5", "1:2:3:4:5"),
        ("-v rel/ative:/x", "rel/ative"),
        ("-v /tmp:not/absolute", "not/absolute"),
        ("-v /tmp:/x:sideways", "sideways"),
        ("-m 100q", "100q"),
        ("-m -5", "-5"),
        ("-m 1k", "1k"),
        ("-cpuset 99", "99"),
        ("-cpuset x", "x"),
        ("-e =x", "=x"),
        ("--name bad/name", "bad/name"),
        ("-n nosuchnetwork", "nosuchnetwork"),
        ("-net container:nobody", "nobody"),
    ] {
        let outcome = engine.run(&format!("run --rm {flags} base true"));
        outcome.code(125).err(part);
        assert!(
            outcome.stdout.is_empty() && !outcome.stderr.contains("panicked"),
            "{}",
            outcome.report()
        );
        assert!(
            outcome.stderr.lines().count() <= 3,
            "more than a line and a hint{}",
            outcome.report()
        );
    }
    engine.assert_nothing_left();
}

fn command_not_found_is_127() {
    let engine = Engine::new().with_base();
    engine
        .run("run --rm base nosuchcommand")
        .refused(127, "nosuchcommand");
    engine
        .run("run --rm base /no/such/command")
        .refused(127, "/no/such/command");
    engine
        .run("run -d --name left base nosuchcommand")
        .refused_after_id(127, "nosuchcommand");
    engine.ok("run -d --name bird base sleep 1000");
    says_one_line(&engine.run("exec bird nosuchcommand"), 127, "nosuchcommand");
    engine.run("exec bird sh -c nosuchcommand").code(127);
}

fn command_not_executable_is_126() {
    let engine = Engine::new().with_base();
    engine
        .run("run --rm base /etc/passwd")
        .refused(126, "/etc/passwd");
    engine.run("run --rm base /etc").refused(126, "/etc");
    engine.ok("run -d --name bird base sleep 1000");
    says_one_line(&engine.run("exec bird /etc/passwd"), 126, "/etc/passwd");
}

/// The runtime's own line is enough.
#[track_caller]
fn says_one_line(outcome: &Outcome, code: i32, part: &str) {
    outcome.code(code).err(part);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.report());
}

fn an_unknown_container_is_named() {
    let engine = Engine::new();
    for line in [
        "logs", "stop", "start", "rm", "kill", "wait", "attach", "inspect",
    ] {
        engine.run(&format!("{line} nobody")).code(1).err("nobody");
    }
    engine.run("exec nobody true").code(1).err("nobody");
    engine.run("commit nobody image").code(1).err("nobody");
}

fn a_running_container_is_not_removed() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird base sleep 1000");
    engine.run("rm bird").refused(1, "bird");
    engine.run("ps").code(0).out("bird");
    engine.run("exec -it bird sh").code(1).err("TTY");
    engine.ok("stop -t 0 bird");
    engine.run("exec bird true").code(1).err("bird");
}

fn a_failed_run_leaves_nothing() {
    let engine = Engine::new().with_base();
    engine.run("run --rm base nosuchcommand").code(127);
    engine.run("run --rm -p 1:1 -cpuset 99 base true").code(125);
    assert_eq!(engine.ok("ps -aq"), "");
    engine.assert_nothing_left();
}

fn no_command_of_a_bad_kind() {
    let engine = Engine::new();
    let outcome = engine.run("nosuchcommand");
    assert_ne!(outcome.code, 0, "{}", outcome.report());
    outcome.err("nosuchcommand");
}

/// Fails unless `qrun run` of `bundle` is refused with one line that has `part`.
#[track_caller]
fn qrun_refuses(bundle: &Bundle, part: &str) {
    let runtime = Runtime::new();
    let id = runtime.id("bad");
    for operation in ["create", "run"] {
        let line = format!("{operation} --bundle {} {id}", bundle.path().display());
        let outcome = runtime.run(&line);
        assert!(
            outcome.code == 1 || outcome.code == 127,
            "{}",
            outcome.report()
        );
        let said = outcome.stderr.to_lowercase();
        assert!(
            said.contains(&part.to_lowercase()),
            "expected {part:?}{}",
            outcome.report()
        );
        let lines = outcome
            .stderr
            .lines()
            .filter(|it| !it.starts_with("hint:"))
            .count();
        assert!(
            lines == 1 && !outcome.stderr.contains("panicked"),
            "{}",
            outcome.report()
        );
    }
    runtime.assert_nothing_left();
}

fn qrun_config_that_is_not_json() {
    let bundle = Bundle::new(&["true"]);
    std::fs::write(bundle.path().join("config.json"), "{ not json").unwrap();
    qrun_refuses(&bundle, "config.json");
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    qrun_refuses(&bundle, "config.json");
}

fn qrun_config_that_breaks_the_specification() {
    for (pointer, value, part) in [
        ("/process/cwd", json!("relative"), "cwd"),
        ("/process/args", json!([]), "args"),
        ("/process", json!(null), "process"),
        ("/root", json!(null), "root"),
        ("/linux/namespaces/-", json!({"type": "astral"}), "astral"),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X", "soft": 1, "hard": 1}]),
            "RLIMIT_X",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "nosuchfs", "source": "x"}),
            "/x",
        ),
    ] {
        qrun_refuses(&Bundle::new(&["true"]).with(pointer, value), part);
    }
}

fn qrun_bundle_without_rootfs() {
    let bundle = Bundle::new(&["true"]);
    shell(&format!("rm -r {}", bundle.rootfs().display()));
    qrun_refuses(&bundle, "rootfs");
    let runtime = Runtime::new();
    let id = runtime.id("none");
    runtime
        .run(&format!("run --bundle /no/such/bundle {id}"))
        .code(1)
        .err("/no/such/bundle");
}

fn qrun_command_not_found() {
    qrun_refuses(&Bundle::new(&["/no/such/command"]), "/no/such/command");
    qrun_refuses(&Bundle::new(&["/etc/passwd"]), "/etc/passwd");
}

fn qrun_id_taken() {
    let (runtime, bundle) = (Runtime::new(), Bundle::sleeper());
    let id = runtime.started("a", &bundle);
    let again = runtime.run(&format!("create --bundle {} {id}", bundle.path().display()));
    again.code(1).err("already exists");
    assert_eq!(runtime.state(&id)["status"], "running");
}

fn qrun_bad_ids_never_become_paths() {
    let (runtime, bundle) = (Runtime::new(), Bundle::new(&["true"]));
    for id in ["../x", "a/b", "..", ".", "''", "a'\n'b"] {
        let outcome = runtime.run(&format!("run --bundle {} {id}", bundle.path().display()));
        assert!(
            outcome.code == 1 || outcome.code == 2,
            "{}",
            outcome.report()
        );
        runtime.run(&format!("delete --force {id}"));
    }
    assert!(bundle.path().join("config.json").exists());
}

/// runc's texts and exit codes, with how it would be right on standard output where runc shows it.
fn qrun_wrong_use_is_explained() {
    let runtime = Runtime::new();
    let (usage, none) = ("NAME:\n   qrun ", "");
    for (line, code, out, err) in [
        ("nonsense", 3, none, "No help topic for 'nonsense'"),
        (
            "start",
            1,
            usage,
            "\\\"start\\\" requires exactly 1 argument(s)",
        ),
        (
            "start a b",
            1,
            usage,
            "\\\"start\\\" requires exactly 1 argument(s)",
        ),
        (
            "exec",
            1,
            usage,
            "\\\"exec\\\" requires a minimum of 1 argument(s)",
        ),
        (
            "kill a 9 b",
            1,
            usage,
            "\\\"kill\\\" requires a maximum of 2 argument(s)",
        ),
        (
            "start --nonsense a",
            1,
            usage,
            "Incorrect Usage: flag provided but not defined: -nonsense",
        ),
        (
            "state a --bundle",
            1,
            usage,
            "Incorrect Usage: flag provided but not defined: -bundle",
        ),
        (
            "create --bundle",
            1,
            usage,
            "Incorrect Usage: flag needs an argument: --bundle",
        ),
        (
            "create --no-pivot=maybe a",
            1,
            usage,
            "Incorrect Usage: invalid value \"maybe\" for flag -no-pivot: parse error",
        ),
        (
            "update --pids-limit 5x a",
            1,
            usage,
            "Incorrect Usage: invalid value \"5x\" for flag -pids-limit: strconv.ParseInt: parsing \"5x\": invalid syntax",
        ),
        (
            "exec -g 5,6 a id",
            1,
            usage,
            "Incorrect Usage: invalid value \"5,6\" for flag -g: strconv.ParseInt: parsing \"5,6\": invalid syntax",
        ),
        (
            "events --interval soon a",
            1,
            usage,
            "Incorrect Usage: invalid value \"soon\" for flag -interval: time: invalid duration \"soon\"",
        ),
        ("state nobody", 1, none, "container does not exist"),
        (
            "exec nobody true",
            255,
            none,
            "exec failed: container does not exist",
        ),
        ("kill nobody -9", 1, none, "container does not exist"),
        ("start \"\"", 1, none, "container id cannot be empty"),
    ] {
        let outcome = runtime.run(line);
        outcome.code(code).err(err);
        assert_eq!(
            outcome.stdout.is_empty(),
            out.is_empty(),
            "{line}: {}",
            outcome.stdout
        );
        assert!(outcome.stdout.contains(out), "{line}: {}", outcome.stdout);
    }
    let (bundle, id) = (Bundle::new(&["sleep", "1000"]), runtime.id("a"));
    let line = format!("run -d --bundle {} {id}", bundle.path().display());
    let mut run = runtime.command(&line);
    let null = std::process::Stdio::null;
    let status = run.stdin(null()).stdout(null()).stderr(null()).status();
    assert!(status.unwrap().success());
    runtime
        .run(&format!("exec {id} -- echo --said"))
        .out("--said\n");
    for (user, said) in [
        (
            "nobody",
            "bad uid: strconv.Atoi: parsing \\\"nobody\\\": invalid syntax",
        ),
        (
            "1:x",
            "bad gid: strconv.Atoi: parsing \\\"x\\\": invalid syntax",
        ),
        (
            "4294967296",
            "bad uid: strconv.Atoi: parsing \\\"4294967296\\\": value out of range",
        ),
    ] {
        let outcome = runtime.run(&format!("exec --user {user} {id} true"));
        outcome.code(255).err(said);
    }
    let wrong = runtime.run(&format!("update --cpu-share -5 {id}"));
    wrong
        .code(1)
        .err("invalid value for cpu-share: strconv.ParseUint: parsing \\\"-5\\\": invalid syntax");
    runtime.run(&format!("delete --force {id}")).ok();
    runtime.assert_nothing_left();
}

fn without_root_rights() {
    let (runtime, bundle) = (Runtime::new(), Bundle::new(&["true"]));
    let copies = tempfile::Builder::new()
        .prefix("qprograms")
        .tempdir_in("/tmp")
        .unwrap();
    shell(&format!("chmod 755 {}", copies.path().display()));
    shell(&format!("chmod -R a+rX {}", bundle.path().display()));
    for program in ["qrun", "qengine"] {
        let path = stack_tests::programs::built(program);
        stack_tests::executable::copy(&path, &copies.path().join(program));
    }
    let as_nobody = |line: String| {
        let args = [
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all",
            "sh",
            "-c",
        ];
        let mut command = std::process::Command::new("setpriv");
        run(command
            .args(args)
            .arg(line)
            .env_remove("XDG_RUNTIME_DIR")
            .env("HOME", "/nonexistent"))
    };
    let at = copies.path().display();
    let place = bundle.path().display();
    let outcome = as_nobody(format!(
        "{at}/qrun --root /run/qrun-nobody run --bundle {place} x"
    ));
    assert!(outcome.code == 1, "{}", outcome.report());
    assert!(outcome.stderr.lines().count() <= 2, "{}", outcome.report());
    let outcome = as_nobody(format!(
        "{at}/qengine --root /var/lib/qengine-nobody run base true"
    ));
    assert!(
        outcome.code == 125 || outcome.code == 1,
        "{}",
        outcome.report()
    );
    assert!(outcome.stderr.lines().count() <= 2, "{}", outcome.report());
    drop(runtime);
}
