//! Ports as a list tells of them: `0.0.0.0:8000-8005->80-85/tcp, 443/tcp`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{PortMapping, Protocol};
use crate::network::PublishedPort;

/// Ports that follow each other on both sides.
#[derive(Debug, Clone, Copy)]
struct Run {
    host: Option<(IpAddr, u16)>,
    first: u16,
    last: u16,
    protocol: Protocol,
}

/// Describes published ports, neighbours as one range, and those of `exposed` (`80/tcp`) that are not published.
#[must_use]
pub fn describe_ports<'a>(
    published: &[PublishedPort],
    exposed: impl IntoIterator<Item = &'a str>,
) -> String {
    let mut ports = published.to_vec();
    ports.sort_by_key(|port| {
        (
            port.host_ip,
            port.protocol,
            port.container_port,
            port.host_port,
        )
    });
    let mut runs: Vec<Run> = Vec::new();
    for port in &ports {
        let host = Some((port.host_ip, port.host_port));
        append(&mut runs, host, port.container_port, port.protocol);
    }
    let exposed = exposed
        .into_iter()
        .flat_map(|text| PortMapping::parse(text).unwrap_or_default());
    let others: BTreeSet<_> = exposed
        .map(|port| (port.protocol, port.container_port))
        .filter(|(protocol, number)| {
            !ports
                .iter()
                .any(|port| (port.protocol, port.container_port) == (*protocol, *number))
        })
        .collect();
    for (protocol, port) in others {
        append(&mut runs, None, port, protocol);
    }
    let texts: Vec<String> = runs.iter().map(describe).collect();
    texts.join(", ")
}

/// Adds a port, to the last run if it goes on there.
fn append(runs: &mut Vec<Run>, host: Option<(IpAddr, u16)>, port: u16, protocol: Protocol) {
    if let Some(run) = runs.last_mut() {
        let length = run.last - run.first;
        let goes_on = match (run.host, host) {
            (None, None) => true,
            (Some((address, first)), Some((other, number))) => {
                address == other && first.checked_add(length + 1) == Some(number)
            }
            _ => false,
        };
        if goes_on && run.protocol == protocol && run.last.checked_add(1) == Some(port) {
            run.last = port;
            return;
        }
    }
    runs.push(Run {
        host,
        first: port,
        last: port,
        protocol,
    });
}

fn describe(run: &Run) -> String {
    let range = |first: u16| {
        let last = first + (run.last - run.first);
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let inside = format!("{}/{}", range(run.first), run.protocol);
    match run.host {
        None => inside,
        Some((IpAddr::V4(address), first)) => format!("{address}:{}->{inside}", range(first)),
        Some((IpAddr::V6(address), first)) => format!("[{address}]:{}->{inside}", range(first)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host: &str, host_port: u16, container_port: u16, protocol: Protocol) -> PublishedPort {
        PublishedPort {
            host_ip: host.parse().unwrap(),
            host_port,
            container_port,
            protocol,
        }
    }

    #[test]
    fn neighbours_are_one_range() {
        use Protocol::{Tcp, Udp};
        let mut ports: Vec<_> = (0..6)
            .rev()
            .map(|n| port("0.0.0.0", 8000 + n, 80 + n, Tcp))
            .collect();
        ports.push(port("0.0.0.0", 53, 53, Udp));
        ports.push(port("127.0.0.1", 9000, 80, Tcp));
        ports.push(port("127.0.0.1", 9002, 81, Tcp));
        ports.push(port("::", 8000, 80, Tcp));
        assert_eq!(
            describe_ports(&ports, ["80/tcp", "443/tcp", "444", "53/udp"]),
            "0.0.0.0:8000-8005->80-85/tcp, 0.0.0.0:53->53/udp, 127.0.0.1:9000->80/tcp, \
             127.0.0.1:9002->81/tcp, [::]:8000->80/tcp, 443-444/tcp"
        );
        assert_eq!(describe_ports(&[], []), "");
    }
}
