//! What listings and `inspect` print: templates, filters, tables.

use std::fs;

use serde_json::Value;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "format",
        &[Need::Root],
        [
            templates_of_inspect_are_dockers,
            inspect_finds_every_kind_and_prints_what_it_found,
            ps_prints_what_is_asked_for,
            ps_filters,
            the_other_listings,
            a_group_of_commands_is_the_commands,
            files_of_variables_and_labels,
            a_seccomp_profile_of_ones_own,
            completions_and_manual,
            help_is_by_subject,
        ]
    )
}

fn templates_of_inspect_are_dockers() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird -p 8080:80 --label a.b=1 -v data:/data base sleep 1000");
    for (template, text) in [
        ("{{.State.Status}}", "running"),
        ("{{.Name}} {{.Config.Image}}", "/bird base"),
        (r#"{{index .Config.Labels "a.b"}}"#, "1"),
        (
            r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#,
            "8080",
        ),
        (
            "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}={{$v.IPAddress}}{{end}}",
            "bridge=172.17.0.2",
        ),
        (
            "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}}:{{.Destination}}{{end}}{{end}}",
            "data:/data",
        ),
        (
            "{{json .Config.Cmd}} {{join .Config.Cmd \",\"}}",
            "[\"sleep\",\"1000\"] sleep,1000",
        ),
        ("{{if .State.Health}}x{{else}}no check{{end}}", "no check"),
        ("{{.HostConfig.RestartPolicy.Name}}", "no"),
    ] {
        let line = format!("inspect -f '{template}' bird");
        assert_eq!(engine.ok(&line), text, "{template}");
        assert_eq!(engine.ok(&format!("container {line}")), text, "{template}");
    }
    engine
        .run("inspect -f '{{.Nosuch}}' bird")
        .code(1)
        .err("map has no entry for key \"Nosuch\"");
    engine
        .run("inspect -f '{{.State' bird")
        .code(1)
        .err("template parsing error");
    // As Go's templates do, several are printed one a line.
    let both = engine.ok("inspect --format '{{.State.Running}}' bird bird");
    assert_eq!(both, "true\ntrue");
}

fn inspect_finds_every_kind_and_prints_what_it_found() {
    let engine = Engine::new().with_base();
    engine.ok("volume create data");
    engine.ok("run --network none --name bird base sh -c 'echo 12345 > /file'");
    let outcome = engine.run("inspect bird nosuch base bridge data");
    outcome.code(1).err("no such object: nosuch");
    let found: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 4, "{found:#}");
    engine.run("inspect --type image bird").code(1).err("bird");
    engine
        .run("inspect --type volume data")
        .code(0)
        .out("Mountpoint");
    engine
        .run("inspect --type nosuch data")
        .err("container, image, network, volume");
    let size = engine.ok("inspect -s -f '{{.SizeRw}}' bird");
    assert_eq!(size, "6");
    assert_eq!(engine.run("inspect nosuch").code(1).stdout.trim(), "[]");
}

fn ps_prints_what_is_asked_for() {
    let engine = Engine::new().with_base();
    let id = engine.ok("run -d --network none --name bird --label a=1 base sleep 1000");
    engine.ok("run --network none --name gone base sh -c 'echo 12345 > /file'");
    let ps = |words: &str| engine.ok(&format!("ps {words}"));
    assert_eq!(
        ps("--format '{{.ID}} {{.Names}} {{.Label \"a\"}}'"),
        format!("{} bird 1", &id[..12])
    );
    assert_eq!(ps("--no-trunc --format '{{.ID}}'"), id);
    let table = ps("-a --format 'table {{.Names}}\\t{{.State}}'");
    assert_eq!(table, "NAMES   STATE\ngone    exited\nbird    running");
    let objects = ps("-a --format json");
    let first: Value = serde_json::from_str(objects.lines().next().unwrap()).unwrap();
    assert_eq!(first["Names"], "gone");
    // But for the ages, which go on.
    let ids = |text: &str| -> Vec<Value> {
        let objects = text.lines().map(serde_json::from_str::<Value>);
        objects
            .map(|object| object.unwrap()["ID"].clone())
            .collect()
    };
    assert_eq!(ids(&objects), ids(&ps("-a --format '{{json .}}'")));
    assert_eq!(ps("-lq"), ps("-n 1 -q"));
    assert!(ps("-n 2").contains("bird"));
    assert!(ps("-as").contains("6B (virtual"), "{}", ps("-as"));
    assert!(ps("-a --format '{{.Size}}' -f name=gone").starts_with("6B"));
    engine
        .run("ps --format '{{.Nosuch}}'")
        .code(1)
        .err("Nosuch");
}

fn ps_filters() {
    let engine = Engine::new().with_base();
    engine.ok("network create lake");
    engine.ok("tag base other:1");
    engine.ok("run -d --name one --label kind=bird -p 8080:80 -v data:/data base sleep 1000");
    engine.ok("run -d --name two --network lake --expose 90/udp other:1 sleep 1000");
    engine
        .run("run --name three --network none base sh -c 'exit 3'")
        .code(3);
    for (filter, names) in [
        ("name=^t", "two"),
        ("name=^/one$", "one"),
        ("label=kind", "one"),
        ("label=kind=bird", "one"),
        ("label=kind=fish", ""),
        ("status=exited", "three"),
        ("status=running", "two one"),
        ("exited=3", "three"),
        ("exited=0", ""),
        ("ancestor=other:1", "two one"),
        ("ancestor=nosuch", ""),
        ("before=two", "one"),
        ("since=one", "two"),
        ("network=lake", "two"),
        ("volume=data", "one"),
        ("volume=/data", "one"),
        ("publish=80", "one"),
        ("publish=70-90/tcp", "one"),
        ("expose=90/udp", "two"),
    ] {
        let found = engine.ok(&format!("ps --format '{{{{.Names}}}}' --filter {filter}"));
        let found: Vec<&str> = found.lines().collect();
        assert_eq!(found.join(" "), names, "{filter}");
    }
    let both = engine.ok("ps -aq --filter status=exited --filter name=one");
    assert_eq!(both, "");
    engine
        .run("ps --filter colour=red")
        .code(1)
        .err("unknown filter");
    engine
        .run("ps --filter status=dozing")
        .code(1)
        .err("running");
}

fn the_other_listings() {
    let engine = Engine::new().with_base();
    engine.ok("volume create --label a=1 data");
    assert_eq!(
        engine.ok("images --format '{{.Repository}}:{{.Tag}}'"),
        "base:latest"
    );
    assert_eq!(engine.ok("image inspect -f '{{.Os}}' base"), "linux");
    let networks = engine.ok("network ls --format '{{.Name}}/{{.Driver}}'");
    assert_eq!(networks, "bridge/bridge\nhost/host\nnone/null");
    assert_eq!(
        engine.ok("network inspect -f '{{.Driver}}' bridge"),
        "bridge"
    );
    assert_eq!(
        engine.ok("volume ls --format '{{.Name}} {{.Label \"a\"}}'"),
        "data 1"
    );
    let place = engine.ok("volume inspect --format '{{.Mountpoint}}' data");
    assert!(place.ends_with("/volumes/data/_data"), "{place}");
    engine.ok("run -d --network none --name bird base sleep 1000");
    let line = "stats --no-stream --format '{{.Name}} {{.PIDs}}'";
    assert_eq!(engine.ok(line), "bird 1");
    let line = "events --since 1h --until 0s --filter event=start --format '{{.Type}} {{.Actor.Attributes.name}}'";
    assert_eq!(engine.ok(line), "container bird");
}

fn a_group_of_commands_is_the_commands() {
    let engine = Engine::new().with_base();
    engine.ok("container run -d --network none --name bird base sleep 1000");
    assert_eq!(engine.ok("container exec bird echo said"), "said");
    for list in ["ls", "list", "ps"] {
        engine.run(&format!("container {list}")).out("bird");
    }
    engine.run("container run --rm base nosuch").code(127);
    engine.ok("container rename bird heron");
    engine.ok("container stop -t 0 heron");
    engine.run("container prune").out("[y/N]").no_out("Deleted");
    engine
        .run_with_input("container prune", b"n\n")
        .code(0)
        .no_out("Deleted");
    engine.ok("container start heron");
    engine.ok("container prune -f");
    engine.ok("container kill heron");
    engine.ok("container wait heron");
    engine
        .run_with_input("container prune", b"y\n")
        .out("Deleted Containers:")
        .out("Total");
    assert_eq!(engine.ok("ps -aq"), "");
}

fn files_of_variables_and_labels() {
    let engine = Engine::new().with_base();
    let file = engine.directory().join("env");
    fs::write(
        &file,
        "\u{feff}# said\n\nBIRD=heron\n  SPACED= a b \nQUOTED=\"q\"\nHOME\nNOSUCHVARIABLE\nEMPTY=\n",
    )
    .unwrap();
    let seen = engine.ok("run --rm --network none --env-file ~/env -e BIRD=stork base env");
    for line in ["BIRD=stork", "SPACED= a b ", "QUOTED=\"q\"", "EMPTY="] {
        assert!(seen.lines().any(|it| it == line), "{line} in {seen}");
    }
    assert!(!seen.contains("NOSUCHVARIABLE"), "{seen}");
    fs::write(&file, "A B=1\n").unwrap();
    let refused = engine.run("run --rm --network none --env-file ~/env base env");
    refused.code(125).err("whitespace");
    fs::write(&file, "=1\n").unwrap();
    engine
        .run("run --rm --network none --env-file ~/env base env")
        .code(125);
    fs::write(
        engine.directory().join("labels"),
        "# said\na=file\nb=file\nc\n",
    )
    .unwrap();
    engine.ok("create --name bird --label-file ~/labels --label a=typed base");
    let labels = engine.ok("inspect -f '{{json .Config.Labels}}' bird");
    assert_eq!(labels, r#"{"a":"typed","b":"file","c":""}"#);
}

fn a_seccomp_profile_of_ones_own() {
    let engine = Engine::new().with_base();
    let profile = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                    {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "args": [], "includes": {}, "excludes": {}},
            {"names": ["unlink", "unlinkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}
        ]
    }"#;
    fs::write(engine.directory().join("profile.json"), profile).unwrap();
    let security = "--security-opt seccomp=~/profile.json";
    engine
        .run(&format!(
            "run --rm --network none {security} base mkdir /new"
        ))
        .code(1)
        .err("Operation not permitted");
    engine
        .run(&format!(
            "run --rm --network none {security} base rm /bin/vi"
        ))
        .code(1);
    let line = format!("run --rm --network none {security} --cap-add SYS_ADMIN base rm /bin/vi");
    engine.run(&line).code(0);
    // The container keeps it: the file may go.
    engine.ok(&format!(
        "create --name bird --network none {security} base mkdir /new"
    ));
    fs::remove_file(engine.directory().join("profile.json")).unwrap();
    engine
        .run("start -a bird")
        .code(1)
        .err("Operation not permitted");
}

fn completions_and_manual() {
    let engine = Engine::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = engine.ok(&format!("completion {shell}"));
        assert!(script.contains("cap-drop"), "{shell}");
    }
    engine.run("completion csh").err("bash, zsh, fish");
    engine.ok("man ~/man");
    let page = fs::read_to_string(engine.directory().join("man/qengine-run.1")).unwrap();
    assert!(page.contains("cap\\-drop"));
    assert!(
        engine
            .directory()
            .join("man/qengine-network-create.1")
            .exists()
    );
}

fn help_is_by_subject() {
    let engine = Engine::new();
    for words in ["", "help", "--help"] {
        let text = engine.ok(words);
        for heading in ["Containers:", "Images:", "Networks:", "Volumes:", "System:"] {
            assert!(text.contains(heading), "{heading} in {text}");
        }
    }
    engine
        .run("run --help")
        .code(0)
        .out("--cap-drop")
        .out("Security:");
    engine.run("ps --help").code(0).out(".RunningFor");
}
