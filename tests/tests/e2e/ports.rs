//! Published ports: every form of `-p`, from everywhere, through every packet filter, and from nowhere else.

use std::net::{TcpListener, UdpSocket};

use stack_tests::command::shell;
use stack_tests::engine::Engine;
use stack_tests::host;
use stack_tests::needs::{Need, Test};
use stack_tests::netns::{self, Neighbour};
use stack_tests::tests;
use stack_tests::traffic::{Server, ask, ask_from, hear, inside};
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    let mut all = tests!(
        "ports",
        &[Need::Root],
        [
            every_form_of_publishing,
            what_is_taken_is_refused,
            from_everywhere_through_nftables,
            only_what_is_published_is_reached_through_nftables,
            rules_come_back_by_reload,
            a_udp_peer_that_never_pauses_meets_the_next_container,
            networks_without_ports_of_their_own,
            a_host_without_a_packet_filter,
        ]
    );
    all.extend(tests!(
        "ports",
        &[Need::Root, Need::Program("iptables-restore")],
        [
            from_everywhere_through_iptables,
            only_what_is_published_is_reached_through_iptables,
        ]
    ));
    all
}

fn sleeper(engine: &Engine, name: &str, flags: &str) {
    engine.ok(&format!("run -d --name {name} {flags} base sleep 1000"));
}

/// An engine with this packet filter. iptables leaves its own empty chains, which are there from the start then.
fn engine_with(firewall: &'static str) -> Engine {
    netns::isolate();
    if firewall == "iptables" {
        let used = [
            ("raw", "PREROUTING"),
            ("filter", "FORWARD"),
            ("filter", "INPUT"),
            ("filter", "OUTPUT"),
            ("nat", "PREROUTING"),
            ("nat", "OUTPUT"),
            ("nat", "POSTROUTING"),
        ];
        for (table, chain) in used {
            for action in ["-A", "-D"] {
                shell(&format!("iptables -t {table} {action} {chain} -p 254"));
            }
        }
    }
    Engine::on_host().with_base().with_firewall(firewall)
}

fn every_form_of_publishing() {
    let engine = Engine::new().with_base();
    sleeper(&engine, "range", "-p 8000-8005:80-85");
    assert_eq!(
        engine.ok("port range"),
        "80/tcp -> 0.0.0.0:8000\n81/tcp -> 0.0.0.0:8001\n82/tcp -> 0.0.0.0:8002\n\
         83/tcp -> 0.0.0.0:8003\n84/tcp -> 0.0.0.0:8004\n85/tcp -> 0.0.0.0:8005"
    );
    engine.run("ps").code(0).out("0.0.0.0:8000-8005->80-85/tcp");
    let _last = Server::greeting(&engine, "range", 85, "the last");
    assert_eq!(hear("127.0.0.1:8005").as_deref(), Some("the last"));

    sleeper(
        &engine,
        "chosen",
        "-p 80 -p 127.0.0.1::81 -p 9000-9010:82 -p 9000-9010:83",
    );
    let _chosen = Server::greeting(&engine, "chosen", 80, "chosen");
    let every = engine.ok("port chosen 80");
    let port: u16 = every.strip_prefix("0.0.0.0:").unwrap().parse().unwrap();
    assert!(port >= 1024);
    assert_eq!(
        hear(&format!("127.0.0.1:{port}")).as_deref(),
        Some("chosen")
    );
    assert!(engine.ok("port chosen 81/tcp").starts_with("127.0.0.1:"));
    // One of a range for each.
    assert_eq!(engine.ok("port chosen 82"), "0.0.0.0:9000");
    assert_eq!(engine.ok("port chosen 83"), "0.0.0.0:9001");
    let twice = engine.run("run --rm -p 9100:82 -p 9100:83 base true");
    twice.code(125).err("port is already allocated");

    sleeper(&engine, "both", "-p 5300:53 -p 5300:53/udp");
    let _tcp = Server::greeting(&engine, "both", 53, "by tcp");
    let _udp = Server::udp(&engine, "both", 53, "by udp:");
    assert_eq!(hear("127.0.0.1:5300").as_deref(), Some("by tcp"));
    assert_eq!(ask("127.0.0.1:5300", "x").as_deref(), Some("by udp: x"));
    assert_eq!(engine.ok("port both 53/udp"), "0.0.0.0:5300");
    let nothing = engine.run("port both 54");
    nothing
        .code(1)
        .err("no public port '54/tcp' published for both");
    engine.run("port nosuch").code(1).err("nosuch");

    // Only known to the packet filter; that much works.
    sleeper(&engine, "sctp", "-p 7000:70/sctp");
    assert_eq!(engine.ok("port sctp 70/sctp"), "0.0.0.0:7000");
    engine.ok("stop -t 0 range");
    assert_eq!(engine.ok("port range"), "");
}

fn what_is_taken_is_refused() {
    let engine = Engine::new().with_base();
    let _tcp = TcpListener::bind("127.0.0.1:8080").unwrap();
    let _udp = UdpSocket::bind("127.0.0.1:8081").unwrap();
    let run = "run -d base sleep 1000".to_owned();
    for port in ["8080:80", "127.0.0.1:8080:80", "8081:80/udp"] {
        let outcome = engine.run(&run.replace("-d", &format!("-d -p {port}")));
        outcome.code(125).err("port is already allocated");
    }
    sleeper(&engine, "one", "-p 8080:80/udp -p 8081:80 -p 9000:90");
    let outcome = engine.run(&run.replace("-d", "-d -p 127.0.0.1:9000:90"));
    outcome
        .code(125)
        .err("port is already allocated")
        .err("container");
    // A restart takes its own ports again.
    engine.ok("restart -t 0 one");
    assert_eq!(engine.ok("port one 90"), "0.0.0.0:9000");
}

fn from_everywhere_through_nftables() {
    from_everywhere("nftables");
}

fn from_everywhere_through_iptables() {
    from_everywhere("iptables");
}

fn from_everywhere(firewall: &'static str) {
    let engine = engine_with(firewall);
    let neighbour = Neighbour::new();
    sleeper(&engine, "one", "-p 8080:80 -p 8080:80/udp");
    sleeper(&engine, "two", "");
    engine.ok("network create other");
    sleeper(&engine, "apart", "-n other");
    let serve = || {
        (
            Server::greeting(&engine, "one", 80, "tcp one"),
            Server::udp(&engine, "one", 80, "udp one"),
        )
    };
    let host = format!("{}:8080", Neighbour::HOST);
    let check = |from: &str, address: &str, heard: Option<String>, answered: Option<String>| {
        assert_eq!(heard.as_deref(), Some("tcp one"), "{from} by {address}");
        assert_eq!(
            answered.as_deref(),
            Some("udp one x"),
            "{from} by {address}"
        );
    };
    let everywhere = || {
        check(
            "outside",
            &host,
            neighbour.visit(|| hear(&host)),
            neighbour.visit(|| ask(&host, "x")),
        );
        for address in [host.as_str(), "127.0.0.1:8080", "127.0.0.2:8080"] {
            check("the host", address, hear(address), ask(address, "x"));
        }
        // The container itself, a neighbour on its bridge, and one on another.
        for name in ["one", "two", "apart"] {
            let heard = inside(&engine, name, || hear(&host));
            let answered = inside(&engine, name, || ask(&host, "x"));
            check(name, &host, heard, answered);
        }
    };
    let servers = serve();
    everywhere();
    drop(servers);
    engine.ok("restart -t 0 one");
    let servers = serve();
    everywhere();
    drop(servers);
    engine.ok("rm -f one two apart");
    assert_eq!(hear("127.0.0.1:8080"), None);
    engine.ok("network rm other");
    drop(neighbour);
}

fn only_what_is_published_is_reached_through_nftables() {
    only_what_is_published_is_reached("nftables");
}

fn only_what_is_published_is_reached_through_iptables() {
    only_what_is_published_is_reached("iptables");
}

fn only_what_is_published_is_reached(firewall: &'static str) {
    let engine = engine_with(firewall);
    let neighbour = Neighbour::new();
    sleeper(
        &engine,
        "one",
        "-p 127.0.0.1:8080:80 -p 8081:81 -p 127.0.0.1:8080:80/udp",
    );
    let _loopback = Server::greeting(&engine, "one", 80, "for the host");
    let _public = Server::greeting(&engine, "one", 81, "for all");
    let _udp = Server::udp(&engine, "one", 80, "for the host");
    assert_eq!(hear("127.0.0.1:8080").as_deref(), Some("for the host"));
    let address = engine.look("one", "/NetworkSettings/IPAddress");
    let address = address.as_str().unwrap();
    let own = format!("{address}:80");
    assert_eq!(hear(&own).as_deref(), Some("for the host"));

    // A machine on the same link that routes what is not its own to us: the container's address, and 127.0.0.1.
    neighbour.visit(|| {
        shell("sysctl -q -w net.ipv4.conf.all.route_localnet=1");
        shell("ip addr del 127.0.0.1/8 dev lo");
        shell(&format!(
            "ip route add 127.0.0.1/32 via {} src {}",
            Neighbour::HOST,
            Neighbour::ADDRESS
        ));
        shell("ip rule add pref 1 to 127.0.0.1 lookup main");
        for target in [own.as_str(), "127.0.0.1:8080"] {
            assert_eq!(hear(target), None, "{target} from outside");
            assert_eq!(ask(target, "x"), None, "{target} from outside");
        }
        // Nor the container's own number of a port that is published under another.
        assert_eq!(hear(&format!("{address}:81")), None);
        let public = format!("{}:8081", Neighbour::HOST);
        assert_eq!(hear(&public).as_deref(), Some("for all"));
    });

    // The number of a published port is nobody's but the host's.
    sleeper(&engine, "two", "-p 9000:90");
    let _other = Server::greeting(&engine, "two", 8081, "two's own");
    let two = engine.look("two", "/NetworkSettings/IPAddress");
    let there = format!("{}:8081", two.as_str().unwrap());
    let heard = inside(&engine, "one", || hear(&there));
    assert_eq!(heard.as_deref(), Some("two's own"));
    // And outside is outside: a container reaches the same number on another machine.
    let far = neighbour.visit(|| TcpListener::bind("0.0.0.0:8081").unwrap());
    let far_away = format!("{}:8081", Neighbour::ADDRESS);
    inside(&engine, "one", || {
        stack_tests::traffic::connect(&far_away).unwrap()
    });
    assert!(far.accept().is_ok());
    drop(far);
    drop(neighbour);
}

fn rules_come_back_by_reload() {
    let engine = Engine::new().with_base();
    sleeper(&engine, "one", "-p 8080:80");
    let id = engine.look("one", "/Id");
    let _server = Server::greeting(&engine, "one", 80, "back");
    let reached = || hear("127.0.0.1:8080");
    let before = host::rules();
    assert_eq!(reached().as_deref(), Some("back"));
    shell("nft flush ruleset");
    assert_eq!(reached(), None);
    assert_eq!(engine.ok("network reload one"), id.as_str().unwrap());
    assert_eq!(reached().as_deref(), Some("back"));
    assert_eq!(host::rules(), before);
    // Again, and again: nothing becomes more.
    engine.ok("network reload --all");
    engine.ok("network reload -a");
    assert_eq!(host::rules(), before);
    // Settings, and the bridge itself.
    let links = host::links();
    let bridge = links
        .iter()
        .find(|link| !link.starts_with("veth") && *link != "lo");
    let bridge = bridge.unwrap();
    shell("sysctl -q -w net.ipv4.ip_forward=0");
    shell(&format!(
        "sysctl -q -w net.ipv4.conf.{bridge}.route_localnet=0"
    ));
    shell(&format!("ip link set {bridge} down"));
    assert_eq!(reached(), None);
    engine.ok("network reload --all");
    assert_eq!(reached().as_deref(), Some("back"));
    assert_eq!(shell("sysctl -n net.ipv4.ip_forward").trim(), "1");
    shell(&format!("ip link del {bridge}"));
    assert_eq!(reached(), None);
    engine.ok("network reload --all");
    until("the bridge carries packets again", reached);
    // The next start does it by itself.
    shell("nft flush ruleset");
    engine.ok("run --rm base true");
    until(
        "the start of another container has put the rules back",
        reached,
    );
    engine.run("network reload nosuch").code(1).err("nosuch");
    engine.ok("create --name idle base true");
    engine
        .run("network reload idle")
        .code(1)
        .err("not connected");
    engine.run("network reload").code(125);
}

fn a_udp_peer_that_never_pauses_meets_the_next_container() {
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    let host = format!("{}:5300", Neighbour::HOST);
    sleeper(&engine, "one", "-p 5300:53/udp");
    let first = Server::udp(&engine, "one", 53, "first");
    let socket = neighbour.visit(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    let asked = || ask_from(&socket, &host, "x");
    assert_eq!(asked().as_deref(), Some("first x"));
    drop(first);
    engine.ok("rm -f one");
    assert_eq!(asked(), None);
    sleeper(&engine, "two", "-p 5300:53/udp");
    let _second = Server::udp(&engine, "two", 53, "second");
    // From the very same port, all the time.
    assert_eq!(asked().as_deref(), Some("second x"));
    drop(neighbour);
}

fn networks_without_ports_of_their_own() {
    let engine = Engine::new().with_base();
    for network in ["host", "none"] {
        let outcome = engine.run(&format!(
            "run --rm --network {network} -p 8080:80 base true"
        ));
        outcome.code(0).err("published ports are discarded");
    }
    sleeper(&engine, "one", "");
    let outcome = engine.run("run --rm --network container:one -p 8080:80 base true");
    outcome.code(125).err("conflicting options");
}

fn a_host_without_a_packet_filter() {
    let engine = Engine::new().with_base().with_firewall("none");
    let before = host::rules();
    let run = "run -d --name one -p 8080:80 base sleep 1000";
    engine.run(run).code(0).err("portmap start");
    assert_eq!(host::rules(), before);
    assert_eq!(engine.ok("port one"), "80/tcp -> 0.0.0.0:8080");
    let _server = Server::greeting(&engine, "one", 80, "by address");
    let address = engine.look("one", "/NetworkSettings/IPAddress");
    assert_eq!(
        hear(&format!("{}:80", address.as_str().unwrap())).as_deref(),
        Some("by address")
    );
    // What would need a filter stays off: a container must not reach the host's loopback services.
    let service = TcpListener::bind("127.0.0.1:7000").unwrap();
    let links = host::links();
    for link in links.iter().filter(|link| *link != "lo") {
        let setting = shell(&format!("sysctl -n net.ipv4.conf.{link}.route_localnet"));
        assert_eq!(setting.trim(), "0", "{link}");
    }
    drop(service);
    engine.ok("portmap start -d");
    let outcome = engine.run("run -d --name two -p 8081:80 base sleep 1000");
    assert!(!outcome.stderr.contains("warning"), "{}", outcome.report());
    until("the forwarder serves", || hear("127.0.0.1:8080"));
    engine.ok("portmap stop");
    engine.ok("rm -f one two");
    assert_eq!(host::rules(), before);
    let nonsense = Engine::on_host().with_base().with_firewall("ipchains");
    let outcome = nonsense.run("run --rm base true");
    outcome.code(125).err("QENGINE_FIREWALL is ipchains");
}
