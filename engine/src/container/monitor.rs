//! Starting the monitor, and talking to it: conmon's protocol.
//!
//! The engine starts `qshim` with a pipe named in `_OCI_SYNCPIPE`. The monitor runs `qrun create` and answers with one
//! JSON line: `{"data": PID}`, or a negative number and the runtime's message. From then on it needs nobody.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::Deserialize;

use super::find::Handle;
use super::log::driver::{self, Driver};
use super::model::Process;
use super::{Error, Programs, Result, SystemContext};
use crate::store::{Durability, Store, write_atomic};

#[derive(Deserialize)]
struct Answer {
    data: i64,
    #[serde(default)]
    message: Option<String>,
}

/// The runtime that this container uses.
pub(super) fn runtime(programs: &Programs, handle: &Handle) -> PathBuf {
    handle
        .config
        .options
        .runtime
        .as_ref()
        .map_or_else(|| programs.runtime.clone(), PathBuf::from)
}

/// Starts the monitor of a container whose bundle is ready, and waits until the runtime has created it: the container's
/// init, waiting for `start`. `on_start` is told of the monitor as soon as there is one.
pub(super) fn create(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    on_start: impl FnOnce(Option<Process>) -> Result<()>,
) -> Result<Process> {
    let id = handle.id();
    let options = &handle.config.options;
    let run = store.container_run(id);
    let mut command = common(store, programs, handle, id, &run);
    command
        .arg("--container-pidfile")
        .arg(run.join("pidfile"))
        .arg("--conmon-pidfile")
        .arg(run.join("conmon.pid"))
        .arg("--exit-dir")
        .arg(store.exits())
        // Under the run directory, which ends with the host's uptime: the record that lasts is the engine's own.
        .arg("--no-sync");
    command.args(driver::arguments(handle));
    let labels = driver::labels(handle);
    if !labels.is_empty() {
        // Values of the container's environment may be among them; everybody can read a command line.
        let file = run.join("log-labels");
        write_atomic(&file, labels.as_bytes(), Durability::Volatile)?;
        command.arg("--log-label-file").arg(file);
    }
    if Driver::of(handle) == Driver::Passthrough {
        // The container's streams are those of whoever starts it.
        command
            .stdin(Stdio::inherit())
            .stdout(Stdio::inherit())
            .stderr(Stdio::inherit());
    }
    if options.tty {
        command.arg("--terminal");
    }
    if options.interactive {
        command.arg("--stdin");
        if !options.stdin_once {
            command.arg("--leave-stdin-open");
        }
    }
    command.arg("--exit-command").arg(&programs.engine);
    for argument in &programs.engine_arguments {
        command.arg("--exit-command-arg").arg(argument);
    }
    command
        .args(["--exit-command-arg", "cleanup"])
        .args(["--exit-command-arg", id]);
    let (child, answer) = spawn(&mut command, programs, &[])?;
    on_start(i32::try_from(child).ok().and_then(Process::remember))?;
    let (answer, _) = answer.read(id)?;
    if answer.data <= 0 {
        return Err(refused(answer.message.unwrap_or_default()));
    }
    i32::try_from(answer.data)
        .ok()
        .and_then(Process::remember)
        .ok_or_else(|| Error::MonitorLost { id: id.to_owned() })
}

/// What every monitor is told: which container, which runtime, where its sockets go.
pub(super) fn common(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    unique: &str,
    sockets: &Path,
) -> Command {
    let mut command = Command::new(&programs.shim);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .args(["--api-version", "1", "--no-daemon", "--full-attach"])
        .args(["--cid", handle.id(), "--cuuid", unique])
        .args(["--name", handle.name()])
        .arg("--runtime")
        .arg(runtime(programs, handle))
        .arg("--runtime-arg")
        .arg(prefixed("--root=", store.runtime_root()))
        .arg("--bundle")
        .arg(sockets);
    command
}

fn prefixed(prefix: &str, path: PathBuf) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// The reading end of the sync pipe.
#[derive(Debug)]
pub(super) struct SyncPipe(BufReader<File>);

impl SyncPipe {
    /// Waits for the monitor's next message.
    fn read(mut self, id: &str) -> Result<(Answer, SyncPipe)> {
        let mut line = String::new();
        self.0
            .read_line(&mut line)
            .system("read the monitor's answer from", "sync pipe")?;
        let answer =
            serde_json::from_str(&line).map_err(|_| Error::MonitorLost { id: id.to_owned() })?;
        Ok((answer, self))
    }

    /// Waits for the next number: a pid, or an exit code.
    pub(super) fn number(self, id: &str) -> Result<(i64, Option<String>, SyncPipe)> {
        let (answer, pipe) = self.read(id)?;
        Ok((answer.data, answer.message, pipe))
    }
}

/// Starts a monitor. `extra` are environment variables naming descriptors that it is to inherit.
pub(super) fn spawn(
    command: &mut Command,
    programs: &Programs,
    extra: &[(&str, &OwnedFd)],
) -> Result<(u32, SyncPipe)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).system("make", "sync pipe")?;
    inherit(&write)?;
    command.env("_OCI_SYNCPIPE", write.as_raw_fd().to_string());
    for (name, descriptor) in extra {
        inherit(descriptor)?;
        command.env(name, descriptor.as_raw_fd().to_string());
    }
    let child = command.spawn().map_err(|source| Error::Program {
        program: programs.shim.clone(),
        source,
    })?;
    Ok((child.id(), SyncPipe(BufReader::new(File::from(read)))))
}

/// Lets the next program started have this descriptor. Nothing else is started meanwhile: the engine has one thread
/// here.
fn inherit(descriptor: &OwnedFd) -> Result<()> {
    fcntl_setfd(descriptor.as_fd(), FdFlags::empty()).system("pass on", "descriptor")
}

/// Turns the runtime's message into an error with docker's exit code for it.
pub(super) fn refused(message: String) -> Error {
    let message = plain(message.trim());
    let lower = message.to_lowercase();
    let exit_code = if lower.contains("executable file not found")
        || lower.contains("no such file or directory")
            && (lower.contains("exec") || lower.contains("start"))
    {
        127
    } else if lower.contains("permission denied")
        || lower.contains("exec format error")
        || lower.contains("is a directory")
    {
        126
    } else {
        125
    };
    Error::Runtime {
        message: if message.is_empty() {
            "the runtime failed without a word".to_owned()
        } else {
            message
        },
        exit_code,
    }
}

/// Takes the text out of a log line in logrus' form, `time="…" level=error msg="…"`, which is how runc and its like
/// complain. Anything else stays as it is; of several lines the last one counts.
fn plain(message: &str) -> String {
    let line = message.lines().last().unwrap_or_default();
    let Some((_, quoted)) = line.split_once(" msg=\"") else {
        return message.to_owned();
    };
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next() {
                Some('n') => text.push('\n'),
                Some(escaped) => text.push(escaped),
                None => {}
            },
            other => text.push(other),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtimes_words_are_taken_out_of_its_log_line() {
        let line = r#"time="2026-01-01T00:00:00Z" level=error msg="exec: \"nosuch\": executable file not found in $PATH""#;
        let error = refused(line.to_owned());
        assert_eq!(
            error.to_string(),
            r#"exec: "nosuch": executable file not found in $PATH"#
        );
        assert!(matches!(error, Error::Runtime { exit_code: 127, .. }));
    }

    #[test]
    fn refusals_have_dockers_exit_codes() {
        for (message, code) in [
            ("exec: \"/etc\": permission denied", 126),
            ("exec /x: exec format error", 126),
            ("exec: \"x\": stat x: no such file or directory", 127),
            ("cannot set memory limit", 125),
            ("", 125),
        ] {
            assert!(
                matches!(refused(message.to_owned()), Error::Runtime { exit_code, .. } if exit_code == code),
                "{message}"
            );
        }
    }
}
