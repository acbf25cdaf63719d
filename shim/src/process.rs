//! Processes: starting the runtime, what exit statuses mean, pid files.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, WaitStatus};

use crate::diag;
use crate::error::Error;

/// First argument of the helper start that only rewrites LISTEN_PID.
pub(crate) const LAUNCH: &str = "--launch";

/// The program that runs.
pub(crate) const SELF: &str = "/proc/self/exe";

/// Goes by the name that it was called by: started through [`SELF`] it is `exe` in ps(1) and top(1).
pub(crate) fn take_name(program: Option<&OsString>) {
    if let Some(name) = program.and_then(|program| Path::new(program).file_name())
        && let Ok(name) = CString::new(name.as_encoded_bytes())
    {
        // A longer one is cut off. Without it all goes on.
        let _ = rustix::thread::set_name(&name);
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExitStatus(pub(crate) i32);

impl ExitStatus {
    /// The number a shell would show: 128 and the signal after a signal.
    pub(crate) fn of(status: WaitStatus) -> Option<Self> {
        status
            .exit_status()
            .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
            .map(Self)
    }
}

/// The standard streams a program is started with.
#[derive(Debug)]
pub(crate) struct Streams {
    /// `None` leaves ours in place.
    pub(crate) stdin: Option<OwnedFd>,
    /// As above.
    pub(crate) stdout: Option<OwnedFd>,
    /// As above.
    pub(crate) stderr: Option<OwnedFd>,
}

impl Streams {
    /// Streams that lead nowhere.
    pub(crate) fn null() -> Result<Self, Error> {
        Ok(Self {
            stdin: Some(crate::stdio::null()?),
            stdout: Some(crate::stdio::null()?),
            stderr: Some(crate::stdio::null()?),
        })
    }
}

/// Names of the environment that are between us and who started us.
const OURS: [&str; 3] = ["_OCI_SYNCPIPE", "_OCI_STARTPIPE", "_OCI_ATTACHPIPE"];

/// Starts the runtime.
pub(crate) fn start_runtime(
    words: &[OsString],
    streams: &Streams,
    replace_listen_pid: bool,
) -> Result<Pid, Error> {
    let runtime = words
        .first()
        .ok_or_else(|| Error::Usage("--runtime is missing".into()))?;
    let failed = Error::path("start runtime", Path::new(runtime));
    let environment = std::env::vars_os().filter(|(name, _)| !OURS.iter().any(|ours| name == ours));
    if must_rewrite_listen_pid(replace_listen_pid) {
        let mut launch: Vec<OsString> = vec![SELF.into(), LAUNCH.into()];
        launch.extend_from_slice(words);
        return spawn(&launch, streams, environment).map_err(failed);
    }
    spawn(words, streams, environment).map_err(failed)
}

/// Starts a program, found as a shell finds it, with no signal blocked: a mask is inherited, and ours blocks what we take
/// from the signalfd. Here all stays blocked meanwhile, as the new process alone changes its mask: `posix_spawn(3)`.
pub(crate) fn spawn(
    words: &[OsString],
    streams: &Streams,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> std::io::Result<Pid> {
    let words: Vec<CString> = words.iter().map(terminated).collect::<Result<_, _>>()?;
    let program = words.first().ok_or(Errno::NOENT)?;
    let environment: Vec<CString> = environment
        .map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            terminated(&entry)
        })
        .collect::<Result<_, _>>()?;
    let mut actions = PosixSpawnFileActions::init()?;
    for (stream, number) in [&streams.stdin, &streams.stdout, &streams.stderr]
        .into_iter()
        .zip(0..)
    {
        if let Some(fd) = stream {
            actions.add_dup2(fd.as_raw_fd(), number)?;
        }
    }
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    // The standard library ignores it in every Rust program.
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    let pid = posix_spawnp(program, &actions, &attributes, &words, &environment)?;
    Ok(Pid::from_raw(pid.as_raw()).ok_or(Errno::CHILD)?)
}

fn terminated(word: &OsString) -> std::io::Result<CString> {
    Ok(CString::new(word.as_bytes())?)
}

/// Whether socket activation (sd_listen_fds(3)) was meant for us and has to be
/// passed on: the pid in LISTEN_PID must be the receiver's.
fn must_rewrite_listen_pid(always: bool) -> bool {
    std::env::var_os("LISTEN_PID").is_some_and(|value| {
        let ours = rustix::process::getpid().as_raw_nonzero().to_string();
        always || value.to_str() == Some(ours.as_str())
    })
}

/// Becomes the program `words`, with LISTEN_PID set to the pid it will have.
/// Returns only when that fails.
pub(crate) fn launch(words: &[OsString]) -> Error {
    let Some((program, arguments)) = words.split_first() else {
        return Error::Usage(format!("{LAUNCH} needs a program"));
    };
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_PID", std::process::id().to_string())
        .exec();
    Error::path("execute", Path::new(program))(error)
}

/// The pid of a child that was just started.
pub(crate) fn pid_of(child: &Child) -> Result<Pid, Error> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Runtime(format!("child with impossible pid {}", child.id())))
}

/// Has the kernel write no core of this process, whoever is to get it: what the container says and is told is in its
/// memory. A program that is started from here is not concerned.
pub(crate) fn dump_no_core() {
    // Fails only for values that there are not.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Leaves the caller's cgroup where that decides who is killed with the caller's session or service: in cgroup v2, alone
/// or beside v1, and in systemd's own hierarchy of v1. Where that is not allowed (in a container, say) it stays.
pub(crate) fn leave_cgroup() {
    for line in cgroups_of(rustix::process::getpid()).lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let files: &[_] = match (parts.next(), parts.next()) {
            (_, None | Some("/")) => continue,
            (Some(""), _) => &["cgroup.procs", "unified/cgroup.procs"],
            // The only thread is the process; to move it as such would wait for every fork there is.
            (Some("name=systemd"), _) => &["systemd/tasks"],
            _ => continue,
        };
        for name in files {
            let file = Path::new("/sys/fs/cgroup").join(name);
            // Never created: only one of the two that v2 may have is there.
            let joined = File::options()
                .write(true)
                .open(&file)
                .and_then(|mut file| file.write_all(b"0"));
            if let Err(error) = joined
                && error.kind() != std::io::ErrorKind::NotFound
            {
                diag::debug!("join {}: {error}", file.display());
            }
        }
    }
}

/// The cgroups of a process, as its file in `/proc` lists them; nothing if it is gone.
pub(crate) fn cgroups_of(pid: Pid) -> String {
    let path = format!("/proc/{}/cgroup", pid.as_raw_nonzero());
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Reads the pid file that a runtime wrote.
pub(crate) fn read_pidfile(path: &Path) -> Result<Pid, Error> {
    let text = std::fs::read_to_string(path).map_err(Error::path("read pid file", path))?;
    text.trim()
        .parse()
        .ok()
        // No container's process is the machine's first, and Pid takes no
        // negative number.
        .filter(|&number| number > 1)
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::Runtime(format!("pid file {}: no pid in it", path.display())))
}

/// Writes a pid file so that a reader finds all of it or none.
pub(crate) fn write_pidfile(path: &Path, pid: Pid) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let fresh = Path::new(&name);
    let write = || {
        let mut file = File::create(fresh)?;
        file.write_all(pid.as_raw_nonzero().to_string().as_bytes())?;
        std::fs::rename(fresh, path)
    };
    write().map_err(Error::path("write pid file", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_its_streams_and_no_signal_blocked_and_we_keep_ours() {
        let blocked = SigSet::from(Signal::SIGUSR1);
        blocked.thread_block().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let streams = Streams {
            stdin: Some(crate::stdio::null().unwrap()),
            stdout: Some(writer.into()),
            stderr: None,
        };
        let script = "grep ^SigBlk /proc/self/status; echo $WORD; cat";
        let words = ["sh", "-c", script].map(OsString::from);
        let environment = [("PATH", "/bin:/usr/bin"), ("WORD", "a b")];
        let environment = environment
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        let pid = spawn(&words, &streams, environment).unwrap();
        drop(streams);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        assert_eq!(text, "SigBlk:\t0000000000000000\na b\n");
        let ours = SigSet::thread_get_mask().unwrap();
        assert!(ours.contains(Signal::SIGUSR1));
        blocked.thread_unblock().unwrap();
        let missing = spawn(
            &["/no/such".into()],
            &Streams::null().unwrap(),
            std::iter::empty(),
        );
        assert_eq!(missing.unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn pid_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        assert!(read_pidfile(&path).is_err());
        write_pidfile(&path, Pid::from_raw(4321).unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"4321");
        assert_eq!(read_pidfile(&path).unwrap().as_raw_nonzero().get(), 4321);
        for bad in ["", "x", "0", "-4", "1"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read_pidfile(&path).is_err(), "{bad}");
        }
    }
}
