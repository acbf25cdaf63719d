//! `portmap`: the userland forwarder.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use qengine::container::Handle;
use qengine::portmap::{self, Event, Forward, Kind, Listener, Registration, Report};
use qengine::store::Store;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use crate::output::{say, table};

/// Forward ports in user space, without the kernel's packet filter
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  qengine portmap start -d                       serve every published port from now on
  qengine portmap forward 127.0.0.1:8080 web:80  one port of one container, until Ctrl-C
  qengine portmap forward -d 5353/udp dns:53
  qengine portmap ls

`portmap start` is for hosts whose kernel has no usable netfilter. Elsewhere it does no harm: the
kernel translates first, and the forwarder takes over should the rules get lost.")]
pub(crate) struct Portmap {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Start(Start),
    Stop(Stop),
    Forward(ForwardArgs),
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Say whether the forwarder of published ports runs
    Status,
}

/// Serve every published port, of containers that run and that will be started
#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    way: Way,
}

/// End forwarders, those of `portmap start` and of `portmap forward`
#[derive(Debug, Args)]
struct Stop {
    /// Only these processes, as `portmap ls` shows them
    #[arg(value_name = "PID")]
    processes: Vec<i32>,
}

/// Forward one port to a container, by hand
///
/// The mapping follows the container through its ends and starts, and ends when it is removed.
#[derive(Debug, Args)]
struct ForwardArgs {
    #[command(flatten)]
    way: Way,
    /// Address and port of this host; every address when there is only a port
    #[arg(value_name = "[HOST:]PORT[/PROTOCOL]")]
    host: String,
    /// Name or id of the container, and its port
    #[arg(value_name = "CONTAINER:PORT")]
    container: String,
}

/// How a forwarder runs.
#[derive(Debug, Args)]
struct Way {
    /// Go on in the background once the ports are served
    #[arg(short, long)]
    detach: bool,
    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,
}

/// List the sockets of all forwarders
#[derive(Debug, Args)]
struct Ls {
    /// `table` or `json`
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
}

impl Portmap {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        match self.command {
            Command::Start(Start { way }) => {
                if way.detach {
                    if let Some(other) = portmap::published(store) {
                        return Err(portmap::Error::Running(other.process.pid).into());
                    }
                    return detach(context, "published.log", &["start"]);
                }
                stay(&way, |report| portmap::serve(store, report))
            }
            Command::Forward(arguments) => {
                let forward = Forward::parse(&arguments.host, &arguments.container)?;
                let way = &arguments.way;
                if way.detach {
                    Handle::find(store, &forward.container)?;
                    let log = format!("{}-{}.log", forward.protocol, forward.host_port);
                    let words = ["forward", &arguments.host, &arguments.container];
                    return detach(context, &log, &words);
                }
                stay(way, |report| portmap::forward(store, &forward, report))
            }
            Command::Stop(command) => command.run(store),
            Command::Ls(command) => command.run(store),
            Command::Status => status(store),
        }
    }
}

/// The word that tells the parent of a process in the background that it may go.
const READY: &str = "ready";

/// Serves until a signal asks for the end, on this thread.
fn stay<F>(way: &Way, serve: impl FnOnce(Report) -> F) -> Result<ExitCode>
where
    F: Future<Output = portmap::Result<Infallible>>,
{
    if way.detached {
        super::background::leave_caller();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot set up the event loop")?;
    let is_detached = way.detached;
    let report: Report = Arc::new(move |event| tell(&event, is_detached));
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = serve(report) => match ended {
                Err(error) => Err(error.into()),
            },
            _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        }
    })
}

/// Says what happens: on standard output in the foreground; in the background into the log, which is its standard
/// error. Nobody to tell is no failure.
fn tell(event: &Event<'_>, is_detached: bool) {
    let text = match event {
        Event::Serving {
            listen,
            target: Some(target),
            container,
        } => format!("{listen} -> {target} (container {})", short(container)),
        Event::Serving {
            listen, container, ..
        } => format!(
            "{listen} -> container {}, which does not run",
            short(container)
        ),
        Event::Closed(listen) => format!("{listen} closed"),
        Event::Unavailable { listen, error } => format!("cannot listen on {listen}: {error}"),
        Event::Trouble(error) => format!("cannot find out what is published: {error}"),
        Event::Exhausted(error) => format!("cannot accept connections for now: {error}"),
        Event::Ready if is_detached => {
            // Whoever waits for it reads the other end of our standard output.
            drop(say(format_args!("{READY}")));
            return;
        }
        Event::Ready => return,
    };
    if is_detached {
        // A full disk under the log is no reason to stop forwarding.
        drop(writeln!(
            std::io::stderr(),
            "{} {text}",
            jiff::Timestamp::now()
        ));
    } else {
        drop(say(format_args!("{text}")));
        drop(std::io::stdout().flush());
    }
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// A log longer than this is begun anew.
const LOG_LIMIT: u64 = 1 << 20;

/// Starts the same command in the background and waits until it serves, or says why not.
fn detach(context: &Context, log: &str, words: &[&str]) -> Result<ExitCode> {
    let directory = context.store.run().join("portmap");
    qengine::store::make_dir(&directory)?;
    let path = directory.join(log);
    let open = || File::options().append(true).create(true).open(&path);
    let file = open().with_context(|| format!("cannot open {}", path.display()))?;
    let mut before = file.metadata().map_or(0, |metadata| metadata.len());
    if before > LOG_LIMIT {
        file.set_len(0)?;
        before = 0;
    }
    let (word, rest) = words.split_first().context("no command")?;
    let mut child = std::process::Command::new(&context.programs.engine)
        .args(&context.programs.engine_arguments)
        .args(["portmap", word, "--detached"])
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        .current_dir("/")
        .spawn()
        .with_context(|| format!("cannot run {}", context.programs.engine.display()))?;
    let mut answer = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut answer)?;
    }
    if answer.trim() == READY {
        say(format_args!("{}", child.id()))?;
        return Ok(ExitCode::SUCCESS);
    }
    child.wait()?;
    bail!("{}", last_words(&path, before));
}

/// What a process in the background wrote into its log before it ended.
fn last_words(log: &PathBuf, before: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let start = usize::try_from(before).unwrap_or(0).min(text.len());
    let text = String::from_utf8_lossy(&text[start..]).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("qengine: "));
    line.unwrap_or("the forwarder ended without a word")
        .to_owned()
}

impl Stop {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let running = portmap::list(store)?;
        for pid in &self.processes {
            if !running.iter().any(|one| one.process.pid == *pid) {
                bail!("process {pid} is no forwarder of this store");
            }
        }
        if running.is_empty() {
            bail!("no forwarder is running");
        }
        let chosen = running
            .iter()
            .filter(|one| self.processes.is_empty() || self.processes.contains(&one.process.pid));
        for one in chosen {
            end(one)?;
            say(format_args!("{}", one.process.pid))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Ends a forwarder, and waits until it has gone: its ports are free then.
fn end(one: &Registration) -> Result<()> {
    let pid = one.process.pid;
    let Some(process) = one.process.open() else {
        return Ok(());
    };
    for (signal, seconds) in [(Signal::TERM, 5), (Signal::KILL, 5)] {
        if pidfd_send_signal(&process, signal).is_err() {
            return Ok(());
        }
        let patience = Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        if poll(&mut ended, Some(&patience)).is_ok_and(|count| count > 0) {
            return Ok(());
        }
    }
    bail!("process {pid} does not end");
}

impl Ls {
    fn run(self, store: &Store) -> Result<ExitCode> {
        let running = portmap::list(store)?;
        let sockets = || {
            running
                .iter()
                .flat_map(|one| one.listeners.iter().map(move |listener| (one, listener)))
        };
        match self.format.as_str() {
            "table" => {
                let rows: Vec<_> = sockets()
                    .map(|(one, socket)| row(store, one, socket))
                    .collect();
                let heading = [
                    "LISTENING",
                    "CONTAINER",
                    "TARGET",
                    "FORWARDER",
                    "PID",
                    "STATE",
                ];
                say(format_args!("{}", table(&heading, &rows).trim_end()))?;
            }
            "json" => {
                for (one, socket) in sockets() {
                    let row = json!({
                        "Listening": socket.listen.to_string(),
                        "Container": name(store, &socket.container),
                        "ContainerID": socket.container,
                        "Target": socket.target.map(|target| target.to_string()),
                        "Forwarder": forwarder(one.kind),
                        "Pid": one.process.pid,
                        "State": state(socket),
                    });
                    say(format_args!("{row}"))?;
                }
            }
            other => bail!("unknown format {other:?}: table and json are there"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn row(store: &Store, one: &Registration, socket: &Listener) -> Vec<String> {
    vec![
        socket.listen.to_string(),
        name(store, &socket.container),
        socket
            .target
            .map_or_else(|| "-".to_owned(), |target| target.to_string()),
        forwarder(one.kind).to_owned(),
        one.process.pid.to_string(),
        state(socket),
    ]
}

fn name(store: &Store, id: &str) -> String {
    match Handle::open(store, id) {
        Ok(Some(handle)) => handle.name().to_owned(),
        _ => short(id).to_owned(),
    }
}

fn forwarder(kind: Kind) -> &'static str {
    match kind {
        Kind::Published => "start",
        Kind::Forward => "forward",
    }
}

fn state(socket: &Listener) -> String {
    match (&socket.problem, socket.target) {
        (Some(problem), _) => problem.clone(),
        (None, Some(_)) => "serving".to_owned(),
        (None, None) => "container not running".to_owned(),
    }
}

fn status(store: &Store) -> Result<ExitCode> {
    let Some(one) = portmap::published(store) else {
        say(format_args!("not running"))?;
        return Ok(ExitCode::FAILURE);
    };
    let open = one
        .listeners
        .iter()
        .filter(|it| it.problem.is_none())
        .count();
    say(format_args!(
        "running, process {}, since {}: {open} of {} published ports",
        one.process.pid,
        one.started,
        one.listeners.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}
