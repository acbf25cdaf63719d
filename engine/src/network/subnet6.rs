//! IPv6 prefixes, and the IPv6 side of a network's addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, Network, Result};

/// An IPv6 prefix such as `fd00:72::/64`; bits below the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet6 {
    address: Ipv6Addr,
    length: u8,
}

/// Text that is not an IPv6 prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subnet {0:?}: expected an IPv6 prefix such as fd00:72::/64")]
pub struct ParseError(String);

impl Subnet6 {
    /// The prefix of `length` bits that `address` lies in. `length` above 128 counts as 128.
    #[must_use]
    pub fn containing(address: Ipv6Addr, length: u8) -> Subnet6 {
        let length = length.min(128);
        Subnet6 {
            address: Ipv6Addr::from_bits(address.to_bits() & mask(length)),
            length,
        }
    }

    /// The prefix's first address, which names it.
    #[must_use]
    pub fn address(self) -> Ipv6Addr {
        self.address
    }

    /// The prefix's length in bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// The prefix's last address.
    #[must_use]
    pub fn last(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits() | !mask(self.length))
    }

    /// Whether `address` lies in the prefix.
    #[must_use]
    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }

    /// Whether any address lies in both.
    #[must_use]
    pub fn overlaps(self, other: Subnet6) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether `address` can be given to a host: any but the first, which is the routers' anycast address.
    #[must_use]
    pub fn is_host(self, address: Ipv6Addr) -> bool {
        self.contains(address) && address != self.address
    }

    /// Every address that can be given to a host, in order.
    pub fn hosts(self) -> impl Iterator<Item = Ipv6Addr> + Clone {
        let first = self.address.to_bits().saturating_add(1);
        (first..=self.last().to_bits()).map(Ipv6Addr::from_bits)
    }

    fn parse_with_address(text: &str) -> std::result::Result<(Subnet6, Ipv6Addr), ParseError> {
        let fail = || ParseError(text.to_owned());
        let (address, length) = text.trim().split_once('/').ok_or_else(fail)?;
        let address: Ipv6Addr = address.parse().map_err(|_| fail())?;
        let length: u8 = length.parse().map_err(|_| fail())?;
        if length > 128 {
            return Err(fail());
        }
        Ok((Subnet6::containing(address, length), address))
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Subnet6 {
    type Err = ParseError;

    fn from_str(text: &str) -> std::result::Result<Subnet6, ParseError> {
        Subnet6::parse_with_address(text).map(|(subnet, _)| subnet)
    }
}

impl TryFrom<String> for Subnet6 {
    type Error = ParseError;

    fn try_from(text: String) -> std::result::Result<Subnet6, ParseError> {
        text.parse()
    }
}

impl From<Subnet6> for String {
    fn from(subnet: Subnet6) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// The IPv6 addresses of a bridge network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam6 {
    /// Where its containers get their addresses from.
    pub subnet: Subnet6,
    /// The bridge's own address.
    pub gateway: Ipv6Addr,
}

impl Ipam6 {
    /// The addresses that the user asks for. An address with host bits is the bridge's own.
    pub(super) fn parse(text: &str, gateway: Option<IpAddr>) -> Result<Ipam6> {
        let (subnet, typed) =
            Subnet6::parse_with_address(text).map_err(|error| Error::Invalid(error.to_string()))?;
        let unusable = typed.is_multicast() || typed.is_loopback() || is_link_local(typed);
        if !(8..=126).contains(&subnet.length()) || unusable {
            return Err(Error::Invalid(format!(
                "invalid subnet {text:?}: the prefix has to be of 8 to 126 bits, neither link-local nor multicast"
            )));
        }
        let gateway = match gateway {
            Some(gateway) => gateway,
            None if typed != subnet.address() => IpAddr::V6(typed),
            None => IpAddr::V6(Ipv6Addr::from_bits(subnet.address().to_bits() + 1)),
        };
        match gateway {
            IpAddr::V6(gateway) if subnet.is_host(gateway) => Ok(Ipam6 { subnet, gateway }),
            gateway => Err(Error::Invalid(format!(
                "gateway {gateway} is not a host address of {subnet}"
            ))),
        }
    }

    /// A prefix of one's own (RFC 4193) made from the network's random id; no two networks have the same.
    pub(super) fn choose(id: &str) -> Ipam6 {
        let digest = Sha256::digest(format!("prefix {id}"));
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&digest[..5]);
        let subnet = Subnet6::containing(Ipv6Addr::from(octets), 64);
        Ipam6 {
            subnet,
            gateway: Ipv6Addr::from_bits(subnet.address().to_bits() + 1),
        }
    }

    /// Complains when another network, or the host, has some of these addresses.
    pub(super) fn check(self, others: &[Network], host: &[Subnet6]) -> Result<()> {
        let fail = |with| Error::Invalid(format!("subnet {} overlaps with {with}", self.subnet));
        for other in others {
            if let Some(ipam) = other.ipam6.filter(|ipam| ipam.subnet.overlaps(self.subnet)) {
                return Err(fail(format!("network {} ({})", other.name, ipam.subnet)));
            }
        }
        match host.iter().find(|prefix| prefix.overlaps(self.subnet)) {
            Some(prefix) => Err(fail(format!("this host's route to {prefix}"))),
            None => Ok(()),
        }
    }
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_typed_is_the_bridges() {
        let ipam = Ipam6::parse("fd00:72::5/64", None).unwrap();
        assert_eq!(ipam.subnet.to_string(), "fd00:72::/64");
        assert_eq!(ipam.gateway.to_string(), "fd00:72::5");
        let ipam = Ipam6::parse("fd00:72::/64", None).unwrap();
        assert_eq!(ipam.gateway.to_string(), "fd00:72::1");
    }

    #[test]
    fn what_is_no_usable_prefix_is_refused() {
        for text in [
            "",
            "fd00::",
            "fd00::/129",
            "10.0.0.0/8",
            "fe80::/64",
            "ff02::/64",
            "fd00::/127",
            "::1/64",
        ] {
            assert!(Ipam6::parse(text, None).is_err(), "{text}");
        }
        assert!(Ipam6::parse("fd00::/64", Some("fd01::1".parse().unwrap())).is_err());
    }

    #[test]
    fn a_chosen_prefix_is_unique_local_and_the_networks_own() {
        let one = Ipam6::choose("aa");
        assert_eq!(one, Ipam6::choose("aa"));
        assert_ne!(one, Ipam6::choose("bb"));
        assert_eq!(one.subnet.address().octets()[0], 0xfd);
        assert_eq!(one.subnet.length(), 64);
    }

    #[test]
    fn overlap_is_symmetric() {
        let subnet = |text: &str| text.parse::<Subnet6>().unwrap();
        assert!(subnet("fd00::/16").overlaps(subnet("fd00:72::/64")));
        assert!(subnet("fd00:72::/64").overlaps(subnet("fd00::/16")));
        assert!(!subnet("fd00:72::/64").overlaps(subnet("fd00:73::/64")));
    }
}
