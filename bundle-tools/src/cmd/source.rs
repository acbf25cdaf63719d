//! `LAYOUT[:NAME]`, and what a bundle remembers of the image it was made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use bundle_tools::image::{Descriptor, Platform};
use bundle_tools::layout::{Image, Layout};
use serde::{Deserialize, Serialize};

/// The file in a bundle that says what it was made of.
pub(super) const RECORD: &str = "qbundle.json";

/// An image in a layout directory, as named on the command line.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(super) layout: PathBuf,
    pub(super) name: Option<String>,
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    /// Paths and names may both have colons in them: the first colon that has
    /// a layout before it divides the two.
    fn from_str(text: &str) -> Result<Source, Self::Err> {
        let is_layout = |path: &str| Path::new(path).join("oci-layout").exists();
        let colons: Vec<usize> = text.match_indices(':').map(|(at, _)| at).collect();
        let divided = colons.iter().find(|&&at| is_layout(&text[..at]));
        // With no layout in sight, for the error message: as most people mean it.
        let fallback = if is_layout(text) {
            None
        } else {
            colons.first()
        };
        Ok(match divided.or(fallback) {
            Some(&at) => Source {
                layout: PathBuf::from(&text[..at]),
                name: Some(text[at + 1..].to_owned()),
            },
            None => Source {
                layout: PathBuf::from(text),
                name: None,
            },
        })
    }
}

impl Source {
    /// Opens the layout and finds the image.
    pub(super) fn open(&self, platform: Option<&Platform>) -> anyhow::Result<(Layout, Image)> {
        let layout = Layout::open(&self.layout)?;
        let image = layout.image(self.name.as_deref(), platform)?;
        Ok((layout, image))
    }
}

/// What a bundle was made of.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Record {
    /// The layout's absolute path.
    pub(super) layout: PathBuf,
    /// The image's name in it.
    pub(super) name: Option<String>,
    /// The manifest unpacked.
    pub(super) manifest: Descriptor,
    /// Whether owners and devices were left out.
    pub(super) rootless: bool,
}

impl Record {
    pub(super) fn write(&self, bundle: &Path) -> anyhow::Result<()> {
        let path = bundle.join(RECORD);
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }

    pub(super) fn read(bundle: &Path) -> anyhow::Result<Record> {
        let path = bundle.join(RECORD);
        if !path.exists() {
            bail!(
                "{} was not made by qbundle unpack: it has no {RECORD}",
                bundle.display()
            );
        }
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_divide_where_a_layout_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a:b");
        Layout::create(&path).unwrap();
        let path = path.to_string_lossy().into_owned();
        let parse = |text: &str| {
            let Ok(source) = text.parse::<Source>();
            (source.layout.to_string_lossy().into_owned(), source.name)
        };
        assert_eq!(parse(&path), (path.clone(), None));
        let name = Some("host:5000/x:1".to_owned());
        assert_eq!(parse(&format!("{path}:host:5000/x:1")), (path, name));
        let missing = ("missing".to_owned(), Some("x".to_owned()));
        assert_eq!(parse("missing:x"), missing);
    }
}
