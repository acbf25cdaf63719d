//! `build`: an image by a Dockerfile, with what happens as lines of text.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Seek, Write, stderr, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use qengine::build::{self, Options, Progress, PullPolicy, build};
use qengine::image::pull;
use qengine::image::{Image, Reference};
use qengine::network::{Endpoint, Mode};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

use super::Context;
use super::progress::{Shown, Way};
use super::pull::{RegistryFlags, announce};
use crate::flags::pairs;
use crate::output::say;

/// Names a Dockerfile may have when none is given.
const DEFAULT_FILES: [&str; 3] = ["Dockerfile", "Containerfile", "dockerfile"];
/// Exit code after Ctrl-C: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Build an image by the instructions of a Dockerfile
#[derive(Debug, Args)]
#[command(after_help = "\
Without a context the current directory is it.

Examples:
  qengine build -t web:1 .
  qengine build -f dockerfile -t xx:0.01
  qengine build -t tool --target test --build-arg VERSION=2 ./tool
  qengine build -t tiny - < Dockerfile")]
pub(crate) struct Build {
    /// The Dockerfile; - is standard input [default: Dockerfile or Containerfile in the context]
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// Name of the image; can be given several times
    #[arg(short, long, value_name = "NAME[:TAG]")]
    tag: Vec<String>,
    /// Value of an ARG; without =VALUE it is taken from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<String>,
    /// Build this stage, and only what it needs
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step again
    #[arg(long)]
    no_cache: bool,
    /// Ask the registry for newer base images: missing, always, never
    #[arg(long, value_name = "WHEN", num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pull: Option<String>,
    /// Add a label to the image
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// What RUN is connected to: default, none, host, or a network
    #[arg(
        long,
        visible_alias = "net",
        value_name = "NETWORK",
        default_value = "default"
    )]
    network: String,
    /// Line for /etc/hosts of RUN
    #[arg(long, value_name = "HOST:ADDRESS")]
    add_host: Vec<String>,
    /// What RUN --mount=type=secret may see: id=ID[,src=FILE|,env=VARIABLE]
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// Print nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    /// How progress is shown: plain is what there is
    #[arg(long, value_name = "KIND", default_value = "plain")]
    progress: String,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Nothing is kept of a step's container in any case
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rm: Option<String>,
    /// Nothing is kept of a step's container in any case
    #[arg(long, hide = true)]
    force_rm: bool,
    #[command(flatten)]
    registry: RegistryFlags,
    /// Directory that COPY and ADD take files from; - for none, with the Dockerfile on standard input
    #[arg(value_name = "CONTEXT")]
    context: Option<String>,
}

impl Build {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if !matches!(self.progress.as_str(), "plain" | "auto" | "tty" | "quiet") {
            bail!(
                "invalid --progress {:?}: it takes plain or auto",
                self.progress
            );
        }
        let quiet = self.quiet || self.progress == "quiet";
        let iidfile = self.iidfile.clone();
        let options = self.options()?;
        let lines = Lines::new(quiet)?;
        match build(&context.store, &context.programs, &options, &lines) {
            Ok(image) => {
                tell(&image, &options, quiet)?;
                if let Some(path) = iidfile {
                    fs::write(&path, image.id.to_string())
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(build::Error::Cancelled) => {
                lines.settle();
                super::report(&build::Error::Cancelled.into());
                Ok(ExitCode::from(INTERRUPTED))
            }
            Err(error) => {
                lines.settle();
                lines.show_captured()?;
                Err(error.into())
            }
        }
    }

    fn options(self) -> Result<Options> {
        let names: Vec<Reference> = self
            .tag
            .iter()
            .map(|tag| {
                tag.parse()
                    .with_context(|| format!("invalid --tag {tag:?}"))
            })
            .collect::<Result<_>>()?;
        let context = match self.context.as_deref() {
            Some("-") => None,
            Some(text) if text.contains("://") || text.starts_with("git@") => {
                bail!("context {text:?}: only directories of this machine are supported")
            }
            other => Some(std::path::absolute(other.unwrap_or("."))?),
        };
        if let Some(path) = &context
            && !path.is_dir()
        {
            bail!("the context {} is not a directory", path.display());
        }
        let (file_name, text, ignore) = match (&self.file, &context) {
            (Some(file), _) if file == "-" => ("-".to_owned(), read_stdin()?, None),
            (None, None) => ("-".to_owned(), read_stdin()?, None),
            (Some(file), _) => read_file(file, context.as_deref())?,
            (None, Some(directory)) => default_file(directory)?,
        };
        Ok(Options {
            file_name,
            text,
            context,
            ignore,
            names,
            build_args: build_args(&self.build_arg),
            target: self.target,
            no_cache: self.no_cache,
            pull: match self.pull.as_deref() {
                None | Some("missing" | "false" | "ifnewer") => PullPolicy::Missing,
                Some("always" | "true") => PullPolicy::Always,
                Some("never") => PullPolicy::Never,
                Some(other) => bail!("invalid --pull={other}: it takes missing, always or never"),
            },
            pull_options: self.registry.options()?,
            labels: labels(&self.label)?,
            secrets: secrets(&self.secret)?,
            network: match self.network.as_str() {
                "default" | "bridge" => Mode::default(),
                "none" => Mode::None,
                "host" => Mode::Host,
                name => Mode::Networks(vec![Endpoint::new(name)]),
            },
            add_hosts: self.add_host,
        })
    }
}

/// An argument without a value takes the environment's, as docker has it; one that is nowhere is left out.
fn build_args(list: &[String]) -> BTreeMap<String, String> {
    list.iter()
        .filter_map(|entry| match entry.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => Some((entry.clone(), std::env::var(entry).ok()?)),
        })
        .collect()
}

fn labels(list: &[String]) -> Result<BTreeMap<String, String>> {
    let labels = pairs(list);
    if labels.contains_key("") {
        bail!("invalid --label: expected NAME=VALUE");
    }
    Ok(labels)
}

/// `id=ID`, and where it is: a file, or a variable of our environment; without either, both by the id's name.
fn secrets(list: &[String]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut secrets = BTreeMap::new();
    for entry in list {
        let mut fields: BTreeMap<&str, &str> = entry
            .split(',')
            .filter_map(|field| field.split_once('='))
            .collect();
        let id = fields
            .remove("id")
            .with_context(|| format!("invalid --secret {entry:?}: expected id=ID,src=FILE"))?;
        let kind = fields.remove("type");
        let file = fields.remove("src").or_else(|| fields.remove("source"));
        let variable = fields.remove("env");
        if let Some(name) = fields.keys().next() {
            bail!("invalid --secret {entry:?}: there is no {name:?}");
        }
        let from_environment = |name: &str| std::env::var_os(name).map(OsString::into_vec);
        let secret = match (file, variable) {
            (Some(name), None) if kind == Some("env") => from_environment(name),
            (Some(file), None) => {
                Some(fs::read(file).with_context(|| format!("cannot read secret {file}"))?)
            }
            (None, Some(name)) => from_environment(name),
            (None, None) => from_environment(id).or_else(|| fs::read(id).ok()),
            (Some(_), Some(_)) => bail!("invalid --secret {entry:?}: src or env, not both"),
        };
        let secret =
            secret.with_context(|| format!("secret {id}: there is no such file or variable"))?;
        secrets.insert(id.to_owned(), secret);
    }
    Ok(secrets)
}

/// A file's name, its text, and the ignore file that belongs to it.
type Found = (String, String, Option<String>);

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    stdin()
        .read_to_string(&mut text)
        .context("cannot read the Dockerfile from standard input")?;
    Ok(text)
}

/// `-f FILE`: from here, or else from the context.
fn read_file(file: &str, context: Option<&Path>) -> Result<Found> {
    let here = PathBuf::from(file);
    let path = match context {
        Some(context) if !here.exists() && context.join(file).exists() => context.join(file),
        _ => here,
    };
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut beside = path.clone().into_os_string();
    beside.push(".dockerignore");
    let ignore = match fs::read_to_string(&beside) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", beside.display()));
        }
    };
    Ok((file.to_owned(), text, ignore))
}

/// The context's own Dockerfile. The context may be a stranger's: a link in it leads nowhere else.
fn default_file(context: &Path) -> Result<Found> {
    for name in DEFAULT_FILES {
        if let Some(text) = build::read_from_context(context, name)? {
            let ignore = build::read_from_context(context, &format!("{name}.dockerignore"))?;
            return Ok((name.to_owned(), text, ignore));
        }
    }
    bail!(
        "there is no Dockerfile in {}; -f names another file",
        context.display()
    )
}

fn tell(image: &Image, options: &Options, quiet: bool) -> Result<()> {
    if quiet {
        say(format_args!("{}", image.id))?;
        return Ok(());
    }
    for name in &options.names {
        say(format_args!("Successfully tagged {}", name.familiar()))?;
    }
    say(format_args!("{}", image.id))?;
    Ok(())
}

/// Progress as lines on standard output. What commands print goes there through pipes: with our own descriptors a command
/// of a stranger's Dockerfile could read what is typed at the terminal, or open the file behind them anew.
struct Lines {
    /// What passes on the output of the command that runs; they end with it.
    relays: Mutex<Vec<JoinHandle<()>>>,
    quiet: bool,
    pull: Shown,
    cancel: OwnedFd,
    /// What commands have printed, when it is shown only after a failure.
    captured: Mutex<Option<fs::File>>,
}

impl Lines {
    fn new(quiet: bool) -> Result<Lines> {
        let captured = if quiet {
            let memory = memfd_create("output", MemfdFlags::CLOEXEC)
                .context("cannot make a buffer for output")?;
            Some(fs::File::from(memory))
        } else {
            None
        };
        Ok(Lines {
            relays: Mutex::default(),
            quiet,
            pull: Shown::new(Way::Pull, quiet),
            cancel: cancelled_by_signals()?,
            captured: Mutex::new(captured),
        })
    }

    /// Waits until all that the last command has printed is passed on.
    fn settle(&self) {
        let relays = self
            .relays
            .lock()
            .map(|mut relays| std::mem::take(&mut *relays));
        for relay in relays.unwrap_or_default() {
            drop(relay.join());
        }
    }

    /// The writing end of a pipe that leads to `out`.
    fn relay(&self, mut out: impl Write + Send + 'static) -> io::Result<OwnedFd> {
        let (mut output, end) = io::pipe()?;
        let relay = std::thread::spawn(move || {
            let mut buffer = [0; 1 << 14];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                // Nobody reads any more: the command goes on.
                let _ = out.write_all(&buffer[..count]).and_then(|()| out.flush());
            }
        });
        if let Ok(mut relays) = self.relays.lock() {
            relays.push(relay);
        }
        Ok(end.into())
    }

    fn say(&self, line: std::fmt::Arguments<'_>) {
        self.settle();
        if !self.quiet {
            // Nobody reads any more: the build goes on.
            let _ = say(line);
        }
    }

    fn show_captured(&self) -> Result<()> {
        let captured = self.captured.lock().map(|mut it| it.take());
        if let Ok(Some(mut file)) = captured {
            file.rewind()?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            stderr().write_all(&bytes)?;
        }
        Ok(())
    }
}

impl Progress for Lines {
    fn step(&self, number: usize, total: usize, text: &str) {
        self.say(format_args!("STEP {number}/{total}: {text}"));
    }

    fn cached(&self) {
        self.say(format_args!("--> Using cache"));
    }

    fn done(&self, layer: Option<&str>) {
        if let Some(layer) = layer {
            self.say(format_args!("--> {layer}"));
        }
    }

    #[expect(clippy::print_stderr, reason = "a warning beside the answer")]
    fn warning(&self, message: &str) {
        eprintln!("qengine: warning: {message}");
    }

    fn pulling(&self, reference: &Reference) -> &dyn pull::Progress {
        if !self.quiet {
            announce(&reference.familiar(), reference);
        }
        &self.pull
    }

    fn streams(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        // What was said before comes before what the command says.
        self.settle();
        stdout().flush()?;
        if let Ok(captured) = self.captured.lock()
            && let Some(file) = &*captured
        {
            return Ok((file.try_clone()?.into(), file.try_clone()?.into()));
        }
        Ok((self.relay(stdout())?, self.relay(stderr())?))
    }

    fn cancel(&self) -> Option<BorrowedFd<'_>> {
        Some(self.cancel.as_fd())
    }
}

/// A descriptor that becomes readable at the first SIGINT, SIGTERM or SIGHUP. Handlers and not a blocked mask, which
/// the programs that we start would inherit.
fn cancelled_by_signals() -> Result<OwnedFd> {
    use tokio::signal::unix::{SignalKind, signal};
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot watch for signals")?;
    let mut signals = {
        let _entered = runtime.enter();
        let open = |kind| signal(kind).context("cannot watch for signals");
        [
            open(SignalKind::interrupt())?,
            open(SignalKind::terminate())?,
            open(SignalKind::hangup())?,
        ]
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let [interrupt, terminate, hangup] = &mut signals;
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            // The other end is open as long as anybody asks.
            let _ = rustix::io::write(&write, b"x");
            // Closing it would say the same; it stays open so that a second signal finds its handler.
            std::thread::park();
        })
        .context("cannot watch for signals")?;
    Ok(read)
}
