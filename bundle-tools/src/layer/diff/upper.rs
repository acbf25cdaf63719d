//! An overlay's upper directory: it is nearly a layer already.
//!
//! Governing text: the kernel's Documentation/filesystems/overlayfs.rst.

use std::io::Write;

use super::read::Node;
use super::write::Writer;
use super::{Error, printable};

/// Writes everything below the upper directory's root, and the root itself if something changed.
pub(super) fn walk<W: Write>(root: &Node, writer: &mut Writer<'_, W>) -> Result<(), Error> {
    let names = root.names()?;
    let changed = names.iter().any(|name| !writer.excludes(&root.join(name)));
    if changed {
        // Parents come with their children, so that their modes are right wherever this is applied.
        writer.entry(root)?;
    }
    children(root, &names, writer)
}

fn children<W: Write>(
    directory: &Node,
    names: &[Vec<u8>],
    writer: &mut Writer<'_, W>,
) -> Result<(), Error> {
    for name in names {
        let node = directory.child(name)?;
        if writer.excludes(&node.path) {
            continue;
        }
        if node.is_whiteout() || is_xattr_whiteout(&node)? {
            writer.whiteout(directory, name)?;
            continue;
        }
        refuse_partial(&node)?;
        writer.entry(&node)?;
        if node.is_directory() {
            if is_opaque(&node)? {
                writer.opaque(&node)?;
            }
            children(&node, &node.names()?, writer)?;
        }
    }
    Ok(())
}

fn is_opaque(node: &Node) -> Result<bool, Error> {
    // `user.overlay.*` means nothing here: any process of a container can set that.
    Ok(node.xattr("trusted.overlay.opaque")? == Some(b"y"))
}

/// The form of a whiteout that nested overlays use (6.7): an empty file with an attribute.
fn is_xattr_whiteout(node: &Node) -> Result<bool, Error> {
    if node.kind() != rustix::fs::FileType::RegularFile || node.stat.st_size != 0 {
        return Ok(false);
    }
    Ok(node.xattr("trusted.overlay.whiteout")?.is_some())
}

/// Refuses nodes whose name or content is elsewhere.
fn refuse_partial(node: &Node) -> Result<(), Error> {
    for (suffix, feature) in [("redirect", "redirect_dir"), ("metacopy", "metacopy")] {
        if node.xattr(&format!("trusted.overlay.{suffix}"))?.is_some() {
            return Err(Error::Overlay {
                path: printable(&node.path),
                feature,
            });
        }
    }
    Ok(())
}
