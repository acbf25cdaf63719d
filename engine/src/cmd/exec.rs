//! `exec`: a further process in a running container.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::attach::{DetachKeys, Ended};
use qengine::container::exec::{self, Options};
use qengine::container::find::Handle;

use super::{Context, exit_code};
use crate::flags::container::environment;
use crate::terminal::{self, Relay};

/// Run a command in a running container
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    tty: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Do not wait for the command
    #[arg(short, long)]
    detach: bool,
    /// Set a variable; a name alone takes the value of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User (and group), by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Give the command all the container's rights
    #[arg(long)]
    privileged: bool,
    /// Keys that leave the command running and give the terminal back
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: String,
    /// Name or id
    container: String,
    /// Command and arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        terminal::require(self.tty && !self.detach, self.interactive)?;
        let handle = Handle::find(&context.store, &self.container)?;
        let options = Options {
            env: environment(&self.env, &self.env_file)?,
            command: self.command,
            tty: self.tty,
            interactive: self.interactive,
            detach: self.detach,
            workdir: self.workdir,
            user: self.user,
            privileged: self.privileged,
        };
        if !options.tty || options.detach {
            return Ok(exit_code(exec::run(
                &context.store,
                &context.programs,
                &handle,
                &options,
            )?));
        }
        let session = exec::session(&context.store, &context.programs, &handle, &options)?;
        let signals = terminal::signals(false)?;
        let relay = Relay {
            tty: true,
            input: options.interactive,
            detach_keys: keys,
            control: session.control(),
            on_signal: &|_| {},
        };
        if relay.run(&session.connection, &signals)? == Ended::Detached {
            std::io::stderr().write_all(b"read escape sequence\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        Ok(exit_code(session.exit_code(&context.store, &handle)?))
    }
}
