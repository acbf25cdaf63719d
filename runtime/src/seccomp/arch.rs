//! Architectures: their names in profiles, their tokens in `seccomp_data`, and which of them one kernel can produce.

use super::Error;

/// An architecture with a system call table. The order is that of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Riscv64,
    S390x,
    Ppc64Le,
}

/// Names that a profile may use, with and without a table here, in order.
pub(crate) const KNOWN: [&str; 23] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// Bit that marks the number of an x32 call.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// The machine's own.
    pub(super) fn native() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "x86" => Some(Self::X86),
            "aarch64" => Some(Self::Aarch64),
            "arm" => Some(Self::Arm),
            "riscv64" => Some(Self::Riscv64),
            "s390x" => Some(Self::S390x),
            "powerpc64" if cfg!(target_endian = "little") => Some(Self::Ppc64Le),
            _ => None,
        }
    }

    /// Reads a name of a profile; `None` for one that is valid and has no table here.
    pub(super) fn parse(name: &str) -> Result<Option<Self>, Error> {
        let bare = name
            .strip_prefix("SCMP_ARCH_")
            .ok_or_else(|| Error::Arch(name.to_owned()))?;
        Ok(Some(match bare {
            "X86_64" => Self::X86_64,
            "X86" => Self::X86,
            "X32" => Self::X32,
            "AARCH64" => Self::Aarch64,
            "ARM" => Self::Arm,
            "RISCV64" => Self::Riscv64,
            "S390X" => Self::S390x,
            "PPC64LE" => Self::Ppc64Le,
            _ if KNOWN.contains(&name) => return Ok(None),
            _ => return Err(Error::Arch(name.to_owned())),
        }))
    }

    /// Whether a kernel of this architecture also runs programs of `other`.
    pub(super) fn runs(self, other: Self) -> bool {
        match self {
            Self::X86_64 => matches!(other, Self::X86_64 | Self::X86 | Self::X32),
            Self::Aarch64 => matches!(other, Self::Aarch64 | Self::Arm),
            _ => self == other,
        }
    }

    /// Its `AUDIT_ARCH_*` (linux/audit.h): ELF machine, 0x8000_0000 for 64 bits, 0x4000_0000 for little endian. x32 has
    /// that of x86_64.
    pub(super) fn token(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
            Self::S390x => 0x8000_0016,
            Self::Ppc64Le => 0xc000_0015,
        }
    }

    /// Whether arguments are compared in full; else by their low halves.
    pub(super) fn is_wide(self) -> bool {
        !matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Whether the low half of an argument comes last.
    pub(super) fn is_big_endian(self) -> bool {
        self == Self::S390x
    }

    /// Its numbers of `socketcall` and `ipc`, where it has them.
    pub(super) fn multiplexers(self) -> Option<(u16, u16)> {
        matches!(self, Self::X86 | Self::S390x | Self::Ppc64Le).then_some((102, 117))
    }
}
