//! The end-to-end tests: the built programs, driven from outside, on the real kernel.
//!
//! One module a subject, and `../../cases/` with one case a line. A test is a function that
//! panics; what it needs of the machine is declared beside it and decides whether it is skipped.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod apparmor;
mod archives;
mod build;
mod bundles;
mod cgroups;
mod checkpoint;
mod containerd;
mod copy;
mod differential;
mod dockerd;
mod errors;
mod events;
mod faults;
mod format;
mod journey;
mod kernels;
mod killed;
mod life;
mod lifecycle;
mod limits;
mod monitor;
mod mounts;
mod names;
mod nested;
mod networks;
mod peers;
mod podman;
mod portmap;
mod ports;
mod process;
mod process_agents;
mod pull;
mod push;
mod restart;
mod rootless;
mod sessions;
mod system;
mod systemd;
mod terminal;
mod volumes;

/// Says whether a test is run in the virtual machine too, which is slow: what depends on the cgroup
/// version, or on rights that the host may withhold.
fn in_machine(name: &str) -> bool {
    if stack_tests::needs::in_systemd_vm() {
        return name.starts_with("systemd");
    }
    let modules = [
        "lifecycle::",
        "process",
        "limits",
        "cgroups",
        "terminal::run",
        "terminal::exec",
        "kernels::",
        "mounts::",
        "rootless::",
        "nested::",
        // What depends on the kind of cgroup, and on a kernel that tracks memory: all of them take four minutes there.
        "checkpoint::goes_on",
        "checkpoint::in_every_cgroup_mode",
        "checkpoint::pre_dumps",
    ];
    let resources = [" -m ", "cpu", "oom_kill", "-mmem"];
    let tables = ["a:", "b:", "d:", "e:"];
    modules.iter().any(|module| name.starts_with(module))
        || tables.iter().any(|table| name.starts_with(table))
            && resources.iter().any(|flag| name.contains(flag))
}

fn main() -> std::process::ExitCode {
    let modules = [
        apparmor::tests(),
        archives::tests(),
        build::tests(),
        bundles::tests(),
        cgroups::tests(),
        checkpoint::tests(),
        containerd::tests(),
        copy::tests(),
        differential::tests(),
        dockerd::tests(),
        errors::tests(),
        events::tests(),
        faults::tests(),
        format::tests(),
        journey::tests(),
        kernels::tests(),
        killed::tests(),
        life::tests(),
        lifecycle::tests(),
        limits::tests(),
        monitor::tests(),
        mounts::tests(),
        names::tests(),
        nested::tests(),
        networks::tests(),
        peers::tests(),
        podman::tests(),
        portmap::tests(),
        ports::tests(),
        process::tests(),
        process_agents::tests(),
        pull::tests(),
        system::tests(),
        systemd::tests(),
        push::tests(),
        restart::tests(),
        rootless::tests(),
        sessions::tests(),
        terminal::tests(),
        volumes::tests(),
        stack_tests::case::table("a", include_str!("../../cases/a.txt")),
        stack_tests::case::table("b", include_str!("../../cases/b.txt")),
        stack_tests::case::table("c", include_str!("../../cases/c.txt")),
        stack_tests::case::table("d", include_str!("../../cases/d.txt")),
        stack_tests::case::table("e", include_str!("../../cases/e.txt")),
        stack_tests::case::table("flags", include_str!("../../cases/flags.txt")),
    ];
    stack_tests::needs::main(modules.into_iter().flatten().collect(), in_machine)
}
