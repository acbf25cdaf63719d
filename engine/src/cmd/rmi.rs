//! `rmi`, `image rm` and `image prune`: images go.

use std::process::ExitCode;

use anyhow::Result;
use bundle_tools::Digest;
use clap::Args;
use qengine::container::find::all;
use qengine::image::{Removal, collect, list, remove};
use qengine::store::Store;

use super::images::human_size;
use crate::flags::images::filter;
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
    /// Only those: until=TIME, label=NAME[=VALUE], label!=…, dangling=BOOL, reference=PATTERN, before=IMAGE, since=IMAGE
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let _ = self.force;
        let in_use = |image: &Digest| users(store, image);
        let mut filter = filter(store, &self.filter)?;
        // As in docker, "dangling" does not narrow the choice here but widens it.
        let all = self.all || filter.dangling.take() == Some(false);
        let before = occupied(store)?;
        for listed in list(store)? {
            let image = listed.image;
            let names: Vec<&String> = image.names.iter().collect();
            let wanted = |name: &&String| name.parse().is_ok_and(|name| filter.fits_name(&name));
            let doomed = match names[..] {
                [] => filter.references.is_empty(),
                _ => all && names.iter().all(wanted),
            };
            if !doomed || !filter.fits(&image) || !in_use(&image.id).is_empty() {
                continue;
            }
            let id = image.id.to_string();
            let targets = if names.is_empty() { vec![&id] } else { names };
            for target in targets {
                // A container made of it in this very moment keeps it.
                match remove(store, target, false, &in_use) {
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
