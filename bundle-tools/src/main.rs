//! `qbundle`: makes, unpacks and checks OCI bundles by hand.
//!
//! Parsing is here, one file a command in [`cmd`]; what they do is the library's.

mod cmd;

use std::process::ExitCode;

use clap::Parser;

/// Make, unpack and check OCI bundles.
#[derive(Debug, Parser)]
#[command(name = "qbundle", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: cmd::Command,
}

fn main() -> ExitCode {
    // Ends the process by itself on --help, --version and wrong usage (exit code 2).
    let arguments = Arguments::parse();
    match arguments.command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("qbundle: {error:#}");
            if let Some(hint) = error.downcast_ref::<cmd::Hint>() {
                eprintln!("hint: {}", hint.remedy());
            }
            ExitCode::FAILURE
        }
    }
}
