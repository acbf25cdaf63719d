//! `bpf(2)`: loading device programs and hanging them on cgroups (bpf(2), linux/bpf.h).
//!
//! Kernels before 5.11 charge programs to RLIMIT_MEMLOCK and answer EPERM when it is used up, so that is when, and only
//! when, the limit is raised as far as it goes.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

/// One eBPF instruction, laid out as `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Operation code.
    pub(crate) operation: u8,
    /// Destination register in the low half, source register in the high half (little endian layout).
    pub(crate) registers: u8,
    /// Jump or memory offset.
    pub(crate) offset: i16,
    /// Immediate value.
    pub(crate) value: i32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
/// `BPF_PROG_TYPE_CGROUP_DEVICE`.
const CGROUP_DEVICE_PROGRAM: u32 = 15;
/// `BPF_CGROUP_DEVICE`.
const CGROUP_DEVICE_ATTACH: u32 = 6;
/// `BPF_F_ALLOW_MULTI`: programs of the ancestors stay in force.
const ALLOW_MULTI: u32 = 1 << 1;
/// `BPF_F_REPLACE`, since Linux 5.6.
const REPLACE: u32 = 1 << 2;
/// The kernel holds at most so many programs per cgroup and kind.
const MOST_PROGRAMS: u8 = 64;
/// The verifier may be interrupted by a signal (EAGAIN) again and again.
const LOAD_ATTEMPTS: usize = 5;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
    replaced: u32,
    padding: u32,
}

/// With all fields up to `revision`, because kernels 6.17 to 7.1 write that one whatever the size they are told.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// An argument block of `bpf(2)`.
///
/// # Safety
/// The type is `repr(C)`, a prefix of `union bpf_attr`, and without padding of its own.
unsafe trait Attributes {}
// SAFETY: eight fields without gaps, as the union's BPF_PROG_LOAD member begins.
unsafe impl Attributes for Load {}
// SAFETY: the padding is a field; the union's BPF_PROG_ATTACH member begins so.
unsafe impl Attributes for Attach {}
// SAFETY: the padding is a field; this is the union's whole BPF_PROG_QUERY member.
unsafe impl Attributes for Query {}
// SAFETY: the union's BPF_*_GET_FD_BY_ID member begins with the id.
unsafe impl Attributes for u32 {}

fn bpf<T: Attributes>(command: libc::c_int, attributes: &mut T) -> Result<libc::c_long, Errno> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a live block of `size` bytes in the layout the command expects (see `Attributes`), and
    // the callers keep the memory that it points to alive and large enough across the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 {
        Err(last_error())
    } else {
        Ok(result)
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn descriptor(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let raw = i32::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: the command succeeded and returns a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are not negative.
    fd.as_raw_fd().cast_unsigned()
}

/// Loads a device program.
pub(crate) fn load_device_program(code: &[Instruction]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut attributes = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(code.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: code.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        ..Load::default()
    };
    match load(&mut attributes) {
        Err(Errno::PERM) => {
            let before = rustix::process::getrlimit(Resource::Memlock);
            raise_memlock(&before);
            let result = load(&mut attributes);
            // The container is to start with the limits the caller had; going back down always works.
            let _ = rustix::process::setrlimit(Resource::Memlock, before);
            result
        }
        result => result,
    }
}

fn load(attributes: &mut Load) -> Result<OwnedFd, Errno> {
    let mut attempts = 0;
    loop {
        match bpf(PROG_LOAD, attributes) {
            Err(Errno::AGAIN) if attempts < LOAD_ATTEMPTS => attempts += 1,
            result => return descriptor(result?),
        }
    }
}

/// As far as it goes: without CAP_SYS_RESOURCE that is the hard limit.
fn raise_memlock(limits: &Rlimit) {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let hard = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    if rustix::process::setrlimit(Resource::Memlock, unlimited).is_err() {
        let _ = rustix::process::setrlimit(Resource::Memlock, hard);
    }
}

/// Hangs a program on a cgroup that has none.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    attach(cgroup, program, None)
}

/// Hangs a program on a cgroup in place of those that are there.
pub(crate) fn replace_device_programs(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let old = device_programs(cgroup)?;
    if let [only] = old.as_slice() {
        match attach(cgroup, program, Some(only.as_fd())) {
            // Before Linux 5.6.
            Err(Errno::INVAL) => {}
            result => return result,
        }
    }
    // The new one first: between the two steps both are in force, and never none.
    attach(cgroup, program, None)?;
    old.iter().try_for_each(|old| detach(cgroup, old.as_fd()))
}

/// Takes all device programs off a cgroup.
pub(crate) fn detach_device_programs(cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let old = device_programs(cgroup)?;
    old.iter().try_for_each(|old| detach(cgroup, old.as_fd()))
}

fn attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let mut attributes = Attach {
        target: number(cgroup),
        program: number(program),
        kind: CGROUP_DEVICE_ATTACH,
        flags: if replaced.is_some() {
            ALLOW_MULTI | REPLACE
        } else {
            ALLOW_MULTI
        },
        replaced: replaced.map_or(0, number),
        padding: 0,
    };
    bpf(PROG_ATTACH, &mut attributes).map(drop)
}

fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attributes = Attach {
        target: number(cgroup),
        program: number(program),
        kind: CGROUP_DEVICE_ATTACH,
        ..Attach::default()
    };
    bpf(PROG_DETACH, &mut attributes).map(drop)
}

/// The programs on a cgroup, without those that may not be touched (another owner's, under a security module): they can
/// only restrict further.
fn device_programs(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Errno> {
    let mut ids = [0u32; MOST_PROGRAMS as usize];
    let mut attributes = Query {
        target: number(cgroup),
        kind: CGROUP_DEVICE_ATTACH,
        programs: ids.as_mut_ptr().expose_provenance() as u64,
        count: MOST_PROGRAMS.into(),
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut attributes)?;
    let count = usize::try_from(attributes.count)
        .unwrap_or(ids.len())
        .min(ids.len());
    let mut programs = Vec::new();
    for id in &mut ids[..count] {
        match bpf(PROG_GET_FD_BY_ID, id) {
            Ok(fd) => programs.push(descriptor(fd)?),
            Err(Errno::PERM | Errno::ACCESS | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(programs)
}
