//! `qrun`: a low-level OCI runtime with runc's command line.
//!
//! It turns a bundle (a directory with `config.json` and a root file system) into processes, and knows nothing of images,
//! networks or logs. A command goes through three steps: typed flags ([`cli`], [`cmd`]), a plan that is complete and
//! checked ([`plan`]), and effects ([`setup`], [`rootfs`], [`cgroup`], …). `docs/architecture.md` has the drawing.

mod capability;
mod cgroup;
mod checkpoint;
mod cli;
mod clock;
mod cmd;
mod console;
mod container;
mod failure;
mod help;
mod hook;
mod logging;
mod mountinfo;
mod namespace;
mod netlink;
mod network_device;
mod plan;
mod procfs;
mod program;
mod readiness;
mod resctrl;
mod rootfs;
mod rootless;
mod seccomp;
mod seccomp_agent;
mod self_image;
mod setup;
mod spec;
mod state;
mod supervise;
mod sys;
mod told;

use std::process::ExitCode;

/// Tests run in threads, for which the bump allocator is not made.
#[cfg(not(test))]
#[global_allocator]
static ALLOCATOR: sys::alloc::BumpAllocator = sys::alloc::BumpAllocator::new();

fn main() -> ExitCode {
    self_image::protect_early();
    let arguments = match cli::arguments(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return report(&error.into(), 1),
    };
    let line = match cli::parse_line(&arguments) {
        Ok(line) => line,
        Err(error) => {
            let failed = cmd::misuse(error, None);
            return report(&failed.error, failed.code);
        }
    };
    if let Err(error) = logging::start(&line.global) {
        return report(&error.into(), 1);
    }
    match cmd::run(line) {
        Ok(code) => ExitCode::from(code),
        Err(failed) => report(&failed.error, failed.code),
    }
}

/// Tells of a failure on standard error and in the log, and gives the exit code for it.
fn report(error: &anyhow::Error, code: u8) -> ExitCode {
    logging::fatal(&failure::chain(error.as_ref()));
    ExitCode::from(code)
}
