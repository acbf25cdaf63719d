//! What `inspect` says of mounts: as asked for in `HostConfig`, as they are in `Mounts`.

use serde_json::{Map, Value, json};

use crate::container::bundle::MADE_FILES;
use crate::container::find::Handle;
use crate::container::model::{Options, Volume, VolumeSource};
use crate::store::Store;
use crate::volume;

/// The `-v` entries, as docker writes them.
pub(super) fn binds(options: &Options) -> Vec<String> {
    options.volumes.iter().filter_map(bind_text).collect()
}

fn bind_text(volume: &Volume) -> Option<String> {
    let source = match &volume.source {
        VolumeSource::Path(path) => path,
        VolumeSource::Named(name) => name,
        VolumeSource::Anonymous(_) | VolumeSource::Tmpfs | VolumeSource::Image(_) => return None,
    };
    if volume.mount.is_some() {
        return None;
    }
    let mode = if volume.options.is_empty() {
        String::new()
    } else {
        format!(":{}", volume.options.join(","))
    };
    Some(format!("{source}:{}{mode}", volume.destination))
}

/// The `--mount` entries.
pub(super) fn asked(options: &Options) -> Vec<Value> {
    let entries = options
        .volumes
        .iter()
        .filter(|volume| volume.mount.is_some());
    entries
        .map(|volume| {
            let (kind, source) = match &volume.source {
                VolumeSource::Path(path) => ("bind", path.as_str()),
                VolumeSource::Named(name) => ("volume", name.as_str()),
                VolumeSource::Anonymous(_) => ("volume", ""),
                VolumeSource::Tmpfs => ("tmpfs", ""),
                VolumeSource::Image(image) => ("image", image.reference.as_str()),
            };
            let mut entry = json!({"Type": kind, "Target": volume.destination});
            if !source.is_empty() {
                entry["Source"] = json!(source);
            }
            if volume.read_only {
                entry["ReadOnly"] = json!(true);
            }
            entry
        })
        .collect()
}

/// `--tmpfs` as docker keeps it: destination and options.
pub(super) fn tmpfs(options: &Options) -> Map<String, Value> {
    options
        .tmpfs
        .iter()
        .map(|entry| {
            let (destination, options) = entry.split_once(':').unwrap_or((entry, ""));
            (destination.to_owned(), json!(options))
        })
        .collect()
}

/// What is mounted where, the engine's own files included.
pub(super) fn points(store: &Store, handle: &Handle) -> Vec<Value> {
    let made = MADE_FILES.into_iter().map(|(file, destination)| {
        json!({
            "Type": "bind",
            "Source": handle.directory().join(file),
            "Destination": destination,
            "Mode": "",
            "RW": true,
            "Propagation": "rprivate",
        })
    });
    let volumes = handle.config.options.volumes.iter();
    made.chain(volumes.map(|volume| point(store, volume)))
        .collect()
}

fn point(store: &Store, volume: &Volume) -> Value {
    let propagation = volume.propagation();
    let mut entry = match &volume.source {
        VolumeSource::Path(path) => json!({
            "Type": "bind",
            "Source": path,
            "Propagation": propagation.unwrap_or("rprivate"),
        }),
        VolumeSource::Named(name) | VolumeSource::Anonymous(name) => json!({
            "Type": "volume",
            "Name": name,
            "Source": volume::data(store, name),
            "Driver": volume::DRIVER,
            "Propagation": propagation.unwrap_or(""),
        }),
        VolumeSource::Tmpfs => json!({"Type": "tmpfs", "Source": "", "Propagation": ""}),
        VolumeSource::Image(image) => json!({
            "Type": "image",
            "Source": image.reference,
            "Propagation": "",
        }),
    };
    let is_mount = volume.mount.is_some();
    entry["Destination"] = json!(volume.destination);
    entry["Mode"] = json!(if is_mount {
        String::new()
    } else {
        volume.options.join(",")
    });
    entry["RW"] = json!(!volume.read_only);
    entry
}
