//! Archives: images and file systems out of the store and into it, and what others make of them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stack_tests::command::{run, shell};
use stack_tests::engine::Engine;
use stack_tests::image::entry;
use stack_tests::needs::{Need, Test};
use stack_tests::peers::Podman;
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "archives",
        &[Need::Root],
        [
            a_saved_image_is_loaded_again,
            a_name_stands_for_all_its_tags,
            hostile_archives_are_refused,
            a_killed_load_leaves_nothing,
            a_failed_save_keeps_the_old_archive,
            a_container_is_exported,
            a_commit_has_exactly_the_changes,
            an_exported_container_is_imported,
            images_are_filtered,
        ]
    );
    let peers = &[
        Need::Root,
        Need::Host,
        Need::Program("podman"),
        Need::Program("skopeo"),
    ];
    all.extend(tests!(
        "archives",
        peers,
        [
            podman_loads_what_is_saved,
            what_podman_and_skopeo_save_is_loaded,
        ]
    ));
    let layouts = &[
        Need::Root,
        Need::Host,
        Need::Program("docker-registry"),
        Need::Program("skopeo"),
        Need::Program("umoci"),
    ];
    all.extend(tests!(
        "archives",
        layouts,
        [
            the_store_is_an_image_layout_to_others,
            implied_directories_are_as_below,
        ]
    ));
    all
}

/// A second engine's flags: what is loaded there has not been there before.
fn elsewhere(engine: &Engine, line: &str) -> Command {
    let mut command = Command::new(stack_tests::programs::built("qengine"));
    let place = engine.directory().join("elsewhere");
    command.arg("--root").arg(place.join("root"));
    command.arg("--run-root").arg(place.join("run"));
    let home = engine.directory().display().to_string();
    let words = stack_tests::words::split(line);
    command.args(words.iter().map(|word| word.replace('~', &home)));
    command
}

#[track_caller]
fn there(engine: &Engine, line: &str) -> String {
    run(&mut elsewhere(engine, line)).ok().to_owned()
}

/// An image with changes of every kind on top of the base.
fn changed(engine: &Engine, name: &str) {
    let script = "echo song >/etc/bird; ln /etc/bird /etc/other; rm /bin/vi; mkfifo /pipe; \
                  rm -r /var/spool; mkdir /var/spool; chmod 1777 /var/spool";
    engine.ok(&format!(
        "run --name maker --network none base sh -c '{script}'"
    ));
    engine.ok(&format!("commit maker {name}"));
    engine.ok("rm maker");
}

const CHECK: &str =
    "cat /etc/bird; test ! -e /bin/vi; echo $?; ls -A /var/spool | wc -l; stat -c %h /etc/other";
const CHECKED: &str = "song\n0\n0\n2";

fn a_saved_image_is_loaded_again() {
    let engine = Engine::new().with_base();
    changed(&engine, "nest:1");
    engine.ok("tag nest:1 example.org/forest/nest:2");
    let id = engine.look("nest:1", "/Id");
    let digest = engine.look("nest:1", "/ManifestDigest");
    for (format, packed) in [
        ("docker-archive", ""),
        ("oci-archive", ""),
        ("docker-archive", "gzip -f ~/a.tar"),
        ("docker-archive", "zstd -qf --rm ~/a.tar -o ~/a.tar.zst"),
    ] {
        engine.ok(&format!(
            "save --format {format} -o ~/a.tar nest:1 example.org/forest/nest:2 base"
        ));
        let home = engine.directory().display().to_string();
        let file = match packed.split(' ').next() {
            Some("gzip") => "a.tar.gz",
            Some("zstd") => "a.tar.zst",
            _ => "a.tar",
        };
        if !packed.is_empty() {
            shell(&packed.replace('~', &home));
        }
        let said = there(&engine, &format!("load -i ~/{file}"));
        for name in ["nest:1", "example.org/forest/nest:2", "base:latest"] {
            assert!(
                said.contains(&format!("Loaded image: {name}\n")) || said.ends_with(name),
                "{said}"
            );
        }
        let described: Value =
            serde_json::from_str(&there(&engine, "image inspect nest:1")).unwrap();
        assert_eq!(described[0]["Id"], id, "{format}");
        assert_eq!(described[0]["ManifestDigest"], digest, "{format}");
        there(&engine, "rmi -f nest:1 example.org/forest/nest:2 base");
        assert_eq!(there(&engine, "images -q"), "");
    }
    // Through a pipe, and without a name.
    engine.ok("save -o ~/a.tar base");
    let archive = engine.run(&format!("save -o ~/b.tar {}", id.as_str().unwrap()));
    archive.ok();
    let said = there(&engine, "load -i ~/b.tar");
    assert_eq!(said, format!("Loaded image ID: {}", id.as_str().unwrap()));
    let short = &id.as_str().unwrap()[7..19];
    there(&engine, &format!("tag {short} found"));
    engine.run("save base").code(0);
    engine.run("load").code(1).err("no archive of images");
    same_bytes(&engine);
}

fn same_bytes(engine: &Engine) {
    engine.ok("save -o ~/one.tar base nest:1");
    engine.ok("save -o ~/two.tar base nest:1");
    let read = |name: &str| std::fs::read(engine.directory().join(name)).unwrap();
    assert!(read("one.tar") == read("two.tar"), "two archives differ");
}

fn a_name_stands_for_all_its_tags() {
    let engine = Engine::new().with_base();
    engine.ok("tag base base:2");
    engine.ok("tag base baseline:3");
    engine.ok("save -o ~/a.tar base");
    let home = engine.directory().display();
    let said = shell(&format!("tar -xOf {home}/a.tar manifest.json"));
    let manifest: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(manifest[0]["RepoTags"], json!(["base:2", "base:latest"]));
    engine.ok("save -o ~/a.tar base:2");
    let said = shell(&format!("tar -xOf {home}/a.tar manifest.json"));
    assert!(!said.contains("latest"), "{said}");
}

fn podman_loads_what_is_saved() {
    let engine = Engine::new().with_base();
    changed(&engine, "example.org/nest:1");
    let podman = Podman::new();
    let home = engine.directory().display().to_string();
    for format in ["docker-archive", "oci-archive"] {
        engine.ok(&format!(
            "save --format {format} -o ~/a.tar example.org/nest:1"
        ));
        let said = run(&mut podman.command(&format!("load -i {home}/a.tar")));
        assert!(
            said.ok().contains("example.org/nest:1"),
            "{format}{}",
            said.report()
        );
        let line = format!("run --rm --network none example.org/nest:1 sh -c '{CHECK}'");
        assert_eq!(run(&mut podman.command(&line)).ok(), CHECKED, "{format}");
        run(&mut podman.command("rmi example.org/nest:1")).ok();
        let name = match format {
            "docker-archive" => ":example.org/nest:1",
            _ => "",
        };
        let seen = shell(&format!("skopeo inspect {format}:{home}/a.tar{name}"));
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(2), "{seen}");
    }
}

fn what_podman_and_skopeo_save_is_loaded() {
    let engine = Engine::new().with_base();
    changed(&engine, "example.org/nest:1");
    engine.ok("save -o ~/a.tar example.org/nest:1");
    let id = engine.look("example.org/nest:1", "/Id");
    let home = engine.directory().display().to_string();
    let podman = Podman::new();
    run(&mut podman.command(&format!("load -i {home}/a.tar"))).ok();
    for format in ["docker-archive", "oci-archive"] {
        // Podman writes layers plain, and links where docker once had directories.
        let line =
            format!("save --quiet --format {format} -o {home}/{format}.tar example.org/nest:1");
        run(&mut podman.command(&line)).ok();
        let from = format!("docker-archive:{home}/a.tar:example.org/nest:1");
        let to = match format {
            "oci-archive" => format!("oci-archive:{home}/skopeo-{format}.tar:example.org/nest:1"),
            _ => format!("docker-archive:{home}/skopeo-{format}.tar:example.org/nest:1"),
        };
        shell(&format!("skopeo copy --quiet {from} {to}"));
        for file in [format!("{format}.tar"), format!("skopeo-{format}.tar")] {
            let said = there(&engine, &format!("load -i ~/{file}"));
            assert_eq!(said, "Loaded image: example.org/nest:1", "{file}");
            let described: Value =
                serde_json::from_str(&there(&engine, "image inspect example.org/nest:1")).unwrap();
            // skopeo writes the configuration anew when it turns docker's form into OCI's.
            if file != "skopeo-oci-archive.tar" {
                assert_eq!(described[0]["Id"], id, "{file}");
            }
            let line = format!("run --rm --network none example.org/nest:1 sh -c '{CHECK}'");
            assert_eq!(there(&engine, &line), CHECKED, "{file}");
            there(&engine, "rmi example.org/nest:1");
        }
    }
}

fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The parts of a small honest archive, to be spoiled one at a time.
struct Parts {
    layer: Vec<u8>,
    config: Value,
    manifest: Value,
    extra: Vec<(&'static str, Vec<u8>)>,
    /// What `layer.tar` is a symbolic link to, instead of a file.
    link: Option<&'static str>,
}

impl Parts {
    fn new() -> Self {
        let mut layer = tar::Builder::new(Vec::new());
        entry(&mut layer, "file", 0o644, b"content").unwrap();
        let layer = layer.into_inner().unwrap();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest_of(&layer))]},
        });
        let manifest =
            json!([{"Config": "config.json", "RepoTags": ["trap:1"], "Layers": ["a/layer.tar"]}]);
        Self {
            layer,
            config,
            manifest,
            extra: Vec::new(),
            link: None,
        }
    }

    fn write(&self, path: &Path) {
        let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
        entry(
            &mut archive,
            "manifest.json",
            0o644,
            self.manifest.to_string().as_bytes(),
        )
        .unwrap();
        entry(
            &mut archive,
            "config.json",
            0o644,
            self.config.to_string().as_bytes(),
        )
        .unwrap();
        match self.link {
            Some(target) => {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                archive
                    .append_link(&mut header, "a/layer.tar", target)
                    .unwrap();
            }
            None => entry(&mut archive, "a/layer.tar", 0o644, &self.layer).unwrap(),
        }
        for (name, content) in &self.extra {
            let mut header = tar::Header::new_gnu();
            // The builder's own check would refuse `..`.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append(&header, &content[..]).unwrap();
        }
        archive.finish().unwrap();
    }
}

fn hostile_archives_are_refused() {
    let engine = Engine::new();
    let file = engine.directory().join("trap.tar");
    Parts::new().write(&file);
    assert_eq!(engine.ok("load -i ~/trap.tar"), "Loaded image: trap:1");
    engine.ok("rmi trap:1");
    let mut traps: Vec<(&str, Parts)> = Vec::new();
    let mut trap = |message, spoil: &dyn Fn(&mut Parts)| {
        let mut parts = Parts::new();
        spoil(&mut parts);
        traps.push((message, parts));
    };
    trap("lies outside", &|it| it.link = Some("/etc/passwd"));
    trap("lies outside", &|it| it.link = Some("../../../etc/passwd"));
    trap("leads to itself", &|it| it.link = Some("../a/layer.tar"));
    trap("is missing", &|it| it.link = Some("../nowhere.tar"));
    trap("has .. in its name", &|it| {
        it.extra.push(("../evil", b"x".to_vec()))
    });
    trap("has .. in its name", &|it| {
        it.manifest[0]["Config"] = json!("../../etc/passwd")
    });
    trap("is missing", &|it| {
        it.manifest[0]["Config"] = json!("/etc/passwd")
    });
    trap("is missing", &|it| {
        it.manifest[0]["Layers"] = json!(["b/layer.tar"])
    });
    trap("1 layers, the manifest 2", &|it| {
        it.manifest[0]["Layers"] = json!(["a/layer.tar", "a/layer.tar"]);
    });
    trap("but the configuration says", &|it| {
        it.config["rootfs"]["diff_ids"] = json!([format!("sha256:{}", "0".repeat(64))]);
    });
    trap("digest", &|it| {
        it.config["rootfs"]["diff_ids"] = json!(["sha256:../../x"])
    });
    trap("invalid reference format", &|it| {
        it.manifest[0]["RepoTags"] = json!(["../x:1"])
    });
    trap("is too large for a document", &|it| {
        it.extra.push(("index.json", vec![b' '; 9 << 20]))
    });
    trap("is not named like a blob", &|it| {
        it.extra.push(("blobs/sha256/abc", Vec::new()))
    });
    trap("does not have the digest", &|it| {
        it.extra.push((
            "blobs/sha256/0000000000000000000000000000000000000000000000000000000000000000",
            b"x".to_vec(),
        ));
    });
    trap("manifest.json", &|it| it.manifest = json!({"Config": 1}));
    for (number, (message, parts)) in traps.iter().enumerate() {
        parts.write(&file);
        let outcome = engine.run("load -i ~/trap.tar");
        outcome.refused(1, message);
        assert_eq!(engine.ok("images -q"), "", "trap {number}");
        assert_store_is_empty(&engine);
    }
    // Cut short, and no archive at all.
    Parts::new().write(&file);
    let whole = std::fs::read(&file).unwrap();
    for length in [100, 700, 2000, 3000] {
        std::fs::write(&file, &whole[..length]).unwrap();
        engine.run("load -i ~/trap.tar").code(1);
        assert_store_is_empty(&engine);
    }
    assert!(!engine.directory().parent().unwrap().join("evil").exists());
}

/// Neither blob nor layer nor anything half done is left.
#[track_caller]
fn assert_store_is_empty(engine: &Engine) {
    for directory in ["blobs/sha256", "layers", ".tmp"] {
        let left: Vec<_> = std::fs::read_dir(engine.root().join(directory))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

fn a_killed_load_leaves_nothing() {
    let engine = Engine::new().with_base();
    changed(&engine, "nest:1");
    engine.ok("save -o ~/a.tar nest:1");
    engine.ok("rmi nest:1 base");
    for moment in [2, 5, 10, 15, 20, 30, 40, 60, 80, 120] {
        let mut child = engine
            .command("load -i ~/a.tar")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        // Either it is there, whole, or it is not.
        if engine.ok("images -q").is_empty() {
            engine.ok("image prune -f");
        } else {
            engine.ok(&format!("run --rm --network none nest:1 sh -c '{CHECK}'"));
            engine.ok("rmi nest:1");
        }
        assert_store_is_empty(&engine);
    }
    engine.ok("load -i ~/a.tar");
    let line = format!("run --rm --network none nest:1 sh -c '{CHECK}'");
    assert_eq!(engine.ok(&line), CHECKED);
}

fn a_failed_save_keeps_the_old_archive() {
    let engine = Engine::new().with_base();
    engine.ok("save -o ~/a.tar base");
    let file = engine.directory().join("a.tar");
    let before = std::fs::read(&file).unwrap();
    engine
        .run("save -o ~/a.tar base nothing")
        .refused(1, "no such image: nothing");
    assert!(before == std::fs::read(&file).unwrap());
    for moment in [1, 3, 6, 10, 15] {
        let mut child = engine.command("save -o ~/a.tar base").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(before == std::fs::read(&file).unwrap());
    }
    let names = std::fs::read_dir(engine.directory()).unwrap().flatten();
    let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
    assert!(
        !names
            .iter()
            .any(|name| name.to_string_lossy().contains("tmp-")),
        "{names:?}"
    );
    engine
        .run("save -o ~/no/such/a.tar base")
        .refused(1, "cannot write");
}

fn a_container_is_exported() {
    let engine = Engine::new().with_base();
    let script = "echo song >/etc/bird; ln /etc/bird /etc/other; rm /bin/vi; mkfifo -m 600 /pipe; \
                  mknod /null c 1 3; chown 7:8 /etc/bird; echo kept >/data/volume; sleep 1000";
    engine.ok(&format!(
        "run -d --name bird --network none -v ~/volume:/data base sh -c '{script}'"
    ));
    engine.ok("exec bird sh -c 'until test -e /data/volume; do usleep 10000; done'");
    engine.ok("create --name egg --network none base");
    engine.ok("save -o ~/running.tar -c bird");
    engine.ok("stop -t 0 bird");
    engine.ok("export -o ~/stopped.tar bird");
    engine.ok("export -o ~/egg.tar egg");
    let home = engine.directory().display().to_string();
    let list = |name: &str| shell(&format!("tar --numeric-owner -tvf {home}/{name}.tar"));
    let (running, stopped) = (list("running"), list("stopped"));
    assert_eq!(running, stopped);
    let line = |path: &str| {
        let found = running.lines().find(|line| line.ends_with(path));
        found
            .unwrap_or_else(|| panic!("no {path} in\n{running}"))
            .to_owned()
    };
    assert!(line(" etc/bird").starts_with("-rw-r--r-- 7/8"));
    assert!(line(" etc/other link to etc/bird").starts_with('h'));
    assert!(line(" pipe").starts_with("prw-------"));
    assert!(line(" null").contains("1,3"));
    assert!(line(" data/").starts_with('d'));
    for gone in [" bin/vi", "data/volume", " proc/1/", "etc/hostname."] {
        assert!(!running.contains(gone), "{gone} in\n{running}");
    }
    assert!(list("egg").contains(" bin/busybox"));
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&home), "{mounts}");
    engine.run("export nothing").refused(1, "no such container");
}

/// What a program lists of a whole tree: kinds, modes, owners, times, links, attributes, content.
fn tree_of(engine: &Engine, archive: &str) -> String {
    let place = engine.directory().join("tree");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir(&place).unwrap();
    let at = place.display().to_string();
    let from = engine.directory().join(archive).display().to_string();
    shell(&format!(
        "tar --xattrs --xattrs-include=* --numeric-owner -xpf {from} -C {at}"
    ));
    let find = format!(
        "cd {at} && find . ! -type d -printf '%P %y %m %U:%G %n %T@ %l\\n' -o -printf '%P/ %m %U:%G %T@\\n' | LC_ALL=C sort; \
         find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; find . -type f"
    );
    let mut listed = stack_tests::command::tool("sh", &["-c", &find]);
    let names: Vec<String> = listed
        .lines()
        .filter(|line| line.starts_with("./"))
        .map(str::to_owned)
        .collect();
    for name in names {
        let mut list = vec![0; 4096];
        let path = place.join(&name);
        let length = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
        for attribute in list[..length]
            .split(|&byte| byte == 0)
            .filter(|it| !it.is_empty())
        {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&path, attribute, &mut value[..]).unwrap();
            let attribute = String::from_utf8_lossy(attribute).into_owned();
            listed += &format!("{name} {attribute}={:?}\n", &value[..length]);
        }
    }
    std::fs::remove_dir_all(&place).unwrap();
    listed
}

fn a_commit_has_exactly_the_changes() {
    let engine = Engine::new().with_base();
    let script = "mkdir -p /srv/a/b; echo 1 >/srv/a/b/file; ln /srv/a/b/file /srv/hard; ln -s a /srv/soft; \
                  mkfifo /srv/pipe; mknod /srv/null c 1 3; chmod 4750 /srv/hard; chown 7:8 /srv/pipe; \
                  rm /bin/vi /etc/profile; rm -r /var/spool; mkdir /var/spool; echo new >/var/spool/new; \
                  rm -r /home; echo file >/home; mv /etc/passwd /etc/users; touch -d 2001-02-03 /srv/a; \
                  chmod 700 /usr; sleep 1000";
    engine.ok(&format!(
        "run -d --name maker --network none base sh -c '{script}'"
    ));
    engine.ok(
        "exec maker sh -c 'until test -d /srv/a -a -f /home; do usleep 10000; done; usleep 100000'",
    );
    // The shell has no tool for these.
    let merged = engine.root().join("containers");
    let id = engine.look("maker", "/Id");
    let file = merged
        .join(id.as_str().unwrap())
        .join("merged/srv/a/b/file");
    let set = |name: &str, value: &[u8]| {
        rustix::fs::setxattr(&file, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    set("user.bird", b"song");
    // CAP_NET_RAW, permitted and effective, version 2.
    set(
        "security.capability",
        &[
            1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    );
    let changes = "--change 'CMD [\"cat\", \"/srv/hard\"]' -c 'ENV NEST=oak' -m why -a heron";
    engine.ok(&format!("commit {changes} maker nest:1"));
    engine.ok("export -o ~/source.tar maker");
    engine.ok("rm -f maker");
    assert_eq!(engine.ok("run --name new --network none nest:1"), "1");
    engine.ok("export -o ~/new.tar new");
    let (source, new) = (tree_of(&engine, "source.tar"), tree_of(&engine, "new.tar"));
    for part in [
        "user.bird=[115, 111, 110, 103]",
        "security.capability",
        "srv/hard f 4750 0:0 2",
        "srv/pipe p 644 7:8",
    ] {
        assert!(source.contains(part), "no {part} in\n{source}");
    }
    // Made anew for each container, in directories whose times that changes.
    let made = [
        "/ ",
        "etc/ ",
        "etc/hosts ",
        "etc/hostname ",
        "etc/resolv.conf ",
    ];
    let kept = |listed: &str| -> Vec<String> {
        let lines = listed.lines().map(str::to_owned);
        lines
            .filter(|line| !made.iter().any(|start| line.starts_with(start)))
            .collect()
    };
    let (source, new) = (kept(&source), kept(&new));
    for (one, other) in source.iter().zip(&new) {
        assert_eq!(one, other);
    }
    assert_eq!(source.len(), new.len());
    assert_eq!(
        engine.ok("run --rm --network none nest:1 sh -c 'echo $NEST'"),
        "oak"
    );
    let history = engine.run("history --no-trunc nest:1");
    history.code(0).out("why").out("build-base busybox");
    assert_eq!(engine.look("nest:1", "/Author"), "heron");
    engine
        .run("commit -c 'RUN true' new x")
        .refused(1, "--change \"RUN true\"");
    assert_eq!(
        engine
            .look("nest:1", "/RootFS/Layers")
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

fn an_exported_container_is_imported() {
    let engine = Engine::new().with_base();
    changed(&engine, "nest:1");
    engine.ok("create --name egg --network none nest:1");
    engine.ok("export -o ~/egg.tar egg");
    let id =
        engine.ok("import --change 'CMD [\"sh\"]' --change 'ENV A=b' -m flat ~/egg.tar flat:1");
    assert_eq!(engine.look("flat:1", "/Id"), id.as_str());
    assert_eq!(
        engine.ok(&format!(
            "run --rm --network none flat:1 sh -c '{CHECK}; echo $A'"
        )),
        format!("{CHECKED}\nb")
    );
    assert_eq!(
        engine
            .look("flat:1", "/RootFS/Layers")
            .as_array()
            .unwrap()
            .len(),
        1
    );
    engine.run("history flat:1").code(0).out("flat");
    let archive = std::fs::read(engine.directory().join("egg.tar")).unwrap();
    let outcome = engine.run_with_input("import -", &archive);
    let second = outcome.ok().to_owned();
    engine.ok(&format!("image exists {second}"));
    engine.run("image exists nothing").code(1);
    engine
        .run("import -c 'FROM x' ~/egg.tar x")
        .refused(1, "--change");
    engine
        .run("import ~/nothing.tar x")
        .refused(1, "cannot open");
    std::fs::write(
        engine.directory().join("egg.tar"),
        &archive[..archive.len() / 2],
    )
    .unwrap();
    engine.run("import ~/egg.tar half").code(1);
    engine.run("images half").code(0);
    assert!(!engine.ok("images").contains("half"));
}

fn images_are_filtered() {
    let engine = Engine::new().with_base();
    engine.ok("create --name egg base");
    engine.ok("commit -c 'LABEL kind=nest' egg nest:1");
    engine.ok("commit -c 'LABEL kind=egg' egg loose");
    engine.ok("tag base localhost:1/team/base:2");
    engine.ok("rm egg");
    let quiet = |filter: &str| {
        engine
            .ok(&format!("images -q --no-trunc {filter}"))
            .lines()
            .count()
    };
    assert_eq!(quiet(""), 3);
    for (filter, count) in [
        ("-f reference=nest", 1),
        ("-f reference=*/team/base:*", 1),
        ("-f reference=b* -f reference=n*:1", 2),
        ("-f label=kind", 2),
        ("-f label=kind=egg", 1),
        ("-f label!=kind", 1),
        ("-f dangling=true", 0),
        ("-f before=nest:1", 1),
        ("-f since=base", 2),
        ("-f until=1h", 0),
    ] {
        assert_eq!(quiet(filter), count, "{filter}");
    }
    engine
        .run("images -f color=red")
        .refused(1, "invalid filter 'color'");
    engine.ok("tag base loose");
    assert_eq!(quiet("-f dangling=true"), 1);
    engine.run("image prune -f --filter label=none").code(0);
    assert_eq!(quiet("-f dangling=true"), 1);
    engine
        .run("image prune -f")
        .code(0)
        .out("Total reclaimed space");
    assert_eq!(quiet("-f dangling=true"), 0);
    engine.ok("image prune -a -f --filter label=kind=nest");
    assert_eq!(engine.ok("images -q nest"), "");
    engine.ok("create --name user base");
    engine.ok("image prune -a -f");
    assert_eq!(quiet(""), 1);
    engine.ok("rm user");
    engine.ok("image prune -af");
    assert_eq!(engine.ok("images -q"), "");
    assert_store_is_empty(&engine);
}

fn the_store_is_an_image_layout_to_others() {
    let engine = Engine::new().with_base();
    changed(&engine, "committed:1");
    engine.pull_as("busybox:layers", "pulled");
    engine.ok("save -o ~/a.tar committed:1");
    engine.ok("create --name egg --network none base");
    engine.ok("export -o ~/b.tar egg");
    engine.ok("import ~/b.tar imported:1");
    engine.ok("rm egg");
    engine.ok("rmi committed:1");
    engine.ok("load -i ~/a.tar");
    let root = engine.root().display().to_string();
    let home = engine.directory().display().to_string();
    for name in ["base:latest", "pulled:latest", "imported:1", "committed:1"] {
        let full = format!("docker.io/library/{name}");
        let seen = shell(&format!("skopeo inspect oci:{root}:{full}"));
        let seen: Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(
            seen["Digest"],
            engine.look(name, "/ManifestDigest"),
            "{name}"
        );
        let to = format!("docker-archive:{home}/copy.tar:{name}");
        shell(&format!("skopeo copy --quiet oci:{root}:{full} {to}"));
        let said = there(&engine, "load -i ~/copy.tar");
        assert_eq!(said, format!("Loaded image: {name}"));
        std::fs::remove_file(engine.directory().join("copy.tar")).unwrap();
    }
}

fn implied_directories_are_as_below() {
    let engine = Engine::new().with_base();
    let home = engine.directory().display().to_string();
    let root = engine.root().display().to_string();
    // umoci writes what has changed, and no parents that have not.
    shell(&format!(
        "skopeo copy --quiet oci:{root}:docker.io/library/base:latest oci:{home}/layout:base"
    ));
    shell(&format!(
        "umoci unpack --image {home}/layout:base {home}/bundle"
    ));
    std::fs::write(engine.directory().join("bundle/rootfs/tmp/file"), "x").unwrap();
    std::fs::write(engine.directory().join("bundle/rootfs/root/file"), "x").unwrap();
    shell(&format!(
        "touch -d 2001-02-03 {home}/bundle/rootfs/tmp {home}/bundle/rootfs/root"
    ));
    shell(&format!(
        "umoci repack --image {home}/layout:new {home}/bundle"
    ));
    shell(&format!(
        "skopeo copy --quiet oci:{home}/layout:new oci-archive:{home}/new.tar:umoci:1"
    ));
    // And one that has only the file.
    engine.ok("rmi base");
    engine.ok("load -i ~/new.tar");
    assert_eq!(
        engine.ok("run --rm --network none umoci:1 stat -c %a /tmp /root /tmp/file"),
        "1777\n700\n644"
    );
}
