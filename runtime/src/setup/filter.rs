//! The compiled system call filter as it is kept for `exec`.
//!
//! A container's filter is that of its creation, whatever becomes of the bundle later; and `exec`, which health checks run
//! every few seconds, is spared compiling the profile, which it passes over in the bundle's `config.json`.

use std::fs::File;
use std::io::{Read, Write};

use rustix::fs::{Mode, OFlags, openat};

use crate::failure::{CallFailed, During};
use crate::seccomp::Program;
use crate::state::{Directory, FILTER_FILE};

/// Bytes of an instruction.
const INSTRUCTION: usize = 8;

/// Writes the filter into a container's directory.
pub(crate) fn store(directory: &Directory, program: &Program) -> Result<(), CallFailed> {
    let path = directory.path().join(FILTER_FILE);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(
        directory.fd(),
        FILTER_FILE,
        flags,
        Mode::from_raw_mode(0o600),
    )
    .during("open", &path)?;
    File::from(file)
        .write_all(&encode(program))
        .during("write", &path)
}

/// Reads it back.
pub(super) fn load(directory: &Directory) -> Result<Program, CallFailed> {
    let path = directory.path().join(FILTER_FILE);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(directory.fd(), FILTER_FILE, flags, Mode::empty()).during("open", &path)?;
    let mut bytes = Vec::new();
    File::from(file)
        .read_to_end(&mut bytes)
        .during("read", &path)?;
    // Half a filter, left by a create that was killed, is none: better no process than one without it.
    decode(&bytes)
        .ok_or(rustix::io::Errno::BADMSG)
        .during("read", &path)
}

/// Flags, whether there is a listener, how many instructions, the instructions.
fn encode(program: &Program) -> Vec<u8> {
    let count = u32::try_from(program.instructions.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(12 + program.instructions.len() * INSTRUCTION);
    let listener = u32::from(program.listener) | u32::from(program.sends_ask) << 1;
    for number in [program.flags, listener, count] {
        bytes.extend_from_slice(&number.to_ne_bytes());
    }
    for instruction in &program.instructions {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

/// The reverse; `None` for anything that is not whole.
fn decode(bytes: &[u8]) -> Option<Program> {
    let (head, body) = bytes.split_first_chunk::<12>()?;
    let number = |index: usize| Some(u32::from_ne_bytes(*head[4 * index..].first_chunk()?));
    let (flags, listener, count) = (number(0)?, number(1)?, number(2)?);
    if body.is_empty() || body.len() != usize::try_from(count).ok()?.checked_mul(INSTRUCTION)? {
        return None;
    }
    let instructions = body.chunks_exact(INSTRUCTION).map(|bytes| {
        let [a, b, jt, jf, k @ ..] = *bytes.first_chunk::<INSTRUCTION>()?;
        Some(libc::sock_filter {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes(k),
        })
    });
    Some(Program {
        instructions: instructions.collect::<Option<_>>()?,
        flags,
        listener: listener & 1 != 0,
        sends_ask: listener & 2 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        let instruction = libc::sock_filter {
            code: 0x15,
            jt: 1,
            jf: 2,
            k: 0xdead_beef,
        };
        let program = Program {
            instructions: vec![instruction; 3],
            flags: 5,
            listener: true,
            sends_ask: false,
        };
        let bytes = encode(&program);
        let back = decode(&bytes).unwrap();
        assert_eq!(
            (back.flags, back.listener, back.instructions.len()),
            (5, true, 3)
        );
        assert_eq!(encode(&back), bytes);
        assert!(decode(&bytes[..bytes.len() - 1]).is_none());
        assert!(decode(&[]).is_none());
    }
}
