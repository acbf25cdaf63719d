//! The difference between two plain trees.

use std::cell::Cell;
use std::cmp::Ordering;
use std::io::{self, Read, Write};

use rustix::fs::FileType;

use super::read::Node;
use super::write::Writer;
use super::{Error, is_same_file, tree};

/// A directory of the upper tree on the way to where we are.
///
/// Its entry is written before the first change below it, though it did not change
/// itself: whoever applies the layer to a directory of its own needs its mode.
struct Above<'w> {
    node: &'w Node,
    parent: Option<&'w Above<'w>>,
    written: Cell<bool>,
}

impl Above<'_> {
    fn write<W: Write>(&self, writer: &mut Writer<'_, W>) -> Result<(), Error> {
        if self.written.replace(true) {
            return Ok(());
        }
        if let Some(parent) = self.parent {
            parent.write(writer)?;
        }
        writer.entry(self.node)
    }
}

/// Writes what changed in and below the root.
pub(super) fn walk<W: Write>(
    lower: &Node,
    upper: &Node,
    writer: &mut Writer<'_, W>,
) -> Result<(), Error> {
    directory(lower, upper, None, writer)
}

/// Merges two sorted lists of names.
fn directory<W: Write>(
    lower: &Node,
    upper: &Node,
    parent: Option<&Above<'_>>,
    writer: &mut Writer<'_, W>,
) -> Result<(), Error> {
    let here = Above {
        node: upper,
        parent,
        written: Cell::new(false),
    };
    if metadata_differs(lower, upper)? {
        here.write(writer)?;
    }
    let (old, new) = (lower.names()?, upper.names()?);
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.cmp(new),
        };
        let before = old.next_if(|_| order != Ordering::Greater);
        let after = new.next_if(|_| order != Ordering::Less);
        let Some(name) = before.or(after) else {
            return Ok(());
        };
        if writer.excludes(&upper.join(name)) {
            continue;
        }
        let old = before.map(|name| lower.child(name)).transpose()?;
        let new = match after {
            Some(name) => upper.find_child(name)?,
            None => None,
        };
        match (old, new) {
            (Some(_), None) => {
                here.write(writer)?;
                writer.whiteout(upper, name)?;
            }
            (Some(old), Some(new)) if old.kind() == new.kind() => both(&old, &new, &here, writer)?,
            // New, or of another kind: it replaces what is below it.
            (_, Some(new)) => {
                here.write(writer)?;
                writer.entry(&new)?;
                if new.is_directory() {
                    tree(&new, writer)?;
                }
            }
            (None, None) => {}
        }
    }
}

fn both<W: Write>(
    lower: &Node,
    upper: &Node,
    parent: &Above<'_>,
    writer: &mut Writer<'_, W>,
) -> Result<(), Error> {
    if is_same_file(lower, upper) {
        return Ok(());
    }
    if upper.is_directory() {
        return directory(lower, upper, Some(parent), writer);
    }
    if metadata_differs(lower, upper)? || content_differs(lower, upper)? {
        parent.write(writer)?;
        writer.entry(upper)?;
    }
    Ok(())
}

fn metadata_differs(lower: &Node, upper: &Node) -> Result<bool, Error> {
    let (old, new) = (&lower.stat, &upper.stat);
    let device = matches!(
        upper.kind(),
        FileType::CharacterDevice | FileType::BlockDevice
    );
    Ok(old.st_mode != new.st_mode
        || (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid)
        || (old.st_mtime, old.st_mtime_nsec) != (new.st_mtime, new.st_mtime_nsec)
        || (device && old.st_rdev != new.st_rdev)
        || lower.xattrs()? != upper.xattrs()?)
}

/// Compares contents for nodes of one kind whose metadata agree.
///
/// Also with the same size and time: a time can be set back.
fn content_differs(lower: &Node, upper: &Node) -> Result<bool, Error> {
    match upper.kind() {
        FileType::Symlink => Ok(lower.target()? != upper.target()?),
        FileType::RegularFile => {
            if lower.stat.st_size != upper.stat.st_size {
                return Ok(true);
            }
            let (mut old, mut new) = (lower.content()?, upper.content()?);
            differs(&mut old, &mut new).map_err(Error::read("compare", &upper.path))
        }
        _ => Ok(false),
    }
}

fn differs(old: &mut impl Read, new: &mut impl Read) -> io::Result<bool> {
    let (mut one, mut other) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = fill(old, &mut one)?;
        if fill(new, &mut other)? != length || one[..length] != other[..length] {
            return Ok(true);
        }
        if length == 0 {
            return Ok(false);
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
