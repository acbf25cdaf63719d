//! What the table holds: sets, chains with their rules, and the elements that a container or a network stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::{NetworkRule, PortRule, Rules};
use super::batch::{Attributes, Batch, NLM_F_APPEND, NLM_F_CREATE, Operation};
use super::expression::{
    AFTER_NAME, Connection, Expression, FIRST, Field, KNOWN, Meta, SECOND_NAME, SECOND_NAME_WORD,
    SECOND_WORD, THIRD_WORD, TRANSLATED, Verdict, value,
};

/// Types of keys and data as `nft` numbers them, to know how to print them; and their lengths in registers.
#[derive(Clone, Copy)]
enum Kind {
    Address,
    Address6,
    Protocol,
    Port,
    Interface,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Kind::Address => 7,
            Kind::Address6 => 8,
            Kind::Protocol => 12,
            Kind::Port => 13,
            Kind::Interface => 41,
        }
    }

    fn length(self) -> u32 {
        match self {
            Kind::Address6 | Kind::Interface => 16,
            _ => 4,
        }
    }
}

struct Set {
    name: &'static str,
    key: &'static [Kind],
    data: &'static [Kind],
    interval: bool,
}

const fn set(name: &'static str, key: &'static [Kind]) -> Set {
    Set {
        name,
        key,
        data: &[],
        interval: false,
    }
}

/// All sets and maps, before the chains, whose rules refer to them.
const SETS: [Set; 11] = {
    use Kind::{Address, Address6, Interface, Port, Protocol};
    [
        set("bridges", &[Interface]),
        set("same", &[Interface, Interface]),
        set("internal", &[Interface]),
        Set {
            interval: true,
            ..set("subnets", &[Address])
        },
        Set {
            interval: true,
            ..set("outward", &[Address])
        },
        Set {
            data: &[Address, Port],
            ..set("ports", &[Protocol, Port])
        },
        Set {
            data: &[Address, Port],
            ..set("ports_of_address", &[Address, Protocol, Port])
        },
        Set {
            interval: true,
            ..set("subnets6", &[Address6])
        },
        Set {
            interval: true,
            ..set("outward6", &[Address6])
        },
        Set {
            data: &[Address6, Port],
            ..set("ports6", &[Protocol, Port])
        },
        Set {
            data: &[Address6, Port],
            ..set("ports6_of_address", &[Address6, Protocol, Port])
        },
    ]
};

/// Adds all sets and maps, empty.
pub(super) fn add_sets(batch: &mut Batch, table: &str) {
    const NFT_SET_INTERVAL: u32 = 4;
    const NFT_SET_MAP: u32 = 8;
    // A type of several parts is their numbers, six bits each.
    let kind = |kinds: &[Kind]| kinds.iter().fold(0, |sum, kind| sum << 6 | kind.number());
    let length = |kinds: &[Kind]| kinds.iter().map(|kind| kind.length()).sum();
    for (id, set) in (1..).zip(&SETS) {
        let mut flags = 0;
        if set.interval {
            flags |= NFT_SET_INTERVAL;
        }
        if !set.data.is_empty() {
            flags |= NFT_SET_MAP;
        }
        // NFTA_SET_TABLE, _NAME, _FLAGS, _KEY_TYPE, _KEY_LEN, _DATA_TYPE, _DATA_LEN, _ID
        let mut attributes = Attributes::new()
            .text(1, table)
            .text(2, set.name)
            .number(3, flags)
            .number(4, kind(set.key))
            .number(5, length(set.key))
            .number(10, id);
        if let [Kind::Interface] = set.key {
            // NFTA_SET_USERDATA. Only `nft` reads it: the key is a text, not a number to be turned around.
            let [a, b, c, d] = 1u32.to_ne_bytes();
            attributes = attributes.bytes(13, &[0, 4, a, b, c, d]);
        }
        if !set.data.is_empty() {
            attributes = attributes
                .number(6, kind(set.data))
                .number(7, length(set.data));
        }
        batch.add(Operation::NewSet, NLM_F_CREATE, &attributes);
    }
}

/// Where a chain is called from: its type, the hook (`enum nf_inet_hooks`) and the priority there.
type Hook = (&'static str, u32, i32);

type Rule = Vec<Expression>;

/// Adds all chains with their rules.
pub(super) fn add_chains(batch: &mut Batch, table: &str) {
    for (name, hook, _) in chains() {
        // NFTA_CHAIN_TABLE, _NAME, _HOOK {_HOOKNUM, _PRIORITY}, _TYPE
        let mut attributes = Attributes::new().text(1, table).text(3, name);
        if let Some((kind, number, priority)) = hook {
            let hook = Attributes::new().number(1, number).signed(2, priority);
            attributes = attributes.nested(4, &hook).text(7, kind);
        }
        batch.add(Operation::NewChain, NLM_F_CREATE, &attributes);
    }
    for (name, _, rules) in chains() {
        for rule in rules {
            let mut list = Vec::new();
            list.extend(rule.into_iter().flat_map(Expression::steps));
            // NFTA_RULE_TABLE, _CHAIN, _EXPRESSIONS
            let attributes = Attributes::new()
                .text(1, table)
                .text(2, name)
                .nested(4, &Attributes::concatenate(&list));
            batch.add(Operation::NewRule, NLM_F_CREATE | NLM_F_APPEND, &attributes);
        }
    }
}

fn chains() -> [(&'static str, Option<Hook>, Vec<Rule>); 6] {
    use Verdict::{Accept, Drop, Jump};
    let verdict = Expression::Verdict;
    // meta nfproto ipv4
    let is_ipv4 = [Expression::Meta(Meta::Family, FIRST), byte(2, true)];
    let is_ipv6 = [Expression::Meta(Meta::Family, FIRST), byte(10, true)];
    // Not ::1, which can't be translated: no interface but its own takes it.
    let not_loopback6 = [
        Expression::Payload(Field::DESTINATION6_FIRST, FIRST),
        byte(0, false),
    ];
    let loopback = |field, is| [Expression::Payload(field, FIRST), byte(127, is)];
    let interface = |meta, set, is| [Expression::Meta(meta, FIRST), Expression::InSet { set, is }];
    let from = |set, is| interface(Meta::InputName, set, is);
    let to = |set, is| interface(Meta::OutputName, set, is);
    let translated = || vec![Expression::Connection(Connection::Status, TRANSLATED)];
    let in_subnets = |set| {
        vec![
            Expression::Payload(Field::SOURCE, FIRST),
            Expression::InSet { set, is: true },
        ]
    };
    let in_subnets6 = |set| {
        vec![
            Expression::Payload(Field::SOURCE6, FIRST),
            Expression::InSet { set, is: true },
        ]
    };
    let rule = |parts: &[&[Expression]]| parts.concat();
    [
        (
            "published",
            None,
            vec![
                // dnat ip to ip daddr . meta l4proto . th dport map @ports_of_address
                rule(&[
                    &is_ipv4,
                    &[
                        Expression::Payload(Field::DESTINATION, FIRST),
                        Expression::Meta(Meta::Protocol, SECOND_WORD),
                        Expression::Payload(Field::DESTINATION_PORT, THIRD_WORD),
                        Expression::Map("ports_of_address"),
                        Expression::TranslateDestination,
                    ],
                ]),
                // dnat ip to meta l4proto . th dport map @ports
                rule(&[
                    &is_ipv4,
                    &[
                        Expression::Meta(Meta::Protocol, FIRST),
                        Expression::Payload(Field::DESTINATION_PORT, SECOND_WORD),
                        Expression::Map("ports"),
                        Expression::TranslateDestination,
                    ],
                ]),
                // dnat ip6 to ip6 daddr . meta l4proto . th dport map @ports6_of_address
                rule(&[
                    &is_ipv6,
                    &[
                        Expression::Payload(Field::DESTINATION6, FIRST),
                        Expression::Meta(Meta::Protocol, SECOND_NAME_WORD),
                        Expression::Payload(Field::DESTINATION_PORT, AFTER_NAME),
                        Expression::Map("ports6_of_address"),
                        Expression::TranslateDestination6,
                    ],
                ]),
                // dnat ip6 to meta l4proto . th dport map @ports6
                rule(&[
                    &is_ipv6,
                    &[
                        Expression::Meta(Meta::Protocol, FIRST),
                        Expression::Payload(Field::DESTINATION_PORT, SECOND_WORD),
                        Expression::Map("ports6"),
                        Expression::TranslateDestination6,
                    ],
                ]),
            ],
        ),
        (
            "arriving",
            Some(("filter", 0, -300)),
            vec![
                // iifname @bridges ip saddr 127.0.0.0/8 drop, and the same with daddr
                rule(&[
                    &from("bridges", true),
                    &is_ipv4,
                    &loopback(Field::SOURCE_FIRST, true),
                    &[verdict(Drop)],
                ]),
                rule(&[
                    &from("bridges", true),
                    &is_ipv4,
                    &loopback(Field::DESTINATION_FIRST, true),
                    &[verdict(Drop)],
                ]),
            ],
        ),
        (
            "prerouting",
            Some(("nat", 0, -100)),
            // ip daddr != 127.0.0.0/8 fib daddr type local jump published
            vec![
                rule(&[
                    &is_ipv4,
                    &loopback(Field::DESTINATION_FIRST, false),
                    &[Expression::ToThisHost, verdict(Jump("published"))],
                ]),
                // meta nfproto ipv6 fib daddr type local jump published
                rule(&[
                    &is_ipv6,
                    &not_loopback6,
                    &[Expression::ToThisHost, verdict(Jump("published"))],
                ]),
            ],
        ),
        (
            "output",
            Some(("nat", 3, -100)),
            // fib daddr type local jump published
            vec![
                rule(&[
                    &is_ipv4,
                    &[Expression::ToThisHost, verdict(Jump("published"))],
                ]),
                rule(&[
                    &is_ipv6,
                    &not_loopback6,
                    &[Expression::ToThisHost, verdict(Jump("published"))],
                ]),
            ],
        ),
        ("forward", Some(("filter", 2, 0)), {
            let known = [Expression::Connection(Connection::State, KNOWN)];
            let same = [
                Expression::Meta(Meta::InputName, FIRST),
                Expression::Meta(Meta::OutputName, SECOND_NAME),
                Expression::InSet {
                    set: "same",
                    is: true,
                },
            ];
            vec![
                // iifname != @bridges oifname != @bridges accept
                rule(&[
                    &from("bridges", false),
                    &to("bridges", false),
                    &[verdict(Accept)],
                ]),
                // ct state established,related accept
                rule(&[&known, &[verdict(Accept)]]),
                // iifname . oifname @same accept
                rule(&[&same, &[verdict(Accept)]]),
                // iifname @internal drop, oifname @internal drop
                rule(&[&from("internal", true), &[verdict(Drop)]]),
                rule(&[&to("internal", true), &[verdict(Drop)]]),
                // oifname @bridges ct status dnat accept
                rule(&[&to("bridges", true), &translated(), &[verdict(Accept)]]),
                // oifname @bridges drop
                rule(&[&to("bridges", true), &[verdict(Drop)]]),
            ]
        }),
        (
            "postrouting",
            Some(("nat", 4, 100)),
            vec![
                // oifname @bridges ip saddr 127.0.0.0/8 masquerade
                rule(&[
                    &to("bridges", true),
                    &is_ipv4,
                    &loopback(Field::SOURCE_FIRST, true),
                    &[Expression::Masquerade],
                ]),
                // oifname @bridges ip saddr @subnets ct status dnat masquerade
                rule(&[
                    &to("bridges", true),
                    &is_ipv4,
                    &in_subnets("subnets"),
                    &translated(),
                    &[Expression::Masquerade],
                ]),
                // oifname != @bridges ip saddr @outward masquerade
                rule(&[
                    &to("bridges", false),
                    &is_ipv4,
                    &in_subnets("outward"),
                    &[Expression::Masquerade],
                ]),
                // The same two of IPv6.
                rule(&[
                    &to("bridges", true),
                    &is_ipv6,
                    &in_subnets6("subnets6"),
                    &translated(),
                    &[Expression::Masquerade],
                ]),
                rule(&[
                    &to("bridges", false),
                    &is_ipv6,
                    &in_subnets6("outward6"),
                    &[Expression::Masquerade],
                ]),
            ],
        ),
    ]
}

fn byte(value: u8, is: bool) -> Expression {
    Expression::Byte { value, is }
}

/// The elements that `rules` stand for, by set.
pub(super) fn elements(rules: &Rules) -> Vec<(&'static str, Vec<Attributes>)> {
    let of = |wanted: fn(&NetworkRule) -> bool, element: fn(&NetworkRule) -> Vec<Attributes>| {
        rules
            .networks
            .iter()
            .filter(|network| wanted(network))
            .flat_map(element)
            .collect::<Vec<_>>()
    };
    let name = |network: &NetworkRule| vec![member(&interface(&network.bridge))];
    let subnet = |network: &NetworkRule| interval(network);
    let ports = |wanted: &str| {
        let ports = rules
            .ports
            .iter()
            .map(port)
            .filter(|(map, ..)| *map == wanted);
        ports
            .map(|(_, key, value)| mapping(&key, &value))
            .collect::<Vec<_>>()
    };
    let mut sets = vec![
        ("bridges", of(|_| true, name)),
        (
            "same",
            of(
                |_| true,
                |network| {
                    vec![member(
                        &[interface(&network.bridge), interface(&network.bridge)].concat(),
                    )]
                },
            ),
        ),
        ("internal", of(|network| network.internal, name)),
        ("subnets", of(|_| true, subnet)),
        ("outward", of(|network| !network.internal, subnet)),
        ("subnets6", of(|_| true, interval6)),
        ("outward6", of(|network| !network.internal, interval6)),
        ("ports", ports("ports")),
        ("ports_of_address", ports("ports_of_address")),
        ("ports6", ports("ports6")),
        ("ports6_of_address", ports("ports6_of_address")),
    ];
    sets.retain(|(_, elements)| !elements.is_empty());
    sets
}

/// A port's map, key and value.
pub(super) fn port(port: &PortRule) -> (&'static str, Vec<u8>, Vec<u8>) {
    let word = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [high, low, 0, 0]
    };
    let key = [[port.protocol.number(), 0, 0, 0], word(port.host_port)].concat();
    let value = [octets(port.target), word(port.target_port).to_vec()].concat();
    let map = match (port.target, port.host) {
        (IpAddr::V4(_), None) => "ports",
        (IpAddr::V4(_), Some(_)) => "ports_of_address",
        (IpAddr::V6(_), None) => "ports6",
        (IpAddr::V6(_), Some(_)) => "ports6_of_address",
    };
    let host = port.host.map(octets).unwrap_or_default();
    (map, [host, key].concat(), value)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An element of a set. NFTA_SET_ELEM_KEY
pub(super) fn member(key: &[u8]) -> Attributes {
    Attributes::new().nested(1, &value(key))
}

/// An element of a map. NFTA_SET_ELEM_KEY, _DATA
pub(super) fn mapping(key: &[u8], data: &[u8]) -> Attributes {
    member(key).nested(2, &value(data))
}

/// The two elements that an interval is made of: its first address, and the first one behind it.
fn interval(network: &NetworkRule) -> Vec<Attributes> {
    let behind = Ipv4Addr::from_bits(network.subnet.last().to_bits().wrapping_add(1));
    ends(&network.subnet.address().octets(), &behind.octets())
}

/// The same of its IPv6 addresses, if it has any.
fn interval6(network: &NetworkRule) -> Vec<Attributes> {
    let Some(subnet) = network.subnet6 else {
        return Vec::new();
    };
    let behind = Ipv6Addr::from_bits(subnet.last().to_bits().wrapping_add(1));
    ends(&subnet.address().octets(), &behind.octets())
}

fn ends(first: &[u8], behind: &[u8]) -> Vec<Attributes> {
    const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
    vec![
        member(first),
        // NFTA_SET_ELEM_FLAGS
        member(behind).number(3, NFT_SET_ELEM_INTERVAL_END),
    ]
}

/// An interface name as a register holds it.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::super::super::Protocol;
    use super::*;

    #[test]
    fn a_port_is_laid_out_as_the_registers_are() {
        let rule = PortRule {
            host: None,
            protocol: Protocol::Udp,
            host_port: 0x1234,
            target: Ipv4Addr::new(172, 17, 0, 2).into(),
            target_port: 80,
        };
        let (map, key, value) = port(&rule);
        assert_eq!(map, "ports");
        assert_eq!(key, [17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(value, [172, 17, 0, 2, 0, 80, 0, 0]);
        let host = Some(Ipv4Addr::LOCALHOST.into());
        let (map, key, _) = port(&PortRule { host, ..rule });
        assert_eq!(map, "ports_of_address");
        assert_eq!(key, [127, 0, 0, 1, 17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        let target = Ipv6Addr::LOCALHOST.into();
        let (map, key, value) = port(&PortRule { target, ..rule });
        assert_eq!((map, key.len(), value.len()), ("ports6", 8, 20));
    }

    #[test]
    fn every_set_that_a_rule_names_is_there() {
        let rules = chains()
            .into_iter()
            .flat_map(|(_, _, rules)| rules)
            .flatten();
        for expression in rules {
            if let Expression::InSet { set: name, .. } | Expression::Map(name) = expression {
                assert!(SETS.iter().any(|set| set.name == name), "{name}");
            }
        }
    }
}
