//! Pulling: what images come as, who may pull, and registries that misbehave.

use stack_tests::engine::Engine;
use stack_tests::evil::{Evil, Malice};
use stack_tests::needs::Test;
use stack_tests::registry::{Door, NEEDS, PASSWORD, Registry, USER};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "pull",
        NEEDS,
        [
            every_packing_and_dialect,
            layers_hide_and_remove,
            a_platform_is_chosen,
            a_second_pull_fetches_nothing,
            tls_with_an_authority_of_ones_own,
            basic_authentication_by_dockers_file,
            a_token_is_fetched,
            a_broken_transfer_is_resumed,
            a_registry_that_always_breaks_off,
            a_wrong_digest_is_refused,
            a_wrong_manifest_is_refused,
            a_truncated_layer_is_refused,
            errors_of_the_server_are_told,
            an_unknown_tag_is_told,
            a_registry_that_is_down,
            an_answer_that_is_no_manifest,
            all_tags_at_once,
            a_mirror_stands_in_and_is_passed_over,
            another_platforms_image_is_told,
        ]
    )
}

fn every_packing_and_dialect() {
    let engine = Engine::new();
    for tag in ["latest", "docker", "plain", "zstd"] {
        let image = engine.registry().reference(&format!("busybox:{tag}"));
        engine.ok(&format!("pull {image}"));
        assert_eq!(
            engine.ok(&format!("run --rm --network none {image} echo {tag}")),
            tag
        );
    }
    engine.run("images").code(0).out("zstd").out("docker");
    engine.ok(&format!(
        "rmi {}",
        engine.registry().reference("busybox:zstd")
    ));
    assert!(!engine.ok("images").contains("zstd"));
}

fn layers_hide_and_remove() {
    let engine = Engine::new();
    engine.pull_as("busybox:layers", "layers");
    let seen = engine
        .ok("run --rm --network none layers sh -c 'cd /; ls data hidden; stat -c %a data/added'");
    assert_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["data:", "added", "kept", "hidden:", "above", "600"]
    );
}

fn a_platform_is_chosen() {
    let engine = Engine::new();
    let image = engine.registry().reference("busybox:multi");
    engine.ok(&format!("pull {image}"));
    engine.ok(&format!("run --rm --network none {image} test ! -e /data"));
    engine.ok(&format!("pull --platform linux/arm64/v8 {image}"));
    engine.ok(&format!("run --rm --network none {image} test -e /data"));
    engine
        .run(&format!("pull --platform linux/riscv64 {image}"))
        .code(1)
        .err("riscv64");
}

fn a_second_pull_fetches_nothing() {
    let engine = Engine::new();
    let server = Evil::start(Malice::None);
    let image = server.reference("busybox:latest");
    engine.ok(&format!("pull {image}"));
    let blobs = server.requests("/blobs/");
    engine.ok(&format!("pull {image}"));
    assert_eq!(server.requests("/blobs/"), blobs, "blobs are fetched again");
    // Layers shared with an image that is here are not fetched either.
    engine.ok(&format!("pull {}", server.reference("busybox:layers")));
    assert_eq!(
        server.requests("/blobs/"),
        blobs + 3,
        "a configuration and two layers"
    );
}

fn tls_with_an_authority_of_ones_own() {
    let engine = Engine::new();
    let registry = Registry::behind(Door {
        tls: true,
        ..Door::default()
    });
    let image = registry.reference("busybox:latest");
    let refused = engine.run(&format!("pull --tls-verify=true {image}"));
    refused.code(1).err("certificate");
    engine.ok(&format!(
        "pull --cert-dir {} {image}",
        registry.certificates().display()
    ));
    engine.ok(&format!("rmi {image}"));
    engine.ok(&format!("pull --tls-verify=false {image}"));
}

/// Writes `~/.docker/config.json` with a user's password for a registry.
fn log_in(engine: &Engine, port: u16, password: &str) {
    let directory = engine.directory().join(".docker");
    std::fs::create_dir_all(&directory).unwrap();
    let script = format!("printf %s '{USER}:{password}' | base64");
    let auth = stack_tests::command::tool("sh", &["-c", &script]);
    let config = format!("{{\"auths\": {{\"localhost:{port}\": {{\"auth\": \"{auth}\"}}}}}}");
    std::fs::write(directory.join("config.json"), config).unwrap();
}

fn basic_authentication_by_dockers_file() {
    let engine = Engine::new();
    let registry = Registry::behind(Door {
        password: true,
        ..Door::default()
    });
    let image = registry.reference("busybox:latest");
    engine.run(&format!("pull {image}")).code(1).err("busybox");
    log_in(&engine, registry.port, "wrong");
    engine.run(&format!("pull {image}")).code(1).err("busybox");
    log_in(&engine, registry.port, PASSWORD);
    engine.ok(&format!("pull {image}"));
}

fn a_token_is_fetched() {
    let engine = Engine::new();
    let server = Evil::start(Malice::Token);
    let image = server.reference("busybox:latest");
    engine.run(&format!("pull {image}")).code(1).err("busybox");
    log_in(&engine, server.port, PASSWORD);
    engine.ok(&format!("pull {image}"));
    assert!(server.requests("/token") >= 1);
}

fn a_broken_transfer_is_resumed() {
    let engine = Engine::new();
    let server = Evil::start(Malice::BrokenOnce);
    let image = server.reference("busybox:layers");
    engine.ok(&format!("pull {image}"));
    assert_eq!(
        engine.ok(&format!("run --rm --network none {image} cat /data/kept")),
        "kept"
    );
}

/// Pulls from a registry that misbehaves, which must fail with one line and leave no image; the
/// same pull from one that behaves must work then.
#[track_caller]
fn is_refused(malice: Malice, part: &str) {
    let engine = Engine::new();
    let server = Evil::start(malice);
    let image = server.reference("busybox:latest");
    engine.run(&format!("pull {image}")).refused(1, part);
    engine
        .run(&format!("run --rm {image} true"))
        .code(125)
        .err(part);
    assert!(
        !engine.ok("images").contains("busybox"),
        "half an image is listed"
    );
    let good = engine.registry().reference("busybox:latest");
    assert_eq!(
        engine
            .ok(&format!("run --rm --network none {good} echo works"))
            .lines()
            .last(),
        Some("works")
    );
}

fn a_registry_that_always_breaks_off() {
    is_refused(Malice::BrokenAlways, "busybox");
}

fn a_wrong_digest_is_refused() {
    is_refused(Malice::WrongLayer, "digest");
}

fn a_wrong_manifest_is_refused() {
    let engine = Engine::new();
    let server = Evil::start(Malice::WrongManifest);
    let image = server.reference("busybox:multi");
    engine.run(&format!("pull {image}")).refused(1, "digest");
}

fn a_truncated_layer_is_refused() {
    is_refused(Malice::ShortLayer, "sha256:");
}

fn errors_of_the_server_are_told() {
    is_refused(Malice::Status(500), "500");
}

fn an_answer_that_is_no_manifest() {
    is_refused(Malice::NoJson, "manifest");
}

fn an_unknown_tag_is_told() {
    let engine = Engine::new();
    let image = engine.registry().reference("busybox:nosuch");
    engine
        .run(&format!("pull {image}"))
        .refused(1, "busybox:nosuch");
    engine
        .run(&format!("run --rm {image} true"))
        .refused(125, "busybox:nosuch");
    engine
        .run("pull 'Bad Reference'")
        .refused(1, "Bad Reference");
}

fn a_registry_that_is_down() {
    let engine = Engine::new();
    let port = stack_tests::http::free_port();
    engine
        .run(&format!("pull localhost:{port}/busybox:latest"))
        .refused(1, &format!("localhost:{port}"));
}

fn all_tags_at_once() {
    let engine = Engine::new();
    let image = engine.registry().reference("busybox");
    let said = engine.ok(&format!("pull -q -a {image}"));
    for tag in ["latest", "docker", "zstd", "multi"] {
        assert!(
            said.lines().any(|line| line == format!("{image}:{tag}")),
            "{said}"
        );
    }
    engine
        .run(&format!("pull -a {image}:latest"))
        .refused(1, "--all-tags");
}

fn a_mirror_stands_in_and_is_passed_over() {
    let engine = Engine::new();
    let port = engine.registry().port;
    let file = engine.directory().join("mirrors.conf");
    let configured = |text: &str, line: &str| {
        std::fs::write(&file, text).unwrap();
        stack_tests::command::run(
            engine
                .command(line)
                .env("CONTAINERS_REGISTRIES_CONF", &file),
        )
    };
    // The first mirror is down, the second has nothing of the kind, the place itself has it.
    let text = format!(
        "[[registry]]\nprefix = \"nest.example\"\nlocation = \"localhost:{port}\"\n\
         [[registry.mirror]]\nlocation = \"localhost:1\"\n\
         [[registry.mirror]]\nlocation = \"localhost:{port}/no/such\"\n"
    );
    let outcome = configured(&text, "pull nest.example/busybox:latest");
    assert!(
        outcome.ok().contains("nest.example/busybox:latest"),
        "{}",
        outcome.report()
    );
    engine.ok("run --rm --network none nest.example/busybox true");
    // Where nothing answers, all of it is said.
    let text = "[[registry]]\nlocation = \"localhost:2\"\n[[registry.mirror]]\nlocation = \"localhost:1\"\n";
    configured(text, "pull localhost:2/x")
        .code(1)
        .err("cannot reach registry localhost:2")
        .err("mirror localhost:1/x");
    let text = "[[registry]]\nprefix = \"*.example\"\nblocked = true\n";
    configured(text, "pull other.example/x")
        .code(1)
        .err("is blocked");
    configured("[[registry]\n", "pull x")
        .code(1)
        .err("is malformed");
}

fn another_platforms_image_is_told() {
    let engine = Engine::new();
    let image = engine.registry().reference("busybox:multi");
    engine.ok(&format!("pull --platform linux/arm64 {image}"));
    assert_eq!(engine.look(&image, "/Architecture"), "arm64");
    engine.ok("images");
    engine
        .run(&format!("run --rm --network none {image} true"))
        .err("linux/arm64");
}
