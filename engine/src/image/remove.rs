//! Removing images and names of images, by docker's rules.

use bundle_tools::Digest;
use bundle_tools::image::{Index, REF_NAME};

use super::find::{entry_named, load, require};
use super::{Error, Image, Reference, Result, SOURCE_DIGEST, collect, layout, name};
use crate::store::{Lock, Store};

/// One thing that [`remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The name (as people type it) is gone.
    Untagged(String),
    /// The image, or the layer of this chain id, is gone.
    Deleted(String),
}

/// Removes a name; with its last name (or when `text` is an id) the image itself, its blobs and layers.
///
/// `in_use` tells which containers use an image. An image that is used loses its names only, and only with `force`:
/// it stays, untagged, until its containers are gone.
///
/// # Errors
/// No such image; an image in use or of several names without `force`; a store that can't be written.
pub fn remove(
    store: &Store,
    text: &str,
    force: bool,
    in_use: &dyn Fn(&Digest) -> Vec<String>,
) -> Result<Vec<Removal>> {
    // Exclusively: from here on nobody starts to use an image that we find unused.
    let lock = Lock::exclusive(&store.root().join("images.lock"))?;
    let layout = layout(store)?;
    let index = layout.index()?;
    let named = text
        .parse::<Reference>()
        .ok()
        .and_then(|reference| entry_named(&index, &reference));
    let (image, doomed) = match named {
        Some(entry) => {
            let image = load(&layout, &index, entry)?;
            let name = entry.annotations.get(REF_NAME).cloned();
            (image, name.into_iter().collect())
        }
        None => {
            let image = require(store, text)?;
            check_one_repository(&image, force)?;
            let names = image.names.clone();
            (image, names)
        }
    };
    let keeps_a_name = doomed.len() < image.names.len();
    let users = if keeps_a_name {
        Vec::new()
    } else {
        in_use(&image.id)
    };
    if let Some(user) = users.first()
        && !force
    {
        return Err(Error::Conflict {
            target: text.to_owned(),
            reason: format!(
                "image {} is being used by container {user}",
                image.id.short()
            ),
        });
    }
    layout.update_index(|index| -> Result<()> {
        for name in &doomed {
            name::take_away(index, name);
        }
        if !keeps_a_name && users.is_empty() {
            index
                .manifests
                .retain(|entry| entry.digest != image.manifest.digest);
        }
        Ok(())
    })?;
    drop(lock);

    let mut removals = untagged(&index, &doomed);
    if !keeps_a_name && users.is_empty() {
        removals.push(Removal::Deleted(image.id.to_string()));
        let freed = collect(store)?;
        let digests = freed.layers.iter().map(|hex| format!("sha256:{hex}"));
        removals.extend(digests.map(Removal::Deleted));
    }
    Ok(removals)
}

/// An id stands for all names of an image, but only within one repository.
fn check_one_repository(image: &Image, force: bool) -> Result<()> {
    let mut repositories: Vec<String> = image
        .names
        .iter()
        .filter_map(|name| name.parse::<Reference>().ok())
        .map(|reference| reference.name())
        .collect();
    repositories.dedup();
    if repositories.len() > 1 && !force {
        return Err(Error::Conflict {
            target: image.id.short().to_owned(),
            reason: "image is referenced in multiple repositories".to_owned(),
        });
    }
    Ok(())
}

fn untagged(index: &Index, names: &[String]) -> Vec<Removal> {
    let mut removals = Vec::new();
    for name in names {
        let familiar = |name: &str| {
            name.parse::<Reference>()
                .map_or(name.to_owned(), |it| it.familiar())
        };
        removals.push(Removal::Untagged(familiar(name)));
        let entry = index
            .manifests
            .iter()
            .find(|entry| entry.ref_name() == Some(name));
        let digest = entry.and_then(|entry| entry.annotations.get(SOURCE_DIGEST));
        if let (Some(digest), Ok(reference)) = (digest, name.parse::<Reference>())
            && reference.digest().is_none()
        {
            removals.push(Removal::Untagged(format!(
                "{}@{digest}",
                reference.familiar_name()
            )));
        }
    }
    removals
}
