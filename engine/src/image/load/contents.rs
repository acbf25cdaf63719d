//! The second half of a load: which images an archive has, by its `index.json` or its `manifest.json`.
//!
//! Newer archives have both. The index gives the very manifest that a registry would, so it is preferred, unless it
//! speaks of layers that are not compressed: docker writes such archives, and pushing their images would send the
//! layers as they are.

use bundle_tools::Digest;
use bundle_tools::image::{
    Descriptor, Document, ImageConfig, Index, MAX_DOCUMENT, Manifest, Platform, chain_ids, choose,
    media_type, parse_config, parse_document,
};
use bundle_tools::layer::compression::Compression;
use bundle_tools::layout::Layout;
use serde::Deserialize;

use super::Error;
use super::spool::{Content, Spooled, compress, refused};
use crate::image::Reference;
use crate::image::save::CONTAINERD_NAME;

/// An image of the archive: its blobs are in the store, its layers not yet unpacked.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) manifest: Descriptor,
    pub(super) config: ImageConfig,
    /// Digest of the configuration, the image's id.
    pub(super) id: Digest,
    /// The layers' blobs.
    pub(super) layers: Vec<Descriptor>,
    pub(super) names: Vec<Reference>,
}

impl Planned {
    pub(super) fn chain(&self) -> Vec<Digest> {
        chain_ids(&self.config.rootfs.diff_ids)
    }

    fn is_compressed(&self) -> bool {
        self.layers.iter().all(|layer| {
            media_type::layer_compression(&layer.media_type) != Some(Compression::None)
        })
    }
}

/// One image as `manifest.json` has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds all images of an archive.
pub(super) fn read(layout: &Layout, spooled: &Spooled) -> Result<Vec<Planned>, Error> {
    let docker: Option<Vec<DockerEntry>> = json(spooled, "manifest.json")?;
    let index: Option<Index> = json(spooled, "index.json")?;
    let by_index = index.map(|index| from_index(layout, spooled, &index));
    match (by_index, docker) {
        (Some(Ok(mut images)), Some(entries)) if images.iter().all(Planned::is_compressed) => {
            add_names(spooled, &mut images, &entries)?;
            Ok(images)
        }
        (_, Some(entries)) => entries
            .iter()
            .map(|entry| from_docker(layout, spooled, entry))
            .collect(),
        (Some(images), None) => images,
        (None, None) if spooled.get("repositories")?.is_some() => Err(Error::NoImages(
            "; it was written by a docker older than 1.10, which is not supported",
        )),
        (None, None) => Err(Error::NoImages(
            "; `import` makes an image of a root file system",
        )),
    }
}

fn json<T: serde::de::DeserializeOwned>(
    spooled: &Spooled,
    path: &'static str,
) -> Result<Option<T>, Error> {
    match spooled.get(path)? {
        Some(Content::Document(bytes)) => {
            serde_json::from_slice(bytes)
                .map(Some)
                .map_err(|source| Error::Document {
                    what: path.to_owned(),
                    source: bundle_tools::image::Error::Json { what: path, source },
                })
        }
        Some(_) => Err(refused(path, "is no document")),
        None => Ok(None),
    }
}

fn from_index(layout: &Layout, spooled: &Spooled, index: &Index) -> Result<Vec<Planned>, Error> {
    let mut images: Vec<Planned> = Vec::new();
    for entry in &index.manifests {
        let name = name_of(entry)?;
        let planned = from_entry(layout, spooled, entry)?;
        let digest = &planned.manifest.digest;
        match images.iter_mut().find(|it| it.manifest.digest == *digest) {
            Some(known) => known.names.extend(name),
            None => images.push(Planned {
                names: name.into_iter().collect(),
                ..planned
            }),
        }
    }
    Ok(images)
}

/// The name that an entry's annotations give the image. A lone tag is none.
fn name_of(entry: &Descriptor) -> Result<Option<Reference>, Error> {
    if let Some(name) = entry.annotations.get(CONTAINERD_NAME) {
        return Ok(Some(name.parse()?));
    }
    Ok(entry
        .ref_name()
        .filter(|name| name.contains([':', '/']))
        .and_then(|name| name.parse().ok()))
}

fn from_entry(layout: &Layout, spooled: &Spooled, entry: &Descriptor) -> Result<Planned, Error> {
    let (descriptor, manifest) = match document(layout, spooled, entry)? {
        Document::Manifest(manifest) => (entry.clone(), manifest),
        Document::Index(index) => {
            let unusable = |source| Error::Document {
                what: format!("index {}", entry.digest),
                source,
            };
            let chosen = choose(&index, &Platform::host()).map_err(unusable)?;
            match document(layout, spooled, chosen)? {
                Document::Manifest(manifest) => (chosen.clone(), manifest),
                Document::Index(_) => {
                    return Err(refused(
                        &blob_path(&chosen.digest),
                        "is an index in an index",
                    ));
                }
            }
        }
    };
    let what = || format!("manifest {}", descriptor.digest);
    if !media_type::is_config(&manifest.config.media_type) {
        return Err(refused(&what(), "is not the manifest of a container image"));
    }
    let config = config(&blob(layout, spooled, &manifest.config.digest)?)?;
    let source = manifest.check_layers(&config);
    source.map_err(|source| Error::Document {
        what: what(),
        source,
    })?;
    for layer in &manifest.layers {
        if !media_type::is_layer(&layer.media_type) {
            return Err(refused(&what(), "has a layer of an unknown type"));
        }
        in_archive(spooled, &layer.digest)?;
    }
    Ok(Planned {
        // Only what the specification gives a meaning goes into our own index.
        manifest: Descriptor::new(
            &descriptor.media_type,
            descriptor.digest.clone(),
            descriptor.size,
        ),
        id: manifest.config.digest,
        layers: manifest.layers,
        config,
        names: Vec::new(),
    })
}

fn from_docker(layout: &Layout, spooled: &Spooled, entry: &DockerEntry) -> Result<Planned, Error> {
    let config_bytes = match spooled.get(&entry.config)? {
        Some(Content::Document(bytes)) => bytes.clone(),
        Some(Content::Blob { blob, .. }) => layout.read_blob(&blob.digest, MAX_DOCUMENT)?,
        Some(_) => return Err(refused(&entry.config, "is no document")),
        None => return Err(Error::Missing(entry.config.clone())),
    };
    let parsed = config(&config_bytes)?;
    let id = Digest::sha256_of(&config_bytes);
    let paths = entry.layers.as_deref().unwrap_or_default();
    let diff_ids = &parsed.rootfs.diff_ids;
    if paths.len() != diff_ids.len() {
        return Err(Error::Document {
            what: format!("image {id}"),
            source: bundle_tools::image::Error::LayerCount {
                diff_ids: diff_ids.len(),
                layers: paths.len(),
            },
        });
    }
    let mut layers = Vec::with_capacity(paths.len());
    for (path, expected) in paths.iter().zip(diff_ids) {
        layers.push(layer(layout, spooled, path, (&id, expected))?);
    }
    let config = layout.put_blob(&config_bytes, media_type::CONFIG)?;
    let manifest = Manifest::new(config, layers.clone());
    Ok(Planned {
        manifest: layout.put_json(&manifest, media_type::MANIFEST)?,
        config: parsed,
        id,
        layers,
        names: names(entry)?,
    })
}

/// A layer of `manifest.json` as a compressed blob.
fn layer(
    layout: &Layout,
    spooled: &Spooled,
    path: &str,
    (image, expected): (&Digest, &Digest),
) -> Result<Descriptor, Error> {
    let (blob, diff_id) = match spooled.get(path)? {
        Some(Content::Layer { blob, diff_id }) => (blob.clone(), diff_id.clone()),
        Some(Content::Blob {
            blob,
            compression: Compression::None,
        }) => {
            let archive = layout.open_blob(&blob.digest)?;
            compress(layout, archive).map_err(|source| Error::Member {
                path: path.to_owned(),
                source,
            })?
        }
        // Its content is checked when it is unpacked.
        Some(Content::Blob { blob, .. }) => return Ok(blob.clone()),
        Some(_) => return Err(refused(path, "is no layer")),
        None => return Err(Error::Missing(path.to_owned())),
    };
    if diff_id != *expected {
        return Err(Error::DiffId {
            image: image.clone(),
            expected: expected.clone(),
            actual: diff_id,
        });
    }
    Ok(blob)
}

/// Names that only `manifest.json` has.
fn add_names(
    spooled: &Spooled,
    images: &mut [Planned],
    entries: &[DockerEntry],
) -> Result<(), Error> {
    for entry in entries {
        let Some(Content::Blob { blob, .. }) = spooled.get(&entry.config)? else {
            continue;
        };
        let config = &blob.digest;
        for image in images.iter_mut() {
            if image.id != *config {
                continue;
            }
            for name in names(entry)? {
                if !image.names.contains(&name) {
                    image.names.push(name);
                }
            }
        }
    }
    Ok(())
}

fn names(entry: &DockerEntry) -> Result<Vec<Reference>, Error> {
    let tags = entry.repo_tags.iter().flatten();
    tags.map(|tag| Ok(tag.parse::<Reference>()?)).collect()
}

fn document(layout: &Layout, spooled: &Spooled, entry: &Descriptor) -> Result<Document, Error> {
    let bytes = blob(layout, spooled, &entry.digest)?;
    parse_document(&bytes, Some(&entry.media_type)).map_err(|source| Error::Document {
        what: format!("manifest {}", entry.digest),
        source,
    })
}

fn config(bytes: &[u8]) -> Result<ImageConfig, Error> {
    parse_config(bytes).map_err(|source| Error::Document {
        what: format!("configuration {}", Digest::sha256_of(bytes)),
        source,
    })
}

/// A small blob of the archive. One that only the store has does not count.
fn blob(layout: &Layout, spooled: &Spooled, digest: &Digest) -> Result<Vec<u8>, Error> {
    in_archive(spooled, digest)?;
    Ok(layout.read_blob(digest, MAX_DOCUMENT)?)
}

fn in_archive(spooled: &Spooled, digest: &Digest) -> Result<(), Error> {
    let path = blob_path(digest);
    match spooled.get(&path)? {
        Some(_) => Ok(()),
        None => Err(Error::Missing(path)),
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
