//! Names of containers on a network: the resolver process, what it tells and what it keeps to itself.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stack_tests::command::shell;
use stack_tests::engine::Engine;
use stack_tests::host;
use stack_tests::http;
use stack_tests::needs::{Need, Test};
use stack_tests::netns::Neighbour;
use stack_tests::tests;
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "names",
        &[Need::Root],
        [
            two_containers_ping_each_other_by_name,
            a_killed_resolver_is_replaced,
            names_stay_on_their_network_and_others_are_passed_on,
            a_container_on_two_networks_reaches_both_by_name,
            a_running_container_is_connected_and_disconnected,
            a_stopped_container_is_connected_and_disconnected,
            published_ports_move_to_the_next_network,
            ipv6_on_demand,
            ipv4_networks_have_no_ipv6,
            the_resolver_survives_what_clients_send,
            name_servers_of_others_are_in_nobodys_way,
        ]
    )
}

/// Process ids of this engine's resolvers.
fn resolvers(engine: &Engine) -> Vec<i32> {
    let all = host::processes_naming(engine.directory()).into_iter();
    all.filter(|(_, line)| line.contains("resolver"))
        .map(|(pid, _)| pid)
        .collect()
}

/// A name server that knows one name, and remembers what it was asked for.
struct NameServer {
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    /// Answers each question with 192.0.2.7, on `address`, in the calling thread's network namespace.
    fn start(address: &str) -> NameServer {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = asked.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let mut reply = buffer[..length].to_vec();
                let mut name = String::new();
                let mut at = 12;
                while reply[at] != 0 {
                    let end = at + 1 + usize::from(reply[at]);
                    name += &String::from_utf8_lossy(&reply[at + 1..end]);
                    name.push('.');
                    at = end;
                }
                let is_address = reply[at + 2] == 1;
                list.lock().unwrap().push(name);
                // An answer to the question alone, whatever else was with it.
                reply.truncate(at + 5);
                reply[2] |= 0x80;
                reply[6..12].fill(0);
                if is_address {
                    reply[7] = 1;
                    reply.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\xc0\0\x02\x07");
                }
                drop(socket.send_to(&reply, peer));
            }
        });
        NameServer { asked }
    }

    fn was_asked_for(&self, name: &str) -> bool {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .any(|asked| asked.contains(name))
    }
}

fn two_containers_ping_each_other_by_name() {
    let engine = Engine::new().with_base();
    engine.ok("network create --driver bridge --subnet 10.200.0.1/24 testbridge1");
    engine.ok("run -d --name one --network-alias uno -net testbridge1 base sleep 1000");
    let id = engine.ok("run -d --name two --hostname zwei -net testbridge1 base sleep 1000");
    for (from, to) in [
        ("one", "two"),
        ("two", "one"),
        ("two", "10.200.0.2"),
        ("two", "uno"),
        ("two", "UNO"),
        ("one", "zwei"),
        ("one", &id[..12]),
        ("one", "two.testbridge1"),
    ] {
        engine
            .run(&format!("exec {from} ping -c 1 -W 5 {to}"))
            .code(0)
            .out("1 packets received");
    }
    engine
        .run("exec one nslookup -type=ptr 3.0.200.10.in-addr.arpa")
        .code(0)
        .out("two.testbridge1");
    assert_eq!(resolvers(&engine).len(), 1);
    engine.ok("rm -f one");
    engine
        .run("exec two ping -c 1 -W 5 one")
        .out("")
        .err("bad address 'one'");
    engine.ok("rm -f two");
    assert!(resolvers(&engine).is_empty(), "{:?}", resolvers(&engine));
    assert!(host::links().iter().all(|link| link == "lo"));
    engine.ok("network remove testbridge1");
}

fn a_killed_resolver_is_replaced() {
    let engine = Engine::new().with_base();
    engine.ok("network create mine");
    engine.ok("run -d --name one -n mine base sleep 1000");
    let before = resolvers(&engine);
    assert_eq!(before.len(), 1);
    let pid = nix::unistd::Pid::from_raw(before[0]);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    until("it is gone", || resolvers(&engine).is_empty().then_some(()));
    engine
        .run("run --rm -n mine base ping -c 1 -W 5 one")
        .code(0);
    let after = resolvers(&engine);
    assert!(after.len() == 1 && after != before, "{after:?}");
    // Who joins a container's network has its names.
    engine
        .run("run --rm -net container:one base ping -c 1 -W 5 one")
        .code(0);
    // The default network has none.
    engine.ok("rm -f one");
    engine.ok("run -d --name one base sleep 1000");
    assert!(resolvers(&engine).is_empty());
}

fn names_stay_on_their_network_and_others_are_passed_on() {
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    let server = neighbour.visit(|| NameServer::start(Neighbour::ADDRESS));
    engine.ok("network create mine");
    engine.ok("network create other");
    engine.ok("network create --internal inside");
    engine.ok("run -d --name one -n mine base sleep 1000");
    engine.ok("run -d --name stopped -n mine base true");
    let dns = format!("--dns {}", Neighbour::ADDRESS);
    let look = |network: &str, name: &str| {
        engine.run(&format!("run --rm {dns} -n {network} base nslookup {name}"))
    };
    look("mine", "one").code(0).out("Name:\tone");
    look("mine", "some.example").code(0).out("192.0.2.7");
    look("other", "some.example").code(0).out("192.0.2.7");
    assert!(server.was_asked_for("some.example"));
    for name in ["one", "one.mine", "stopped"] {
        look("other", name).code(1).out("NXDOMAIN");
    }
    // A search domain is for names with a dot in them; one that a container has is asked for as it is.
    engine
        .run(&format!(
            "run --rm {dns} --dns-search corp.example -n mine base ping -c 1 -W 5 one"
        ))
        .code(0);
    assert!(!server.was_asked_for("one"));
    assert!(!server.was_asked_for("stopped"));
    look("inside", "evil.example").code(1).out("NXDOMAIN");
    assert!(!server.was_asked_for("evil"));
    // Not reachable, neither by name nor by address.
    engine
        .run(&format!("run --rm -n other base {PING} one"))
        .code(1);
    let address = engine.look("one", "/NetworkSettings/IPAddress");
    let address = address.as_str().unwrap();
    engine
        .run(&format!("run --rm -n mine base {PING} {address}"))
        .code(0);
    engine
        .run(&format!("run --rm -n other base {PING} {address}"))
        .code(1);
    engine.ok("rm -f one");
    drop(neighbour);
}

const PING: &str = "ping -c 1 -W 2";

fn a_container_on_two_networks_reaches_both_by_name() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 a");
    engine.ok("network create --subnet 10.73.0.0/24 b");
    engine.ok("run -d --name one -n a base sleep 1000");
    engine.ok("run -d --name two -n b base sleep 1000");
    engine.ok(
        "run -d --name both --network a:ip=10.72.0.9,alias=x --network name=b,alias=y,ip=10.73.0.9 base sleep 1000",
    );
    for (from, to) in [
        ("both", "one"),
        ("both", "two"),
        ("one", "both"),
        ("one", "x"),
        ("two", "both"),
        ("two", "y"),
    ] {
        engine.run(&format!("exec {from} {PING} {to}")).code(0);
    }
    for (from, to) in [
        ("one", "two"),
        ("one", "y"),
        ("two", "x"),
        ("two", "10.72.0.9"),
    ] {
        engine.run(&format!("exec {from} {PING} {to}")).code(1);
    }
    engine
        .run("exec both ip -4 -o addr")
        .out("eth0    inet 10.72.0.9/24")
        .out("eth1    inet 10.73.0.9/24");
    engine
        .run("exec both ip route")
        .out("default via 10.72.0.1");
    assert_eq!(
        engine.look("both", "/NetworkSettings/Networks/b/Aliases"),
        serde_json::json!(["y"])
    );
    engine
        .run("run --rm --network a --network a base true")
        .code(125)
        .err("more than once");
    engine
        .run("run --rm --network host --network a base true")
        .code(125)
        .err("host");
}

fn a_running_container_is_connected_and_disconnected() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 a");
    engine.ok("network create --subnet 10.73.0.0/24 b");
    engine.ok("run -d --name two -n b base sleep 1000");
    // On the default network, which has no resolver.
    engine.ok("run -d --name one base sleep 1000");
    engine.ok("network connect --ip 10.73.0.7 --alias uno b one");
    engine.run(&format!("exec one {PING} two")).code(0);
    engine
        .run(&format!("exec two {PING} uno"))
        .code(0)
        .out("10.73.0.7");
    engine.run("exec one grep 10.73.0.7 /etc/hosts").code(0);
    engine
        .run("network connect b one")
        .code(1)
        .err("endpoint with name one already exists in network b");
    engine
        .run("network inspect b")
        .out("\"Name\": \"one\"")
        .out("10.73.0.7/24");
    // What was changed holds for the next start too.
    engine.ok("restart -t 0 one");
    engine.run(&format!("exec two {PING} uno")).code(0);
    engine.ok("network disconnect bridge one");
    engine.run("exec one ip -o link").code(0).no_out("eth0");
    engine.run("exec one ip route").out("default via 10.73.0.1");
    engine.ok("network connect a one");
    engine.ok("network disconnect b one");
    engine.run(&format!("exec one {PING} two")).code(1);
    engine.run(&format!("exec two {PING} uno")).code(1);
    engine
        .run("network disconnect b one")
        .code(1)
        .err("container one is not connected to network b");
    engine.run("exec one ip route").out("default via 10.72.0.1");
    engine.ok("rm -f two");
    engine.ok("network remove b");
    engine.run("network remove a").code(1).err("one");
    engine
        .run("network connect nosuch one")
        .code(1)
        .err("nosuch");
    engine.run("network connect a nosuch").code(1).err("nosuch");
    engine.ok("network disconnect -f a nosuch");
}

fn a_stopped_container_is_connected_and_disconnected() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 a");
    engine.ok("network create --subnet 10.73.0.0/24 b");
    engine.ok("create --name one -n a base sleep 1000");
    engine.ok("network connect --ip 10.73.0.7 b one");
    engine.ok("network disconnect a one");
    engine.ok("start one");
    engine
        .run("exec one ip -4 -o addr")
        .out("10.73.0.7/24")
        .no_out("10.72.0");
    engine.ok("stop -t 0 one");
    // Gone while only a stopped container was on it.
    engine.ok("network remove b");
    engine.run("start one").code(1).err("network b not found");
    engine.ok("network disconnect b one");
    engine.ok("start one");
    engine.run("exec one ip -o link").out("lo").no_out("eth0");
    engine.ok("create --name alone --network none base true");
    engine.run("network connect a alone").code(1).err("none");
    engine.ok("create --name hosts --network host base true");
    engine.run("network connect a hosts").code(1).err("host");
}

fn published_ports_move_to_the_next_network() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 a");
    engine.ok("network create --subnet 10.73.0.0/24 b");
    let serve = "sh -c 'mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www'";
    engine.ok(&format!(
        "run -d --name one -p 8080:80 -n a -n b base {serve}"
    ));
    let serves = || {
        http::get("127.0.0.1", 8080, "/")
            .is_ok_and(|answer| answer.body == "served\n")
            .then_some(())
    };
    until("it answers on a", serves);
    engine.ok("network disconnect a one");
    until("it answers on b", serves);
    engine.ok("network disconnect b one");
    assert!(http::get("127.0.0.1", 8080, "/").is_err());
    engine.ok("network connect a one");
    until("it answers on a again", serves);
}

fn ipv6_on_demand() {
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    let links = host::links();
    let link = links.iter().find(|link| *link != "lo").unwrap();
    shell(&format!("ip -6 addr add fd99::1/64 dev {link} nodad"));
    neighbour.visit(|| shell("ip -6 addr add fd99::2/64 dev far nodad"));
    engine.ok("network create --ipv6 --subnet 10.72.0.0/24 --subnet fd00:72::1/64 six");
    engine.ok("network create --ipv6 other");
    engine
        .run("network create --ipv6 --subnet fd00:72::/80 overlapping")
        .code(1)
        .err("overlaps with network six (fd00:72::/64)");
    engine.ok(&format!(
        "run -d --name one --ip6 fd00:72::9 -p 8080:80 -n six base {SERVER}"
    ));
    engine.ok("run -d --name two -n other base sleep 1000");
    assert_eq!(
        engine.look("one", "/NetworkSettings/Networks/six/GlobalIPv6Address"),
        "fd00:72::9"
    );
    let run = |network: &str, what: &str| {
        engine.run(&format!(
            "run --rm -n {network} base ping -6 -c 1 -W 2 {what}"
        ))
    };
    run("six", "one").code(0);
    run("six", "fd00:72::9").code(0);
    // Out, although the neighbour knows no way back; and not to another network.
    run("six", "fd99::2").code(0);
    run("other", "fd99::2").code(0);
    run("other", "fd00:72::9").code(1);
    let serves = |address: &str| {
        let address = address.parse().unwrap();
        http::request(address, "GET", "/", None)
            .is_ok_and(|answer| answer.body == "served\n")
            .then_some(())
    };
    until("the port answers the neighbour by IPv6", || {
        neighbour.visit(|| serves("[fd99::1]:8080"))
    });
    until("the port answers the host by IPv6", || {
        serves("[fd99::1]:8080")
    });
    until("the port answers by IPv4", || serves("127.0.0.1:8080"));
    // From outside nothing but what is published.
    neighbour.visit(|| {
        shell("ip -6 route add fd00:72::/64 via fd99::1");
        let direct = std::net::SocketAddr::from(([0xfd00, 0x72, 0, 0, 0, 0, 0, 9], 80));
        assert!(std::net::TcpStream::connect_timeout(&direct, Duration::from_millis(700)).is_err());
    });
    engine
        .run("exec one cat /proc/sys/net/ipv6/conf/eth0/accept_ra")
        .out("0");
    drop(neighbour);
}

fn ipv4_networks_have_no_ipv6() {
    let engine = Engine::new().with_base();
    engine.ok("network create four");
    engine.ok("run -d --name one -n four base sleep 1000");
    engine
        .run("exec one ip -6 -o addr show dev eth0")
        .code(0)
        .no_out("inet6");
    let bridges = shell("ip -6 -o addr show scope link");
    assert!(!bridges.contains("qbr"), "{bridges}");
    engine
        .run("run --rm --ip6 fd00::5 -n four base true")
        .code(125)
        .err("has no IPv6");
    engine
        .run("run --rm -p [::]:8080:80 -n four base true")
        .code(125)
        .err("has no IPv6");
    engine
        .run("run --rm --ip 10.1.2.3 -n four base true")
        .code(125)
        .err("10.1.2.3");
}

fn the_resolver_survives_what_clients_send() {
    let engine = Engine::new().with_base();
    engine.ok("network create --subnet 10.72.0.0/24 mine");
    engine.ok("run -d --name one -n mine base sleep 1000");
    engine.ok("run -d --name bad -n mine base sleep 1000");
    // Connections that say nothing, or say it slowly; and rubbish.
    let script = "for n in $(seq 40); do (echo -n x; sleep 30) | nc 10.72.0.1 53 >/dev/null 2>&1 & done; \
                  for n in $(seq 200); do head -c $((n * 3)) /dev/urandom | nc -u -w 0 10.72.0.1 53; done \
                  >/dev/null 2>&1; true";
    engine.ok(&format!("exec -d bad sh -c '{script}'"));
    for _ in 0..5 {
        engine.run(&format!("exec one {PING} bad")).code(0);
    }
    let resolver = resolvers(&engine);
    assert_eq!(resolver.len(), 1);
    engine.ok("rm -f bad");
    engine.run(&format!("exec one {PING} one")).code(0);
    assert_eq!(resolvers(&engine), resolver);
}

fn name_servers_of_others_are_in_nobodys_way() {
    let engine = Engine::new().with_base();
    let server = UdpSocket::bind("0.0.0.0:53").unwrap();
    engine.ok("network create mine");
    engine.ok("run -d --name one -n mine base sleep 1000");
    engine
        .run(&format!("run --rm -n mine base {PING} one"))
        .code(0);
    drop(server);
    // Neither is ours in the way of another, nor does another's published port take ours over.
    drop(UdpSocket::bind("0.0.0.0:53").unwrap());
    engine.ok("run -d --name dns -p 53:53/udp -p 53:53 base sleep 1000");
    engine
        .run(&format!("run --rm -n mine base {PING} one"))
        .code(0);
    shell("nft flush ruleset");
    engine.run(&format!("exec one {PING} one")).code(1);
    engine.ok("network reload --all");
    engine.run(&format!("exec one {PING} one")).code(0);
}

const SERVER: &str =
    "sh -c 'mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www'";
