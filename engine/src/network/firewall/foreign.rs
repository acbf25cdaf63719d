//! Rules of others that would drop our packets.
//!
//! Where iptables' chain FORWARD drops, or has rules that may (docker sets its policy to DROP, ufw fills it), our own
//! table can accept what it likes: a packet passes only if every table lets it. So there, and only there, a chain of
//! ours is called first that accepts what goes to or comes from our bridges. It opens nothing: what may not pass is
//! dropped in our own table. (firewalld has a table of its own, where bridges belong into a zone; that is the
//! administrator's to say.)

use std::fmt::Write;
use std::fs;

use super::command::Failure;
use super::nftables::Table;
use super::{Rules, iptables};

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
        let forward = table.iptables_chain("FORWARD");
        if !has_legacy_filter() && forward.is_none_or(|chain| !chain.drops && chain.is_empty) {
            return Ok(());
        }
        let there = iptables::save()?;
        let needed = there
            .lines()
            .any(|line| line.starts_with(":FORWARD DROP ") || line.starts_with("-A FORWARD "));
        if needed {
            iptables::restore(&self.text(rules, &there))
        } else {
            Ok(())
        }
    }

    /// Removes the chain; fine when it is not there.
    pub(super) fn clear(&self, table: &Table) -> Result<(), Failure> {
        if !has_legacy_filter() && table.iptables_chain(&self.chain).is_none() {
            return Ok(());
        }
        let there = iptables::save()?;
        let chain = &self.chain;
        if !there.contains(&format!(":{chain} ")) {
            return Ok(());
        }
        let jump = if self.is_called(&there) {
            format!("-D {}\n", self.jump())
        } else {
            String::new()
        };
        iptables::restore(&format!("*filter\n{jump}-F {chain}\n-X {chain}\nCOMMIT\n"))
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

/// Whether the older iptables, which nftables knows nothing of, has a table `filter`.
fn has_legacy_filter() -> bool {
    fs::read_to_string("/proc/net/ip_tables_names")
        .is_ok_and(|names| names.lines().any(|name| name == "filter"))
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
