//! The first half of a pull: how the registry wants to be talked to, and what the reference stands for.

use std::sync::Arc;

use bundle_tools::Digest;
use bundle_tools::image::{
    self as documents, Descriptor, Document, MAX_DOCUMENT, Manifest, Platform, choose, media_type,
    parse_config, parse_document,
};
use bundle_tools::layout::Layout;
use futures_util::TryStreamExt;

use super::{Error, Progress, PullOptions, Resolved, Result};
use crate::image::Reference;
use crate::image::registry::{Answer, Endpoint, Fault, Oci, Registry, Use, connect, with_retries};

/// Indexes inside of indexes that are followed.
const DEEPEST: u32 = 2;

/// Finds the image's manifest and configuration.
pub(super) async fn resolve(
    layout: &Layout,
    reference: &Reference,
    endpoints: &[Endpoint],
    options: &PullOptions,
    progress: &dyn Progress,
) -> Result<(Arc<Oci>, Resolved)> {
    let wanted = match reference.digest() {
        Some(digest) => digest.as_str(),
        None => reference.tag().unwrap_or_default(),
    };
    let (registry, answer) = connect(endpoints, Use::Pull, async |it| it.manifest(wanted).await)
        .await
        .map_err(|fault| explain(reference, "manifest", fault))?;
    let source = match reference.digest() {
        Some(digest) if digest.matches(&answer.bytes) => digest.clone(),
        Some(_) => {
            return Err(explain(reference, "manifest", wrong_digest(&answer.bytes)));
        }
        None => Digest::sha256_of(&answer.bytes),
    };
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let (manifest, manifest_bytes) = find_manifest(&registry, reference, answer, &platform).await?;
    check_types(reference, &manifest)?;

    let config_bytes = match layout.read_blob(&manifest.config.digest, MAX_DOCUMENT) {
        // It is here, whole and right.
        Ok(bytes) => bytes,
        Err(_) => small_blob(&registry, &manifest.config)
            .await
            .map_err(|fault| explain(reference, "configuration", fault))?,
    };
    let unusable = |source| Error::Document {
        reference: reference.familiar(),
        source: Box::new(source),
    };
    let config = parse_config(&config_bytes).map_err(unusable)?;
    manifest.check_layers(&config).map_err(unusable)?;

    let actual = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
    if actual.matches(&platform).is_none() {
        let mismatch = Error::Platform {
            reference: reference.familiar(),
            actual: actual.to_string(),
            wanted: platform.to_string(),
        };
        // Somebody who names no platform may know that the image is of another one.
        if options.platform.is_some() || config.os != "linux" {
            return Err(mismatch);
        }
        progress.warning(&mismatch.to_string());
    }
    let resolved = Resolved::new(source, manifest, manifest_bytes, config, config_bytes);
    Ok((Arc::new(registry), resolved))
}

/// Follows indexes to the manifest for the platform.
async fn find_manifest(
    registry: &Oci,
    reference: &Reference,
    answer: Answer,
    platform: &Platform,
) -> Result<(Manifest, Vec<u8>)> {
    let unusable = |source| Error::Document {
        reference: reference.familiar(),
        source: Box::new(source),
    };
    let Answer {
        mut bytes,
        content_type: mut media_type,
    } = answer;
    for _ in 0..=DEEPEST {
        let index = match parse_document(&bytes, media_type.as_deref()).map_err(unusable)? {
            Document::Manifest(manifest) => return Ok((manifest, bytes)),
            Document::Index(index) => index,
        };
        let chosen = choose(&index, platform).map_err(unusable)?;
        bytes = with_retries(async || Ok(registry.manifest(chosen.digest.as_str()).await?.bytes))
            .await
            .map_err(|fault| explain(reference, "manifest", fault))?;
        check(&bytes, chosen).map_err(|fault| explain(reference, "manifest", fault))?;
        media_type = Some(chosen.media_type.clone());
    }
    Err(unusable(documents::Error::Ambiguous(
        "indexes are nested too deeply",
    )))
}

/// Refuses what only looks like an image: charts, signatures, attestations, and layers nobody can unpack.
fn check_types(reference: &Reference, manifest: &Manifest) -> Result<()> {
    let no_image = |what, media_type: &str| Error::NoImage {
        reference: reference.familiar(),
        what,
        media_type: media_type.to_owned(),
    };
    let config = &manifest.config.media_type;
    if ![media_type::CONFIG, media_type::DOCKER_CONFIG].contains(&config.as_str()) {
        return Err(no_image("its configuration", config));
    }
    let unknown = |layer: &&Descriptor| media_type::layer_compression(&layer.media_type).is_none();
    match manifest.layers.iter().find(unknown) {
        Some(layer) => Err(no_image("a layer", &layer.media_type)),
        None => Ok(()),
    }
}

/// Fetches a blob into memory.
async fn small_blob(
    registry: &Oci,
    descriptor: &Descriptor,
) -> std::result::Result<Vec<u8>, Fault> {
    if descriptor.size > MAX_DOCUMENT {
        return Err(Fault::Protocol(format!(
            "it has {} bytes, which is too much",
            descriptor.size
        )));
    }
    let fetch = async || {
        let part = registry.blob(&descriptor.digest, 0).await?;
        let mut stream = part.stream;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream
            .try_next()
            .await
            .map_err(|error| Fault::from_stream(&error))?
        {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > descriptor.size {
                return Err(Fault::Oversized {
                    size: descriptor.size,
                });
            }
        }
        let done = bytes.len() as u64;
        if done < descriptor.size {
            return Err(Fault::Truncated {
                done,
                size: descriptor.size,
            });
        }
        Ok(bytes)
    };
    let bytes = with_retries(fetch).await?;
    check(&bytes, descriptor)?;
    Ok(bytes)
}

fn check(bytes: &[u8], descriptor: &Descriptor) -> std::result::Result<(), Fault> {
    match descriptor.digest.matches(bytes) {
        true => Ok(()),
        false => Err(wrong_digest(bytes)),
    }
}

fn wrong_digest(bytes: &[u8]) -> Fault {
    Fault::WrongDigest {
        actual: Digest::sha256_of(bytes).to_string(),
    }
}

/// The fault as what it means to somebody who wants this image.
pub(super) fn explain(reference: &Reference, what: &'static str, fault: Fault) -> Error {
    match fault.into_refusal("pull", reference) {
        Ok(refusal) => refusal.into(),
        Err(Fault::NotFound) if what == "manifest" => Error::NotFound {
            reference: reference.familiar(),
            host: reference.registry().to_owned(),
        },
        Err(source) => Error::Fetch {
            what,
            reference: reference.familiar(),
            source,
        },
    }
}
