//! Programs under ptrace(2).

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Starts a command, traced from before its `execve(2)` on, with nothing on standard input and no output but `errors`.
///
/// # Errors
/// When it cannot be started or traced.
pub fn start(
    command: &[impl AsRef<OsStr>],
    errors: Stdio,
    options: Options,
) -> anyhow::Result<Pid> {
    // Stops itself to be seized, then becomes the command.
    let child = Command::new("/bin/sh")
        .args(["-c", "kill -STOP $$; exec \"$@\"", "sh"])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .context("start /bin/sh")?;
    let main = Pid::from_raw(i32::try_from(child.id())?);
    match waitpid(main, Some(WaitPidFlag::WUNTRACED))? {
        WaitStatus::Stopped(..) => {}
        other => bail!("did not stop: {other:?}"),
    }
    ptrace::seize(main, options).context("seize")?;
    kill(main, Signal::SIGCONT)?;
    Ok(main)
}
