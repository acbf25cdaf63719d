//! iptables, for kernels and machines without nftables: chains of our own, and one jump to each from a built-in one.
//!
//! All changes go through `iptables-restore --noflush`, one transaction a table.

use std::fmt::Write;

use super::command::{self, Failure};
use super::{PortRule, Rules};

/// The names of our chains.
#[derive(Debug)]
pub(super) struct Chains {
    dnat: String,
    masquerade: String,
    forward: String,
    input: String,
    raw: String,
}

impl Chains {
    pub(super) fn new(suffix: Option<&str>) -> Chains {
        let name = |purpose: &str| match suffix {
            None => format!("QENGINE-{purpose}"),
            Some(suffix) => format!("QENGINE-{purpose}-{suffix}"),
        };
        Chains {
            dnat: name("DNAT"),
            masquerade: name("SNAT"),
            forward: name("FWD"),
            input: name("IN"),
            raw: name("RAW"),
        }
    }

    pub(super) fn replace(&self, rules: &Rules) -> Result<(), Failure> {
        let there = save()?;
        restore(&self.text(rules, &there))
    }

    pub(super) fn add_ports(&self, ports: &[PortRule]) -> Result<(), Failure> {
        restore(&self.port_text("-A", ports))
    }

    pub(super) fn remove_ports(&self, ports: &[PortRule]) -> Result<(), Failure> {
        restore(&self.port_text("-D", ports))
    }

    pub(super) fn clear(&self) -> Result<(), Failure> {
        let there = save()?;
        let mut text = String::new();
        for (table, chains) in self.tables() {
            let ours: Vec<_> = chains
                .into_iter()
                .filter(|chain| there.contains(&format!(":{chain} ")))
                .collect();
            if ours.is_empty() {
                continue;
            }
            let _ = writeln!(text, "*{table}");
            for (_, jump) in self.jumps().into_iter().filter(|(of, _)| *of == table) {
                if there.contains(&format!("-A {jump}\n")) {
                    let _ = writeln!(text, "-D {jump}");
                }
            }
            for chain in &ours {
                let _ = writeln!(text, "-F {chain}");
            }
            for chain in &ours {
                let _ = writeln!(text, "-X {chain}");
            }
            text.push_str("COMMIT\n");
        }
        if text.is_empty() {
            Ok(())
        } else {
            restore(&text)
        }
    }

    /// Tables, and our chains in each.
    fn tables(&self) -> [(&'static str, Vec<&str>); 3] {
        [
            ("raw", vec![&self.raw]),
            ("nat", vec![&self.dnat, &self.masquerade]),
            ("filter", vec![&self.forward, &self.input]),
        ]
    }

    /// The jumps to our chains, as `iptables-save` prints them after `-A`.
    fn jumps(&self) -> [(&'static str, String); 6] {
        let Chains {
            dnat,
            masquerade,
            forward,
            input,
            raw,
        } = self;
        [
            ("raw", format!("PREROUTING -j {raw}")),
            (
                "nat",
                format!("PREROUTING ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j {dnat}"),
            ),
            (
                "nat",
                format!("OUTPUT -m addrtype --dst-type LOCAL -j {dnat}"),
            ),
            ("nat", format!("POSTROUTING -j {masquerade}")),
            ("filter", format!("FORWARD -j {forward}")),
            ("filter", format!("INPUT -j {input}")),
        ]
    }

    /// All our chains anew, and the jumps that are not there yet.
    fn text(&self, rules: &Rules, there: &str) -> String {
        let mut text = String::new();
        for (table, chains) in self.tables() {
            let _ = writeln!(text, "*{table}");
            for chain in chains {
                // In --noflush mode this makes the chain, or empties it.
                let _ = writeln!(text, ":{chain} - [0:0]");
            }
            for (_, jump) in self.jumps().into_iter().filter(|(of, _)| *of == table) {
                if !there.contains(&format!("-A {jump}\n")) {
                    // First in its chain: others' chains end with a verdict, ours return.
                    let (chain, rule) = jump.split_once(' ').unwrap_or((&jump, ""));
                    let _ = writeln!(text, "-I {chain} 1 {rule}");
                }
            }
            match table {
                "raw" => self.raw_rules(&mut text, rules),
                "nat" => self.nat_rules(&mut text, rules),
                _ => {
                    self.forward_rules(&mut text, rules);
                    self.input_rules(&mut text, rules);
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    fn raw_rules(&self, text: &mut String, rules: &Rules) {
        for network in &rules.networks {
            for side in ["-s", "-d"] {
                let _ = writeln!(
                    text,
                    "-A {} -i {} {side} 127.0.0.0/8 -j DROP",
                    self.raw, network.bridge
                );
            }
        }
    }

    fn nat_rules(&self, text: &mut String, rules: &Rules) {
        let chain = &self.masquerade;
        for to in &rules.networks {
            let _ = writeln!(
                text,
                "-A {chain} -s 127.0.0.0/8 -o {} -j MASQUERADE",
                to.bridge
            );
            for from in &rules.networks {
                let _ = writeln!(
                    text,
                    "-A {chain} -s {} -o {} -m conntrack --ctstate DNAT -j MASQUERADE",
                    from.subnet, to.bridge
                );
            }
        }
        // What goes to one of our bridges stays as it is.
        for to in &rules.networks {
            let _ = writeln!(text, "-A {chain} -o {} -j RETURN", to.bridge);
        }
        for from in rules.networks.iter().filter(|network| !network.internal) {
            let _ = writeln!(text, "-A {chain} -s {} -j MASQUERADE", from.subnet);
        }
        for port in &rules.ports {
            let _ = writeln!(text, "-A {}", self.port_rule(port));
        }
    }

    /// Questions to the network's resolver: nothing else is led from a bridge to the host itself.
    fn input_rules(&self, text: &mut String, rules: &Rules) {
        for network in &rules.networks {
            let _ = writeln!(
                text,
                "-A {} -i {} -m conntrack --ctstate DNAT -j ACCEPT",
                self.input, network.bridge
            );
        }
    }

    fn forward_rules(&self, text: &mut String, rules: &Rules) {
        let chain = &self.forward;
        let networks = || rules.networks.iter();
        for bridge in networks().map(|network| &network.bridge) {
            for side in ["-i", "-o"] {
                let _ = writeln!(
                    text,
                    "-A {chain} {side} {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
                );
            }
            let _ = writeln!(text, "-A {chain} -i {bridge} -o {bridge} -j ACCEPT");
        }
        for bridge in networks()
            .filter(|network| network.internal)
            .map(|network| &network.bridge)
        {
            let _ = writeln!(
                text,
                "-A {chain} -i {bridge} -j DROP\n-A {chain} -o {bridge} -j DROP"
            );
        }
        for bridge in networks().map(|network| &network.bridge) {
            let _ = writeln!(
                text,
                "-A {chain} -o {bridge} -m conntrack --ctstate DNAT -j ACCEPT\n-A {chain} -o {bridge} -j DROP"
            );
        }
        for bridge in networks().map(|network| &network.bridge) {
            let _ = writeln!(text, "-A {chain} -i {bridge} -j ACCEPT");
        }
    }

    fn port_text(&self, operation: &str, ports: &[PortRule]) -> String {
        let mut text = String::from("*nat\n");
        for port in ports {
            let _ = writeln!(text, "{operation} {}", self.port_rule(port));
        }
        text.push_str("COMMIT\n");
        text
    }

    fn port_rule(&self, port: &PortRule) -> String {
        let host = port
            .host
            .map(|host| format!("-d {host}/32 "))
            .unwrap_or_default();
        format!(
            "{} {host}-p {protocol} -m {protocol} --dport {} -j DNAT --to-destination {}:{}",
            self.dnat,
            port.host_port,
            port.target,
            port.target_port,
            protocol = port.protocol,
        )
    }
}

/// Whether the commands are there, and the kernel has what they need.
pub(super) fn is_usable() -> bool {
    let nothing = "*nat\nCOMMIT\n*filter\nCOMMIT\n";
    command::run("iptables-restore", &["--noflush", "--test"], nothing).is_ok()
}

/// What iptables has now.
pub(super) fn save() -> Result<String, Failure> {
    command::run("iptables-save", &[], "")
}

pub(super) fn restore(text: &str) -> Result<(), Failure> {
    // Others hold the same lock for as long as their change takes; ten seconds is plenty.
    command::run("iptables-restore", &["--noflush", "--wait", "10"], text).map(drop)
}
