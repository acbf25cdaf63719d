//! The commands, one file an operation.
//!
//! Each takes what was typed, does its work through the modules below it, and returns the exit code. Standard output is
//! written only here.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod freeze;
mod kill;
mod launch;
mod list;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::io::Write;

use anyhow::Result;

use crate::cli::{self, Action, CommandSpec, Global, Line, Parsed};
use crate::help;
use crate::rootless;
use crate::state::Store;

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: anyhow::Error,
    /// With which exit code.
    pub(crate) code: u8,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self {
            error: error.into(),
            code: 1,
        }
    }
}

/// What every command gets.
struct Request<'a> {
    /// Options before the command.
    global: &'a Global,
    /// Options and arguments of the command.
    parsed: &'a Parsed,
    /// Where state is kept.
    store: Store,
}

/// Does what a command line asks for.
pub(crate) fn run(line: Line) -> Result<u8, Failed> {
    let Line { global, action } = line;
    match action {
        Action::Version => Ok(print(&help::version())?),
        Action::Help => Ok(print(&help::program())?),
        Action::CommandHelp(command) => Ok(print(&help::command(command))?),
        Action::Misuse(error, command) => Err(misuse(error, command)),
        Action::Run(command, parsed) => dispatch(
            command,
            &Request {
                global: &global,
                parsed: &parsed,
                store: Store::new(&global.root, global.root_is_own),
            },
        ),
    }
}

/// Shows how it would be right, as runc does: help on standard output, the mistake on standard error.
pub(crate) fn misuse(error: cli::Error, command: Option<&'static CommandSpec>) -> Failed {
    let code = match error {
        cli::Error::UnknownCommand(_) => 3,
        _ => 1,
    };
    let text = match (&error, command) {
        (
            cli::Error::UnknownCommand(_) | cli::Error::LogFormat(_) | cli::Error::BadRootless(_),
            _,
        ) => String::new(),
        (cli::Error::WrongCount { .. }, Some(command)) => {
            format!("Incorrect Usage.\n\n{}\n", help::command(command))
        }
        (_, command) => {
            // Nobody is left to be told when standard error is closed.
            let _ = write!(std::io::stderr(), "Incorrect Usage: {error}\n\n");
            command.map_or_else(help::program, help::command) + "\n"
        }
    };
    // The mistake counts, not that its explanation could not be shown.
    let _ = print(&text);
    Failed {
        error: error.into(),
        code,
    }
}

/// Calls the command's function.
fn dispatch(command: &CommandSpec, request: &Request<'_>) -> Result<u8, Failed> {
    // Called by pointer: put together into this one, each would have the stack of the largest.
    let act: fn(&Request<'_>) -> Result<u8> = match command.name {
        "checkpoint" => checkpoint::checkpoint,
        "create" => create::create,
        "run" => run::run,
        "start" => start::start,
        "state" => state::state,
        "kill" => kill::kill,
        "delete" => delete::delete,
        "list" => list::list,
        "exec" => exec::exec,
        "ps" => ps::ps,
        "restore" => restore::restore,
        "pause" => freeze::pause,
        "resume" => freeze::resume,
        "spec" => spec::spec,
        "update" => update::update,
        "events" => events::events,
        "features" => |_| features::features(),
        other => return Err(cli::Error::UnknownCommand(other.to_owned()).into()),
    };
    act(request).map_err(|error| match command.name {
        "exec" => Failed {
            error: error.context("exec failed"),
            code: 255,
        },
        _ => error.into(),
    })
}

/// Says that criu without privileges is on its own; runc's words.
fn warn_of_rootless(command: &str) {
    if rootless::is_other_user() {
        log::warn!("qrun {command} is untested with rootless containers");
    }
}

/// Writes to standard output.
fn print(text: &str) -> Result<u8> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(0)
}
