//! The main job from end to end, on the host's own network: a real image from a real registry, run
//! on a published port and looked at in every way; afterwards the host is as before.

use stack_tests::engine::Engine;
use stack_tests::host::Snapshot;
use stack_tests::http::is_nginx;
use stack_tests::needs::Test;
use stack_tests::netns::Neighbour;
use stack_tests::pty::Pty;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "journey_host",
        stack_tests::registry::NEEDS,
        [nginx_from_a_registry_on_a_published_port]
    )
}

fn nginx_from_a_registry_on_a_published_port() {
    let before = Snapshot::take();
    {
        let neighbour = Neighbour::new();
        let engine = Engine::on_host();
        let image = engine.registry().reference("debian:nginx");
        engine.ok(&format!("pull {image}"));
        publish(&engine, &neighbour, &image);
        look(&engine);
        follow_and_stop(&engine);
        start_again(&engine, &neighbour);
        commit_and_run(&engine);
        engine.assert_nothing_left();
    }
    let differences = || Snapshot::take().differences(&before);
    let ours = |line: &String| !line.contains("process") && !line.contains("/tmp/q");
    let left: Vec<_> = differences().into_iter().filter(ours).collect();
    assert!(left.is_empty(), "the host is not as before: {left:#?}");
}

fn publish(engine: &Engine, neighbour: &Neighbour, image: &str) {
    let line =
        format!("run -d -cpuset 0 -m 100m -name heroyf -p 110:80 {image} nginx -g 'daemon off;'");
    let id = engine.ok(&line);
    assert_eq!(id.len(), 64, "{id}");
    everybody_gets_the_page(neighbour);
}

/// nginx answers on 127.0.0.1, on the host's own address, and to another machine.
fn everybody_gets_the_page(neighbour: &Neighbour) {
    until("127.0.0.1:110 answers", || {
        is_nginx("127.0.0.1", 110).then_some(())
    });
    until("the own address answers", || {
        is_nginx(Neighbour::HOST, 110).then_some(())
    });
    until("the neighbour gets an answer", || {
        neighbour
            .visit(|| is_nginx(Neighbour::HOST, 110))
            .then_some(())
    });
}

fn look(engine: &Engine) {
    engine
        .run("ps")
        .code(0)
        .out("heroyf")
        .out("nginx")
        .out("110");
    let mut shell = Pty::start(&engine.command("exec -it heroyf /bin/sh"));
    shell.send("echo $((6 * 7)); tty; nproc\n");
    shell.expect("42");
    shell.expect("/dev/pts/");
    shell.expect("1");
    shell.send("exit 5\n");
    assert_eq!(shell.exit(), 5);
    let pid = engine.look("heroyf", "/State/Pid");
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "no process {pid}"
    );
    assert_eq!(engine.look("heroyf", "/HostConfig/CpusetCpus"), "0");
    assert_eq!(engine.look("heroyf", "/HostConfig/Memory"), 100 << 20);
    assert_eq!(
        engine.look("heroyf", "/NetworkSettings/Ports/80~1tcp/0/HostPort"),
        "110"
    );
    assert_eq!(engine.look("heroyf", "/State/Running"), true);
}

fn follow_and_stop(engine: &Engine) {
    let mut logs = Pty::start(&engine.command("logs -f heroyf"));
    engine.ok("exec heroyf sh -c 'echo written by a test > /proc/1/fd/1'");
    logs.expect("written by a test");
    engine.ok("stop heroyf");
    assert_eq!(logs.exit(), 0, "logs -f ends with the container");
    engine.run("ps -a").code(0).out("heroyf").out("Exited (0)");
    assert!(!engine.ok("ps").contains("heroyf"));
    assert!(!is_nginx("127.0.0.1", 110));
}

fn start_again(engine: &Engine, neighbour: &Neighbour) {
    engine.ok("start heroyf");
    everybody_gets_the_page(neighbour);
    engine.ok("exec heroyf sh -c 'echo kept > /root/note'");
    engine.ok("stop -t 1 heroyf");
    engine.ok("start heroyf");
    assert_eq!(engine.ok("exec heroyf cat /root/note"), "kept");
}

fn commit_and_run(engine: &Engine) {
    engine.ok("commit heroyf nginx:v1");
    engine.run("images").code(0).out("nginx").out("v1");
    engine.ok("rm -f heroyf");
    assert_eq!(engine.ok("run --rm nginx:v1 cat /root/note"), "kept");
    engine.ok("run -d -name two -p 110:80 nginx:v1");
    until("the committed image serves", || {
        is_nginx("127.0.0.1", 110).then_some(())
    });
    engine.ok("rm -f two");
}
