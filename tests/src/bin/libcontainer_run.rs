//! A runtime that is youki's `libcontainer` and nothing else, for `differential` to compare `qrun`
//! with. It knows as much of runc's command line as that needs:
//!
//! ```text
//! libcontainer-run --root DIR create --bundle DIR --pid-file FILE [--console-socket PATH] ID
//! libcontainer-run --root DIR start ID
//! libcontainer-run --root DIR delete --force ID
//! ```

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

/// What the command line said.
#[derive(Default)]
struct Line {
    root: PathBuf,
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    force: bool,
    /// The command and the container's id.
    words: Vec<String>,
}

fn main() -> ExitCode {
    match obey() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes, without the backtrace that goes with them.
            let mut stderr = std::io::stderr();
            let _ = writeln!(stderr, "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey() -> anyhow::Result<()> {
    let line = read(std::env::args().skip(1))?;
    let [command, id] = &line.words[..] else {
        bail!("usage: libcontainer-run --root DIR create|start|delete [OPTION…] ID");
    };
    match command.as_str() {
        "create" => create(&line, id),
        "start" => load(&line, id)?.start().context("start"),
        "delete" => load(&line, id)?.delete(line.force).context("delete"),
        other => bail!("no command {other}"),
    }
}

fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Line> {
    let mut line = Line::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().context("an option without its value");
        match word.as_str() {
            "--root" => line.root = value()?.into(),
            "--bundle" => line.bundle = value()?.into(),
            "--pid-file" => line.pid_file = Some(value()?.into()),
            "--console-socket" => line.console_socket = Some(value()?.into()),
            "--force" => line.force = true,
            _ => line.words.push(word),
        }
    }
    Ok(line)
}

fn create(line: &Line, id: &str) -> anyhow::Result<()> {
    refuse_root_cgroup(line)?;
    std::fs::create_dir_all(&line.root)?;
    ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(&line.root)?
        .with_pid_file(line.pid_file.as_deref())?
        .with_console_socket(line.console_socket.as_deref())
        .validate_id()?
        .as_init(&line.bundle)
        .with_systemd(false)
        .build()
        .with_context(|| format!("create {id}"))?;
    Ok(())
}

/// libcontainer takes an empty `cgroupsPath` for the root of every hierarchy, and ends all processes
/// there when the container is deleted by force: those of the whole machine, this one among them.
fn refuse_root_cgroup(line: &Line) -> anyhow::Result<()> {
    let text = std::fs::read(line.bundle.join("config.json"))?;
    let config: serde_json::Value = serde_json::from_slice(&text)?;
    let path = config["linux"]["cgroupsPath"].as_str();
    let root = path.is_some_and(|path| path.trim_matches(['/', '.']).is_empty());
    anyhow::ensure!(!root, "cgroupsPath {path:?} is the root of a hierarchy");
    Ok(())
}

fn load(line: &Line, id: &str) -> anyhow::Result<Container> {
    Container::load(line.root.join(id)).with_context(|| format!("read the state of {id}"))
}
