//! Rules of others that would drop our packets.
//!
//! Where iptables' chain FORWARD drops, or has rules that may (docker sets its policy to DROP, ufw fills it), our own
//! table can accept what it likes: a packet passes only if every table lets it. So there, and only there, a chain of
//! ours is called first that accepts what goes to or comes from our bridges. It opens nothing: what may not pass is
//! dropped in our own table. The same with INPUT, for what containers ask their network's resolver. (firewalld has a table of its own, where bridges belong into a zone; that is the
//! administrator's to say.)

use std::fmt::Write;
use std::fs;

use super::Rules;
use super::command::{self, Failure};
use super::nftables::Table;
use super::nftables::batch::{FAMILY_IPV4, FAMILY_IPV6};

/// The chains that accept.
#[derive(Debug)]
pub(super) struct Acceptance {
    hooks: [Hook; 2],
}

/// One of them, and the built-in chain that calls it.
#[derive(Debug)]
struct Hook {
    caller: &'static str,
    chain: String,
}

impl Acceptance {
    pub(super) fn new(suffix: Option<&str>) -> Acceptance {
        let hook = |caller, name: &str| Hook {
            caller,
            chain: suffix.map_or(name.to_owned(), |suffix| format!("{name}-{suffix}")),
        };
        Acceptance {
            hooks: [
                hook("FORWARD", "QENGINE-ACCEPT"),
                hook("INPUT", "QENGINE-INPUT"),
            ],
        }
    }

    /// Makes the chains be what `rules` need, if they are needed at all.
    pub(super) fn replace(&self, table: &Table, rules: &Rules) -> Result<(), Failure> {
        self.replace_in(&IPV4, table, rules)?;
        if rules.networks.iter().any(|one| one.subnet6.is_some()) {
            self.replace_in(&IPV6, table, rules)?;
        }
        Ok(())
    }

    fn replace_in(&self, family: &Family, table: &Table, rules: &Rules) -> Result<(), Failure> {
        let is_open = |hook: &Hook| {
            let chain = table.iptables_chain(family.number, hook.caller);
            chain.is_none_or(|chain| !chain.drops && chain.is_empty)
        };
        if !family.has_legacy_filter() && self.hooks.iter().all(is_open) {
            return Ok(());
        }
        let there = command::run(family.save, &[], "")?;
        let needed = self.hooks.iter().filter(|hook| hook.is_needed(&there));
        let text: String = needed.map(|hook| hook.text(rules, &there)).collect();
        family.restore(&text)
    }

    /// Removes the chains; fine when they are not there.
    pub(super) fn clear(&self, table: &Table) -> Result<(), Failure> {
        self.clear_in(&IPV4, table)?;
        self.clear_in(&IPV6, table)
    }

    fn clear_in(&self, family: &Family, table: &Table) -> Result<(), Failure> {
        let is_absent = |hook: &Hook| table.iptables_chain(family.number, &hook.chain).is_none();
        if !family.has_legacy_filter() && self.hooks.iter().all(is_absent) {
            return Ok(());
        }
        let there = command::run(family.save, &[], "")?;
        let hooks = self.hooks.iter();
        let text: String = hooks.map(|hook| hook.removal(&there)).collect();
        family.restore(&text)
    }
}

impl Hook {
    /// Whether the caller may drop.
    fn is_needed(&self, there: &str) -> bool {
        let (drops, rule) = (
            format!(":{} DROP ", self.caller),
            format!("-A {} ", self.caller),
        );
        there
            .lines()
            .any(|line| line.starts_with(&drops) || line.starts_with(&rule))
    }

    fn text(&self, rules: &Rules, there: &str) -> String {
        let Hook { caller, chain } = self;
        let mut text = format!("*filter\n:{chain} - [0:0]\n");
        if !self.is_called(there) {
            let _ = writeln!(text, "-I {caller} 1 -j {chain}");
        }
        for bridge in rules.networks.iter().map(|network| &network.bridge) {
            let _ = if *caller == "INPUT" {
                // Questions to the network's resolver: nothing else is led from a bridge to the host itself.
                writeln!(
                    text,
                    "-A {chain} -i {bridge} -m conntrack --ctstate DNAT -j ACCEPT"
                )
            } else {
                writeln!(
                    text,
                    "-A {chain} -i {bridge} -j ACCEPT\n-A {chain} -o {bridge} -j ACCEPT"
                )
            };
        }
        text.push_str("COMMIT\n");
        text
    }

    fn removal(&self, there: &str) -> String {
        let Hook { caller, chain } = self;
        if !there.contains(&format!(":{chain} ")) {
            return String::new();
        }
        let jump = if self.is_called(there) {
            format!("-D {caller} -j {chain}\n")
        } else {
            String::new()
        };
        format!("*filter\n{jump}-F {chain}\n-X {chain}\nCOMMIT\n")
    }

    fn is_called(&self, there: &str) -> bool {
        there.contains(&format!("-A {} -j {}\n", self.caller, self.chain))
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
        if text.is_empty() {
            return Ok(());
        }
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
        let [forward, input] = Acceptance::new(None).hooks;
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
            forward.text(&rules, ""),
            "*filter\n:QENGINE-ACCEPT - [0:0]\n-I FORWARD 1 -j QENGINE-ACCEPT\n\
             -A QENGINE-ACCEPT -i qbr0 -j ACCEPT\n-A QENGINE-ACCEPT -o qbr0 -j ACCEPT\nCOMMIT\n"
        );
        let again = forward.text(&rules, "*filter\n-A FORWARD -j QENGINE-ACCEPT\n");
        assert!(!again.contains("-I FORWARD"));
        assert!(!input.is_needed("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n"));
        assert!(input.is_needed("*filter\n:INPUT DROP [0:0]\n"));
        let input = input.text(&rules, "");
        assert!(input.contains("-I INPUT 1 -j QENGINE-INPUT\n"), "{input}");
        assert!(input.contains("--ctstate DNAT"), "{input}");
    }
}
