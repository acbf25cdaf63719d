//! The userland forwarder: that it serves what is published, follows containers, keeps nobody from their ports, and
//! holds out under load.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stack_tests::command::{run, shell};
use stack_tests::engine::Engine;
use stack_tests::needs::{Need, Test};
use stack_tests::netns::Neighbour;
use stack_tests::tests;
use stack_tests::traffic::{Server, ask, connect, hear, inside};
use stack_tests::wait::until;

pub(crate) fn tests() -> Vec<Test> {
    tests!(
        "portmap",
        &[Need::Root],
        [
            published_ports_without_a_packet_filter,
            containers_come_and_go,
            the_forwarder_is_no_foreign_listener,
            rules_and_forwarder_side_by_side,
            connections_end_as_their_ends_do,
            two_thousand_connections_at_once,
            more_connections_than_descriptors,
            datagrams_find_their_way_back,
            a_mapping_by_hand,
            a_mapping_to_any_kind_of_network,
            a_forwarder_that_was_killed_is_in_nobodys_way,
        ]
    )
}

fn engine() -> Engine {
    Engine::new().with_base().with_firewall("none")
}

fn sleeper(engine: &Engine, name: &str, flags: &str) {
    engine.ok(&format!("run -d --name {name} {flags} base sleep 1000"));
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn published_ports_without_a_packet_filter() {
    let engine = engine();
    let neighbour = Neighbour::new();
    engine.ok("portmap start -d");
    engine
        .run("portmap start -d")
        .code(1)
        .err("forwarded already");
    engine.run("portmap start").code(1).err("forwarded already");
    engine.run("portmap status").code(0).out("running");
    sleeper(
        &engine,
        "one",
        "-p 8080:80 -p 8080:80/udp -p 127.0.0.1:8081:80 -p 7000:70/sctp",
    );
    let _tcp = Server::greeting(&engine, "one", 80, "tcp");
    let _udp = Server::udp(&engine, "one", 80, "udp");
    let host = format!("{}:8080", Neighbour::HOST);
    until("the host is served", || hear("127.0.0.1:8080"));
    for address in [
        host.as_str(),
        "127.0.0.1:8080",
        "127.0.0.2:8080",
        "127.0.0.1:8081",
    ] {
        assert_eq!(hear(address).as_deref(), Some("tcp"), "{address}");
    }
    neighbour.visit(|| {
        assert_eq!(hear(&host).as_deref(), Some("tcp"));
        assert_eq!(ask(&host, "x").as_deref(), Some("udp x"));
        assert_eq!(hear(&host.replace("8080", "8081")), None);
    });
    // Back in through the host's address.
    assert_eq!(
        inside(&engine, "one", || hear(&host)).as_deref(),
        Some("tcp")
    );
    let list = engine.run("portmap ls");
    list.code(0)
        .out("0.0.0.0:8080/tcp")
        .out("127.0.0.1:8081/tcp")
        .out("one")
        .out("serving");
    list.out("sctp");
    let json = engine.ok("portmap ls --format json");
    assert!(json.lines().all(|line| line.starts_with('{')), "{json}");
    engine.ok("portmap stop");
    engine.run("portmap stop").code(1).err("no forwarder");
    engine.run("portmap status").code(1);
    assert_eq!(hear("127.0.0.1:8080"), None);
    // Begun later, it finds what is published already.
    engine.ok("portmap start -d");
    assert_eq!(hear("127.0.0.1:8080").as_deref(), Some("tcp"));
    engine.ok("portmap stop");
    drop(neighbour);
}

fn containers_come_and_go() {
    let engine = engine();
    engine.ok("portmap start -d");
    engine.ok("network create other");
    for (round, network) in ["bridge", "other", "bridge"].into_iter().enumerate() {
        sleeper(&engine, "one", &format!("-n {network} -p 8080:80"));
        let server = Server::greeting(&engine, "one", 80, "here");
        until("the port is served", || hear("127.0.0.1:8080"));
        drop(server);
        engine.ok("stop -t 0 one");
        until("the port is closed", || {
            TcpStream::connect("127.0.0.1:8080").is_err().then_some(())
        });
        engine.ok("start one");
        let _server = Server::greeting(&engine, "one", 80, "here");
        until("the port is served again", || hear("127.0.0.1:8080"));
        engine.ok("rm -f one");
        until(&format!("the list is empty in round {round}"), || {
            (!engine.ok("portmap ls").contains("8080")).then_some(())
        });
    }
    engine.ok("portmap stop");
    engine.ok("network rm other");
}

fn the_forwarder_is_no_foreign_listener() {
    let engine = engine();
    engine.ok("portmap start -d");
    let one = "-p 8080:80 -p 8080:80/udp -p 127.0.0.1:8081:81";
    sleeper(&engine, "one", one);
    for _ in 0..5 {
        engine.ok("restart -t 0 one");
    }
    // Even one that does not get round to closing anything.
    until("all is served", || {
        (engine.ok("portmap ls").matches("serving").count() == 3).then_some(())
    });
    let forwarder: i32 = engine
        .ok("portmap ls --format json")
        .lines()
        .next()
        .and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["Pid"].as_i64())
        .unwrap()
        .try_into()
        .unwrap();
    kill(Pid::from_raw(forwarder), Signal::SIGSTOP).unwrap();
    engine.ok("restart -t 0 one");
    engine.ok("rm -f one");
    engine.ok(&format!("run -d --name two {one} base sleep 1000"));
    engine.ok("rm -f two");
    kill(Pid::from_raw(forwarder), Signal::SIGCONT).unwrap();
    // Somebody else is still found, also on one address of many.
    until("nothing is listened on", || {
        (!engine.ok("portmap ls").contains("serving")).then_some(())
    });
    let foreign = TcpListener::bind("127.0.0.1:8080").unwrap();
    let outcome = engine.run("run --rm -p 8080:80 base true");
    outcome.code(125).err("port is already allocated");
    drop(foreign);
    engine.ok("run --rm -p 8080:80 base true");
    engine.ok("portmap stop");
}

fn rules_and_forwarder_side_by_side() {
    let engine = Engine::new().with_base();
    sleeper(&engine, "one", "-p 8080:80");
    engine.ok("portmap start -d");
    let _server = Server::tcp(&engine, "one", 80, |mut stream| {
        let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
        drop(stream.write_all(peer.unwrap_or_default().as_bytes()));
    });
    let neighbour = Neighbour::new();
    let host = format!("{}:8080", Neighbour::HOST);
    let seen = || neighbour.visit(|| hear(&host));
    // The kernel goes first: the container sees who asks.
    assert_eq!(seen().as_deref(), Some(Neighbour::ADDRESS));
    shell("nft flush ruleset");
    until("the forwarder has taken over", || {
        seen().filter(|peer| peer != Neighbour::ADDRESS)
    });
    engine.ok("restart -t 0 one");
    engine.ok("portmap stop");
    drop(neighbour);
}

fn connections_end_as_their_ends_do() {
    let engine = engine();
    engine.ok("portmap start -d");
    sleeper(
        &engine,
        "one",
        "-p 8080:80 -p 8081:81 -p 8082:82 -p 8083:83",
    );
    // Says how much it got, after the client has ended its half.
    let _counter = Server::tcp(&engine, "one", 80, |mut stream| {
        let mut all = Vec::new();
        if let Ok(count) = stream.read_to_end(&mut all) {
            drop(stream.write_all(format!("{count} bytes").as_bytes()));
        }
    });
    let _echo = Server::tcp(&engine, "one", 81, echo);
    // Ends its own half first, and goes on listening.
    let _half = Server::tcp(&engine, "one", 82, |mut stream| {
        drop(stream.write_all(b"mine"));
        drop(stream.shutdown(Shutdown::Write));
        let mut text = String::new();
        drop(stream.read_to_string(&mut text));
        assert_eq!(text, "yours");
    });
    let reach = |port: u16| {
        until("a connection", || {
            connect(&format!("127.0.0.1:{port}")).ok()
        })
    };
    until("the server answers", || {
        let mut stream = reach(80 + 8000);
        stream.shutdown(Shutdown::Write).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (text == "0 bytes").then_some(())
    });
    for size in [1, 100_000, 30_000_000] {
        let mut stream = reach(8080);
        stream.write_all(&vec![7; size]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{size} bytes"));
    }
    // Large amounts both ways at once, none of it changed.
    let mut stream = reach(8081);
    let mut sender = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..20_000_000u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let expected = sent.clone();
    let sending = std::thread::spawn(move || {
        sender.write_all(&sent).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sending.join().unwrap();
    assert!(got == expected, "{} bytes of {}", got.len(), expected.len());

    let mut stream = reach(8082);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "mine");
    stream.write_all(b"yours").unwrap();
    drop(stream);

    // Nobody listens inside: the client is told at once.
    let start = Instant::now();
    let mut stream = reach(8083);
    let outcome = stream.read(&mut [0]);
    assert!(!matches!(outcome, Ok(1..)), "{outcome:?}");
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );

    // And when the container goes, so do its connections.
    let mut stream = reach(8081);
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    engine.ok("rm -f one");
    let start = Instant::now();
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    engine.ok("portmap stop");
}

fn two_thousand_connections_at_once() {
    let engine = engine();
    engine.ok("portmap start -d");
    sleeper(&engine, "one", "-p 8080:80");
    let _server = stack_tests::load::Echo::start(&engine, "one", 80);
    until("the port is served", || connect("127.0.0.1:8080").ok());
    let outcome = stack_tests::load::run("127.0.0.1:8080", 2000, Duration::from_secs(60));
    assert_eq!(outcome.answered, 2000, "{outcome:?}");
    engine.ok("portmap stop");
}

fn more_connections_than_descriptors() {
    let engine = engine();
    // 64 are kept back, 4 go to the listeners: 60 connections of two each.
    let line = stack_tests::command::typed(&engine.command("portmap start -d"));
    let script = format!("ulimit -n 188; exec {line}");
    let mut command = Command::new("sh");
    run(command
        .args(["-c", &script])
        .env("QENGINE_FIREWALL", "none"))
    .ok();
    sleeper(&engine, "one", "-p 8080:80 -p 8081:80");
    let _server = stack_tests::load::Echo::start(&engine, "one", 80);
    until("the port is served", || connect("127.0.0.1:8080").ok());
    let idle: Vec<TcpStream> = (0..100)
        .map(|_| connect("127.0.0.1:8080").unwrap())
        .collect();
    let speak = |mut stream: &TcpStream| -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let served = idle.iter().filter(|stream| speak(stream).is_ok()).count();
    assert!((30..=62).contains(&served), "{served} of 100 are served");
    // The others wait their turn, and get it.
    let (first, rest) = {
        let mut idle = idle;
        let rest = idle.split_off(50);
        (idle, rest)
    };
    drop(first);
    for stream in &rest {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut stream = stream;
        stream.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
    engine.ok("portmap stop");
}

fn datagrams_find_their_way_back() {
    let engine = engine();
    let neighbour = Neighbour::new();
    engine.ok("portmap start -d");
    sleeper(&engine, "one", "-p 5300:53/udp");
    let server = Server::udp(&engine, "one", 53, "echo");
    until("the port is served", || ask("127.0.0.1:5300", "x"));
    shell("ip addr add 192.168.231.5/32 dev lo");
    neighbour.visit(|| {
        shell(&format!(
            "ip route add 192.168.231.5/32 via {}",
            Neighbour::HOST
        ));
        // Answers come from the address that was asked, whichever it was.
        for host in [Neighbour::HOST, "192.168.231.5"] {
            let address = format!("{host}:5300");
            assert_eq!(ask(&address, "x").as_deref(), Some("echo x"), "{host}");
        }
    });
    let large = "y".repeat(9000);
    assert_eq!(ask("127.0.0.1:5300", &large), Some(format!("echo {large}")));
    // Many clients at the same time, each gets its own answer.
    let clients: Vec<UdpSocket> = (0..500)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    for (number, client) in clients.iter().enumerate() {
        client
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        client.connect("127.0.0.1:5300").unwrap();
        client.send(number.to_string().as_bytes()).unwrap();
        std::thread::sleep(Duration::from_micros(200));
    }
    for (number, client) in clients.iter().enumerate() {
        let mut buffer = [0; 64];
        // A datagram may get lost where all hurry; an answer that was given to another may not.
        let count = until("an answer", || {
            let received = client.recv(&mut buffer).ok();
            if received.is_none() {
                client.send(number.to_string().as_bytes()).unwrap();
            }
            received
        });
        assert_eq!(&buffer[..count], format!("echo {number}").as_bytes());
    }
    // A client that never pauses meets the container that has the port next.
    drop(server);
    engine.ok("rm -f one");
    sleeper(&engine, "two", "-p 5300:53/udp");
    let _second = Server::udp(&engine, "two", 53, "second");
    until("the next container answers", || {
        stack_tests::traffic::ask_from(&clients[0], "127.0.0.1:5300", "x")
            .filter(|it| it == "second x")
    });
    engine.ok("portmap stop");
    drop(neighbour);
}

fn a_mapping_by_hand() {
    let engine = Engine::new().with_base();
    sleeper(&engine, "one", "");
    engine
        .run("portmap forward 8080 nosuch:80")
        .code(1)
        .err("nosuch");
    engine
        .run("portmap forward -d 8080 nosuch:80")
        .code(1)
        .err("nosuch");
    engine
        .run("portmap forward 8080 one")
        .code(1)
        .err("CONTAINER:PORT");
    let taken = TcpListener::bind("127.0.0.1:7070").unwrap();
    let refused = engine.run("portmap forward -d 127.0.0.1:7070 one:80");
    refused.code(1).err("cannot listen on 127.0.0.1:7070/tcp");
    drop(taken);
    engine.ok("portmap forward -d 7070 one:80");
    engine.ok("portmap forward -d 127.0.0.1:7071/udp one:80");
    engine.ok("portmap forward -d [::1]:7072 one:80");
    let server = Server::greeting(&engine, "one", 80, "mapped");
    let udp = Server::udp(&engine, "one", 80, "mapped");
    for address in ["127.0.0.1:7070", "[::1]:7070", "[::1]:7072"] {
        assert_eq!(hear(address).as_deref(), Some("mapped"), "{address}");
    }
    assert_eq!(ask("127.0.0.1:7071", "x").as_deref(), Some("mapped x"));
    assert_eq!(hear("127.0.0.1:7072"), None);
    let list = engine.run("portmap ls");
    list.code(0)
        .out("127.0.0.1:7071/udp")
        .out("forward")
        .out("one");
    // A published port is refused where the mapping listens, and the other way round.
    let refused = engine.run("run --rm -p 7070:80 base true");
    refused.code(125).err("portmap forward");
    sleeper(&engine, "two", "-p 7073:80");
    let refused = engine.run("portmap forward -d 7073 one:80");
    refused.code(1).err("publishes that port");
    // Through its end and its next start.
    drop((server, udp));
    engine.ok("stop -t 0 one");
    until("the list says so", || {
        engine
            .ok("portmap ls")
            .contains("container not running")
            .then_some(())
    });
    assert_eq!(hear("127.0.0.1:7070"), None);
    engine.ok("start one");
    let _server = Server::greeting(&engine, "one", 80, "again");
    until("it is mapped again", || hear("127.0.0.1:7070"));
    engine.ok("rm -f one");
    until("the mappings have ended", || {
        (!engine.ok("portmap ls").contains("forward")).then_some(())
    });
    let log = std::fs::read_to_string(engine.directory().join("run/portmap/tcp-7070.log")).unwrap();
    assert!(log.contains("container one was removed"), "{log}");
    // In the foreground, until a signal.
    let mut command = engine.command("portmap forward 127.0.0.1:7074 two:80");
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    until("it is listed", || {
        engine.ok("portmap ls").contains("7074").then_some(())
    });
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    engine.run("portmap ls").code(0).out("LISTENING");
}

fn a_mapping_to_any_kind_of_network() {
    let engine = engine();
    sleeper(&engine, "none", "--network none");
    engine.ok("network create --internal inner");
    sleeper(&engine, "inner", "-n inner -p 6000:80");
    sleeper(&engine, "joined", "--network container:inner");
    sleeper(&engine, "host", "--network host");
    let _none = Server::greeting(&engine, "none", 80, "none");
    let _inner = Server::greeting(&engine, "inner", 80, "inner");
    let _joined = Server::greeting(&engine, "joined", 81, "joined");
    let _host = Server::greeting(&engine, "host", 82, "host");
    engine.ok("portmap start -d");
    for (name, port) in [("none", 80), ("inner", 80), ("joined", 81), ("host", 82)] {
        engine.ok(&format!(
            "portmap forward -d 127.0.0.1:70{port} {name}:{port}"
        ));
        assert_eq!(hear(&format!("127.0.0.1:70{port}")).as_deref(), Some(name));
        let pids = engine.ok("portmap ls --format json");
        let pid = pids.lines().find_map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).ok()?;
            (row["Forwarder"] == "forward").then(|| row["Pid"].to_string())
        });
        engine.ok(&format!("portmap stop {}", pid.unwrap()));
    }
    // An internal network has no way in, published or not.
    assert_eq!(hear("127.0.0.1:6000"), None);
    engine.ok("portmap stop");
    engine.ok("rm -f joined inner none host");
    engine.ok("network rm inner");
}

fn a_forwarder_that_was_killed_is_in_nobodys_way() {
    let engine = engine();
    let pid = engine.ok("portmap start -d");
    sleeper(&engine, "one", "-p 8080:80");
    let other = engine.ok("portmap forward -d 7070 one:80");
    let _server = Server::greeting(&engine, "one", 80, "served");
    until("the port is served", || hear("127.0.0.1:8080"));
    for pid in [pid, other] {
        kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    until("both are gone", || {
        let listed = engine.ok("portmap ls");
        (!listed.contains("8080") && !listed.contains("7070")).then_some(())
    });
    engine.run("portmap status").code(1).out("not running");
    engine.ok("restart -t 0 one");
    engine.ok("portmap start -d");
    let _server = Server::greeting(&engine, "one", 80, "served");
    until("the port is served again", || hear("127.0.0.1:8080"));
    let left = std::fs::read_dir(engine.directory().join("run/portmap")).unwrap();
    let left: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    assert!(
        !left.iter().any(|name| name
            .to_string_lossy()
            .starts_with(|c: char| c.is_ascii_digit())),
        "{left:?}"
    );
    engine.ok("portmap stop");
}
