//! `update`: change limits and restart policy.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::restart::Policy;
use qengine::container::update::update;

use super::{Context, for_each};
use crate::flags::limits::LimitFlags;

/// Change the limits of one or more containers, running or not
#[derive(Debug, Args)]
#[command(after_help = "\
What is not given stays as it is. The change holds at once and for later starts.

Examples:
  qengine update -m 200m --cpus 0.5 web
  qengine update --restart on-failure:3 web db")]
pub(crate) struct Update {
    #[command(flatten)]
    limits: LimitFlags,
    /// Start it again when it has ended: no, on-failure[:COUNT], always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let restart: Option<Policy> = self.restart.as_deref().map(str::parse).transpose()?;
        for_each(&self.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            update(
                &context.store,
                &context.programs,
                &handle,
                |old| self.limits.over(old),
                restart,
            )?;
            Ok(name.to_owned())
        })
    }
}
