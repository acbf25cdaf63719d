//! `inspect`: everything about containers and images, as JSON.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use qengine::container;
use qengine::container::find::Handle;
use qengine::{network, volume};
use serde_json::{Value, json};

use super::Context;
use crate::output::say;
use crate::template::Template;

/// Show everything about containers, images, networks or volumes, as JSON
#[derive(Debug, Args)]
#[command(after_help = "A template picks what is wanted:

  qengine inspect -f '{{.State.Status}}' web
  qengine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' web
  qengine inspect -f '{{json .Config.Labels}}' web")]
pub(crate) struct Inspect {
    /// A template that each is printed through; json for JSON on one line
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Add SizeRw and SizeRootFs to containers
    #[arg(short, long)]
    size: bool,
    /// Look only for this kind
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<Kind>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// What a name may be of, in the order in which it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

/// Show everything about containers, as JSON
#[derive(Debug, Args)]
pub(crate) struct OfContainers {
    /// A template that each is printed through; json for JSON on one line
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Add SizeRw and SizeRootFs
    #[arg(short, long)]
    size: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl OfContainers {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let all = Inspect {
            format: self.format,
            size: self.size,
            kind: Some(Kind::Container),
            names: self.containers,
        };
        all.run(context)
    }
}

impl Inspect {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        describe_each(self.format.as_deref(), &self.names, |name| {
            let kinds = match self.kind {
                Some(kind) => vec![kind],
                None => Kind::value_variants().to_vec(),
            };
            for kind in kinds {
                if let Some(found) = self.look(context, kind, name)? {
                    return Ok(found);
                }
            }
            match self.kind {
                None => anyhow::bail!("no such object: {name}"),
                Some(kind) => {
                    anyhow::bail!("no such {}: {name}", format!("{kind:?}").to_lowercase())
                }
            }
        })
    }

    fn look(&self, context: &Context, kind: Kind, name: &str) -> Result<Option<Value>> {
        let store = &context.store;
        match kind {
            Kind::Container => match Handle::find(store, name) {
                Ok(handle) => {
                    container::recover::collect(store, &context.programs, handle.id())?;
                    let mut value = container::inspect::inspect(store, &handle)?;
                    if self.size {
                        let own = container::size::written(&handle);
                        value["SizeRw"] = json!(own);
                        value["SizeRootFs"] = json!(own + container::size::below(store, &handle));
                    }
                    Ok(Some(value))
                }
                Err(container::Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Kind::Image => match qengine::image::find(store, name)? {
                Some(image) => super::image::describe(store, &image).map(Some),
                None => Ok(None),
            },
            Kind::Network => match network::inspect(store, name) {
                Ok(value) => Ok(Some(serde_json::to_value(value)?)),
                Err(network::Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Kind::Volume => match volume::find(store, name) {
                Ok(volume) => Ok(Some(super::volume::describe(store, &volume))),
                // What can't be a volume's name is none.
                Err(volume::Error::NotFound(_) | volume::Error::BadName(_)) => Ok(None),
                Err(error) => Err(error.into()),
            },
        }
    }
}

/// Prints what `describe` says of each name: all of them as one JSON list, or each through a template. One that fails
/// is reported and does not hide the others.
pub(super) fn describe_each(
    format: Option<&str>,
    names: &[String],
    mut describe: impl FnMut(&str) -> Result<Value>,
) -> Result<ExitCode> {
    let template = match format.map(str::trim) {
        None | Some("") => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let described = describe(name).and_then(|value| {
            match &template {
                Some(template) => say(format_args!("{}", template.render(&value)?))?,
                None => found.push(value),
            }
            Ok(())
        });
        if let Err(error) = described {
            super::report(&error);
            code = ExitCode::FAILURE;
        }
    }
    if template.is_none() {
        say(format_args!("{}", serde_json::to_string_pretty(&found)?))?;
    }
    Ok(code)
}
