//! Profiles against decisions, by running the compiled programs.

use super::arch::Arch;
use super::interpret::{Call, run};
use super::{Error, Program, compile_for, syscall};
use crate::spec::seccomp::Seccomp;

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0;

fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

fn compiled(json: &str, native: Arch) -> Program {
    let profile: Seccomp = serde_json::from_str(json).unwrap();
    compile_for(&profile, native).unwrap()
}

fn decide(program: &Program, arch: Arch, number: u32, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let call = Call {
        number,
        token: arch.token(),
        arguments: all,
        big_endian: arch.is_big_endian(),
    };
    run(&program.instructions, &call).0
}

/// The number of a call by name.
fn number(arch: Arch, name: &str) -> u32 {
    syscall::number(
        arch,
        syscall::Syscall::named(name).unwrap().slot(arch).unwrap(),
    )
}

/// A profile that fails calls with EPERM unless a rule says otherwise.
fn deny(architectures: &str, rules: &str) -> String {
    format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":[{architectures}],"syscalls":[{rules}]}}"#
    )
}

fn rule(names: &str, action: &str, args: &str) -> String {
    format!(r#"{{"names":[{names}],"action":"SCMP_ACT_{action}","args":[{args}]}}"#)
}

fn arg(index: u32, op: &str, value: u64) -> String {
    format!(r#"{{"index":{index},"value":{value},"op":"SCMP_CMP_{op}"}}"#)
}

const X86_ALL: &str = r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32""#;

#[test]
fn actions() {
    for (action, expected) in [
        ("KILL", KILL),
        ("KILL_THREAD", KILL),
        ("KILL_PROCESS", 0x8000_0000),
        ("TRAP", 0x0003_0000),
        ("ERRNO", errno(1)),
        ("TRACE", 0x7ff0_0001),
        ("LOG", 0x7ffc_0000),
        ("NOTIFY", 0x7fc0_0000),
    ] {
        let rules = rule(r#""getpid""#, action, "");
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#);
        let program = compiled(&json, Arch::X86_64);
        assert_eq!(
            decide(&program, Arch::X86_64, 39, &[]),
            expected,
            "{action}"
        );
        assert_eq!(decide(&program, Arch::X86_64, 40, &[]), ALLOW, "{action}");
        assert_eq!(program.listener, action == "NOTIFY");
    }
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[
        {"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
        {"names":["gettid"],"action":"SCMP_ACT_TRACE","errnoRet":77}]}"#;
    let program = compiled(json, Arch::X86_64);
    assert_eq!(decide(&program, Arch::X86_64, 39, &[]), errno(13));
    assert_eq!(decide(&program, Arch::X86_64, 186, &[]), 0x7ff0_0000 | 77);
    assert_eq!(decide(&program, Arch::X86_64, 0, &[]), errno(38));
}

#[test]
fn operators() {
    let big = 0x1_0000_0005;
    for (op, value, allowed, refused) in [
        ("EQ", 5, vec![5], vec![4, 6, big]),
        ("NE", 5, vec![4, 6, big], vec![5]),
        ("LT", 5, vec![0, 4], vec![5, 6, big]),
        ("LE", 5, vec![0, 5], vec![6, big, u64::MAX]),
        ("GE", 5, vec![5, 6, big, u64::MAX], vec![0, 4]),
        ("GT", 5, vec![6, big], vec![0, 5]),
        ("EQ", big, vec![big], vec![5, 0x2_0000_0005, 0x1_0000_0006]),
        ("NE", big, vec![5, 0x1_0000_0004], vec![big]),
        (
            "LT",
            big,
            vec![5, 0xffff_ffff, 0x1_0000_0004],
            vec![big, 0x2_0000_0000],
        ),
        ("LE", big, vec![7, big], vec![0x1_0000_0006, 0x2_0000_0000]),
        (
            "GE",
            big,
            vec![big, 0x2_0000_0000],
            vec![0x1_0000_0004, 0xffff_ffff],
        ),
        (
            "GT",
            big,
            vec![0x1_0000_0006, 0x2_0000_0000],
            vec![big, 0xffff_ffff],
        ),
    ] {
        for index in [0, 5] {
            let json = deny(
                "",
                &rule(r#""personality""#, "ALLOW", &arg(index, op, value)),
            );
            let program = compiled(&json, Arch::X86_64);
            let big_endian = compiled(&json, Arch::S390x);
            for (values, expected) in [(&allowed, ALLOW), (&refused, errno(1))] {
                for given in values {
                    let mut arguments = [0; 6];
                    arguments[usize::try_from(index).unwrap()] = *given;
                    let found = decide(&program, Arch::X86_64, 135, &arguments);
                    assert_eq!(found, expected, "{given:#x} {op} {value:#x}");
                    let found = decide(&big_endian, Arch::S390x, 136, &arguments);
                    assert_eq!(found, expected, "{given:#x} {op} {value:#x}, big endian");
                }
            }
        }
    }
}

#[test]
fn masks() {
    for (mask, value, allowed, refused) in [
        (
            0x7e02_0000_u64,
            0_u64,
            vec![0, 0x11, 0x1_0000_0000],
            vec![0x1000_0000, 0x2_0000],
        ),
        (0xf0, 0x3f, vec![0x30, 0x3a], vec![0x40, 0]),
        (
            0xf_0000_0000,
            0x1_0000_0000,
            vec![0x1_0000_0000, 0x1_ffff_ffff],
            vec![0, 0x2_0000_0000],
        ),
        (0, 0, vec![0, 9], vec![]),
    ] {
        let args =
            format!(r#"{{"index":0,"value":{mask},"valueTwo":{value},"op":"SCMP_CMP_MASKED_EQ"}}"#);
        let program = compiled(&deny("", &rule(r#""clone""#, "ALLOW", &args)), Arch::X86_64);
        for (values, expected) in [(&allowed, ALLOW), (&refused, errno(1))] {
            for given in values {
                assert_eq!(
                    decide(&program, Arch::X86_64, 56, &[*given]),
                    expected,
                    "{given:#x} & {mask:#x}"
                );
            }
        }
    }
}

#[test]
fn several_conditions() {
    let [zero, one] = [arg(0, "EQ", 1), arg(1, "EQ", 2)];
    let all = compiled(
        &deny("", &rule(r#""clone""#, "ALLOW", &format!("{zero},{one}"))),
        Arch::X86_64,
    );
    for (arguments, expected) in [([1, 2], ALLOW), ([1, 3], errno(1)), ([0, 2], errno(1))] {
        assert_eq!(
            decide(&all, Arch::X86_64, 56, &arguments),
            expected,
            "{arguments:?}"
        );
    }
    // Two conditions on one argument are two rules, even if that makes the third one an alternative.
    let twice = format!("{},{},{one}", arg(0, "EQ", 1), arg(0, "EQ", 5));
    let any = compiled(
        &deny("", &rule(r#""clone""#, "ALLOW", &twice)),
        Arch::X86_64,
    );
    for (arguments, expected) in [
        ([1, 0], ALLOW),
        ([5, 0], ALLOW),
        ([7, 2], ALLOW),
        ([7, 0], errno(1)),
    ] {
        assert_eq!(
            decide(&any, Arch::X86_64, 56, &arguments),
            expected,
            "{arguments:?}"
        );
    }
}

#[test]
fn several_rules() {
    let when_8 = rule(r#""personality""#, "KILL_PROCESS", &arg(0, "EQ", 8));
    let from_8 = rule(r#""personality""#, "ALLOW", &arg(0, "GE", 8));
    let always = rule(r#""personality""#, "ALLOW", "");
    let never = rule(r#""personality""#, "TRAP", "");
    for (rules, expected) in [
        (format!("{when_8},{from_8}"), [errno(1), 0x8000_0000, ALLOW]),
        (format!("{from_8},{when_8}"), [errno(1), ALLOW, ALLOW]),
        (format!("{when_8},{always}"), [ALLOW, ALLOW, ALLOW]),
        (format!("{always},{when_8}"), [ALLOW, ALLOW, ALLOW]),
        (format!("{always},{never}"), [ALLOW, ALLOW, ALLOW]),
    ] {
        let program = compiled(&deny("", &rules), Arch::X86_64);
        let found = [7, 8, 9].map(|given| decide(&program, Arch::X86_64, 135, &[given]));
        assert_eq!(found, expected, "{rules}");
    }
}

#[test]
fn architectures() {
    let rules = rule(r#""read","close","socketcall""#, "ALLOW", "");
    let x86_64 = compiled(&deny("", &rules), Arch::X86_64);
    let all = compiled(&deny(X86_ALL, &rules), Arch::X86_64);
    for (arch, number, alone, with_all) in [
        (Arch::X86_64, 0, ALLOW, ALLOW),
        (Arch::X86_64, 1, errno(1), errno(1)),
        (Arch::X86_64, 4, errno(38), errno(38)),
        (Arch::X86, 3, KILL, ALLOW),
        (Arch::X86, 102, KILL, ALLOW),
        (Arch::X86, 4, KILL, errno(1)),
        (Arch::X86, 103, KILL, errno(38)),
        (Arch::X32, 0x4000_0000, KILL, ALLOW),
        (Arch::X32, 0x4000_0001, KILL, errno(1)),
        (Arch::X32, 0x4000_0004, KILL, errno(38)),
        (Arch::X86_64, u32::MAX, errno(1), errno(38)),
        (Arch::Aarch64, 63, KILL, KILL),
    ] {
        assert_eq!(
            decide(&x86_64, arch, number, &[]),
            alone,
            "{arch:?} {number:#x} alone"
        );
        assert_eq!(
            decide(&all, arch, number, &[]),
            with_all,
            "{arch:?} {number:#x} with all"
        );
    }
    let arm = compiled(
        &deny(
            r#""SCMP_ARCH_ARM","SCMP_ARCH_MIPS""#,
            &rule(r#""read","set_tls""#, "ALLOW", ""),
        ),
        Arch::Aarch64,
    );
    for (arch, number, expected) in [
        (Arch::Aarch64, 63, ALLOW),
        (Arch::Aarch64, 64, errno(38)),
        (Arch::Arm, 3, ALLOW),
        (Arch::Arm, 2, errno(1)),
        (Arch::Arm, 450, errno(38)),
        (Arch::Arm, 0xf0005, ALLOW),
        (Arch::Arm, 0xf0002, errno(1)),
    ] {
        assert_eq!(
            decide(&arm, arch, number, &[]),
            expected,
            "{arch:?} {number:#x}"
        );
    }
}

#[test]
fn newer_calls_are_unknown_rather_than_forbidden() {
    // openat2 is named, if only to forbid it; what came after it is not.
    let rules = format!(
        "{},{}",
        rule(r#""read""#, "ALLOW", ""),
        rule(r#""openat2""#, "ERRNO", "")
    );
    let denied = compiled(&deny("", &rules), Arch::X86_64);
    for (number, expected) in [
        (0, ALLOW),
        (1, errno(1)),
        (437, errno(1)),
        (438, errno(38)),
        (9999, errno(38)),
    ] {
        assert_eq!(
            decide(&denied, Arch::X86_64, number, &[]),
            expected,
            "{number}"
        );
    }
    for (default, expected) in [
        ("LOG", 0x7ffc_0000),
        ("TRACE", 0x7ff0_0001),
        ("KILL", errno(38)),
    ] {
        let rules = rule(r#""openat2""#, "ALLOW", "");
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":[{rules}]}}"#);
        assert_eq!(
            decide(&compiled(&json, Arch::X86_64), Arch::X86_64, 438, &[]),
            expected,
            "{default}"
        );
    }
    let s390x = compiled(&deny("", &rule(r#""openat2""#, "ALLOW", "")), Arch::S390x);
    assert_eq!(decide(&s390x, Arch::S390x, 0, &[]), errno(38));
}

#[test]
fn bundled_calls() {
    let rules = format!(
        "{},{},{}",
        rule(r#""accept","socket","semop""#, "ALLOW", ""),
        rule(r#""bind""#, "ALLOW", &arg(0, "EQ", 3)),
        rule(r#""shmget""#, "ALLOW", &arg(2, "EQ", 3))
    );
    let program = compiled(&deny(X86_ALL, &rules), Arch::X86_64);
    let [socketcall, ipc] = ["socketcall", "ipc"].map(|name| number(Arch::X86, name));
    for (number, arguments, expected) in [
        (socketcall, [1, 0, 0], ALLOW),
        (socketcall, [5, 0, 0], ALLOW),
        (socketcall, [2, 0, 0], ALLOW),
        (socketcall, [3, 0, 0], errno(1)),
        (ipc, [1, 0, 0], ALLOW),
        (ipc, [23, 0, 3], ALLOW),
        (ipc, [23, 0, 4], errno(1)),
        (number(Arch::X86, "bind"), [3, 0, 0], ALLOW),
        (number(Arch::X86, "bind"), [4, 0, 0], errno(1)),
    ] {
        assert_eq!(
            decide(&program, Arch::X86, number, &arguments),
            expected,
            "{number} {arguments:?}"
        );
    }
}

#[test]
fn narrow_architectures_compare_low_halves() {
    let json = deny(
        X86_ALL,
        &rule(
            r#""personality""#,
            "ALLOW",
            &arg(0, "EQ", 0xffff_ffff_ffff_ffff),
        ),
    );
    let program = compiled(&json, Arch::X86_64);
    assert_eq!(decide(&program, Arch::X86, 136, &[0xffff_ffff]), ALLOW);
    assert_eq!(
        decide(&program, Arch::X86_64, 135, &[0xffff_ffff]),
        errno(1)
    );
}

#[test]
fn flags() {
    for (flags, expected) in [
        ("", 4),
        (r#""flags":[],"#, 0),
        (r#""flags":["SECCOMP_FILTER_FLAG_TSYNC"],"#, 0),
        (
            r#""flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"],"#,
            6,
        ),
    ] {
        let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{flags}"syscalls":null}}"#);
        assert_eq!(compiled(&json, Arch::X86_64).flags, expected, "{flags}");
    }
    let rules = rule(r#""mkdir""#, "NOTIFY", "");
    let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[],"syscalls":[{rules}]}}"#);
    assert_eq!(compiled(&json, Arch::X86_64).flags, 8);
    let json = json.replace("[],", r#"["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],"#);
    assert_eq!(compiled(&json, Arch::X86_64).flags, 40);
}

#[test]
fn whether_sending_asks() {
    for (names, expected) in [(r#""mkdir""#, false), (r#""mkdir","sendmsg""#, true)] {
        let json = deny("", &rule(names, "NOTIFY", ""));
        assert_eq!(compiled(&json, Arch::X86_64).sends_ask, expected, "{names}");
    }
    assert!(!compiled(&deny("", &rule(r#""sendmsg""#, "ALLOW", "")), Arch::X86_64).sends_ask);
}

#[test]
fn mistakes() {
    let allow = |rest: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{rest}}}"#);
    for (json, expected) in [
        (allow(r#""flags":["X"]"#), Error::Flag("X".to_owned())),
        (
            allow(r#""flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#),
            Error::FlagWithoutListener,
        ),
        (
            allow(r#""architectures":["SCMP_ARCH_Z80"]"#),
            Error::Arch("SCMP_ARCH_Z80".to_owned()),
        ),
        (
            allow(&format!(r#""syscalls":[{}]"#, rule(r#""""#, "TRAP", ""))),
            Error::EmptyName,
        ),
        (
            allow(&format!(
                r#""syscalls":[{}]"#,
                rule(r#""write""#, "NOTIFY", "")
            )),
            Error::NotifyWrite,
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.to_owned(),
            Error::NotifyDefault,
        ),
        (
            allow(&format!(
                r#""syscalls":[{}]"#,
                rule(r#""read""#, "TRAP", &arg(6, "EQ", 0))
            )),
            Error::ArgIndex {
                name: "read".to_owned(),
                index: 6,
            },
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":65536}"#.to_owned(),
            Error::Errno(65536),
        ),
    ] {
        let profile: Seccomp = serde_json::from_str(&json).unwrap();
        assert_eq!(
            compile_for(&profile, Arch::X86_64).unwrap_err(),
            expected,
            "{json}"
        );
    }
    assert!(serde_json::from_str::<Seccomp>(r#"{"defaultAction":"SCMP_ACT_JUMP"}"#).is_err());
}

#[test]
fn far_jumps_and_limits() {
    // Every call with a condition of its own: far more than a jump reaches.
    let rules = |conditions: &str| {
        let rules = (0..300)
            .filter_map(|at| super::table::ROWS.get(at))
            .map(|(name, _)| rule(&format!("\"{name}\""), "ALLOW", conditions));
        rules.collect::<Vec<_>>().join(",")
    };
    let conditions = format!("{},{}", arg(0, "GT", 0x1_0000_0005), arg(1, "EQ", 7));
    let program = compiled(
        &deny(r#""SCMP_ARCH_X86_64""#, &rules(&conditions)),
        Arch::X86_64,
    );
    assert!(program.instructions.len() > 1000);
    for (name, columns) in &super::table::ROWS[..300] {
        if columns[0] == super::table::NO {
            continue;
        }
        for (arguments, expected) in [([0x1_0000_0006, 7], ALLOW), ([0x1_0000_0005, 7], errno(1))] {
            let found = decide(&program, Arch::X86_64, columns[0].into(), &arguments);
            assert_eq!(found, expected, "{name} {arguments:?}");
        }
    }
    let json = deny(
        X86_ALL,
        &rules(
            &(0..6)
                .map(|at| arg(at, "GT", 0x1_0000_0005))
                .collect::<Vec<_>>()
                .join(","),
        ),
    );
    let profile: Seccomp = serde_json::from_str(&json).unwrap();
    assert!(matches!(
        compile_for(&profile, Arch::X86_64),
        Err(Error::TooLong(_))
    ));
}

/// What podman uses unless told otherwise, resolved for a container with docker's default capabilities on a PC: Debian's
/// /usr/share/containers/seccomp.json, its rules grouped by what they do.
const USUAL: &str = include_str!("usual-profile.json");

#[test]
fn the_usual_profile() {
    let program = compiled(USUAL, Arch::X86_64);
    assert!(
        program.instructions.len() < 400,
        "{} instructions",
        program.instructions.len()
    );
    for (name, arguments, expected) in [
        ("read", vec![], ALLOW),
        ("openat", vec![], ALLOW),
        ("clone", vec![], ALLOW),
        ("socket", vec![], ALLOW),
        ("swapon", vec![], errno(1)),
        ("kexec_load", vec![], errno(1)),
        ("personality", vec![0], ALLOW),
        ("personality", vec![8], ALLOW),
        ("personality", vec![0xffff_ffff], ALLOW),
        ("personality", vec![1], errno(38)),
        ("file_setattr", vec![], errno(38)),
    ] {
        for arch in [Arch::X86_64, Arch::X86, Arch::X32] {
            assert_eq!(
                decide(&program, arch, number(arch, name), &arguments),
                expected,
                "{name} {arch:?}"
            );
        }
    }
    // What a program does most is decided soon.
    for number in 0..450 {
        let call = Call {
            number,
            token: Arch::X86_64.token(),
            arguments: [0; 6],
            big_endian: false,
        };
        let (_, steps) = run(&program.instructions, &call);
        assert!(steps <= 20, "{steps} instructions for call {number}");
    }
}

/// Runs something in a thread of its own under a filter, which ends with the thread.
fn filtered<T: Send + 'static>(
    program: Program,
    action: impl FnOnce(bool) -> T + Send + 'static,
) -> T {
    let thread = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        let listener = crate::sys::seccomp::install(&program).unwrap();
        action(listener.is_some())
    });
    thread.join().unwrap()
}

#[test]
fn the_kernel_takes_it() {
    let native = Arch::native().unwrap();
    let rules = r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":77}"#;
    let json = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#);
    let refused = filtered(compiled(&json, native), |listener| {
        assert!(!listener);
        std::fs::create_dir("/nowhere/at/all")
            .unwrap_err()
            .raw_os_error()
    });
    assert_eq!(refused, Some(77));

    let (named, read) = filtered(compiled(USUAL, native), |_| {
        // Too long a name: EINVAL from the kernel itself, were it asked.
        let named = rustix::system::sethostname(&[b'x'; 100]);
        (named, std::fs::read("/proc/self/comm").is_ok())
    });
    assert_eq!((named, read), (Err(rustix::io::Errno::PERM), true));

    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["swapon"],"action":"SCMP_ACT_NOTIFY"}]}"#;
    assert!(filtered(compiled(json, native), |listener| listener));
}
