//! `image`: the commands on images under one roof.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use qengine::image::{Image, Reference, find, layers, require};
use qengine::store::Store;
use serde_json::{Value, json};

use super::Context;
use super::build::Build;
use super::build_base::BuildBase;
use super::history::History;
use super::images::Images;
use super::import::Import;
use super::inspect::describe_each;
use super::load::Load;
use super::pull::Pull;
use super::push::Push;
use super::rmi::{Prune, Rmi};
use super::save::Save;
use super::tag::Tag;

/// Manage images.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    #[command(name = "ls", visible_alias = "list")]
    List(Images),
    Pull(Pull),
    Push(Push),
    Save(Save),
    Load(Load),
    Import(Import),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Rmi),
    Prune(Prune),
    Tag(Tag),
    #[command(name = "build-base", alias = "buildBase")]
    BuildBase(BuildBase),
    Build(Box<Build>),
    Inspect(Inspect),
    History(History),
    Exists(Exists),
}

impl ImageArgs {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        let store = &context.store;
        match self.command {
            ImageCommand::List(command) => command.run(store),
            ImageCommand::Pull(command) => command.run(store),
            ImageCommand::Push(command) => command.run(store),
            ImageCommand::Save(command) => command.run(store),
            ImageCommand::Import(command) => command.run(store),
            ImageCommand::Load(command) => command.run(store),
            ImageCommand::Remove(command) => command.run(store),
            ImageCommand::Prune(command) => command.run(store),
            ImageCommand::Tag(command) => command.run(store),
            ImageCommand::BuildBase(command) => command.run(store),
            ImageCommand::Build(command) => command.run(context),
            ImageCommand::Inspect(command) => command.run(store),
            ImageCommand::History(command) => command.run(store),
            ImageCommand::Exists(command) => command.run(store),
        }
    }
}

/// Tell by the exit code whether an image is there: 0 or 1
#[derive(Debug, Args)]
pub(crate) struct Exists {
    /// Name, id or id prefix
    image: String,
}

impl Exists {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        Ok(match find(store, &self.image)? {
            Some(_) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        })
    }
}

/// Show everything about images, as JSON
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A template that each is printed through, such as '{{.Id}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Names, ids or id prefixes
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Inspect {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        describe_each(self.format.as_deref(), &self.images, |name| {
            describe(store, &require(store, name)?)
        })
    }
}

/// An image under the key names of docker's `inspect`.
pub(crate) fn describe(store: &Store, image: &Image) -> Result<Value> {
    let names: Vec<Reference> = image
        .names
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    let tags: Vec<String> = names
        .iter()
        .filter(|name| name.tag().is_some())
        .map(Reference::familiar)
        .collect();
    let mut lower = qengine::image::lower_directories(store, image)?.into_iter();
    let upper = lower.next().unwrap_or_default();
    let lower: Vec<String> = lower.map(|path| path.display().to_string()).collect();
    let config = &image.config;
    Ok(json!({
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": image.repository_digests(),
        "Created": config.created,
        "Author": config.author.as_deref().unwrap_or_default(),
        "Architecture": config.architecture,
        "Variant": config.variant.as_deref().unwrap_or_default(),
        "Os": config.os,
        "Size": image.layers.iter().map(|chain| layers::size(store, chain)).sum::<u64>(),
        "Config": config.config,
        "RootFS": {"Type": "layers", "Layers": config.rootfs.diff_ids},
        "History": config.history,
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {"LowerDir": lower.join(":"), "UpperDir": upper},
        },
        "ManifestDigest": image.manifest.digest,
    }))
}
