//! IPv4 prefixes: parsing, arithmetic, overlap.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 prefix such as `172.17.0.0/16`; bits below the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    address: Ipv4Addr,
    length: u8,
}

/// Text that is not an IPv4 prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid subnet {0:?}: expected an IPv4 prefix such as 10.72.0.0/24")]
pub struct ParseError(String);

impl Subnet {
    /// The prefix of `length` bits that `address` lies in. `length` above 32 counts as 32.
    #[must_use]
    pub fn containing(address: Ipv4Addr, length: u8) -> Subnet {
        let length = length.min(32);
        Subnet {
            address: Ipv4Addr::from_bits(address.to_bits() & mask(length)),
            length,
        }
    }

    /// Parses `ADDRESS/LENGTH` and keeps the address as typed beside the prefix it lies in.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn parse_with_address(text: &str) -> Result<(Subnet, Ipv4Addr), ParseError> {
        let fail = || ParseError(text.to_owned());
        let (address, length) = text.trim().split_once('/').ok_or_else(fail)?;
        let address: Ipv4Addr = address.parse().map_err(|_| fail())?;
        let length: u8 = length.parse().map_err(|_| fail())?;
        if length > 32 {
            return Err(fail());
        }
        Ok((Subnet::containing(address, length), address))
    }

    /// The prefix's first address, which names it.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix's length in bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// The prefix's last address: its broadcast address.
    #[must_use]
    pub fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !mask(self.length))
    }

    /// The first address that a host can have.
    #[must_use]
    pub fn first_host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits().saturating_add(1))
    }

    /// Whether `address` lies in the prefix.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.length) == self.address.to_bits()
    }

    /// Whether any address lies in both.
    #[must_use]
    pub fn overlaps(self, other: Subnet) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether `address` can be given to a host: neither the prefix's first nor its last.
    #[must_use]
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.address && address != self.last()
    }

    /// Every address that can be given to a host, in order.
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> + Clone {
        let first = self.address.to_bits().saturating_add(1);
        (first..self.last().to_bits()).map(Ipv4Addr::from_bits)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Subnet, ParseError> {
        Subnet::parse_with_address(text).map(|(subnet, _)| subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Subnet, ParseError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn the_address_typed_is_kept_beside_the_prefix() {
        let (parsed, address) = Subnet::parse_with_address("10.200.0.1/24").unwrap();
        assert_eq!(parsed, subnet("10.200.0.0/24"));
        assert_eq!(address, Ipv4Addr::new(10, 200, 0, 1));
    }

    #[test]
    fn what_is_not_a_prefix_is_refused() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/64",
            "10.0.0.0/-1",
            "a/8",
        ] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn ends_of_a_prefix() {
        for (text, first, last) in [
            ("172.17.0.0/16", [172, 17, 0, 1], [172, 17, 255, 255]),
            ("10.72.0.0/24", [10, 72, 0, 1], [10, 72, 0, 255]),
            ("192.168.5.4/30", [192, 168, 5, 5], [192, 168, 5, 7]),
            ("0.0.0.0/0", [0, 0, 0, 1], [255, 255, 255, 255]),
        ] {
            assert_eq!(subnet(text).first_host(), Ipv4Addr::from(first), "{text}");
            assert_eq!(subnet(text).last(), Ipv4Addr::from(last), "{text}");
        }
    }

    #[test]
    fn overlap_is_symmetric_and_exact() {
        for (one, other, expected) in [
            ("10.0.0.0/8", "10.72.0.0/24", true),
            ("10.72.0.0/24", "10.72.0.0/24", true),
            ("10.72.0.0/24", "10.72.1.0/24", false),
            ("172.16.0.0/12", "172.32.0.0/16", false),
            ("0.0.0.0/0", "1.2.3.4/32", true),
        ] {
            assert_eq!(
                subnet(one).overlaps(subnet(other)),
                expected,
                "{one} {other}"
            );
            assert_eq!(
                subnet(other).overlaps(subnet(one)),
                expected,
                "{other} {one}"
            );
        }
    }

    #[test]
    fn hosts_leave_out_both_ends() {
        let hosts: Vec<_> = subnet("10.0.0.0/30").hosts().collect();
        assert_eq!(
            hosts,
            [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)]
        );
        assert_eq!(subnet("10.0.0.0/31").hosts().count(), 0);
        assert_eq!(subnet("10.0.0.0/32").hosts().count(), 0);
        assert!(!subnet("10.0.0.0/30").is_host(Ipv4Addr::new(10, 0, 0, 3)));
    }
}
