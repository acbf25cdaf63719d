//! `save`: images as one archive.
//!
//! Both forms are an OCI image layout in a tar file, blobs as they lie in the store: what is loaded again has the same
//! digests, and nothing is compressed anew. The docker form adds `manifest.json` and `repositories`, which every docker
//! and podman reads, and calls names in `index.json` as docker 25 and later do.
//!
//! The same images give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use bundle_tools::Digest;
use bundle_tools::image::{Descriptor, Index, MAX_DOCUMENT, Platform, REF_NAME};
use bundle_tools::layout::Layout;
use bundle_tools::package::Packer;
use serde::Serialize;
use serde_json::json;

use super::{Image, Reference, WriterGuard, find, layout, list, require};
use crate::store::{Event, Kind, Store};

/// The annotation that containerd and docker keep an image's full name in.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The form of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveFormat {
    /// What `docker load` reads, of any version.
    #[default]
    Docker,
    /// An OCI image layout and nothing else.
    Oci,
}

/// Why images could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store can't be read.
    #[error(transparent)]
    Image(#[from] super::Error),
    /// The archive can't be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// A blob can't be passed on.
    #[error("cannot write {digest} into the archive")]
    Blob {
        /// Which.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
}

impl From<bundle_tools::layout::Error> for Error {
    fn from(error: bundle_tools::layout::Error) -> Error {
        Error::Image(error.into())
    }
}

/// Writes images into one archive.
///
/// A name without a tag stands for all tags that the repository has here, as in docker; an image given by its id is
/// saved without a name.
///
/// # Errors
/// No such image; a damaged store; an archive that can't be written.
pub fn save(
    store: &Store,
    images: &[String],
    format: ArchiveFormat,
    out: impl Write,
) -> Result<(), Error> {
    // What is removed meanwhile is collected by whoever collects next.
    let _guard = WriterGuard::take(store)?;
    let layout = layout(store)?;
    let chosen = choose(store, images)?;
    let documents = documents(&layout, &chosen, format)?;
    let mut packer = Packer::new(out);
    for (name, bytes) in &documents.files {
        packer
            .file(name, bytes.len() as u64, &bytes[..])
            .map_err(Error::Write)?;
    }
    packer.directory("blobs").map_err(Error::Write)?;
    let mut algorithm = "";
    for (digest, size) in &documents.blobs {
        if digest.algorithm() != algorithm {
            algorithm = digest.algorithm();
            let directory = format!("blobs/{algorithm}");
            packer.directory(&directory).map_err(Error::Write)?;
        }
        let file = layout.open_blob(digest)?;
        packer
            .file(&blob_path(digest), *size, file)
            .map_err(|source| Error::Blob {
                digest: digest.clone(),
                source,
            })?;
    }
    packer.finish().map_err(Error::Write)?;
    for Chosen { image, names } in &chosen {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let event = Event::new(Kind::Image, "save", image.id.to_string());
        store.emit(&event.with("name", names.join(",")));
    }
    Ok(())
}

/// An image, and the names it is to be saved under.
struct Chosen {
    image: Image,
    names: Vec<Reference>,
}

fn choose(store: &Store, texts: &[String]) -> Result<Vec<Chosen>, Error> {
    let mut chosen: Vec<Chosen> = Vec::new();
    for text in texts {
        let mut found = repository(store, text)?;
        if found.is_empty() {
            let image = require(store, text)?;
            let name = text.parse::<Reference>().ok();
            let name = name
                .filter(|name| name.digest().is_none() && image.names.contains(&name.to_string()));
            found.push((image, name));
        }
        for (image, name) in found {
            let digest = &image.manifest.digest;
            let known = chosen
                .iter_mut()
                .find(|it| it.image.manifest.digest == *digest);
            match known {
                Some(known) => known.names.extend(name),
                None => chosen.push(Chosen {
                    image,
                    names: name.into_iter().collect(),
                }),
            }
        }
    }
    for image in &mut chosen {
        image.names.sort();
        image.names.dedup();
    }
    Ok(chosen)
}

/// All tags of the repository, when the text is the name of one and of nothing more.
fn repository(store: &Store, text: &str) -> Result<Vec<(Image, Option<Reference>)>, Error> {
    let Ok(wanted) = text.parse::<Reference>() else {
        return Ok(Vec::new());
    };
    let bare = wanted.digest().is_none()
        && !text.ends_with(&format!(":{}", wanted.tag().unwrap_or_default()));
    if !bare {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for listed in list(store)? {
        for name in &listed.image.names {
            if let Ok(name) = name.parse::<Reference>()
                && name.name() == wanted.name()
                && name.digest().is_none()
            {
                found.push((listed.image.clone(), Some(name)));
            }
        }
    }
    found.sort_by(|(_, one), (_, other)| one.cmp(other));
    Ok(found)
}

/// What an archive consists of.
struct Documents {
    /// Names and content of the small files.
    files: Vec<(&'static str, Vec<u8>)>,
    /// The blobs, in order of their digests, with their sizes.
    blobs: BTreeMap<Digest, u64>,
}

/// One image as `manifest.json` has it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn documents(
    layout: &Layout,
    chosen: &[Chosen],
    format: ArchiveFormat,
) -> Result<Documents, Error> {
    let mut index = Index::default();
    let mut docker: Vec<DockerEntry> = Vec::new();
    let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut blobs = BTreeMap::new();
    for Chosen { image, names } in chosen {
        let (_, manifest) = find::read_manifest(layout, &image.manifest)?;
        // The size in the index may be anybody's; that of the file is what the archive gets.
        let size = layout
            .read_blob(&image.manifest.digest, MAX_DOCUMENT)?
            .len() as u64;
        blobs.insert(image.manifest.digest.clone(), size);
        blobs.insert(manifest.config.digest.clone(), manifest.config.size);
        for layer in &manifest.layers {
            blobs.insert(layer.digest.clone(), layer.size);
        }
        index.manifests.extend(entries(image, size, names, format));
        let layers: Vec<String> = manifest
            .layers
            .iter()
            .map(|layer| blob_path(&layer.digest))
            .collect();
        for name in names {
            let top = image.layers.last().unwrap_or(&image.id);
            repositories
                .entry(name.familiar_name())
                .or_default()
                .insert(
                    name.tag().unwrap_or_default().to_owned(),
                    top.hex().to_owned(),
                );
        }
        let tags: BTreeSet<String> = names.iter().map(Reference::familiar).collect();
        docker.push(DockerEntry {
            config: blob_path(&manifest.config.digest),
            repo_tags: (!tags.is_empty()).then(|| tags.into_iter().collect()),
            layers,
        });
    }
    let version = json!({"imageLayoutVersion": "1.0.0"});
    let mut files = vec![
        ("oci-layout", to_json(&version)?),
        ("index.json", to_json(&index)?),
    ];
    if format == ArchiveFormat::Docker {
        files.push(("manifest.json", to_json(&docker)?));
        files.push(("repositories", to_json(&repositories)?));
    }
    Ok(Documents { files, blobs })
}

fn to_json(document: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(document).map_err(|error| Error::Write(error.into()))
}

/// The image's entries in the archive's index: one a name, or one without.
fn entries(
    image: &Image,
    size: u64,
    names: &[Reference],
    format: ArchiveFormat,
) -> Vec<Descriptor> {
    let config = &image.config;
    let digest = image.manifest.digest.clone();
    let mut bare = Descriptor::new(&image.manifest.media_type, digest, size);
    bare.platform = Some(Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
        ..Platform::default()
    });
    if names.is_empty() {
        return vec![bare];
    }
    let named = |name: &Reference| {
        let mut entry = bare.clone();
        let short = match format {
            ArchiveFormat::Docker => name.tag().unwrap_or_default().to_owned(),
            ArchiveFormat::Oci => name.to_string(),
        };
        let annotations = &mut entry.annotations;
        annotations.insert(CONTAINERD_NAME.to_owned(), name.to_string());
        annotations.insert(REF_NAME.to_owned(), short);
        entry
    };
    names.iter().map(named).collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}
