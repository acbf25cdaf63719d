//! The engine as a whole: what it is, what it occupies, whether it is consistent, what nobody needs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "system",
        &[Need::Root],
        [
            version_and_info,
            df_counts_what_is_there,
            prune_takes_what_nobody_uses,
            a_busy_store_is_consistent,
            what_a_crash_leaves_is_found_and_repaired,
            a_changed_blob_is_found,
        ]
    )
}

fn version_and_info() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --network none --name bird base sleep 1000");
    engine.ok("create --name egg base");
    let version = engine.run("version");
    for program in ["qengine", "qrun", "qshim"] {
        version.out(program);
    }
    let own = engine.ok("version --format '{{.Client.Version}}'");
    assert_eq!(own, engine.ok("version -f '{{.Server.Version}}'"));
    engine
        .run("info")
        .code(0)
        .out("Cgroup version: ")
        .out("Packet filter: ")
        .out(" Running: 1");
    let counts = "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}} {{.Images}}";
    assert_eq!(
        engine.ok(&format!("system info --format '{counts}'")),
        "2 1 1 1"
    );
    let all: Value = serde_json::from_str(&engine.ok("info --format json")).unwrap();
    assert_eq!(all["OSType"], "linux");
    assert_eq!(all["DockerRootDir"], engine.root().display().to_string());
}

/// The row of `system df` for a kind, as its words.
fn df(engine: &Engine, kind: &str) -> Vec<String> {
    let format = "{{.Type}}|{{.TotalCount}}|{{.Active}}|{{.Size}}|{{.Reclaimable}}";
    let text = engine.ok(&format!("system df --format '{format}'"));
    let line = text.lines().find(|line| line.starts_with(kind)).unwrap();
    line.split('|').skip(1).map(str::to_owned).collect()
}

fn df_counts_what_is_there() {
    let engine = Engine::new().with_base();
    assert_eq!(df(&engine, "Containers"), ["0", "0", "0B", "0B"]);
    assert!(df(&engine, "Images")[3].ends_with("(100%)"));
    engine.ok("run --network none --log-driver none --name bird -v data:/data base sh -c 'echo 12345 > /file; echo 12 > /data/x'");
    assert_eq!(df(&engine, "Containers"), ["1", "0", "6B", "6B (100%)"]);
    assert_eq!(df(&engine, "Local Volumes"), ["1", "1", "3B", "0B (0%)"]);
    let images = df(&engine, "Images");
    assert_eq!((images[0].as_str(), images[1].as_str()), ("1", "1"));
    assert!(images[3].ends_with("(0%)"), "{images:?}");
    engine
        .run("system df -v")
        .out("base")
        .out("bird")
        .out("data");
}

fn prune_takes_what_nobody_uses() {
    let engine = Engine::new().with_base();
    engine.ok("network create lake");
    engine.ok("volume create kept");
    let anonymous = engine.ok("volume create");
    engine.ok("run -d --network none --name bird base sleep 1000");
    engine.ok("run --network none --name gone --label keep=1 base true");
    engine.ok("tag base other:1");
    let question = engine.run("system prune");
    question
        .code(0)
        .out("all stopped containers")
        .no_out("Deleted");
    engine.ok("system prune -f --filter label!=keep");
    assert_eq!(engine.ok("ps -a --format '{{.Names}}'"), "gone\nbird");
    assert!(!engine.ok("network ls").contains("lake"));
    engine.ok("system prune -f --volumes");
    assert_eq!(engine.ok("ps -a --format '{{.Names}}'"), "bird");
    assert_eq!(engine.ok("volume ls -q"), "kept", "and not {anonymous}");
    engine.ok("system prune -af");
    assert!(engine.ok("images").contains("base"), "it has a container");
    engine.ok("rm -f bird");
    let all = engine.run_with_input("system prune --all", b"y\n");
    all.code(0)
        .out("Untagged: base:latest")
        .out("Total reclaimed space:");
    assert_eq!(engine.ok("images -q"), "");
}

fn a_busy_store_is_consistent() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird -p 8080:80 -v data:/data --ipc shareable base sleep 1000");
    engine.ok("run --name gone base true");
    engine.ok("create --name egg base");
    engine.ok("commit gone made");
    engine
        .run("system check")
        .code(0)
        .out("No problems: 3 containers, 2 images");
    engine.ok("rm -f bird gone egg");
    engine
        .run("system check")
        .code(0)
        .out("No problems: 0 containers");
}

/// Makes a file or directory look as if it were an hour old.
fn age(path: &Path) {
    let hour = std::time::Duration::from_secs(3600);
    let file = fs::File::open(path).unwrap();
    file.set_modified(std::time::SystemTime::now() - hour)
        .unwrap();
}

fn what_a_crash_leaves_is_found_and_repaired() {
    let engine = Engine::new().with_base();
    engine.ok("create --name egg base");
    let id = engine.ok("run -d --network none --name bird base sleep 1000");
    let root = engine.root();
    let run = engine.directory().join("run");
    let gone = "0123456789abcdef".repeat(4);

    symlink(&gone, root.join("names/ghost")).unwrap();
    symlink(&gone, root.join("ports/tcp-0.0.0.0-99")).unwrap();
    let old: [PathBuf; 4] = [
        root.join("containers/.new-x"),
        root.join("layers/tmp-x"),
        run.join(&gone),
        run.join("exits/nobody"),
    ];
    for path in &old[..3] {
        fs::create_dir(path).unwrap();
    }
    fs::write(&old[3], "0").unwrap();
    old.iter().for_each(|path| age(path));
    // The monitor first, so that nobody sees the end.
    for pid in ["ConmonPid", "Pid"] {
        let pid = engine.ok(&format!("inspect -f '{{{{.State.{pid}}}}}' bird"));
        stack_tests::command::tool("kill", &["-9", pid.as_str()]);
    }
    stack_tests::wait::until("the process has gone", || {
        let check = engine.run("system check --quick");
        check.stdout.contains(&id[..12]).then_some(())
    });
    let found = engine.run("system check");
    found
        .code(1)
        .out("--repair helps")
        .out("names/ghost")
        .out("ports/tcp-0.0.0.0-99");
    found
        .out(".new-x")
        .out("tmp-x")
        .out(&format!("run/{gone}"))
        .out("exits/nobody");
    engine.run("system check --repair").code(0).out("repaired");
    engine.run("system check").code(0).out("No problems");
    assert!(!old.iter().any(|path| path.exists()));
    assert_eq!(engine.ok("inspect -f '{{.State.Status}}' bird"), "exited");
    engine.ok("start egg");
}

fn a_changed_blob_is_found() {
    let engine = Engine::new().with_base();
    let layer = engine.ok("image inspect -f '{{index .RootFS.Layers 0}}' base");
    assert!(layer.starts_with("sha256:"));
    let blobs = engine.root().join("blobs/sha256");
    let largest = fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[100] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    engine.run("system check --quick").code(0);
    engine
        .run("system check")
        .code(1)
        .out("does not match its digest");
    fs::write(&largest, &bytes[..50]).unwrap();
    engine
        .run("system check --quick")
        .code(1)
        .out("has 50 bytes");
    fs::remove_file(&largest).unwrap();
    engine
        .run("system check --repair")
        .code(1)
        .out("is missing");
    // A layer that is not unpacked is unpacked again; here nothing is left to do it from.
    engine.ok("rmi base");
    engine.run("system check").code(0);
}
