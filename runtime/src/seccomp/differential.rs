//! The compiler against libseccomp, through which runc and crun compile their profiles.
//!
//! Random profiles go through both, and random system calls through both filters, on an interpreter. `reference.c` is the
//! program that asks libseccomp; without a C compiler or the library's headers (Debian: libseccomp-dev) nothing is
//! compared, which is said, and is a failure where `QSTACK_NO_SKIPS` is set, as `hack/test.sh` does, which installs both.
//! `QRUN_SECCOMP_REFERENCE` names such a program that is there already, of another version of the library.
//! `QRUN_SECCOMP_PROFILES` and `QRUN_SECCOMP_SEED` choose how many profiles, a thousand decisions each, and others.
//!
//! What may differ, and nothing else:
//! - Numbers above all that the profile names get ENOSYS, where the default action refuses: that is runc's own addition, and
//!   made here to libseccomp's answer as well. `socketcall` and `ipc` are exempt where a rule is for a part of theirs.
//! - Where several conditional rules with different actions hold for a call, libseccomp's answer is that of one of them,
//!   ours that of the first.
//! - libseccomp (2.5.4 and 2.6.1) forgets to load the call's number where the last rule added has no call on one of the
//!   architectures, and compares the architecture's with it. That its filter does so on the way to its answer is checked.
//! - Where several lists of conditions are for one call, it may compare one argument with another one's value, so that its
//!   answer is one that no rule gives. Then ours must be what the profile says, evaluated without a filter.
//! - Calls that are newer than the library: those of which it knows no number are left out of the profiles.
//! - Profiles that libseccomp refuses, as it does with two rules of the same conditions and different actions.
//!
//! Each kind is counted and printed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libc::sock_filter;

use super::arch::{Arch, X32_BIT};
use super::interpret::{Call, run, run_watched};
use super::syscall::{Part, Syscall, is_private, number};
use super::table::ROWS;
use super::{Error, compile_for};
use crate::spec::seccomp::{Action, Arg, Operator, Rule, Seccomp};

/// A generator of numbers (xorshift64*): the same ones at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn of<T: Clone>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())].clone()
    }

    /// A number of the kind that programs and profiles compare: small, around a power of two, or anything.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.next() % 8,
            1 => (1 << self.below(64)) - self.next() % 2,
            2 => self.next() & 0xffff_ffff,
            3 => ((self.next() % 4) << 32) | (self.next() % 4),
            4 => u64::MAX - self.next() % 2,
            _ => self.next(),
        }
    }
}

/// Every architecture of the table.
const ARCHES: [Arch; 8] = [
    Arch::X86_64,
    Arch::X86,
    Arch::X32,
    Arch::Aarch64,
    Arch::Arm,
    Arch::Riscv64,
    Arch::Ppc64Le,
    Arch::S390x,
];

/// The machines whose kernels' filters are compared: the native architecture and the others that it runs.
const MACHINES: [(Arch, &[Arch]); 5] = [
    (Arch::X86_64, &[Arch::X86, Arch::X32]),
    (Arch::X86, &[]),
    (Arch::Aarch64, &[Arch::Arm]),
    (Arch::Riscv64, &[]),
    (Arch::Ppc64Le, &[]),
];

const ACTIONS: [Action; 8] = [
    Action::KillThread,
    Action::KillProcess,
    Action::Trap,
    Action::Errno,
    Action::Trace,
    Action::Allow,
    Action::Log,
    Action::Notify,
];

const OPERATORS: [(Operator, u32); 7] = [
    (Operator::NotEqual, 1),
    (Operator::Less, 2),
    (Operator::LessOrEqual, 3),
    (Operator::Equal, 4),
    (Operator::GreaterOrEqual, 5),
    (Operator::Greater, 6),
    (Operator::MaskedEqual, 7),
];

const ENOSYS: u32 = 0x0005_0026;

/// Its name in a profile.
fn name(arch: Arch) -> String {
    let bare = match arch {
        Arch::X86_64 => "X86_64",
        Arch::X86 => "X86",
        Arch::X32 => "X32",
        Arch::Aarch64 => "AARCH64",
        Arch::Arm => "ARM",
        Arch::Riscv64 => "RISCV64",
        Arch::S390x => "S390X",
        Arch::Ppc64Le => "PPC64LE",
    };
    format!("SCMP_ARCH_{bare}")
}

/// How the reference program is told of it.
fn token(arch: Arch) -> u32 {
    if arch == Arch::X32 {
        X32_BIT
    } else {
        arch.token()
    }
}

/// The return value of an action.
fn value(action: Action, errno: Option<u32>) -> u32 {
    match action {
        Action::KillThread => 0,
        Action::KillProcess => 0x8000_0000,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 | errno.unwrap_or(1),
        Action::Trace => 0x7ff0_0000 | errno.unwrap_or(1),
        Action::Allow => 0x7fff_0000,
        Action::Log => 0x7ffc_0000,
        Action::Notify => 0x7fc0_0000,
    }
}

/// The reference program, with the directory it was compiled into, which goes with it.
struct Reference {
    program: PathBuf,
    directory: Option<PathBuf>,
}

impl Drop for Reference {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory {
            // Nothing depends on it, and a test that fails has more to tell.
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

/// Compiles the reference program; `None`, said past the test harness, where that cannot be done.
fn reference() -> Option<Reference> {
    if let Some(program) = std::env::var_os("QRUN_SECCOMP_REFERENCE") {
        return Some(Reference {
            program: program.into(),
            directory: None,
        });
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/seccomp/reference.c");
    let directory =
        std::env::temp_dir().join(format!("qrun-seccomp-reference-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let reference = Reference {
        program: directory.join("reference"),
        directory: Some(directory),
    };
    let mut command = Command::new("cc");
    command
        .args(["-O1", "-o"])
        .arg(&reference.program)
        .arg(source)
        .arg("-lseccomp");
    match command.output() {
        Ok(output) if output.status.success() => Some(reference),
        other => {
            let why = format!("no C compiler, or no libseccomp-dev, to compare with: {other:?}");
            assert!(std::env::var_os("QSTACK_NO_SKIPS").is_none(), "{why}");
            writeln!(std::io::stderr(), "SKIPPED: {why}").unwrap();
            None
        }
    }
}

/// Asks the reference program questions, a line each, and gives all it answers.
fn ask(program: &Path, question: String) -> String {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || input.write_all(question.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The names of which the library and our table know the same; the others are judged here.
fn names_in_common(program: &Path) -> Vec<&'static str> {
    let mut question = String::new();
    for (name, _) in ROWS {
        for arch in ARCHES {
            writeln!(question, "lookup {} {name}", token(arch)).unwrap();
        }
    }
    let answer = ask(program, question);
    let mut answers = answer.lines().map(|line| line.parse::<i32>().unwrap());
    let mut common = Vec::new();
    for (name, _) in ROWS {
        let syscall = Syscall::named(name).unwrap();
        let mut same = true;
        for arch in ARCHES {
            let theirs = answers.next().unwrap();
            let ours = syscall.slot(arch).map(|slot| number(arch, slot));
            match (ours, u32::try_from(theirs)) {
                (Some(ours), Ok(theirs)) => assert_eq!(ours, theirs, "{name} on {arch:?}"),
                (None, Ok(theirs)) => {
                    // It is a call of 64-bit programs alone; libseccomp 2.6 gives x32 its number too.
                    let known = (*name, arch) == ("uretprobe", Arch::X32);
                    assert!(known, "{name} on {arch:?} is {theirs}");
                    same = false;
                }
                (_, Err(_)) if (-120..=-101).contains(&theirs) => {
                    assert_eq!(
                        syscall.part(),
                        Some(Part::Socket(u64::from(theirs.unsigned_abs()) - 100)),
                        "{name}"
                    );
                }
                (_, Err(_)) if (-224..=-201).contains(&theirs) => {
                    assert_eq!(
                        syscall.part(),
                        Some(Part::Ipc(u64::from(theirs.unsigned_abs()) - 200)),
                        "{name}"
                    );
                }
                // The library is older, or leaves out what no kernel has had for long.
                (Some(_), Err(_)) => same = false,
                (None, Err(_)) => {}
            }
        }
        if same {
            common.push(*name);
        }
    }
    common
}

/// A profile for a machine.
fn profile(random: &mut Random, names: &[&str], others: &[Arch], native: Arch) -> Seccomp {
    let mut default = random.of(&ACTIONS);
    if default == Action::Notify {
        default = Action::Errno;
    }
    let mut architectures: Vec<_> = others
        .iter()
        .copied()
        .filter(|_| random.one_in(2))
        .map(name)
        .collect();
    if random.one_in(2) {
        architectures.insert(0, name(native));
    }
    // A few names, so that rules meet.
    let few: Vec<_> = (0..=random.below(5)).map(|_| random.of(names)).collect();
    let syscalls = (0..random.below(7)).map(|_| rule(random, &few)).collect();
    Seccomp {
        default_action: Some(default),
        default_errno_ret: errno(random, default),
        architectures,
        flags: None,
        listener_path: None,
        listener_metadata: None,
        syscalls,
    }
}

fn errno(random: &mut Random, action: Action) -> Option<u32> {
    let takes_one = matches!(action, Action::Errno | Action::Trace) && !random.one_in(3);
    takes_one.then(|| u32::try_from(random.next() % 4096).unwrap())
}

fn rule(random: &mut Random, few: &[&str]) -> Rule {
    let mut names: Vec<_> = (0..=random.below(3))
        .map(|_| random.of(few).to_owned())
        .collect();
    names.sort();
    names.dedup();
    if random.one_in(8) {
        names.push("no_such_call".to_owned());
    }
    let mut action = random.of(&ACTIONS);
    if action == Action::Notify && names.iter().any(|name| name == "write") {
        action = Action::Trap;
    }
    let count = [0, 0, 1, 1, 2, 3, 6][random.below(7)];
    let args = (0..count).map(|at| {
        let index = if random.one_in(5) {
            random.below(6)
        } else {
            (at + random.below(2)) % 6
        };
        Arg {
            index: u32::try_from(index).unwrap(),
            value: random.value(),
            value_two: random.value(),
            op: random.of(&OPERATORS).0,
        }
    });
    Rule {
        args: args.collect(),
        errno_ret: errno(random, action),
        names,
        action,
    }
}

/// The profile as the reference program reads it.
fn describe(profile: &Seccomp, native: Arch) -> String {
    let default = value(profile.default_action.unwrap(), profile.default_errno_ret);
    let mut text = format!(
        "profile {} {default} {}",
        native.token(),
        profile.architectures.len()
    );
    for name in &profile.architectures {
        let arch = Arch::parse(name).unwrap().unwrap();
        write!(text, " {}", token(arch)).unwrap();
    }
    writeln!(text, " {}", profile.syscalls.len()).unwrap();
    for rule in &profile.syscalls {
        write!(
            text,
            "rule {} {} {}",
            value(rule.action, rule.errno_ret),
            rule.names.len(),
            rule.names.join(" ")
        )
        .unwrap();
        write!(text, " {}", rule.args.len()).unwrap();
        for arg in &rule.args {
            let op = OPERATORS.iter().find(|(op, _)| *op == arg.op).unwrap().1;
            write!(text, " {} {op} {} {}", arg.index, arg.value, arg.value_two).unwrap();
        }
        text.push('\n');
    }
    text
}

/// Reads a filter that the reference program printed.
fn read_filter<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Result<Vec<sock_filter>, String> {
    let refused = lines.next().unwrap();
    let head = lines.next().unwrap();
    let mut words = head.split(' ').skip(1);
    let failed = words.next().unwrap() != "0" || refused != "profile 0";
    let count: usize = words.next().unwrap().parse().unwrap();
    let instructions = lines.take(count).map(|line| {
        let words: Vec<u32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        sock_filter {
            code: u16::try_from(words[0]).unwrap(),
            jt: u8::try_from(words[1]).unwrap(),
            jf: u8::try_from(words[2]).unwrap(),
            k: words[3],
        }
    });
    let instructions = instructions.collect();
    if failed {
        return Err(format!("{refused}, {head}"));
    }
    Ok(instructions)
}

/// A call that has to do with the profile, more or less.
fn call(random: &mut Random, profile: &Seccomp, native: Arch, others: &[Arch]) -> (Arch, Call) {
    let mut arches = others.to_vec();
    arches.extend([native; 3]);
    if random.one_in(20) {
        arches = vec![Arch::S390x, Arch::X86, Arch::Arm];
    }
    let arch = random.of(&arches);
    let named: Vec<u32> = profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.names)
        .filter_map(|name| {
            Syscall::named(name)?
                .slot(arch)
                .map(|slot| number(arch, slot))
        })
        .chain(arch.multiplexers().map(|(socket, _)| socket.into()))
        .chain(arch.multiplexers().map(|(_, ipc)| ipc.into()))
        .collect();
    let marker = if arch == Arch::X32 { X32_BIT } else { 0 };
    let number = match random.below(10) {
        0..6 if !named.is_empty() => random.of(&named),
        6 if !named.is_empty() => random.of(&named).wrapping_add(1),
        7 => u32::try_from(random.next() % 1100).unwrap() | marker,
        8 => random.of(&[
            u32::MAX,
            0x7fff_ffff,
            0x8000_0000,
            X32_BIT,
            X32_BIT - 1,
            0xf0000,
            0xf0005,
            0xf0010,
        ]),
        _ => u32::try_from(random.next() % 480).unwrap() | marker,
    };
    let mut arguments = [0; 6];
    let conditions: Vec<&Arg> = profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.args)
        .collect();
    for argument in &mut arguments {
        *argument = match random.below(4) {
            0 => random.value(),
            1 => random.next() % 25,
            _ if conditions.is_empty() => 1,
            _ => near(random, random_condition(&conditions, random.0)),
        };
    }
    let call = Call {
        number,
        token: arch.token(),
        arguments,
        big_endian: false,
    };
    (arch, call)
}

fn random_condition<'a>(conditions: &[&'a Arg], chosen: u64) -> &'a Arg {
    conditions[usize::try_from(chosen >> 20).unwrap() % conditions.len()]
}

/// A value at, or beside, what a condition asks for.
fn near(random: &mut Random, condition: &Arg) -> u64 {
    let value = match condition.op {
        Operator::MaskedEqual => {
            condition.value & condition.value_two | !condition.value & random.next()
        }
        _ => condition.value,
    };
    match random.below(8) {
        0 => value.wrapping_add(1),
        1 => value.wrapping_sub(1),
        2 => value ^ 1 << 32,
        3 => value ^ 1 << random.below(64),
        _ => value,
    }
}

/// The highest number that the profile names for an architecture, if what is above gets ENOSYS.
fn newest(profile: &Seccomp, arch: Arch) -> Option<u32> {
    if matches!(
        profile.default_action.unwrap(),
        Action::Allow | Action::Log | Action::Trace
    ) {
        return None;
    }
    let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
    let slots = names.filter_map(|name| Syscall::named(name)?.slot(arch));
    let highest = slots.filter(|slot| !is_private(arch, *slot)).max()?;
    (highest != 0).then(|| number(arch, highest))
}

/// Whether a number is that of `socketcall` or `ipc`, and a rule is for one of their parts: then ours goes by the rule,
/// where runc, which knows no number of the part, would answer ENOSYS.
fn bundles(profile: &Seccomp, arch: Arch, number: u32) -> bool {
    let default = value(profile.default_action.unwrap(), profile.default_errno_ret);
    let rules = profile.syscalls.iter();
    let in_force = rules.filter(|rule| value(rule.action, rule.errno_ret) != default);
    let mut names = in_force.flat_map(|rule| &rule.names);
    arch.multiplexers().is_some_and(|(socket, ipc)| {
        names.any(|name| match Syscall::named(name).and_then(Syscall::part) {
            Some(Part::Socket(_)) => number == u32::from(socket),
            Some(Part::Ipc(_)) => number == u32::from(ipc),
            None => false,
        })
    })
}

/// What libseccomp's filter says, with runc's addition.
fn theirs(filter: &[sock_filter], profile: &Seccomp, native: Arch, call: &Call) -> u32 {
    let said = run(filter, call).0;
    let listed = |arch: Arch| arch == native || profile.architectures.contains(&name(arch));
    let of_x32 = call.token == Arch::X86_64.token() && call.number >= X32_BIT;
    let arch = match MACHINES
        .iter()
        .flat_map(|(native, others)| std::iter::once(native).chain(*others))
        .find(|arch| arch.token() == call.token && (**arch == Arch::X32) == of_x32)
    {
        Some(arch) if listed(*arch) && native.runs(*arch) => *arch,
        // x32 when it is not listed, and foreign ones: killed.
        _ => return said,
    };
    let private = arch == Arch::Arm && (0xf0000..0xf0010).contains(&call.number);
    match newest(profile, arch) {
        Some(newest)
            if call.number > newest && !private && !bundles(profile, arch, call.number) =>
        {
            ENOSYS
        }
        _ => said,
    }
}

/// What the profile itself says of a call that only conditional rules are for.
struct Meant {
    /// The return values of the rules that hold; the default one when none does.
    values: BTreeSet<u32>,
    /// How many lists of conditions there are for it.
    lists: usize,
}

/// Evaluates the profile's conditional rules for a call.
fn meant(profile: &Seccomp, arch: Arch, call: &Call) -> Meant {
    let mut values = BTreeSet::new();
    let mut lists = 0;
    for rule in &profile.syscalls {
        for name in &rule.names {
            let Some(syscall) = Syscall::named(name) else {
                continue;
            };
            let direct = syscall
                .slot(arch)
                .is_some_and(|slot| number(arch, slot) == call.number);
            let part =
                arch.multiplexers()
                    .zip(syscall.part())
                    .is_some_and(|((socket, ipc), part)| {
                        let (slot, first) = match part {
                            Part::Socket(first) => (socket, first),
                            Part::Ipc(first) => (ipc, first),
                        };
                        call.number == u32::from(slot) && call.arguments[0] & 0xffff_ffff == first
                    });
            if !direct && !part {
                continue;
            }
            let repeated = rule
                .args
                .iter()
                .enumerate()
                .any(|(at, arg)| rule.args[..at].iter().any(|it| it.index == arg.index));
            let holds = |arg: &Arg| part && arg.index == 0 || condition_holds(arg, arch, call);
            let any = match repeated {
                true => rule.args.iter().any(holds),
                false => rule.args.iter().all(holds),
            };
            lists += if repeated { rule.args.len() } else { 1 };
            if any {
                values.insert(value(rule.action, rule.errno_ret));
            }
        }
    }
    if values.is_empty() {
        values.insert(value(
            profile.default_action.unwrap(),
            profile.default_errno_ret,
        ));
    }
    Meant { values, lists }
}

fn condition_holds(arg: &Arg, arch: Arch, call: &Call) -> bool {
    let width = if arch.is_wide() {
        u64::MAX
    } else {
        0xffff_ffff
    };
    let [given, value, two] = [
        call.arguments[usize::try_from(arg.index).unwrap()],
        arg.value,
        arg.value_two,
    ]
    .map(|it| it & width);
    match arg.op {
        Operator::NotEqual => given != value,
        Operator::Less => given < value,
        Operator::LessOrEqual => given <= value,
        Operator::Equal => given == value,
        Operator::GreaterOrEqual => given >= value,
        Operator::Greater => given > value,
        Operator::MaskedEqual => given & value == two & value,
    }
}

/// Whether a filter compares the architecture with what is no architecture on its way to its answer: libseccomp leaves out
/// the instruction that loads the call's number when the last rule added was for another architecture.
fn is_misled(filter: &[sock_filter], call: &Call) -> bool {
    const ARCHITECTURE: u32 = 4;
    let mut misled = false;
    run_watched(filter, call, |loaded, with| {
        misled |= loaded == Some(ARCHITECTURE) && !ARCHES.iter().any(|arch| arch.token() == with);
    });
    misled
}

/// A number of the environment, or the usual one.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

#[test]
fn decides_as_libseccomp_does() {
    let Some(asked) = reference() else { return };
    let names = names_in_common(&asked.program);
    assert!(names.len() > 300, "{} names in common", names.len());
    let mut random = Random(setting("QRUN_SECCOMP_SEED", 0x5eed_0001) | 1);
    let profiles: Vec<_> = (0..setting("QRUN_SECCOMP_PROFILES", 600))
        .map(|_| {
            let (native, others) = random.of(&MACHINES);
            (native, others, profile(&mut random, &names, others, native))
        })
        .collect();
    let question: String = profiles
        .iter()
        .map(|(native, _, profile)| describe(profile, *native))
        .collect();
    let answer = ask(&asked.program, question);
    let mut lines = answer.lines();
    let mut unexplained = Vec::new();
    let (mut decisions, mut open, mut contradictions) = (0_u64, 0_u64, 0_u64);
    let (mut refused, mut broken) = (0_u64, 0_u64);
    for (native, others, profile) in &profiles {
        let reference = read_filter(&mut lines);
        let ours = compile_for(profile, *native);
        let (ours, reference) = match (ours, reference) {
            (Ok(ours), Ok(reference)) => (ours.instructions, reference),
            (Err(Error::TooLong(_)), _) | (_, Err(_)) => {
                refused += 1;
                continue;
            }
            (Err(error), Ok(_)) => panic!("{error}: {profile:?}"),
        };
        for _ in 0..1000 {
            let (arch, call) = call(&mut random, profile, *native, others);
            let (mine, expected) = (
                run(&ours, &call).0,
                theirs(&reference, profile, *native, &call),
            );
            decisions += 1;
            if mine == expected {
                continue;
            }
            if is_misled(&reference, &call) {
                broken += 1;
                continue;
            }
            let meant = meant(profile, arch, &call);
            let contradicts = !meant.values.contains(&expected);
            if meant.lists < 2 || !meant.values.contains(&mine) {
                unexplained.push(format!(
                    "{mine:#x}, and libseccomp {expected:#x}, of {:x?}, for {call:x?} of {arch:?}, by {}",
                    meant.values,
                    describe(profile, *native)
                ));
            } else if contradicts {
                contradictions += 1;
            } else {
                open += 1;
            }
        }
    }
    println!(
        "{decisions} decisions, {open} among several rules that hold, {broken} by filters of libseccomp that forget to load \
         the number, {contradictions} more in which it contradicts the profile; {refused} of {} profiles refused",
        profiles.len()
    );
    unexplained.sort_by_key(String::len);
    let count = unexplained.len();
    unexplained.truncate(3);
    assert!(
        count == 0,
        "{count} differences:\n{}",
        unexplained.join("\n")
    );
    let few = refused * 10 < u64::try_from(profiles.len()).unwrap();
    assert!(decisions > 0 && few, "{refused} refused");
}
