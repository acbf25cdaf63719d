//! containerd's shim v2 interface, as `containerd-shim-qrun-v2`: the runtime `io.containerd.qrun.v2`.
//!
//! containerd runs the program with `start`; that leaves a server behind, one for all containers of a pod, and prints its
//! socket's address. Everything after is calls over that socket ([`ttrpc`], [`task`]). When the server is gone containerd
//! runs the program with `delete`.

mod call;
mod container;
mod event;
mod job;
mod logger;
mod message;
mod mounts;
mod options;
mod output;
mod pump;
mod server;
mod start;
mod stats;
mod stream;
mod task;
mod token;
mod ttrpc;
mod uri;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use crate::error::Error;
use start::Arguments;

/// First argument of the helper start that arranges a logger's descriptors.
const LOGGER: &str = "--logger";

/// Runs as containerd would have it, with the process's arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode, Error> {
    if arguments.get(1).is_some_and(|word| word == LOGGER) {
        return Err(become_logger(&arguments[2..]));
    }
    let mut parsed = Arguments::default();
    let mut words = arguments.iter().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        let Some(option) = word.strip_prefix('-') else {
            return act(&word, &parsed);
        };
        let option = option.strip_prefix('-').unwrap_or(option);
        let (name, inline) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (option, None),
        };
        match name {
            "debug" => {
                parsed.debug = inline.is_none_or(|value| value == "true");
                continue;
            }
            "v" | "version" => return start::print(&version()),
            "info" => return start::info(),
            "h" | "help" => return start::print(HELP.as_bytes()),
            _ => {}
        }
        let value = inline
            .or_else(|| words.next().map(|word| word.to_string_lossy().into_owned()))
            .ok_or_else(|| Error::Usage(format!("option -{name} needs a value")))?;
        match name {
            "id" => parsed.id = value,
            "namespace" => parsed.namespace = value,
            "address" => parsed.address = value,
            "bundle" => parsed.bundle = Some(value.into()),
            "socket" => parsed.socket = Some(value.into()),
            // Events go to the ttrpc socket.
            "publish-binary" | "debug-socket" => {}
            _ => return Err(Error::Usage(format!("unknown option -{name}"))),
        }
    }
    Err(Error::Usage(
        "nothing to do: containerd starts this program; see --help".into(),
    ))
}

const HELP: &str = "\
containerd-shim-qrun-v2 [OPTIONS] start|delete

containerd starts this program, for containers whose runtime is io.containerd.qrun.v2.

  -namespace NAME       containerd's namespace
  -id ID                container
  -address PATH         containerd's socket
  -bundle PATH          bundle, with delete
  -debug                tell more
  -info                 tell what the runtime can do, as a protobuf message
  -v                    version
";

fn act(action: &str, arguments: &Arguments) -> Result<ExitCode, Error> {
    for (value, name) in [(&arguments.namespace, "namespace"), (&arguments.id, "id")] {
        if value.is_empty() || value.contains('/') || value == ".." {
            return Err(Error::Usage(format!("-{name} {value:?} is not usable")));
        }
    }
    match action {
        "start" => start::start(arguments),
        "delete" => start::delete(arguments),
        "serve" => start::serve(arguments),
        other => Err(Error::Usage(format!("unknown action {other}"))),
    }
}

fn version() -> Vec<u8> {
    format!(
        "containerd-shim-qrun-v2:\n  Version:  {}\n",
        env!("CARGO_PKG_VERSION")
    )
    .into_bytes()
}

/// Becomes the logger `words`: what came as the three standard streams is where containerd's loggers expect it, from
/// descriptor 3 on. Returns only when that fails.
fn become_logger(words: &[OsString]) -> Error {
    let Some((program, arguments)) = words.split_first() else {
        return Error::Usage(format!("{LOGGER} needs a program"));
    };
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    let mut kept = Vec::new();
    for stream in streams {
        // Nothing else is open here: the numbers are 3, 4 and 5. They survive the exec.
        match rustix::io::fcntl_dupfd_cloexec(stream.as_fd(), 3)
            .and_then(|fd| rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map(|()| fd))
        {
            Ok(fd) => kept.push(fd),
            Err(errno) => return Error::call("arrange the logger's descriptors")(errno),
        }
    }
    let error = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .exec();
    Error::path("execute", std::path::Path::new(program))(error)
}
