//! `qengine`: the command line of the engine.
//!
//! Typed text goes through [`flags::normalise`] (old spellings), clap (structure) and [`flags`] (meaning) into the
//! plain options that the library takes. This binary is the only place that prints, asks and exits.

mod cmd;
mod flags;
mod output;
mod template;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    cmd::main(std::env::args_os().collect())
}
