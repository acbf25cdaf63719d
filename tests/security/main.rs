//! The attacks of the past, each tried on `qrun` as its attacker would.
//!
//! One test a vulnerability of runc, crun, youki and their kin, named after it. Where an attack has to be quick the test
//! is, for a bounded number of rounds, and shows that it was; where it has to reach something, the test shows that it got
//! there; and something of the host's is watched all the time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod defaults;
mod descriptors;
mod fixture;
mod identity;
mod mounts;
mod procfs;
mod races;
mod state;

/// Says whether a test is run in the virtual machine too, which is slow: what depends on the cgroup version, the rights that
/// the host may withhold, or what its kernel has below `/proc`.
fn in_machine(name: &str) -> bool {
    let modules = ["defaults::", "procfs::"];
    !stack_tests::needs::in_systemd_vm() && modules.iter().any(|module| name.starts_with(module))
}

fn main() -> std::process::ExitCode {
    let modules = [
        defaults::tests(),
        descriptors::tests(),
        identity::tests(),
        mounts::tests(),
        procfs::tests(),
        races::tests(),
        state::tests(),
    ];
    stack_tests::needs::main(modules.into_iter().flatten().collect(), in_machine)
}
