//! Networks on the real kernel.
//!
//! Each test makes a network namespace that plays the host, and joins it for as long as it runs; containers, and what
//! is outside, are further namespaces. So nothing here touches the links or the packet filter of the machine.
//! Needs root; without, the tests say so and do nothing.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use qengine::network::{
    self, CreateOptions, Endpoint, Error, Mode, PortMapping, PublishedPort, Setup,
};
use qengine::store::{Store, make_dir};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, held by a sleeping process.
struct Namespace {
    holder: Child,
    file: File,
}

impl Namespace {
    fn new() -> Namespace {
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "300"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/net", holder.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(&path).is_ok_and(|theirs| theirs == ours) {
            assert!(
                Instant::now() < deadline,
                "no network namespace after ten seconds"
            );
            thread::sleep(Duration::from_millis(2));
        }
        let file = File::open(path).unwrap();
        Namespace { holder, file }
    }

    /// Runs `body` in a thread that has joined the namespace.
    fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    join(&self.file);
                    body()
                })
                .join()
                .unwrap()
        })
    }

    /// Serves, on `port`, the text `says` and the peer's address.
    fn serve(&self, port: u16, says: &'static str) {
        let listener = self.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{says} {}", peer.ip());
            }
        });
    }

    fn fetch(&self, address: &str) -> Option<String> {
        self.run(|| fetch(address))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn join(namespace: impl AsFd) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn fetch(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(700)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The namespace that plays the host, with a store. The test's thread is in it.
struct Host {
    namespace: Namespace,
    store: Store,
    _directory: tempfile::TempDir,
}

impl Host {
    /// `None`, and a word about it, without root rights.
    fn new() -> Option<Host> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        let namespace = Namespace::new();
        join(&namespace.file);
        ip("link set lo up");
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        let host = Host {
            namespace,
            store,
            _directory: directory,
        };
        Some(host)
    }

    /// A namespace beyond the host: 10.99.0.2, the host being 10.99.0.1 there.
    fn outside(&self) -> Namespace {
        let outside = Namespace::new();
        ip(&format!(
            "link add out0 type veth peer name eth0 netns {}",
            outside.holder.id()
        ));
        ip("addr add 10.99.0.1/24 dev out0");
        ip("link set out0 up");
        outside.run(|| {
            ip("link set lo up");
            ip("addr add 10.99.0.2/24 dev eth0");
            ip("link set eth0 up");
        });
        outside
    }

    fn create(&self, name: &str, subnet: Option<&str>, internal: bool) {
        let options = CreateOptions {
            name: name.into(),
            subnets: subnet.into_iter().map(Into::into).collect(),
            internal,
            ..CreateOptions::default()
        };
        network::create(&self.store, options).unwrap();
    }

    /// A container on `network` with `ports` published.
    fn container(&self, id: &str, network: &str, ports: &[&str]) -> Container<'_> {
        make_dir(&self.store.container(id)).unwrap();
        let mappings: Vec<_> = ports
            .iter()
            .flat_map(|text| PortMapping::parse(text).unwrap())
            .collect();
        let mode = Mode::Networks(network.split(',').map(Endpoint::new).collect());
        let setup = network::reserve(&self.store, id, &mode, &mappings).unwrap();
        let namespace = Namespace::new();
        network::connect(&self.store, id, &setup, &namespace.file).unwrap();
        Container {
            store: &self.store,
            id: id.into(),
            setup,
            namespace,
        }
    }
}

struct Container<'a> {
    store: &'a Store,
    id: String,
    setup: Setup,
    namespace: Namespace,
}

impl Container<'_> {
    fn address(&self) -> IpAddr {
        self.setup.attachments[0].address
    }

    fn remove(self) {
        network::disconnect(self.store, &self.id, &self.setup).unwrap();
        network::release(self.store, &self.id, &self.setup).unwrap();
        fs::remove_dir(self.store.container(&self.id)).unwrap();
    }
}

fn ip(arguments: &str) {
    output("ip", arguments);
}

fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Links but the loopback interface, and the packet filter.
fn traces() -> (Vec<String>, String) {
    let links = output("ip", "-brief link");
    let links = links
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    (
        links.filter(|name| *name != "lo").map(Into::into).collect(),
        output("nft", "list ruleset"),
    )
}

const NOTHING: (Vec<String>, String) = (Vec::new(), String::new());

#[test]
fn a_published_port_is_reached_from_everywhere() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    let web = host.container("web", "bridge", &["8080:80", "127.0.0.1:8081:80"]);
    let other = host.container("other", "bridge", &[]);
    host.create("second", None, false);
    let stranger = host.container("stranger", "second", &[]);
    web.namespace.serve(80, "web sees");
    let direct = format!("{}:80", web.address());

    // From the host: through the loopback interface the bridge's address is seen, else the host's own.
    assert_eq!(
        fetch("127.0.0.1:8080").as_deref(),
        Some("web sees 172.17.0.1")
    );
    assert_eq!(
        fetch("127.0.0.1:8081").as_deref(),
        Some("web sees 172.17.0.1")
    );
    assert_eq!(
        fetch("10.99.0.1:8080").as_deref(),
        Some("web sees 10.99.0.1")
    );
    assert_eq!(fetch("10.99.0.1:8081"), None);
    assert!(fetch(&direct).is_some());
    // From outside: its own address is seen.
    assert_eq!(
        outside.fetch("10.99.0.1:8080").as_deref(),
        Some("web sees 10.99.0.2")
    );
    assert_eq!(outside.fetch("10.99.0.1:8081"), None);
    // From containers: itself, a neighbour, one of another network.
    for container in [&web, &other, &stranger] {
        let seen = container.namespace.fetch("10.99.0.1:8080");
        assert!(
            seen.is_some_and(|text| text.starts_with("web sees")),
            "{}",
            container.id
        );
    }
    assert_eq!(
        other.namespace.fetch(&direct).as_deref(),
        Some("web sees 172.17.0.3")
    );
    // Not past the host's addresses: neither another network's container nor somebody outside who knows the way.
    assert_eq!(stranger.namespace.fetch(&direct), None);
    outside.run(|| ip("route add 172.17.0.0/16 via 10.99.0.1"));
    assert_eq!(outside.fetch(&direct), None);

    for container in [other, stranger, web] {
        container.remove();
    }
    ip("link del out0");
    assert_eq!(traces(), NOTHING);
}

#[test]
fn loopback_addresses_of_the_host_stay_its_own() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    let web = host.container("web", "bridge", &["127.0.0.1:8081:80"]);
    web.namespace.serve(80, "web sees");
    let listener = TcpListener::bind("127.0.0.1:9000").unwrap();
    listener.set_nonblocking(true).unwrap();
    // Both send packets to 127.0.0.1 through their default route, as a malicious neighbour could.
    for (namespace, gateway) in [(&outside, "10.99.0.1"), (&web.namespace, "172.17.0.1")] {
        namespace.run(|| {
            fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!("route add 127.0.0.1/32 via {gateway} dev eth0"));
        });
        assert_eq!(namespace.fetch("127.0.0.1:8081"), None);
        assert_eq!(namespace.fetch("127.0.0.1:9000"), None);
    }
    assert!(listener.accept().is_err());
    assert!(fetch("127.0.0.1:8081").is_some());
}

#[test]
fn a_container_reaches_the_outside_under_the_hosts_address() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    outside.serve(99, "outside sees");
    host.create("inner", None, true);
    let container = host.container("one", "bridge", &[]);
    let locked = host.container("two", "inner", &[]);
    let both = host.container("three", "inner,bridge", &[]);
    assert_eq!(
        container.namespace.fetch("10.99.0.2:99").as_deref(),
        Some("outside sees 10.99.0.1")
    );
    assert_eq!(locked.namespace.fetch("10.99.0.2:99"), None);
    // Not even with a route of its own.
    locked.namespace.run(|| {
        let gateway = locked.setup.attachments[0].gateway.unwrap();
        ip(&format!("route add default via {gateway}"));
    });
    assert_eq!(locked.namespace.fetch("10.99.0.2:99"), None);
    assert_eq!(
        both.namespace.fetch("10.99.0.2:99").as_deref(),
        Some("outside sees 10.99.0.1")
    );
    // IPv6 is off where a neighbour could configure it.
    let addresses = container
        .namespace
        .run(|| output("ip", "-6 -brief addr show dev eth0"));
    assert_eq!(addresses, "");
    let own = output("ip", "-6 -brief addr");
    assert!(
        own.lines()
            .all(|line| line.starts_with("lo ") || line.starts_with("out0")),
        "{own}"
    );
}

#[test]
fn udp_ports_are_published_too() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    let first = host.container("first", "bridge", &[]);
    // A peer that begins before there is anybody to talk to, and keeps its port.
    let peer = outside.run(|| UdpSocket::bind("0.0.0.0:4000").unwrap());
    peer.set_read_timeout(Some(Duration::from_millis(700)))
        .unwrap();
    let ask = |peer: &UdpSocket, address: &str| {
        peer.send_to(b"hello", address).unwrap();
        let mut buffer = [0; 64];
        peer.recv(&mut buffer)
            .ok()
            .map(|length| buffer[..length].to_vec())
    };
    assert_eq!(ask(&peer, "10.99.0.1:5000"), None);
    let echo = host.container("echo", "bridge", &["5000:7/udp"]);
    let socket = echo.namespace.run(|| UdpSocket::bind("0.0.0.0:7").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
    assert_eq!(ask(&peer, "10.99.0.1:5000").as_deref(), Some(&b"hello"[..]));
    let local = UdpSocket::bind("127.0.0.1:0").unwrap();
    local
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    assert_eq!(
        ask(&local, "127.0.0.1:5000").as_deref(),
        Some(&b"hello"[..])
    );
    first.remove();
    echo.remove();
}

#[test]
fn what_a_killed_command_left_is_taken_away() {
    let Some(host) = Host::new() else { return };
    let dead = host.container("dead", "bridge", &["8080:80"]);
    let alive = host.container("alive", "bridge", &["8081:80"]);
    alive.namespace.serve(80, "alive sees");
    // The container's processes and its directory go without a word to the network.
    fs::remove_dir(host.store.container("dead")).unwrap();
    drop(dead);
    network::collect(&host.store).unwrap();
    let (links, rules) = traces();
    assert_eq!(links.len(), 2, "{links:?}");
    assert!(
        !rules.contains("tcp . 8080") && rules.contains("tcp . 8081"),
        "{rules}"
    );
    assert!(fetch("127.0.0.1:8081").is_some());
    // Its address and its port can be had again.
    let next = host.container("next", "bridge", &["8080:80"]);
    assert_eq!(next.address(), IpAddr::from([172, 17, 0, 2]));
    for id in ["alive", "next"] {
        fs::remove_dir(host.store.container(id)).unwrap();
    }
    network::collect(&host.store).unwrap();
    assert_eq!(traces(), NOTHING);
}

#[test]
fn a_failure_half_way_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    make_dir(&host.store.container("one")).unwrap();
    let setup = network::reserve(&host.store, "one", &Mode::default(), &[]).unwrap();
    let namespace = Namespace::new();
    // An interface of that name is there already.
    namespace.run(|| ip("link add eth0 type veth peer name x"));
    let error = network::connect(&host.store, "one", &setup, &namespace.file).unwrap_err();
    assert!(matches!(error, Error::Kernel { .. }), "{error}");
    assert_eq!(traces(), NOTHING);
    network::release(&host.store, "one", &setup).unwrap();
    assert_eq!(
        host.container("one", "bridge", &[]).address(),
        IpAddr::from([172, 17, 0, 2])
    );
}

#[test]
fn many_come_and_go_at_once() {
    let Some(host) = Host::new() else { return };
    const CONTAINERS: usize = 20;
    thread::scope(|scope| {
        for number in 0..CONTAINERS {
            let host = &host;
            scope.spawn(move || {
                join(&host.namespace.file);
                for round in 0..3 {
                    let id = format!("c{number}-{round}");
                    let port = format!("{}:80", 20000 + number);
                    let container = host.container(&id, "bridge", &[&port]);
                    container.namespace.serve(80, "sees");
                    assert!(
                        fetch(&format!("127.0.0.1:{}", 20000 + number)).is_some(),
                        "{id}"
                    );
                    container.remove();
                }
            });
        }
    });
    assert_eq!(traces(), NOTHING);
    let left = fs::read_dir(host.store.addresses().join("bridge"))
        .unwrap()
        .count();
    assert_eq!(left, 0);
}

#[test]
fn rules_that_somebody_flushed_come_back() {
    let Some(host) = Host::new() else { return };
    let web = host.container("web", "bridge", &["8080:80"]);
    web.namespace.serve(80, "web sees");
    output("nft", "flush ruleset");
    assert_eq!(fetch("127.0.0.1:8080"), None);
    let other = host.container("other", "bridge", &[]);
    assert!(fetch("127.0.0.1:8080").is_some());
    output("nft", "flush ruleset");
    web.remove();
    other.remove();
    assert_eq!(traces(), NOTHING);
}

#[test]
fn a_forward_chain_that_drops_is_passed() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    output("iptables", "-P FORWARD DROP");
    let before = output("iptables-save", "-t filter");
    let web = host.container("web", "bridge", &["8080:80"]);
    let other = host.container("other", "bridge", &[]);
    web.namespace.serve(80, "web sees");
    assert!(outside.fetch("10.99.0.1:8080").is_some());
    assert!(
        other
            .namespace
            .fetch(&format!("{}:80", web.address()))
            .is_some()
    );
    web.remove();
    other.remove();
    let rules = |text: &str| {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<String>()
    };
    assert_eq!(rules(&output("iptables-save", "-t filter")), rules(&before));
}

/// In a process of its own: which packet filter is used is told by the environment, which tests of one process share.
#[test]
fn the_same_by_iptables() {
    const CHOICE: &str = "QENGINE_FIREWALL";
    if std::env::var_os(CHOICE).is_some_and(|filter| filter == "iptables") {
        return by_iptables();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .env(CHOICE, "iptables")
        .args(["--exact", "the_same_by_iptables", "--nocapture"])
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn by_iptables() {
    let Some(host) = Host::new() else { return };
    let outside = host.outside();
    outside.serve(99, "outside sees");
    host.create("second", None, false);
    host.create("inner", None, true);
    let web = host.container("web", "bridge", &["8080:80", "127.0.0.1:8081:80"]);
    let other = host.container("other", "bridge", &["8082:80"]);
    let stranger = host.container("stranger", "second", &[]);
    let locked = host.container("locked", "inner", &[]);
    web.namespace.serve(80, "web sees");
    for address in ["127.0.0.1:8080", "127.0.0.1:8081", "10.99.0.1:8080"] {
        assert!(fetch(address).is_some(), "{address}");
    }
    assert_eq!(
        outside.fetch("10.99.0.1:8080").as_deref(),
        Some("web sees 10.99.0.2")
    );
    assert_eq!(outside.fetch("10.99.0.1:8081"), None);
    assert!(web.namespace.fetch("10.99.0.1:8080").is_some());
    assert!(other.namespace.fetch("10.99.0.1:8080").is_some());
    let direct = format!("{}:80", web.address());
    assert_eq!(stranger.namespace.fetch(&direct), None);
    outside.run(|| ip("route add 172.17.0.0/16 via 10.99.0.1"));
    assert_eq!(outside.fetch(&direct), None);
    assert_eq!(
        other.namespace.fetch("10.99.0.2:99").as_deref(),
        Some("outside sees 10.99.0.1")
    );
    assert_eq!(locked.namespace.fetch("10.99.0.2:99"), None);
    assert!(!output("nft", "list ruleset").contains("table inet"));
    for container in [web, other, stranger, locked] {
        container.remove();
    }
    assert!(!output("iptables-save", "--").contains("QENGINE"));
}

#[test]
fn addresses_and_networks_that_cannot_be_had() {
    let Some(host) = Host::new() else { return };
    let _outside = host.outside();
    let create = |name: &str, subnet: &str| {
        let options = CreateOptions {
            name: name.into(),
            subnets: vec![subnet.into()],
            ..CreateOptions::default()
        };
        network::create(&host.store, options)
    };
    // What the host has, what another network has, a name that is taken.
    assert!(matches!(
        create("x", "10.99.0.0/16"),
        Err(Error::Overlap { .. })
    ));
    create("net", "10.72.0.1/24").unwrap();
    assert!(matches!(
        create("x", "10.72.0.128/25"),
        Err(Error::Overlap { .. })
    ));
    assert!(matches!(
        create("net", "10.73.0.0/24"),
        Err(Error::Exists(_))
    ));
    assert!(matches!(
        create("host", "10.73.0.0/24"),
        Err(Error::Exists(_))
    ));
    // In use, pre-defined, not there.
    let one = host.container("one", "net", &[]);
    assert_eq!(one.address(), IpAddr::from([10, 72, 0, 2]));
    assert!(matches!(
        network::remove(&host.store, "net"),
        Err(Error::InUse { .. })
    ));
    for name in ["bridge", "host", "none"] {
        assert!(matches!(
            network::remove(&host.store, name),
            Err(Error::Predefined(_))
        ));
    }
    let described = serde_json::to_value(network::inspect(&host.store, "net").unwrap()).unwrap();
    assert_eq!(described["IPAM"]["Config"][0]["Gateway"], "10.72.0.1");
    assert_eq!(
        described["Containers"]["one"]["IPv4Address"],
        "10.72.0.2/24"
    );
    // An address that somebody has, a port that somebody has.
    make_dir(&host.store.container("two")).unwrap();
    let reserve = |endpoint: Endpoint, ports: &[PortMapping]| {
        network::reserve(&host.store, "two", &Mode::Networks(vec![endpoint]), ports)
    };
    let wanted = Endpoint {
        address: Some(one.address()),
        ..Endpoint::new("net")
    };
    assert!(matches!(
        reserve(wanted, &[]),
        Err(Error::AddressTaken { .. })
    ));
    let _listener = TcpListener::bind("127.0.0.1:8080").unwrap();
    let ports = PortMapping::parse("8080:80").unwrap();
    let error = reserve(Endpoint::new("net"), &ports).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Bind for 0.0.0.0:8080 failed: port is already allocated"
    );
    assert!(matches!(
        reserve(Endpoint::new("nowhere"), &[]),
        Err(Error::NotFound(_))
    ));
    // None of that took anything.
    let setup = reserve(
        Endpoint::new("net"),
        &PortMapping::parse("8081:80").unwrap(),
    )
    .unwrap();
    assert_eq!(setup.attachments[0].address, IpAddr::from([10, 72, 0, 3]));
    let [
        PublishedPort {
            host_port: 8081, ..
        },
    ] = setup.ports[..]
    else {
        panic!("{:?}", setup.ports);
    };
    network::release(&host.store, "two", &setup).unwrap();
    one.remove();
    assert_eq!(network::remove(&host.store, "net").unwrap().name, "net");
}

#[test]
fn the_default_network_makes_room() {
    let Some(host) = Host::new() else { return };
    let web = host.container("web", "bridge", &[]);
    assert_eq!(web.address(), IpAddr::from([172, 17, 0, 2]));
    web.remove();
    // Somebody else takes the addresses meanwhile.
    ip("link add other0 type veth peer name other1");
    ip("addr add 172.17.5.1/24 dev other0");
    ip("link set other0 up");
    let web = host.container("web", "bridge", &[]);
    assert_eq!(web.address(), IpAddr::from([172, 18, 0, 2]));
    web.remove();
}

#[test]
fn without_a_network_there_is_the_loopback_interface() {
    let Some(host) = Host::new() else { return };
    make_dir(&host.store.container("one")).unwrap();
    let setup = network::reserve(&host.store, "one", &Mode::None, &[]).unwrap();
    let namespace = Namespace::new();
    network::connect(&host.store, "one", &setup, &namespace.file).unwrap();
    namespace.serve(80, "self sees");
    assert_eq!(
        namespace.fetch("127.0.0.1:80").as_deref(),
        Some("self sees 127.0.0.1")
    );
    assert_eq!(traces(), NOTHING);
    let host_mode = network::reserve(&host.store, "one", &Mode::Host, &[]).unwrap();
    assert!(!host_mode.own_namespace);
    network::disconnect(&host.store, "one", &setup).unwrap();
}
