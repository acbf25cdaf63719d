//! The command line: how containerd starts a shim, asks it of itself, and has the remains of a dead one removed.
//!
//! Governing texts: containerd's `docs/shim.md`-family (core/runtime/v2/README.md) and `bootstrap.proto`.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use prost::Message;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{SocketType, listen};
use sha2::{Digest, Sha256};

use super::call::Runtime;
use super::message::{
    Any, BootstrapParams, DeleteResponse, RUNC_OPTIONS, RuncOptions, RuntimeInfo, RuntimeVersion,
    Timestamp,
};
use super::mounts;
use super::server::{Place, Server};
use crate::error::Error;
use crate::inherited::Inherited;
use crate::process::ExitStatus;
use crate::socket::bind_in;

/// What the options are kept in beside a bundle's config.json, for `delete`.
const OPTIONS: &str = "options.json";

/// The file that containerd 1.6 finds the socket by after a restart.
const ADDRESS: &str = "address";

/// Where sockets are unless containerd says otherwise.
const SOCKETS: &str = "/run/containerd/s";

/// Annotations that name the group of containers that one shim serves: a pod.
const GROUPS: [&str; 2] = [
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// Most that is read of what containerd sends.
const INPUT: u64 = 10 << 20;

/// What containerd passes on the command line.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) id: String,
    pub(super) namespace: String,
    pub(super) address: String,
    pub(super) bundle: Option<PathBuf>,
    pub(super) debug: bool,
    pub(super) socket: Option<PathBuf>,
}

/// Makes the socket, starts the server on it, and prints where it is. If a shim of the group runs already, its address.
pub(super) fn start(arguments: &Arguments) -> Result<ExitCode, Error> {
    let mut input = Vec::new();
    std::io::stdin()
        .take(INPUT)
        .read_to_end(&mut input)
        .map_err(Error::call("read the parameters"))?;
    let parameters = parameters(&input, arguments);
    let group = group()?.unwrap_or_else(|| arguments.id.clone());
    let directory = match parameters.socket_dir.as_str() {
        "" => PathBuf::from(SOCKETS),
        path => PathBuf::from(path),
    };
    let path = socket_path(&directory, arguments, &group);
    let address = format!("unix://{}", path.display());
    if std::os::unix::net::UnixStream::connect(&path).is_err() {
        let shim = spawn_server(arguments, &path)?;
        let prepared = prepare(shim, &parameters);
        if let Err(error) = prepared {
            let _ = rustix::process::kill_process(shim, rustix::process::Signal::KILL);
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
    }
    std::fs::write(ADDRESS, &address).map_err(Error::path("write", Path::new(ADDRESS)))?;
    // containerd 1.6 knows nothing but an address; 2.0 and later offer version 3 themselves where both can do it.
    print(&answer(
        &address,
        std::env::var_os("MAX_SHIM_VERSION").is_some(),
    ))
}

/// What `start` prints. Since 1.7 containerd says which versions it knows; what 2.x writes there is 2, and 3 is understood.
fn answer(address: &str, modern: bool) -> Vec<u8> {
    if !modern {
        return address.as_bytes().to_vec();
    }
    let answer = serde_json::json!({"version": 2, "address": address, "protocol": "ttrpc"});
    answer.to_string().into_bytes()
}

/// What came on stdin: parameters of containerd 2.3 and later, bare options of its forerunners, or nothing.
fn parameters(input: &[u8], arguments: &Arguments) -> BootstrapParams {
    let told = BootstrapParams::decode(input)
        .ok()
        .filter(|told| told.instance_id == arguments.id && told.namespace == arguments.namespace);
    told.unwrap_or_else(|| BootstrapParams {
        extensions: vec![super::message::Extension {
            value: Any::decode(input).ok(),
        }],
        ..BootstrapParams::default()
    })
}

/// The runtime's options among the parameters. What is wrong with them is told when a container is created with them.
fn options_of(parameters: &BootstrapParams) -> RuncOptions {
    let extensions = parameters.extensions.iter();
    extensions
        .filter_map(|extension| extension.value.as_ref())
        .filter(|any| !any.value.is_empty())
        .find_map(|any| super::options::read(Some(any)).ok())
        .unwrap_or_default()
}

/// The group that the bundle's annotations name.
fn group() -> Result<Option<String>, Error> {
    #[derive(serde::Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    let path = Path::new("config.json");
    let text = std::fs::read(path).map_err(Error::path("read", path))?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| Error::Usage(format!("config.json: {error}")))?;
    let annotations = spec.annotations.unwrap_or_default();
    Ok(GROUPS
        .iter()
        .find_map(|name| annotations.get(*name).cloned()))
}

/// One path for all who belong to a group, short whatever their names.
fn socket_path(directory: &Path, arguments: &Arguments, group: &str) -> PathBuf {
    let name = Path::new(&arguments.address)
        .join(&arguments.namespace)
        .join(group);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    let mut text = String::with_capacity(64);
    for byte in digest {
        text.push_str(&format!("{byte:02x}"));
    }
    directory.join(text)
}

/// Starts this program again as the server, with the listening socket as its standard input.
fn spawn_server(arguments: &Arguments, path: &Path) -> Result<rustix::process::Pid, Error> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Err(Error::Usage(format!("bad socket path {}", path.display())));
    };
    make_private(directory)?;
    let bound = bind_in(
        directory,
        name,
        SocketType::STREAM,
        Mode::from_raw_mode(0o600),
    )?;
    listen(&bound.fd, 128).map_err(Error::path("listen on", path))?;
    let (fd, keep) = (bound.fd, bound.name);
    let mut command = Command::new("/proc/self/exe");
    if let Some(program) = std::env::args_os().next() {
        command.arg0(program);
    }
    command
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id])
        .args(["-address", &arguments.address, "-socket"])
        .arg(path)
        .args(arguments.debug.then_some("-debug"))
        .arg("serve")
        .stdin(Stdio::from(fd))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let child = command
        .spawn()
        .map_err(Error::call("start the shim (/proc/self/exe)"))?;
    // The server removes the name.
    std::mem::forget(keep);
    crate::process::pid_of(&child)
}

fn make_private(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(Error::path("make directory", directory))
}

/// Puts the server where the options want it, and makes it less likely to be killed for memory than its containers.
fn prepare(shim: rustix::process::Pid, parameters: &BootstrapParams) -> Result<(), Error> {
    let number = shim.as_raw_nonzero().get();
    let cgroup = options_of(parameters).shim_cgroup;
    if !cgroup.is_empty() {
        join_cgroup(number, &cgroup)?;
    }
    let own = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let score = std::fs::read_to_string(format!("/proc/{own}/oom_score_adj"))
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .unwrap_or(0);
    // One more than containerd has: containerd is killed last. Lowering needs a right that not everybody has.
    let path = format!("/proc/{number}/oom_score_adj");
    if let Err(error) = std::fs::write(&path, (score + 1).min(1000).to_string()) {
        crate::diag::debug!("write {path}: {error}");
    }
    Ok(())
}

fn join_cgroup(pid: i32, cgroup: &str) -> Result<(), Error> {
    let root = Path::new("/sys/fs/cgroup");
    let relative = cgroup.trim_start_matches('/');
    let unified = root.join("cgroup.controllers").exists();
    let directories: Vec<PathBuf> = if unified {
        vec![root.join(relative)]
    } else {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().join(relative))
            .filter(|path| path.join("cgroup.procs").exists())
            .collect()
    };
    if directories.is_empty() {
        return Err(Error::Usage(format!(
            "shim_cgroup {cgroup}: no such cgroup"
        )));
    }
    for directory in directories {
        let file = directory.join("cgroup.procs");
        std::fs::write(&file, pid.to_string()).map_err(Error::path("join cgroup", &file))?;
    }
    Ok(())
}

/// Serves, on the socket that is the standard input.
pub(super) fn serve(arguments: &Arguments) -> Result<ExitCode, Error> {
    // What containerd was started with, and let slip, is not to stay open as long as a container.
    Inherited::list().close();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    crate::process::dump_no_core();
    let listener: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(Error::call("take the socket"))?;
    let listener = crate::stdio::nonblocking(listener)?;
    crate::stdio::disconnect()?;
    take_log();
    let level = if arguments.debug {
        crate::diag::Level::Debug
    } else {
        crate::diag::Level::Info
    };
    crate::diag::configure(level, false, &arguments.id);
    let place = Place {
        namespace: arguments.namespace.clone(),
        events: std::env::var("TTRPC_ADDRESS").ok(),
        socket: arguments.socket.clone(),
    };
    Server::new(place, listener)?.run()?;
    Ok(ExitCode::SUCCESS)
}

/// Our messages go where containerd reads: a fifo `log` in the bundle. Open for both directions, so that a containerd that
/// is away is no end of us; and never waited for.
fn take_log() {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(log) = open("log", flags, Mode::empty()) {
        let _ = rustix::stdio::dup2_stderr(&log);
    }
}

/// Removes what a shim that is gone left of a container, and tells how it ended: killed.
pub(super) fn delete(arguments: &Arguments) -> Result<ExitCode, Error> {
    let here = std::env::current_dir().map_err(Error::call("getcwd"))?;
    // The directory we are in may be another container's of the group.
    let bundle = match (&arguments.bundle, here.parent()) {
        (Some(bundle), _) => bundle.clone(),
        (None, Some(parent)) => parent.join(&arguments.id),
        (None, None) => here,
    };
    let options = std::fs::read(bundle.join(OPTIONS))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let runtime = Runtime::new(&options, &arguments.namespace, &bundle);
    let pid = crate::process::read_pidfile(&bundle.join("init.pid")).ok();
    match call(&runtime.command(["delete", "--force", arguments.id.as_str()])) {
        Ok((ExitStatus(0), _)) => {}
        Ok((status, _)) => {
            let complaint = runtime.complaint("OCI runtime delete failed", status);
            crate::diag::warning!("{complaint}");
        }
        Err(error) => crate::diag::warning!("{}", error.chain()),
    }
    mounts::unmount_all(&bundle.join("rootfs"));
    remove_socket(&bundle);
    let response = DeleteResponse {
        pid: pid
            .and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
            .unwrap_or(0),
        exit_status: 128 + 9,
        exited_at: Some(Timestamp::now()),
    };
    print(&response.encode_to_vec())
}

/// Calls the runtime and waits for its end. Returns its status and what it prints.
fn call(words: &[std::ffi::OsString]) -> Result<(ExitStatus, Vec<u8>), Error> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::Usage("no runtime".into()))?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(Error::path("run", Path::new(program)))?;
    let status = output.status.code().unwrap_or(255);
    Ok((ExitStatus(status), output.stdout))
}

/// Removes the dead shim's socket; a living one serves others of the group.
fn remove_socket(bundle: &Path) {
    let Ok(address) = std::fs::read_to_string(bundle.join(ADDRESS)) else {
        return;
    };
    if let Some(path) = address.trim().strip_prefix("unix://")
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        let _ = std::fs::remove_file(path);
    }
}

/// Prints what this shim and its runtime can do.
pub(super) fn info() -> Result<ExitCode, Error> {
    let mut input = Vec::new();
    std::io::stdin()
        .take(INPUT)
        .read_to_end(&mut input)
        .map_err(Error::call("read the options"))?;
    let told = Any::decode(&input[..]).ok();
    let options = super::options::read(told.as_ref())?;
    let runtime = Runtime::new(&options, "", Path::new("/"));
    let words = [runtime.binary().into(), "features".into()];
    let features = call(&words)
        .ok()
        .map(|(_, text)| text)
        .filter(|text| serde_json::from_slice::<serde_json::Value>(text).is_ok());
    let info = RuntimeInfo {
        name: "io.containerd.qrun.v2".into(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            revision: String::new(),
        }),
        options: (!input.is_empty()).then(|| Any::pack(RUNC_OPTIONS, &options)),
        features: features.map(|value| Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".into(),
            value,
        }),
        annotations: std::collections::HashMap::new(),
    };
    print(&info.encode_to_vec())
}

/// Keeps a container's options for `delete`, which takes the defaults where there are none.
pub(super) fn remember(bundle: &Path, options: &RuncOptions) -> Result<(), Error> {
    if *options == RuncOptions::default() {
        return Ok(());
    }
    let path = bundle.join(OPTIONS);
    let text =
        serde_json::to_vec(options).map_err(|error| Error::Usage(format!("options: {error}")))?;
    std::fs::write(&path, text).map_err(Error::path("write", &path))
}

/// Writes to standard output.
pub(super) fn print(data: &[u8]) -> Result<ExitCode, Error> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(data)
        .and_then(|()| output.flush())
        .map_err(Error::call("write the answer"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_all_times() {
        let arguments = Arguments {
            id: "c".into(),
            namespace: "n".into(),
            ..Arguments::default()
        };
        let options = RuncOptions {
            binary_name: "runc".into(),
            ..RuncOptions::default()
        };
        let any = Any::pack(RUNC_OPTIONS, &options);
        let modern = BootstrapParams {
            instance_id: "c".into(),
            namespace: "n".into(),
            extensions: vec![super::super::message::Extension {
                value: Some(any.clone()),
            }],
            socket_dir: "/run/x".into(),
        };
        let told = parameters(&modern.encode_to_vec(), &arguments);
        assert_eq!(told.socket_dir, "/run/x");
        assert_eq!(options_of(&told), options);
        let old = parameters(&any.encode_to_vec(), &arguments);
        assert_eq!(options_of(&old), options);
        assert_eq!(
            options_of(&parameters(b"", &arguments)),
            RuncOptions::default()
        );
    }

    #[test]
    fn answers_of_all_times() {
        assert_eq!(answer("unix:///a", false), b"unix:///a");
        let modern: serde_json::Value = serde_json::from_slice(&answer("unix:///a", true)).unwrap();
        assert_eq!(modern["address"], "unix:///a");
        assert_eq!(modern["protocol"], "ttrpc");
    }
}
