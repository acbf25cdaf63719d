//! The first half of a load: an archive from its start to its end, into the store and into memory.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use bundle_tools::Digest;
use bundle_tools::digest::HashWriter;
use bundle_tools::image::{Descriptor, media_type};
use bundle_tools::layer::compression::{Compression, Encoder};
use bundle_tools::layout::Layout;
use bundle_tools::package::{MemberKind, Members};

use super::Error;

/// Longest name of a member, the kernel's for a path; all of them are kept.
const LONGEST_NAME: usize = 4096;

/// Members that are taken, at most. An archive of a hundred images has some ten thousand.
const MOST_MEMBERS: usize = 1 << 18;
/// Bytes of one document that are kept in memory, at most (CVE-2023-25153).
pub(super) const MOST_DOCUMENT: u64 = 8 << 20;
/// Bytes of all documents together that are kept in memory, at most.
const MOST_DOCUMENTS: u64 = 256 << 20;
/// Links to links that are followed.
const DEEPEST: usize = 8;
/// Bytes that tell what a member is: one block of a tar archive.
const START: usize = 512;

/// What became of a member.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// A document, in memory.
    Document(Vec<u8>),
    /// A layer, compressed by us while it was read.
    Layer {
        /// The compressed blob.
        blob: Descriptor,
        /// The digest of what was in the archive.
        diff_id: Digest,
    },
    /// In the store as it was in the archive.
    Blob {
        /// By its digest and size, and the type of a layer of its compression.
        blob: Descriptor,
        /// How it is compressed.
        compression: Compression,
    },
    /// The same as the member of this name.
    Link(String),
}

/// An archive's members by their cleaned names.
#[derive(Debug, Default)]
pub(super) struct Spooled {
    members: HashMap<String, Content>,
    documents: u64,
}

impl Spooled {
    /// What a name stands for, links followed.
    pub(super) fn get(&self, path: &str) -> Result<Option<&Content>, Error> {
        let mut path = clean(path)?;
        for _ in 0..DEEPEST {
            match self.members.get(&path) {
                Some(Content::Link(target)) => path.clone_from(target),
                other => return Ok(other),
            }
        }
        Err(refused(&path, "leads to itself"))
    }
}

/// Reads an uncompressed archive.
pub(super) fn spool(layout: &Layout, archive: impl Read) -> Result<Spooled, Error> {
    let mut members = Members::new(archive);
    let mut spooled = Spooled::default();
    let mut count = 0;
    while let Some(member) = members.next()? {
        count += 1;
        let path = clean(&text(&member.path)?)?;
        if count > MOST_MEMBERS {
            return Err(refused(&path, "is one member too many"));
        }
        let target = match &member.kind {
            MemberKind::Symlink(target) | MemberKind::HardLink(target) => target.len(),
            _ => 0,
        };
        if path.len().max(target) > LONGEST_NAME {
            return Err(refused(&path[..64], "has too long a name"));
        }
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let content = match &member.kind {
            MemberKind::Directory | MemberKind::Other => continue,
            MemberKind::Symlink(target) => Content::Link(resolve(&text(target)?, directory)?),
            MemberKind::HardLink(target) => Content::Link(clean(&text(target)?)?),
            MemberKind::File => read(layout, &mut spooled, &path, member.size, &mut members)?,
        };
        // As with extraction, the last of several members of one name counts.
        spooled.members.insert(path, content);
    }
    members.drain()?;
    Ok(spooled)
}

fn read(
    layout: &Layout,
    spooled: &mut Spooled,
    path: &str,
    size: u64,
    members: &mut Members<impl Read>,
) -> Result<Content, Error> {
    let failed = |error: io::Error| Error::Member {
        path: path.to_owned(),
        source: error.into(),
    };
    let mut start = Vec::with_capacity(START);
    members
        .by_ref()
        .take(START as u64)
        .read_to_end(&mut start)
        .map_err(failed)?;
    let compression = Compression::detect(&start);
    let is_tar = start.get(257..262) == Some(b"ustar");
    let mut content = start.chain(members);

    let digest = blob_digest(path)?;
    if digest.is_some() || compression != Compression::None {
        let mut writer = layout.blob_writer()?;
        copy(&mut content, &mut writer).map_err(failed)?;
        let (digest, size) = match writer.commit(digest.as_ref()) {
            Err(bundle_tools::layout::Error::Digest { .. }) => {
                return Err(refused(path, "does not have the digest it is named by"));
            }
            other => other?,
        };
        let blob = Descriptor::new(media_type::of_layer(compression), digest, size);
        return Ok(Content::Blob { blob, compression });
    }
    if is_tar || path.ends_with(".tar") {
        let (blob, diff_id) = compress(layout, content).map_err(|source| Error::Member {
            path: path.to_owned(),
            source,
        })?;
        return Ok(Content::Layer { blob, diff_id });
    }
    spooled.documents += size;
    if size > MOST_DOCUMENT || spooled.documents > MOST_DOCUMENTS {
        return Err(refused(path, "is too large for a document"));
    }
    let mut bytes = Vec::new();
    content.read_to_end(&mut bytes).map_err(failed)?;
    Ok(Content::Document(bytes))
}

/// Stores a plain layer archive as a compressed blob, as `commit` does; returns the archive's own digest too.
pub(super) fn compress(
    layout: &Layout,
    mut archive: impl Read,
) -> Result<(Descriptor, Digest), Box<dyn std::error::Error + Send + Sync>> {
    let blob = Encoder::new(layout.blob_writer()?, Compression::Gzip)?;
    let mut writer = HashWriter::new(blob);
    copy(&mut archive, &mut writer)?;
    let (diff_id, _, blob) = writer.finish();
    let (digest, size) = blob.finish()?.commit(None)?;
    let kind = media_type::of_layer(Compression::Gzip);
    Ok((Descriptor::new(kind, digest, size), diff_id))
}

/// Copies in large pieces: what is written to goes to the disk at once.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if filled == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..filled])?;
    }
}

/// The digest that a name below `blobs` promises.
fn blob_digest(path: &str) -> Result<Option<Digest>, Error> {
    let Some((algorithm, hex)) = path
        .strip_prefix("blobs/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return Ok(None);
    };
    match format!("{algorithm}:{hex}").parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => Err(refused(path, "is not named like a blob")),
    }
}

fn text(name: &[u8]) -> Result<String, Error> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(refused(&String::from_utf8_lossy(name), "is no text")),
    }
}

/// A member's name in the one form used here.
fn clean(name: &str) -> Result<String, Error> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    match parts.contains(&"..") {
        true => Err(refused(name, "has .. in its name")),
        false => Ok(parts.join("/")),
    }
}

/// The member that a symbolic link in `directory` leads to.
fn resolve(target: &str, directory: &str) -> Result<String, Error> {
    if target.starts_with('/') {
        return Err(refused(target, "is linked to and lies outside"));
    }
    let mut parts: Vec<&str> = directory
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.pop().is_none() => {
                return Err(refused(target, "is linked to and lies outside"));
            }
            ".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

pub(super) fn refused(path: &str, reason: &'static str) -> Error {
    Error::Refused {
        path: path.chars().take(300).collect(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_inside() {
        let cases = [
            ("../abc.tar", "id", Some("abc.tar")),
            ("../../abc/layer.tar", "a/b", Some("abc/layer.tar")),
            ("x", "", Some("x")),
            ("../x", "", None),
            ("../../x", "a", None),
            ("/etc/passwd", "a", None),
        ];
        for (target, directory, expected) in cases {
            assert_eq!(
                resolve(target, directory).ok().as_deref(),
                expected,
                "{target}"
            );
        }
        assert_eq!(clean("./a//b/").unwrap(), "a/b");
        assert!(clean("a/../b").is_err());
    }

    #[test]
    fn links_in_circles_end() {
        let mut spooled = Spooled::default();
        let mut add = |from: &str, to: &str| {
            let link = Content::Link(to.to_owned());
            spooled.members.insert(from.to_owned(), link);
        };
        add("a", "b");
        add("b", "a");
        add("c", "nowhere");
        assert!(matches!(spooled.get("a"), Err(Error::Refused { .. })));
        assert!(spooled.get("c").unwrap().is_none());
    }

    #[test]
    fn blobs_are_named_by_digests() {
        assert!(blob_digest("blobs/sha256/../../x").is_err());
        assert!(blob_digest("blobs/sha256/abc").is_err());
        assert!(blob_digest("manifest.json").unwrap().is_none());
        let name = format!("blobs/sha256/{}", "a".repeat(64));
        assert!(blob_digest(&name).unwrap().is_some());
    }
}
