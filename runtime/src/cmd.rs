//! The commands, one file an operation.
//!
//! Each takes what was typed, does its work through the modules below it, and returns the exit code. Standard output is
//! written only here.

mod create;
mod delete;
mod exec;
mod features;
mod freeze;
mod kill;
mod launch;
mod list;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::io::Write;

use anyhow::Result;

use crate::cli::{self, CommandSpec, Global, Parsed};
use crate::help;
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

/// Runs the command that `arguments` begin with.
pub(crate) fn run(global: &Global, arguments: &[String]) -> Result<u8, Failed> {
    if global.version {
        return Ok(print(&format!(
            "qrun version {}\nspec: {}\n",
            env!("CARGO_PKG_VERSION"),
            crate::spec::VERSION
        ))?);
    }
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) if !global.help && name != "help" => (name, rest),
        Some((name, rest)) if name == "help" => return Ok(print(&help_for(rest)?)?),
        _ => return Ok(print(&help::program())?),
    };
    let command = cli::command(name).ok_or_else(|| cli::Error::UnknownCommand(name.clone()))?;
    let parsed = cli::parse_command(command, rest)?;
    if parsed.is_on("help") {
        return Ok(print(&help::command(command))?);
    }
    dispatch(
        command,
        &Request {
            global,
            parsed: &parsed,
            store: Store::new(&global.root, global.root_is_own),
        },
    )
}

/// Calls the command's function.
fn dispatch(command: &CommandSpec, request: &Request<'_>) -> Result<u8, Failed> {
    match command.name {
        "create" => Ok(create::create(request)?),
        "run" => Ok(run::run(request)?),
        "start" => Ok(start::start(request)?),
        "state" => Ok(state::state(request)?),
        "kill" => Ok(kill::kill(request)?),
        "delete" => Ok(delete::delete(request)?),
        "list" => Ok(list::list(request)?),
        "exec" => exec::exec(request).map_err(|error| Failed {
            error: error.context("exec failed"),
            code: 255,
        }),
        "ps" => Ok(ps::ps(request)?),
        "pause" => Ok(freeze::pause(request)?),
        "resume" => Ok(freeze::resume(request)?),
        "spec" => Ok(spec::spec(request)?),
        "update" => Ok(update::update(request)?),
        "events" => Ok(update::events(request)?),
        "features" => Ok(features::features()?),
        other => Err(cli::Error::UnknownCommand(other.to_owned()).into()),
    }
}

/// The text of `help [command]`.
fn help_for(arguments: &[String]) -> Result<String> {
    let Some(name) = arguments.first() else {
        return Ok(help::program());
    };
    let command = cli::command(name).ok_or_else(|| cli::Error::UnknownCommand(name.clone()))?;
    Ok(help::command(command))
}

/// Writes to standard output.
fn print(text: &str) -> Result<u8> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()?;
    Ok(0)
}
