//! A container's changes as a new image.

use std::path::PathBuf;

use bundle_tools::image::{ContainerConfig, History, ImageConfig};
use bundle_tools::layer::diff;
use jiff::Timestamp;

use super::bundle::MADE_FILES;
use super::find::Handle;
use super::live::Live;
use super::{Error, Programs, Result, stop};
use crate::build::change::change;
use crate::image::{self, Image, Reference};
use crate::store::Store;

/// What the new image says besides the changes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its name; an image without one is found by its id.
    pub reference: Option<Reference>,
    /// Who made it.
    pub author: Option<String>,
    /// Why.
    pub message: Option<String>,
    /// Instructions that change its configuration, such as `CMD sh`.
    pub changes: Vec<String>,
    /// Freeze the container meanwhile, so that no file is caught half written.
    pub pause: bool,
}

/// Makes an image whose only new layer is what the container has changed.
///
/// # Errors
/// When the changes can't be read or the image can't be written.
pub fn commit(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    options: &Options,
) -> Result<Image> {
    // Before anything is done: a mistyped instruction must not cost a layer.
    change(&mut ContainerConfig::default(), &options.changes)
        .map_err(|error| Error::Invalid(error.message))?;
    let _lock = handle.lock()?;
    let (_, live) = handle.live(store)?;
    let pause = options.pause && live == Live::Running;
    if pause {
        stop::runtime(store, programs, handle, "pause")?;
    }
    let result = write(store, handle, options);
    if pause {
        stop::runtime(store, programs, handle, "resume")?;
    }
    let image = result?;
    let name = options.reference.as_ref().map(ToString::to_string);
    let event = handle
        .event("commit")
        .with("comment", options.message.clone().unwrap_or_default())
        .with("imageID", image.id.to_string())
        .with("imageRef", name.unwrap_or_default());
    store.emit(&event);
    Ok(image)
}

fn write(store: &Store, handle: &Handle, options: &Options) -> Result<Image> {
    let config = &handle.config;
    let base = image::find(store, &config.image_id.to_string())?.ok_or_else(|| {
        Error::Invalid(format!(
            "the image of container {} has been removed",
            handle.name()
        ))
    })?;
    let upper = handle.upper();
    let mut new = committed_config(handle, &base, options);
    change(&mut new.config, &options.changes).map_err(|error| Error::Invalid(error.message))?;
    if !std::fs::read_dir(&upper).is_ok_and(|mut entries| entries.next().is_some()) {
        // It was never started: as in docker, there is no layer then that would hold nothing.
        if let Some(step) = new.history.last_mut() {
            step.empty_layer = true;
        }
        let _guard = image::WriterGuard::take(store)?;
        let names: Vec<Reference> = options.reference.iter().cloned().collect();
        let layers = image::built::blobs_of(store, &base)?;
        return Ok(image::built::publish(store, new, layers, &names, &[])?);
    }
    // The places where the made files were bound are not the container's doing.
    let exclude = MADE_FILES.map(|(_, path)| PathBuf::from(path.trim_start_matches('/')));
    let options_of_layer = diff::Options {
        exclude: exclude.to_vec(),
        ..diff::Options::default()
    };
    let layer: Box<image::LayerSource<'_>> = Box::new(move |out| {
        diff::write_upper(&upper, out, &options_of_layer)?;
        Ok(())
    });
    image::add_layer_image(store, Some(&base), layer, new, options.reference.as_ref())
        .map_err(Error::from)
}

/// The image's configuration with what the container was told otherwise, as docker does it: the command, the
/// environment, the working directory, the user become the new image's.
fn committed_config(handle: &Handle, base: &Image, options: &Options) -> ImageConfig {
    let asked = &handle.config.options;
    let mut config = base.config.clone();
    let inner = &mut config.config;
    if asked.entrypoint.is_some() {
        inner.entrypoint.clone_from(&asked.entrypoint);
        inner.cmd = None;
    }
    if !asked.command.is_empty() {
        inner.cmd = Some(asked.command.clone());
    }
    for entry in &asked.env {
        if let Some((name, _)) = entry.split_once('=') {
            let prefix = format!("{name}=");
            inner.env.retain(|old| !old.starts_with(&prefix));
            inner.env.push(entry.clone());
        }
    }
    if let Some(workdir) = &asked.workdir {
        inner.working_dir.clone_from(workdir);
    }
    if let Some(user) = &asked.user {
        inner.user.clone_from(user);
    }
    if let Some(signal) = &asked.stop_signal {
        inner.stop_signal = Some(signal.clone());
    }
    for port in &asked.ports {
        let key = format!("{}/{}", port.container_port, port.protocol);
        inner
            .exposed_ports
            .entry(key)
            .or_insert_with(|| serde_json::json!({}));
    }
    inner.labels.extend(asked.labels.clone());
    config.history.push(History {
        created: Some(Timestamp::now().to_string()),
        created_by: Some(handle.config.args.join(" ")),
        comment: options.message.clone(),
        ..History::default()
    });
    config.author.clone_from(&options.author);
    config.created = Some(Timestamp::now().to_string());
    config
}
