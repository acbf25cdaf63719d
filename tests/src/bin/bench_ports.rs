//! `bench-ports`: what a published port costs, side by side in one run, on one machine.
//!
//! iperf3 from another machine (a network namespace) to a namespace behind a bridge: made by hand and routed; a
//! container's published port, which the kernel translates; and the same container through the userland forwarder.
//! They take turns. Then two thousand connections at once through each of the latter two. Prints medians, and writes
//! every figure to `target/bench/ports.json`. Figures are for reading: nothing fails because of one.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use stack_tests::command::{run, shell};
use stack_tests::engine::Engine;
use stack_tests::load;
use stack_tests::netns::{Neighbour, isolate};
use stack_tests::programs::target;
use stack_tests::traffic::{connect, inside};
use stack_tests::wait::until;

/// Connections at the same time.
const CONNECTIONS: usize = 2000;

/// Where the server listens, everywhere.
const PORT: u16 = 5201;

fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let usage = "usage: bench-ports [ROUNDS [SECONDS]]";
    let rounds: usize = words
        .next()
        .map_or(Ok(5), |word| word.parse())
        .context(usage)?;
    let seconds: u32 = words
        .next()
        .map_or(Ok(3), |word| word.parse())
        .context(usage)?;
    let engine = Engine::new().with_base();
    let neighbour = Neighbour::new();
    let hand = Hand::new();
    engine.ok(&format!(
        "run -d --name sink -p {PORT}:{PORT} -p 5301:5301 base sleep 100000"
    ));
    let forwarder = engine.ok(&format!(
        "portmap forward -d {}:5202 sink:{PORT}",
        Neighbour::HOST
    ));
    let crowd = engine.ok(&format!(
        "portmap forward -d {}:5302 sink:5301",
        Neighbour::HOST
    ));
    let servers = [inside(&engine, "sink", serve)?, hand.visit(serve)?];
    let ways = [
        ("by hand, routed", Hand::ADDRESS, PORT, None),
        ("published port", Neighbour::HOST, PORT, None),
        (
            "userland forwarder",
            Neighbour::HOST,
            5202,
            Some(&forwarder),
        ),
    ];
    let mut raw = Vec::new();
    for (discipline, flags) in [
        ("one connection", &[][..]),
        ("one, the other way", &["-R"][..]),
        ("eight connections", &["-P", "8"][..]),
    ] {
        let mut figures: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); ways.len()];
        for _ in 0..rounds {
            for ((_, address, port, process), figures) in ways.iter().zip(&mut figures) {
                let address = format!("{address}:{port}");
                neighbour.visit(|| until("the server listens", || connect(&address).ok()));
                let before = process.map_or(0.0, |pid| processor_seconds(pid));
                let (rate, bytes) = neighbour.visit(|| iperf(&address, seconds, flags))?;
                let spent = process.map_or(0.0, |pid| processor_seconds(pid)) - before;
                figures.0.push(rate / 1e9);
                figures.1.push(spent * 1e9 / bytes);
            }
        }
        for ((name, ..), (rates, costs)) in ways.iter().zip(&figures) {
            show(
                &format!("{discipline:20} {name:20}"),
                rates,
                "Gbit/s",
                costs,
            );
            raw.push(
                json!({"discipline": discipline, "way": name, "gbit/s": rates, "cpu s/GB": costs}),
            );
        }
    }
    drop(servers);
    let _echo = load::Echo::start(&engine, "sink", 5301);
    for (name, port, process) in [
        ("published port", 5301, None),
        ("userland forwarder", 5302, Some(&crowd)),
    ] {
        let address = format!("{}:{port}", Neighbour::HOST);
        let mut times = Vec::new();
        for _ in 0..rounds {
            let outcome =
                neighbour.visit(|| load::run(&address, CONNECTIONS, Duration::from_secs(60)));
            ensure!(outcome.answered == CONNECTIONS, "{name}: {outcome:?}");
            times.push(outcome.answered_after.as_secs_f64() * 1000.0);
        }
        show(
            &format!("{CONNECTIONS} connections    {name:20}"),
            &times,
            "ms until the last answer",
            &[],
        );
        let memory = process.map(|pid| status(pid, "VmHWM"));
        raw.push(
            json!({"discipline": "connections", "way": name, "ms": times, "forwarder": memory}),
        );
        if let Some(memory) = memory {
            println(&format!(
                "{:41} the forwarder's memory was {memory} at most",
                ""
            ));
        }
    }
    engine.ok("portmap stop");
    let path = target().join("bench/ports.json");
    std::fs::create_dir_all(path.with_file_name(""))?;
    std::fs::write(&path, Value::from(raw).to_string())
        .with_context(|| format!("write {}", path.display()))?;
    drop(neighbour);
    hand.remove();
    Ok(())
}

/// A bridge, a veth pair and a namespace, made with `ip`.
struct Hand {
    namespace: File,
}

impl Hand {
    const ADDRESS: &str = "192.168.232.2";

    fn new() -> Self {
        let made = std::thread::spawn(|| {
            isolate();
            File::open("/proc/thread-self/ns/net")
        });
        let Ok(Ok(namespace)) = made.join() else {
            panic!("make a network namespace");
        };
        let there = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        for line in [
            "ip link add hand type bridge",
            "ip addr add 192.168.232.1/24 dev hand",
            "ip link set hand up",
            &format!("ip link add handport type veth peer name eth0 netns {there}"),
            "ip link set handport master hand up",
            "sysctl -q -w net.ipv4.ip_forward=1",
        ] {
            shell(line);
        }
        let hand = Self { namespace };
        hand.visit(|| {
            shell(&format!("ip addr add {}/24 dev eth0", Self::ADDRESS));
            shell("ip link set eth0 up");
            shell("ip route add default via 192.168.232.1");
        });
        hand
    }

    fn visit<T: Send>(&self, deed: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                if let Err(error) = setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET) {
                    panic!("enter a network namespace: {error}");
                }
                deed()
            });
            match there.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn remove(self) {
        shell("ip link del handport");
        shell("ip link del hand");
    }
}

/// iperf3's server; it ends when it is dropped.
struct Iperf(Child);

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve() -> anyhow::Result<Iperf> {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-p", &PORT.to_string()]);
    let streams = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Iperf(streams.spawn().context("start iperf3")?))
}

/// Bits a second, and bytes, as they arrived.
fn iperf(address: &str, seconds: u32, flags: &[&str]) -> anyhow::Result<(f64, f64)> {
    let (host, port) = address.split_once(':').context("an address")?;
    let mut command = Command::new("iperf3");
    command
        .args(["-c", host, "-p", port, "-t", &seconds.to_string(), "-J"])
        .args(flags);
    let mut answer = Value::Null;
    // The server may not have let go of the last client yet.
    for _ in 0..50 {
        answer = serde_json::from_str(&run(&mut command).stdout).unwrap_or_default();
        if answer.pointer("/end/sum_received/bytes").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let figure = |name: &str| {
        let value = answer
            .pointer(&format!("/end/sum_received/{name}"))
            .and_then(Value::as_f64);
        value.with_context(|| format!("iperf3 to {address} says {answer}"))
    };
    Ok((figure("bits_per_second")?, figure("bytes")?))
}

/// Processor time that a process has used so far.
fn processor_seconds(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    // utime and stime, in hundredths.
    fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn status(pid: &str, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with(key))
        .unwrap_or_default();
    line.split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

fn show(what: &str, figures: &[f64], unit: &str, costs: &[f64]) {
    let cost = median(costs);
    let cost = if cost > 0.0 {
        format!("; {cost:.2} s of processor a GB")
    } else {
        String::new()
    };
    let all: Vec<String> = figures
        .iter()
        .map(|figure| format!("{figure:.2}"))
        .collect();
    println(&format!(
        "{what} {:8.2} {unit}{cost}   ({})",
        median(figures),
        all.join(" ")
    ));
}

#[expect(clippy::print_stdout, reason = "its answer")]
fn println(line: &str) {
    println!("{line}");
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
