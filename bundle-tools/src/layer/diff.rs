//! Makes layer archives out of directories.
//!
//! Three sources, one form: an overlay's upper directory, a whole tree, and the
//! difference between two trees. Entries come in byte order of their names, a directory
//! before what is in it; the same tree gives the same bytes. Files with several
//! names are stored once and linked to.
//!
//! Nothing is followed: every step is a descriptor and one component, so a tree
//! that a running container changes meanwhile can not lead out of itself
//! (CVE-2023-0778).
//!
//! Governing text: image-spec, layer.md, "Creating" and "Representing Changes".

mod compare;
mod read;
mod upper;
mod write;

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use read::Node;
use write::Writer;
pub(crate) use write::blank;

/// How to make an archive.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Paths relative to the tree that are left out with all they contain, such as `etc/hosts`.
    pub exclude: Vec<PathBuf>,
    /// Write modification times later than this (seconds since 1970) as this.
    pub clamp_mtime: Option<i64>,
    /// The archive is a copy and no layer, of a tree that somebody may be at work in: names that would mean whiteouts
    /// are names, what vanishes meanwhile is left out, and a file that becomes shorter is filled up with zeros.
    pub plain: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries, whiteouts included; 0 means: nothing changed.
    pub entries: u64,
    /// Sockets, which no archive can hold.
    pub skipped_sockets: u64,
}

/// An archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[source] io::Error),
    /// Something in the tree could not be read.
    #[error("{action} {path:?}")]
    Read {
        /// What was attempted.
        action: &'static str,
        /// Where in the tree, escaped.
        path: String,
        /// The failure.
        source: io::Error,
    },
    /// An upper directory that only makes sense with its lower ones.
    #[error(
        "{path:?} in the upper directory was made with overlayfs's {feature}, which no layer can express"
    )]
    Overlay {
        /// Where.
        path: String,
        /// `redirect_dir` or `metacopy`.
        feature: &'static str,
    },
    /// A name that would read as a whiteout.
    #[error("{0:?} can not be stored in a layer: names that start with .wh. have a meaning there")]
    Whiteout(String),
}

impl Error {
    fn read<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> Error {
        let path = printable(path);
        move |source| Error::Read {
            action,
            path,
            source: source.into(),
        }
    }
}

/// Writes an overlay's upper directory as an OCI layer.
///
/// # Errors
/// An unreadable tree, a failing write, or an upper directory of a feature
/// (`redirect_dir`, `metacopy`) that no layer can express.
pub fn write_upper(upper: &Path, out: impl Write, options: &Options) -> Result<Summary, Error> {
    let root = read::open_root(upper)?;
    let mut writer = Writer::new(out, options);
    upper::walk(&root, &mut writer)?;
    writer.finish()
}

/// Writes a whole directory as an archive: one layer, or an export.
///
/// # Errors
/// An unreadable tree or a failing write.
pub fn write_tree(root: &Path, out: impl Write, options: &Options) -> Result<Summary, Error> {
    write_tree_at(read::open_root(root)?, out, options)
}

/// [`write_tree`] of a directory that is open already.
///
/// # Errors
/// An unreadable tree or a failing write.
pub fn write_tree_at(
    root: impl AsFd,
    out: impl Write,
    options: &Options,
) -> Result<Summary, Error> {
    let root = read::reopen_root(root.as_fd())?;
    let mut writer = Writer::new(out, options);
    writer.entry(&root)?;
    tree(&root, &mut writer)?;
    writer.finish()
}

/// Writes what a descriptor pins, a file of any kind or a directory with all in it, under a name of the caller's.
///
/// The descriptor is one of `O_PATH`; that of a symbolic link stands for the link. An empty name stands
/// for what is in the directory, and makes `./` of the directory itself.
///
/// # Errors
/// An unreadable tree or a failing write.
pub fn write_at(
    pinned: OwnedFd,
    name: &[u8],
    out: impl Write,
    options: &Options,
) -> Result<Summary, Error> {
    let node = Node::pinned(pinned, name)?;
    let mut writer = Writer::new(out, options);
    writer.entry(&node)?;
    if node.is_directory() {
        tree(&node, &mut writer)?;
    }
    writer.finish()
}

/// Writes what it takes to get from the tree `lower` to the tree `upper` as an OCI layer.
///
/// # Errors
/// An unreadable tree or a failing write.
pub fn write_changes(
    lower: &Path,
    upper: &Path,
    out: impl Write,
    options: &Options,
) -> Result<Summary, Error> {
    let (lower, upper) = (read::open_root(lower)?, read::open_root(upper)?);
    let mut writer = Writer::new(out, options);
    compare::walk(&lower, &upper, &mut writer)?;
    writer.finish()
}

/// Writes everything below a directory.
fn tree<W: Write>(directory: &Node, writer: &mut Writer<'_, W>) -> Result<(), Error> {
    for name in directory.names()? {
        let node = match directory.find_child(&name)? {
            Some(node) => node,
            None if writer.is_plain() => continue,
            None => directory.child(&name)?,
        };
        if writer.excludes(&node.path) {
            continue;
        }
        writer.entry(&node)?;
        if node.is_directory() {
            tree(&node, writer)?;
        }
    }
    Ok(())
}

/// An untrusted name for a message, bounded.
fn printable(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(512).collect()
}

/// Reads what a descriptor's file system says about it, for the whole module.
fn is_same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    match (rustix::fs::fstat(one), rustix::fs::fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
