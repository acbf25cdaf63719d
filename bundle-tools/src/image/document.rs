//! Manifests and indexes, and the one function that decides which of the two a document is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::null_as_default;
use super::{Error, ImageConfig, Platform, media_type};
use crate::digest::Digest;

/// The largest manifest, index or configuration that is read, in bytes.
///
/// Registries refuse to store larger manifests; a configuration with the
/// longest history seen is far below.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// Points to content by type, digest and size.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// Places the content may be fetched from, credentials never being sent there.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// What the content runs on; only in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The artifact's type when the target is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Fields this library has no name for.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Descriptor {
    /// A descriptor with the three required fields.
    #[must_use]
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
            other: BTreeMap::new(),
        }
    }

    /// The name a layout's index gives the entry.
    #[must_use]
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.get(super::REF_NAME).map(String::as_str)
    }
}

/// An image manifest: one configuration and its layers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type; OCI lets it be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The artifact's type when this is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An OCI manifest of the given configuration and layers.
    #[must_use]
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(media_type::MANIFEST.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Checks that every layer has its diff id.
    ///
    /// # Errors
    /// When the numbers differ.
    pub fn check_layers(&self, config: &ImageConfig) -> Result<(), Error> {
        let (diff_ids, layers) = (config.rootfs.diff_ids.len(), self.layers.len());
        if diff_ids == layers {
            Ok(())
        } else {
            Err(Error::LayerCount { diff_ids, layers })
        }
    }
}

/// An image index: manifests, by platform or by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type; OCI lets it be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The artifact's type when this is no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The entries.
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Arbitrary metadata.
    #[serde(
        default,
        deserialize_with = "null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Default for Index {
    fn default() -> Index {
        Index {
            schema_version: 2,
            media_type: Some(media_type::INDEX.to_owned()),
            artifact_type: None,
            manifests: Vec::new(),
            subject: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// What a manifest request can answer with.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time exists, and it is taken apart at once"
)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// The fields that tell the kinds apart; their content does not matter here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index.
///
/// `content_type` is what the registry or the descriptor called it. The
/// content type, the document's own `mediaType` and its fields must agree, so
/// that nobody else reads the same digest as something else (CVE-2021-41190).
///
/// # Errors
/// Oversized, malformed, ambiguous, schema 1, or neither of the two kinds.
pub fn parse_document(bytes: &[u8], content_type: Option<&str>) -> Result<Document, Error> {
    const WHAT: &str = "manifest";
    check_size(bytes, WHAT)?;
    let json = |source| Error::Json { what: WHAT, source };
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    // Parameters such as "; charset=utf-8" are none of our business.
    let content_type = content_type
        .and_then(|text| text.split(';').next())
        .map(str::trim)
        // What registries without an idea of the type send.
        .filter(|text| {
            !matches!(
                *text,
                "" | "application/json" | "text/plain" | "application/octet-stream"
            )
        });

    let declared = [content_type, probe.media_type.as_deref()];
    let schema1 = probe.schema_version == 1
        || probe.fs_layers.is_some()
        || declared.into_iter().flatten().any(media_type::is_schema1);
    if schema1 {
        return Err(Error::Schema1);
    }
    match document_kind(&probe, declared)? {
        Kind::Index => serde_json::from_slice(bytes)
            .map(Document::Index)
            .map_err(json),
        Kind::Manifest => serde_json::from_slice(bytes)
            .map(Document::Manifest)
            .map_err(json),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Manifest,
    Index,
}

fn document_kind(probe: &Probe, declared: [Option<&str>; 2]) -> Result<Kind, Error> {
    let manifest_fields = probe.config.is_some() || probe.layers.is_some();
    let index_fields = probe.manifests.is_some();
    let by_fields = match (manifest_fields, index_fields) {
        (true, true) => return Err(Error::Ambiguous("it has both layers and manifests")),
        (true, false) => Kind::Manifest,
        (false, true) => Kind::Index,
        (false, false) => {
            return Err(Error::Ambiguous("it has neither layers nor manifests"));
        }
    };
    for media_type in declared.into_iter().flatten() {
        let kind = if media_type::is_manifest(media_type) {
            Kind::Manifest
        } else if media_type::is_index(media_type) {
            Kind::Index
        } else {
            return Err(Error::MediaType(media_type.chars().take(140).collect()));
        };
        if kind != by_fields {
            return Err(Error::Ambiguous("its media type and its fields disagree"));
        }
    }
    if let [Some(outer), Some(inner)] = declared
        && outer != inner
    {
        return Err(Error::Ambiguous(
            "its media type is not the one it was served as",
        ));
    }
    Ok(by_fields)
}

/// Reads an image configuration.
///
/// # Errors
/// Oversized or malformed.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, Error> {
    const WHAT: &str = "image configuration";
    check_size(bytes, WHAT)?;
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what: WHAT, source })
}

fn check_size(bytes: &[u8], what: &'static str) -> Result<(), Error> {
    let size = bytes.len() as u64;
    if size > MAX_DOCUMENT {
        return Err(Error::TooLarge {
            what,
            size,
            limit: MAX_DOCUMENT,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kind: &str) -> String {
        let digest = Digest::sha256_of(kind.as_bytes());
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":3}}"#)
    }

    fn manifest(extra: &str) -> String {
        let (config, layer) = (
            descriptor(media_type::CONFIG),
            descriptor(media_type::LAYER_GZIP),
        );
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{extra}}}"#)
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let text = manifest("");
        let parsed = parse_document(text.as_bytes(), Some(media_type::MANIFEST)).unwrap();
        let Document::Manifest(parsed) = parsed else {
            panic!("not a manifest")
        };
        assert_eq!(parsed.layers.len(), 1);

        let entry = descriptor(media_type::MANIFEST);
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
        for content_type in [
            None,
            Some(media_type::INDEX),
            Some(media_type::DOCKER_INDEX),
        ] {
            let parsed = parse_document(text.as_bytes(), content_type).unwrap();
            assert!(matches!(parsed, Document::Index(_)));
        }
    }

    #[test]
    fn docker_schema_2_reads_as_oci() {
        let extra = format!(r#","mediaType":"{}""#, media_type::DOCKER_MANIFEST);
        let content_type = format!("{}; charset=utf-8", media_type::DOCKER_MANIFEST);
        let parsed = parse_document(manifest(&extra).as_bytes(), Some(&content_type));
        assert!(matches!(parsed, Ok(Document::Manifest(_))));
    }

    #[test]
    fn confusion_is_refused() {
        let both = manifest(r#","manifests":[]"#);
        let typed_as_index = manifest(&format!(r#","mediaType":"{}""#, media_type::INDEX));
        let schema1 = r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned();
        let neither = r#"{"schemaVersion":2}"#.to_owned();
        let cases = [
            (both.as_str(), None, "both layers and manifests"),
            (&typed_as_index, None, "disagree"),
            (&manifest(""), Some(media_type::INDEX), "disagree"),
            (
                &manifest(&format!(r#","mediaType":"{}""#, media_type::MANIFEST)),
                Some(media_type::DOCKER_MANIFEST),
                "served as",
            ),
            (&schema1, None, "schema 1"),
            (&neither, None, "neither"),
            (
                &manifest(""),
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
                "schema 1",
            ),
            (
                &manifest(""),
                Some("image/png"),
                "neither an image manifest",
            ),
            ("[]", None, "read manifest"),
        ];
        for (text, content_type, expected) in cases {
            let error = parse_document(text.as_bytes(), content_type)
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn oversized_and_malformed_documents_are_refused() {
        let size = usize::try_from(MAX_DOCUMENT).unwrap() + 1;
        let error = parse_document(&vec![b' '; size], None).unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }));
        let bad = manifest("").replace("sha256:", "sha256:../");
        assert!(matches!(
            parse_document(bad.as_bytes(), None),
            Err(Error::Json { .. })
        ));
    }

    #[test]
    fn configurations_survive_a_round_trip() {
        let text = r#"{"architecture":"amd64","os":"linux","docker_version":"28.5",
            "config":{"Hostname":"x","Env":null,"Cmd":["sh"],"Labels":null,"Volumes":{"/data":{}},
            "Healthcheck":{"Test":["CMD","true"],"Interval":1000000000}},
            "rootfs":{"type":"layers","diff_ids":null},
            "history":[{"created_by":"RUN x","empty_layer":true}]}"#;
        let config = parse_config(text.as_bytes()).unwrap();
        assert_eq!(config.config.cmd.as_deref(), Some(&["sh".to_owned()][..]));
        assert!(config.config.env.is_empty());
        assert!(config.history[0].empty_layer);
        let again: Value = serde_json::to_value(&config).unwrap();
        assert_eq!(again["docker_version"], "28.5");
        assert_eq!(again["config"]["Hostname"], "x");
        assert_eq!(again["config"]["Healthcheck"]["Interval"], 1_000_000_000);
        assert!(again["config"].get("Env").is_none());
    }
}
