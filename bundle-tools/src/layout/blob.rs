//! Blobs of a layout: reading with a check, writing under a temporary name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{Error, Layout, is_missing, open_regular, read_capped, to_json};
use crate::digest::{Digest, HashReader, HashWriter, Hasher};
use crate::image::Descriptor;

impl Layout {
    /// Where a blob is, or would be.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path
            .join("blobs")
            .join(digest.algorithm())
            .join(digest.hex())
    }

    /// Whether the blob is there, as a regular file of the given size.
    #[must_use]
    pub fn has_blob(&self, digest: &Digest, size: Option<u64>) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|metadata| {
            metadata.is_file() && size.is_none_or(|size| size == metadata.len())
        })
    }

    /// Opens a blob for reading; its digest is not checked.
    ///
    /// # Errors
    /// When it can not be opened, or is no regular file.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        open_regular(&self.blob_path(digest)).map_err(|error| self.name_missing(error, digest))
    }

    /// Reads a blob of at most `max` bytes and checks its digest.
    ///
    /// # Errors
    /// Missing, larger, or of another digest.
    pub fn read_blob(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, Error> {
        let bytes = read_capped(&self.blob_path(digest), max, "blob")
            .map_err(|error| self.name_missing(error, digest))?;
        if !digest.matches(&bytes) {
            let mut hasher = Hasher::like(digest);
            hasher.update(&bytes);
            return Err(Error::Digest {
                expected: digest.clone(),
                actual: hasher.finish(),
            });
        }
        Ok(bytes)
    }

    /// Starts a new blob.
    ///
    /// # Errors
    /// When the file can not be made.
    pub fn blob_writer(&self) -> Result<BlobWriter, Error> {
        let path = self.temporary("blob")?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        Ok(BlobWriter {
            writer: HashWriter::new(file),
            temporary: Temporary(path),
            layout: self.clone(),
        })
    }

    /// Stores bytes as a blob and describes them.
    ///
    /// # Errors
    /// When they can not be written.
    pub fn put_blob(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor, Error> {
        let digest = Digest::sha256_of(bytes);
        let size = bytes.len() as u64;
        if !self.has_blob(&digest, Some(size)) {
            let mut writer = self.blob_writer()?;
            let path = writer.temporary.0.clone();
            writer.write_all(bytes).map_err(Error::io("write", &path))?;
            writer.commit(Some(&digest))?;
        }
        Ok(Descriptor::new(media_type, digest, size))
    }

    /// Stores a document (manifest, index, configuration) as JSON and describes it.
    ///
    /// # Errors
    /// When it can not be written.
    pub fn put_json(
        &self,
        document: &impl serde::Serialize,
        media_type: &str,
    ) -> Result<Descriptor, Error> {
        self.put_blob(&to_json(document, &self.path)?, media_type)
    }

    /// A name for a temporary file that no other process or thread uses.
    pub(super) fn temporary(&self, stem: &str) -> Result<PathBuf, Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let directory = self.path.join(".tmp");
        // Layouts that other programs made have none.
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_nanos();
        Ok(directory.join(format!("{stem}-{}-{time}-{count}", std::process::id())))
    }

    fn name_missing(&self, error: Error, digest: &Digest) -> Error {
        match error {
            Error::Io { source, .. } if is_missing(&source) => Error::NoBlob {
                digest: digest.clone(),
                path: self.path.clone(),
            },
            other => other,
        }
    }
}

/// New content on its way into a layout; removed on drop unless committed.
///
/// Every write goes to the file at once: write in large pieces.
#[derive(Debug)]
pub struct BlobWriter {
    writer: HashWriter<File>,
    temporary: Temporary,
    layout: Layout,
}

/// Removes the file when dropped; after the rename there is none.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nobody is left to tell; gc removes what stays.
        let _ = fs::remove_file(&self.0);
    }
}

impl BlobWriter {
    /// Flushes the content to the disk (`fdatasync(2)`).
    ///
    /// # Errors
    /// When the kernel reports a failed write.
    pub fn sync(&mut self) -> Result<(), Error> {
        let file = self.writer.get_mut();
        file.sync_data()
            .map_err(Error::io("fdatasync", &self.temporary.0))
    }

    /// Bytes written so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.writer.count()
    }

    /// Where the content lies until it is committed.
    #[must_use]
    pub fn temporary_path(&self) -> &Path {
        &self.temporary.0
    }

    /// Ends the blob and gives it its name, after checking it against `expected`.
    ///
    /// The content is not yet on the disk: call [`BlobWriter::sync`] before, or
    /// [`Layout::sync`] once for many.
    ///
    /// # Errors
    /// Another digest than expected (nothing is kept), or a failing rename.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), Error> {
        let (mut digest, size, file) = self.writer.finish();
        let temporary = &self.temporary.0;
        drop(file);
        if let Some(expected) = expected {
            if expected.algorithm() != digest.algorithm() {
                digest = hash_file(temporary, expected)?;
            }
            if digest != *expected {
                return Err(Error::Digest {
                    expected: expected.clone(),
                    actual: digest,
                });
            }
        }
        let path = self.layout.blob_path(&digest);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        fs::rename(temporary, &path).map_err(Error::io("rename", temporary))?;
        Ok((digest, size))
    }
}

/// Hashes a file once more, with the algorithm of `like`.
fn hash_file(path: &Path, like: &Digest) -> Result<Digest, Error> {
    let file = open_regular(path)?;
    let mut reader = HashReader::with(
        io::BufReader::with_capacity(1 << 17, file),
        Hasher::like(like),
    );
    reader.drain().map_err(Error::io("read", path))?;
    Ok(reader.finish().0)
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        (directory, layout)
    }

    fn temporaries(layout: &Layout) -> usize {
        fs::read_dir(layout.path().join(".tmp")).unwrap().count()
    }

    #[test]
    fn blobs_are_stored_and_read_back_checked() {
        let (_directory, layout) = layout();
        let stored = layout.put_blob(b"content", "text/plain").unwrap();
        assert_eq!(stored.size, 7);
        assert!(layout.has_blob(&stored.digest, Some(7)));
        assert!(!layout.has_blob(&stored.digest, Some(8)));
        assert_eq!(layout.read_blob(&stored.digest, 7).unwrap(), b"content");
        let error = layout.read_blob(&stored.digest, 6).unwrap_err();
        assert!(matches!(error, Error::Document { .. }));

        fs::write(layout.blob_path(&stored.digest), b"changed").unwrap();
        let error = layout.read_blob(&stored.digest, 100).unwrap_err();
        assert!(matches!(error, Error::Digest { .. }));
        let error = layout.open_blob(&Digest::sha256_of(b"?")).unwrap_err();
        assert!(matches!(error, Error::NoBlob { .. }));
        assert_eq!(temporaries(&layout), 0);
    }

    #[test]
    fn a_wrong_digest_leaves_nothing() {
        let (_directory, layout) = layout();
        let mut writer = layout.blob_writer().unwrap();
        writer.write_all(b"other").unwrap();
        assert_eq!(temporaries(&layout), 1);
        let expected = Digest::sha256_of(b"content");
        let error = writer.commit(Some(&expected)).unwrap_err();
        assert!(error.to_string().starts_with("expected content sha256:"));
        assert!(!layout.has_blob(&expected, None));
        assert_eq!(temporaries(&layout), 0);
    }

    #[test]
    fn other_algorithms_are_verified_too() {
        let (_directory, layout) = layout();
        let mut hasher = Hasher::like(&format!("sha512:{}", "0".repeat(128)).parse().unwrap());
        hasher.update(b"content");
        let expected = hasher.finish();
        let mut writer = layout.blob_writer().unwrap();
        writer.write_all(b"content").unwrap();
        writer.commit(Some(&expected)).unwrap();
        assert_eq!(layout.read_blob(&expected, 100).unwrap(), b"content");
    }

    #[test]
    fn a_fifo_is_no_blob() {
        let (_directory, layout) = layout();
        let digest = Digest::sha256_of(b"fifo");
        let path = layout.blob_path(&digest);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(!layout.has_blob(&digest, None));
        assert!(matches!(layout.open_blob(&digest), Err(Error::NotAFile(_))));
    }
}
