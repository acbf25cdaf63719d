//! `--filter` of commands that list or remove images.

use anyhow::{Result, bail};
use jiff::Timestamp;
use qengine::image::{Filter, require};
use qengine::store::Store;

use super::time;

/// What `--filter` says. `before` and `since` name images, which have to be there.
pub(crate) fn filter(store: &Store, entries: &[String]) -> Result<Filter> {
    let mut filter = Filter::default();
    for entry in entries {
        let Some((key, value)) = entry.split_once('=') else {
            bail!("invalid filter {entry:?}: expected KEY=VALUE");
        };
        // `label!=x` has the mark on this side of the sign.
        match key {
            "dangling" => {
                filter.dangling = Some(match value {
                    "true" | "1" | "t" => true,
                    "false" | "0" | "f" => false,
                    _ => bail!("invalid filter dangling={value}: expected true or false"),
                });
            }
            "reference" => filter.references.push(value.to_owned()),
            "label" => filter.labels.push(value.to_owned()),
            "label!" => filter.missing_labels.push(value.to_owned()),
            "before" => earliest(&mut filter.before, created(store, value)?),
            "until" => earliest(&mut filter.before, time::parse(value)?),
            "since" | "after" => {
                let time = created(store, value)?;
                filter.since = Some(filter.since.map_or(time, |known| known.max(time)));
            }
            _ => bail!(
                "invalid filter '{key}': dangling, reference, label, label!, before, since and until are there"
            ),
        }
    }
    Ok(filter)
}

fn earliest(slot: &mut Option<Timestamp>, time: Timestamp) {
    *slot = Some(slot.map_or(time, |known| known.min(time)));
}

fn created(store: &Store, name: &str) -> Result<Timestamp> {
    let created = require(store, name)?.created();
    Ok(created.unwrap_or(Timestamp::UNIX_EPOCH))
}
