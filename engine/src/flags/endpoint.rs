//! What `--network` says: a mode, or a network with the container's place on it.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, Result, bail};
use qengine::container::find::Handle;
use qengine::network::{DEFAULT_NETWORK, Endpoint, Mode};
use qengine::store::Store;

/// What else was said about a container's place on its first network, in flags of their own.
#[derive(Debug, Default)]
pub(crate) struct Place<'a> {
    pub(crate) aliases: &'a [String],
    pub(crate) ip: Option<&'a str>,
    pub(crate) ip6: Option<&'a str>,
    pub(crate) mac: Option<&'a str>,
}

/// The mode that several `--network` mean together.
pub(crate) fn mode(store: &Store, texts: &[String], place: &Place<'_>) -> Result<Mode> {
    if let [only] = texts {
        match (only.as_str(), only.split_once(':')) {
            ("host", _) => return Ok(Mode::Host),
            ("none", _) => return Ok(Mode::None),
            (_, Some(("container", id))) => return join(store, id),
            _ => {}
        }
    }
    let mut endpoints = texts
        .iter()
        .map(|text| parse(text))
        .collect::<Result<Vec<_>>>()?;
    if endpoints.is_empty() {
        endpoints.push(Endpoint::new(DEFAULT_NETWORK));
    }
    place.apply(&mut endpoints[0])?;
    for endpoint in &endpoints {
        if endpoint.network == DEFAULT_NETWORK && !endpoint.aliases.is_empty() {
            bail!(
                "network-scoped aliases are only supported for user-defined networks: make one with `network create`"
            );
        }
    }
    Ok(Mode::Networks(endpoints))
}

/// The network of another container.
pub(crate) fn join(store: &Store, text: &str) -> Result<Mode> {
    Ok(Mode::Container(Handle::find(store, text)?.config.id))
}

impl Place<'_> {
    /// Adds to what the endpoint's own text says; the same thing must not be said in both ways.
    pub(crate) fn apply(&self, endpoint: &mut Endpoint) -> Result<()> {
        let conflict = |flag: &str| {
            anyhow::anyhow!(
                "conflicting options: cannot specify both {flag} and the same for network {} itself",
                endpoint.network
            )
        };
        let conflicts = [
            (
                "--network-alias",
                !self.aliases.is_empty() && !endpoint.aliases.is_empty(),
            ),
            ("--ip", self.ip.is_some() && endpoint.address.is_some()),
            ("--ip6", self.ip6.is_some() && endpoint.address6.is_some()),
            (
                "--mac-address",
                self.mac.is_some() && endpoint.mac.is_some(),
            ),
        ];
        if let Some((flag, _)) = conflicts.into_iter().find(|(_, is)| *is) {
            return Err(conflict(flag));
        }
        for alias in self.aliases {
            set(endpoint, "alias", alias, "--network-alias")?;
        }
        let single = [
            ("ip", self.ip, "--ip"),
            ("ip6", self.ip6, "--ip6"),
            ("mac", self.mac, "--mac-address"),
        ];
        for (key, value, flag) in single {
            if let Some(value) = value {
                set(endpoint, key, value, flag)?;
            }
        }
        Ok(())
    }
}

/// `NAME`, docker's `name=NAME,alias=…,ip=…`, or podman's `NAME:alias=…,ip=…`.
pub(crate) fn parse(text: &str) -> Result<Endpoint> {
    let (name, fields) = match text.split_once(':') {
        _ if text.contains('=') && text.find('=') < text.find(':') => (None, Some(text)),
        Some((name, fields)) => (Some(name), Some(fields)),
        None if text.contains('=') => (None, Some(text)),
        None => (Some(text), None),
    };
    let mut endpoint = Endpoint::new(name.unwrap_or_default());
    for field in fields.into_iter().flat_map(|fields| fields.split(',')) {
        let (key, value) = field.split_once('=').with_context(|| {
            format!("invalid --network {text:?}: expected NAME, or name=NAME,alias=…,ip=…")
        })?;
        if key == "name" && name.is_none() {
            value.clone_into(&mut endpoint.network);
        } else {
            set(&mut endpoint, key, value, &format!("--network {text:?}"))?;
        }
    }
    if endpoint.network == "default" {
        DEFAULT_NETWORK.clone_into(&mut endpoint.network);
    }
    match endpoint.network.as_str() {
        "" => bail!("invalid --network {text:?}: it names no network"),
        "host" | "none" | "container" => bail!(
            "invalid --network {text:?}: {} does not go with other networks, or with options",
            endpoint.network
        ),
        _ => Ok(endpoint),
    }
}

fn set(endpoint: &mut Endpoint, key: &str, value: &str, flag: &str) -> Result<()> {
    match key.to_ascii_lowercase().as_str() {
        "alias" => {
            if !is_alias(value) {
                bail!(
                    "invalid {flag} {value:?}: an alias has letters, digits, `_`, `.` and `-`, and 253 of them at most"
                );
            }
            endpoint.aliases.push(value.to_owned());
        }
        "ip" => match value.parse() {
            Ok(IpAddr::V4(address)) => endpoint.address = Some(address.into()),
            // Podman has one word for both.
            Ok(IpAddr::V6(address)) if flag != "--ip" => endpoint.address6 = Some(address),
            _ => bail!("invalid {flag} {value:?}: expected an IPv4 address"),
        },
        "ip6" => {
            let address: Ipv6Addr = value
                .parse()
                .with_context(|| format!("invalid {flag} {value:?}: expected an IPv6 address"))?;
            endpoint.address6 = Some(address);
        }
        "mac" | "mac-address" => {
            endpoint.mac = Some(value.parse().with_context(|| format!("invalid {flag}"))?);
        }
        _ => bail!(
            "invalid {flag}: {key:?} is not known; there are name, alias, ip, ip6 and mac-address"
        ),
    }
    Ok(())
}

/// What a resolver could be asked for.
fn is_alias(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=253).contains(&text.len()) && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_of_one_thing() {
        let expected = Endpoint {
            network: "a".into(),
            address: Some("10.0.0.5".parse().unwrap()),
            aliases: vec!["x".into(), "y".into()],
            ..Endpoint::default()
        };
        for text in [
            "name=a,alias=x,alias=y,ip=10.0.0.5",
            "a:ip=10.0.0.5,alias=x,alias=y",
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        assert_eq!(parse("a").unwrap(), Endpoint::new("a"));
        let six = parse("name=a,ip6=fd00::5,mac-address=02:42:00:00:00:01").unwrap();
        assert_eq!(six.address6, Some("fd00::5".parse().unwrap()));
        assert!(six.mac.is_some());
        assert_eq!(parse("a:ip=fd00::5").unwrap().address6, six.address6);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "",
            "host",
            "none",
            "container:x",
            "a:b",
            "a:ip=x",
            "name=",
            "alias=x",
            "a:colour=red",
            "a:alias=/",
            "a:alias=",
            "a:mac=1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_said_twice() {
        let aliases = ["x".to_owned()];
        let place = Place {
            aliases: &aliases,
            ip: Some("10.0.0.5"),
            ..Place::default()
        };
        let mut endpoint = parse("a").unwrap();
        place.apply(&mut endpoint).unwrap();
        assert_eq!(endpoint.aliases, aliases);
        assert!(place.apply(&mut endpoint).is_err());
    }
}
