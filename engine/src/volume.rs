//! Volumes: directories that outlive the containers using them.
//!
//! ```text
//! volumes/<name>/lock          held for reading while a container is being made that mentions the volume, alone while
//!                              it is filled, mounted or removed
//!               /volume.json   who made it, when, and how ([`Volume`])
//!               /_data         what containers see
//!               /_fresh        a copy of an image's files in the making, see [`fill`]
//!               /_ready        such a copy, complete, on its way into `_data`
//! ```
//!
//! A volume appears under its name complete, by a rename, and goes by a rename into `trash`, so that nobody ever sees
//! a half of one. Who uses a volume is not written down here: the containers' own records say it, and whoever removes a
//! volume asks them under the volume's lock. The module knows nothing of containers; callers pass what has to be asked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::store::event::{Event, Kind};
use crate::store::{self, Lock, Store};

mod create;
mod device;
mod fill;
mod remove;

pub use create::{CreateOptions, create, hold, make};
pub(crate) use device::bind_downstream;
pub use fill::{Content, prepare};
pub use remove::{prune, release, remove, remove_anonymous};

/// The only driver there is.
pub const DRIVER: &str = "local";
/// Docker's mark on a volume that got its name from nobody.
pub const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// What can go wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No volume of that name.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// A name that could lead elsewhere, or that docker would refuse as well.
    #[error(
        "{0:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )]
    BadName(String),
    /// A driver nobody knows.
    #[error("create {name}: error looking up volume plugin {driver}: plugin {driver:?} not found")]
    NoDriver {
        /// The volume.
        name: String,
        /// The driver asked for.
        driver: String,
    },
    /// An option of the driver that it can't follow.
    #[error("create {name}: {why}")]
    BadOption {
        /// The volume.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Containers mention it.
    #[error("remove {name}: volume is in use - [{}]", .users.join(", "))]
    InUse {
        /// The volume.
        name: String,
        /// Ids of the containers.
        users: Vec<String>,
    },
    /// What the volume's options name can't be mounted.
    #[error("failed to mount local volume {name}: mount {device}:{}, options {options:?}", .path.display())]
    Mount {
        /// The volume.
        name: String,
        /// What was to be mounted.
        device: String,
        /// Where.
        path: PathBuf,
        /// As given.
        options: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A path inside a volume that is not there.
    #[error("cannot use {subpath:?} of volume {name}")]
    Subpath {
        /// The volume.
        name: String,
        /// The path asked for.
        subpath: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The image's files can't be copied into it.
    #[error("cannot copy the image's files into volume {name}")]
    Fill {
        /// The volume.
        name: String,
        /// What went wrong.
        source: bundle_tools::layer::CopyError,
    },
    /// A file of the store could not be handled.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// `volume.json`: what is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Options of the driver: `type`, `device`, `o`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Named by the engine, for one container.
    #[serde(default)]
    pub anonymous: bool,
}

impl Volume {
    /// The directory that containers see.
    #[must_use]
    pub fn data(&self, store: &Store) -> PathBuf {
        data(store, &self.name)
    }

    /// Labels as docker shows them: its own mark of an anonymous volume among them.
    #[must_use]
    pub fn shown_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        if self.anonymous {
            labels.entry(ANONYMOUS_LABEL.to_owned()).or_default();
        }
        labels
    }

    /// Whether its content is somewhere else, mounted while it is used.
    #[must_use]
    pub fn is_mounted_on_use(&self) -> bool {
        !self.options.is_empty()
    }
}

/// Looks a volume up by its name.
///
/// # Errors
/// [`Error::NotFound`], or the store can't be read.
pub fn find(store: &Store, name: &str) -> Result<Volume> {
    if check_name(name).is_err() {
        return Err(Error::NotFound(name.to_owned()));
    }
    load(store, name)?.ok_or_else(|| Error::NotFound(name.to_owned()))
}

/// All volumes by name. Also takes away what killed makers have left.
///
/// # Errors
/// When the store can't be read.
pub fn list(store: &Store) -> Result<Vec<Volume>> {
    use store::Context;
    let directory = store.volumes();
    let mut volumes = Vec::new();
    for entry in fs::read_dir(&directory).context("read", &directory)? {
        let name = entry.context("read", &directory)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.starts_with(create::UNBORN) {
            create::collect_unborn(store, name);
        } else if let Some(volume) = load(store, name)? {
            volumes.push(volume);
        }
    }
    volumes.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(volumes)
}

/// The record of a volume; `None` when there is no such volume. Where the record was lost to a power cut the
/// directory says enough.
fn load(store: &Store, name: &str) -> Result<Option<Volume>> {
    let home = home(store, name);
    match store::read_json::<Volume>(&home.join(RECORD)) {
        Ok(Some(volume)) => return Ok(Some(volume)),
        Ok(None) | Err(store::Error::Damaged { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let Ok(metadata) = fs::metadata(home.join(DATA)) else {
        return Ok(None);
    };
    let created = metadata
        .modified()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok())
        .unwrap_or_else(Timestamp::now);
    let is_random = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(Some(Volume {
        name: name.to_owned(),
        created,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        anonymous: is_random,
    }))
}

/// A name is one path component that can't be mistaken for anything else.
///
/// # Errors
/// [`Error::BadName`].
pub fn check_name(name: &str) -> Result<()> {
    if store::is_name(name) && name.len() <= 255 {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

const DATA: &str = "_data";
const RECORD: &str = "volume.json";
const LOCK: &str = "lock";

/// Everything of one volume.
fn home(store: &Store, name: &str) -> PathBuf {
    store.volumes().join(name)
}

/// The directory that containers see.
#[must_use]
pub fn data(store: &Store, name: &str) -> PathBuf {
    home(store, name).join(DATA)
}

/// Notes in the journal what happened to a volume.
fn tell(store: &Store, name: &str, action: &str) {
    store.emit(&Event::new(Kind::Volume, action, name).with("driver", DRIVER));
}

/// Takes a volume's lock; `None` when there is no such volume (any more).
fn lock(store: &Store, name: &str, take: fn(&Path) -> store::Result<Lock>) -> Result<Option<Lock>> {
    let path = home(store, name).join(LOCK);
    loop {
        let lock = match take(&path) {
            Err(store::Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        // Removed while we waited, and perhaps made anew since.
        if lock.is_at(&path) {
            return Ok(Some(lock));
        }
    }
}

#[cfg(test)]
mod tests;
