//! Podman with `qshim` as its monitor and `qrun` as its runtime: nothing tells it that they are not conmon and runc.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use stack_tests::command::{Outcome, run, run_with_input, tool};
use stack_tests::needs::{Need, Test};
use stack_tests::netns;
use stack_tests::peers::Podman;
use stack_tests::programs::built;
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::user::{self, USER, USERS, introduce};
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "podman",
        &[Need::Root, Need::Host, Need::Program("podman")],
        [
            a_life,
            exit_codes,
            whoever_started_it_is_gone,
            keys_that_detach,
            several_attach,
            a_service_manager_is_told,
            health,
            a_pod,
            numbers_of_a_running_container,
            descriptors_are_passed_on,
            log_drivers,
            logs_are_followed,
            a_time_limit,
            started_again,
            a_hundred_megabytes_out_and_in,
            a_pager_misses_nothing,
            the_page_can_be_followed,
        ]
    );
    all.extend(tests!(
        "podman",
        &[Need::Root, Need::Host, Need::Program("podman"), Need::Criu],
        [a_checkpoint, a_checkpoint_of_a_terminal]
    ));
    all.extend(tests!(
        "podman",
        &[
            Need::Root,
            Need::Host,
            Need::Program("podman"),
            Need::Program("newuidmap"),
            Need::Program("setpriv")
        ],
        [somebody_without_privileges]
    ));
    all
}

/// A podman, and short ways to ask it.
struct Scene(Podman);

impl Scene {
    fn new() -> Self {
        Self(Podman::new())
    }

    /// What a command came to.
    #[track_caller]
    fn outcome(&self, line: &str) -> Outcome {
        run(&mut self.0.monitored(line))
    }

    /// What a command that succeeds prints.
    #[track_caller]
    fn line(&self, line: &str) -> String {
        self.outcome(line).ok().to_owned()
    }

    /// Starts a container named `bird` and tells its id.
    #[track_caller]
    fn bird(&self, options: &str, words: &str) -> String {
        let line = format!("run -d --network none --name bird {options} --rootfs ~ {words}");
        self.line(&line)
    }

    #[track_caller]
    fn inspect(&self, format: &str) -> String {
        self.line(&format!("inspect --format '{format}' bird"))
    }

    /// Removes the bird, and looks whether that was all of it.
    #[track_caller]
    fn remove(&self, id: String) {
        self.line("rm --force --time 0 bird");
        self.0.assert_nothing_left(&[id]);
    }
}

/// What a person reads, with the programs where they are here.
fn page() -> String {
    let here = built("qrun");
    let here = here.parent().unwrap().display().to_string();
    include_str!("../../../docs/podman.md").replace("/usr/local/bin", &here)
}

fn the_page_can_be_followed() {
    let podman = Podman::new();
    let page = page();
    let block = page.lines().skip_while(|line| line.trim() != "[engine]");
    let block = block.map_while(|line| line.strip_prefix("    "));
    let block: String = block.map(|line| format!("{line}\n")).collect();
    let config = podman.rootfs().with_file_name("containers.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + &block).unwrap();
    let question = page
        .split('`')
        .find(|text| text.starts_with("podman info"))
        .unwrap();
    let question = question.strip_prefix("podman ").unwrap();
    let ask = |line: &str| run(&mut podman.with_runtime("qrun", line));
    assert_eq!(
        ask(question).ok(),
        format!("qrun {}", built("qshim").display())
    );
    let line = "run --rm --network none --rootfs ~ sh -c 'echo inside; exit 3'";
    ask(line).code(3).out("inside\n");
    // Asked for as JSON, the runtime's complaint has no time and no level before it.
    let refused = ask("run --rm --network none --rootfs ~ /no/such");
    refused.code(127).err("/no/such");
    assert!(!refused.stderr.contains("level="), "{}", refused.report());
    podman.assert_nothing_left(&[]);
}

fn a_life() {
    let scene = Scene::new();
    let outcome =
        scene.outcome("run --rm --network none --rootfs ~ sh -c 'echo out; echo err >&2'");
    assert_eq!(outcome.ok(), "out");
    assert_eq!(outcome.stderr, "err\n");
    let id = scene.bird("", "sh -c 'echo said; exec sleep 1000'");
    until("podman logs has it", || {
        (scene.line("logs bird") == "said").then_some(())
    });
    assert_eq!(scene.line("exec bird echo inside"), "inside");
    scene.line("exec -d bird touch /tmp/made");
    until("a detached exec has run", || {
        (scene.outcome("exec bird test -e /tmp/made").code == 0).then_some(())
    });
    scene.line("pause bird");
    assert_eq!(scene.inspect("{{.State.Status}}"), "paused");
    scene.line("unpause bird");
    scene.line("restart --time 0 bird");
    assert_eq!(scene.inspect("{{.State.Status}}"), "running");
    scene.line("kill bird");
    assert_eq!(scene.line("wait bird"), "137");
    assert_eq!(
        scene.inspect("{{.State.ExitCode}} {{.State.OOMKilled}}"),
        "137 false"
    );
    scene.remove(id);
}

fn somebody_without_privileges() {
    introduce(true);
    let scene = Scene(Podman::of_user());
    let run = "run --rm --network none";
    let seen = scene.line(&format!("{run} --rootfs ~ cat /proc/self/uid_map"));
    let words: Vec<_> = seen.split_whitespace().map(str::to_owned).collect();
    let (user, first, count) = (USER.to_string(), USERS.to_string(), user::COUNT.to_string());
    assert_eq!(words, ["0", &user, "1", "1", &first, &count]);
    scene
        .outcome(&format!(
            "{run} --user 7:8 --rootfs ~ sh -c 'id -u; exit 3'"
        ))
        .code(3)
        .out("7");
    let id = scene.bird(
        "",
        "sh -c 'echo said; trap \"exit 5\" TERM; sleep 1000 & wait'",
    );
    until("podman logs has it", || {
        (scene.line("logs bird") == "said").then_some(())
    });
    assert_eq!(scene.line("exec bird id -u"), "0");
    scene.line("stop bird");
    assert_eq!(scene.line("wait bird"), "5");
    scene.line("start bird");
    scene.line("kill bird");
    assert_eq!(scene.line("wait bird"), "137");
    scene.remove(id);
}

fn exit_codes() {
    let scene = Scene::new();
    for (words, code) in [
        ("true", 0),
        ("sh -c 'exit 42'", 42),
        ("/nonexistent", 127),
        ("/etc/passwd", 126),
    ] {
        scene
            .outcome(&format!("run --rm --network none --rootfs ~ {words}"))
            .code(code);
    }
    let id = scene.bird("--memory 20m --memory-swap 20m", "tail /dev/zero");
    assert_eq!(scene.line("wait bird"), "137");
    until("podman knows that memory ran out", || {
        (scene.inspect("{{.State.OOMKilled}} {{.State.ExitCode}}") == "true 137").then_some(())
    });
    scene.remove(id);
}

fn whoever_started_it_is_gone() {
    let scene = Scene::new();
    let line = "run --network none --name bird --rootfs ~ \
                sh -c 'echo begun; until [ -e /go ]; do usleep 10000; done; echo done; exit 6'";
    let mut podman = scene.0.monitored(line);
    let mut podman = podman.stdout(Stdio::piped()).spawn().unwrap();
    let mut begun = [0; 6];
    let mut stdout = podman.stdout.take().unwrap();
    stdout.read_exact(&mut begun).unwrap();
    podman.kill().unwrap();
    podman.wait().unwrap();
    drop(stdout);
    std::fs::write(scene.0.rootfs().join("go"), "").unwrap();
    assert_eq!(scene.line("wait bird"), "6");
    assert_eq!(scene.line("logs bird"), "begun\ndone");
    let id = scene.inspect("{{.Id}}");
    scene.remove(id);
}

fn keys_that_detach() {
    let scene = Scene::new();
    let id = scene.bird("-it", "sh");
    let mut attached = Pty::start(&scene.0.monitored("attach --detach-keys ctrl-x bird"));
    attached.send("echo $((6 * 7))\n");
    attached.expect("\n42");
    attached.send("\x18");
    attached.exit();
    assert_eq!(scene.inspect("{{.State.Status}}"), "running");
    let mut inside = Pty::start(&scene.0.monitored("exec -it bird sh"));
    inside.expect("# ");
    inside.resize(33, 99);
    inside.send("until stty size | grep 33; do usleep 10000; done\n");
    inside.expect("33 99");
    inside.send("exit 5\n");
    assert_eq!(inside.exit(), 5);
    let mut attached = Pty::start(&scene.0.monitored("attach bird"));
    attached.send("exit 11\n");
    attached.exit();
    assert_eq!(scene.line("wait bird"), "11");
    scene.remove(id);
}

fn several_attach() {
    let scene = Scene::new();
    let script = "until [ -e /go ]; do echo waiting; usleep 10000; done; seq 1 20000; exit 3";
    let id = scene.bird("", &format!("sh -c '{script}'"));
    let mut all: Vec<_> = (0..3)
        .map(|_| {
            let mut command = scene.0.monitored("attach --no-stdin bird");
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for attached in &mut all {
        let mut first = [0; 8];
        let stdout = attached.stdout.as_mut().unwrap();
        stdout.read_exact(&mut first).unwrap();
        assert_eq!(first, *b"waiting\n");
    }
    std::fs::write(scene.0.rootfs().join("go"), "").unwrap();
    let expected: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    for attached in all {
        let output = attached.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // podman adds an empty line.
        let text = text.trim_start_matches("waiting\n").trim_end();
        assert_eq!(text, expected.trim_end());
    }
    assert_eq!(scene.line("wait bird"), "3");
    scene.remove(id);
}

fn a_service_manager_is_told() {
    let scene = Scene::new();
    let address = scene.0.rootfs().join("../manager");
    let manager = UnixDatagram::bind(&address).unwrap();
    manager
        .set_read_timeout(Some(stack_tests::wait::patience()))
        .unwrap();
    let told = || {
        let mut bytes = [0; 256];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let start = |mode: &str| {
        let line =
            format!("run -d --sdnotify {mode} --network none --name bird --rootfs ~ sleep 1000");
        let mut command = scene.0.monitored(&line);
        command
            .env("NOTIFY_SOCKET", &address)
            .stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let output = start("conmon").wait_with_output().unwrap();
    assert!(output.status.success());
    let monitor = scene.inspect("{{.State.ConmonPid}}");
    let lines = told();
    assert!(lines.contains(&format!("MAINPID={monitor}")), "{lines}");
    assert!(lines.contains("READY=1"), "{lines}");
    scene.remove(scene.inspect("{{.Id}}"));

    let starting = start("container");
    let service = UnixDatagram::unbound().unwrap();
    let place = scene.0.userdata("ID");
    let containers = place.ancestors().nth(2).unwrap();
    // A name that is short enough for an address.
    let short = scene.0.rootfs().join("../n");
    until("the monitor listens for the container", || {
        let mut entries = std::fs::read_dir(containers).ok()?.flatten();
        entries.find_map(|entry| {
            let _ = std::fs::remove_file(&short);
            symlink(entry.path().join("userdata/notify"), &short).ok()?;
            let message = b"READY=1\nFDSTORE=1\nSTATUS=up";
            service.send_to(message, short.join("notify.sock")).ok()
        })
    });
    assert!(starting.wait_with_output().unwrap().status.success());
    let monitor = scene.inspect("{{.State.ConmonPid}}");
    let mut all = [told(), told()];
    all.sort();
    // What is none of the container's business does not pass.
    assert_eq!(
        all,
        [format!("MAINPID={monitor}"), "READY=1\nSTATUS=up".into()]
    );
    scene.remove(scene.inspect("{{.Id}}"));
}

fn health() {
    let scene = Scene::new();
    let check = "--health-cmd 'test -e /tmp/well' --health-interval disable --health-retries 1";
    let id = scene.bird(check, "sleep 1000");
    scene.outcome("healthcheck run bird").code(1);
    let status = |scene: &Scene| scene.line("inspect --format '{{.State.Health.Status}}' bird");
    assert_eq!(status(&scene), "unhealthy");
    scene.line("exec bird touch /tmp/well");
    scene.line("healthcheck run bird");
    assert_eq!(status(&scene), "healthy");
    scene.remove(id);
}

fn a_pod() {
    // Podman leaves its chains of the packet filter, and its bridge when several run at a time.
    netns::isolate();
    let scene = Scene::new();
    let archive = scene.0.rootfs().join("../rootfs.tar");
    let rootfs = scene.0.rootfs();
    let [archive, rootfs] = [&archive, &rootfs].map(|path| path.display().to_string());
    tool("tar", &["-C", &rootfs, "-cf", &archive, "."]);
    scene.line(&format!("import --quiet {archive} pause"));
    let infra = "--infra-image localhost/pause --infra-command 'sleep 1000'";
    scene.line(&format!(
        "pod create --name nest --share net,ipc,uts,pid {infra}"
    ));
    for name in ["one", "two"] {
        scene.line(&format!(
            "run -d --pod nest --name {name} --rootfs ~ sleep 2000"
        ));
    }
    let inside = |name: &str, what: &str| scene.line(&format!("exec {name} {what}"));
    assert_eq!(inside("one", "hostname"), "nest");
    assert_eq!(inside("two", "hostname"), "nest");
    assert_eq!(inside("two", "ps").matches("sleep 2000").count(), 2);
    let state = || scene.line("pod ps --format '{{.Status}} {{.NumberOfContainers}}'");
    assert_eq!(state(), "Running 3");
    scene.line("pod pause nest");
    assert_eq!(state(), "Paused 3");
    scene.line("pod unpause nest");
    scene.line("pod stop --time 0 nest");
    assert_eq!(state(), "Exited 3");
    scene.line("pod start nest");
    assert_eq!(state(), "Running 3");
    let ids = scene.line("ps --all --quiet --no-trunc");
    let ids: Vec<_> = ids.lines().map(str::to_owned).collect();
    scene.line("pod rm --force --time 0 nest");
    scene.0.assert_nothing_left(&ids);
}

fn numbers_of_a_running_container() {
    let scene = Scene::new();
    let id = scene.bird("--memory 64m --pids-limit 77", "sleep 1000");
    let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
    let line = scene.line(&format!("stats --no-stream --format '{format}' bird"));
    assert!(line.starts_with("bird 1 "), "{line}");
    assert!(line.ends_with("/ 67.11MB"), "{line}");
    let top = scene.line("top bird pid comm");
    let words: Vec<_> = top.split_whitespace().collect();
    assert_eq!(words, ["PID", "COMMAND", "1", "sleep"]);
    scene.remove(id);
}

fn descriptors_are_passed_on() {
    let scene = Scene::new();
    let with_file = |line: &str| {
        let mut shell = Command::new("sh");
        let podman = scene.0.monitored(line);
        shell.args(["-c", "exec \"$@\" 3</etc/hostname", "sh"]);
        shell.arg(podman.get_program()).args(podman.get_args());
        let variables = podman.get_envs();
        shell.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        run(&mut shell).ok().to_owned()
    };
    let name = std::fs::read_to_string("/etc/hostname").unwrap();
    let line = "run --rm --preserve-fds 1 --network none --rootfs ~ sh -c 'cat <&3'";
    assert_eq!(with_file(line), name.trim_end());
    let id = scene.bird("", "sleep 1000");
    let line = "exec --preserve-fds 1 bird sh -c 'cat <&3'";
    assert_eq!(with_file(line), name.trim_end());
    scene.remove(id);
}

fn log_drivers() {
    let scene = Scene::new();
    let path = scene.0.rootfs().join("../own.log");
    let script = "sh -c 'echo one; echo two >&2; printf three'";
    for driver in ["k8s-file", "json-file"] {
        let options = format!("--log-driver {driver} --log-opt path={}", path.display());
        let id = scene.bird(&options, script);
        scene.line("wait bird");
        let outcome = scene.outcome("logs bird");
        assert_eq!(outcome.ok(), "one\nthree", "{driver}");
        assert_eq!(outcome.stderr, "two\n", "{driver}");
        assert_eq!(scene.line("logs --since 2099-01-01T00:00:00Z bird"), "");
        scene.remove(id);
        let _ = std::fs::remove_file(&path);
    }
    let line = "run --log-driver none --network none --name bird --rootfs ~ echo seen";
    assert_eq!(scene.line(line), "seen");
    assert_ne!(scene.outcome("logs bird").code, 0);
    scene.line("rm bird");
    let line =
        "run --rm --log-driver passthrough --network none --rootfs ~ sh -c 'cat; echo e >&2'";
    let outcome = run_with_input(&mut scene.0.monitored(line), b"through\n");
    assert_eq!(outcome.ok(), "through");
    assert_eq!(outcome.stderr, "e\n");
    let options = format!(
        "--log-driver k8s-file --log-opt max-size=8k --log-opt path={}",
        path.display()
    );
    let id = scene.bird(&options, "seq 1 5000");
    scene.line("wait bird");
    assert!(scene.line("logs bird").ends_with("\n5000"));
    assert_eq!(scene.line("logs --tail 2 bird"), "4999\n5000");
    assert!(path.metadata().unwrap().len() <= 8192);
    scene.remove(id);
}

fn logs_are_followed() {
    let scene = Scene::new();
    let script = "for i in 1 2 3 4 5 6; do echo line $i; usleep 100000; done; exit 4";
    // By the container's event podman finds out that no more will come.
    let podman = "--events-backend file";
    let id = scene.line(&format!(
        "{podman} run -d --network none --name bird --rootfs ~ sh -c '{script}'"
    ));
    let expected: Vec<_> = (1..=6).map(|number| format!("line {number}")).collect();
    let followed = scene.line(&format!("{podman} logs --follow bird"));
    assert_eq!(followed, expected.join("\n"));
    assert_eq!(scene.line("wait bird"), "4");
    scene.remove(id);
}

fn a_time_limit() {
    let scene = Scene::new();
    let id = scene.bird("--timeout 1", "sleep 1000");
    assert_eq!(scene.line("wait bird"), "-1");
    scene.remove(id);
}

fn started_again() {
    let scene = Scene::new();
    let id = scene.bird("--restart on-failure:2", "sh -c 'echo go; exit 3'");
    until("both tries have failed", || {
        (scene.inspect("{{.RestartCount}} {{.State.Status}}") == "2 exited").then_some(())
    });
    assert_eq!(scene.line("logs bird"), "go\ngo\ngo");
    scene.remove(id);
}

/// Writes a hundred megabytes that are not all alike.
fn hundred_megabytes(path: &Path) {
    let block: Vec<u8> = (0..1_000_003_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0])
        .collect();
    let mut all = block.repeat(100);
    all.truncate(100_000_000);
    std::fs::write(path, all).unwrap();
}

fn a_hundred_megabytes_out_and_in() {
    let scene = Scene::new();
    let sent = scene.0.rootfs().join("sent");
    let got = scene.0.rootfs().join("../got");
    hundred_megabytes(&sent);
    let same = || tool("cmp", &[&sent, &got]);
    let transfer = |line: &str, stdin: Stdio| {
        let mut command = scene.0.monitored(line);
        command.stdin(stdin).stdout(File::create(&got).unwrap());
        assert!(command.status().unwrap().success(), "{line}");
        same();
    };
    transfer(
        "run --rm --network none --rootfs ~ cat /sent",
        Stdio::null(),
    );
    let line = "run -i --rm --log-driver none --network none --rootfs ~ cat";
    transfer(line, File::open(&sent).unwrap().into());
}

fn a_pager_misses_nothing() {
    let scene = Scene::new();
    let line = "run --rm --network none --rootfs ~ seq 1 1000000";
    let mut podman = scene.0.monitored(line);
    let mut podman = podman.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = podman.stdout.take().unwrap();
    let mut all = vec![0; 100];
    stdout.read_exact(&mut all).unwrap();
    // Longer than the monitor is patient with those who attach to a container that runs already.
    std::thread::sleep(Duration::from_secs(3));
    stdout.read_to_end(&mut all).unwrap();
    assert!(podman.wait().unwrap().success());
    let text = String::from_utf8(all).unwrap();
    assert_eq!(text.lines().count(), 1_000_000);
    assert!(text.ends_with("\n999999\n1000000\n"));
}

const COUNT: &str = "sh -c 'i=0; while true; do i=$((i+1)); echo said $i; usleep 50000; done'";

fn a_checkpoint() {
    let scene = Scene::new();
    let id = scene.bird("", COUNT);
    let lines = || scene.line("logs bird").lines().count();
    until("it counts", || (lines() > 3).then_some(()));
    scene.line("container checkpoint bird");
    assert_eq!(scene.inspect("{{.State.Status}}"), "exited");
    let before = lines();
    scene.line("container restore bird");
    until("it goes on", || (lines() > before + 3).then_some(()));
    scene.line("container checkpoint --leave-running --keep bird");
    assert_eq!(scene.inspect("{{.State.Status}}"), "running");
    assert_eq!(scene.line("exec bird echo inside"), "inside");
    scene.line("kill bird");
    assert_eq!(scene.line("wait bird"), "137");
    let log = scene.line("logs bird");
    let numbers = log
        .lines()
        .map(|line| line["said ".len()..].parse::<usize>().unwrap());
    assert!(numbers.eq(1..=log.lines().count()), "{log}");
    scene.remove(id);
}

fn a_checkpoint_of_a_terminal() {
    let scene = Scene::new();
    let id = scene.bird("-it", "sh");
    scene.line("container checkpoint bird");
    scene.line("container restore bird");
    let mut attached = Pty::start(&scene.0.monitored("attach bird"));
    attached.send("echo $((6 * 7))\n");
    attached.expect("\n42");
    attached.send("exit 7\n");
    attached.exit();
    assert_eq!(scene.line("wait bird"), "7");
    scene.remove(id);
}
