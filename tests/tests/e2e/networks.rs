//! Networks: published ports, networks of one's own, and the modes without a bridge.

use stack_tests::engine::Engine;
use stack_tests::host;
use stack_tests::http;
use stack_tests::needs::{Need, Test};
use stack_tests::netns::Neighbour;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "networks",
        &[Need::Root],
        [
            a_port_is_reached_from_everywhere,
            a_container_reaches_beyond_its_bridge,
            containers_of_a_network_meet_by_address,
            the_network_of_another_container,
            the_host_network_and_none,
            the_files_in_etc,
            addresses_are_given_back,
            a_network_in_use_is_not_removed,
            inspect_shows_address_and_gateway,
        ]
    )
}

const SERVER: &str =
    "sh -c 'mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www'";

fn serves(host: &str, port: u16) -> Option<()> {
    http::get(host, port, "/")
        .is_ok_and(|answer| answer.body == "served\n")
        .then_some(())
}

fn a_port_is_reached_from_everywhere() {
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    engine.ok(&format!(
        "run -d --name one -p 8080:80 -p 127.0.0.1:8081:80 base {SERVER}"
    ));
    until("127.0.0.1 answers", || serves("127.0.0.1", 8080));
    until("the own address answers", || serves(Neighbour::HOST, 8080));
    until("the neighbour gets an answer", || {
        neighbour.visit(|| serves(Neighbour::HOST, 8080))
    });
    until("127.0.0.1 answers", || serves("127.0.0.1", 8081));
    assert!(
        neighbour.visit(|| http::get(Neighbour::HOST, 8081, "/").is_err()),
        "8081 is only for 127.0.0.1"
    );
    let hairpin = format!("exec one wget -q -O - http://{}:8080/", Neighbour::HOST);
    assert_eq!(engine.ok(&hairpin), "served");
    engine.ok("run -d --name two -p 9000:80 base sleep 1000");
    assert_eq!(
        engine.ok(&hairpin.replace("exec one", "exec two")),
        "served"
    );
    engine.ok("rm -f one");
    assert!(
        http::get("127.0.0.1", 8080, "/").is_err(),
        "a port of a container that is gone answers"
    );
    drop(neighbour);
}

fn a_container_reaches_beyond_its_bridge() {
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    let ping = format!("run --rm base ping -c 1 -W 5 {}", Neighbour::ADDRESS);
    engine.run(&ping).code(0).out("1 packets received");
    // The neighbour knows no way back to the bridge: the address must have been translated.
    engine.ok("network create --driver bridge --subnet 10.200.0.1/24 testbridge1");
    engine
        .run(&ping.replace("--rm", "--rm -net testbridge1"))
        .code(0)
        .out("1 packets received");
    engine.ok("network remove testbridge1");
    drop(neighbour);
}

fn containers_of_a_network_meet_by_address() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 --driver bridge testbridge");
    engine
        .run("network ls")
        .code(0)
        .out("testbridge")
        .out("bridge");
    engine.ok("run -d --name one -net testbridge base sleep 1000");
    let address = engine.look("one", "/NetworkSettings/Networks/testbridge/IPAddress");
    let address = address.as_str().unwrap();
    assert!(
        address.starts_with("10.72.0.") && address != "10.72.0.1",
        "{address}"
    );
    engine
        .run(&format!(
            "run --rm -n testbridge base ping -c 1 -W 5 {address}"
        ))
        .code(0)
        .out("1 packets received");
    engine
        .run("run --rm -n testbridge base ping -c 1 -W 5 10.72.0.1")
        .code(0);
    engine
        .run("network create --subnet 10.72.0.0/24 other")
        .code(1)
        .err("10.72.0.0/24");
    engine
        .run("network create testbridge")
        .code(1)
        .err("testbridge");
    engine.ok("rm -f one");
    engine.ok("network remove testbridge");
    assert!(!engine.ok("network ls").contains("testbridge"));
    assert!(
        host::links().iter().all(|link| link == "lo"),
        "{:?}",
        host::links()
    );
}

fn the_network_of_another_container() {
    let engine = Engine::new().with_base();
    engine.ok(&format!("run -d --name one base {SERVER}"));
    let fetch =
        "base sh -c 'until wget -q -O - http://127.0.0.1/; do usleep 10000; done 2>/dev/null'";
    assert_eq!(
        engine.ok(&format!("run --rm -net container:one {fetch}")),
        "served"
    );
    assert_eq!(
        engine.ok(&format!(
            "run --rm --netdriver container --container one {fetch}"
        )),
        "served"
    );
}

fn the_host_network_and_none() {
    let engine = Engine::new().with_base();
    let links = |flags: &str| {
        engine.ok(&format!(
            "run --rm {flags} base sh -c 'cat /proc/net/dev | grep -c :'"
        ))
    };
    assert_eq!(links("-net none"), "1");
    assert_eq!(links("--netdriver none"), "1");
    assert_eq!(links("--network host"), host::links().len().to_string());
    assert_eq!(links("--netdriver bridge"), "2");
}

fn the_files_in_etc() {
    let engine = Engine::new().with_base();
    let script = "cat /etc/hostname; grep $(cat /etc/hostname) /etc/hosts; grep localhost /etc/hosts; cat /etc/resolv.conf; hostname";
    let seen = engine.ok(&format!("run --rm --hostname nest base sh -c '{script}'"));
    assert!(
        seen.starts_with("nest\n") && seen.ends_with("nest"),
        "{seen}"
    );
    assert!(seen.contains("\tnest") || seen.contains(" nest"), "{seen}");
    assert!(seen.contains("127.0.0.1"), "{seen}");
    let own = engine.ok("run -d --name one base sleep 1000");
    assert_eq!(engine.ok("exec one hostname"), own[..12]);
}

fn addresses_are_given_back() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/30 tiny");
    // Two addresses, the bridge has the first: one container at a time, any number in turn.
    for _ in 0..3 {
        engine.ok("run --rm -n tiny base true");
    }
    engine.ok("run -d --name one -n tiny base sleep 1000");
    let full = engine.run("run --rm -n tiny base true");
    full.code(125).err("tiny");
    engine.ok("rm -f one");
    engine.ok("run --rm -n tiny base true");
    engine.ok("network remove tiny");
}

fn a_network_in_use_is_not_removed() {
    let engine = Engine::new().with_base();
    engine.ok("network create mine");
    engine.ok("run -d --name one -n mine base sleep 1000");
    engine.run("network remove mine").code(1).err("mine");
    engine.run("network remove nosuch").code(1).err("nosuch");
    engine.run("network remove bridge").code(1).err("bridge");
    engine.ok("rm -f one");
    engine.ok("network remove mine");
}

fn inspect_shows_address_and_gateway() {
    let engine = Engine::new().with_base();
    engine.ok("run -d --name one -p 8080:80 base sleep 1000");
    let settings = engine.look("one", "/NetworkSettings");
    let address = settings["IPAddress"].as_str().unwrap();
    let mac = settings["MacAddress"].as_str().unwrap();
    let gateway = settings["Gateway"].as_str().unwrap();
    let seen = engine.ok("exec one sh -c 'ip addr show eth0; ip route'");
    assert!(
        seen.contains(address) && seen.contains(mac),
        "{seen}\n{settings}"
    );
    assert!(
        seen.contains(&format!("default via {gateway}")),
        "{seen}\n{settings}"
    );
    let object = engine.inspect("one");
    for pointer in [
        "/Id",
        "/Name",
        "/Created",
        "/State/Status",
        "/State/Pid",
        "/State/Running",
        "/State/Paused",
        "/State/OOMKilled",
        "/State/Dead",
        "/State/ExitCode",
        "/State/StartedAt",
        "/State/FinishedAt",
        "/GraphDriver/Data/LowerDir",
        "/GraphDriver/Data/MergedDir",
        "/GraphDriver/Data/UpperDir",
        "/GraphDriver/Data/WorkDir",
        "/Mounts",
        "/Config/Tty",
        "/Config/Image",
        "/Config/Env",
        "/Path",
        "/Args",
        "/HostsPath",
        "/HostnamePath",
        "/ResolvConfPath",
        "/HostConfig/Memory",
    ] {
        assert!(
            object.pointer(pointer).is_some(),
            "no {pointer} in {object:#}"
        );
    }
}
