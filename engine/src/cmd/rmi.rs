//! `rmi`, `image rm` and `image prune`: images go.

use std::process::ExitCode;

use anyhow::Result;
use bundle_tools::Digest;
use clap::Args;
use qengine::container::find::all;
use qengine::image::{Removal, collect, list, remove};
use qengine::store::Store;

use super::images::human_size;
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
    /// Don't ask; nothing is ever asked
    #[arg(short, long)]
    force: bool,
}

impl Prune {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = self.force;
        let in_use = |image: &Digest| users(store, image);
        let before = occupied(store)?;
        for listed in list(store)? {
            let image = listed.image;
            let doomed = self.all || image.names.is_empty();
            if doomed && in_use(&image.id).is_empty() {
                // A container made of it in this very moment keeps it.
                match remove(store, &image.id.to_string(), self.all, &in_use) {
                    Ok(removals) => print(&removals)?,
                    Err(
                        qengine::image::Error::Conflict { .. } | qengine::image::Error::NotFound(_),
                    ) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        collect(store)?;
        let freed = before.saturating_sub(occupied(store)?);
        say(format_args!("Total reclaimed space: {}", human_size(freed)))?;
        Ok(ExitCode::SUCCESS)
    }
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
