//! Looking images up. On the way of every `run`, so it reads three small files for a name: `index.json`, the manifest
//! and the configuration.

use std::collections::BTreeMap;

use bundle_tools::Digest;
use bundle_tools::image::{
    Descriptor, Document, Index, MAX_DOCUMENT, Manifest, Platform, chain_ids, choose, parse_config,
    parse_document,
};
use bundle_tools::layout::Layout;

use super::{Error, Image, Reference, Result, SOURCE_DIGEST, layers, layout};
use crate::store::Store;

/// The shortest id prefix that is taken for one.
const SHORTEST_PREFIX: usize = 3;

/// An image with what a listing shows of it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The image.
    pub image: Image,
    /// Bytes of its unpacked layers, shared ones included.
    pub size: u64,
}

/// Finds an image by name, name and tag, name and digest, id, or a prefix of its id of three digits or more.
///
/// Names go before ids.
///
/// # Errors
/// When a prefix fits several images, or the store can't be read.
pub fn find(store: &Store, text: &str) -> Result<Option<Image>> {
    let layout = layout(store)?;
    let index = layout.index()?;
    if let Ok(reference) = text.parse::<Reference>()
        && let Some(entry) = entry_named(&index, &reference)
    {
        return load(&layout, &index, entry).map(Some);
    }
    find_by_id(&layout, &index, text)
}

/// [`find`], with an error when there is no such image.
///
/// # Errors
/// As [`find`], and when there is none.
pub fn require(store: &Store, text: &str) -> Result<Image> {
    find(store, text)?.ok_or_else(|| Error::NotFound(text.to_owned()))
}

/// All images, the newest first.
///
/// One that can't be read is left out: it must not hide the others.
///
/// # Errors
/// When `index.json` can't be read.
pub fn list(store: &Store) -> Result<Vec<Listed>> {
    let layout = layout(store)?;
    let index = layout.index()?;
    let mut listed: Vec<Listed> = Vec::new();
    for entry in &index.manifests {
        let Ok(image) = load(&layout, &index, entry) else {
            continue;
        };
        if listed
            .iter()
            .any(|other| other.image.manifest.digest == image.manifest.digest)
        {
            continue;
        }
        let size = image
            .layers
            .iter()
            .map(|chain| layers::size(store, chain))
            .sum();
        listed.push(Listed { image, size });
    }
    listed.sort_by_key(|listed| std::cmp::Reverse(listed.image.created()));
    Ok(listed)
}

/// The manifest, the configuration and the layers of an image, as the store keeps them.
///
/// # Errors
/// When the manifest can't be read.
pub fn blobs(store: &Store, image: &Image) -> Result<Vec<Descriptor>> {
    let (own, manifest) = read_manifest(&layout(store)?, &image.manifest)?;
    let mut blobs = vec![own, manifest.config];
    blobs.extend(manifest.layers);
    Ok(blobs)
}

/// The entry of `index.json` that a reference names.
pub(super) fn entry_named<'i>(index: &'i Index, reference: &Reference) -> Option<&'i Descriptor> {
    let full = reference.to_string();
    if let Some(entry) = index
        .manifests
        .iter()
        .find(|entry| entry.ref_name() == Some(&full))
    {
        return Some(entry);
    }
    let digest = reference.digest()?;
    let name = reference.name();
    index.manifests.iter().find(|entry| {
        let source = entry.annotations.get(SOURCE_DIGEST).map(String::as_str);
        let same_content = entry.digest == *digest || source == Some(digest.as_str());
        same_content
            && entry
                .ref_name()
                .and_then(|name| name.parse::<Reference>().ok())
                .is_some_and(|it| it.name() == name)
    })
}

fn find_by_id(layout: &Layout, index: &Index, text: &str) -> Result<Option<Image>> {
    let prefix = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if prefix.len() < SHORTEST_PREFIX || prefix.len() > 64 || !prefix.bytes().all(is_hex) {
        return Ok(None);
    }
    let mut found: Vec<(Digest, &Descriptor)> = Vec::new();
    for entry in &index.manifests {
        let Ok((_, manifest)) = read_manifest(layout, entry) else {
            continue;
        };
        let id = manifest.config.digest;
        if id.hex().starts_with(prefix) && !found.iter().any(|(other, _)| *other == id) {
            found.push((id, entry));
        }
    }
    match found[..] {
        [] => Ok(None),
        [(_, entry)] => load(layout, index, entry).map(Some),
        _ => Err(Error::Ambiguous {
            prefix: text.to_owned(),
            count: found.len(),
        }),
    }
}

/// Reads the image that an entry of `index.json` stands for.
pub(super) fn load(layout: &Layout, index: &Index, entry: &Descriptor) -> Result<Image> {
    let damaged = |source| Error::Damaged {
        digest: entry.digest.clone(),
        source,
    };
    let (descriptor, manifest) = read_manifest(layout, entry)?;
    let bytes = layout.read_blob(&manifest.config.digest, MAX_DOCUMENT)?;
    let config = parse_config(&bytes).map_err(|error| damaged(error.into()))?;
    manifest
        .check_layers(&config)
        .map_err(|error| damaged(error.into()))?;
    let same = index
        .manifests
        .iter()
        .filter(|other| other.digest == entry.digest);
    let mut names = Vec::new();
    let mut digests = BTreeMap::new();
    for (other, name) in same.filter_map(|other| Some((other, other.ref_name()?))) {
        names.push(name.to_owned());
        let digest = other.annotations.get(SOURCE_DIGEST);
        if let Some(digest) = digest.and_then(|digest| digest.parse().ok()) {
            digests.insert(name.to_owned(), digest);
        }
    }
    names.sort();
    Ok(Image {
        id: manifest.config.digest,
        layers: chain_ids(&config.rootfs.diff_ids),
        manifest: descriptor,
        config,
        names,
        digests,
    })
}

/// Reads an entry's manifest; where somebody else put an index into the layout, the one for this machine.
pub(super) fn read_manifest(layout: &Layout, entry: &Descriptor) -> Result<(Descriptor, Manifest)> {
    let damaged = |source| Error::Damaged {
        digest: entry.digest.clone(),
        source,
    };
    let parse = |descriptor: &Descriptor| -> Result<Document> {
        let bytes = layout.read_blob(&descriptor.digest, MAX_DOCUMENT)?;
        parse_document(&bytes, Some(&descriptor.media_type)).map_err(|error| damaged(error.into()))
    };
    match parse(entry)? {
        Document::Manifest(manifest) => Ok((entry.clone(), manifest)),
        Document::Index(index) => {
            let chosen =
                choose(&index, &Platform::host()).map_err(|error| damaged(error.into()))?;
            match parse(chosen)? {
                Document::Manifest(manifest) => Ok((chosen.clone(), manifest)),
                Document::Index(_) => Err(damaged("an index inside an index".into())),
            }
        }
    }
}
