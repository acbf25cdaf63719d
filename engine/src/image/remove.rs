//! Removing images and names of images, by docker's rules.

use bundle_tools::Digest;
use bundle_tools::image::{Descriptor, Index};
use bundle_tools::layout::Layout;

use super::find::{entry_named, load, read_manifest, require};
use super::{Error, Image, Reference, Result, SOURCE_DIGEST, collect, layout, name};
use crate::store::{Event, Kind, Lock, Store};

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
    let target = match named {
        Some(entry) => Target::named(&layout, &index, entry, force)?,
        None => Target::by_id(&layout, &index, require(store, text)?, force)?,
    };
    let users = match &target.id {
        Some(id) if !target.keeps_a_name(&index) => in_use(id),
        _ => Vec::new(),
    };
    if let (Some(user), false) = (users.first(), force) {
        return Err(Error::Conflict {
            target: text.to_owned(),
            reason: format!("image is being used by container {user}"),
        });
    }
    let deleted = layout.update_index(|index| -> Result<bool> {
        for name in &target.names {
            name::take_away(index, name);
        }
        // A pull may have named it again meanwhile; what has no name any more goes, unless it is used.
        let keeps_a_name = target.keeps_a_name(index);
        if keeps_a_name || users.is_empty() {
            index.manifests.retain(|entry| {
                entry.ref_name().is_some() || !target.manifests.contains(&entry.digest)
            });
        }
        Ok(!keeps_a_name && users.is_empty())
    })?;
    drop(lock);

    let mut removals = untagged(&index, &target.names);
    let (id, names) = (target.id.as_ref().map(ToString::to_string), target.names);
    if deleted {
        removals.extend(target.id.map(|id| Removal::Deleted(id.to_string())));
        let freed = collect(store)?;
        let digests = freed.layers.iter().map(|hex| format!("sha256:{hex}"));
        removals.extend(digests.map(Removal::Deleted));
    }
    if let Some(id) = id {
        for name in &names {
            store.emit(&Event::new(Kind::Image, "untag", &id).with("name", name));
        }
        if deleted {
            store.emit(&Event::new(Kind::Image, "delete", &id).with("name", &id));
        }
    }
    Ok(removals)
}

/// What is to be removed.
struct Target {
    /// The image's id; `None` of an image that can't be read.
    id: Option<Digest>,
    /// The names to take away.
    names: Vec<String>,
    /// All manifests of the image: several, when it came in several compressions.
    manifests: Vec<Digest>,
}

impl Target {
    fn named(layout: &Layout, index: &Index, entry: &Descriptor, force: bool) -> Result<Target> {
        let names = entry.ref_name().map(str::to_owned).into_iter().collect();
        match load(layout, index, entry) {
            Ok(image) => Ok(Target {
                manifests: manifests_of(layout, index, &image.id),
                id: Some(image.id),
                names,
            }),
            // The way to get rid of one that can't be read.
            Err(_) if force => Ok(Target {
                id: None,
                names,
                manifests: vec![entry.digest.clone()],
            }),
            Err(error) => Err(error),
        }
    }

    /// An id stands for all names of an image, but only within one repository.
    fn by_id(layout: &Layout, index: &Index, image: Image, force: bool) -> Result<Target> {
        let manifests = manifests_of(layout, index, &image.id);
        let entries = index
            .manifests
            .iter()
            .filter(|entry| manifests.contains(&entry.digest));
        let names: Vec<String> = entries
            .filter_map(|entry| entry.ref_name().map(str::to_owned))
            .collect();
        let repository = |name: &String| {
            name.parse::<Reference>()
                .map(|reference| reference.name())
                .ok()
        };
        let mut repositories: Vec<String> = names.iter().filter_map(repository).collect();
        repositories.sort();
        repositories.dedup();
        if repositories.len() > 1 && !force {
            return Err(Error::Conflict {
                target: image.id.short().to_owned(),
                reason: "image is referenced in multiple repositories".to_owned(),
            });
        }
        Ok(Target {
            id: Some(image.id),
            names,
            manifests,
        })
    }

    /// Whether the image has a name besides those that are taken away.
    fn keeps_a_name(&self, index: &Index) -> bool {
        let mut entries = index
            .manifests
            .iter()
            .filter(|entry| self.manifests.contains(&entry.digest));
        entries.any(|entry| {
            entry
                .ref_name()
                .is_some_and(|name| !self.names.iter().any(|it| it == name))
        })
    }
}

fn manifests_of(layout: &Layout, index: &Index, id: &Digest) -> Vec<Digest> {
    let is_one = |entry: &&Descriptor| {
        read_manifest(layout, entry).is_ok_and(|(_, manifest)| manifest.config.digest == *id)
    };
    index
        .manifests
        .iter()
        .filter(is_one)
        .map(|entry| entry.digest.clone())
        .collect()
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
