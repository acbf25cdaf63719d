//! A further process in a running container.
//!
//! Without a terminal the runtime itself is the process in the foreground: it has our own streams and its exit code is
//! the answer, so no monitor is needed. With a terminal a monitor of its own holds the pty, so that the detach keys can
//! leave the process running.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use super::attach::{Connection, connect_in};
use super::find::Handle;
use super::live::Live;
use super::model::Status;
use super::{Error, Programs, Result, SystemContext, create, monitor};
use crate::store::{Store, make_dir};

/// What to run, and how.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Allocate a pseudo-terminal.
    pub tty: bool,
    /// Pass standard input on.
    pub interactive: bool,
    /// Do not wait for it.
    pub detach: bool,
    /// `KEY=VALUE` entries beyond the container's own.
    pub env: Vec<String>,
    /// Working directory; the container's when absent.
    pub workdir: Option<String>,
    /// `user[:group]`; the container's when absent.
    pub user: Option<String>,
    /// All capabilities.
    pub privileged: bool,
}

/// Runs the command on our own streams, or on none with [`Options::detach`]. Returns its exit code.
///
/// # Errors
/// When the container does not run, or the command can't be started: [`Error::Runtime`] with 126 or 127.
pub fn run(store: &Store, programs: &Programs, handle: &Handle, options: &Options) -> Result<i32> {
    let process = process(store, handle, options)?;
    let told = Told::begin(store, handle, options)?;
    let spec = memory_file("process", &serde_json::to_vec(&process).unwrap_or_default())?;
    let log = memory_file("log", b"")?;
    let program = monitor::runtime(programs, handle);
    let mut command = Command::new(&program);
    command
        .arg("--root")
        .arg(store.runtime_root())
        .arg("--log")
        .arg(path_of(&log))
        .args(["--log-format", "json", "exec"]);
    if options.detach {
        command
            .arg("--detach")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    } else {
        // What the runtime itself has to say is in its log.
        command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    }
    command.stdin(if options.interactive && !options.detach {
        Stdio::inherit()
    } else {
        Stdio::null()
    });
    command
        .arg("--process")
        .arg(path_of(&spec))
        .arg(handle.id());
    let status = command
        .status()
        .map_err(|source| Error::Program { program, source })?;
    if !status.success()
        && let Some(message) = last_error(log)
    {
        let error = monitor::refused(message);
        return match error {
            // The runtime shares our standard error with the process: it has told the user already.
            Error::Runtime { exit_code, .. } if !options.detach => {
                told.end(store, handle, i32::from(exit_code));
                Ok(i32::from(exit_code))
            }
            error => Err(error),
        };
    }
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if !options.detach {
        told.end(store, handle, code);
    }
    Ok(code)
}

/// The events of one command: its making, its start, its end.
#[derive(Debug)]
struct Told {
    id: String,
}

impl Told {
    fn begin(store: &Store, handle: &Handle, options: &Options) -> Result<Told> {
        let id = create::new_id()?;
        let command = options.command.join(" ");
        for action in ["exec_create", "exec_start"] {
            let event = handle.event(format!("{action}: {command}"));
            store.emit(&event.with("execID", &id));
        }
        Ok(Told { id })
    }

    fn end(&self, store: &Store, handle: &Handle, code: i32) {
        let event = handle
            .event("exec_die")
            .with("execID", &self.id)
            .with("exitCode", code.to_string());
        store.emit(&event);
    }
}

/// A process on a terminal of its own, under a monitor of its own.
#[derive(Debug)]
pub struct Session {
    /// Its streams.
    pub connection: Connection,
    directory: PathBuf,
    pipe: monitor::SyncPipe,
    id: String,
    told: Told,
}

impl Session {
    /// Where window sizes are sent, see [`super::attach::resize`].
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.directory.join("ctl")
    }

    /// Waits for the exit code, after the streams have closed.
    ///
    /// # Errors
    /// When the monitor dies without a word.
    pub fn exit_code(self, store: &Store, handle: &Handle) -> Result<i32> {
        let result = self.pipe.number(&self.id);
        // The monitor's sockets and pid file. A detached session's go with the container's own.
        drop(std::fs::remove_dir_all(&self.directory));
        let (code, _, _) = result?;
        let code = i32::try_from(code).unwrap_or(255);
        self.told.end(store, handle, code);
        Ok(code)
    }
}

/// Starts the command on a terminal.
///
/// # Errors
/// As [`run`].
pub fn session(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    options: &Options,
) -> Result<Session> {
    let process = process(store, handle, options)?;
    let told = Told::begin(store, handle, options)?;
    // Below the container's own, with which it goes at the latest.
    let unique = format!("exec-{}", &create::new_id()?[..12]);
    let directory = handle.bundle(store).join(&unique);
    make_dir(&directory)?;
    match start_session(store, programs, handle, options, &process, &unique) {
        Ok((connection, pipe)) => Ok(Session {
            connection,
            directory,
            pipe,
            id: unique,
            told,
        }),
        Err(error) => {
            drop(std::fs::remove_dir_all(&directory));
            Err(error)
        }
    }
}

fn start_session(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    options: &Options,
    process: &Value,
    unique: &str,
) -> Result<(Connection, monitor::SyncPipe)> {
    let directory = handle.bundle(store).join(unique);
    let spec = directory.join("process.json");
    std::fs::write(&spec, serde_json::to_vec(process).unwrap_or_default())
        .system("write", &spec)?;
    // Its sockets are its own, so its own directory takes the bundle's place.
    let mut command = monitor::common(store, programs, handle, unique, &directory);
    command
        .args(["--exec", "--exec-attach", "--terminal"])
        .arg("--exec-process-spec")
        .arg(&spec)
        .arg("--container-pidfile")
        .arg(directory.join("pidfile"))
        .args(["--log-path", "none"]);
    if options.interactive {
        command.arg("--stdin");
    }
    let (attach_read, attach_write) =
        pipe_with(PipeFlags::CLOEXEC).system("make", "attach pipe")?;
    let (start_read, start_write) = pipe_with(PipeFlags::CLOEXEC).system("make", "start pipe")?;
    let extra: [(&str, &OwnedFd); 2] = [
        ("_OCI_ATTACHPIPE", &attach_write),
        ("_OCI_STARTPIPE", &start_read),
    ];
    let (_, pipe) = monitor::spawn(&mut command, programs, &extra)?;
    drop((attach_write, start_read));
    // The first message lets the monitor begin, the second, when we are connected, the process: so no output comes
    // before us.
    let mut start = File::from(start_write);
    start.write_all(b"\n").system("write", "start pipe")?;
    if !wait_for_line(attach_read) {
        let (_, message, _) = pipe.number(unique)?;
        return Err(monitor::refused(message.unwrap_or_default()));
    }
    let connection = connect_in(&directory)?;
    start.write_all(b"\n").system("write", "start pipe")?;
    let (pid, message, pipe) = pipe.number(unique)?;
    if pid < 0 {
        return Err(monitor::refused(message.unwrap_or_default()));
    }
    Ok((connection, pipe))
}

fn wait_for_line(pipe: OwnedFd) -> bool {
    let mut byte = [0u8; 1];
    File::from(pipe)
        .read(&mut byte)
        .is_ok_and(|count| count > 0)
}

/// The process object: the container's own with the differences asked for.
fn process(store: &Store, handle: &Handle, options: &Options) -> Result<Value> {
    let (state, live) = handle.live(store)?;
    if live == Live::Paused {
        return Err(Error::WrongStatus {
            id: handle.name().to_owned(),
            status: "paused".to_owned(),
            action: "execute a command in it; unpause it first",
        });
    }
    if live == Live::Restarting {
        return Err(Error::WrongStatus {
            id: handle.name().to_owned(),
            status: live.word().to_owned(),
            action: "execute a command in it; wait until it runs",
        });
    }
    if live != Live::Running || state.status != Status::Running {
        return Err(Error::WrongStatus {
            id: handle.name().to_owned(),
            status: live.word().to_owned(),
            action: "execute a command in it; it has to run",
        });
    }
    let path = handle.bundle(store).join("config.json");
    let mut spec: Value = crate::store::read_json(&path)?.unwrap_or_default();
    let mut process = spec["process"].take();
    process["args"] = json!(options.command);
    // Detached, it has nobody who could hold a terminal.
    process["terminal"] = json!(options.tty && !options.detach);
    if let Some(workdir) = &options.workdir {
        process["cwd"] = json!(workdir);
    }
    add_environment(&mut process, options);
    if let Some(user) = &options.user {
        let user = bundle_tools::user::resolve_in(&handle.merged(), user)
            .map_err(|error| Error::Invalid(format!("unable to find user {user}: {error}")))?;
        process["user"] =
            json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids});
        set_variable(&mut process, "HOME", &user.home);
        // Root has what the container has; anybody else has nothing of it, whoever the container's own process is.
        let held = match user.uid {
            0 => process["capabilities"]["bounding"].clone(),
            _ => json!([]),
        };
        process["capabilities"]["effective"] = held.clone();
        process["capabilities"]["permitted"] = held;
    }
    if options.privileged {
        let all = json!(super::bundle::every_capability()?);
        for set in ["bounding", "effective", "permitted"] {
            process["capabilities"][set] = all.clone();
        }
    }
    Ok(process)
}

fn add_environment(process: &mut Value, options: &Options) {
    if options.tty {
        set_variable(process, "TERM", "xterm");
    }
    for entry in &options.env {
        if let Some((name, value)) = entry.split_once('=') {
            set_variable(process, name, value);
        }
    }
}

fn set_variable(process: &mut Value, name: &str, value: &str) {
    let Some(list) = process["env"].as_array_mut() else {
        process["env"] = json!([format!("{name}={value}")]);
        return;
    };
    let prefix = format!("{name}=");
    list.retain(|entry| {
        !entry
            .as_str()
            .is_some_and(|entry| entry.starts_with(&prefix))
    });
    list.push(json!(format!("{name}={value}")));
}

/// A file without a name, so that nothing is left of it whatever happens; inherited by the next program.
fn memory_file(name: &str, content: &[u8]) -> Result<File> {
    let descriptor = memfd_create(name, MemfdFlags::empty()).system("make memory file", name)?;
    fcntl_setfd(descriptor.as_fd(), FdFlags::empty()).system("pass on", name)?;
    let mut file = File::from(descriptor);
    file.write_all(content)
        .and_then(|()| file.rewind())
        .system("write memory file", name)?;
    Ok(file)
}

fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The last error in a runtime's JSON log.
fn last_error(mut log: File) -> Option<String> {
    let mut text = String::new();
    log.rewind().ok()?;
    log.read_to_string(&mut text).ok()?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|entry| entry["level"] == "error")
        .filter_map(|entry| entry["msg"].as_str().map(str::to_owned))
        .next_back()
}
