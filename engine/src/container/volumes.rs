//! What containers have to do with volumes: who mentions which, making them with a container, letting go of them.

use std::collections::BTreeSet;
use std::path::Path;

use super::create::clean_path;
use super::find::{self, Handle};
use super::live::{Live, judge};
use super::model::{Options, Status, Volume, VolumeSource};
use super::{Error, Result};
use crate::image;
use crate::store::{Lock, Store};
use crate::volume::{self, CreateOptions};

/// Ids of the containers that mention a volume, running or not. Asked under the volume's lock, when nobody can be
/// making one that does.
#[must_use]
pub fn users(store: &Store, name: &str) -> Vec<String> {
    mentioning(store, name, |_| true)
}

/// Ids of the containers that match and mention a volume.
///
/// A container whose record can't be read may mention any: better a volume that stays than one that was needed.
fn mentioning(store: &Store, name: &str, matches: impl Fn(&Handle) -> bool) -> Vec<String> {
    let Ok(ids) = find::ids(store) else {
        return vec![format!(
            "in {}, which can't be read",
            store.containers().display()
        )];
    };
    let mentions_it = |id: &String| match Handle::open(store, id) {
        Ok(Some(handle)) => mentions(&handle.config.options, name) && matches(&handle),
        Ok(None) => false,
        Err(_) => true,
    };
    ids.into_iter().filter(mentions_it).collect()
}

fn mentions(options: &Options, name: &str) -> bool {
    options
        .volumes
        .iter()
        .any(|volume| volume.name() == Some(name))
}

/// Checks what is to be mounted: no two things at one place, no `--mount` of what is not there.
pub(super) fn check(store: &Store, options: &Options) -> Result<()> {
    let mut taken = BTreeSet::new();
    let tmpfs = options.tmpfs.iter().filter_map(|entry| {
        let destination = entry.split(':').next().unwrap_or_default();
        clean_path(destination)
    });
    let volumes = options
        .volumes
        .iter()
        .map(|volume| volume.destination.clone());
    for destination in volumes.chain(tmpfs) {
        if taken.contains(&destination) {
            return Err(Error::Invalid(format!(
                "Duplicate mount point: {destination}"
            )));
        }
        taken.insert(destination);
    }
    for volume in &options.volumes {
        match &volume.source {
            VolumeSource::Path(path) if volume.mount.is_some() && !Path::new(path).exists() => {
                return Err(missing_source(path));
            }
            VolumeSource::Image(mounted) => {
                // The caller keeps images from being removed meanwhile.
                let image = image::require(store, &mounted.id.to_string())?;
                image::lower_directories(store, &image)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Docker's words.
pub(super) fn missing_source(path: &str) -> Error {
    Error::Invalid(format!(
        "invalid mount config for type \"bind\": bind source path does not exist: {path}"
    ))
}

/// What is kept while a container is being made, and what to undo if that fails.
#[derive(Debug, Default)]
pub(super) struct Held {
    _locks: Vec<Lock>,
}

/// Makes the named volumes that are not there yet, and keeps all that are from being removed until the container's
/// record mentions them.
pub(super) fn hold(store: &Store, options: &Options) -> Result<Held> {
    let mut locks = Vec::new();
    // In the order of their names, each once: two makers can't wait for each other.
    let mut sorted: Vec<&Volume> = options.volumes.iter().collect();
    sorted.sort_by_key(|volume| volume.name());
    sorted.dedup_by_key(|volume| volume.name());
    for volume in sorted {
        match &volume.source {
            VolumeSource::Named(name) => locks.push(volume::hold(store, &wanted(volume, name))?),
            // Another container's, by `--volumes-from`.
            VolumeSource::Anonymous(name) if volume::data(store, name).exists() => {
                locks.push(volume::hold(store, &wanted(volume, name))?);
            }
            _ => {}
        }
    }
    Ok(Held { _locks: locks })
}

/// Makes the container's own anonymous volumes, which its record mentions already: whatever is killed from here on,
/// they go with the container.
pub(super) fn make_anonymous(store: &Store, options: &Options) -> Result<()> {
    let mut made = Vec::new();
    for volume in &options.volumes {
        let VolumeSource::Anonymous(name) = &volume.source else {
            continue;
        };
        match volume::make(store, &wanted(volume, name)) {
            Ok((_, true)) => made.push(name),
            Ok((_, false)) => {}
            Err(error) => {
                for name in made {
                    drop(volume::remove_anonymous(store, name, &|_| Vec::new()));
                }
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// How a volume is made that a container asks for.
fn wanted(volume: &Volume, name: &str) -> CreateOptions {
    let mount = volume.mount.clone().unwrap_or_default();
    CreateOptions {
        name: name.to_owned(),
        driver: mount.driver,
        labels: mount.labels,
        options: mount.driver_options,
        anonymous: matches!(volume.source, VolumeSource::Anonymous(_)),
    }
}

/// Makes what a start needs and finds gone: an anonymous volume whose container was killed while being made.
pub(super) fn make_missing(store: &Store, volume: &Volume, name: &str) -> Result<()> {
    if !volume::data(store, name).exists() {
        volume::create(store, &wanted(volume, name))?;
    }
    Ok(())
}

/// Removes a container's anonymous volumes, but those that another container mentions as well.
pub(super) fn remove_anonymous(store: &Store, handle: &Handle) -> Result<()> {
    for volume in &handle.config.options.volumes {
        if let VolumeSource::Anonymous(name) = &volume.source {
            volume::remove_anonymous(store, name, &|name| {
                mentioning(store, name, |other| other.id() != handle.id())
            })?;
        }
    }
    Ok(())
}

/// Takes away the mounts of volumes that this container was the last to use.
pub(super) fn release(store: &Store, handle: &Handle) -> Result<()> {
    for name in handle
        .config
        .options
        .volumes
        .iter()
        .filter_map(Volume::name)
    {
        volume::release(store, name, &|name| {
            mentioning(store, name, |other| {
                other.id() != handle.id() && is_up(store, other)
            })
        })?;
    }
    Ok(())
}

/// Whether a container has its mounts, or may be about to get them.
fn is_up(store: &Store, handle: &Handle) -> bool {
    match handle.state() {
        Ok(state) if state.status == Status::Starting => true,
        Ok(state) => {
            let live = judge(store, handle.id(), &state);
            live.is_running() && live != Live::Removing
        }
        Err(_) => false,
    }
}
