//! Capabilities: names to sets, and putting the sets in force.
//!
//! The numbers are those of `linux/capability.h`; names that are not in the table are passed over with a warning, as the
//! specification asks. Putting in force happens in two parts around the change of user: see [`Sets::apply_bounding`]
//! and [`Sets::apply`].

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::spec::process::Capabilities;
use crate::sys::process as sys;

/// Names in the order of their numbers, without the `CAP_` prefix.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability this program knows, by full name; for `features`.
pub(crate) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("CAP_{name}"))
}

/// The number of a capability.
fn number(name: &str) -> Option<u8> {
    let short = name.strip_prefix("CAP_")?;
    NAMES
        .iter()
        .position(|known| *known == short)
        .and_then(|index| u8::try_from(index).ok())
}

/// The five sets, one bit a capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sets {
    /// Upper limit of what can be gained by executing a program.
    pub(crate) bounding: u64,
    /// In force.
    pub(crate) effective: u64,
    /// Kept over exec by programs that have them inheritable too.
    pub(crate) inheritable: u64,
    /// May be put in force.
    pub(crate) permitted: u64,
    /// Kept over exec by every program.
    pub(crate) ambient: u64,
}

impl Sets {
    /// The sets of a spec, and the names that are unknown. No capabilities object means no capability.
    pub(crate) fn new(capabilities: Option<&Capabilities>) -> (Self, Vec<String>) {
        let mut unknown = Vec::new();
        let Some(capabilities) = capabilities else {
            return (Self::default(), unknown);
        };
        let mut set = |names: &[String]| {
            let mut bits = 0;
            for name in names {
                match number(name) {
                    Some(number) => bits |= 1 << number,
                    None if unknown.contains(name) => {}
                    None => unknown.push(name.clone()),
                }
            }
            bits
        };
        let sets = Self {
            bounding: set(&capabilities.bounding),
            effective: set(&capabilities.effective),
            inheritable: set(&capabilities.inheritable),
            permitted: set(&capabilities.permitted),
            ambient: set(&capabilities.ambient),
        };
        (sets, unknown)
    }

    /// Narrows the bounding set. Before the user changes, because it takes `CAP_SETPCAP`.
    pub(crate) fn apply_bounding(&self) -> Result<(), Errno> {
        for number in 0..64 {
            if self.bounding & (1 << number) != 0 {
                continue;
            }
            match sys::drop_from_bounding_set(number) {
                Ok(()) => {}
                // Beyond the last capability of this kernel.
                Err(Errno::INVAL) => break,
                // Without the right to drop it, what is not there needs no dropping.
                Err(Errno::PERM) if !sys::bounding_set_has(number)? => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Puts the other sets in force. After the user has changed, which empties them.
    ///
    /// Returns the capabilities that could not be made ambient, and why: those that are not both permitted and inheritable,
    /// or which a kernel or a sandbox around us forbids. No error, because the process then merely has fewer rights.
    pub(crate) fn apply(&self) -> Result<Vec<(String, Errno)>, Errno> {
        let known = known_to_kernel();
        sys::capset(
            self.effective & known,
            self.permitted & known,
            self.inheritable & known,
        )?;
        let ambient = self.ambient & known;
        let mut refused = Vec::new();
        // A kernel without ambient capabilities has none to clear.
        let _ = sys::clear_ambient();
        for (number, name) in (0..).zip(NAMES) {
            if ambient & (1 << number) != 0
                && let Err(errno) = sys::raise_ambient(number)
            {
                refused.push((format!("CAP_{name}"), errno));
            }
        }
        Ok(refused)
    }
}

/// The capabilities of this kernel: `capset(2)` refuses others.
fn known_to_kernel() -> u64 {
    // Newer kernels only ever add; start from the newest this program knows.
    let mut count = u8::try_from(NAMES.len()).unwrap_or(u8::MAX);
    while count > 0 && sys::bounding_set_has(count - 1).is_err() {
        count -= 1;
    }
    (1 << count) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        let capabilities = Capabilities {
            bounding: vec!["CAP_CHOWN".into(), "CAP_CHECKPOINT_RESTORE".into()],
            effective: vec!["CAP_FUTURE".into(), "CAP_KILL".into()],
            permitted: vec!["CAP_FUTURE".into(), "KILL".into()],
            ..Capabilities::default()
        };
        let (sets, unknown) = Sets::new(Some(&capabilities));
        assert_eq!(sets.bounding, 1 | 1 << 40);
        assert_eq!(sets.effective, 1 << 5);
        assert_eq!(sets.permitted, 0);
        assert_eq!(unknown, ["CAP_FUTURE", "KILL"]);
        assert_eq!(Sets::new(None).0, Sets::default());
    }

    #[test]
    fn this_kernel_knows_the_old_capabilities() {
        assert_eq!(known_to_kernel() & 0xffff_ffff, 0xffff_ffff);
    }
}
