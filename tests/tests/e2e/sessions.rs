//! The sessions that the forebears' own descriptions show, one after the other as they stand there, on the host's own
//! network. Where the original is called with a built-in image, ours is named: that is the one deliberate difference.

use std::process::Command;

use stack_tests::command::run;
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "sessions_host",
        &[Need::Root, Need::Host],
        [qsrdocker, mydocker_with_portmap, mycontainer]
    );
    all.extend(tests!(
        "sessions_host",
        stack_tests::registry::NEEDS,
        [mydocker_after_the_book, the_puller]
    ));
    all
}

/// Something typed on the host says this in the end.
#[track_caller]
fn on_the_host(line: &str, text: &str) {
    until(&format!("{line} says {text:?}"), || {
        let outcome = run(Command::new("sh").args(["-c", line]));
        (outcome.stdout + &outcome.stderr)
            .contains(text)
            .then_some(())
    });
}

/// Starts what is typed on a terminal of its own.
fn terminal(engine: &Engine, line: &str) -> Pty {
    Pty::start(&engine.command(line))
}

#[track_caller]
fn leave(mut terminal: Pty) {
    terminal.send("exit\n");
    assert_eq!(terminal.exit(), 0, "{}", terminal.heard());
}

fn qsrdocker() {
    let engine = Engine::on_host().with_base();
    let id = engine.ok("run -d -cpuset 0 -m 100m -name heroyf -p 110:80 base httpd -f -h /etc");
    on_the_host("curl -s http://127.0.0.1:110/group", "root");
    engine.run("ps").code(0).out("heroyf").out("110->80");
    let mut shell = terminal(&engine, "exec -it heroyf /bin/sh");
    shell.send("echo feather > /feather; nproc\n");
    shell.expect("1\r\n");
    leave(shell);
    engine.ok("commit heroyf heroyf:v1");
    engine.run("image ls").code(0).out("heroyf").out("v1");
    engine.ok("logs heroyf");
    assert_eq!(engine.look(&id, "/HostConfig/CpusetCpus"), "0");
    engine.ok("stop heroyf");
    engine.run("ps -a").code(0).out("Exited");
    engine.ok("start heroyf");
    on_the_host("curl -s http://127.0.0.1:110/group", "root");
    engine.ok("network create mynet");
    engine.run("network ls").code(0).out("mynet");
    let line = "run --rm -n mynet --netdriver bridge heroyf:v1 cat /feather";
    assert_eq!(engine.ok(line), "feather");
    engine.ok("network remove mynet");
    engine.ok("rm -f -v heroyf");
}

fn mydocker_with_portmap() {
    let engine = Engine::on_host();
    let mut busybox = Vec::new();
    stack_tests::image::busybox_tar(&mut busybox).unwrap();
    std::fs::write(engine.directory().join("busybox.tar"), busybox).unwrap();
    engine.ok("buildBase ~/busybox.tar");
    engine.run("images").code(0).out("base");
    engine.ok("network create --subnet 10.72.0.0/24 --driver bridge testbridge");
    engine.run("network list").code(0).out("testbridge");

    let mut shell = terminal(&engine, "run -ti -image base sh");
    shell.send("echo $((6 * 7))\n");
    shell.expect("42");
    leave(shell);
    engine.ok("run -d -image base top");

    let mut shell = terminal(&engine, "run -ti -image base -net testbridge sh");
    shell.send("ip addr\n");
    shell.expect("10.72.0.2");
    shell.send("httpd -p 80 -h /etc\n");
    on_the_host("curl -s http://10.72.0.2/group", "root");
    leave(shell);

    let line = "run -ti -image base -net testbridge -p 3307:3307 sh";
    let mut shell = terminal(&engine, line);
    shell.send("httpd -p 3307 -h /etc && echo listening\n");
    shell.expect("listening\r\n");
    engine.ok("portmap start -d");
    on_the_host("curl -s http://127.0.0.1:3307/group", "root");
    engine.ok("portmap stop");
    leave(shell);

    let mut shell = terminal(&engine, "run -ti -image base -v ~/outside:/inside sh");
    shell.send("echo made > /inside/file\n");
    leave(shell);
    on_the_host(
        &format!("cat {}/outside/file", engine.directory().display()),
        "made",
    );

    engine.ok("run -d -image base -name bird sleep 1000");
    assert_eq!(engine.ok("exec bird echo inside"), "inside");
    engine.ok("stop -t 0 bird");
    engine.ok("save -o ~/bird.tar -c bird");
    on_the_host(
        &format!("tar tf {}/bird.tar", engine.directory().display()),
        "bin/busybox",
    );
    engine.ok("remove bird");

    std::fs::write(
        engine.directory().join("dockerfile"),
        "FROM base\nRUN touch x.txt\nRUN mkdir -p /home/jdy\nWORKDIR /home/jdy\nENTRYPOINT sleep 99999\n",
    )
    .unwrap();
    let mut build = engine.command("build -f dockerfile -t xx:0.01");
    let built = run(build.current_dir(engine.directory()));
    assert_eq!(built.code, 0, "{}", built.report());
    engine.ok("run -d -name built xx:0.01");
    assert_eq!(engine.ok("exec built pwd"), "/home/jdy");
    engine.run("exec built ls /").code(0).out("x.txt");
    engine.ok("rm -f built");
    engine.assert_nothing_left();
    engine.ok("network remove testbridge");
}

fn mycontainer() {
    let engine = Engine::on_host().with_base();
    engine.ok("tag base busybox");
    let mut shell = terminal(&engine, "run -it busybox sh");
    shell.send("echo pid $$\n");
    shell.expect("pid 1\r\n");
    leave(shell);

    let mut shell = terminal(&engine, "run -it -v ~/volume:/containerVolume busybox sh");
    shell.send("cd /containerVolume; touch hahaha\n");
    leave(shell);
    assert!(engine.directory().join("volume/hahaha").exists());

    let mut hi = terminal(&engine, "run -it -l --name hi busybox sh");
    hi.send("echo said $((40 + 2))\n");
    hi.expect("said 42");
    engine.run("logs hi").code(0).out("said 42");

    let mut mine = terminal(
        &engine,
        "run -it --name mycontainer -e test1=123 -e test2=456 busybox sh",
    );
    mine.send("env | grep test\n");
    mine.expect("test2=456");
    engine.run("ps").code(0).out("hi").out("mycontainer");
    let inside = engine.ok("exec mycontainer sh -c 'env | grep test'");
    assert_eq!(inside, "test1=123\ntest2=456");
    engine.run("rm mycontainer").refused(1, "running");
    leave(mine);
    engine.ok("rm mycontainer");
    leave(hi);

    engine.ok("run -d --name container1 -v ~/from1:/to1 busybox top");
    engine.ok("run -d --name container2 -v ~/from2:/to2 busybox top");
    engine.ok("commit container1 image1");
    engine.ok("stop -t 0 container1 container2");
    engine.ok("rm container1 container2");
    engine.ok("run --rm image1 true");

    engine.ok("network create --driver bridge --subnet 10.200.0.1/24 testbridge1");
    let mut one = terminal(&engine, "run -it --name one -net testbridge1 busybox sh");
    one.expect("#");
    let mut two = terminal(&engine, "run -it --name two -net testbridge1 busybox sh");
    two.send("ip addr\n");
    two.expect("10.200.0.3/24");
    on_the_host("ip addr", "10.200.0.1/24");
    one.send("ping -c 3 -W 5 10.200.0.3\n");
    one.expect("3 packets received");
    one.send("ping -c 1 -W 5 two\n");
    one.expect("1 packets received");
    leave(one);
    leave(two);
    engine.ok("rm one two");
    engine.ok("network rm testbridge1");
}

fn mydocker_after_the_book() {
    let engine = Engine::on_host().with_base();
    engine.pull_as("debian:nginx", "stress:1");
    let line =
        "run -ti -cpushare 256 -m 100m stress:1 stress --vm-bytes 200m --vm-keep --vm 1 -t 20";
    let mut stress = terminal(&engine, line);
    stress.expect("got signal 9");
    assert_eq!(stress.exit(), 1);
    let line =
        "run --rm -cpushare 256 -m 100m stress:1 stress --vm-bytes 20m --vm-keep --vm 1 -t 1";
    engine.run(line).code(0).out("successful run completed");

    engine.ok("run -d base top");
    engine.ok("run -d --name bird base sh -c 'echo sung; exec top -b'");
    engine.run("ps").code(0).out("bird");
    engine.wait_for_log("bird", "sung");
    let mut shell = terminal(&engine, "exec -ti bird sh");
    shell.send("ps\n");
    shell.expect("top -b");
    leave(shell);
    engine.ok("stop -t 1 bird");
    engine.ok("rm bird");

    engine.ok("network create --driver bridge --subnet 192.168.10.1/24 testbridge");
    let mut shell = terminal(&engine, "run -ti -p 80:80 -net testbridge base sh");
    shell.send("echo hello from bird | nc -lp 80\n");
    on_the_host(
        "busybox nc -w 2 127.0.0.1 80 < /dev/null",
        "hello from bird",
    );
    leave(shell);
    engine.assert_nothing_left();
    engine.ok("network rm testbridge");
}

fn the_puller() {
    let engine = Engine::on_host();
    engine.stand_in_for_docker_hub();
    engine.ok("pull -img arm64v8/ubuntu:20.04");
    engine
        .run("images")
        .code(0)
        .out("arm64v8/ubuntu")
        .out("20.04");
    let line = "run -img arm64v8/ubuntu:20.04 -cmds /bin/bash -name test";
    let mut shell = terminal(&engine, line);
    shell.send("echo bash is $BASH; hostname\n");
    shell.expect("bash is /bin/bash");
    leave(shell);
    engine.ok("rm test");
    let line =
        "run -cpus 0.5 -mmem 200 -mpid 1000 -img arm64v8/ubuntu:20.04 -cmds /bin/bash -name test";
    let mut shell = terminal(&engine, line);
    shell.send("echo $((6 * 7))\n");
    shell.expect("42");
    assert_eq!(engine.look("test", "/HostConfig/Memory"), 200 << 20);
    assert_eq!(engine.look("test", "/HostConfig/PidsLimit"), 1000);
    leave(shell);
}
