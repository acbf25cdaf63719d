//! The eBPF program that enforces device rules on cgroup v2.
//!
//! The kernel runs a `BPF_PROG_TYPE_CGROUP_DEVICE` program (since Linux 4.15) on each opening or making of a device file,
//! with kind, access and numbers in `struct bpf_cgroup_dev_ctx`; 1 allows, 0 denies. Rules are compiled last one first, so
//! that the first match decides. A request for several accesses at once is allowed when each of them is: an allowing rule
//! strikes out the accesses it grants and the request passes when none is left, while a denying rule ends it.

use super::{ALL, Rule, Rules};
use crate::sys::bpf::Instruction;

// Registers: the context comes in r1, the verdict leaves in r0.
const R0: u8 = 0;
const R1: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

// Operation codes (linux/bpf.h, linux/bpf_common.h).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_ANY_BIT: u8 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// Where a jump goes whose distance is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    NextRule,
    Allow,
    Deny,
}

#[derive(Debug, Default)]
struct Assembler {
    code: Vec<Instruction>,
    open: Vec<(usize, Target)>,
}

/// Compiles the rules. `None` when the program would be too long for the kernel's 16-bit jumps.
pub(in crate::cgroup) fn compile(rules: &Rules) -> Option<Vec<Instruction>> {
    let mut out = Assembler::default();
    out.load(KIND, 0);
    out.push(MOVE_REGISTER, ACCESS, KIND, 0);
    out.push(AND, KIND, 0, 0xffff);
    out.push(SHIFT_RIGHT, ACCESS, 0, 16);
    out.load(MAJOR, 4);
    out.load(MINOR, 8);
    // A look at the file without any access, as access(2) with F_OK makes.
    out.jump(JUMP_EQUAL, ACCESS, 0, Target::Allow);
    for rule in rules.rules.iter().rev() {
        out.rule(rule)?;
    }
    out.finish(rules.default_allow)?;
    Some(out.code)
}

impl Assembler {
    fn push(&mut self, operation: u8, destination: u8, source: u8, value: i32) {
        let registers = source << 4 | destination;
        self.code.push(Instruction {
            operation,
            registers,
            offset: 0,
            value,
        });
    }

    /// Loads a word of the context.
    fn load(&mut self, register: u8, offset: i16) {
        let registers = R1 << 4 | register;
        self.code.push(Instruction {
            operation: LOAD_WORD,
            registers,
            offset,
            value: 0,
        });
    }

    fn jump(&mut self, operation: u8, register: u8, value: i32, target: Target) {
        self.open.push((self.code.len(), target));
        self.push(operation, register, 0, value);
    }

    fn rule(&mut self, rule: &Rule) -> Option<()> {
        self.jump(
            JUMP_NOT_EQUAL,
            KIND,
            rule.pattern.kind as i32,
            Target::NextRule,
        );
        for (register, number) in [(MAJOR, rule.pattern.major), (MINOR, rule.pattern.minor)] {
            if let Some(number) = number {
                // A number above i32::MAX is compared sign-extended and matches nothing, and no such device exists.
                self.jump(
                    JUMP_NOT_EQUAL,
                    register,
                    number.cast_signed(),
                    Target::NextRule,
                );
            }
        }
        match (rule.allow, rule.access) {
            (true, ALL) => self.jump(JUMP, 0, 0, Target::Allow),
            (false, ALL) => self.jump(JUMP, 0, 0, Target::Deny),
            (false, access) => self.jump(JUMP_ANY_BIT, ACCESS, i32::from(access), Target::Deny),
            (true, access) => {
                self.push(AND, ACCESS, 0, i32::from(!access & ALL));
                self.jump(JUMP_EQUAL, ACCESS, 0, Target::Allow);
            }
        }
        self.resolve(Target::NextRule)
    }

    /// Ends the program with the two verdicts, the default one first, so that it is what is fallen through to.
    fn finish(&mut self, default_allow: bool) -> Option<()> {
        let order = if default_allow {
            [Target::Allow, Target::Deny]
        } else {
            [Target::Deny, Target::Allow]
        };
        for (place, target) in order.into_iter().enumerate() {
            // The verifier refuses instructions that nothing reaches.
            if place == 0 || self.open.iter().any(|(_, wanted)| *wanted == target) {
                self.resolve(target)?;
                self.push(MOVE, R0, 0, i32::from(target == Target::Allow));
                self.push(EXIT, 0, 0, 0);
            }
        }
        Some(())
    }

    /// Lets the open jumps to `target` come here.
    fn resolve(&mut self, target: Target) -> Option<()> {
        let here = self.code.len();
        for (at, _) in self.open.extract_if(.., |(_, wanted)| *wanted == target) {
            self.code[at].offset = i16::try_from(here - at - 1).ok()?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MKNOD, READ, WRITE};
    use super::*;
    use crate::spec::resources::DeviceRule;

    /// Runs a program for one request, as the kernel would.
    fn run(code: &[Instruction], kind: u32, access: u8, major: u32, minor: u32) -> u64 {
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let Instruction {
                operation,
                registers: used,
                offset,
                value,
            } = code[at];
            let (destination, source) = (usize::from(used & 15), usize::from(used >> 4));
            let immediate = i64::from(value).cast_unsigned();
            let mut taken = false;
            match operation {
                LOAD_WORD => {
                    registers[destination] =
                        u64::from(context[usize::try_from(offset).unwrap() / 4])
                }
                MOVE => registers[destination] = u64::from(value.cast_unsigned()),
                MOVE_REGISTER => registers[destination] = registers[source],
                AND => registers[destination] &= u64::from(value.cast_unsigned()),
                SHIFT_RIGHT => registers[destination] >>= value,
                JUMP => taken = true,
                JUMP_EQUAL => taken = registers[destination] == immediate,
                JUMP_NOT_EQUAL => taken = registers[destination] != immediate,
                JUMP_ANY_BIT => taken = registers[destination] & immediate != 0,
                EXIT => return registers[0],
                other => panic!("operation {other:#x}"),
            }
            at += 1 + if taken {
                usize::try_from(offset).unwrap()
            } else {
                0
            };
        }
    }

    fn program(json: &str) -> Vec<Instruction> {
        let given: Vec<DeviceRule> = serde_json::from_str(json).unwrap();
        compile(&Rules::new(&given).unwrap()).unwrap()
    }

    #[test]
    fn verdicts() {
        let usual = r#"[{"allow":false,"access":"rwm"}]"#;
        let hole = r#"[{"allow":true,"type":"c","major":10,"access":"rw"},
                       {"allow":false,"type":"c","major":10,"minor":1,"access":"w"}]"#;
        let all_but = r#"[{"allow":true},{"allow":false,"type":"b","major":8,"access":"rw"}]"#;
        let split = r#"[{"allow":true,"type":"b","major":7,"minor":0,"access":"r"},
                        {"allow":true,"type":"b","major":7,"access":"w"}]"#;
        let (block, char) = (1, 2);
        for (json, kind, access, major, minor, expected) in [
            (usual, char, READ | WRITE, 1, 3, 1),
            (usual, char, READ, 1, 1, 0),
            (usual, char, MKNOD, 1, 1, 1),
            (usual, char, MKNOD | READ, 1, 1, 0),
            (usual, char, 0, 1, 1, 1),
            (usual, block, READ, 8, 0, 0),
            (usual, block, MKNOD, 8, 0, 1),
            (usual, char, READ | WRITE, 136, 77, 1),
            (usual, block, READ, 136, 77, 0),
            (hole, char, READ, 10, 1, 1),
            (hole, char, READ | WRITE, 10, 1, 0),
            (hole, char, READ | WRITE, 10, 2, 1),
            (all_but, block, READ, 8, 3, 0),
            (all_but, block, MKNOD, 8, 3, 1),
            (all_but, block, READ, 9, 3, 1),
            (split, block, READ | WRITE, 7, 0, 1),
            (split, block, READ | WRITE, 7, 1, 0),
            (split, block, WRITE, 7, 1, 1),
        ] {
            let verdict = run(&program(json), kind, access, major, minor);
            assert_eq!(verdict, expected, "{json}: {kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn every_instruction_is_reachable() {
        for json in [
            "[]",
            r#"[{"allow":true}]"#,
            r#"[{"allow":true},{"allow":false,"type":"c"}]"#,
        ] {
            let code = program(json);
            let mut reached = vec![false; code.len()];
            let mut open = vec![0];
            while let Some(at) = open.pop() {
                if std::mem::replace(&mut reached[at], true) || code[at].operation == EXIT {
                    continue;
                }
                if code[at].operation != JUMP {
                    open.push(at + 1);
                }
                if code[at].offset > 0 && code[at].operation != LOAD_WORD {
                    open.push(at + 1 + usize::try_from(code[at].offset).unwrap());
                }
            }
            assert!(reached.into_iter().all(|reached| reached), "{json}");
        }
    }
}
