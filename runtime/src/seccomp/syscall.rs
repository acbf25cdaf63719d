//! Looking system calls up by name.
//!
//! The rows of [`super::table`] are packed at compile time into one string, one array of numbers and a hash table, which
//! need no relocation when the program starts and find a name in some ten nanoseconds.

use super::arch::Arch;
use super::table::{NO, ROWS};

/// Private calls of ARM (linux/asm/unistd.h, `__ARM_NR_BASE`), and where the table has them.
const ARM_PRIVATE: u32 = 0x000f_0000;
const ARM_PRIVATE_SLOT: u16 = 1008;

/// Numbers of the table are below this.
pub(super) const SLOTS: usize = 1024;

/// Twice the rows and a power of two, so that a look-up ends soon.
const BUCKETS: usize = 1024;

const COUNT: usize = ROWS.len();
const LENGTH: usize = total_length();

static NAMES: [u8; LENGTH] = join();
static ENDS: [u16; COUNT] = ends();
static COLUMNS: [[u16; 9]; COUNT] = columns();
static INDEX: [u16; BUCKETS] = index();

/// A system call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Syscall(&'static [u16; 9]);

/// A part of a call that bundles several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Of `socketcall`, with the first argument.
    Socket(u64),
    /// Of `ipc`, with the first argument.
    Ipc(u64),
}

impl Syscall {
    /// Finds a name that some architecture has.
    pub(super) fn named(name: &str) -> Option<Self> {
        let mut bucket = hash(name.as_bytes());
        loop {
            let row = usize::from(INDEX[bucket]).checked_sub(1)?;
            let start = if row == 0 {
                0
            } else {
                usize::from(ENDS[row - 1])
            };
            if &NAMES[start..usize::from(ENDS[row])] == name.as_bytes() {
                return Some(Self(&COLUMNS[row]));
            }
            bucket = (bucket + 1) % BUCKETS;
        }
    }

    /// Its slot in an architecture's table of decisions.
    pub(super) fn slot(self, arch: Arch) -> Option<u16> {
        Some(self.0[arch as usize]).filter(|slot| *slot != NO)
    }

    /// The bundle it also is a part of, on architectures with such.
    pub(super) fn part(self) -> Option<Part> {
        match self.0[8] {
            0 => None,
            part @ 1..=32 => Some(Part::Socket(part.into())),
            part => Some(Part::Ipc(u64::from(part) - 32)),
        }
    }
}

/// The number that the kernel shows for a slot.
pub(super) fn number(arch: Arch, slot: u16) -> u32 {
    match arch {
        Arch::X32 => super::arch::X32_BIT | u32::from(slot),
        Arch::Arm if is_private(arch, slot) => ARM_PRIVATE + u32::from(slot - ARM_PRIVATE_SLOT),
        _ => slot.into(),
    }
}

/// Whether a slot is one of the calls that do not count as system calls of a kernel version.
pub(super) fn is_private(arch: Arch, slot: u16) -> bool {
    arch == Arch::Arm && slot >= ARM_PRIVATE_SLOT
}

/// FNV-1a, folded to a bucket.
const fn hash(name: &[u8]) -> usize {
    let mut hash = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        hash = (hash ^ name[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 16)) as usize % BUCKETS
}

const fn total_length() -> usize {
    let (mut length, mut row) = (0, 0);
    while row < COUNT {
        length += ROWS[row].0.len();
        row += 1;
    }
    length
}

const fn join() -> [u8; LENGTH] {
    let mut out = [0; LENGTH];
    let (mut at, mut row) = (0, 0);
    while row < COUNT {
        let name = ROWS[row].0.as_bytes();
        let mut letter = 0;
        while letter < name.len() {
            out[at] = name[letter];
            at += 1;
            letter += 1;
        }
        row += 1;
    }
    out
}

const fn ends() -> [u16; COUNT] {
    assert!(LENGTH <= u16::MAX as usize, "the names fit 16-bit offsets");
    let mut out = [0; COUNT];
    let (mut end, mut row) = (0, 0);
    while row < COUNT {
        end += ROWS[row].0.len();
        #[expect(
            clippy::cast_possible_truncation,
            reason = "asserted above, at compile time"
        )]
        {
            out[row] = end as u16;
        }
        row += 1;
    }
    out
}

const fn columns() -> [[u16; 9]; COUNT] {
    let mut out = [[0; 9]; COUNT];
    let mut row = 0;
    while row < COUNT {
        out[row] = ROWS[row].1;
        row += 1;
    }
    out
}

const fn index() -> [u16; BUCKETS] {
    let mut out = [0; BUCKETS];
    let mut row = 0;
    while row < COUNT {
        let mut bucket = hash(ROWS[row].0.as_bytes());
        while out[bucket] != 0 {
            bucket = (bucket + 1) % BUCKETS;
        }
        #[expect(clippy::cast_possible_truncation, reason = "fewer rows than buckets")]
        {
            out[bucket] = (row + 1) as u16;
        }
        row += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found() {
        for (name, columns) in ROWS {
            assert_eq!(
                Syscall::named(name).map(|found| found.0),
                Some(columns),
                "{name}"
            );
            for slot in &columns[..8] {
                assert!(*slot == NO || usize::from(*slot) < SLOTS, "{name}");
            }
        }
        assert!(ROWS.is_sorted_by_key(|(name, _)| name));
        for name in ["", "nosuch", "rea", "readd"] {
            assert!(Syscall::named(name).is_none(), "{name}");
        }
    }

    #[test]
    fn well_known_numbers() {
        for (name, arch, expected) in [
            ("read", Arch::X86_64, Some(libc::SYS_read)),
            ("openat2", Arch::X86_64, Some(libc::SYS_openat2)),
            ("read", Arch::X86, Some(3)),
            ("rt_sigaction", Arch::X32, Some(0x4000_0000 + 512)),
            ("open", Arch::Aarch64, None),
            ("openat", Arch::Aarch64, Some(56)),
            ("set_tls", Arch::Arm, Some(0xf0005)),
            ("mmap2", Arch::Arm, Some(192)),
            ("riscv_flush_icache", Arch::Riscv64, Some(259)),
            ("clone", Arch::S390x, Some(120)),
            ("mseal", Arch::Ppc64Le, Some(462)),
        ] {
            let slot = Syscall::named(name).unwrap().slot(arch);
            assert_eq!(
                slot.map(|slot| i64::from(number(arch, slot))),
                expected,
                "{name} {arch:?}"
            );
        }
    }

    #[test]
    fn parts() {
        let part = |name| Syscall::named(name).unwrap().part();
        assert_eq!(part("socket"), Some(Part::Socket(1)));
        assert_eq!(part("sendmmsg"), Some(Part::Socket(20)));
        assert_eq!(part("shmctl"), Some(Part::Ipc(24)));
        assert_eq!(part("read"), None);
    }
}
