//! `start`: start containers that were created or have ended.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::attach::DetachKeys;
use qengine::container::filter::Filter;
use qengine::container::find::{Handle, all};
use qengine::container::start::{Streams, start};
use qengine::container::{Live, recover};

use super::run::stay;
use super::{Context, for_each};

/// Start one or more containers
#[derive(Debug, Args)]
#[command(after_help = "\
After the host was started, this starts what is to run always:
  qengine start --all --filter should-start-on-boot=true")]
pub(crate) struct Start {
    /// Attach to the container's streams
    #[arg(short, long)]
    attach: bool,
    /// Attach standard input too
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave the container running and give the terminal back
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: String,
    /// All that do not run; with --filter only some of them
    #[arg(long, conflicts_with_all = ["attach", "interactive"])]
    all: bool,
    /// Only those: restart-policy=POLICY, should-start-on-boot=true, and what `ps --filter` knows
    #[arg(short, long, value_name = "KEY=VALUE", requires = "all")]
    filter: Vec<String>,
    /// Names or ids
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONTAINER"
    )]
    containers: Vec<String>,
}

impl Start {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if !self.attach && !self.interactive {
            let containers = if self.all {
                chosen(context, &self.filter)?
            } else {
                self.containers
            };
            return for_each(&containers, |name| {
                let handle = Handle::find(&context.store, name)?;
                start(&context.store, &context.programs, &handle, Streams::Leave)?;
                Ok(name.to_owned())
            });
        }
        let [name] = self.containers.as_slice() else {
            bail!("only one container can be attached to at a time");
        };
        let mut handle = Handle::find(&context.store, name)?;
        let keys = DetachKeys::parse(&self.detach_keys)?;
        let connection = start(&context.store, &context.programs, &handle, Streams::Attach)?;
        let monitor = handle.state()?.monitor;
        handle.config.options.interactive &= self.interactive;
        stay(context, &handle, (connection.as_ref(), monitor), keys, true)
    }
}

/// Those that `start --all` is about: none that runs, oldest first.
fn chosen(context: &Context, filters: &[String]) -> Result<Vec<String>> {
    // What the host's end has left of a container that ran is tidied up first.
    recover::sweep(&context.store, &context.programs)?;
    let filter = Filter::parse(&context.store, filters)?;
    let mut ids = Vec::new();
    for handle in all(&context.store)?.into_iter().rev() {
        let Ok((state, live)) = handle.live(&context.store) else {
            continue;
        };
        let may_start = matches!(live, Live::Created | Live::Exited);
        if may_start && filter.accepts(&handle, &state, live) {
            ids.push(handle.config.short_id().to_owned());
        }
    }
    Ok(ids)
}
