//! Which addresses a network has: as asked for, or the first that nothing else on this host has.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::link::HostRoutes;
use super::{Error, Network, Result, Subnet};

/// The addresses of a bridge network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// Where its containers get their addresses from.
    pub subnet: Subnet,
    /// The bridge's own address.
    pub gateway: Ipv4Addr,
    /// We chose the subnet, and may choose another one while nobody uses it.
    #[serde(default)]
    pub automatic: bool,
}

impl Ipam {
    /// The addresses that the user asks for. An address with host bits is the bridge's own.
    pub(super) fn parse(text: &str, gateway: Option<IpAddr>) -> Result<Ipam> {
        let (subnet, typed) =
            Subnet::parse_with_address(text).map_err(|error| Error::Invalid(error.to_string()))?;
        if subnet.length() > 30 || subnet.length() < 8 {
            return Err(Error::Invalid(format!(
                "invalid subnet {text:?}: the prefix's length has to be from 8 to 30 bits"
            )));
        }
        let gateway = match gateway {
            Some(gateway) => gateway,
            None if typed != subnet.address() => IpAddr::V4(typed),
            None => IpAddr::V4(subnet.first_host()),
        };
        match gateway {
            IpAddr::V4(gateway) if subnet.is_host(gateway) => Ok(Ipam {
                subnet,
                gateway,
                automatic: false,
            }),
            gateway => Err(Error::Invalid(format!(
                "gateway {gateway} is not a host address of {subnet}"
            ))),
        }
    }

    /// The first addresses of the pool that neither `others` nor the host have, for the network `name`.
    pub(super) fn choose(name: &str, others: &[Network], routes: &HostRoutes) -> Result<Ipam> {
        pool()
            .find(|subnet| conflict(*subnet, others, routes).is_none())
            .map(|subnet| Ipam {
                subnet,
                gateway: subnet.first_host(),
                automatic: true,
            })
            .ok_or_else(|| Error::PoolExhausted(name.to_owned()))
    }

    /// Complains when another network, or the host, has some of these addresses.
    pub(super) fn check(self, others: &[Network], routes: &HostRoutes) -> Result<()> {
        match conflict(self.subnet, others, routes) {
            Some(with) => Err(Error::Overlap {
                subnet: self.subnet,
                with,
            }),
            None => Ok(()),
        }
    }
}

/// The prefixes that are tried, in docker's order: 172.17–31.0.0/16, then 192.168.0–240.0/20.
fn pool() -> impl Iterator<Item = Subnet> {
    let large = (17..=31).map(|second| Subnet::containing(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..=240u8)
        .step_by(16)
        .map(|third| Subnet::containing(Ipv4Addr::new(192, 168, third, 0), 20));
    large.chain(small)
}

/// Whatever else has addresses of `subnet`, in words.
fn conflict(subnet: Subnet, others: &[Network], routes: &HostRoutes) -> Option<String> {
    let network = others.iter().find_map(|other| {
        let ipam = other.ipam.filter(|ipam| ipam.subnet.overlaps(subnet))?;
        Some(format!("network {} ({})", other.name, ipam.subnet))
    });
    network.or_else(|| {
        let mut prefixes = routes.prefixes.iter();
        let prefix = prefixes.find(|prefix| prefix.overlaps(subnet))?;
        Some(format!("this host's route to {prefix}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(prefixes: &[&str]) -> HostRoutes {
        HostRoutes {
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostRoutes::default()
        }
    }

    #[test]
    fn the_pool_is_searched_in_order() {
        let ipam = Ipam::choose("x", &[], &routes(&[])).unwrap();
        assert_eq!(ipam.subnet.to_string(), "172.17.0.0/16");
        assert_eq!(ipam.gateway, Ipv4Addr::new(172, 17, 0, 1));
        let ipam = Ipam::choose("x", &[], &routes(&["172.16.0.0/12", "192.168.1.0/24"])).unwrap();
        assert_eq!(ipam.subnet.to_string(), "192.168.16.0/20");
        assert_eq!(pool().count(), 31);
        let full = Ipam::choose("x", &[], &routes(&["172.16.0.0/12", "192.168.0.0/16"]));
        assert!(matches!(full, Err(Error::PoolExhausted(_))));
    }

    #[test]
    fn the_bridge_gets_the_address_typed() {
        for (text, gateway, expected) in [
            ("10.72.0.0/24", None, Some("10.72.0.1")),
            ("10.200.0.1/24", None, Some("10.200.0.1")),
            ("10.200.0.5/24", None, Some("10.200.0.5")),
            ("10.72.0.0/24", Some("10.72.0.254"), Some("10.72.0.254")),
            ("10.72.0.0/24", Some("10.72.0.255"), None),
            ("10.72.0.0/24", Some("10.73.0.1"), None),
            ("10.72.0.0/24", Some("fd00::1"), None),
            ("10.72.0.0/31", None, None),
            ("10.72.0.0/4", None, None),
            ("nonsense", None, None),
        ] {
            let gateway = gateway.map(|text| text.parse().unwrap());
            let ipam = Ipam::parse(text, gateway).ok();
            assert_eq!(
                ipam.map(|ipam| ipam.gateway.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
