//! `qshim`: the process that stays with a container.
//!
//! One small monitor a container (or exec session). It starts the OCI runtime,
//! owns the container's standard streams, writes the log, serves attach clients,
//! waits for the end, records the exit code durably and runs the exit command.
//! It depends on nobody: whatever started it may end or be killed.
//!
//! A run, in the order of the code: a front end ([`frontend`]) turns the
//! command line into a [`plan`]; [`monitor`] carries it out in one epoll loop
//! without threads; [`exit`] publishes the result. Under the name `init` it is
//! something else: a container's first process ([`init`]).

mod attach;
mod console;
mod control;
mod diag;
mod error;
mod exit;
mod frontend;
mod inherited;
mod init;
mod log;
#[expect(
    unsafe_code,
    reason = "the one thing the shim does that has no safe wrapper"
)]
mod memory;
mod monitor;
mod notify;
mod oom;
mod plan;
mod poller;
mod process;
mod socket;
mod stdio;

use std::ffi::OsString;
use std::process::ExitCode;

/// `qshim`, and a container's `init`.
#[must_use]
pub fn conmon_main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if init::is_wanted(&arguments) {
        return init::run(&arguments);
    }
    // First of all, before anything here opens a descriptor of its own.
    let inherited = inherited::Inherited::list();
    if arguments.get(1).is_some_and(|word| word == process::LAUNCH) {
        let error = process::launch(&arguments[2..]);
        diag::error!("{}", error.chain());
        return ExitCode::from(127);
    }
    process::take_name(arguments.first());
    frontend::conmon::run(inherited, arguments).unwrap_or_else(|error| {
        diag::error!("{}", error.chain());
        ExitCode::FAILURE
    })
}

/// `containerd-shim-qrun-v2`.
#[must_use]
pub fn containerd_main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    process::take_name(arguments.first());
    frontend::containerd::run(&arguments).unwrap_or_else(|error| {
        diag::error!("{}", error.chain());
        ExitCode::FAILURE
    })
}
