//! `attach`: the streams of a running container.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::Live;
use qengine::container::attach::{DetachKeys, connect};
use qengine::container::find::Handle;

use super::Context;
use super::run::stay;

/// Attach to the streams of a running container
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Keys that leave the container running and give the terminal back
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: String,
    /// Do not attach standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the process
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Name or id
    container: String,
}

impl Attach {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let mut handle = Handle::find(&context.store, &self.container)?;
        let (state, live) = handle.live(&context.store)?;
        match live {
            Live::Running => {}
            Live::Paused => bail!("container {} is paused: unpause it first", handle.name()),
            live => bail!(
                "container {} is {}: only a running one can be attached to",
                handle.name(),
                live.word()
            ),
        }
        if self.no_stdin {
            handle.config.options.interactive = false;
        }
        let connection = connect(&context.store, &handle)?;
        stay(
            context,
            &handle,
            (Some(&connection), state.monitor),
            keys,
            self.sig_proxy,
        )
    }
}
