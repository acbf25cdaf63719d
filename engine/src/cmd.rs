//! The commands: one file each. This one has the list of them, and what all share: opening the store, running, turning
//! an error into a message and an exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use qengine::container::{Live, Programs, find};
use qengine::store::Store;

use crate::flags::normalise::normalise;
use crate::output::say;

mod attach;
mod background;
mod build;
mod build_base;
mod builder;
mod cleanup;
mod commit;
mod completion;
mod containers;
mod cp;
mod create;
mod definition;
mod diff;
mod events;
mod exec;
mod export;
mod help;
mod history;
mod image;
mod images;
mod import;
mod inspect;
mod kill;
mod load;
mod login;
mod logs;
mod man;
mod network;
mod outfile;
mod pause;
mod port;
mod portmap;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod rename;
mod resolver;
mod rm;
mod rmi;
mod run;
mod save;
mod start;
mod stats;
mod stop;
mod system;
mod tag;
mod top;
mod update;
mod version;
mod volume;
mod wait;

/// Nothing was typed where a command belongs: clap answers with the help text.
const HELP: clap::error::ErrorKind =
    clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// Exit code when the engine itself failed before the container's process could say anything; docker's.
const ENGINE_FAILED: u8 = 125;

/// Variables that every command minds.
const ENVIRONMENT: &str = "\
Environment:
  QENGINE_ROOT, QENGINE_RUN_ROOT  as --root and --run-root
  QENGINE_FIREWALL                what published ports and isolation are done with: nftables, iptables or none
                                  [default: the first of these that the kernel has]. With none, networks are not
                                  kept apart and have no way out, and `portmap start` serves published ports";

/// A container engine without a daemon
#[derive(Debug, Parser)]
#[command(
    name = "qengine",
    version,
    propagate_version = true,
    max_term_width = 120,
    after_help = ENVIRONMENT
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

// Flags that stand before the command. (No doc comment: clap would take it for the program's description.)
#[derive(Debug, Args)]
struct Global {
    /// Directory of images, containers, networks and volumes [default: /var/lib/qengine]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of sockets and pid files, gone after a reboot [default: /run/qengine]
    #[arg(long, global = true, value_name = "DIR")]
    run_root: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    // Containers
    #[command(flatten)]
    OfContainers(containers::ContainerCommand),
    Ps(ps::Ps),
    Container(containers::ContainerArgs),
    Inspect(inspect::Inspect),
    Events(events::Events),
    // Images
    Pull(pull::Pull),
    Push(push::Push),
    Save(save::Save),
    Load(load::Load),
    Import(import::Import),
    Login(login::Login),
    Logout(login::Logout),
    Images(images::Images),
    Image(image::ImageArgs),
    History(history::History),
    Tag(tag::Tag),
    Rmi(rmi::Rmi),
    #[command(name = "buildBase", alias = "build-base")]
    BuildBase(build_base::BuildBase),
    Build(Box<build::Build>),
    Builder(builder::Builder),
    // Networks
    Network(network::Network),
    Portmap(portmap::Portmap),
    // Volumes
    Volume(volume::VolumeArgs),
    // The whole
    Info(system::Info),
    System(system::System),
    Version(version::Version),
    Completion(completion::Completion),
    #[command(hide = true)]
    Man(man::Man),
    #[command(hide = true)]
    Cleanup(cleanup::Cleanup),
    #[command(hide = true)]
    Resolver(resolver::Resolver),
}

/// What every command works on.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) programs: Programs,
}

pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    if help::is_asked_for(&words) {
        // Nobody to tell when nobody reads it.
        drop(help::print(&Cli::command()));
        return ExitCode::SUCCESS;
    }
    let definition = definition::definition(&words);
    let words = normalise(&definition, words);
    let cli = match definition
        .try_get_matches_from(words)
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && error.kind() != HELP => return complain(&error),
        Err(help) => {
            // Nobody to tell when nobody reads it.
            drop(help.print());
            return ExitCode::SUCCESS;
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// What clap has to say about the words, in our form: one line, one hint.
#[expect(
    clippy::print_stderr,
    reason = "the one place where bad usage is reported"
)]
fn complain(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let message = words.join(" ");
    eprintln!(
        "qengine: {}",
        message.strip_prefix("error: ").unwrap_or(&message)
    );
    let usage = paragraphs
        .filter_map(|paragraph| paragraph.trim().strip_prefix("Usage: "))
        .next()
        .unwrap_or("qengine");
    let command: Vec<&str> = usage
        .split_whitespace()
        .take_while(|word| {
            word.chars()
                .all(|letter| letter.is_ascii_alphanumeric() || letter == '-')
        })
        .filter(|word| !word.starts_with('-'))
        .collect();
    eprintln!("hint: `{} --help` tells what there is", command.join(" "));
    ExitCode::from(ENGINE_FAILED)
}

/// An error, and the exit code it ends the program with.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    code: u8,
}

impl Failure {
    fn new(error: anyhow::Error, code: u8) -> Failure {
        // The runtime's refusal decides for itself: 126 not executable, 127 not found.
        let code = match error.downcast_ref::<qengine::container::Error>() {
            Some(qengine::container::Error::Runtime { exit_code, .. }) => *exit_code,
            _ => code,
        };
        Failure { error, code }
    }

    fn report(&self) -> ExitCode {
        if !is_broken_pipe(&self.error) {
            report(&self.error);
        }
        ExitCode::from(self.code)
    }
}

/// Tells the user of an error: one line, and one more when a remedy is known.
#[expect(
    clippy::print_stderr,
    reason = "the one place where errors are reported"
)]
pub(crate) fn report(error: &anyhow::Error) {
    eprintln!("qengine: {}", describe(error));
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
}

/// The whole chain on one line.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for part in error.chain().map(ToString::to_string) {
        if text.ends_with(&part) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&part);
    }
    text
}

/// `qengine logs … | head` is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn hint(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref::<qengine::container::Error>()? {
        qengine::container::Error::Program { program, .. } => Some(format!(
            "{} belongs beside qengine or in PATH; `hack/build.sh` builds all four programs",
            program.display()
        )),
        _ => None,
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    fn plain(error: anyhow::Error) -> Failure {
        Failure::new(error, 1)
    }
    fn engine(error: anyhow::Error) -> Failure {
        Failure::new(error, ENGINE_FAILED)
    }
    // These two look at nothing, and need no rights.
    match &cli.command {
        Command::Completion(command) => return command.run().map_err(plain),
        Command::Man(command) => return command.run().map_err(plain),
        _ => {}
    }
    let on_failure: fn(anyhow::Error) -> Failure = match &cli.command {
        Command::OfContainers(command) if command.is_run() => engine,
        Command::Container(command) if command.is_run() => engine,
        _ => plain,
    };
    let context = open(&cli).map_err(on_failure)?;
    let store = &context.store;
    match cli.command {
        Command::OfContainers(command) => command.run(&context).map_err(on_failure),
        Command::Ps(command) => command.run(&context).map_err(plain),
        Command::Container(command) => command.run(&context).map_err(on_failure),
        Command::Inspect(command) => command.run(&context).map_err(plain),
        Command::Events(command) => command.run(&context).map_err(plain),
        Command::Pull(command) => command.run(store).map_err(plain),
        Command::Push(command) => command.run(store).map_err(plain),
        Command::Save(command) => command.run(store).map_err(plain),
        Command::Import(command) => command.run(store).map_err(plain),
        Command::Load(command) => command.run(store).map_err(plain),
        Command::Login(command) => command.run().map_err(plain),
        Command::Logout(command) => command.run().map_err(plain),
        Command::Images(command) => command.run(store).map_err(plain),
        Command::Image(command) => command.run(&context).map_err(plain),
        Command::History(command) => command.run(store).map_err(plain),
        Command::Tag(command) => command.run(store).map_err(plain),
        Command::Rmi(command) => command.run(store).map_err(plain),
        Command::BuildBase(command) => command.run(store).map_err(plain),
        Command::Build(command) => command.run(&context).map_err(plain),
        Command::Builder(command) => command.run(store).map_err(plain),
        Command::Info(command) => command.run(&context).map_err(plain),
        Command::System(command) => command.run(&context).map_err(plain),
        Command::Version(command) => command.run(&context).map_err(plain),
        Command::Network(command) => command.run(&context).map_err(plain),
        Command::Portmap(command) => command.run(&context).map_err(plain),
        Command::Volume(command) => command.run(store).map_err(plain),
        Command::Completion(command) => command.run().map_err(plain),
        Command::Man(command) => command.run().map_err(plain),
        Command::Cleanup(command) => command.run(&context).map_err(plain),
        Command::Resolver(command) => command.run(store).map_err(plain),
    }
}

fn open(cli: &Cli) -> anyhow::Result<Context> {
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!(
            "this needs root rights: mounts, networks and cgroups are made; run it with sudo"
        );
    }
    let directory =
        |flag: &Option<PathBuf>, variable: &str, default: &str| -> anyhow::Result<PathBuf> {
            let path = flag
                .clone()
                .or_else(|| std::env::var_os(variable).map(PathBuf::from))
                .unwrap_or_else(|| PathBuf::from(default));
            Ok(std::path::absolute(path)?)
        };
    let root = directory(&cli.global.root, "QENGINE_ROOT", "/var/lib/qengine")?;
    let run_root = directory(&cli.global.run_root, "QENGINE_RUN_ROOT", "/run/qengine")?;
    let repeated = vec![
        "--root".into(),
        root.clone().into(),
        "--run-root".into(),
        run_root.clone().into(),
    ];
    Ok(Context {
        store: Store::open(root, run_root)?,
        programs: Programs::locate(repeated),
    })
}

/// Does the same to several things: each is tried, each success is printed, each failure reported, and one failure
/// makes the whole a failure.
pub(crate) fn for_each(
    names: &[String],
    mut action: impl FnMut(&str) -> anyhow::Result<String>,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match action(name) {
            Ok(answer) => say(format_args!("{answer}"))?,
            Err(error) => {
                report(&error);
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// As [`for_each`], all at the same time; what is said keeps the order of the names.
pub(crate) fn for_each_at_once(
    names: &[String],
    action: impl Fn(&str) -> anyhow::Result<String> + Sync,
) -> anyhow::Result<ExitCode> {
    /// More than so many wait for each other.
    const AT_ONCE: usize = 50;
    let mut code = ExitCode::SUCCESS;
    for names in names.chunks(AT_ONCE) {
        let answers: Vec<_> = match names {
            [name] => vec![action(name)],
            names => std::thread::scope(|scope| {
                let action = &action;
                let threads: Vec<_> = names
                    .iter()
                    .map(|name| scope.spawn(move || action(name)))
                    .collect();
                let lost = || anyhow::anyhow!("a thread of the engine has panicked");
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap_or_else(|_| Err(lost())))
                    .collect()
            }),
        };
        for answer in answers {
            match answer {
                Ok(answer) => say(format_args!("{answer}"))?,
                Err(error) => {
                    report(&error);
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    Ok(code)
}

/// Short ids of all containers in a status, newest first.
pub(crate) fn all_that_are(
    context: &Context,
    wanted: impl Fn(Live) -> bool,
) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for handle in find::all(&context.store)? {
        // One that vanishes while we look is left out.
        if handle
            .live(&context.store)
            .is_ok_and(|(_, live)| wanted(live))
        {
            ids.push(handle.config.short_id().to_owned());
        }
    }
    Ok(ids)
}

/// An exit code of a container's process as our own.
pub(crate) fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}
