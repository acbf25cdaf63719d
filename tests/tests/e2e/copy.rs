//! `cp` and `diff`: files in and out by docker's rules, and never a file of the host's that was not named.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use stack_tests::command::shell;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "copy",
        &[Need::Root],
        [
            rules_into_a_running_container,
            rules_into_a_stopped_container,
            rules_out_of_a_running_container,
            rules_out_of_a_stopped_container,
            links_in_containers_are_followed_inside,
            owners_modes_and_kinds_of_files,
            archives_on_standard_input_and_output,
            volumes_are_seen_of_running_and_stopped_containers,
            read_only_stays_read_only,
            what_cannot_be_copied_is_told,
            what_is_no_file_is_not_replaced,
            a_new_containers_volumes_have_the_images_files,
            nothing_of_the_host_is_read_while_links_are_swapped,
            nothing_of_the_host_is_written_while_links_are_swapped,
            nothing_in_the_container_is_executed,
            large_and_sparse_files,
            a_killed_copy_leaves_nothing,
            diff_tells_what_was_changed_added_deleted,
            a_committed_container_has_exactly_the_changes,
        ]
    )
}

/// What is expected of one case: files with their content (`path=content`, links `path->target`), or an error.
type Expected = Result<&'static [&'static str], &'static str>;

/// Source, target and what is then below the target's directory, beside what is there before.
const RULES: [(&str, &str, Expected); 33] = [
    ("file", "new", Ok(&["new=F"])),
    ("file", "new/", Err("no such directory")),
    ("file", "file", Ok(&["file=F"])),
    ("file", "file/", Err("not a directory")),
    ("file", "dir", Ok(&["dir/file=F"])),
    ("file", "dir/", Ok(&["dir/file=F"])),
    ("file", "dir/.", Ok(&["dir/file=F"])),
    ("file", "dir/old", Ok(&["dir/old=F"])),
    ("file", "dir/x", Ok(&["dir/x=F"])),
    ("file", "no/x", Err("no")),
    ("file", "file/x", Err("not a directory")),
    ("file", "link", Ok(&["dir/file=F"])),
    ("file", "filelink", Ok(&["file=F"])),
    ("file", "dangling", Ok(&["fresh=F"])),
    ("file", "loop", Err("loop")),
    ("file", "dir/../x", Ok(&["x=F"])),
    ("file/", "new", Err("not a directory")),
    ("file/.", "new", Err("not a directory")),
    ("file/x", "new", Err("not a directory")),
    ("nosuch", "new", Err("nosuch")),
    ("dir", "new", Ok(&["new/inner=I", "new/sub/deep=D"])),
    ("dir", "new/", Ok(&["new/inner=I", "new/sub/deep=D"])),
    ("dir", "no/new", Err("no")),
    ("dir", "file", Err("cannot copy directory to file")),
    ("dir", "dir", Ok(&["dir/dir/inner=I", "dir/dir/sub/deep=D"])),
    (
        "dir/",
        "dir",
        Ok(&["dir/dir/inner=I", "dir/dir/sub/deep=D"]),
    ),
    ("dir/.", "dir", Ok(&["dir/inner=I", "dir/sub/deep=D"])),
    ("dir/.", "new", Ok(&["new/inner=I", "new/sub/deep=D"])),
    ("dir/.", "file", Err("cannot copy directory to file")),
    (
        "clash",
        "dir",
        Err("cannot overwrite directory with non-directory"),
    ),
    ("link", "new", Ok(&["new->file"])),
    ("dirlink/.", "new", Ok(&["new/inner=I", "new/sub/deep=D"])),
    ("-L link", "new", Ok(&["new=F"])),
];

/// The sources of the table.
const SOURCES: &str = "mkdir -p dir/sub clash && cd . && printf F > file && printf I > dir/inner && printf D > dir/sub/deep && \
     ln -s file link && ln -s dir dirlink && rmdir clash && printf C > clash";
/// What is there in each target's directory before.
const TARGETS: [&str; 8] = [
    "dir/old=old",
    "dir/clash/x=x",
    "file=old",
    "link->dir",
    "filelink->file",
    "dangling->fresh",
    "loop->loop",
    "empty/",
];

fn target_script() -> String {
    format!(
        "for n in $(seq 0 {}); do mkdir -p $n/dir/clash $n/empty && printf old > $n/dir/old && printf x > $n/dir/clash/x && \
         printf old > $n/file && ln -s dir $n/link && ln -s file $n/filelink && ln -s fresh $n/dangling && ln -s loop $n/loop; done",
        RULES.len()
    )
}

/// Runs a script in a directory of the host that it makes.
#[track_caller]
fn host_script(directory: &Path, script: &str) {
    fs::create_dir_all(directory).unwrap();
    let status = std::process::Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .status();
    assert!(status.unwrap().success(), "{script}");
}

/// Everything below a directory in the table's form.
fn tree(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(here) = open.pop() {
        let mut is_empty = true;
        for entry in fs::read_dir(&here).unwrap() {
            is_empty = false;
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, format!("->{}", target.display()));
            } else {
                found.insert(name, format!("={}", fs::read_to_string(&path).unwrap()));
            }
        }
        if is_empty {
            let name = here.strip_prefix(directory).unwrap().display().to_string();
            found.insert(name, "/".to_owned());
        }
    }
    found
}

/// Runs the table; `line` makes the arguments of a case, `place` is where a case's target is found afterwards.
fn check_rules(
    engine: &Engine,
    line: impl Fn(&str, usize, &str) -> String,
    place: impl Fn(usize) -> PathBuf,
) {
    for (number, (source, target, expected)) in RULES.into_iter().enumerate() {
        let (flag, source) = match source.split_once(' ') {
            Some((flag, source)) => (flag, source),
            None => ("", source),
        };
        let outcome = engine.run(&format!("cp {flag} {}", line(source, number, target)));
        let mut wanted: BTreeMap<String, String> = BTreeMap::new();
        let added = expected.unwrap_or_default();
        for entry in TARGETS.iter().chain(added) {
            let cut = entry.find(['=', '-', '/']).unwrap();
            let cut = match entry.find(['=']).or_else(|| entry.find("->")) {
                Some(cut) => cut,
                None => cut,
            };
            wanted.insert(entry[..cut].to_owned(), entry[cut..].to_owned());
        }
        match expected {
            Ok(_) => drop(outcome.ok()),
            Err(text) => drop(outcome.refused(1, text)),
        }
        let place = place(number);
        assert_eq!(tree(&place), wanted, "cp {flag} {source} {target}");
    }
}

/// A container with the sources below `/s` and the targets below `/t`; running or not.
fn container_with_trees(engine: &Engine, running: bool) -> PathBuf {
    let script = format!(
        "mkdir /s /t && cd /s && {SOURCES} && cd /t && {}; echo ready; exec sleep 1000",
        target_script()
    );
    let mut command = engine.command("run -d --name web base sh -c");
    let id = String::from_utf8(command.arg(script).output().unwrap().stdout).unwrap();
    engine.wait_for_log("web", "ready");
    if !running {
        engine.ok("stop -t 0 web");
    }
    engine
        .root()
        .join("containers")
        .join(id.trim())
        .join("diff")
}

fn rules_into(running: bool) {
    let engine = Engine::new().with_base();
    let inside = container_with_trees(&engine, running);
    host_script(&engine.directory().join("s"), SOURCES);
    check_rules(
        &engine,
        |source, number, target| format!("~/s/{source} web:/t/{number}/{target}"),
        |number| inside.join("t").join(number.to_string()),
    );
}

fn rules_out_of(running: bool) {
    let engine = Engine::new().with_base();
    container_with_trees(&engine, running);
    host_script(&engine.directory().join("t"), &target_script());
    check_rules(
        &engine,
        |source, number, target| format!("web:/s/{source} ~/t/{number}/{target}"),
        |number| engine.directory().join("t").join(number.to_string()),
    );
}

fn rules_into_a_running_container() {
    rules_into(true);
}

fn rules_into_a_stopped_container() {
    rules_into(false);
}

fn rules_out_of_a_running_container() {
    rules_out_of(true);
}

fn rules_out_of_a_stopped_container() {
    rules_out_of(false);
}

fn links_in_containers_are_followed_inside() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    fs::write(host.join("secret"), "of the host").unwrap();
    fs::write(host.join("x"), "given").unwrap();
    engine.ok(
        "run --name web base sh -c 'mkdir -p /run/app /deep/er; rmdir /var/run 2>/dev/null; ln -s /run /var/run; \
         ln -s ../../../../../run /deep/up; echo inside > /run/app/file; ln -s ~/secret /leak; ln -s ~ /home-link; \
         ln -s /proc/self/root/etc /magic'",
    );
    for running in [false, true] {
        if running {
            engine.ok("rm web");
            engine.ok(
                "run -d --name web base sh -c 'mkdir -p /run/app /deep; ln -s /run /var/run; ln -s ../../../../../run /deep/up; \
                 echo inside > /run/app/file; ln -s ~/secret /leak; ln -s ~ /home-link; ln -s /proc/self/root/etc /magic; \
                 echo ready; exec sleep 1000'",
            );
            engine.wait_for_log("web", "ready");
        }
        for path in [
            "/var/run/app/file",
            "/deep/up/app/file",
            "var/run/app/file",
            "/../../run/app/file",
        ] {
            engine.ok(&format!("cp web:{path} ~/out"));
            assert_eq!(
                fs::read_to_string(host.join("out")).unwrap(),
                "inside\n",
                "{path}"
            );
        }
        engine.ok("cp ~/x web:/var/run/app/");
        engine.ok("cp ~/x web:/deep/up/app/y");
        engine.ok("cp web:/run/app ~/app");
        let names: Vec<String> = tree(&host.join("app")).into_keys().collect();
        assert_eq!(names, ["file", "x", "y"]);
        fs::remove_dir_all(host.join("app")).unwrap();
        // The link itself, never what it leads to on the host.
        engine.ok("cp web:/leak ~/link");
        assert_eq!(
            fs::read_link(host.join("link")).unwrap(),
            host.join("secret")
        );
        fs::remove_file(host.join("link")).unwrap();
        for line in [
            "cp -L web:/leak ~/link",
            "cp web:/leak/. ~/link",
            "cp web:/home-link/secret ~/link",
        ] {
            engine.run(line).code(1);
            assert!(!host.join("link").exists(), "{line}");
        }
        engine.run("cp ~/x web:/home-link/secret");
        engine.run("cp ~/x web:/leak");
        assert_eq!(
            fs::read_to_string(host.join("secret")).unwrap(),
            "of the host"
        );
    }
}

fn owners_modes_and_kinds_of_files() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    host_script(
        &host.join("s"),
        "echo x > f && chmod 640 f && chown 1000:1001 f && ln f hard && ln -s nowhere l && mkfifo p && mkdir d && chmod 2751 d && \
         echo s > suid && chown 1000:1000 suid && chmod 4755 suid && touch -d @1000000000 f",
    );
    engine.ok("run -d --name web base sleep 1000");
    engine.ok("cp ~/s web:/plain");
    engine.ok("cp -a ~/s web:/kept");
    let look = |path: &str| engine.ok(&format!("exec web stat -c %u:%g:%a:%Y {path}"));
    assert_eq!(look("/plain/f"), "0:0:640:1000000000");
    assert_eq!(look("/kept/f"), "1000:1001:640:1000000000");
    assert!(look("/kept/d").starts_with("0:0:2751:"));
    assert!(
        look("/plain/suid").starts_with("0:0:755:"),
        "root's set-id file it was not"
    );
    assert!(look("/kept/suid").starts_with("1000:1000:4755:"));
    assert_eq!(
        engine.ok("exec web sh -c 'stat -c %h /plain/hard; test -p /plain/p && readlink /plain/l'"),
        "2\nnowhere"
    );
    engine.ok("cp web:/kept ~/back");
    engine.ok("cp -a web:/kept ~/back-a");
    let owner = |path: &str| {
        let metadata = fs::metadata(host.join(path)).unwrap();
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    assert_eq!(owner("back/f"), (0, 0, 0o640));
    assert_eq!(owner("back/suid"), (0, 0, 0o755));
    assert_eq!(owner("back-a/f"), (1000, 1001, 0o640));
    assert_eq!(owner("back-a/suid"), (1000, 1000, 0o4755));
    assert!(
        fs::symlink_metadata(host.join("back/p"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    // Directories that are there already keep what they have.
    fs::set_permissions(host.join("back"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.join("back/d"), fs::Permissions::from_mode(0o711)).unwrap();
    engine.ok("cp web:/kept/. ~/back");
    assert_eq!(owner("back").2, 0o700);
    assert_eq!(owner("back/d").2, 0o711);
}

fn archives_on_standard_input_and_output() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    engine.ok("run -d --name web base sh -c 'mkdir -p /d/sub; echo 1 > /d/one; echo 2 > /d/sub/two; ln -s /d /link; exec sleep 1000'");
    let list = |source: &str| {
        let output = engine
            .command(&format!("cp web:{source} -"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut names: Vec<String> = tar::Archive::new(&output.stdout[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list("/d"), ["d/", "d/one", "d/sub/", "d/sub/two"]);
    assert_eq!(list("/d/."), ["./", "one", "sub/", "sub/two"]);
    assert_eq!(list("/d/one"), ["one"]);
    assert_eq!(list("/link"), ["link"]);

    let mut builder = tar::Builder::new(Vec::new());
    stack_tests::image::entry(&mut builder, "x/", 0o750, b"").unwrap();
    stack_tests::image::entry(&mut builder, "x/.wh.plain", 0o644, b"no whiteout").unwrap();
    let archive = builder.into_inner().unwrap();
    engine.run_with_input("cp - web:/d", &archive).ok();
    assert_eq!(engine.ok("exec web cat /d/x/.wh.plain"), "no whiteout");
    assert_eq!(engine.ok("exec web ls /d/one"), "/d/one");
    let gzip = {
        fs::write(host.join("a.tar"), &archive).unwrap();
        host_script(&host, "gzip a.tar");
        fs::read(host.join("a.tar.gz")).unwrap()
    };
    engine.run_with_input("cp - web:/link/sub", &gzip).ok();
    assert_eq!(engine.ok("exec web cat /d/sub/x/.wh.plain"), "no whiteout");
    engine
        .run_with_input("cp - web:/d/one", &archive)
        .refused(1, "must be a directory");
    engine
        .run_with_input("cp - web:/nosuch", &archive)
        .refused(1, "Could not find the file /nosuch in container web");
    // Names that lead out, by themselves or through links of the archive's own.
    fs::create_dir(host.join("victim")).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "out", host.join("victim"))
        .unwrap();
    stack_tests::image::entry(&mut builder, "out/file", 0o644, b"written").unwrap();
    let evil = builder.into_inner().unwrap();
    engine.run_with_input("cp - web:/d", &evil);
    assert_eq!(fs::read_dir(host.join("victim")).unwrap().count(), 0);
}

fn volumes_are_seen_of_running_and_stopped_containers() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    fs::create_dir_all(host.join("bound/sub")).unwrap();
    fs::write(host.join("x"), "copied").unwrap();
    fs::write(host.join("single"), "one file").unwrap();
    let flags = "-v data:/data -v ~/bound:/data/inner -v ~/single:/etc/single -v /anonymous --mount type=tmpfs,target=/memory";
    for state in ["created", "running", "stopped"] {
        match state {
            "created" => drop(engine.ok(&format!("create --name web {flags} base sleep 1000"))),
            "running" => drop(engine.ok("start web")),
            _ => drop(engine.ok("stop -t 0 web")),
        }
        for place in ["/data", "/data/inner", "/data/inner/sub", "/anonymous"] {
            engine.ok(&format!("cp ~/x web:{place}/{state}"));
            engine.ok(&format!("cp web:{place}/{state} ~/back"));
            assert_eq!(fs::read_to_string(host.join("back")).unwrap(), "copied");
        }
        let data = engine.root().join("volumes/data/_data");
        assert_eq!(fs::read_to_string(data.join(state)).unwrap(), "copied");
        assert_eq!(
            fs::read_to_string(host.join("bound/sub").join(state)).unwrap(),
            "copied"
        );
        engine.ok("cp web:/etc/single ~/back");
        assert_eq!(fs::read_to_string(host.join("back")).unwrap(), "one file");
    }
    engine.ok("cp web:/etc/hostname ~/back");
    engine.ok("start web");
    assert_eq!(
        engine.ok("exec web cat /anonymous/stopped /data/inner/sub/created"),
        "copiedcopied"
    );
    engine.ok("cp ~/x web:/memory/x");
    assert_eq!(engine.ok("exec web cat /memory/x"), "copied");
}

fn read_only_stays_read_only() {
    let engine = Engine::new().with_base();
    fs::write(engine.directory().join("x"), "x").unwrap();
    engine.ok("run -d --name web --read-only -v rw:/rw -v ro:/ro:ro base sleep 1000");
    for _ in 0..2 {
        engine.ok("cp ~/x web:/rw/x");
        engine
            .run("cp ~/x web:/ro/x")
            .code(1)
            .err("Read-only file system");
        engine
            .run("cp ~/x web:/x")
            .code(1)
            .err("Read-only file system");
        engine.run("stop -t 0 web");
    }
}

fn what_cannot_be_copied_is_told() {
    let engine = Engine::new().with_base();
    fs::write(engine.directory().join("x"), "x").unwrap();
    engine.ok("create --name web base true");
    for (line, error) in [
        (
            "web:/x other:/y",
            "copying between containers is not supported",
        ),
        ("~/x ~/y", "must specify at least one container source"),
        ("nosuch:/x ~/y", "no such container: nosuch"),
        (
            "web:/nosuch ~/y",
            "Could not find the file /nosuch in container web",
        ),
        ("web:/etc/passwd ~/no/such/y", "does not exist"),
        ("~/nosuch web:/", "no such file or directory"),
        (
            "~/x web:/no/such/y",
            "Could not find the file /no/such/ in container web",
        ),
        ("~/x web:", "container destination path can not be empty"),
    ] {
        engine.run(&format!("cp {line}")).refused(1, error);
    }
}

/// Exchanges `/work/p`, a directory, with a link to a directory of the host, as fast as it can.
const SWAPPER: &str = "mkdir -p /work/a && ln -s ~/host /work/b && echo inside > /work/a/file && cd /work && mv a p && echo ready && \
     while :; do mv p a; mv b p; mv p b; mv a p; done";

/// Whether an exchange by rename is what the swapper does is not the point: each look-up may meet either.
fn swapping(engine: &Engine) {
    fs::create_dir(engine.directory().join("host")).unwrap();
    fs::write(engine.directory().join("host/file"), "of the host").unwrap();
    engine.ok(&format!("run -d --name web base sh -c '{SWAPPER}'"));
    engine.wait_for_log("web", "ready");
}

fn nothing_of_the_host_is_read_while_links_are_swapped() {
    let engine = Engine::new().with_base();
    swapping(&engine);
    let mut read = 0;
    for number in 0..150 {
        let source = ["web:/work/p/file", "-L web:/work/p/file", "web:/work/p/."][number % 3];
        let outcome = engine.run(&format!("cp {source} ~/out"));
        for place in ["out", "out/file"] {
            if let Ok(content) = fs::read_to_string(engine.directory().join(place)) {
                assert_eq!(content, "inside\n", "{}", outcome.report());
                read += 1;
            }
        }
        drop(fs::remove_file(engine.directory().join("out")));
        drop(fs::remove_dir_all(engine.directory().join("out")));
    }
    assert!(
        read > 10,
        "only {read} copies hit the directory: the race was none"
    );
}

fn nothing_of_the_host_is_written_while_links_are_swapped() {
    let engine = Engine::new().with_base();
    swapping(&engine);
    fs::create_dir(engine.directory().join("tree")).unwrap();
    fs::write(engine.directory().join("tree/file"), "copied").unwrap();
    let mut written = 0;
    for number in 0..150 {
        let line = [
            "~/tree/file web:/work/p/file",
            "~/tree/. web:/work/p",
            "~/tree web:/work/p",
        ][number % 3];
        written += i32::from(engine.run(&format!("cp {line}")).code == 0);
    }
    assert!(
        written > 10,
        "only {written} copies hit the directory: the race was none"
    );
    let host = tree(&engine.directory().join("host"));
    assert_eq!(host.len(), 1, "{host:?}");
    assert_eq!(host["file"], "=of the host");
}

fn nothing_in_the_container_is_executed() {
    let engine = Engine::new().with_base();
    // Helpers that others have been known to run from the container's side of a chroot.
    engine.ok(
        "run -d --name web base sh -c 'for p in xz unpigz gzip tar bzip2 ps; do rm -f /bin/$p; \
         printf \"#!/bin/sh\\ntouch /executed\\n\" > /bin/$p; chmod 755 /bin/$p; done; mkdir -p /lib /etc; \
         echo \"passwd: files evil\" > /etc/nsswitch.conf; echo x > /lib/libnss_evil.so.2; echo ready; exec sleep 1000'",
    );
    engine.wait_for_log("web", "ready");
    let host = engine.directory().to_owned();
    fs::create_dir(host.join("s")).unwrap();
    fs::write(host.join("s/f"), "x").unwrap();
    host_script(&host, "tar czf a.tgz s; tar cJf a.txz s 2>/dev/null || :");
    let gzip = fs::read(host.join("a.tgz")).unwrap();
    engine.run_with_input("cp - web:/tmp", &gzip).ok();
    if let Ok(xz) = fs::read(host.join("a.txz")) {
        engine
            .run_with_input("cp - web:/tmp", &xz)
            .code(1)
            .err("xz");
    }
    engine.ok("cp ~/s web:/tmp/t");
    engine.ok("cp web:/tmp/t ~/back");
    engine.run("exec web ls /executed").code(1);
}

fn large_and_sparse_files() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    let mut file = fs::File::create(host.join("big")).unwrap();
    file.write_all(b"start").unwrap();
    file.set_len(300 << 20).unwrap();
    drop(file);
    engine.ok("run -d --name web base sleep 1000");
    let mut command = engine.command("cp ~/big web:/big");
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        most = most.max(kib.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(most < 64 << 10, "{most} KiB of memory for a copy");
    engine.ok("cp web:/big ~/back");
    let back = fs::metadata(host.join("back")).unwrap();
    assert_eq!(back.len(), 300 << 20);
    assert!(
        back.blocks() * 512 < 8 << 20,
        "{} blocks: the hole is gone",
        back.blocks()
    );
}

fn a_killed_copy_leaves_nothing() {
    let engine = Engine::new().with_base();
    let host = engine.directory().to_owned();
    fs::File::create(host.join("big"))
        .unwrap()
        .set_len(2 << 30)
        .unwrap();
    engine.ok("create --name web -v data:/data -v ~:/bound base sleep 1000");
    for line in ["cp ~/big web:/data/big", "cp web:/bound/big ~/out"] {
        let mut child = engine.command(line).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let merged = format!("{}/containers", engine.root().display());
        assert!(
            !table.contains(&merged),
            "a stopped container is not mounted where others see it"
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // The lock went with it, and so did the mounts.
    engine.ok("start web");
    engine.ok("rm -f -v web");
    symlink("x", host.join("done")).unwrap();
}

/// What a container does to its image's files, of every kind.
const WORK: &str = "mkdir -p /new/deep && echo x > /new/deep/file && echo y:x:77:77::/:/bin/sh >> /etc/passwd && rm /bin/ls /etc/group && \
     rm -r /old/gone && chmod 700 /old/mode && rm -r /old/again && mkdir /old/again && echo z > /old/again/z && \
     mv /old/moved /old/moved-here && ln -s x /old/link && touch /tmp/t && rm /tmp/t";

/// An image `app` that there is something to change in.
fn with_old_files(engine: &Engine) {
    engine.ok(
        "run --name maker base sh -c 'mkdir -p /old/gone /old/mode /old/again/a /old/moved/sub /old/same; \
         echo 1 > /old/gone/f; echo 2 > /old/again/f; echo 3 > /old/moved/sub/f; echo 4 > /old/same/f; touch /tmp/keep'",
    );
    engine.ok("commit maker app");
    engine.ok("rm maker");
}

fn diff_tells_what_was_changed_added_deleted() {
    let engine = Engine::new().with_base();
    with_old_files(&engine);
    engine.ok("create --name idle app true");
    assert_eq!(engine.ok("diff idle"), "");
    engine.ok("start -a idle");
    assert_eq!(
        engine.ok("diff idle"),
        "",
        "what is made to mount on is no change"
    );
    let mut command = engine.command("run --name web app sh -c");
    assert!(command.arg(WORK).status().unwrap().success());
    let expected = "C /bin\nD /bin/ls\nC /etc\nD /etc/group\nC /etc/passwd\nA /new\nA /new/deep\nA /new/deep/file\nC /old\n\
                    C /old/again\nD /old/again/a\nD /old/again/f\nA /old/again/z\nD /old/gone\nA /old/link\nC /old/mode\n\
                    D /old/moved\nA /old/moved-here\nA /old/moved-here/sub\nA /old/moved-here/sub/f\nC /tmp";
    assert_eq!(engine.ok("diff web"), expected);
    let seen: serde_json::Value =
        serde_json::from_str(&engine.ok("diff --format json web")).unwrap();
    assert_eq!(seen["deleted"][0], "/bin/ls");
    assert_eq!(seen["added"][0], "/new");
    assert_eq!(seen["changed"][0], "/bin");
    engine
        .run("diff nosuch")
        .refused(1, "no such container: nosuch");
}

/// Everything of a container's files, by path: kind, mode, owner, time, attributes and content.
fn whole(engine: &Engine, container: &str) -> BTreeMap<String, String> {
    use std::io::Read;
    let output = engine
        .command(&format!("cp {container}:/ -"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut archive = tar::Archive::new(&output.stdout[..]);
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut attributes = BTreeMap::new();
        for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            attributes.insert(
                extension.key_bytes().to_vec(),
                extension.value_bytes().to_vec(),
            );
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        // Directories of the files that the engine makes get a new time when those are made.
        let time = if ["./", "etc/"].contains(&name.as_str()) {
            0
        } else {
            header.mtime().unwrap()
        };
        if ["./", "etc/"].contains(&name.as_str()) {
            attributes.clear();
        }
        let line = format!(
            "{:?} {:o} {}:{} {time} {:?} {attributes:?} {content:?}",
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            entry.link_name().unwrap(),
        );
        found.insert(name, line);
    }
    for name in ["resolv.conf", "hostname", "hosts"] {
        found.remove(&format!("etc/{name}"));
    }
    found
}

fn a_committed_container_has_exactly_the_changes() {
    let engine = Engine::new().with_base();
    with_old_files(&engine);
    let mut command = engine.command("run --name web app sh -c");
    let script = format!(
        "{WORK} && chown 1000:1001 /new/deep/file && ln /new/deep/file /new/hard && mkfifo /new/fifo && chmod 4711 /bin/busybox"
    );
    assert!(command.arg(script).status().unwrap().success());
    engine.ok("commit web changed");
    engine.ok("run --name second changed true");
    let (first, second) = (whole(&engine, "web"), whole(&engine, "second"));
    assert!(
        first.len() > 100 && first.contains_key("new/fifo"),
        "{:?}",
        first.keys()
    );
    for (name, line) in &first {
        assert_eq!(second.get(name), Some(line), "{name}");
    }
    assert_eq!(first.len(), second.len());
    assert_eq!(engine.ok("diff second"), "");
}

/// `cp web:/x /dev/null` must not leave a host without its null device.
fn what_is_no_file_is_not_replaced() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name bird --network none base sleep 1000");
    let pipe = engine.directory().join("pipe");
    shell(&format!("mkfifo {}", pipe.display()));
    let refusal = "neither a directory nor a regular file";
    engine.run("cp bird:/etc/group ~/pipe").refused(1, refusal);
    engine
        .run("cp bird:/etc/group /dev/null")
        .refused(1, refusal);
    engine
        .run("cp /etc/hostname bird:/dev/null")
        .refused(1, refusal);
    let kind = std::fs::symlink_metadata(pipe).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&kind));
    // What a container's processes can set is not believed.
    engine.ok("exec bird sh -c 'mkdir /deep'");
    let upper = engine.look("bird", "/GraphDriver/Data/UpperDir");
    let deep = format!("{}/deep", upper.as_str().unwrap());
    let flags = rustix::fs::XattrFlags::empty();
    let value = b"/../../../../../../etc";
    rustix::fs::setxattr(deep, "user.overlay.redirect", value, flags).unwrap();
    assert_eq!(
        engine
            .ok("diff bird")
            .lines()
            .filter(|line| line.contains("/deep"))
            .count(),
        1
    );
}

fn a_new_containers_volumes_have_the_images_files() {
    let engine = Engine::new().with_base();
    engine.ok("create --name bird -v nest:/etc base true");
    engine.ok("cp bird:/etc/group ~/group");
    assert!(
        std::fs::read_to_string(engine.directory().join("group"))
            .unwrap()
            .contains("root")
    );
    engine.ok("rm -v bird");
    engine.ok("volume rm nest");
}
