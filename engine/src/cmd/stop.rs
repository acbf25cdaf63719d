//! `stop` and `restart`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use nix::sys::signal::Signal;
use qengine::container::Live;
use qengine::container::find::Handle;
use qengine::container::restart::restart;
use qengine::container::stop::{parse_signal, stop};

use super::{Context, all_that_are, for_each_at_once};

/// Seconds between the stop signal and SIGKILL where nobody says otherwise; docker's.
const GRACE: i64 = 10;

/// Stop one or more running containers
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// All that run
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    how: How,
    /// Names or ids
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONTAINER"
    )]
    containers: Vec<String>,
}

/// Stop and start one or more containers
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    how: How,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
struct How {
    /// Seconds to wait before it is killed (-1: for ever)
    #[arg(
        short = 't',
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_negative_numbers = true
    )]
    time: Option<i64>,
    /// Signal to send instead of the container's own
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

impl How {
    fn signal(&self) -> Result<Option<Signal>> {
        Ok(self.signal.as_deref().map(parse_signal).transpose()?)
    }

    fn grace(&self, handle: &Handle) -> Option<Duration> {
        let seconds = self
            .time
            .or(handle.config.options.stop_timeout)
            .unwrap_or(GRACE);
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

impl Stop {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let signal = self.how.signal()?;
        let containers = if self.all {
            all_that_are(context, |live| {
                live.is_running() || live == Live::Restarting
            })?
        } else {
            self.containers
        };
        // Each may take its whole time to end.
        for_each_at_once(&containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            stop(
                &context.store,
                &context.programs,
                &handle,
                signal,
                self.how.grace(&handle),
            )?;
            Ok(name.to_owned())
        })
    }
}

impl Restart {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let signal = self.how.signal()?;
        // One by one: a start hands descriptors on to the monitor, which no other start may inherit.
        super::for_each(&self.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            restart(
                &context.store,
                &context.programs,
                &handle,
                signal,
                self.how.grace(&handle),
            )?;
            Ok(name.to_owned())
        })
    }
}
