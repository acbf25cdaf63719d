//! An OCI image layout directory, which is also the engine's image store.
//!
//! ```text
//! <layout>/oci-layout            version
//!          index.json            the names: entries carry their reference
//!          blobs/<alg>/<hex>     content; a name appears only by rename, complete
//!          .tmp/                 content being written
//!          .lock                 flock: changes of index.json
//!          .lease                flock: shared by whoever adds blobs, exclusive for gc
//! ```
//!
//! Readers take no lock: what they open is complete at any instant. Nothing here
//! looks at what the blobs mean, except [`Layout::gc`] and [`Layout::image`], which follow manifests.
//!
//! Governing text: image-spec, image-layout.md.

mod blob;
mod gc;
mod select;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};

pub use blob::BlobWriter;
pub use gc::Freed;
pub use select::Image;

use crate::digest::Digest;
use crate::image::{self, Descriptor, Index};

/// The most of `index.json` that is read, in bytes: about a hundred thousand entries.
const MAX_INDEX: u64 = 32 << 20;
const VERSION: &str = "1.0.0";

/// An image layout directory.
#[derive(Clone, Debug)]
pub struct Layout {
    path: PathBuf,
}

/// Something about an image layout failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on a file failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted: `open`, `rename`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// There is no image layout at the path.
    #[error("{} is not an image layout: it has no file {missing}", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// The file that tells a layout.
        missing: &'static str,
    },
    /// A layout made after another version of the specification.
    #[error("{} has layout version {version:?}, expected {VERSION}", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// What it says.
        version: String,
    },
    /// A document in the layout is malformed.
    #[error("{}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: image::Error,
    },
    /// The index has no such entry.
    #[error(
        "{} in {}; there is: {}",
        match name { Some(name) => format!("no image {name:?}"), None => "no image named, and none called latest".to_owned() },
        path.display(),
        if available.is_empty() { "nothing" } else { available }
    )]
    NoImage {
        /// What was asked for.
        name: Option<String>,
        /// The layout.
        path: PathBuf,
        /// The names there are, separated by commas.
        available: String,
    },
    /// The blob is not there.
    #[error("no blob {digest} in {}", path.display())]
    NoBlob {
        /// What was asked for.
        digest: Digest,
        /// The layout.
        path: PathBuf,
    },
    /// Something that is no regular file stands where content should be.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Content does not have the digest it is named by.
    #[error("expected content {expected}, got {actual}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What the bytes are.
        actual: Digest,
    },
}

impl Error {
    /// For `map_err`: what was attempted on which path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }
}

/// The content of the file `oci-layout`.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

/// Keeps [`Layout::gc`] away as long as it lives.
#[derive(Debug)]
pub struct Lease {
    _lock: File,
}

impl Layout {
    /// Opens an existing layout and checks its version.
    ///
    /// # Errors
    /// No layout there, or one of another version.
    pub fn open(path: impl Into<PathBuf>) -> Result<Layout, Error> {
        let path = path.into();
        let marker = path.join("oci-layout");
        let bytes = match read_capped(&marker, 4096, "image layout marker") {
            Err(Error::Io { source, .. }) if is_missing(&source) => {
                return Err(Error::NotALayout {
                    path,
                    missing: "oci-layout",
                });
            }
            other => other?,
        };
        let marker: Marker = parse(&bytes, &marker, "image layout marker")?;
        if marker.image_layout_version != VERSION {
            return Err(Error::Version {
                path,
                version: marker.image_layout_version,
            });
        }
        Ok(Layout { path })
    }

    /// Makes a layout, or opens the one that is there.
    ///
    /// # Errors
    /// When a file can not be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Layout, Error> {
        let layout = Layout { path: path.into() };
        for directory in ["blobs/sha256", ".tmp"] {
            let directory = layout.path.join(directory);
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        // The marker comes last: a layout that has it is whole.
        let _lock = layout.lock(".lock", FlockOperation::LockExclusive)?;
        if !layout.path.join("index.json").exists() {
            layout.write_json("index.json", &Index::default())?;
        }
        if !layout.path.join("oci-layout").exists() {
            let marker = Marker {
                image_layout_version: VERSION.to_owned(),
            };
            layout.write_json("oci-layout", &marker)?;
        }
        Layout::open(layout.path)
    }

    /// The layout's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `index.json`.
    ///
    /// # Errors
    /// Unreadable or malformed.
    pub fn index(&self) -> Result<Index, Error> {
        const WHAT: &str = "image index";
        let path = self.path.join("index.json");
        parse(&read_capped(&path, MAX_INDEX, WHAT)?, &path, WHAT)
    }

    /// Finds the entry of exactly that name (annotation `org.opencontainers.image.ref.name`).
    ///
    /// # Errors
    /// Unreadable index.
    pub fn find(&self, name: &str) -> Result<Option<Descriptor>, Error> {
        let entries = self.index()?.manifests.into_iter();
        Ok(entries.rev().find(|entry| entry.ref_name() == Some(name)))
    }

    /// Changes `index.json` under the layout's lock.
    ///
    /// Nothing is written when `change` fails or changes nothing. When this
    /// returns, the change is on the disk.
    ///
    /// # Errors
    /// What `change` fails with, or the reading or writing.
    pub fn update_index<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, E>,
    ) -> Result<T, E> {
        let _lock = self.lock(".lock", FlockOperation::LockExclusive)?;
        let before = self.index()?;
        let mut index = before.clone();
        let result = change(&mut index)?;
        if index != before {
            self.write_json("index.json", &index)?;
        }
        Ok(result)
    }

    /// Keeps [`Layout::gc`] away while blobs are added that no index entry names yet.
    ///
    /// Take it before the first [`Layout::has_blob`] whose answer is relied
    /// on, and keep it until the index names the image.
    ///
    /// # Errors
    /// When the lock file can not be opened.
    pub fn lease(&self) -> Result<Lease, Error> {
        let lock = self.lock(".lease", FlockOperation::LockShared)?;
        Ok(Lease { _lock: lock })
    }

    /// Writes everything of the layout's file system to the disk (`syncfs(2)`).
    ///
    /// # Errors
    /// When the kernel reports a failed write.
    pub fn sync(&self) -> Result<(), Error> {
        let directory = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        rustix::fs::syncfs(&directory)
            .map_err(io::Error::from)
            .map_err(Error::io("syncfs", &self.path))
    }

    /// Opens a lock file and waits for the lock; closing the file gives it back.
    fn lock(&self, name: &str, operation: FlockOperation) -> Result<File, Error> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        flock(&file, operation)
            .map_err(io::Error::from)
            .map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Replaces a file of the layout: temporary file, fsync, rename, fsync of the directory.
    fn write_json(&self, name: &str, document: &impl Serialize) -> Result<(), Error> {
        let path = self.path.join(name);
        let bytes = to_json(document, &path)?;
        let temporary = self.temporary(name)?;
        let write = || -> Result<(), Error> {
            let mut file = File::create(&temporary).map_err(Error::io("create", &temporary))?;
            file.write_all(&bytes)
                .map_err(Error::io("write", &temporary))?;
            file.sync_all().map_err(Error::io("fsync", &temporary))?;
            fs::rename(&temporary, &path).map_err(Error::io("rename", &temporary))
        };
        write().inspect_err(|_| {
            // The write's own error is the one to report.
            let _ = fs::remove_file(&temporary);
        })?;
        let directory = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        directory.sync_all().map_err(Error::io("fsync", &self.path))
    }
}

/// Reads a regular file of at most `max` bytes.
fn read_capped(path: &Path, max: u64, what: &'static str) -> Result<Vec<u8>, Error> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too large" without reading it all.
    let size = file
        .take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))? as u64;
    if size > max {
        return Err(Error::Document {
            path: path.to_owned(),
            source: image::Error::TooLarge {
                what,
                size,
                limit: max,
            },
        });
    }
    Ok(bytes)
}

/// Opens a file for reading, and refuses what is no regular file: a FIFO would block for ever.
fn open_regular(path: &Path) -> Result<File, Error> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("stat", path))?;
    if metadata.is_file() {
        Ok(file)
    } else {
        Err(Error::NotAFile(path.to_owned()))
    }
}

fn parse<'b, T: Deserialize<'b>>(
    bytes: &'b [u8],
    path: &Path,
    what: &'static str,
) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Document {
        path: path.to_owned(),
        source: image::Error::Json { what, source },
    })
}

fn to_json(document: &impl Serialize, path: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document)
        .map_err(io::Error::from)
        .map_err(Error::io("serialize", path))
}

fn is_missing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{REF_NAME, media_type};

    fn entry(name: &str) -> Descriptor {
        let mut entry =
            Descriptor::new(media_type::MANIFEST, Digest::sha256_of(name.as_bytes()), 1);
        entry
            .annotations
            .insert(REF_NAME.to_owned(), name.to_owned());
        entry
    }

    #[test]
    fn create_is_idempotent_and_open_is_strict() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        assert!(matches!(Layout::open(&path), Err(Error::NotALayout { .. })));
        let layout = Layout::create(&path).unwrap();
        layout
            .update_index(|index| -> Result<(), Error> {
                index.manifests.push(entry("a:1"));
                Ok(())
            })
            .unwrap();
        let again = Layout::create(&path).unwrap();
        assert_eq!(again.find("a:1").unwrap(), Some(entry("a:1")));
        assert_eq!(again.find("a").unwrap(), None);

        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
        assert!(matches!(Layout::open(&path), Err(Error::Version { .. })));
    }

    #[test]
    fn a_failing_change_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let result = layout.update_index(|index| -> Result<(), Error> {
            index.manifests.push(entry("a:1"));
            Err(Error::NotAFile(PathBuf::from("x")))
        });
        assert!(result.is_err());
        assert!(layout.index().unwrap().manifests.is_empty());
        assert_eq!(
            fs::read_dir(directory.path().join(".tmp")).unwrap().count(),
            0
        );
    }

    #[test]
    fn concurrent_changes_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let layout = &layout;
                scope.spawn(move || {
                    layout
                        .update_index(|index| -> Result<(), Error> {
                            index.manifests.push(entry(&format!("a:{number}")));
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(layout.index().unwrap().manifests.len(), 8);
    }
}
