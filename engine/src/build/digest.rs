//! Digests of what `COPY` reads: two builds of the same files give the same digest, wherever and whenever.
//!
//! Content, kind, mode and links count; times and owners do not, as docker has it. Reading all files for every build
//! would take seconds, so the digest of a file's content is remembered by device, inode, size and times of change.
//! One that was changed a moment ago is not remembered: it may change again without its time telling so.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use bundle_tools::Digest;
use bundle_tools::digest::{HashReader, Hasher};
use bundle_tools::rooted;
use rustix::fs::{FileType, OFlags, Stat, readlinkat};

use super::ignore::Ignore;
use super::tree::{Entry, Found, Tree};
use super::{FileContext, Result, copy, lay_down};

/// How long a file has to be unchanged to be remembered, in seconds.
const SETTLED: i64 = 2;

/// What identifies a file's content without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Digests of files by what the file system says about them; kept in one file a context.
#[derive(Debug)]
pub(super) struct FileDigests {
    file: PathBuf,
    known: HashMap<Key, Digest>,
    used: HashMap<Key, Digest>,
    is_new: bool,
}

impl FileDigests {
    /// Reads what is remembered. A file that can't be understood is worth nothing, and nothing else.
    pub(super) fn read(file: PathBuf) -> FileDigests {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        FileDigests {
            file,
            known: text.lines().filter_map(parse).collect(),
            used: HashMap::new(),
            is_new: false,
        }
    }

    /// Remembers what this build has seen, if it has seen something new.
    pub(super) fn save(self) {
        if !self.is_new {
            return;
        }
        let mut text = String::new();
        for (key, digest) in &self.used {
            let _ = writeln!(
                text,
                "{} {} {} {} {} {} {} {digest}",
                key.device,
                key.inode,
                key.size,
                key.modified.0,
                key.modified.1,
                key.changed.0,
                key.changed.1
            );
        }
        // Only time is lost when it can't be written.
        let _ = lay_down(&self.file, text.as_bytes());
    }

    fn of(&mut self, entry: &Entry, shown: &Path) -> Result<Digest> {
        let key = Key::of(&entry.stat);
        if let Some(digest) = self.used.get(&key).or_else(|| self.known.get(&key)) {
            let digest = digest.clone();
            self.used.insert(key, digest.clone());
            return Ok(digest);
        }
        let file = rooted::reopen(entry.fd.as_fd(), OFlags::RDONLY).doing("open", shown)?;
        let mut reader = HashReader::new(File::from(file));
        io::copy(&mut reader, &mut io::sink()).doing("read", shown)?;
        let digest = reader.finish().0;
        if key.is_settled() {
            self.used.insert(key, digest.clone());
            self.is_new = true;
        }
        Ok(digest)
    }
}

impl Key {
    fn of(stat: &Stat) -> Key {
        Key {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, nanoseconds(stat.st_mtime_nsec)),
            changed: (stat.st_ctime, nanoseconds(stat.st_ctime_nsec)),
        }
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
        self.changed.0.max(self.modified.0) + SETTLED < now
    }
}

fn nanoseconds(field: impl TryInto<i64>) -> i64 {
    field.try_into().unwrap_or(0)
}

fn parse(line: &str) -> Option<(Key, Digest)> {
    let mut words = line.split(' ');
    let mut number = || words.next()?.parse::<i128>().ok();
    let key = Key {
        device: number()?.try_into().ok()?,
        inode: number()?.try_into().ok()?,
        size: number()?.try_into().ok()?,
        modified: (number()?.try_into().ok()?, number()?.try_into().ok()?),
        changed: (number()?.try_into().ok()?, number()?.try_into().ok()?),
    };
    Some((key, words.next()?.parse().ok()?))
}

/// The digest of a source and everything in it.
pub(super) fn of_source(
    tree: &Tree,
    found: &Found,
    skip: &Ignore,
    files: &mut FileDigests,
) -> Result<Digest> {
    let mut hasher = Hasher::sha256();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(found.name());
    tree.walk(found, skip, &mut |entry| {
        let kind = entry.kind();
        if kind == FileType::Socket {
            return Ok(());
        }
        let shown = tree
            .path()
            .join(String::from_utf8_lossy(&entry.path).as_ref());
        add(&entry.path);
        add(&entry.stat.st_mode.to_le_bytes());
        match kind {
            FileType::RegularFile => add(files.of(entry, &shown)?.as_str().as_bytes()),
            FileType::Symlink => {
                let target = readlinkat(&entry.fd, c"", Vec::new()).doing("read link", &shown)?;
                add(target.as_bytes());
            }
            _ => {}
        }
        for (name, value) in copy::kept_attributes(entry.fd.as_fd(), kind) {
            add(&name);
            add(&value);
        }
        Ok(())
    })?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn digest(root: &Path, files: &mut FileDigests) -> Digest {
        let tree = Tree::open(root, Ignore::default()).unwrap();
        let found = tree.find("d").unwrap();
        of_source(&tree, &found[0], &Ignore::default(), files).unwrap()
    }

    #[test]
    fn content_counts_and_time_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let mut files = FileDigests::read(root.join("digests"));
        let path = root.join("d/f");
        fs::create_dir(root.join("d")).unwrap();
        fs::write(&path, "one").unwrap();
        let first = digest(root, &mut files);
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
        File::open(&path).unwrap().set_modified(old).unwrap();
        assert_eq!(digest(root, &mut files), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let second = digest(root, &mut files);
        assert_ne!(second, first);
        fs::write(&path, "two").unwrap();
        assert_ne!(digest(root, &mut files), second);
        // Too fresh to be remembered: the same size a moment later would look the same.
        assert!(files.used.is_empty());
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("digests");
        let key = Key {
            device: 1,
            inode: u64::MAX,
            size: 3,
            modified: (-4, 5),
            changed: (6, 7),
        };
        let digest = Digest::sha256_of(b"x");
        let mut files = FileDigests::read(file.clone());
        files.used.insert(key, digest.clone());
        files.is_new = true;
        files.save();
        assert_eq!(
            FileDigests::read(file.clone()).known.get(&key),
            Some(&digest)
        );
        fs::write(&file, "garbage\n1 2 3").unwrap();
        assert!(FileDigests::read(file).known.is_empty());
    }
}
