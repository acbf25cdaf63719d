//! `diff`: what a container has changed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use qengine::container::changes::{Change, Kind, changes};
use qengine::container::find::Handle;
use serde_json::json;

use super::Context;
use crate::output::say;

/// Show which files a container has changed (C), added (A) and deleted (D)
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// "json" for one object with three lists, or "table"
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: String,
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Diff {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if !["table", "json"].contains(&self.format.as_str()) {
            bail!("--format {}: expected \"json\" or \"table\"", self.format);
        }
        let handle = Handle::find(&context.store, &self.container)?;
        let changes = changes(&context.store, &handle)?;
        if self.format == "json" {
            say(format_args!("{}", as_json(&changes)))?;
            return Ok(ExitCode::SUCCESS);
        }
        for change in &changes {
            let letter = match change.kind {
                Kind::Changed => 'C',
                Kind::Added => 'A',
                Kind::Deleted => 'D',
            };
            say(format_args!("{letter} {}", change.path))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Podman's form; a list without entries is left out.
fn as_json(changes: &[Change]) -> serde_json::Value {
    let mut object = json!({});
    for (key, kind) in [
        ("changed", Kind::Changed),
        ("added", Kind::Added),
        ("deleted", Kind::Deleted),
    ] {
        let paths: Vec<&str> = changes
            .iter()
            .filter(|change| change.kind == kind)
            .map(|change| change.path.as_str())
            .collect();
        if !paths.is_empty() {
            object[key] = json!(paths);
        }
    }
    object
}
