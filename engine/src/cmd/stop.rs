//! `stop` and `restart`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use nix::sys::signal::Signal;
use qengine::container::find::Handle;
use qengine::container::start::{Streams, start};
use qengine::container::stop::{parse_signal, stop};

use super::{Context, for_each};

/// Seconds between the stop signal and SIGKILL where nobody says otherwise; docker's.
const GRACE: i64 = 10;

/// Stop one or more running containers
#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    how: How,
}

/// Stop and start one or more containers
#[derive(Debug, Args)]
pub(crate) struct Restart {
    #[command(flatten)]
    how: How,
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
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
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
        for_each(&self.how.containers, |name| {
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
        for_each(&self.how.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            stop(
                &context.store,
                &context.programs,
                &handle,
                signal,
                self.how.grace(&handle),
            )?;
            start(&context.store, &context.programs, &handle, Streams::Leave)?;
            Ok(name.to_owned())
        })
    }
}
