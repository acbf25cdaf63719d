//! Remembered steps: `build-cache/<key>`, one small file a step.
//!
//! The key is a digest over everything a step's result depends on: the file system it starts from (by chain id), the
//! whole configuration so far, the instruction after substitution, the build arguments it can see, and for `COPY` and
//! `ADD` the digest of what is copied. Taking the configuration as a whole leaves nothing to be forgotten
//! (CVE-2024-24557 was a key without health checks and triggers).
//!
//! A record is written when its layer is complete and is replaced as a whole, so a kill leaves nothing half done. It
//! is worth nothing without the layer, or when it can't be read; then the step is done again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bundle_tools::Digest;
use bundle_tools::digest::Hasher;
use bundle_tools::image::{Descriptor, ImageConfig};
use serde::{Deserialize, Serialize};

use super::Result;
use crate::image::built::BuiltLayer;
use crate::image::layers;
use crate::store::{self, Context, Durability, Lock, Store, make_dir};

/// Changes when keys or records get another meaning.
const VERSION: &[u8] = b"1";
/// Length of a key in hexadecimal digits; other files in the directory are no records.
const KEY_LENGTH: usize = 64;

/// What a step came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// When it was done: an image built again of the same steps is the same image.
    pub(super) created: String,
    /// Its layer, if it made one.
    pub(super) layer: Option<Kept>,
}

/// A layer as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    diff_id: Digest,
    chain: Digest,
    blob: Option<Descriptor>,
}

impl From<BuiltLayer> for Kept {
    fn from(layer: BuiltLayer) -> Kept {
        Kept {
            diff_id: layer.diff_id,
            chain: layer.chain,
            blob: layer.blob,
        }
    }
}

impl From<Kept> for BuiltLayer {
    fn from(kept: Kept) -> BuiltLayer {
        BuiltLayer {
            diff_id: kept.diff_id,
            chain: kept.chain,
            blob: kept.blob,
        }
    }
}

/// A key in the making.
#[derive(Debug)]
pub(super) struct Key(Hasher);

impl Key {
    /// Starts with the state that the step starts from.
    pub(super) fn new(chain: Option<&Digest>, config: &ImageConfig) -> Key {
        let mut key = Key(Hasher::sha256());
        key.add(VERSION);
        key.add(chain.map_or("scratch", Digest::as_str).as_bytes());
        let identity = ImageConfig {
            history: Vec::new(),
            created: None,
            ..config.clone()
        };
        // It is made of strings and maps of strings, which can always be written.
        key.add(&serde_json::to_vec(&identity).unwrap_or_default());
        key
    }

    /// Adds something the result depends on; where one part ends and the next starts counts too.
    pub(super) fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    pub(super) fn finish(self) -> Digest {
        self.0.finish()
    }
}

pub(super) fn directory(store: &Store) -> PathBuf {
    store.root().join("build-cache")
}

/// What is remembered under a key, if it is still of use.
pub(super) fn find(store: &Store, key: &Digest) -> Option<Record> {
    let record: Record = store::read_json(&directory(store).join(key.hex())).ok()??;
    if let Some(layer) = &record.layer
        && !layers::is_ready(store, &layer.chain).unwrap_or(false)
    {
        return None;
    }
    Some(record)
}

/// Remembers a step.
pub(super) fn keep(store: &Store, key: &Digest, record: &Record) -> Result<()> {
    let directory = directory(store);
    make_dir(&directory)?;
    Ok(store::write_json(
        &directory.join(key.hex()),
        record,
        Durability::Volatile,
    )?)
}

/// The directories of `RUN --mount=type=cache`: `<name>/data`, beside a lock that users of it hold.
pub(super) fn mounts(store: &Store) -> PathBuf {
    directory(store).join("mounts")
}

/// The archive that a layer was packed into after its step.
pub(super) fn blob(store: &Store, diff_id: &Digest) -> Option<Descriptor> {
    store::read_json(&directory(store).join("blobs").join(diff_id.hex())).ok()?
}

/// Remembers the archive that a layer was packed into.
pub(super) fn keep_blob(store: &Store, diff_id: &Digest, blob: &Descriptor) -> Result<()> {
    let directory = directory(store).join("blobs");
    make_dir(&directory)?;
    Ok(store::write_json(
        &directory.join(diff_id.hex()),
        blob,
        Durability::Volatile,
    )?)
}

/// Chain ids of all layers that remembered steps have made, as hex digits.
///
/// # Errors
/// When the directory can't be read.
pub fn cached_layers(store: &Store) -> store::Result<Vec<String>> {
    let chains = records(store)?.into_iter().filter_map(|path| {
        let record: Record = store::read_json(&path).ok()??;
        Some(record.layer?.chain.hex().to_owned())
    });
    Ok(chains.collect())
}

/// Forgets all steps. The layers that nothing else needs go with the next collection
/// ([`fn@crate::image::collect`]). Returns how many there were.
///
/// # Errors
/// When a file can't be removed.
pub fn forget(store: &Store) -> store::Result<usize> {
    let count = records(store)?.len();
    let directory = directory(store);
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path == mounts(store) {
            forget_mounts(&path)?;
        } else if path.is_dir() {
            fs::remove_dir_all(&path).context("remove", &path)?;
        } else {
            fs::remove_file(&path).context("remove", &path)?;
        }
    }
    Ok(count)
}

/// Removes the caches that nobody is using.
fn forget_mounts(mounts: &Path) -> store::Result<()> {
    for entry in fs::read_dir(mounts).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Some(_lock) = Lock::try_exclusive(&path.join("lock"))? {
            fs::remove_dir_all(&path).context("remove", &path)?;
        }
    }
    Ok(())
}

fn records(store: &Store) -> store::Result<Vec<PathBuf>> {
    let directory = directory(store);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("list", &directory)?,
    };
    let is_record = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            name.len() == KEY_LENGTH
                && name
                    .to_string_lossy()
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit())
        })
    };
    Ok(entries
        .flatten()
        .map(|entry| entry.path())
        .filter(is_record)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle_tools::image::Healthcheck;

    #[test]
    fn everything_counts_but_time_and_history() {
        let chain = Digest::sha256_of(b"chain");
        let key = |config: &ImageConfig, parts: &[&str]| {
            let mut key = Key::new(Some(&chain), config);
            parts.iter().for_each(|part| key.add(part.as_bytes()));
            key.finish()
        };
        let base = ImageConfig::default();
        let first = key(&base, &["RUN", "x"]);
        let mut other = base.clone();
        other.created = Some("now".to_owned());
        other.history.push(Default::default());
        assert_eq!(key(&other, &["RUN", "x"]), first);
        for change in [
            |config: &mut ImageConfig| config.config.healthcheck = Some(Healthcheck::default()),
            |config: &mut ImageConfig| config.config.on_build = Some(vec!["RUN y".to_owned()]),
            |config: &mut ImageConfig| config.config.env.push("A=1".to_owned()),
            |config: &mut ImageConfig| config.architecture = "arm64".to_owned(),
        ] {
            let mut changed = base.clone();
            change(&mut changed);
            assert_ne!(key(&changed, &["RUN", "x"]), first);
        }
        assert_ne!(key(&base, &["RUNx", ""]), first);
        assert_ne!(Key::new(None, &base).finish(), key(&base, &[]));
    }

    #[test]
    fn a_record_without_its_layer_is_no_hit() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("a"), directory.path().join("b")).unwrap();
        let key = Digest::sha256_of(b"key");
        assert!(find(&store, &key).is_none());
        let chain = Digest::sha256_of(b"chain");
        let mut record = Record {
            created: "now".to_owned(),
            layer: None,
        };
        keep(&store, &key, &record).unwrap();
        assert!(find(&store, &key).is_some());
        record.layer = Some(Kept {
            diff_id: chain.clone(),
            chain: chain.clone(),
            blob: None,
        });
        keep(&store, &key, &record).unwrap();
        assert!(find(&store, &key).is_none());
        assert_eq!(cached_layers(&store).unwrap(), [chain.hex()]);
        fs::create_dir_all(layers::directory(&store, &chain).join("diff")).unwrap();
        assert!(find(&store, &key).is_some());
        fs::write(super::directory(&store).join(key.hex()), "").unwrap();
        assert!(find(&store, &key).is_none());
        assert_eq!(forget(&store).unwrap(), 1);
        assert_eq!(forget(&store).unwrap(), 0);
    }
}
