//! Rules of others that would drop our packets.
//!
//! Where iptables' chain FORWARD drops, or has rules that may (docker sets its policy to DROP, ufw fills it), our own
//! table can accept what it likes: a packet passes only if every table lets it. So there, and only there, a chain of
//! ours is called first that accepts what goes to or comes from our bridges. It opens nothing: what may not pass is
//! dropped in our own table. (firewalld has a table of its own, where bridges belong into a zone; that is the
//! administrator's to say.)

use std::fmt::Write;
use std::fs;

use super::Rules;
use super::command::{self, Failure};
use super::nftables::Table;
use super::nftables::batch::{FAMILY_IPV4, FAMILY_IPV6};

/// The chain that accepts.
#[derive(Debug)]
pub(super) struct Acceptance {
    chain: String,
}

impl Acceptance {
    pub(super) fn new(suffix: Option<&str>) -> Acceptance {
        Acceptance {
            chain: suffix.map_or("QENGINE-ACCEPT".to_owned(), |suffix| {
                format!("QENGINE-ACCEPT-{suffix}")
            }),
        }
    }

    /// Makes the chain be what `rules` need, if it is needed at all.
    pub(super) fn replace(&self, table: &Table, rules: &Rules) -> Result<(), Failure> {
        self.replace_in(&IPV4, table, rules)?;
        if rules.networks.iter().any(|one| one.subnet6.is_some()) {
            self.replace_in(&IPV6, table, rules)?;
        }
        Ok(())
    }

    fn replace_in(&self, family: &Family, table: &Table, rules: &Rules) -> Result<(), Failure> {
        let forward = table.iptables_chain(family.number, "FORWARD");
        if !family.has_legacy_filter() && forward.is_none_or(|chain| !chain.drops && chain.is_empty)
        {
            return Ok(());
        }
        let there = command::run(family.save, &[], "")?;
        let needed = there
            .lines()
            .any(|line| line.starts_with(":FORWARD DROP ") || line.starts_with("-A FORWARD "));
        if needed {
            family.restore(&self.text(rules, &there))
        } else {
            Ok(())
        }
    }

    /// Removes the chain; fine when it is not there.
    pub(super) fn clear(&self, table: &Table) -> Result<(), Failure> {
        self.clear_in(&IPV4, table)?;
        self.clear_in(&IPV6, table)
    }

    fn clear_in(&self, family: &Family, table: &Table) -> Result<(), Failure> {
        let chain = &self.chain;
        if !family.has_legacy_filter() && table.iptables_chain(family.number, chain).is_none() {
            return Ok(());
        }
        let there = command::run(family.save, &[], "")?;
        if !there.contains(&format!(":{chain} ")) {
            return Ok(());
        }
        let jump = if self.is_called(&there) {
            format!("-D {}\n", self.jump())
        } else {
            String::new()
        };
        family.restore(&format!("*filter\n{jump}-F {chain}\n-X {chain}\nCOMMIT\n"))
    }

    fn text(&self, rules: &Rules, there: &str) -> String {
        let chain = &self.chain;
        let mut text = format!("*filter\n:{chain} - [0:0]\n");
        if !self.is_called(there) {
            let _ = writeln!(text, "-I FORWARD 1 -j {chain}");
        }
        for network in &rules.networks {
            for side in ["-i", "-o"] {
                let _ = writeln!(text, "-A {chain} {side} {} -j ACCEPT", network.bridge);
            }
        }
        text.push_str("COMMIT\n");
        text
    }

    fn jump(&self) -> String {
        format!("FORWARD -j {}", self.chain)
    }

    fn is_called(&self, there: &str) -> bool {
        there.contains(&format!("-A {}\n", self.jump()))
    }
}

/// One of the two sets of commands.
struct Family {
    number: u8,
    save: &'static str,
    restore: &'static str,
    /// Tables of the older iptables, which nftables knows nothing of.
    legacy: &'static str,
}

const IPV4: Family = Family {
    number: FAMILY_IPV4,
    save: "iptables-save",
    restore: "iptables-restore",
    legacy: "/proc/net/ip_tables_names",
};

const IPV6: Family = Family {
    number: FAMILY_IPV6,
    save: "ip6tables-save",
    restore: "ip6tables-restore",
    legacy: "/proc/net/ip6_tables_names",
};

impl Family {
    fn has_legacy_filter(&self) -> bool {
        fs::read_to_string(self.legacy)
            .is_ok_and(|names| names.lines().any(|name| name == "filter"))
    }

    fn restore(&self, text: &str) -> Result<(), Failure> {
        // As with our own rules: others hold the lock for as long as their change takes.
        command::run(self.restore, &["--noflush", "--wait", "10"], text).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::NetworkRule;
    use super::*;

    #[test]
    fn the_jump_is_made_once() {
        let acceptance = Acceptance::new(None);
        let rules = Rules {
            networks: vec![NetworkRule {
                subnet6: None,
                bridge: "qbr0".into(),
                subnet: "172.17.0.0/16".parse().unwrap(),
                internal: false,
            }],
            ports: Vec::new(),
        };
        assert_eq!(
            acceptance.text(&rules, ""),
            "*filter\n:QENGINE-ACCEPT - [0:0]\n-I FORWARD 1 -j QENGINE-ACCEPT\n\
             -A QENGINE-ACCEPT -i qbr0 -j ACCEPT\n-A QENGINE-ACCEPT -o qbr0 -j ACCEPT\nCOMMIT\n"
        );
        let again = acceptance.text(&rules, "*filter\n-A FORWARD -j QENGINE-ACCEPT\n");
        assert!(!again.contains("-I FORWARD"));
    }
}
