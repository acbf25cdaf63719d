//! Hooks: programs run at points of a container's life, with its state on their standard input.
//!
//! Governing text: runtime-spec config.md, "POSIX-platform Hooks".

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::failure::{CallFailed, During};
use crate::spec::Hook;
use crate::state::Record;

/// A point of the life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Deprecated; before `createRuntime`.
    Prestart,
    /// Namespaces made, root not yet pivoted; in the runtime's namespaces.
    CreateRuntime,
    /// Likewise, in the container's namespaces.
    CreateContainer,
    /// Before the process is executed; in the container.
    StartContainer,
    /// After the process is executed.
    Poststart,
    /// After the container is deleted.
    Poststop,
}

impl Point {
    /// Name in config.json.
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The state a container is in at this point.
    fn status(self) -> &'static str {
        match self {
            Self::Prestart | Self::CreateRuntime | Self::CreateContainer => "creating",
            Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("error running {} hook #{index}", .point.name())]
pub(crate) struct Error {
    point: Point,
    index: usize,
    source: Cause,
}

/// How a hook failed.
#[derive(Debug, thiserror::Error)]
enum Cause {
    /// It could not be run.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// It did not end with 0.
    #[error("{status}, stdout: {stdout}, stderr: {stderr}")]
    Status {
        status: String,
        stdout: String,
        stderr: String,
    },
    /// It did not end in time.
    #[error("hook ran past specified timeout of {0}s")]
    Timeout(u64),
}

/// The state as runtime.md "State" defines it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HookState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a std::path::Path,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
}

/// Runs hooks in order; the first failure ends it. `pid` is the init process as the hooks' pid namespace sees it.
///
/// Without an environment of its own a hook gets ours, as with runc.
pub(crate) fn run(
    point: Point,
    hooks: &[Hook],
    record: &Record,
    pid: Option<i32>,
) -> Result<(), Error> {
    run_with(None, point, hooks, record, pid)
}

/// The same where the programs are the container's: without an environment of its own a hook gets this one.
pub(crate) fn run_within(
    environment: &[CString],
    point: Point,
    hooks: &[Hook],
    record: &Record,
    pid: Option<i32>,
) -> Result<(), Error> {
    run_with(Some(environment), point, hooks, record, pid)
}

fn run_with(
    environment: Option<&[CString]>,
    point: Point,
    hooks: &[Hook],
    record: &Record,
    pid: Option<i32>,
) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    let state = HookState {
        oci_version: &record.oci_version,
        id: &record.id,
        status: point.status(),
        pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    };
    // Strings and numbers serialise without fail.
    let state = serde_json::to_vec(&state).unwrap_or_default();
    for (index, hook) in hooks.iter().enumerate() {
        log::debug!("running {} hook #{index}: {}", point.name(), hook.path);
        run_one(hook, environment, &state).map_err(|source| Error {
            point,
            index,
            source,
        })?;
    }
    Ok(())
}

/// Runs hooks in order, each one whether or not the one before failed; failures are logged. For poststop, where runtime.md
/// "Lifecycle" asks for a warning only.
pub(crate) fn run_all(point: Point, hooks: &[Hook], record: &Record, pid: Option<i32>) {
    for hook in hooks {
        if let Err(error) = run(point, std::slice::from_ref(hook), record, pid) {
            log::warn!("{}", crate::failure::chain(&error));
        }
    }
}

/// A file in memory: never full, so a hook that reads or writes nothing, or much, blocks nobody.
fn memory_file() -> Result<File, CallFailed> {
    Ok(memfd_create(c"hook", MemfdFlags::CLOEXEC)
        .during("memfd_create", "hook")?
        .into())
}

/// Runs one hook to its end.
fn run_one(hook: &Hook, environment: Option<&[CString]>, state: &[u8]) -> Result<(), Cause> {
    let mut input = memory_file()?;
    input.write_all(state).during("write", "hook")?;
    input.rewind().during("lseek", "hook")?;
    let (mut output, mut errors) = (memory_file()?, memory_file()?);
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let own = hook.env.iter().map(String::as_bytes);
    let given = environment.into_iter().flatten().map(|it| it.to_bytes());
    if !hook.env.is_empty() {
        command.env_clear().envs(own.filter_map(variable));
    } else if environment.is_some() {
        command.env_clear().envs(given.filter_map(variable));
    }
    command.stdin(input);
    command.stdout(Stdio::from(output.try_clone().during("dup", "hook")?));
    command.stderr(Stdio::from(errors.try_clone().during("dup", "hook")?));
    let mut child = command.spawn().during("fork/exec", &hook.path)?;
    let timeout = hook.timeout.and_then(|seconds| u64::try_from(seconds).ok());
    let status = wait(&mut child, timeout)?;
    if status.success() {
        return Ok(());
    }
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let core = if status.core_dumped() {
                " (core dumped)"
            } else {
                ""
            };
            format!("signal: {}{core}", crate::failure::signal_text(signal))
        }
        (None, None) => status.to_string(),
    };
    Err(Cause::Status {
        status,
        stdout: content(&mut output),
        stderr: content(&mut errors),
    })
}

/// Name and value of `NAME=value`.
fn variable(pair: &[u8]) -> Option<(&OsStr, &OsStr)> {
    let end = pair.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&pair[..end], &pair[end + 1..]);
    Some((OsStr::from_bytes(name), OsStr::from_bytes(value)))
}

/// What a hook wrote.
fn content(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is missing from an error message, no more.
    let _ = file
        .rewind()
        .and_then(|()| file.take(64 * 1024).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// Waits for the hook; kills it when its time is over.
fn wait(child: &mut Child, timeout: Option<u64>) -> Result<ExitStatus, Cause> {
    let Some(seconds) = timeout else {
        return Ok(child.wait().during("wait", "hook")?);
    };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        if let Some(status) = child.try_wait().during("wait", "hook")? {
            return Ok(status);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            child.kill().during("kill", "hook")?;
            child.wait().during("wait", "hook")?;
            return Err(Cause::Timeout(seconds));
        }
        // Without a pidfd (before Linux 5.3) look again a hundred times a second.
        let pause = if pidfd.is_some() {
            left
        } else {
            left.min(Duration::from_millis(10))
        };
        let pause = Timespec::try_from(pause).unwrap_or(Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        });
        let mut watched: Vec<PollFd<'_>> = pidfd
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        // An interrupted wait is followed by another look.
        let _ = poll(&mut watched, Some(&pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook {
            path: "/bin/sh".into(),
            args,
            env: vec!["WHERE=here".into()],
            timeout,
        }
    }

    fn record() -> Record {
        Record {
            id: "c1".into(),
            bundle: "/b".into(),
            ..Record::default()
        }
    }

    #[test]
    fn gets_state_arguments_and_environment() {
        let script = r#"grep -q '"id":"c1","status":"creating","pid":7,"bundle":"/b"' && [ "$WHERE" = here ]"#;
        run(Point::Prestart, &[shell(script, None)], &record(), Some(7)).unwrap();
    }

    #[test]
    fn the_callers_environment_stays_out_of_the_container() {
        let mut hook = shell(r#"[ -z "$CARGO_PKG_NAME" ]"#, None);
        hook.env.clear();
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
        let run_inside = |hook: &Hook, environment: &[CString]| {
            let hooks = std::slice::from_ref(hook);
            run_within(environment, Point::StartContainer, hooks, &record(), None)
        };
        run_inside(&hook, &[]).unwrap();
        assert!(run_inside(&hook, &[c"CARGO_PKG_NAME=x".into()]).is_err());
        assert!(run(Point::Prestart, &[hook], &record(), None).is_err());
    }

    #[test]
    fn failure_is_told_with_what_it_wrote() {
        let error = run(
            Point::CreateRuntime,
            &[shell("echo out; echo err >&2; exit 3", None)],
            &record(),
            None,
        );
        assert_eq!(
            crate::failure::chain(&error.unwrap_err()),
            "error running createRuntime hook #0: exit status 3, stdout: out, stderr: err"
        );
    }

    #[test]
    fn a_signal_is_told_by_name() {
        let error = run(
            Point::Poststop,
            &[shell("kill -31 $$", None)],
            &record(),
            None,
        )
        .unwrap_err();
        let text = crate::failure::chain(&error);
        assert!(text.contains("hook #0: signal: bad system call"), "{text}");
    }

    #[test]
    fn is_killed_when_its_time_is_over() {
        let begin = Instant::now();
        let error = run(
            Point::Poststop,
            &[shell("exec sleep 60", Some(1))],
            &record(),
            None,
        )
        .unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(20));
        assert!(crate::failure::chain(&error).ends_with("hook ran past specified timeout of 1s"));
    }
}
