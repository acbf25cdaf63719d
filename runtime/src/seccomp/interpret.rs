//! Runs filters as the kernel does, for tests.

use libc::sock_filter;

/// A system call as a filter sees it, in the layout of `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) number: u32,
    pub(super) token: u32,
    pub(super) arguments: [u64; 6],
    pub(super) big_endian: bool,
}

impl Call {
    pub(super) fn word(&self, offset: u32) -> u32 {
        let halves = |value: u64| {
            [
                u32::try_from(value & 0xffff_ffff).unwrap(),
                u32::try_from(value >> 32).unwrap(),
            ]
        };
        match offset {
            0 => self.number,
            4 => self.token,
            16..64 if offset.is_multiple_of(4) => {
                let [low, high] =
                    halves(self.arguments[usize::try_from((offset - 16) / 8).unwrap()]);
                if offset.is_multiple_of(8) != self.big_endian {
                    low
                } else {
                    high
                }
            }
            _ => panic!("load from {offset}"),
        }
    }
}

/// The filter's return value and the number of instructions it took.
pub(super) fn run(program: &[sock_filter], call: &Call) -> (u32, usize) {
    run_watched(program, call, |_, _| {})
}

/// The same. `compared` is told of each comparison: what was loaded last, by its place in the system call, and with what it
/// is compared.
pub(super) fn run_watched(
    program: &[sock_filter],
    call: &Call,
    mut compared: impl FnMut(Option<u32>, u32),
) -> (u32, usize) {
    let (mut accumulator, mut loaded, mut at, mut steps) = (0, None, 0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        steps += 1;
        let taken = match code {
            0x20 => {
                (accumulator, loaded) = (call.word(k), Some(k));
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                at += usize::try_from(k).unwrap();
                continue;
            }
            0x06 => return (k, steps),
            0x15 => accumulator == k,
            0x35 => accumulator >= k,
            0x25 => accumulator > k,
            _ => panic!("operation {code:#x}"),
        };
        compared(loaded, k);
        at += usize::from(if taken { jt } else { jf });
    }
}
