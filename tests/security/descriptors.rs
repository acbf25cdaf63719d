//! Processes of ours on their way into a container: what they hold of the host must not be had from inside.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use stack_tests::bundle::Bundle;
use stack_tests::command::Outcome;
use stack_tests::image::digest_of_file;
use stack_tests::needs::{Need, Test};
use stack_tests::programs::built;
use stack_tests::runtime::Runtime;
use stack_tests::tests;
use stack_tests::wait::{until, within};

use crate::fixture::{Sentinel, hostile, number, replace_by_link, run};

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "descriptors",
        &[Need::Root, Need::Program("cc")],
        [
            cve_2024_21626_a_working_directory_of_the_hosts,
            cve_2024_21626_a_program_of_the_hosts,
            cve_2024_21626_nothing_but_stdio_is_open,
            cve_2019_5736_the_runtimes_file_is_not_overwritten,
            cve_2016_9962_what_joins_cannot_be_traced,
            cve_2016_9962_what_joins_a_user_namespace_cannot_be_traced,
            a_container_in_the_making_is_not_entered,
        ]
    )
}

/// Up from wherever a descriptor of the host leads, to the host's root: above that there is nothing.
const UP: &str = "../../../../../../../../../../../..";

/// runc had a directory of the host open when it went to the working directory: `/proc/self/fd/7` put the process there,
/// and from there `..` led everywhere.
fn cve_2024_21626_a_working_directory_of_the_hosts() {
    let sentinel = Sentinel::new();
    let secret = sentinel.at("secret");
    let runtime = Runtime::new();
    let script = format!("cat ./{UP}{secret}; cat {UP}{secret}; true");
    let mut bundle = Bundle::new(&["sh", "-c", &script]);
    let sleeper = Bundle::sleeper();
    let id = runtime.started("cwd", &sleeper);
    let check = |outcome: &Outcome, path: &str| {
        assert_ne!(outcome.code, 0, "{path} was entered{}", outcome.report());
        outcome.no_out(crate::fixture::SECRET);
    };
    for number in 0..16 {
        let direct = format!("/proc/self/fd/{number}");
        replace_by_link(&bundle.rootfs().join("link"), &direct);
        for path in [
            direct.clone(),
            format!("{direct}/{UP}"),
            "/link".to_owned(),
            format!("/link/{UP}/tmp"),
        ] {
            bundle.config["process"]["cwd"] = json!(path);
            bundle.save();
            check(&runtime.run_bundle(&bundle), &path);
        }
        let exec = format!("exec --cwd {direct}/. {id} sh -c '{script}'");
        check(&runtime.run(&exec), &direct);
    }
    // The working directory that was asked for is made where it is missing, in the container alone.
    let inside = Bundle::new(&["sh", "-c", "pwd"]).with("/process/cwd", json!("/made/by/qrun"));
    assert_eq!(run(&inside).ok(), "/made/by/qrun");
    sentinel.assert_untouched();
}

/// The same by the program's path: exec looks it up while descriptors that it is going to close are still open. An image
/// can have such a path as a link, or as the interpreter of a script.
fn cve_2024_21626_a_program_of_the_hosts() {
    let sentinel = Sentinel::new();
    let runtime = Runtime::new();
    let program = sentinel.at("busybox");
    let sleeper = Bundle::sleeper();
    let id = runtime.started("exec", &sleeper);
    let mut bundle = Bundle::new(&["true"]);
    let mut tried = 0;
    let mut check = |outcome: &Outcome, path: &str| {
        tried += 1;
        assert_ne!(outcome.code, 0, "{path} was run{}", outcome.report());
        outcome.no_out("escaped");
    };
    for number in 3..16 {
        let path = format!("/proc/self/fd/{number}/{UP}{program}");
        bundle.config["process"]["args"] = json!([path, "echo", "escaped"]);
        bundle.save();
        check(&runtime.run_bundle(&bundle), &path);
        let outcome = runtime.run(&format!(
            "create --bundle {} {}",
            bundle.path().display(),
            runtime.id("c")
        ));
        check(&outcome, &path);
        check(
            &runtime.run(&format!("exec {id} {path} echo escaped")),
            &path,
        );
        for rootfs in [sleeper.rootfs(), bundle.rootfs()] {
            replace_by_link(&rootfs.join("bin/echo"), &path);
            std::fs::write(rootfs.join("bin/script"), format!("#!{path} echo\n")).unwrap();
            make_executable(&rootfs.join("bin/script"));
        }
        for command in ["echo", "script"] {
            bundle.config["process"]["args"] = json!([command, "escaped"]);
            bundle.save();
            check(&runtime.run_bundle(&bundle), command);
            check(
                &runtime.run(&format!("exec {id} {command} escaped")),
                command,
            );
        }
    }
    assert_eq!(tried, 13 * 7);
    sentinel.assert_untouched();
}

fn make_executable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whatever is open at exec besides stdio belongs to whoever the container runs.
fn cve_2024_21626_nothing_but_stdio_is_open() {
    let runtime = Runtime::new();
    let bundle = hostile(&["attacker", "descriptors"]);
    assert_eq!(runtime.run_bundle(&bundle).ok().trim(), "0 1 2");
    let id = runtime.id("created");
    let said = runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    runtime.run(&format!("start {id}")).ok();
    runtime.wait_for(&id, "stopped");
    assert_eq!(std::fs::read_to_string(said).unwrap().trim(), "0 1 2");
    let sleeper = hostile(&["sleep", "1000"]);
    let id = runtime.started("joined", &sleeper);
    assert_eq!(
        runtime
            .run(&format!("exec {id} attacker descriptors"))
            .ok()
            .trim(),
        "0 1 2"
    );
    let log = runtime.directory().join("log");
    let line = format!(
        "--debug --log {} exec {id} attacker descriptors",
        log.display()
    );
    assert_eq!(runtime.run(&line).ok().trim(), "0 1 2");
}

/// A program that is `#!/proc/self/exe` makes the runtime's own file run as a process of the container, whose other
/// processes can open it there, and write to it once it has ended.
fn cve_2019_5736_the_runtimes_file_is_not_overwritten() {
    let before = digest_of_file(&built("qrun")).unwrap();
    for all_rights in [false, true] {
        let mut bundle = hostile(&["attacker", "overwrite-runtime"]);
        if all_rights {
            for set in ["bounding", "effective", "permitted"] {
                let sets = &mut bundle.config["process"]["capabilities"];
                sets[set].as_array_mut().unwrap().extend([
                    json!("CAP_SYS_ADMIN"),
                    json!("CAP_SYS_PTRACE"),
                    json!("CAP_FOWNER"),
                ]);
            }
            bundle.save();
        }
        // Opening the fifo for its log keeps it there until it has been found.
        std::fs::write(
            bundle.rootfs().join("bin/trap"),
            "#!/proc/self/exe --log=/fifo\n",
        )
        .unwrap();
        make_executable(&bundle.rootfs().join("bin/trap"));
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            bundle.rootfs().join("fifo"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        let runtime = Runtime::new();
        let id = runtime.id("overwrite");
        let said = runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
        runtime.run(&format!("start {id}")).ok();
        let trap = runtime.run(&format!("exec {id} trap"));
        // With the right to trace everybody it is caught before it executes the trap.
        let caught = trap.code == 137 || all_rights && trap.code == 255;
        assert!(caught, "the trap was not caught{}", trap.report());
        let text = until("the attacker reports", || {
            let text = std::fs::read_to_string(&said).ok()?;
            text.contains("gained=").then_some(text)
        });
        assert_eq!(
            (number(&text, "reached"), number(&text, "gained")),
            (1, 0),
            "{text}"
        );
        assert_eq!(
            digest_of_file(&built("qrun")).unwrap(),
            before,
            "the runtime was overwritten"
        );
    }
}

/// A process that joins a container is in its pid namespace before it has let go of the host: the container's first
/// process could trace it, and take its descriptors.
fn cve_2016_9962_what_joins_cannot_be_traced() {
    watch_joining(hostile(&["attacker", "watch-processes"]));
}

/// The same where the container's root has every capability, in a user namespace of its own.
fn cve_2016_9962_what_joins_a_user_namespace_cannot_be_traced() {
    let mut bundle = hostile(&["attacker", "watch-processes"]);
    let everything: Vec<_> = [
        "SYS_PTRACE",
        "SYS_ADMIN",
        "DAC_READ_SEARCH",
        "DAC_OVERRIDE",
        "SETUID",
        "SETGID",
        "KILL",
    ]
    .map(|name| format!("CAP_{name}"))
    .into();
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] = json!(everything);
    }
    let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    bundle.save();
    watch_joining(bundle);
}

fn watch_joining(bundle: Bundle) {
    let bundle = bundle.with("/process/noNewPrivileges", json!(false));
    let runtime = Runtime::new();
    let id = runtime.id("watched");
    let said = runtime.leave(&format!("create --bundle {} {id}", bundle.path().display()));
    runtime.run(&format!("start {id}")).ok();
    let joined = (0..150)
        .filter(|_| runtime.run(&format!("exec {id} true")).code == 0)
        .count();
    runtime.run(&format!("kill {id} TERM")).ok();
    let text = within(Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&said).ok()?;
        text.contains("hits=").then_some(text)
    });
    let text = text.unwrap_or_else(|| panic!("the attacker did not report"));
    assert_eq!(number(&text, "hits"), 0, "{text}");
    // It did look at processes that were not the container's yet.
    assert!(
        number(&text, "refused") > 0 && number(&text, "seen") > 50,
        "{text}"
    );
    assert!(joined > 100, "only {joined} processes could join");
}

/// Until its root is changed a container's first process has the host's: whoever joined it then would be on the host.
fn a_container_in_the_making_is_not_entered() {
    let sentinel = Sentinel::new();
    let runtime = Runtime::new();
    let id = runtime.id("unfinished");
    let said = runtime.directory().join("said");
    let qrun = format!(
        "{} --root {}",
        built("qrun").display(),
        runtime.root().display()
    );
    let script = format!(
        "{qrun} exec {id} cat {} > {} 2>&1; echo ended >> {1}",
        sentinel.at("secret"),
        said.display()
    );
    let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = Bundle::new(&["true"]).with("/hooks", json!({"createRuntime": hook}));
    runtime
        .run(&format!("run --bundle {} {id}", bundle.path().display()))
        .ok();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(
        said.contains("ended") && !said.contains(crate::fixture::SECRET),
        "{said}"
    );
    assert!(said.contains("cannot exec in container"), "{said}");
}
