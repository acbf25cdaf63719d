//! Collects what nothing in a layout reaches.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::{Error, Layout};
use crate::digest::Digest;
use crate::image::{Descriptor, Document, MAX_DOCUMENT, media_type, parse_document};

/// Indexes within indexes are followed this deep; the specification allows any depth.
const MAX_DEPTH: u32 = 8;

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Freed {
    /// Files removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Nothing was done because somebody holds a [`super::Lease`].
    pub busy: bool,
}

impl Layout {
    /// Removes blobs that nothing reaches, and what interrupted writers left.
    ///
    /// Removes nothing while somebody holds a [`super::Lease`]. Files changed within
    /// `keep_younger_than` stay.
    ///
    /// # Errors
    /// Unreadable index or manifests: nothing is removed then.
    pub fn gc(&self, keep_younger_than: Duration) -> Result<Freed, Error> {
        let _lease = match self.lock(".lease", FlockOperation::NonBlockingLockExclusive) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Freed {
                    busy: true,
                    ..Freed::default()
                });
            }
            other => other?,
        };
        let _lock = self.lock(".lock", FlockOperation::LockExclusive)?;
        let reachable = self.reachable()?;
        let limit = SystemTime::now().checked_sub(keep_younger_than);

        let mut freed = Freed::default();
        for directory in subdirectories(&self.path.join("blobs"))? {
            let algorithm = name_of(&directory);
            for path in files(&directory)? {
                let digest = format!("{algorithm}:{}", name_of(&path)).parse::<Digest>();
                // A file that is not named like a blob is not ours to remove.
                if digest.is_ok_and(|digest| !reachable.contains(&digest)) {
                    freed.remove(&path, limit)?;
                }
            }
        }
        for path in files(&self.path.join(".tmp"))? {
            freed.remove(&path, limit)?;
        }
        Ok(freed)
    }

    /// Removes what interrupted writers left, and no blob.
    ///
    /// Removes nothing while somebody holds a [`super::Lease`].
    ///
    /// # Errors
    /// When a file can not be removed.
    pub fn sweep(&self) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        match self.lock(".lease", FlockOperation::NonBlockingLockExclusive) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                freed.busy = true;
            }
            Err(error) => return Err(error),
            Ok(_lease) => {
                // An index being written has its temporary file there as well.
                let _lock = self.lock(".lock", FlockOperation::LockExclusive)?;
                for path in files(&self.path.join(".tmp"))? {
                    freed.remove(&path, None)?;
                }
            }
        }
        Ok(freed)
    }

    /// Every blob that the index leads to, whether it is there or not.
    ///
    /// # Errors
    /// An unreadable index or manifest. A missing one leads nowhere: of an
    /// image for many platforms only one is fetched as a rule.
    pub fn reachable(&self) -> Result<HashSet<Digest>, Error> {
        let mut reachable = HashSet::new();
        for entry in &self.index()?.manifests {
            self.mark(entry, MAX_DEPTH, &mut reachable)?;
        }
        Ok(reachable)
    }

    fn mark(
        &self,
        entry: &Descriptor,
        depth: u32,
        reachable: &mut HashSet<Digest>,
    ) -> Result<(), Error> {
        let new = reachable.insert(entry.digest.clone());
        let follow =
            media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type);
        if !new || !follow || depth == 0 {
            return Ok(());
        }
        let bytes = match self.read_blob(&entry.digest, MAX_DOCUMENT) {
            Err(Error::NoBlob { .. }) => return Ok(()),
            other => other?,
        };
        let document =
            parse_document(&bytes, Some(&entry.media_type)).map_err(|source| Error::Document {
                path: self.blob_path(&entry.digest),
                source,
            })?;
        match document {
            Document::Manifest(manifest) => {
                reachable.insert(manifest.config.digest);
                reachable.extend(manifest.layers.into_iter().map(|layer| layer.digest));
            }
            Document::Index(index) => {
                for entry in &index.manifests {
                    self.mark(entry, depth - 1, reachable)?;
                }
            }
        }
        Ok(())
    }
}

impl Freed {
    fn remove(&mut self, path: &Path, limit: Option<SystemTime>) -> Result<(), Error> {
        let metadata = match fs::symlink_metadata(path) {
            // Somebody else removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io("stat", path))?,
        };
        let modified = metadata.modified().map_err(Error::io("stat", path))?;
        if limit.is_some_and(|limit| modified > limit) {
            return Ok(());
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io("remove", path))?,
        }
        self.files += 1;
        self.bytes += metadata.len();
        Ok(())
    }
}

fn subdirectories(path: &Path) -> Result<Vec<PathBuf>, Error> {
    list(path, fs::FileType::is_dir)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    list(path, |kind| !kind.is_dir())
}

fn list(path: &Path, wanted: impl Fn(&fs::FileType) -> bool) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("list", path))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("list", path))?;
        let kind = entry.file_type().map_err(Error::io("stat", path))?;
        if wanted(&kind) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Index, Manifest};

    /// A layout with one image behind a nested index, and one stray blob.
    fn layout() -> (tempfile::TempDir, Layout, Digest) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let config = layout.put_blob(b"{}", media_type::CONFIG).unwrap();
        let layer = layout.put_blob(b"layer", media_type::LAYER).unwrap();
        let manifest = layout
            .put_json(&Manifest::new(config, vec![layer]), media_type::MANIFEST)
            .unwrap();
        let elsewhere = Descriptor::new(media_type::MANIFEST, Digest::sha256_of(b"not fetched"), 9);
        let index = Index {
            manifests: vec![manifest, elsewhere],
            ..Index::default()
        };
        let index = layout.put_json(&index, media_type::INDEX).unwrap();
        layout
            .update_index(|entries| -> Result<(), Error> {
                entries.manifests.push(index);
                Ok(())
            })
            .unwrap();
        let stray = layout.put_blob(b"stray", media_type::LAYER).unwrap().digest;
        fs::write(directory.path().join(".tmp/blob-1-1-1"), b"left behind").unwrap();
        (directory, layout, stray)
    }

    #[test]
    fn only_the_unreachable_goes() {
        let (directory, layout, stray) = layout();
        assert_eq!(
            layout.gc(Duration::from_secs(3600)).unwrap(),
            Freed::default()
        );
        let freed = layout.gc(Duration::ZERO).unwrap();
        assert_eq!((freed.files, freed.bytes), (2, 5 + 11));
        assert!(!layout.has_blob(&stray, None));
        let left = fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
        assert_eq!(left.count(), 4);
    }

    #[test]
    fn a_lease_holds_everything() {
        let (_directory, layout, stray) = layout();
        let lease = layout.lease().unwrap();
        assert!(layout.gc(Duration::ZERO).unwrap().busy);
        assert!(layout.has_blob(&stray, None));
        drop(lease);
        assert!(!layout.gc(Duration::ZERO).unwrap().busy);
    }

    #[test]
    fn a_damaged_manifest_stops_the_collection() {
        let (_directory, layout, stray) = layout();
        let index = layout.index().unwrap().manifests[0].digest.clone();
        fs::write(layout.blob_path(&index), b"{}").unwrap();
        assert!(layout.gc(Duration::ZERO).is_err());
        assert!(layout.has_blob(&stray, None));
    }
}
