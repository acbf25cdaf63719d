//! From a profile to decisions: for each architecture, what happens to every possible system call number.
//!
//! The result is free of names and rules: ranges of numbers, each with a return value or a list of conditions to try.

use super::Error;
use super::arch::{Arch, X32_BIT};
use super::syscall::{self, Part, SLOTS, Syscall};
use crate::spec::seccomp::{Action, Arg, Operator, Rule, Seccomp};

// Return values (linux/seccomp.h).
const KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// `EPERM`, the error number when none is given.
const EPERM: u32 = 1;
/// `ENOSYS`, on every architecture of the table.
const ENOSYS: u32 = 38;

/// All decisions for calls with one architecture token.
#[derive(Debug)]
pub(super) struct Decisions {
    /// `AUDIT_ARCH_*`.
    pub(super) token: u32,
    /// First numbers of ranges, ascending from 0, each with what happens up to the next; neighbours differ.
    pub(super) ranges: Vec<(u32, Verdict)>,
    /// The conditional ones.
    pub(super) choices: Vec<Choice>,
}

/// What happens to a range of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ends with this return value.
    Return(u32),
    /// Depends on arguments: index into [`Decisions::choices`].
    Choose(u16),
}

/// Alternatives, tried in order.
#[derive(Debug)]
pub(super) struct Choice {
    /// Conditions that must all hold, and the return value then.
    pub(super) alternatives: Vec<(Vec<Condition>, u32)>,
    /// The return value when none holds.
    pub(super) otherwise: u32,
    /// How arguments are read.
    pub(super) arch: Arch,
}

/// A test of one argument: `(argument & mask) TEST value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) mask: u64,
    pub(super) test: Test,
    pub(super) value: u64,
    /// Whether it holds when the test fails.
    pub(super) negated: bool,
}

/// The tests that BPF has; the others are their negations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    GreaterOrEqual,
    Greater,
}

/// A rule with everything about it worked out that does not depend on the architecture.
struct Prepared<'a> {
    syscalls: &'a [Syscall],
    value: u32,
    /// Each one a list of conditions of which all must hold; empty for an unconditional rule.
    alternatives: Vec<Vec<Condition>>,
}

/// What is known about one slot of one architecture.
#[derive(Clone, Copy)]
enum Slot {
    Empty,
    Always(u32),
    Choose(u16),
}

/// Works out the decisions for every architecture that `native` runs and the profile covers, `native` first.
pub(super) fn decide(profile: &Seccomp, native: Arch) -> Result<Vec<Decisions>, Error> {
    let default_action = profile.default_action.ok_or(Error::NoDefault)?;
    if default_action == Action::Notify {
        return Err(Error::NotifyDefault);
    }
    let default = value(default_action, profile.default_errno_ret)?;
    let mut arches = vec![native];
    for name in &profile.architectures {
        if let Some(arch) = Arch::parse(name)?.filter(|arch| native.runs(*arch))
            && !arches.contains(&arch)
        {
            arches.push(arch);
        }
    }
    let mut syscalls =
        Vec::with_capacity(profile.syscalls.iter().map(|rule| rule.names.len()).sum());
    let mut ends = Vec::with_capacity(profile.syscalls.len());
    for rule in &profile.syscalls {
        check(rule)?;
        syscalls.extend(rule.names.iter().filter_map(|name| Syscall::named(name)));
        ends.push(syscalls.len());
    }
    let mut prepared = Vec::with_capacity(profile.syscalls.len());
    let mut start = 0;
    for (rule, end) in profile.syscalls.iter().zip(ends) {
        let value = value(rule.action, rule.errno_ret)?;
        // A rule for the default action changes nothing.
        if value != default {
            let alternatives = alternatives(&rule.args);
            prepared.push(Prepared {
                syscalls: &syscalls[start..end],
                value,
                alternatives,
            });
        }
        start = end;
    }
    let newest = Newest {
        syscalls: &syscalls,
        applies: !lets_through(default_action),
    };
    let covered = arches.iter().filter(|arch| **arch != Arch::X32);
    Ok(covered
        .map(|arch| {
            let mut decisions = Builder::new(*arch, default);
            decisions.cover(*arch, &prepared, &newest);
            if *arch == Arch::X86_64 {
                decisions.x32(arches.contains(&Arch::X32), &prepared, &newest);
            }
            decisions.done
        })
        .collect())
}

fn check(rule: &Rule) -> Result<(), Error> {
    for name in &rule.names {
        if name.is_empty() {
            return Err(Error::EmptyName);
        }
        if name == "write" && rule.action == Action::Notify {
            return Err(Error::NotifyWrite);
        }
    }
    match rule.args.iter().find(|arg| arg.index > 5) {
        Some(arg) => Err(Error::ArgIndex {
            name: rule.names.first().cloned().unwrap_or_default(),
            index: arg.index,
        }),
        None => Ok(()),
    }
}

/// The filter's return value for an action.
fn value(action: Action, errno: Option<u32>) -> Result<u32, Error> {
    let base = match action {
        Action::Errno => ERRNO,
        Action::Trace => TRACE,
        _ if errno.is_some_and(|errno| errno != 0) => return Err(Error::ErrnoUnused(action)),
        Action::KillThread => return Ok(KILL_THREAD),
        Action::KillProcess => return Ok(KILL_PROCESS),
        Action::Trap => return Ok(TRAP),
        Action::Allow => return Ok(ALLOW),
        Action::Log => return Ok(LOG),
        Action::Notify => return Ok(NOTIFY),
    };
    match errno.unwrap_or(EPERM) {
        errno @ 0..=0xffff => Ok(base | errno),
        errno => Err(Error::Errno(errno)),
    }
}

/// Whether an action lets a call go on; a tracer is expected to deal with new calls itself.
fn lets_through(action: Action) -> bool {
    matches!(action, Action::Allow | Action::Log | Action::Trace)
}

/// The conditions of a rule, as alternatives of which each is a conjunction.
fn alternatives(args: &[Arg]) -> Vec<Vec<Condition>> {
    let repeated = args
        .iter()
        .enumerate()
        .any(|(at, arg)| args[..at].iter().any(|before| before.index == arg.index));
    match (args.is_empty(), repeated) {
        (true, _) => Vec::new(),
        (_, true) => args.iter().map(|arg| vec![condition(arg)]).collect(),
        (_, false) => vec![args.iter().map(condition).collect()],
    }
}

fn condition(arg: &Arg) -> Condition {
    let (test, negated) = match arg.op {
        Operator::Equal | Operator::MaskedEqual => (Test::Equal, false),
        Operator::NotEqual => (Test::Equal, true),
        Operator::GreaterOrEqual => (Test::GreaterOrEqual, false),
        Operator::Less => (Test::GreaterOrEqual, true),
        Operator::Greater => (Test::Greater, false),
        Operator::LessOrEqual => (Test::Greater, true),
    };
    let (mask, value) = match arg.op {
        Operator::MaskedEqual => (arg.value, arg.value_two & arg.value),
        _ => (u64::MAX, arg.value),
    };
    // At most 5, as checked before.
    let argument = u8::try_from(arg.index).unwrap_or(u8::MAX);
    Condition {
        argument,
        mask,
        test,
        value,
        negated,
    }
}

/// What the profile knows of each architecture's newest calls.
struct Newest<'a> {
    syscalls: &'a [Syscall],
    applies: bool,
}

impl Newest<'_> {
    /// The highest slot of an architecture that the profile names, if ENOSYS is for those above.
    fn slot(&self, arch: Arch) -> Option<u16> {
        let slots = self
            .syscalls
            .iter()
            .filter_map(|syscall| syscall.slot(arch));
        let highest = slots.filter(|slot| !syscall::is_private(arch, *slot)).max();
        // Number 0 alone does not count as having named any, as in runc.
        highest.filter(|slot| self.applies && syscall::number(arch, *slot) != 0)
    }
}

struct Builder {
    done: Decisions,
    default: u32,
}

impl Builder {
    fn new(arch: Arch, default: u32) -> Self {
        let done = Decisions {
            token: arch.token(),
            ranges: Vec::with_capacity(256),
            choices: Vec::new(),
        };
        Self { done, default }
    }

    /// Appends a range; numbers must come in ascending order.
    fn range(&mut self, first: u32, verdict: Verdict) {
        if self
            .done
            .ranges
            .last()
            .is_none_or(|(_, last)| *last != verdict)
        {
            self.done.ranges.push((first, verdict));
        }
    }

    /// Appends the ranges of one architecture's calls.
    fn cover(&mut self, arch: Arch, rules: &[Prepared<'_>], newest: &Newest<'_>) {
        let mut slots = [Slot::Empty; SLOTS];
        for rule in rules {
            for syscall in rule.syscalls {
                if let Some(slot) = syscall.slot(arch) {
                    self.add(
                        &mut slots[usize::from(slot)],
                        arch,
                        rule.value,
                        &rule.alternatives,
                    );
                }
                self.add_part(&mut slots, arch, *syscall, rule);
            }
        }
        let newest = newest.slot(arch);
        if arch == Arch::S390x && newest.is_some() {
            slots[0] = Slot::Always(ERRNO | ENOSYS);
        }
        let above = newest.map_or(self.default, |_| ERRNO | ENOSYS);
        for (index, slot) in (0..).zip(&slots) {
            let number = syscall::number(arch, index);
            let verdict = match *slot {
                Slot::Always(value) => Verdict::Return(value),
                Slot::Choose(choice) => Verdict::Choose(choice),
                Slot::Empty if syscall::is_private(arch, index) => Verdict::Return(self.default),
                Slot::Empty if newest.is_some_and(|newest| index <= newest) => {
                    Verdict::Return(self.default)
                }
                Slot::Empty => Verdict::Return(above),
            };
            self.range(number, verdict);
        }
        self.range(syscall::number(arch, 1023) + 1, Verdict::Return(above));
    }

    /// Counts a call as a part of `socketcall` or `ipc` too.
    fn add_part(
        &mut self,
        slots: &mut [Slot; SLOTS],
        arch: Arch,
        syscall: Syscall,
        rule: &Prepared<'_>,
    ) {
        let (Some((socketcall, ipc)), Some(part)) = (arch.multiplexers(), syscall.part()) else {
            return;
        };
        let (slot, number) = match part {
            Part::Socket(number) => (socketcall, number),
            Part::Ipc(number) => (ipc, number),
        };
        let which = Condition {
            argument: 0,
            mask: u64::MAX,
            test: Test::Equal,
            value: number,
            negated: false,
        };
        let mut alternatives = Vec::with_capacity(rule.alternatives.len().max(1));
        // The first argument says which part it is, so that what the profile asks of it cannot be checked.
        for conditions in &rule.alternatives {
            let others = conditions
                .iter()
                .filter(|condition| condition.argument != 0);
            alternatives.push(std::iter::once(which).chain(others.copied()).collect());
        }
        if alternatives.is_empty() {
            alternatives.push(vec![which]);
        }
        self.add(
            &mut slots[usize::from(slot)],
            arch,
            rule.value,
            &alternatives,
        );
    }

    fn add(&mut self, slot: &mut Slot, arch: Arch, value: u32, alternatives: &[Vec<Condition>]) {
        let choices = &mut self.done.choices;
        match (alternatives, *slot) {
            (_, Slot::Always(_)) => {}
            ([], _) => *slot = Slot::Always(value),
            (_, Slot::Choose(choice)) => {
                let more = alternatives
                    .iter()
                    .map(|conditions| (conditions.clone(), value));
                choices[usize::from(choice)].alternatives.extend(more);
            }
            (_, Slot::Empty) => {
                // There are not more choices than slots of two architectures.
                *slot = Slot::Choose(u16::try_from(choices.len()).unwrap_or(u16::MAX));
                let alternatives = alternatives
                    .iter()
                    .map(|conditions| (conditions.clone(), value))
                    .collect();
                choices.push(Choice {
                    alternatives,
                    otherwise: self.default,
                    arch,
                });
            }
        }
    }

    /// Appends what lies above x86_64's own numbers: x32 calls, or their refusal.
    fn x32(&mut self, covered: bool, rules: &[Prepared<'_>], newest: &Newest<'_>) {
        if covered {
            self.cover(Arch::X32, rules, newest);
        } else {
            self.range(X32_BIT, Verdict::Return(KILL_THREAD));
            self.range(u32::MAX, Verdict::Return(self.default));
        }
    }
}
