//! Volumes: what is written there stays, is shared, and goes only when it is told to.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "volumes",
        &[Need::Root],
        [
            a_file_written_inside_is_there_outside_and_in_a_second_container,
            create_list_inspect_remove,
            a_volume_in_use_is_not_removed,
            prune_takes_anonymous_ones_unless_told_to_take_all,
            anonymous_volumes_go_with_rm_v_and_rm_and_stay_otherwise,
            an_empty_volume_is_filled_with_the_images_files_once,
            links_of_the_image_lead_to_nothing_of_the_host,
            bind_mounts_of_all_kinds,
            read_only_reaches_mounts_below,
            propagation_reaches_the_host_when_asked,
            errors_are_dockers,
            mount_in_full,
            part_of_a_volume,
            an_image_is_mounted,
            tmpfs_of_both_spellings,
            volumes_from_another_container,
            read_only_root_with_writable_volumes,
            volumes_mounted_on_use,
            the_hosts_own_mounts_stay,
            inspect_shows_mounts_as_docker_does,
            an_images_volume_is_made_filled_and_removed,
            killed_commands_leave_whole_volumes,
            many_at_once_get_one_volume,
        ]
    )
}

/// The directory of a volume.
fn data(engine: &Engine, name: &str) -> PathBuf {
    engine.root().join("volumes").join(name).join("_data")
}

/// Names of all volumes.
fn names(engine: &Engine, filters: &str) -> Vec<String> {
    let text = engine.ok(&format!("volume ls -q {filters}"));
    text.lines().map(str::to_owned).collect()
}

/// The one entry of `Mounts` at a destination.
#[track_caller]
fn mount_at(engine: &Engine, container: &str, destination: &str) -> Value {
    let list = engine.look(container, "/Mounts");
    let entries = list.as_array().unwrap().iter();
    let mut found = entries.filter(|entry| entry["Destination"] == destination);
    let entry = found.next().unwrap_or_else(|| panic!("{list:#}")).clone();
    assert!(found.next().is_none(), "{list:#}");
    entry
}

fn a_file_written_inside_is_there_outside_and_in_a_second_container() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name first -v data:/data -v ~/host:/host base sleep 1000");
    engine.ok("exec first sh -c 'echo named > /data/file; echo bound > /host/file'");
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    assert_eq!(read(data(&engine, "data").join("file")), "named\n");
    assert_eq!(read(engine.directory().join("host/file")), "bound\n");
    let seen = engine.ok(
        "run --rm -v data:/else -v ~/host:/host base sh -c 'cat /else/file /host/file; echo back > /else/back'",
    );
    assert_eq!(seen, "named\nbound");
    assert_eq!(engine.ok("exec first cat /data/back"), "back");
    engine.ok("rm -f -v first");
    assert_eq!(read(data(&engine, "data").join("file")), "named\n");
}

fn create_list_inspect_remove() {
    let engine = Engine::new();
    assert_eq!(engine.ok("volume create --label tier=db data"), "data");
    assert_eq!(engine.ok("volume create data"), "data");
    let made_up = engine.ok("volume create");
    assert_eq!(made_up.len(), 64);
    assert_eq!(names(&engine, "--filter label=tier"), ["data"]);
    assert_eq!(names(&engine, "--filter label=tier=db"), ["data"]);
    assert!(names(&engine, "--filter label=tier=web").is_empty());
    assert_eq!(names(&engine, "--filter name=at"), ["data"]);
    assert_eq!(names(&engine, "--filter driver=local").len(), 2);
    assert_eq!(names(&engine, "--filter dangling=true").len(), 2);
    engine
        .run("volume ls")
        .out("DRIVER")
        .out("VOLUME NAME")
        .out("local");
    let seen: Value = serde_json::from_str(&engine.ok("volume inspect data")).unwrap();
    assert_eq!(seen[0]["Name"], "data");
    assert_eq!(seen[0]["Driver"], "local");
    assert_eq!(seen[0]["Labels"], json!({"tier": "db"}));
    assert_eq!(seen[0]["Options"], Value::Null);
    assert_eq!(seen[0]["Mountpoint"], json!(data(&engine, "data")));
    engine.run("volume exists data").code(0);
    engine.run("volume exists nosuch").code(1);
    assert_eq!(engine.ok("volume rm data"), "data");
    engine
        .run("volume rm data")
        .refused(1, "get data: no such volume");
    engine.run("volume rm -f data").code(0);
    engine
        .run("volume inspect data")
        .code(1)
        .err("get data: no such volume");
    for bad in ["../x", "a/b", ".x", "-x.", "''x/"] {
        let outcome = engine.run(&format!("volume create -- {bad}"));
        outcome.refused(1, "includes invalid characters for a local volume name");
    }
    engine
        .run("volume create -d cloud x")
        .refused(1, "plugin \"cloud\" not found");
}

fn a_volume_in_use_is_not_removed() {
    let engine = Engine::new().with_base();
    let id = engine.ok("create --name user -v data:/data base true");
    engine
        .run("volume rm data")
        .refused(1, &format!("remove data: volume is in use - [{id}]"));
    engine.run("volume rm -f data").code(1);
    engine.run("volume prune -a -f").code(0).out("0B");
    assert_eq!(names(&engine, "--filter dangling=false"), ["data"]);
    engine.ok("rm user");
    engine.ok("volume rm data");
}

fn prune_takes_anonymous_ones_unless_told_to_take_all() {
    let engine = Engine::new().with_base();
    engine.ok("volume create --label keep=1 kept");
    engine.ok("volume create other");
    let anonymous = engine.ok("volume create");
    engine.ok("run --name used -v used:/a -v /b base sh -c 'echo 12345 > /b/x'");
    engine.run("volume prune -f").out(&anonymous).out("Total");
    assert_eq!(names(&engine, "").len(), 4);
    engine.ok("rm used");
    let freed = engine.run("volume prune -f");
    freed.out("Total reclaimed space: 6B");
    engine.ok("volume prune -a -f --filter label!=keep");
    assert_eq!(names(&engine, ""), ["kept"]);
    engine.ok("volume prune -f --filter all=true");
    assert!(names(&engine, "").is_empty());
}

fn anonymous_volumes_go_with_rm_v_and_rm_and_stay_otherwise() {
    let engine = Engine::new().with_base();
    engine.ok("run --rm -v /one -v named:/n base touch /one/x");
    assert_eq!(names(&engine, ""), ["named"]);
    engine.ok("run --name one -v /one -v named:/n base touch /one/x");
    engine.ok("rm one");
    let left = names(&engine, "--filter dangling=true");
    assert_eq!(left.len(), 2, "{left:?}");
    engine.ok("volume prune -f");
    engine.ok("create --name one -v /one -v named:/n base true");
    assert_eq!(names(&engine, "").len(), 2, "made with the container");
    // Shared with another container, it stays until that one goes.
    engine.ok("create --name two --volumes-from one base true");
    engine.ok("rm -v one");
    assert_eq!(names(&engine, "").len(), 2);
    engine.ok("rm -v two");
    assert_eq!(names(&engine, ""), ["named"]);
}

/// An image `app` with files where volumes go.
fn with_app(engine: &Engine) {
    engine.ok(
        "run --name maker base sh -c 'mkdir -p /srv/sub /srv/empty; echo one > /srv/one; echo two > /srv/sub/two; \
         chown -R 1000:1001 /srv; chmod 2750 /srv; mkdir -p /leak; ln -s /etc /leak/abs; ln -s ../../../../../etc /leak/up'",
    );
    engine.ok("commit maker app");
    engine.ok("rm maker");
}

fn an_empty_volume_is_filled_with_the_images_files_once() {
    let engine = Engine::new().with_base();
    with_app(&engine);
    engine.ok("volume create early");
    for name in ["early", "late"] {
        let seen = engine.ok(&format!(
            "run --rm -v {name}:/srv app sh -c 'cat /srv/one /srv/sub/two; stat -c %u:%g:%a /srv; ls -A /srv | wc -l'"
        ));
        assert_eq!(seen, "one\ntwo\n1000:1001:2750\n3", "{name}");
    }
    engine.ok("run --rm -v late:/srv base sh -c 'rm -r /srv/sub; echo mine > /srv/one'");
    let seen = engine.ok("run --rm -v late:/srv app sh -c 'cat /srv/one; ls -A /srv | wc -l'");
    assert_eq!(seen, "mine\n2", "what is there stays as it is");
    // Emptied, and used by a new container: filled anew, as docker does.
    engine.ok("run --rm -v late:/v base sh -c 'rm -r /v/*'");
    assert_eq!(engine.ok("run --rm -v late:/srv app cat /srv/one"), "one");
    for mount in [
        "-v none:/srv:nocopy",
        "--mount source=none2,target=/srv,volume-nocopy",
        "-v ~/host:/srv",
    ] {
        let seen = engine.ok(&format!("run --rm {mount} app sh -c 'ls -A /srv | wc -l'"));
        assert_eq!(seen, "0", "{mount}");
    }
    // A container that runs already with the empty volume sees the files too.
    engine.ok("run -d --name early-bird -v shared:/x base sleep 1000");
    engine.ok("run --rm -v shared:/srv app true");
    assert_eq!(engine.ok("exec early-bird cat /x/sub/two"), "two");
    // Emptied between two starts of one container, it stays empty.
    engine.ok("run --name again -v again:/srv app sh -c 'rm -rf /srv/*'");
    engine.ok("start -a again");
    assert!(
        fs::read_dir(data(&engine, "again"))
            .unwrap()
            .next()
            .is_none()
    );
}

fn links_of_the_image_lead_to_nothing_of_the_host() {
    let engine = Engine::new().with_base();
    with_app(&engine);
    let secret = engine.directory().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("host-only"), "secret").unwrap();
    engine.ok(
        "run --name maker base sh -c 'ln -s ~/secret /out; ln -s ../../../../../../..~/secret /up'",
    );
    engine.ok("commit maker evil");
    engine.ok("rm maker");
    for place in ["/out", "/up", "/../../../..~/secret", "/out/../secret"] {
        engine.run(&format!("run --rm -v v:{place} evil true"));
        let filled = fs::read_dir(data(&engine, "v")).unwrap().count();
        assert_eq!(filled, 0, "{place}");
    }
    // Inside the image the same links are followed.
    let seen = engine.ok("run --rm -v w:/leak/abs app cat /etc/passwd");
    assert!(seen.contains("root"), "{seen}");
    assert!(data(&engine, "w").join("passwd").exists());
}

fn bind_mounts_of_all_kinds() {
    let engine = Engine::new().with_base();
    let home = engine.directory().to_owned();
    fs::write(home.join("file"), "content").unwrap();
    fs::create_dir(home.join("real")).unwrap();
    fs::write(home.join("real/x"), "through a link").unwrap();
    symlink("real", home.join("link")).unwrap();
    fs::create_dir(home.join("with space:and colon, comma")).unwrap();
    fs::write(home.join("with space:and colon, comma/x"), "odd").unwrap();
    let lines = [
        (
            "-v ~/file:/deep/down/file",
            "cat /deep/down/file",
            "content",
        ),
        ("-v ~/file:/etc/passwd:ro", "cat /etc/passwd", "content"),
        ("-v ~/link:/d", "cat /d/x", "through a link"),
        (
            "--mount 'type=bind,\"source=~/with space:and colon, comma\",target=/d d'",
            "cat '/d d/x'",
            "odd",
        ),
        (
            "-v ~/new/deep:/d -v ~/real:/d/inner",
            "cat /d/inner/x",
            "through a link",
        ),
        (
            "-v ~/real:/d/inner -v ~/new/deep:/d",
            "cat /d/inner/x",
            "through a link",
        ),
    ];
    for (flags, command, seen) in lines {
        assert_eq!(
            engine.ok(&format!("run --rm {flags} base {command}")),
            seen,
            "{flags}"
        );
    }
    assert_eq!(
        fs::metadata(home.join("new/deep")).unwrap().mode() & 0o777,
        0o755
    );
    let mut relative = engine.command("run --rm -v ./real:/d -v ../nothere:/e base cat /d/x");
    let output = relative
        .current_dir(home.join("real").parent().unwrap())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through a link");
    drop(fs::remove_dir(home.parent().unwrap().join("nothere")));
    // Attributes, ownership, and changes that are not kept.
    stack_tests::executable::script(&home.join("real/script"), "#!/bin/sh\necho ran\n");
    engine
        .run("run --rm -v ~/real:/d:noexec base /d/script")
        .code(126);
    assert_eq!(engine.ok("run --rm -v ~/real:/d base /d/script"), "ran");
    engine.ok("run --rm -u 1000:1001 -v ~/real:/d:U base touch /d/by-user");
    let owner = fs::metadata(home.join("real/x")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1000, 1001));
    assert_eq!(fs::symlink_metadata(home.join("link")).unwrap().uid(), 0);
    let seen =
        engine.ok("run --rm -v ~/real:/d:O base sh -c 'echo new > /d/x; rm /d/script; cat /d/x'");
    assert_eq!(seen, "new");
    assert_eq!(
        fs::read_to_string(home.join("real/x")).unwrap(),
        "through a link"
    );
    assert!(home.join("real/script").exists());
}

fn read_only_reaches_mounts_below() {
    let engine = Engine::new().with_base();
    let below = engine.directory().join("top/below");
    fs::create_dir_all(&below).unwrap();
    rustix_mount_tmpfs(&below);
    let try_write = |flags: &str, path: &str| {
        let line = format!("run --rm {flags} base touch {path}");
        engine.run(&line).code == 0
    };
    assert!(try_write("-v ~/top:/d", "/d/below/x"));
    assert!(!try_write("-v ~/top:/d:ro", "/d/x"));
    assert!(!try_write("-v ~/top:/d:ro", "/d/below/x"));
    let mount = "--mount type=bind,src=~/top,dst=/d,ro";
    assert!(!try_write(mount, "/d/below/x"));
    assert!(try_write(
        &format!("{mount},bind-recursive=writable"),
        "/d/below/x"
    ));
    assert!(!try_write(
        &format!("{mount},bind-recursive=writable"),
        "/d/x"
    ));
    let seen = engine.ok(&format!(
        "run --rm {mount},bind-recursive=disabled base ls /d/below"
    ));
    assert_eq!(seen, "");
    let forced = format!("{mount},bind-recursive=readonly,bind-propagation=rprivate");
    assert!(!try_write(&forced, "/d/below/x"));
    nix::mount::umount(&below).unwrap();
}

fn rustix_mount_tmpfs(path: &std::path::Path) {
    let none: Option<&str> = None;
    nix::mount::mount(
        Some("tmpfs"),
        path,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        none,
    )
    .unwrap();
}

fn propagation_reaches_the_host_when_asked() {
    let engine = Engine::new().with_base();
    let shared = engine.directory().join("shared");
    fs::create_dir_all(shared.join("in")).unwrap();
    fs::create_dir_all(shared.join("out")).unwrap();
    let none: Option<&str> = None;
    use nix::mount::{MsFlags, mount};
    mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
    engine.ok("run -d --name slave -v ~/shared:/d:rslave base sleep 1000");
    engine.ok("run -d --name apart -v ~/shared:/d base sleep 1000");
    engine.ok("run -d --name both --privileged -v ~/shared:/d:rshared base sleep 1000");
    rustix_mount_tmpfs(&shared.join("in"));
    fs::write(shared.join("in/file"), "new mount").unwrap();
    assert_eq!(engine.ok("exec slave cat /d/in/file"), "new mount");
    engine.run("exec apart cat /d/in/file").code(1);
    engine.ok("exec both sh -c 'mount -t tmpfs none /d/out && echo x > /d/out/file'");
    assert_eq!(fs::read_to_string(shared.join("out/file")).unwrap(), "x\n");
    assert_eq!(engine.ok("exec slave cat /d/out/file"), "x");
    assert_eq!(mount_at(&engine, "slave", "/d")["Propagation"], "rslave");
    for place in ["in", "out", ""] {
        let path = shared.join(place);
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    engine.ok("rm -f slave apart both");
}

fn errors_are_dockers() {
    let engine = Engine::new().with_base();
    for (flags, error) in [
        ("-v a:/x -v b:/x", "Duplicate mount point: /x"),
        ("-v a:/x --tmpfs /x", "Duplicate mount point: /x"),
        ("-v a:/x/ --mount target=/x", "Duplicate mount point: /x"),
        (
            "-v a:b",
            "invalid mount path: 'b' mount path must be absolute",
        ),
        ("-v /a:/", "destination can't be '/'"),
        ("-v /a:/b:wrong", "invalid mode: wrong"),
        (
            "-v a/b:/c",
            "includes invalid characters for a local volume name",
        ),
        ("-v ../../etc/x:y:/c", "must be absolute"),
        (
            "--mount type=bind,source=/nosuch/place,target=/x",
            "invalid mount config for type \"bind\": bind source path does not exist: /nosuch/place",
        ),
        ("--mount type=odd,target=/x", "mount type unknown: \"odd\""),
        ("--mount type=bind,source=/tmp", "target is required"),
        (
            "--mount type=bind,source=/tmp,target=/x,colour=red",
            "unknown option 'colour' in 'colour=red'",
        ),
        (
            "--mount type=tmpfs,target=/x,volume-nocopy",
            "cannot mix 'volume-*' options with mount type 'tmpfs'",
        ),
        ("--volumes-from nosuch", "no such container: nosuch"),
        ("--tmpfs relative", "relative"),
        ("--tmpfs /x:colour=red", "colour=red"),
    ] {
        engine
            .run(&format!("run --rm {flags} base true"))
            .refused(125, error);
    }
    assert!(
        names(&engine, "").is_empty(),
        "nothing is left of refused ones"
    );
    assert_eq!(engine.ok("ps -aq"), "");
}

fn mount_in_full() {
    let engine = Engine::new().with_base();
    engine.ok(
        "run --rm --mount type=volume,source=data,destination=/d,volume-label=a=b,volume-driver=local base touch /d/x",
    );
    let seen: Value = serde_json::from_str(&engine.ok("volume inspect data")).unwrap();
    assert_eq!(seen[0]["Labels"], json!({"a": "b"}));
    engine
        .run("run --rm --mount source=data,dst=/d,readonly base touch /d/y")
        .code(1)
        .err("Read-only file system");
    engine.ok("run --rm --mount source=data,dst=/d,ro=false base touch /d/y");
    engine.ok("run --name anonymous --mount dst=/d base touch /d/x");
    assert_eq!(names(&engine, "").len(), 2);
    engine.ok("rm -v anonymous");
    assert_eq!(names(&engine, ""), ["data"]);
}

fn part_of_a_volume() {
    let engine = Engine::new().with_base();
    engine.ok(
        "run --rm -v data:/d base sh -c 'mkdir -p /d/a/b; echo deep > /d/a/b/x; ln -s / /d/root; ln -s /a /d/inside'",
    );
    let mount = |path: &str| format!("--mount source=data,dst=/part,volume-subpath={path}");
    for path in ["a/b", "inside/b", "../../a/b"] {
        let outcome = engine.run(&format!("run --rm {} base cat /part/x", mount(path)));
        assert_eq!(outcome.ok(), "deep", "{path}");
    }
    let top = engine.ok(&format!("run --rm {} base ls /part", mount("root")));
    assert_eq!(
        top, "a\ninside\nroot",
        "the volume's own root, not the host's"
    );
    engine
        .run(&format!("run --rm {} base true", mount("nosuch")))
        .code(125)
        .err("nosuch");
}

fn an_image_is_mounted() {
    let engine = Engine::new().with_base();
    with_app(&engine);
    for image in ["base", "app"] {
        let mount = format!("--mount type=image,source={image},target=/image");
        engine.ok(&format!("run --rm {mount} base ls /image/bin/busybox"));
        engine
            .run(&format!("run --rm {mount} base touch /image/x"))
            .code(1)
            .err("Read-only");
    }
    let seen = engine.ok("run --rm --mount type=image,source=app,target=/image,rw base sh -c 'rm /image/srv/one; ls -A /image/srv'");
    assert_eq!(seen, "empty\nsub");
    engine.ok(
        "create --name user --mount type=image,source=app,target=/image base cat /image/srv/one",
    );
    engine
        .run("rmi app")
        .code(1)
        .err("is being used by container");
    assert_eq!(engine.ok("start -a user"), "one");
    assert_eq!(mount_at(&engine, "user", "/image")["Type"], "image");
    engine.ok("rm user");
    engine.ok("rmi app");
}

fn tmpfs_of_both_spellings() {
    let engine = Engine::new().with_base();
    let look = "sh -c 'grep \" /m \" /proc/mounts; stat -c %a /m'";
    let seen = engine.ok(&format!(
        "run --rm --tmpfs /m:size=1m,mode=700,exec base {look}"
    ));
    assert!(
        seen.contains("size=1024k") && seen.ends_with("700"),
        "{seen}"
    );
    assert!(!seen.contains("noexec"), "{seen}");
    let seen = engine.ok(&format!(
        "run --rm --mount type=tmpfs,target=/m,tmpfs-size=1m,tmpfs-mode=1770 base {look}"
    ));
    for word in ["size=1024k", "nosuid", "nodev", "noexec", "1770"] {
        assert!(seen.contains(word), "{word} in {seen}");
    }
    let seen = engine.ok(&format!(
        "run --rm --mount type=tmpfs,target=/m base {look}"
    ));
    assert!(
        seen.contains("tmpfs /m tmpfs rw,nosuid,nodev,noexec"),
        "{seen}"
    );
    engine
        .run("run --rm --mount type=tmpfs,target=/m,readonly base touch /m/x")
        .code(1)
        .err("Read-only");
}

fn volumes_from_another_container() {
    let engine = Engine::new().with_base();
    engine.ok("run --name owner -v named:/n -v /anonymous -v ~/host:/h base sh -c 'echo 1 > /n/x; echo 2 > /anonymous/x; echo 3 > /h/x'");
    let seen = engine.ok("run --rm --volumes-from owner base cat /n/x /anonymous/x /h/x");
    assert_eq!(seen, "1\n2\n3");
    engine
        .run("run --rm --volumes-from owner:ro base touch /h/y")
        .code(1)
        .err("Read-only");
    let seen = engine.ok("run --rm --volumes-from owner -v other:/n base ls /n");
    assert_eq!(seen, "", "what is said for the container itself wins");
    assert_eq!(
        engine.ok("run --rm --volumes-from owner base cat /anonymous/x"),
        "2"
    );
}

fn read_only_root_with_writable_volumes() {
    let engine = Engine::new().with_base();
    engine.ok("run --rm --read-only -v data:/d --tmpfs /t -v ~/h:/h base touch /d/x /t/x /h/x");
    engine
        .run("run --rm --read-only -v data:/d base touch /x")
        .code(1)
        .err("Read-only");
}

fn volumes_mounted_on_use() {
    let engine = Engine::new().with_base();
    let device = engine.directory().join("device");
    fs::create_dir(&device).unwrap();
    fs::write(device.join("x"), "elsewhere").unwrap();
    engine.ok("volume create -o type=none -o device=~/device -o o=bind bound");
    engine.ok("volume create -o type=tmpfs -o device=tmpfs -o o=size=1m,uid=1000 memory");
    let is_mounted = |name: &str| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(&format!(" {} ", data(&engine, name).display()))
    };
    assert_eq!(engine.ok("run --rm -v bound:/d base cat /d/x"), "elsewhere");
    assert!(!is_mounted("bound"));
    engine.ok("run -d --name one -v memory:/m base sh -c 'echo shared > /m/x; exec sleep 1000'");
    engine.ok("run -d --name two -v memory:/m -v bound:/d base sleep 1000");
    assert_eq!(engine.ok("exec two cat /m/x"), "shared");
    assert!(is_mounted("memory"));
    engine.ok("rm -f one");
    assert!(is_mounted("memory"), "its second user is still there");
    assert_eq!(engine.ok("exec two cat /m/x"), "shared");
    engine.ok("stop -t 0 two");
    assert!(!is_mounted("memory") && !is_mounted("bound"));
    engine.ok("rm two");
    engine.ok("volume rm bound memory");
    assert!(
        device.join("x").exists(),
        "what is elsewhere is not removed"
    );
    engine.ok("volume create -o type=none -o device=/nosuch/place -o o=bind broken");
    engine
        .run("run --rm -v broken:/d base true")
        .refused(125, "failed to mount local volume");
    engine
        .run("volume create -o type=tmpfs x")
        .refused(1, "missing required option: \"device\"");
}

fn inspect_shows_mounts_as_docker_does() {
    let engine = Engine::new().with_base();
    engine.ok(
        "create --name all -v ~/h:/h:ro,rslave -v data:/d:z --mount type=tmpfs,target=/t -v /anonymous --tmpfs /run:size=1m base true",
    );
    let host = engine.directory().join("h");
    assert_eq!(
        mount_at(&engine, "all", "/h"),
        json!({"Type": "bind", "Source": host, "Destination": "/h", "Mode": "ro,rslave", "RW": false, "Propagation": "rslave"})
    );
    assert_eq!(
        mount_at(&engine, "all", "/d"),
        json!({"Type": "volume", "Name": "data", "Source": data(&engine, "data"), "Destination": "/d",
               "Driver": "local", "Mode": "z", "RW": true, "Propagation": ""})
    );
    assert_eq!(
        mount_at(&engine, "all", "/t"),
        json!({"Type": "tmpfs", "Source": "", "Destination": "/t", "Mode": "", "RW": true, "Propagation": ""})
    );
    assert_eq!(
        mount_at(&engine, "all", "/anonymous")["Name"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    assert_eq!(
        engine.look("all", "/HostConfig/Tmpfs"),
        json!({"/run": "size=1m"})
    );
    let binds = engine.look("all", "/HostConfig/Binds");
    assert_eq!(
        binds,
        json!([format!("{}:/h:ro,rslave", host.display()), "data:/d:z"])
    );
}

fn an_images_volume_is_made_filled_and_removed() {
    let engine = Engine::new().with_base();
    fs::create_dir(engine.directory().join("context")).unwrap();
    fs::write(
        engine.directory().join("context/Dockerfile"),
        "FROM base\nRUN mkdir -p /srv/a && echo one > /srv/a/x\nVOLUME /srv /empty\n",
    )
    .unwrap();
    engine.ok("build -q -t app ~/context");
    engine.ok("run --name first app sh -c 'cat /srv/a/x; echo two >> /srv/a/x'");
    let volumes = names(&engine, "--filter dangling=false");
    assert_eq!(volumes.len(), 2);
    let name = mount_at(&engine, "first", "/srv")["Name"].clone();
    let file = data(&engine, name.as_str().unwrap()).join("a/x");
    assert_eq!(fs::read_to_string(file).unwrap(), "one\ntwo\n");
    // Each container has its own, unless it says what goes there.
    assert_eq!(engine.ok("run --rm app cat /srv/a/x"), "one");
    assert_eq!(engine.ok("run --rm -v mine:/srv app cat /srv/a/x"), "one");
    assert_eq!(engine.ok("run --rm --tmpfs /srv app ls /srv"), "");
    assert_eq!(names(&engine, "").len(), 3);
    engine.ok("rm -v first");
    assert_eq!(names(&engine, ""), ["mine"]);
}

fn killed_commands_leave_whole_volumes() {
    let engine = Engine::new().with_base();
    with_app(&engine);
    for step in 0..40u64 {
        let name = format!("v{}", step % 4);
        let lines = [
            format!("run --rm --network none -v {name}:/srv app true"),
            format!("volume rm {name}"),
            format!("run --rm --network none -v {name}:/srv -v /anonymous app true"),
            format!("volume create {name}"),
        ];
        let index = usize::try_from(step / 4).unwrap() % lines.len();
        let mut child = engine.command(&lines[index]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(step * step * 97 % 60_000));
        child.kill().unwrap();
        child.wait().unwrap();
        engine.ok("ps -aq");
        let seen = engine.ok(&format!(
            "run --rm --network none -v {name}:/srv app sh -c 'cat /srv/one /srv/sub/two; stat -c %u:%g:%a /srv; ls -A /srv | wc -l'"
        ));
        assert_eq!(
            seen, "one\ntwo\n1000:1001:2750\n3",
            "after `{}` was killed",
            lines[index]
        );
        if step % 3 == 0 {
            engine.ok(&format!("volume rm {name}"));
        }
    }
    engine.ok("volume ls");
    engine.ok("volume prune");
    let left: Vec<String> = fs::read_dir(engine.root().join("volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.iter().all(|name| name.starts_with('v')), "{left:?}");
}

fn many_at_once_get_one_volume() {
    let engine = Engine::new().with_base();
    with_app(&engine);
    for _ in 0..3 {
        let children: Vec<_> = (0..8)
            .map(|number| {
                let line = format!(
                    "run --rm --network none -v many:/srv app sh -c 'cat /srv/sub/two > /dev/null && touch /srv/by-{number}'"
                );
                engine.command(&line).spawn().unwrap()
            })
            .collect();
        let remover = engine
            .command("volume rm many")
            .stderr(std::process::Stdio::null())
            .spawn();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        remover.unwrap().wait().unwrap();
        let there = fs::read_dir(data(&engine, "many")).unwrap().count();
        assert_eq!(there, 3 + 8);
        engine.ok("volume rm many");
    }
}

/// Where mounts are shared, as under systemd, taking a bind away must not take away what is mounted below its original.
fn the_hosts_own_mounts_stay() {
    let engine = Engine::new().with_base();
    let line = |text: &str| stack_tests::command::typed(&engine.command(text));
    let there = engine.directory().join("there");
    let script = [
        format!(
            "mkdir -p {0}/sub && mount -t tmpfs host {0}/sub",
            there.display()
        ),
        line("volume create -o type=none -o o=bind -o device=~/there nest"),
        line("run --rm --network none -v nest:/nest base true"),
        format!(
            "grep -q {}/sub /proc/self/mountinfo && echo still there",
            there.display()
        ),
    ];
    let said = stack_tests::command::tool(
        "unshare",
        &[
            "-m",
            "--propagation",
            "shared",
            "sh",
            "-ec",
            &script.join("\n"),
        ],
    );
    assert!(said.contains("still there"), "{said}");
    engine.ok("volume rm nest");
}
