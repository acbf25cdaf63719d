//! The grammar of a mapping by hand: `[HOST:]PORT CONTAINER:PORT[/PROTOCOL]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Error, Listen, Result};
use crate::network::Protocol;

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// The host's address; every one when absent.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The container, as typed.
    pub container: String,
    /// Its port.
    pub container_port: u16,
    /// Which kind of port.
    pub protocol: Protocol,
}

impl Forward {
    /// Parses both words. The protocol may stand behind either; an IPv6 address stands in brackets.
    ///
    /// # Errors
    /// When they don't follow the grammar; the message says where.
    pub fn parse(host: &str, container: &str) -> Result<Forward> {
        let fail = |text: &str, reason: String| Error::BadMapping {
            text: text.to_owned(),
            reason,
        };
        let (host_text, host_protocol) = split_protocol(host).map_err(|why| fail(host, why))?;
        let (container_text, container_protocol) =
            split_protocol(container).map_err(|why| fail(container, why))?;
        let protocol = match (host_protocol, container_protocol) {
            (Some(one), Some(other)) if one != other => {
                let reason = format!("{one} on the host's side can't lead to {other}");
                return Err(fail(container, reason));
            }
            (one, other) => one.or(other).unwrap_or_default(),
        };
        if protocol == Protocol::Sctp {
            return Err(fail(host, "only tcp and udp can be forwarded".to_owned()));
        }
        let (host_ip, host_port) = match host_text.rsplit_once(':') {
            None => (None, host_text),
            Some((address, port)) => (address_of(address).map_err(|why| fail(host, why))?, port),
        };
        let (name, container_port) = container_text
            .rsplit_once(':')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| fail(container, "expected CONTAINER:PORT".to_owned()))?;
        Ok(Forward {
            host_ip,
            host_port: port_of(host_port).map_err(|why| fail(host, why))?,
            container: name.to_owned(),
            container_port: port_of(container_port).map_err(|why| fail(container, why))?,
            protocol,
        })
    }

    /// The sockets it takes.
    pub(super) fn listens(&self) -> Vec<Listen> {
        let every = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let addresses = match self.host_ip {
            Some(address) => vec![address],
            None => every.to_vec(),
        };
        addresses
            .into_iter()
            .map(|address| Listen {
                protocol: self.protocol,
                address: SocketAddr::new(address, self.host_port),
            })
            .collect()
    }
}

fn split_protocol(text: &str) -> std::result::Result<(&str, Option<Protocol>), String> {
    match text.split_once('/') {
        Some((text, protocol)) => Ok((text, Some(protocol.parse()?))),
        None => Ok((text, None)),
    }
}

/// `None` for every address: nothing, or `*`.
fn address_of(text: &str) -> std::result::Result<Option<IpAddr>, String> {
    if text.is_empty() || text == "*" {
        return Ok(None);
    }
    if text == "localhost" {
        return Ok(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    if let Some(inner) = text.strip_prefix('[') {
        let address = inner.strip_suffix(']').map(str::parse::<Ipv6Addr>);
        return match address {
            Some(Ok(address)) => Ok(Some(IpAddr::V6(address))),
            _ => Err(format!("{text:?} is not an IPv6 address in brackets")),
        };
    }
    if text.contains(':') {
        return Err("an IPv6 address stands in brackets".to_owned());
    }
    text.parse::<Ipv4Addr>()
        .map(|address| Some(IpAddr::V4(address)))
        .map_err(|_| format!("{text:?} is not an IP address"))
}

fn port_of(text: &str) -> std::result::Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port != 0)
        .ok_or_else(|| format!("port {text:?} is not a number from 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_words() {
        for (host, container, address, protocol) in [
            ("8080", "web:80", None, Protocol::Tcp),
            (":8080", "web:80", None, Protocol::Tcp),
            ("*:8080", "web:80", None, Protocol::Tcp),
            ("0.0.0.0:8080", "web:80", Some("0.0.0.0"), Protocol::Tcp),
            ("localhost:8080", "web:80", Some("127.0.0.1"), Protocol::Tcp),
            (
                "127.0.0.1:8080/udp",
                "web:80",
                Some("127.0.0.1"),
                Protocol::Udp,
            ),
            ("[::1]:8080", "web:80/udp", Some("::1"), Protocol::Udp),
            ("8080/udp", "web:80/udp", None, Protocol::Udp),
        ] {
            let parsed = Forward::parse(host, container).unwrap();
            let expected = Forward {
                host_ip: address.map(|address| address.parse().unwrap()),
                host_port: 8080,
                container: "web".to_owned(),
                container_port: 80,
                protocol,
            };
            assert_eq!(parsed, expected, "{host} {container}");
        }
        assert_eq!(Forward::parse("1", "web:80").unwrap().listens().len(), 2);
    }

    #[test]
    fn nonsense_is_refused() {
        for (host, container) in [
            ("", "web:80"),
            ("0", "web:80"),
            ("8080", "web"),
            ("8080", ":80"),
            ("8080", "web:"),
            ("8080", "web:0"),
            ("::1:8080", "web:80"),
            ("[::1:8080", "web:80"),
            ("1.2.3:8080", "web:80"),
            ("8080/udp", "web:80/tcp"),
            ("8080/sctp", "web:80"),
            ("70000", "web:80"),
        ] {
            assert!(
                Forward::parse(host, container).is_err(),
                "{host} {container}"
            );
        }
    }
}
