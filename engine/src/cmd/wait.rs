//! `wait`: until containers have ended, or are in another status.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::cleanup;
use qengine::container::find::Handle;
use qengine::container::wait::{Condition, wait, wait_for};

use super::{Context, for_each};

/// Wait for the end of one or more containers, and print their exit codes
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// What to wait for: exited (also stopped, not-running), next-exit, removed, running, paused
    #[arg(long, value_name = "CONDITION", default_value = "exited")]
    condition: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Wait {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let condition = match self.condition.as_str() {
            "exited" | "stopped" | "not-running" => None,
            "next-exit" => Some(Condition::NextExit),
            "removed" => Some(Condition::Removed),
            "running" => Some(Condition::Running),
            "paused" => Some(Condition::Paused),
            other => bail!(
                "invalid condition {other:?}: exited, next-exit, removed, running and paused are there"
            ),
        };
        for_each(&self.containers, |name| {
            let handle = Handle::find(&context.store, name)?;
            let code = match condition {
                None => wait(&context.store, &handle)?,
                Some(condition) => wait_for(&context.store, &handle, condition)?,
            };
            if !matches!(condition, Some(Condition::Running | Condition::Paused)) {
                cleanup::finish(&context.store, &context.programs, &handle)?;
            }
            Ok(code.to_string())
        })
    }
}
