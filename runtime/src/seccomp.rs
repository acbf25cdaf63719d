//! System call filters: a compiler from the specification's profile to the kernel's classic BPF.
//!
//! [`compile`] runs in the parent, before the container's process exists; [`crate::sys::seccomp::install`] hands the result
//! to the kernel, in the container, as one of its last steps. Governing texts: config-linux.md, "Seccomp"; seccomp(2);
//! Documentation/userspace-api/seccomp_filter.rst.
//!
//! Where each rule of the treatment comes from:
//!
//! | what | source |
//! | --- | --- |
//! | the default action for calls of listed architectures without a rule | config-linux.md |
//! | the native architecture is always covered, listed or not | libseccomp |
//! | calls of any other architecture, x32 included, kill the thread | libseccomp (`SCMP_FLTATR_ACT_BADARCH`) |
//! | number -1, which a tracer sets to skip a call, gets the default action when x32 is not listed | libseccomp |
//! | names no architecture knows are passed over; names one lacks are passed over there | runc, config-linux.md |
//! | a rule whose action is the default one is passed over | runc (`matchCall`) |
//! | a rule without conditions overrides all conditional rules for its calls, the first one counting | libseccomp |
//! | conditional rules are alternatives; where several hold, the first in the profile counts | ours: libseccomp leaves it open |
//! | conditions of one rule must all hold, unless two are on the same argument: then each is a rule of its own | runc (`matchCall`) |
//! | on 32-bit architectures the low halves are compared, of arguments and of values | libseccomp |
//! | bits of a masked comparison's value outside of the mask are ignored | libseccomp |
//! | socket and System V IPC calls also count as parts of `socketcall` and `ipc` where those exist | libseccomp |
//! | there, a condition on the first argument cannot be seen and is dropped | libseccomp |
//! | calls with numbers above every one named in the profile get ENOSYS, unless the default lets calls through | runc (`patchbpf`) |
//! | call 0 of s390x, which stands for unknown numbers, gets ENOSYS then too | runc (`patchbpf`) |
//! | no flags given at all means `SPEC_ALLOW`; `TSYNC` is accepted and not needed, as there is one thread | runc |
//! | `NOTIFY` is refused as default and for `write`, with which the listener is handed over | runc |
//! | an error number with an action that has none is an error | config-linux.md |
//!
//! Architectures whose calls the running kernel cannot produce (ARM on a PC) are accepted in a profile and left out of the
//! program. Numbers come from a table of our own ([`syscall`]).

mod arch;
mod assemble;
#[cfg(test)]
mod differential;
#[cfg(test)]
mod interpret;
mod profile;
mod syscall;
mod table;
#[cfg(test)]
mod tests;

use crate::spec::seccomp::{Action, Seccomp};
use arch::Arch;
pub(crate) use arch::KNOWN as ARCHITECTURES;

/// A compiled filter.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The instructions, in the kernel's own layout.
    pub(crate) instructions: Vec<libc::sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` bits for `seccomp(2)`.
    pub(crate) flags: u32,
    /// Whether a rule uses `SCMP_ACT_NOTIFY`, so that installing returns a listener.
    pub(crate) listener: bool,
    /// Whether `sendmsg` is among the calls that ask: then the listener cannot be sent, and is fetched by its number.
    pub(crate) sends_ask: bool,
}

/// Why a profile cannot be compiled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("seccomp flag {0} is not known to qrun")]
    Flag(String),
    #[error("string {0} is not a valid arch for seccomp")]
    Arch(String),
    #[error("no system call table for this machine's architecture")]
    NoTable,
    #[error("empty string is not a valid syscall")]
    EmptyName,
    #[error("seccomp rule for {name}: argument index {index} is not between 0 and 5")]
    ArgIndex { name: String, index: u32 },
    #[error("seccomp action {0:?} does not take an error number")]
    ErrnoUnused(Action),
    #[error("seccomp error number {0} is not between 0 and 65535")]
    Errno(u32),
    #[error("string  is not a valid action for seccomp")]
    NoDefault,
    #[error(
        "seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY"
    )]
    FlagWithoutListener,
    #[error("SCMP_ACT_NOTIFY cannot be used as default action")]
    NotifyDefault,
    #[error("SCMP_ACT_NOTIFY cannot be used for the write syscall")]
    NotifyWrite,
    #[error("seccomp profile makes {0} instructions, of which the kernel takes 4096 at most")]
    TooLong(usize),
}

/// Flags of `seccomp(2)` (linux/seccomp.h).
const FLAG_LOG: u32 = 1 << 1;
const FLAG_SPEC_ALLOW: u32 = 1 << 2;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// `BPF_MAXINSNS`.
const MOST_INSTRUCTIONS: usize = 4096;

/// Compiles a profile for the machine it runs on.
pub(crate) fn compile(profile: &Seccomp) -> Result<Program, Error> {
    compile_for(profile, Arch::native().ok_or(Error::NoTable)?)
}

/// Compiles a profile for a kernel of an architecture.
fn compile_for(profile: &Seccomp, native: Arch) -> Result<Program, Error> {
    let listener = profile
        .syscalls
        .iter()
        .any(|rule| rule.action == Action::Notify);
    let mut flags = flags(profile.flags.as_deref())?;
    if listener {
        flags |= FLAG_NEW_LISTENER;
    } else if flags & FLAG_WAIT_KILLABLE_RECV != 0 {
        return Err(Error::FlagWithoutListener);
    }
    let sends_ask = profile.syscalls.iter().any(|rule| {
        rule.action == Action::Notify && rule.names.iter().any(|name| name == "sendmsg")
    });
    let tables = profile::decide(profile, native)?;
    let instructions = assemble::program(&tables);
    if instructions.len() > MOST_INSTRUCTIONS {
        return Err(Error::TooLong(instructions.len()));
    }
    Ok(Program {
        instructions,
        flags,
        listener,
        sends_ask,
    })
}

/// Flags that a profile may name, in runc's order, with their bits. `TSYNC` has none: there is one thread.
pub(crate) const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 0),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", FLAG_SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_LOG", FLAG_LOG),
    (
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        FLAG_WAIT_KILLABLE_RECV,
    ),
];

/// The names of [`FLAGS`] that the running kernel takes.
pub(crate) fn supported_flags() -> Vec<&'static str> {
    let supported = |bits: u32| match bits {
        0 => true,
        // The kernel takes it with a listener only.
        FLAG_WAIT_KILLABLE_RECV => crate::sys::seccomp::knows_flags(bits | FLAG_NEW_LISTENER),
        bits => crate::sys::seccomp::knows_flags(bits),
    };
    let known = FLAGS.iter().filter(|(_, bits)| supported(*bits));
    known.map(|(name, _)| *name).collect()
}

fn flags(names: Option<&[String]>) -> Result<u32, Error> {
    let Some(names) = names else {
        return Ok(FLAG_SPEC_ALLOW);
    };
    names.iter().try_fold(0, |flags, name| {
        let known = FLAGS.iter().find(|(known, _)| known == name);
        let (_, bits) = known.ok_or_else(|| Error::Flag(name.clone()))?;
        Ok(flags | bits)
    })
}
