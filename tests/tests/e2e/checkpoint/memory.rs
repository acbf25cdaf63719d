//! Memory that takes another way than into the checkpoint at its end: to a page server, later, or some of it earlier.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use stack_tests::command::{shell, wait};
use stack_tests::http::free_port;
use stack_tests::needs::{Need, Test};
use stack_tests::tests;
use stack_tests::wait::{patience, until};

use super::{COUNT, Scene};

pub(super) fn tests() -> Vec<Test> {
    tests!(
        "checkpoint",
        &[Need::Root, Need::Criu],
        [
            memory_on_a_page_server,
            memory_that_is_fetched_later,
            pre_dumps,
        ]
    )
}

fn memory_on_a_page_server() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.counts_beyond(3);
    let before = scene.count();
    fs::create_dir(&scene.image).unwrap();
    let port = free_port();
    let mut server = Command::new("criu")
        .args(["page-server", "--address", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .arg("--images-dir")
        .arg(&scene.image)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the page server listens", || {
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let listening = |line: &str| line.contains(&format!(":{port:04X} 00000000:0000 0A"));
        table.lines().any(listening).then_some(())
    });
    scene
        .checkpoint(&id, &format!("--page-server 127.0.0.1:{port}"))
        .ok();
    assert_eq!(wait(&mut server, patience()), Some(0));
    let mut names = fs::read_dir(&scene.image).unwrap().flatten();
    let pages = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with("pages-");
    assert!(names.any(pages));
    scene.restore(&id, "");
    scene.counts_beyond(before);
    scene.runtime.run(&format!("delete --force {id}")).ok();
}

/// A program that is killed when the test has ended, whatever the end.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory stays where it is until the restored processes touch it. Where criu cannot hand it over (4.2.1 splices its first
/// page to descriptor -1, whoever asks for it), the checkpoint has to say so, and the container goes on as if nothing had
/// been; what a restore that was killed has left goes with `delete --force`.
fn memory_that_is_fetched_later() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    scene.counts_beyond(3);
    let port = free_port().to_string();
    let status = scene.runtime.directory().join("status");
    let log = scene.runtime.directory().join("dump-log");
    let image = scene.image.display();
    let line = format!(
        "--log {} checkpoint --lazy-pages --page-server 127.0.0.1:{port} --status-fd 9 --manage-cgroups-mode ignore \
         --image-path {image} {id}",
        log.display()
    );
    let program = scene.runtime.command(&line);
    let mut dump = Command::new("sh");
    dump.args(["-c", "exec 9> \"$0\"; exec \"$@\""])
        .arg(&status)
        .arg(program.get_program())
        .args(program.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut dump = Helper(dump.spawn().unwrap());
    until("its memory can be fetched", || {
        (fs::read(&status).ok()? == [0]).then_some(())
    });
    assert!(scene.image.join("inventory.img").exists());
    let before = scene.count();
    let mut server = Helper(
        Command::new("criu")
            .args(["lazy-pages", "--page-server", "--address", "127.0.0.1"])
            .args(["--port", &port, "--images-dir"])
            .arg(&scene.image)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    until("memory is asked for", || {
        let socket = scene.image.join("lazy-pages.socket");
        socket.exists().then_some(())
    });
    let other = scene.runtime.id("other");
    let restore = scene.restore_line(&other, "-d --lazy-pages --manage-cgroups-mode ignore");
    let mut restore = Helper(
        scene
            .runtime
            .command(&restore)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    if wait(&mut dump.0, patience()) == Some(0) {
        assert_eq!(wait(&mut restore.0, patience()), Some(0));
        assert_eq!(wait(&mut server.0, patience()), Some(0));
        assert_eq!(scene.runtime.state(&other)["status"], "running");
        let state = scene.runtime.run(&format!("state {id}"));
        state.code(1).err("does not exist");
    } else {
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("Lazy pages transfer FAILED"), "{said}");
        assert_eq!(scene.runtime.state(&id)["status"], "running");
        // Nobody answers the restore. Its caller gives up; criu, which traces what it has made, is still there.
        shell(&format!("kill -KILL {}", restore.0.id()));
        assert_eq!(wait(&mut restore.0, patience()), Some(137));
        scene.runtime.run(&format!("delete --force {other}")).ok();
    }
    scene.counts_beyond(before);
    for id in [&id, &other] {
        scene.runtime.run(&format!("delete --force {id}")).ok();
    }
    scene.runtime.assert_nothing_left();
}

fn pre_dumps() {
    let scene = Scene::new(COUNT);
    let id = scene.started("bird");
    let early = scene.runtime.directory().join("early");
    let pre_dump = |image: &Path, parent: &str| {
        let image = image.display();
        scene.runtime.run(&format!(
            "checkpoint --pre-dump --image-path {image} {parent} {id}"
        ))
    };
    scene
        .checkpoint(&id, "--parent-path /early")
        .code(1)
        .err("--parent-path must be relative");
    scene
        .checkpoint(&id, "--parent-path ../early")
        .code(1)
        .err("invalid --parent-path");
    let first = pre_dump(&early, "");
    if first.code != 0 {
        // A kernel that does not tell which memory was written to.
        first.code(1).err("criu is missing features: [MemTrack]");
        assert_eq!(scene.runtime.state(&id)["status"], "running");
        scene.runtime.run(&format!("delete --force {id}")).ok();
        return;
    }
    assert_eq!(scene.runtime.state(&id)["status"], "running");
    let later = scene.runtime.directory().join("later");
    pre_dump(&later, "--parent-path ../early").ok();
    let before = scene.count();
    scene.checkpoint(&id, "--parent-path ../later").ok();
    assert!(scene.image.join("parent").is_symlink());
    scene.restore(&id, "");
    scene.counts_beyond(before);
    scene.runtime.run(&format!("delete --force {id}")).ok();
}
