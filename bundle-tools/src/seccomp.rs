//! The default seccomp profile: docker's allow list.
//!
//! What is not in the table fails with EPERM. Which rows apply depends on the
//! capabilities (a process that may mount by capability may call `mount(2)`), the
//! architecture and the kernel; the table is in `table`, resolving it is here. The
//! result names system calls only: a runtime's compiler turns them into numbers.
//!
//! Two holes that docker's profile had are closed as in its current version:
//! `socket(2)` refuses AF_ALG (CVE-2026-31431) and AF_VSOCK, `clone3(2)`
//! answers ENOSYS so that programs fall back to `clone(2)`, whose flags can be seen.

mod table;

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use table::{Args, ROWS, Row, Verdict};

/// What a process without any rule gets: EPERM.
const DEFAULT_ERRNO: u32 = 1;
/// ENOSYS, "this kernel has no such call".
const ENOSYS: u32 = 38;

/// The profile for processes whose bounding set is `capabilities`, on
/// `architecture` (a GOARCH name or Rust's), on the running kernel.
#[must_use]
pub fn default_profile(capabilities: &HashSet<Capability>, architecture: &str) -> LinuxSeccomp {
    let uname = rustix::system::uname();
    let kernel = parse_release(&uname.release().to_string_lossy());
    profile(capabilities, architecture, kernel)
}

fn profile(
    capabilities: &HashSet<Capability>,
    architecture: &str,
    kernel: (u32, u32),
) -> LinuxSeccomp {
    let architecture = canonical(architecture);
    let applies = |row: &&Row| {
        let held = |capability: Capability| capabilities.contains(&capability);
        row.with.is_none_or(held)
            && !row.without.is_some_and(held)
            && (row.on.is_empty() || row.on.contains(&architecture))
            && !row.not_on.contains(&architecture)
            && row.since.is_none_or(|since| kernel >= since)
    };
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(DEFAULT_ERRNO))
        .set_architectures(architectures(architecture))
        .set_syscalls(Some(ROWS.iter().filter(applies).map(rule).collect()));
    seccomp
}

fn rule(row: &Row) -> LinuxSyscall {
    let mut syscall = LinuxSyscall::default();
    syscall.set_names(
        row.names
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
    );
    match row.verdict {
        Verdict::Allow => {
            syscall.set_action(LinuxSeccompAction::ScmpActAllow);
        }
        Verdict::NoSuchCall => {
            syscall.set_action(LinuxSeccompAction::ScmpActErrno);
            syscall.set_errno_ret(Some(ENOSYS));
        }
    }
    match row.args {
        Args::Any => {}
        Args::Compare(index, operator, value) => {
            syscall.set_args(Some(vec![argument(index, operator, value, None)]));
        }
        Args::NoneOf(index, mask) => {
            let operator = LinuxSeccompOperator::ScmpCmpMaskedEq;
            syscall.set_args(Some(vec![argument(index, operator, mask, Some(0))]));
        }
    }
    syscall
}

fn argument(
    index: usize,
    operator: LinuxSeccompOperator,
    value: u64,
    second: Option<u64>,
) -> LinuxSeccompArg {
    let mut builder = LinuxSeccompArgBuilder::default()
        .index(index)
        .op(operator)
        .value(value);
    if let Some(second) = second {
        builder = builder.value_two(second);
    }
    // Every field has a default, so building can not fail.
    builder.build().unwrap_or_default()
}

/// The architectures whose system calls the machine runs, the native one first.
fn architectures(architecture: &str) -> Option<Vec<Arch>> {
    Some(match architecture {
        "amd64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "arm64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        "loong64" => vec![Arch::ScmpArchLoongarch64],
        "ppc64le" => vec![Arch::ScmpArchPpc64le],
        "386" => vec![Arch::ScmpArchX86],
        "arm" => vec![Arch::ScmpArchArm],
        // The runtime's own architecture alone.
        _ => return None,
    })
}

fn canonical(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i686" => "386",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// `6.18.5-cloud` → (6, 18); what can not be read counts as old.
fn parse_release(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(
        capabilities: &[Capability],
        architecture: &str,
        kernel: (u32, u32),
    ) -> HashSet<String> {
        let capabilities = capabilities.iter().copied().collect();
        let profile = profile(&capabilities, architecture, kernel);
        let rules = profile.syscalls().clone().unwrap();
        rules
            .into_iter()
            .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow)
            .flat_map(|rule| rule.names().clone())
            .collect()
    }

    #[test]
    fn no_name_is_twice_in_a_row_or_unsorted() {
        for row in ROWS {
            let names: Vec<&str> = row.names.split_ascii_whitespace().collect();
            assert!(
                names.windows(2).all(|pair| pair[0] < pair[1]),
                "{:?}",
                row.names
            );
        }
    }

    #[test]
    fn capabilities_open_their_calls() {
        let plain = names(&[], "amd64", (6, 1));
        for call in [
            "read",
            "clone",
            "socket",
            "ptrace",
            "arch_prctl",
            "personality",
            "socketcall",
        ] {
            assert!(plain.contains(call), "{call}");
        }
        let closed = [
            ("mount", Capability::SysAdmin),
            ("unshare", Capability::SysAdmin),
            ("clone3", Capability::SysAdmin),
            ("chroot", Capability::SysChroot),
            ("init_module", Capability::SysModule),
            ("bpf", Capability::Bpf),
            ("open_by_handle_at", Capability::DacReadSearch),
            ("settimeofday", Capability::SysTime),
            ("syslog", Capability::Syslog),
            ("reboot", Capability::SysBoot),
        ];
        for (call, capability) in closed {
            assert!(!plain.contains(call), "{call}");
            assert!(
                names(&[capability], "amd64", (6, 1)).contains(call),
                "{call}"
            );
        }
        for call in [
            "keyctl",
            "add_key",
            "io_uring_setup",
            "userfaultfd",
            "kexec_load",
            "swapon",
        ] {
            assert!(!plain.contains(call), "{call}");
        }
    }

    #[test]
    fn kernel_and_architecture_select_rows() {
        assert!(!names(&[], "amd64", (4, 7)).contains("ptrace"));
        assert!(names(&[], "x86_64", (4, 8)).contains("ptrace"));
        assert!(!names(&[], "arm64", (6, 1)).contains("arch_prctl"));
        assert!(names(&[], "aarch64", (6, 1)).contains("cacheflush"));
        assert!(names(&[], "s390x", (6, 1)).contains("s390_runtime_instr"));
        let arches = profile(&HashSet::new(), "aarch64", (6, 1));
        let expected = vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm];
        assert_eq!(arches.architectures(), &Some(expected));
        assert_eq!(parse_release("6.18.5-cloud-amd64"), (6, 18));
        assert_eq!(parse_release("nonsense"), (0, 0));
    }

    #[test]
    fn clone_is_filtered_by_its_flags() {
        let rules = |capabilities: &[Capability]| {
            let capabilities = capabilities.iter().copied().collect();
            let profile = profile(&capabilities, "amd64", (6, 1));
            let rules = profile.syscalls().clone().unwrap();
            let is_clone =
                |rule: &LinuxSyscall| rule.names().iter().any(|name| name.starts_with("clone"));
            rules.into_iter().filter(is_clone).collect::<Vec<_>>()
        };
        let plain = rules(&[]);
        assert_eq!(plain.len(), 2);
        let arg = plain[0].args().clone().unwrap()[0];
        assert_eq!(
            (arg.index(), arg.value(), arg.value_two()),
            (0, 0x7e02_0000, Some(0))
        );
        assert_eq!(plain[1].errno_ret(), Some(38));
        let admin = rules(&[Capability::SysAdmin]);
        assert!(admin.iter().all(|rule| rule.args().is_none()));
    }

    #[test]
    fn dangerous_address_families_are_left_out() {
        let profile = profile(&HashSet::new(), "amd64", (6, 1));
        let rules = profile.syscalls().clone().unwrap();
        let allowed = |family: u64| {
            rules
                .iter()
                .filter(|rule| rule.names().contains(&"socket".to_owned()))
                .any(|rule| {
                    let arg = rule.args().clone().unwrap()[0];
                    match arg.op() {
                        LinuxSeccompOperator::ScmpCmpLt => family < arg.value(),
                        LinuxSeccompOperator::ScmpCmpGt => family > arg.value(),
                        LinuxSeccompOperator::ScmpCmpEq => family == arg.value(),
                        _ => false,
                    }
                })
        };
        for family in [1, 2, 10, 16, 17, 37, 39, 41, 44] {
            assert!(allowed(family), "{family}");
        }
        assert!(!allowed(38), "AF_ALG");
        assert!(!allowed(40), "AF_VSOCK");
    }
}
