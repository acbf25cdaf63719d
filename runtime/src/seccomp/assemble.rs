//! From decisions to classic BPF.
//!
//! The program loads the architecture, then the system call number, then finds the number's range with a balanced tree of
//! comparisons, some eight of them for the usual profile, and returns or goes on to compare arguments. The part that does
//! not look at arguments uses only instructions that the kernel can run ahead for its table of calls that are always
//! allowed (`seccomp_cache_prepare`, since Linux 5.11), which then are not filtered at all.
//!
//! BPF jumps lead forward only. So the program is built from its end, where every target of a jump exists before the jump
//! does and its distance is known. Positions are counted from the end ([`Label`]).

use libc::sock_filter;

use super::arch::Arch;
use super::profile::{Choice, Condition, Decisions, KILL_THREAD, Test, Verdict};

// Operation codes (linux/bpf_common.h).
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A conditional jump reaches so far.
const REACH: usize = 255;

/// An instruction's place, counted from the end of the program.
type Label = usize;

/// Assembles the whole program.
pub(super) fn program(tables: &[Decisions]) -> Vec<sock_filter> {
    let mut out = Assembler {
        code: Vec::with_capacity(1024),
        returns: Vec::new(),
    };
    // What no table is for.
    let mut next = out.ret(KILL_THREAD);
    for table in tables.iter().rev() {
        let tree = out.tree(table, &table.ranges);
        let entry = out.before(tree, LOAD, NUMBER);
        next = out.branch(JUMP_EQUAL, table.token, entry, next);
    }
    out.before(next, LOAD, ARCHITECTURE);
    out.code.reverse();
    out.code
}

struct Assembler {
    /// Back to front.
    code: Vec<sock_filter>,
    /// Where each return value was last put.
    returns: Vec<(u32, Label)>,
}

impl Assembler {
    fn push(&mut self, code: u16, k: u32) -> Label {
        self.code.push(sock_filter {
            code,
            jt: 0,
            jf: 0,
            k,
        });
        self.code.len() - 1
    }

    /// An instruction that goes on at `target`.
    fn before(&mut self, target: Label, code: u16, k: u32) -> Label {
        if target + 1 != self.code.len() {
            // Fits: programs are far shorter.
            let distance = u32::try_from(self.code.len() - 1 - target).unwrap_or(u32::MAX);
            self.push(JUMP, distance);
        }
        self.push(code, k)
    }

    /// A place that returns a value: one that exists and is near, or a new one.
    fn ret(&mut self, value: u32) -> Label {
        // Some room is left for what comes between here and the jump.
        let near = self.code.len().saturating_sub(REACH - 16);
        let known = self.returns.iter().position(|(known, _)| *known == value);
        if let Some(at) = known
            && self.returns[at].1 >= near
        {
            return self.returns[at].1;
        }
        let label = self.push(RETURN, value);
        match known {
            Some(at) => self.returns[at].1 = label,
            None => self.returns.push((value, label)),
        }
        label
    }

    /// A conditional jump.
    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        // Bringing the second one near moves the first one away by an instruction.
        let no = self.near(no, 1);
        let yes = self.near(yes, 0);
        let here = self.code.len();
        // Within reach, as just seen to.
        let distance = |target: Label| u8::try_from(here - 1 - target).unwrap_or(u8::MAX);
        self.code.push(sock_filter {
            code,
            jt: distance(yes),
            jf: distance(no),
            k,
        });
        here
    }

    /// A place within reach that leads to `target`, with room for `more` instructions.
    fn near(&mut self, target: Label, more: usize) -> Label {
        let here = self.code.len();
        if here - 1 - target + more <= REACH {
            return target;
        }
        let found = self.code[target];
        if found.code == RETURN {
            return self.push(RETURN, found.k);
        }
        // Fits: programs are far shorter.
        let distance = u32::try_from(here - 1 - target).unwrap_or(u32::MAX);
        self.push(JUMP, distance)
    }

    /// The search for a number's range; starts with the number loaded.
    fn tree(&mut self, table: &Decisions, ranges: &[(u32, Verdict)]) -> Label {
        match ranges {
            [] => self.ret(KILL_THREAD),
            [(_, verdict)] => self.verdict(table, *verdict),
            // One number among others that are treated alike.
            [(_, around), (number, verdict), (next, after)]
                if around == after && *next == number + 1 =>
            {
                let no = self.verdict(table, *around);
                let yes = self.verdict(table, *verdict);
                self.branch(JUMP_EQUAL, *number, yes, no)
            }
            _ => {
                let (lower, upper) = ranges.split_at(ranges.len() / 2);
                let yes = self.tree(table, upper);
                let no = self.tree(table, lower);
                self.branch(JUMP_GREATER_OR_EQUAL, upper[0].0, yes, no)
            }
        }
    }

    fn verdict(&mut self, table: &Decisions, verdict: Verdict) -> Label {
        match verdict {
            Verdict::Return(value) => self.ret(value),
            Verdict::Choose(choice) => self.choice(&table.choices[usize::from(choice)]),
        }
    }

    fn choice(&mut self, choice: &Choice) -> Label {
        let mut next = self.ret(choice.otherwise);
        for (conditions, value) in choice.alternatives.iter().rev() {
            let mut holds = self.ret(*value);
            for condition in conditions.iter().rev() {
                holds = self.condition(choice.arch, condition, holds, next);
            }
            next = holds;
        }
        next
    }

    /// A comparison of an argument, half by half: BPF registers have 32 bits.
    fn condition(&mut self, arch: Arch, condition: &Condition, yes: Label, no: Label) -> Label {
        if yes == no {
            return yes;
        }
        let (yes, no) = if condition.negated {
            (no, yes)
        } else {
            (yes, no)
        };
        let (high_mask, low_mask) = halves(condition.mask);
        let (high, low) = halves(condition.value);
        let base = ARGUMENTS + 8 * u32::from(condition.argument);
        let (high_at, low_at) = if arch.is_big_endian() {
            (base, base + 4)
        } else {
            (base + 4, base)
        };
        let code = match condition.test {
            Test::Equal => JUMP_EQUAL,
            Test::GreaterOrEqual => JUMP_GREATER_OR_EQUAL,
            Test::Greater => JUMP_GREATER,
        };
        let low_half = if low_mask == 0 {
            yes
        } else {
            let compare = self.branch(code, low, yes, no);
            self.load(compare, low_at, low_mask)
        };
        if !arch.is_wide() || high_mask == 0 {
            return low_half;
        }
        let mut compare = self.branch(JUMP_EQUAL, high, low_half, no);
        if condition.test != Test::Equal {
            compare = self.branch(JUMP_GREATER, high, yes, compare);
        }
        self.load(compare, high_at, high_mask)
    }

    /// Loads a half of an argument and goes on at `target`.
    fn load(&mut self, target: Label, offset: u32, mask: u32) -> Label {
        let target = if mask == u32::MAX {
            target
        } else {
            self.before(target, AND, mask)
        };
        self.before(target, LOAD, offset)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "each half has 32 bits")]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}
