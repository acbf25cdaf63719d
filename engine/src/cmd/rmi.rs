//! `rmi`, `image rm` and `image prune`: images go.

use std::process::ExitCode;

use anyhow::Result;
use bundle_tools::Digest;
use clap::Args;
use qengine::container::find::all;
use qengine::image::{Removal, collect, list, remove};
use qengine::store::Store;

use super::images::human_size;
use super::prune::{Filter, confirm, end, headed};
use crate::output::say;

/// Remove images, or names of images.
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Names, ids or id prefixes
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Remove all names of an id; take the names even of an image in use; don't mind what is not there
    #[arg(short, long)]
    force: bool,
    /// Accepted for docker's sake: there are no untagged parents
    #[arg(long)]
    no_prune: bool,
}

impl Rmi {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = self.no_prune;
        let in_use = |image: &Digest| users(store, image);
        let mut failed = false;
        for text in &self.images {
            match remove(store, text, self.force, &in_use) {
                Ok(removals) => print(&removals)?,
                Err(qengine::image::Error::NotFound(_)) if self.force => {}
                Err(error) => {
                    failed = true;
                    super::report(&error.into());
                }
            }
        }
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Remove untagged images that no container uses, and what interrupted commands left.
#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// Also remove images that have names
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let filter = Filter::parse(&self.filter)?;
        let doomed = match self.all {
            true => "all images without at least one container associated to them",
            false => "all dangling images",
        };
        if !self.force && !confirm(&[doomed])? {
            return Ok(ExitCode::SUCCESS);
        }
        let freed = prune(store, self.all, &filter)?;
        say(format_args!("Total reclaimed space: {}", human_size(freed)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes images that no container uses: untagged ones, or with `named` all of them; returns the bytes they held.
pub(super) fn prune(store: &Store, named: bool, filter: &Filter) -> Result<u64> {
    let in_use = |image: &Digest| users(store, image);
    let before = occupied(store)?;
    let mut heading = Some("Deleted Images:");
    for listed in list(store)? {
        let image = listed.image;
        let doomed = (named || image.names.is_empty())
            && filter.accepts(image.created(), &image.config.config.labels);
        if doomed && in_use(&image.id).is_empty() {
            // A container made of it in this very moment keeps it.
            match remove(store, &image.id.to_string(), named, &in_use) {
                Ok(removals) => {
                    for removal in &removals {
                        headed(&mut heading, &line(removal))?;
                    }
                }
                Err(
                    qengine::image::Error::Conflict { .. } | qengine::image::Error::NotFound(_),
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    end(&heading)?;
    let bytes = collect(store)?.bytes;
    Ok(before.saturating_sub(occupied(store)?) + bytes)
}

/// Bytes of unpacked layers, each counted once.
fn occupied(store: &Store) -> Result<u64> {
    Ok(qengine::image::layers::total_size(store)?)
}

/// Names of the containers that use an image. What can't be read counts as using it, so that nothing is lost.
fn users(store: &Store, image: &Digest) -> Vec<String> {
    match all(store) {
        Ok(handles) => handles
            .iter()
            .filter(|handle| handle.config.uses_image(image))
            .map(|handle| handle.config.short_id().to_owned())
            .collect(),
        Err(error) => vec![format!("(unknown: {error})")],
    }
}

fn print(removals: &[Removal]) -> Result<()> {
    for removal in removals {
        say(format_args!("{}", line(removal)))?;
    }
    Ok(())
}

fn line(removal: &Removal) -> String {
    match removal {
        Removal::Untagged(name) => format!("Untagged: {name}"),
        Removal::Deleted(digest) => format!("Deleted: {digest}"),
    }
}
