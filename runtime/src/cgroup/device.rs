//! Device access rules: from the specification's list to what either cgroup version can enforce.
//!
//! The specification (config-linux.md, "Allowed Device list") gives a list in which a later rule overrides an earlier one,
//! starting from "nothing is allowed". [`Rules`] is that list cleaned up: checked, split into character and block devices,
//! with the rules that every container gets at its end, and without what the rest overrides anyway.
//!
//! - v2 evaluates the list as it is, in an eBPF program ([`program`]), last rule first.
//! - v1 knows only "all but these" and "none but these", with exceptions that do not overlap ([`Exceptions`]). A list that
//!   cannot be said so is refused rather than enforced too loosely, as runc does.

pub(super) mod program;

use std::collections::BTreeMap;
use std::path::Path;

use super::{Error, Result, file};
use crate::spec::resources::{DeviceKind, DeviceRule};

/// Access bits, numbered as the kernel's `BPF_DEVCG_ACC_*`.
const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// A kind of device file, numbered as the kernel's `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Block device.
    Block = 1,
    /// Character device.
    Char = 2,
}

/// Which device files a rule is about; `None` stands for every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern {
    kind: Kind,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Pattern {
    /// Whether every device of `other` is one of its own.
    fn covers(self, other: Self) -> bool {
        let number = |own: Option<u32>, other| own.is_none() || own == other;
        self.kind == other.kind
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }

    /// Whether any device is in both.
    fn meets(self, other: Self) -> bool {
        let number = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind
            && number(self.major, other.major)
            && number(self.minor, other.minor)
    }
}

/// One checked rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    pattern: Pattern,
    access: u8,
}

/// Devices and what may be done with them, for those who do not enforce it themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceEntry {
    /// Block rather than character devices.
    pub(super) block: bool,
    /// Major number; `None` for every one.
    pub(super) major: Option<u32>,
    /// Minor number; `None` for every one.
    pub(super) minor: Option<u32>,
    /// Letters out of `rwm`.
    pub(super) access: String,
}

/// The whole list: what holds for a device no rule speaks of, and the rules in the specification's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    default_allow: bool,
    rules: Vec<Rule>,
}

/// Rules that every container gets after its own, as in runc: mknod of anything (which grants no use of it), and the
/// devices a Linux program takes for granted.
const ALWAYS: [(Kind, Option<u32>, Option<u32>, u8); 11] = [
    (Kind::Char, None, None, MKNOD),
    (Kind::Block, None, None, MKNOD),
    (Kind::Char, Some(1), Some(3), ALL),    // null
    (Kind::Char, Some(1), Some(8), ALL),    // random
    (Kind::Char, Some(1), Some(7), ALL),    // full
    (Kind::Char, Some(5), Some(0), ALL),    // tty
    (Kind::Char, Some(1), Some(5), ALL),    // zero
    (Kind::Char, Some(1), Some(9), ALL),    // urandom
    (Kind::Char, Some(136), None, ALL), // pts/*, which also is what /dev/console is in a container
    (Kind::Char, Some(5), Some(2), ALL), // ptmx
    (Kind::Char, Some(10), Some(200), ALL), // net/tun, which engines came to rely on
];

impl Rules {
    /// Checks the container's rules and adds those that are always there.
    pub(super) fn new(given: &[DeviceRule]) -> Result<Self> {
        let mut rules = Self {
            default_allow: false,
            rules: Vec::with_capacity(given.len() + ALWAYS.len()),
        };
        for (index, rule) in given.iter().enumerate() {
            rules.add(index, rule)?;
        }
        for (kind, major, minor, access) in ALWAYS {
            rules.push(Rule {
                allow: true,
                pattern: Pattern { kind, major, minor },
                access,
            });
        }
        Ok(rules)
    }

    /// Whether nothing is denied, so that nothing needs to be enforced.
    pub(super) fn allows_everything(&self) -> bool {
        self.default_allow && self.rules.is_empty()
    }

    fn add(&mut self, index: usize, rule: &DeviceRule) -> Result<()> {
        let access = access(rule.access.as_deref()).ok_or_else(|| Error::DeviceAccess {
            index,
            access: rule.access.clone().unwrap_or_default(),
        })?;
        let major = number(rule.major).ok_or(Error::DeviceNumber { index })?;
        let minor = number(rule.minor).ok_or(Error::DeviceNumber { index })?;
        let kinds: &[Kind] = match rule.kind {
            None | Some(DeviceKind::All) => &[Kind::Char, Kind::Block],
            Some(DeviceKind::Char) => &[Kind::Char],
            Some(DeviceKind::Block) => &[Kind::Block],
        };
        if kinds.len() == 2 && access == ALL && major.is_none() && minor.is_none() {
            // A rule for everything overrides all before it.
            self.default_allow = rule.allow;
            self.rules.clear();
            return Ok(());
        }
        for kind in kinds {
            self.push(Rule {
                allow: rule.allow,
                pattern: Pattern {
                    kind: *kind,
                    major,
                    minor,
                },
                access,
            });
        }
        Ok(())
    }

    fn push(&mut self, rule: Rule) {
        // What the new rule says of a part of an older one's devices and accesses counts; a fully covered one goes.
        self.rules.retain_mut(|older| {
            if rule.pattern.covers(older.pattern) {
                older.access &= !rule.access;
            }
            older.access != 0
        });
        // Saying again what holds anyway needs no rule, unless an older one says otherwise about some of its devices.
        let contradicted = self.rules.iter().any(|older| {
            older.allow != rule.allow
                && older.pattern.meets(rule.pattern)
                && older.access & rule.access != 0
        });
        if rule.allow != self.default_allow || contradicted {
            self.rules.push(rule);
        }
    }

    /// The devices that are allowed while all others are denied; `None` for a list of another kind.
    pub(super) fn entries(&self) -> Option<Vec<DeviceEntry>> {
        let exceptions = self.exceptions().ok().filter(|list| !list.default_allow)?;
        let entry = |(pattern, access): (&Pattern, &u8)| DeviceEntry {
            block: pattern.kind == Kind::Block,
            major: pattern.major,
            minor: pattern.minor,
            access: letters(*access),
        };
        Some(exceptions.list.iter().map(entry).collect())
    }

    /// The list as v1 can enforce it.
    pub(super) fn exceptions(&self) -> Result<Exceptions> {
        let mut exceptions = BTreeMap::new();
        for rule in &self.rules {
            if rule.allow != self.default_allow {
                *exceptions.entry(rule.pattern).or_insert(0) |= rule.access;
                continue;
            }
            // Only rules that contradict an older one are kept, and they were not able to take it away whole.
            let overlapped = exceptions.iter().find(|(pattern, access)| {
                rule.pattern.meets(**pattern) && **access & rule.access != 0
            });
            if let Some((pattern, access)) = overlapped {
                return Err(Error::DeviceHole {
                    rule: text(rule.pattern, rule.access),
                    within: text(*pattern, *access),
                });
            }
        }
        Ok(Exceptions {
            default_allow: self.default_allow,
            list: exceptions,
        })
    }
}

fn access(letters: Option<&str>) -> Option<u8> {
    let letters = match letters {
        // runc refuses an empty string; the specification says the field is optional.
        None | Some("") => return Some(ALL),
        Some(letters) => letters,
    };
    // Other letters among them are passed over, as by runc: they neither grant nor deny anything.
    let bits = letters.bytes().fold(0, |bits, letter| match letter {
        b'r' => bits | READ,
        b'w' => bits | WRITE,
        b'm' => bits | MKNOD,
        _ => bits,
    });
    (bits != 0).then_some(bits)
}

/// -1 and absent are every number.
fn number(value: Option<i64>) -> Option<Option<u32>> {
    match value {
        None | Some(-1) => Some(None),
        Some(value) => u32::try_from(value).ok().map(Some),
    }
}

/// A pattern and its access as the v1 control files spell them.
fn text(pattern: Pattern, access: u8) -> String {
    let kind = if pattern.kind == Kind::Block {
        'b'
    } else {
        'c'
    };
    let number =
        |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |value| value.to_string());
    format!(
        "{kind} {}:{} {}",
        number(pattern.major),
        number(pattern.minor),
        letters(access)
    )
}

/// Access bits as letters.
fn letters(access: u8) -> String {
    let all = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
    let set = all.iter().filter(|(bit, _)| access & bit != 0);
    set.map(|(_, letter)| letter).collect()
}

/// What a v1 `devices` cgroup is told: everything or nothing, but for these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exceptions {
    default_allow: bool,
    list: BTreeMap<Pattern, u8>,
}

impl Exceptions {
    /// Sets them in a cgroup that was just made: no children, its parent's list as its own.
    pub(super) fn write_to_new(&self, directory: &Path) -> Result<()> {
        let (reset, exception) = self.files();
        file::write(&directory.join(reset), "a")?;
        self.write_list(directory, exception)
    }

    /// Sets them in a cgroup that was there before. It may have children, and then the kernel refuses (EINVAL) to reset
    /// the list, so it is left alone when it is right already and changed entry by entry when it is not.
    pub(super) fn write_to_existing(&self, directory: &Path) -> Result<()> {
        let found = Self::parse(&file::read(&directory.join("devices.list"))?);
        if found == *self && !self.default_allow {
            return Ok(());
        }
        if found.default_allow != self.default_allow || self.default_allow {
            return self.write_to_new(directory);
        }
        for (pattern, access) in &found.list {
            let surplus = access & !self.list.get(pattern).copied().unwrap_or(0);
            if surplus != 0 {
                file::write(&directory.join("devices.deny"), &text(*pattern, surplus))?;
            }
        }
        self.write_list(directory, "devices.allow")
    }

    fn files(&self) -> (&'static str, &'static str) {
        match self.default_allow {
            true => ("devices.allow", "devices.deny"),
            false => ("devices.deny", "devices.allow"),
        }
    }

    /// One open file and a write per entry: the kernel takes one rule per write.
    fn write_list(&self, directory: &Path, name: &str) -> Result<()> {
        let lines: Vec<_> = self
            .list
            .iter()
            .map(|(pattern, access)| text(*pattern, *access))
            .collect();
        file::write_each(&directory.join(name), &lines)
    }

    /// Reads `devices.list`, which shows the exceptions only of a "none but these" cgroup.
    fn parse(content: &str) -> Self {
        let mut found = Self {
            default_allow: false,
            list: BTreeMap::new(),
        };
        for line in content.lines() {
            match parse_line(line) {
                Some((pattern, access)) => *found.list.entry(pattern).or_insert(0) |= access,
                // "a *:* rwm"
                None => found.default_allow = true,
            }
        }
        found
    }
}

fn parse_line(line: &str) -> Option<(Pattern, u8)> {
    let mut fields = line.split(' ');
    let kind = match fields.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text: &str| {
        if text == "*" {
            Some(None)
        } else {
            text.parse().ok().map(Some)
        }
    };
    let pattern = Pattern {
        kind,
        major: number(major)?,
        minor: number(minor)?,
    };
    Some((pattern, access(fields.next())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Rules {
        Rules::new(&serde_json::from_str::<Vec<DeviceRule>>(json).unwrap()).unwrap()
    }

    fn listed(exceptions: &Exceptions) -> Vec<String> {
        exceptions
            .list
            .iter()
            .map(|(pattern, access)| text(*pattern, *access))
            .collect()
    }

    #[test]
    fn the_default_list() {
        for json in [
            "[]",
            r#"[{"allow":false,"access":"rwm"}]"#,
            r#"[{"allow":false,"type":"c"}]"#,
        ] {
            let exceptions = rules(json).exceptions().unwrap();
            assert!(!exceptions.default_allow);
            assert_eq!(
                listed(&exceptions),
                [
                    "b *:* m",
                    "c *:* m",
                    "c 1:3 rwm",
                    "c 1:5 rwm",
                    "c 1:7 rwm",
                    "c 1:8 rwm",
                    "c 1:9 rwm",
                    "c 5:0 rwm",
                    "c 5:2 rwm",
                    "c 10:200 rwm",
                    "c 136:* rwm",
                ],
                "{json}"
            );
        }
    }

    #[test]
    fn a_privileged_container() {
        let all = rules(r#"[{"allow":false,"access":"rwm"},{"allow":true,"access":"rwm"}]"#);
        assert!(all.allows_everything());
        assert!(all.exceptions().unwrap().list.is_empty());
    }

    #[test]
    fn the_last_rule_wins() {
        // Allowed and taken away again; partly taken away; denied below everything.
        let json = r#"[{"allow":true,"type":"b","major":8,"minor":0,"access":"rw"},
                       {"allow":false,"type":"b","major":8,"minor":0,"access":"w"},
                       {"allow":true,"type":"c","major":10,"minor":229,"access":"rwm"},
                       {"allow":false,"type":"c","major":10,"access":"rwm"}]"#;
        let exceptions = rules(json).exceptions().unwrap();
        let list = listed(&exceptions);
        assert!(list.contains(&"b 8:0 r".to_owned()), "{list:?}");
        assert!(
            !list.iter().any(|line| line.starts_with("c 10:229")),
            "{list:?}"
        );
    }

    #[test]
    fn all_but_some() {
        let json =
            r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","major":8,"access":"rw"}]"#;
        let exceptions = rules(json).exceptions().unwrap();
        assert!(exceptions.default_allow);
        assert_eq!(listed(&exceptions), ["b 8:* rw"]);
    }

    #[test]
    fn holes_are_refused_on_v1() {
        let json = r#"[{"allow":true,"type":"c","major":10,"access":"rw"},
                       {"allow":false,"type":"c","major":10,"minor":1,"access":"rw"}]"#;
        let error = rules(json).exceptions().unwrap_err();
        assert_eq!(
            error.to_string(),
            "device rule \"c 10:1 rw\" makes an exception within \"c 10:* rw\", which cgroup v1 cannot enforce"
        );
    }

    #[test]
    fn bad_rules() {
        for (json, expected) in [
            (
                r#"[{"allow":true,"access":"x"}]"#,
                r#"device rule 0: access "x" has none of the letters r, w and m"#,
            ),
            (
                r#"[{"allow":true},{"allow":true,"major":-5}]"#,
                "device rule 1: major or minor number out of range",
            ),
        ] {
            let given: Vec<DeviceRule> = serde_json::from_str(json).unwrap();
            assert_eq!(Rules::new(&given).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn devices_list_is_read_back() {
        let wanted = rules("[]").exceptions().unwrap();
        let content = listed(&wanted).join("\n");
        assert_eq!(Exceptions::parse(&content), wanted);
        assert!(Exceptions::parse("a *:* rwm\n").default_allow);
    }
}
