//! Pushing: what arrives in a real registry, what others make of it, and networks that break.

use std::process::Stdio;
use std::time::Duration;

use stack_tests::command::{run, tool};
use stack_tests::cutter::Cutter;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::peers::Podman;
use stack_tests::registry::{Door, NEEDS, PASSWORD, Registry, USER};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "push",
        NEEDS,
        [
            what_is_there_is_not_sent_again,
            a_pulled_image_keeps_its_digest,
            a_broken_upload_goes_on,
            a_killed_push_leaves_nothing_in_the_way,
            refusals_are_told,
            who_is_logged_in_may_push,
            a_helper_keeps_the_credentials,
        ]
    );
    let peers = &[
        Need::Root,
        Need::Host,
        Need::Program("docker-registry"),
        Need::Program("podman"),
        Need::Program("skopeo"),
    ];
    all.extend(tests!("push", peers, [podman_pulls_and_runs_it]));
    all
}

/// The digest in `push`'s last line.
fn digest(said: &str) -> &str {
    let words: Vec<&str> = said.split_whitespace().collect();
    words[words.iter().position(|word| *word == "digest:").unwrap() + 1]
}

fn podman_pulls_and_runs_it() {
    let engine = Engine::new().with_base();
    let registry = Registry::empty();
    engine.ok("run --name bird --network none base sh -c 'echo song >/etc/bird; rm /bin/vi'");
    engine.ok("commit -m nested bird nest:1");
    let name = registry.reference("forest/nest:1");
    let said = engine.ok(&format!("push nest:1 {name} --digestfile ~/digest"));
    assert!(
        said.contains("The push refers to repository [localhost:"),
        "{said}"
    );
    let file = std::fs::read_to_string(engine.directory().join("digest")).unwrap();
    assert_eq!(file, digest(&said));

    let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
    let seen = tool(
        "skopeo",
        &[&inspect[..], &[&format!("docker://{name}")]].concat(),
    );
    assert_eq!(seen.trim(), digest(&said));
    let podman = Podman::new();
    run(&mut podman.command(&format!("pull --quiet --tls-verify=false {name}"))).ok();
    let line = "cat /etc/bird; test ! -e /bin/vi && echo no vi; hostname | wc -l";
    let outcome =
        run(&mut podman.command(&format!("run --rm --network none {name} sh -c '{line}'")));
    assert_eq!(outcome.ok(), "song\nno vi\n1");
    run(&mut podman.command(&format!("rmi {name}"))).ok();
}

fn what_is_there_is_not_sent_again() {
    let engine = Engine::new().with_base();
    let registry = Registry::empty();
    let (one, other) = (
        registry.reference("one/base"),
        registry.reference("other/base"),
    );
    engine.ok(&format!("tag base {one}"));
    engine.ok(&format!("tag base {other}"));
    let first = engine.run(&format!("push {one}"));
    first.code(0).err(": Pushed");
    let again = engine.run(&format!("push {one}"));
    again.code(0).err(": Layer already exists");
    assert_eq!(first.stdout, again.stdout);
    engine
        .run(&format!("push {other}"))
        .code(0)
        .err(": Mounted from one/base");
    assert_eq!(
        engine.ok(&format!("push -q {other}")),
        format!("{other}:latest")
    );
    // Its digest is known from now on, by which it can be named.
    let listed = engine.ok("images --digests");
    assert!(listed.contains(digest(&first.stdout)), "{listed}");
    engine.ok(&format!("inspect {one}@{}", digest(&first.stdout)));
}

fn a_pulled_image_keeps_its_digest() {
    let engine = Engine::new();
    let registry = Registry::empty();
    for tag in ["docker", "zstd", "plain", "layers"] {
        let from = engine.registry().reference(&format!("busybox:{tag}"));
        let to = registry.reference(&format!("copy:{tag}"));
        let pulled = engine.ok(&format!("pull {from}"));
        let pulled = pulled
            .lines()
            .find_map(|line| line.strip_prefix("Digest: "))
            .unwrap();
        assert_eq!(digest(&engine.ok(&format!("push {from} {to}"))), pulled);
        engine.ok(&format!("rmi {from}"));
        let again = engine.ok(&format!("pull {to}"));
        assert!(again.contains(pulled), "{again}");
    }
}

fn a_broken_upload_goes_on() {
    let engine = Engine::new().with_base();
    let registry = Registry::empty();
    let cutter = Cutter::start(registry.port, 200_000, 3);
    let outcome = engine.run(&format!("push base localhost:{}/base", cutter.port));
    outcome.code(0).err("Retrying");
    assert_eq!(cutter.cuts(), 3);
    let name = registry.reference("base");
    engine.ok("rmi base");
    engine.ok(&format!("pull {name}"));
    assert_eq!(
        engine.ok(&format!("run --rm --network none {name} echo whole")),
        "whole"
    );
    // One that always breaks is given up.
    engine.ok("image build-base --tag another");
    let cutter = Cutter::start(registry.port, 10_000, usize::MAX);
    let outcome = engine.run(&format!("push {name} localhost:{}/never", cutter.port));
    outcome.code(1).err("cannot push");
}

fn a_killed_push_leaves_nothing_in_the_way() {
    let engine = Engine::new().with_base();
    let registry = Registry::empty();
    let name = registry.reference("base");
    for moment in [5, 15, 30, 60, 100] {
        let mut child = engine
            .command(&format!("push base {name}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        // The image is free again.
        engine.ok("tag base spare");
        engine.ok("rmi spare");
    }
    engine.ok(&format!("push base {name}"));
    engine.ok("rmi base");
    engine.ok(&format!("run --rm --network none {name} true"));
}

fn refusals_are_told() {
    let engine = Engine::new().with_base();
    engine
        .run("push nothing-of-the-sort localhost:1/x")
        .refused(1, "no such image: nothing-of-the-sort");
    let outcome = engine.run("push base localhost:1/x");
    outcome
        .code(1)
        .err("cannot reach registry localhost:1: connection refused");
    // The registry of the tests' images takes nothing.
    let closed = engine.registry().reference("base");
    engine
        .run(&format!("push base {closed}"))
        .code(1)
        .err("push");
    let pinned = format!("localhost:1/x@sha256:{}", "0".repeat(64));
    engine
        .run(&format!("push base {pinned}"))
        .code(1)
        .err("a tag is needed");
}

fn who_is_logged_in_may_push() {
    let engine = Engine::new().with_base();
    for tls in [false, true] {
        let registry = Registry::behind(Door {
            password: true,
            empty: true,
            tls,
            ..Door::default()
        });
        let host = format!("localhost:{}", registry.port);
        let name = registry.reference("base");
        let certificates = if tls {
            format!("--cert-dir {}", registry.certificates().display())
        } else {
            String::new()
        };
        engine
            .run(&format!("push {certificates} base {name}"))
            .code(1)
            .err("push access denied")
            .err("qengine login");
        let login = format!("login {certificates} -u {USER} --password-stdin {host}");
        engine
            .run_with_input(&login, b"wrong\n")
            .refused(1, "login to localhost");
        let file = engine.directory().join(".docker/config.json");
        assert!(tls || !file.exists(), "a refused password is not kept");
        let outcome = engine.run_with_input(&login, format!("{PASSWORD}\n").as_bytes());
        assert_eq!(outcome.ok(), "Login Succeeded");
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777,
            0o600
        );
        assert_eq!(engine.ok(&format!("login --get-login {host}")), USER);
        engine.ok(&format!("push {certificates} base {name}"));
        engine.ok(&format!("pull {certificates} {name}"));
        let said = engine.ok(&format!("logout {host}"));
        assert_eq!(said, format!("Removing login credentials for {host}"));
        assert_eq!(
            engine.ok(&format!("logout {host}")),
            format!("Not logged in to {host}")
        );
        engine
            .run(&format!("pull {certificates} {name}"))
            .code(1)
            .err("denied");
        engine
            .run(&format!(
                "push --creds {USER}:wrong {certificates} base {name}"
            ))
            .code(1);
    }
}

fn a_helper_keeps_the_credentials() {
    let engine = Engine::new().with_base();
    let registry = Registry::behind(Door {
        password: true,
        empty: true,
        ..Door::default()
    });
    let host = format!("localhost:{}", registry.port);
    let bin = engine.directory().join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    // One file a server would be too much for a test: this helper knows one.
    let script = "#!/bin/sh\nf=${0%/*}/kept\ncase $1 in store) cat >$f ;; get) cat >/dev/null; \
                  test -e $f && cat $f || { echo 'credentials not found in native keychain'; exit 1; } ;; \
                  erase) cat >/dev/null; rm $f ;; esac\n";
    let helper = bin.join("docker-credential-nest");
    stack_tests::executable::script(&helper, script);
    let config = engine.directory().join(".docker/config.json");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    std::fs::write(
        &config,
        r#"{"credsStore": "nest", "HttpHeaders": {"X": "kept"}}"#,
    )
    .unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let line = |line: &str| run(engine.command(line).env("PATH", &path));
    line(&format!("login -u {USER} -p '{PASSWORD}' {host}")).ok();
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(
        !text.contains("\"auth\"") && text.contains("X") && text.contains(&host),
        "{text}"
    );
    assert!(
        std::fs::read_to_string(bin.join("kept"))
            .unwrap()
            .contains(PASSWORD)
    );
    line(&format!("push base {host}/base")).ok();
    line(&format!("logout {host}")).ok();
    assert!(!bin.join("kept").exists());
    line(&format!("push base {host}/base")).code(1);
}
