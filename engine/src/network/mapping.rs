//! The grammar of published ports: `[HOST-ADDRESS:][HOST-PORT[-LAST]:]PORT[-LAST][/PROTOCOL]`, as docker has it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Error, Result};

mod display;

pub use display::describe_ports;

/// Which kind of port.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The name as it is written in `80/tcp`, and in nftables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    /// The number in the IP header.
    pub(super) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Protocol, String> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            "sctp" => Ok(Protocol::Sctp),
            _ => Err(format!(
                "unknown protocol {text:?}, expected tcp, udp or sctp"
            )),
        }
    }
}

/// One port of a container that shall be reachable through the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; each of them when absent.
    pub host_ip: Option<IpAddr>,
    /// The host's port; any free one when absent or 0.
    pub host_port: Option<u16>,
    /// With it, any free port from `host_port` to this one.
    #[serde(default)]
    pub host_port_last: Option<u16>,
    /// The port inside.
    pub container_port: u16,
    /// Which kind of port.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Parses one `-p` argument; a range of ports becomes several mappings.
    ///
    /// # Errors
    /// When the text doesn't follow the grammar; the message says where.
    pub fn parse(text: &str) -> Result<Vec<PortMapping>> {
        parse(text).map_err(|reason| Error::BadMapping {
            text: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> std::result::Result<Vec<PortMapping>, String> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, protocol.parse()?),
        None => (text, Protocol::Tcp),
    };
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, ports),
    };
    let (address, host) = match rest {
        None => (None, None),
        Some(rest) => split_host(rest)?,
    };
    if container.is_empty() {
        return Err("no container port given".to_owned());
    }
    let (first, last) = range(container, "container port")?;
    if first == 0 {
        return Err("container port 0 does not exist".to_owned());
    }
    let host_ip = address.map(parse_address).transpose()?.flatten();
    let mapping = |host_port, host_port_last, container_port| PortMapping {
        host_ip,
        host_port,
        host_port_last,
        container_port,
        protocol,
    };
    let Some(host) = host else {
        return Ok((first..=last)
            .map(|port| mapping(None, None, port))
            .collect());
    };
    let (host_first, host_last) = range(host, "host port")?;
    if host_first == 0 && host_last == 0 {
        return Ok((first..=last)
            .map(|port| mapping(None, None, port))
            .collect());
    }
    if first == last && host_first != host_last {
        return Ok(vec![mapping(Some(host_first), Some(host_last), first)]);
    }
    if last - first != host_last - host_first {
        return Err(format!(
            "{} host ports for {} container ports",
            u32::from(host_last - host_first) + 1,
            u32::from(last - first) + 1
        ));
    }
    Ok((host_first..=host_last)
        .zip(first..=last)
        .map(|(host_port, port)| mapping(Some(host_port), None, port))
        .collect())
}

/// Splits what stands before the container's port into address and port; either may be missing.
fn split_host(text: &str) -> std::result::Result<(Option<&str>, Option<&str>), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest
            .split_once(']')
            .ok_or("the bracket before the address is not closed")?;
        address
            .parse::<Ipv6Addr>()
            .map_err(|_| format!("{address:?} is not an IPv6 address"))?;
        return match port.strip_prefix(':') {
            Some(port) => Ok((Some(address), non_empty(port))),
            None if port.is_empty() => Ok((Some(address), None)),
            None => Err(format!("{port:?} follows the address")),
        };
    }
    match text.rsplit_once(':') {
        Some((address, _)) if address.contains(':') => {
            Err("an IPv6 address stands in brackets".to_owned())
        }
        Some((address, port)) => Ok((non_empty(address), non_empty(port))),
        // A lone word before the colon is a port, unless it can only be an address: `127.0.0.1:80`.
        None if text.contains('.') => Ok((Some(text), None)),
        None => Ok((None, non_empty(text))),
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// `0.0.0.0` is the same as no address.
fn parse_address(text: &str) -> std::result::Result<Option<IpAddr>, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is not an IP address"))?;
    Ok((address != IpAddr::from([0, 0, 0, 0])).then_some(address))
}

fn range(text: &str, what: &str) -> std::result::Result<(u16, u16), String> {
    let number = |text: &str| -> std::result::Result<u16, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| format!("{what} {text:?} is not a number from 0 to 65535"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if last < first {
        return Err(format!(
            "the range of {what}s {text:?} ends before it starts"
        ));
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<PortMapping> {
        PortMapping::parse(text).unwrap()
    }

    fn one(
        host_ip: Option<&str>,
        host_port: Option<u16>,
        container_port: u16,
        protocol: Protocol,
    ) -> PortMapping {
        PortMapping {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            host_port_last: None,
            container_port,
            protocol,
        }
    }

    #[test]
    fn one_port() {
        use Protocol::{Sctp, Tcp, Udp};
        for (text, expected) in [
            ("80", one(None, None, 80, Tcp)),
            ("110:80", one(None, Some(110), 80, Tcp)),
            (":80", one(None, None, 80, Tcp)),
            ("0:80", one(None, None, 80, Tcp)),
            ("53:53/udp", one(None, Some(53), 53, Udp)),
            ("9:9/SCTP", one(None, Some(9), 9, Sctp)),
            ("0.0.0.0:110:80", one(None, Some(110), 80, Tcp)),
            (
                "127.0.0.1:110:80",
                one(Some("127.0.0.1"), Some(110), 80, Tcp),
            ),
            ("127.0.0.1::80", one(Some("127.0.0.1"), None, 80, Tcp)),
            ("127.0.0.1:80", one(Some("127.0.0.1"), None, 80, Tcp)),
            ("[::1]:110:80", one(Some("::1"), Some(110), 80, Tcp)),
            ("[::1]::80", one(Some("::1"), None, 80, Tcp)),
        ] {
            assert_eq!(parsed(text), [expected], "{text}");
        }
    }

    #[test]
    fn ranges() {
        use Protocol::Udp;
        assert_eq!(
            parsed("7000-7001:80-81/udp"),
            [
                one(None, Some(7000), 80, Udp),
                one(None, Some(7001), 81, Udp)
            ]
        );
        assert_eq!(parsed("80-82").len(), 3);
        let choice = parsed("8000-8010:80");
        assert_eq!(choice.len(), 1);
        assert_eq!(
            (choice[0].host_port, choice[0].host_port_last),
            (Some(8000), Some(8010))
        );
        assert_eq!(parsed("65535-65535:1").len(), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            ":",
            "a",
            "80:",
            "80:a",
            "70000:80",
            "80:0",
            "1-2:1-3",
            "2-1:80",
            "1.2.3:80:80",
            "80/icmp",
            "[::1:80:80",
            "::1:80:80",
            "[1.2.3.4]:80:80",
            "-1:80",
            "+1:80",
            "80:80:80:80",
            "1-2-3:80",
            "[::1]x:80",
        ] {
            assert!(PortMapping::parse(text).is_err(), "{text}");
        }
    }
}
