//! The environment of the container's process.

use super::{Overrides, PATH};
use crate::image::ImageConfig;

/// Docker's defaults, the image's entries, the caller's: the later of a name wins,
/// in the place of the first. Then `HOME`, unless somebody set it.
pub(super) fn of(config: &ImageConfig, overrides: &Overrides, home: &str) -> Vec<String> {
    let mut environment = vec![format!("PATH={PATH}")];
    if let Some(hostname) = &overrides.hostname {
        environment.push(format!("HOSTNAME={hostname}"));
    }
    if overrides.terminal {
        environment.push("TERM=xterm".to_owned());
    }
    for entry in &config.config.env {
        // Without a value it would be the host's to give, and it gives none.
        if name(entry).is_some() {
            set(&mut environment, entry);
        }
    }
    for entry in &overrides.env {
        match name(entry) {
            Some(_) => set(&mut environment, entry),
            None => environment.retain(|known| name(known) != Some(entry)),
        }
    }
    if !environment.iter().any(|entry| name(entry) == Some("HOME")) {
        environment.push(format!("HOME={home}"));
    }
    environment
}

fn set(environment: &mut Vec<String>, entry: &str) {
    match environment
        .iter_mut()
        .find(|known| name(known) == name(entry))
    {
        Some(known) => entry.clone_into(known),
        None => environment.push(entry.to_owned()),
    }
}

/// The name of a `NAME=VALUE` entry; `None` for what is no such entry.
fn name(entry: &str) -> Option<&str> {
    let (name, _) = entry.split_once('=')?;
    // A NUL byte would cut the entry short for whoever reads it.
    (!name.is_empty() && !entry.contains('\0')).then_some(name)
}
