//! From a name in a layout to the image behind it.

use super::{Error, Layout};
use crate::image::{
    self, Descriptor, Document, ImageConfig, MAX_DOCUMENT, Manifest, Platform, media_type,
    parse_config, parse_document,
};

/// Indexes within indexes are followed this deep.
const MAX_DEPTH: u32 = 8;

/// An image of a layout, its documents read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// The index entry's name.
    pub name: Option<String>,
    /// Points to the manifest.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The image configuration.
    pub config: ImageConfig,
}

impl Layout {
    /// Finds an image by the name its index entry has, and by platform if there is a choice.
    ///
    /// Without a name: the only entry, or the one called `latest`. Without a platform:
    /// this machine's where there is a choice, and whatever there is otherwise.
    ///
    /// # Errors
    /// No such name, none for the platform, or damaged documents.
    pub fn image(&self, name: Option<&str>, platform: Option<&Platform>) -> Result<Image, Error> {
        let entries = self.index()?.manifests;
        let named = |wanted: &str| {
            let mut entries = entries.iter().rev();
            entries
                .find(|entry| entry.ref_name() == Some(wanted))
                .cloned()
        };
        let entry = match (name, &entries[..]) {
            (Some(name), _) => named(name),
            (None, [only]) => Some(only.clone()),
            (None, _) => named("latest"),
        };
        let entry = entry.ok_or_else(|| Error::NoImage {
            name: name.map(str::to_owned),
            path: self.path.clone(),
            available: entries
                .iter()
                .filter_map(Descriptor::ref_name)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        let name = entry.ref_name().map(str::to_owned);
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        let (descriptor, manifest) = self.manifest(entry, wanted, MAX_DEPTH)?;
        let bytes = self.read_blob(&manifest.config.digest, MAX_DOCUMENT)?;
        let document = |source| Error::Document {
            path: self.blob_path(&manifest.config.digest),
            source,
        };
        let config = parse_config(&bytes).map_err(document)?;
        manifest.check_layers(&config).map_err(document)?;
        let has = Platform::new(&config.os, &config.architecture, config.variant.as_deref());
        if platform.is_some_and(|wanted| has.matches(wanted).is_none()) {
            return Err(document(image::Error::NoPlatform {
                wanted: wanted.to_string(),
                available: has.to_string(),
            }));
        }
        Ok(Image {
            name,
            descriptor,
            manifest,
            config,
        })
    }

    fn manifest(
        &self,
        entry: Descriptor,
        platform: &Platform,
        depth: u32,
    ) -> Result<(Descriptor, Manifest), Error> {
        let failed = |source| Error::Document {
            path: self.blob_path(&entry.digest),
            source,
        };
        let known =
            media_type::is_manifest(&entry.media_type) || media_type::is_index(&entry.media_type);
        if !known {
            return Err(failed(image::Error::MediaType(entry.media_type.clone())));
        }
        let bytes = self.read_blob(&entry.digest, MAX_DOCUMENT)?;
        match parse_document(&bytes, Some(&entry.media_type)).map_err(failed)? {
            Document::Manifest(manifest) => Ok((entry, manifest)),
            Document::Index(_) if depth == 0 => Err(failed(image::Error::Ambiguous(
                "too many indexes within one another",
            ))),
            Document::Index(index) => {
                let chosen = image::choose(&index, platform).map_err(failed)?;
                self.manifest(chosen.clone(), platform, depth - 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Index, REF_NAME};

    /// Two images, one behind a platform index.
    fn layout() -> (tempfile::TempDir, Layout) {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path()).unwrap();
        let config = ImageConfig {
            architecture: "arm64".to_owned(),
            os: "linux".to_owned(),
            ..ImageConfig::default()
        };
        let config = layout.put_json(&config, media_type::CONFIG).unwrap();
        let manifest = Manifest::new(config, Vec::new());
        let mut plain = layout.put_json(&manifest, media_type::MANIFEST).unwrap();
        let mut inner = plain.clone();
        inner.platform = Some("linux/arm64".parse().unwrap());
        let index = Index {
            manifests: vec![inner],
            ..Index::default()
        };
        let mut indexed = layout.put_json(&index, media_type::INDEX).unwrap();
        plain
            .annotations
            .insert(REF_NAME.to_owned(), "plain".to_owned());
        indexed
            .annotations
            .insert(REF_NAME.to_owned(), "host:5000/many:1".to_owned());
        layout
            .update_index(|index| -> Result<(), Error> {
                index.manifests = vec![plain, indexed];
                Ok(())
            })
            .unwrap();
        (directory, layout)
    }

    #[test]
    fn names_lead_to_images() {
        let (_directory, layout) = layout();
        let arm: Platform = "linux/arm64/v8".parse().unwrap();
        let image = layout.image(Some("host:5000/many:1"), Some(&arm)).unwrap();
        assert_eq!(image.config.architecture, "arm64");
        assert_eq!(image.name.as_deref(), Some("host:5000/many:1"));
        assert_eq!(
            layout.image(Some("plain"), None).unwrap().manifest,
            image.manifest
        );

        let error = layout.image(None, None).unwrap_err().to_string();
        assert!(error.contains("plain, host:5000/many:1"), "{error}");
        let amd: Platform = "linux/amd64".parse().unwrap();
        assert!(layout.image(Some("host:5000/many:1"), Some(&amd)).is_err());
        assert!(layout.image(Some("plain"), Some(&amd)).is_err());
    }
}
