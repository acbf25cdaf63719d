//! The host's name servers, as containers can use them.

use std::fs;
use std::net::IpAddr;

use crate::store::Store;

/// What of the host's `/etc/resolv.conf` goes into a container's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Where systemd-resolved writes the servers behind its own one on 127.0.0.53.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Servers for a host that has none a container could reach; docker takes the same.
const FALLBACK: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// Reads the host's name servers. Those on the host's loopback interface can't be reached from inside, and are left
/// out.
#[must_use]
pub fn host_resolver(_store: &Store) -> HostResolver {
    let read = |path| {
        fs::read_to_string(path)
            .map(|text| parse(&text))
            .unwrap_or_default()
    };
    let mut resolver = read("/etc/resolv.conf");
    if resolver.servers.is_empty() {
        let behind = read(BEHIND_RESOLVED);
        if !behind.servers.is_empty() {
            resolver = behind;
        }
    }
    if resolver.servers.is_empty() {
        resolver.servers = FALLBACK.map(str::to_owned).to_vec();
    }
    resolver
}

/// `resolv.conf(5)`: the last `search` or `domain` line wins, options add up.
fn parse(text: &str) -> HostResolver {
    let mut resolver = HostResolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(
                words
                    .next()
                    .filter(|word| is_reachable(word))
                    .map(str::to_owned),
            ),
            Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
            Some("options") => resolver.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    resolver
}

fn is_reachable(server: &str) -> bool {
    match server.parse::<IpAddr>() {
        Ok(address) => address.is_ipv4() && !address.is_loopback() && !address.is_unspecified(),
        // A zone (`fe80::1%eth0`) names an interface of the host; anything else is no address.
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_reached_from_inside_is_left_out() {
        let resolver = parse(
            "# comment\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\n\
             domain old.example\nsearch a.example b.example\noptions ndots:2\noptions edns0 trust-ad\n; end\n",
        );
        assert_eq!(resolver.servers, ["10.0.0.1"]);
        assert_eq!(resolver.search, ["a.example", "b.example"]);
        assert_eq!(resolver.options, ["ndots:2", "edns0", "trust-ad"]);
    }
}
