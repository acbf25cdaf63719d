//! `inspect`: everything about containers and images, as JSON.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container;
use qengine::container::find::Handle;
use serde_json::Value;

use super::Context;
use crate::output::say;

/// Show everything about containers or images, as JSON
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Look only for this kind: container or image
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let mut found = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for name in &self.names {
            match self.describe(context, name) {
                Ok(object) => found.push(object),
                Err(error) => {
                    super::report(&error);
                    code = ExitCode::FAILURE;
                }
            }
        }
        say(format_args!("{}", serde_json::to_string_pretty(&found)?))?;
        Ok(code)
    }

    fn describe(&self, context: &Context, name: &str) -> Result<Value> {
        if self.kind.as_deref() != Some("image") {
            match Handle::find(&context.store, name) {
                Ok(handle) => {
                    container::recover::collect(&context.store, &context.programs, handle.id())?;
                    return Ok(container::inspect::inspect(&context.store, &handle)?);
                }
                Err(container::Error::NotFound(_)) if self.kind.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        match qengine::image::find(&context.store, name)? {
            Some(image) => super::image::describe(&context.store, &image),
            None => anyhow::bail!("no such container or image: {name}"),
        }
    }
}
