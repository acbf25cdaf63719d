//! Applies a layer archive to a directory.
//!
//! An archive from a registry is hostile. Nothing here follows a path it did not
//! resolve itself: the parent of each entry is a directory descriptor found
//! inside the root (`tree`), and the entry's own name is one component given
//! to an `…at` call that neither follows links nor opens what was there before.
//! An entry that meets something of another kind replaces it.
//!
//! What can only be right at the end, directories' times, is done at the end.
//! Left out: transactions. A failure leaves a partial tree, for the caller to remove.
//!
//! Governing text: image-spec, layer.md, "Applying Changesets".

mod inherit;
mod metadata;
mod node;
mod remove;
mod tree;
mod whiteout;

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;

use super::archive::{self, Entry, Kind, Reader};
use super::{WHITEOUT_OPAQUE, WHITEOUT_PREFIX};
pub use inherit::inherit;
use metadata::{Late, Process};
use tree::{Directory, Tree};

/// What a whiteout entry becomes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Whiteouts {
    /// The lower layers lie in the same tree: what they have is removed.
    #[default]
    Apply,
    /// The tree is one layer of an overlay: a character device 0:0, and the
    /// attribute `trusted.overlay.opaque`.
    Overlay,
    /// As `Overlay`, with `user.overlay.opaque` for mounts with `userxattr`.
    OverlayUser,
    /// The archive is no layer: such names are names like others, and
    /// directories that are there keep the times that changes in them give.
    Plain,
}

/// How to apply a layer.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a whiteout entry becomes.
    pub whiteouts: Whiteouts,
    /// Set owners and make device nodes. Without it (not root) files belong to
    /// the caller and devices are skipped.
    pub ownership: bool,
    /// Everything belongs to this user and group, whatever the archive says. Set-id bits and capabilities of a file
    /// that thereby changes hands are dropped.
    pub owner: Option<(u32, u32)>,
    /// Directories that are there keep owner and mode, and nothing but a directory takes
    /// the place of one, nor a directory that of anything else.
    pub merge: bool,
    /// The directory of the tree that the archive's names are relative to: a clean path without links.
    pub below: Vec<u8>,
    /// The most bytes of file content (holes included) and trailing data accepted.
    pub max_bytes: Option<u64>,
    /// The most entries accepted.
    pub max_entries: Option<u64>,
}

impl Default for Options {
    /// For root, into one tree, with no limits.
    fn default() -> Options {
        Options {
            whiteouts: Whiteouts::default(),
            ownership: true,
            owner: None,
            merge: false,
            below: Vec::new(),
            max_bytes: None,
            max_entries: None,
        }
    }
}

/// What was applied.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Bytes of file content, holes included.
    pub bytes: u64,
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Device nodes left out because of [`Options::ownership`].
    pub skipped_devices: u64,
    /// Directories that had to be made though the layer has no entry for them, parents
    /// first; see [`inherit()`].
    pub implied: Vec<PathBuf>,
}

/// A layer could not be applied; the tree is left as it was at that moment.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive could not be read.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// The directory to apply to could not be used.
    #[error("open the directory to unpack into")]
    Root(#[source] io::Error),
    /// A system call for one entry failed.
    #[error("{action} {path:?} from the layer")]
    Entry {
        /// What was attempted.
        action: &'static str,
        /// The entry's name, escaped.
        path: String,
        /// The failure.
        source: io::Error,
    },
    /// An entry that no honest layer has.
    #[error("refuse {path:?} from the layer: {why}")]
    Refused {
        /// The entry's name, escaped.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A lower layer could not be read.
    #[error("take over {path:?} from the lower layers")]
    Inherit {
        /// The directory, escaped.
        path: String,
        /// The failure.
        source: io::Error,
    },
    /// A limit of the caller's was passed.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// `bytes` or `entries`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl Error {
    /// For `map_err`: what was attempted for which entry.
    fn entry<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> Error {
        let path = printable(path);
        move |source| Error::Entry {
            action,
            path,
            source: source.into(),
        }
    }

    fn refused(path: &[u8], why: &'static str) -> Error {
        Error::Refused {
            path: printable(path),
            why,
        }
    }
}

/// Applies the uncompressed archive `tar` to the directory `root`.
///
/// Nothing outside `root` is read, written or changed, whatever the archive
/// holds. `tar` is read to its end, trailing bytes included, so that a digest
/// computed in passing is that of the whole layer.
///
/// # Errors
/// A malformed or truncated archive, an entry that would leave the tree, a
/// limit passed, or a failing system call.
pub fn apply(tar: impl Read, root: impl AsFd, options: &Options) -> Result<Summary, Error> {
    let mut reader = Reader::new(tar);
    let mut applier = Applier::new(root, options)?;
    while let Some(entry) = reader.next()? {
        applier.count(&entry)?;
        let entry = applier.rewritten(entry)?;
        applier.place(&entry, &mut reader)?;
    }
    applier.finish_directories()?;
    let left = options
        .max_bytes
        .map(|limit| limit.saturating_sub(applier.summary.bytes));
    reader.drain(left.unwrap_or(u64::MAX))?;
    Ok(applier.summary)
}

/// The state of one application.
struct Applier<'o> {
    options: &'o Options,
    process: Process,
    tree: Tree,
    /// Directories by real path, and what is still to be set on them.
    late: BTreeMap<Vec<u8>, Late>,
    /// Real paths this layer made, which its own whiteouts do not concern. Only
    /// kept where lower layers are in the same tree.
    ours: HashSet<Vec<u8>>,
    summary: Summary,
}

/// Where an entry goes.
struct Place<'e> {
    /// The directory it is in.
    parent: Rc<Directory>,
    /// Its last component.
    name: &'e [u8],
    /// Its path in the archive, cleaned.
    path: &'e [u8],
}

impl Place<'_> {
    /// The path in the tree, free of links.
    fn real_path(&self) -> Vec<u8> {
        self.parent.join(self.name)
    }
}

impl<'o> Applier<'o> {
    fn new(root: impl AsFd, options: &'o Options) -> Result<Applier<'o>, Error> {
        Ok(Applier {
            options,
            process: Process::current(),
            tree: Tree::new(root.as_fd()).map_err(Error::Root)?,
            late: BTreeMap::new(),
            ours: HashSet::new(),
            summary: Summary::default(),
        })
    }

    fn count(&mut self, entry: &Entry) -> Result<(), Error> {
        self.summary.entries += 1;
        self.summary.bytes = self.summary.bytes.saturating_add(entry.size);
        let limits = [
            ("entries", self.summary.entries, self.options.max_entries),
            ("bytes", self.summary.bytes, self.options.max_bytes),
        ];
        for (what, count, limit) in limits {
            if let Some(limit) = limit
                && count > limit
            {
                return Err(Error::Limit { what, limit });
            }
        }
        Ok(())
    }

    /// The entry as the caller wants it: where it goes, whose it is.
    fn rewritten(&self, mut entry: Entry) -> Result<Entry, Error> {
        if let Some((uid, gid)) = self.options.owner {
            if (entry.uid, entry.gid) != (uid, gid) && entry.kind != Kind::Directory {
                entry.mode &= 0o1777;
                entry
                    .xattrs
                    .retain(|(name, _)| name != b"security.capability");
            }
            (entry.uid, entry.gid) = (uid, gid);
        }
        if self.options.below.is_empty() {
            return Ok(entry);
        }
        let below = |name: &[u8]| -> Result<Vec<u8>, &'static str> {
            Ok([&self.options.below, &b"/"[..], &clean(name)?].concat())
        };
        entry.path = below(&entry.path).map_err(|why| Error::refused(&entry.path, why))?;
        if entry.kind == Kind::HardLink {
            entry.link = below(&entry.link).map_err(|why| Error::refused(&entry.path, why))?;
        }
        Ok(entry)
    }

    /// Puts one entry in its place.
    fn place<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), Error> {
        let path = clean(&entry.path).map_err(|why| Error::refused(&entry.path, why))?;
        if path.is_empty() {
            // CVE-2021-29136: the root is what it is.
            if entry.kind != Kind::Directory {
                return Err(Error::refused(
                    &entry.path,
                    "the root can only be a directory",
                ));
            }
            return if self.options.merge {
                Ok(())
            } else {
                self.root(entry)
            };
        }
        let (parent_path, name) = split(&path);
        let is_layer = self.options.whiteouts != Whiteouts::Plain;
        if is_layer && is_aufs_metadata(&path) {
            return Ok(());
        }
        if is_layer && has_whiteout(parent_path) {
            return Err(Error::refused(&path, "a whiteout is no directory"));
        }
        let parent = self.parent(parent_path, &path)?;
        let place = Place {
            parent,
            name,
            path: &path,
        };
        if is_layer && let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX.as_bytes()) {
            return self.whiteout(&place, hidden);
        }
        match entry.kind {
            Kind::File => self.file(entry, &place, reader)?,
            Kind::Directory => self.directory(entry, &place)?,
            Kind::Symlink => self.symlink(entry, &place)?,
            Kind::HardLink => self.hard_link(entry, &place)?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => self.special(entry, &place)?,
        }
        if self.options.whiteouts == Whiteouts::Apply {
            self.ours.insert(place.real_path());
        }
        Ok(())
    }
}

/// Brings an archive's name into the one form used here: relative, without empty
/// parts and dots. Empty stands for the root.
fn clean(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.is_empty() {
        return Err("an empty name");
    }
    if name.contains(&0) {
        return Err("a name with a NUL byte");
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("a name with .. in it"),
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    Ok(path)
}

/// Splits a clean path into parent and last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// `.wh..wh.plnk`, `.wh..wh.orph` and the like: what aufs left in early docker layers.
fn is_aufs_metadata(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .any(|part| part.starts_with(b".wh..wh.") && part != WHITEOUT_OPAQUE.as_bytes())
}

fn has_whiteout(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/')
        .any(|part| part.starts_with(WHITEOUT_PREFIX.as_bytes()))
}

/// An untrusted name for a message, bounded.
fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(512).collect()
}

#[cfg(test)]
mod tests;
