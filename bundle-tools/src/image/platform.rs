//! Platforms, and the choice among an index's entries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Descriptor, Error, Index, media_type};

/// What an image runs on.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Platform {
    /// GOARCH name, such as `amd64`.
    pub architecture: String,
    /// GOOS name, such as `linux`.
    pub os: String,
    /// Variant of the architecture, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system; Windows only.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features the operating system must have; Windows only.
    #[serde(default, rename = "os.features", skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
}

impl Platform {
    /// The platform this program was built for.
    #[must_use]
    pub fn host() -> Platform {
        Platform::new("linux", std::env::consts::ARCH, None)
    }

    /// A platform from its parts, in whatever spelling, normalised.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant
            .filter(|text| !text.is_empty())
            .map(str::to_ascii_lowercase);
        let (architecture, implied) = match architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64", None),
            "i386" | "i486" | "i586" | "i686" | "x86" => ("386", None),
            "aarch64" => ("arm64", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        let variant = variant.or_else(|| implied.map(str::to_owned));
        let variant = match (architecture, variant.as_deref()) {
            // The only 64-bit variant in use; leaving it out means the same.
            ("arm64", Some("v8" | "8")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7".to_owned()),
            ("arm", Some("5" | "6" | "7" | "8")) => variant.map(|digit| format!("v{digit}")),
            _ => variant,
        };
        Platform {
            architecture: architecture.to_owned(),
            os: os.to_ascii_lowercase(),
            variant,
            ..Platform::default()
        }
    }

    /// How well an image for `self` suits a machine of the platform `wanted`.
    ///
    /// `None`: not at all. Otherwise the higher the better. Lower variants of
    /// 32-bit ARM and of amd64 run on higher ones.
    #[must_use]
    pub fn matches(&self, wanted: &Platform) -> Option<u32> {
        let image = Platform::new(&self.os, &self.architecture, self.variant.as_deref());
        let wanted = Platform::new(&wanted.os, &wanted.architecture, wanted.variant.as_deref());
        if image.os != wanted.os || image.architecture != wanted.architecture {
            return None;
        }
        if image.variant == wanted.variant {
            return Some(u32::MAX);
        }
        let level = |variant: &Option<String>| match variant {
            None => Some(1),
            Some(text) => text
                .strip_prefix('v')
                .and_then(|digits| digits.parse::<u32>().ok()),
        };
        let (image_level, wanted_level) = (level(&image.variant)?, level(&wanted.variant)?);
        // An arm64 image of v9 is not for a v8 machine; an amd64/v3 one not for plain amd64.
        (image_level <= wanted_level).then_some(image_level)
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &&str| {
            let allowed =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.bytes().all(allowed)
        };
        if !parts.iter().all(valid) {
            return Err(Error::Platform(text.to_owned()));
        }
        match parts[..] {
            ["linux"] => Ok(Platform::host()),
            // As docker does: a lone word that is no system is an architecture.
            [architecture] => Ok(Platform::new("linux", architecture, None)),
            [os, architecture] => Ok(Platform::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, Some(variant))),
            _ => Err(Error::Platform(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Chooses the index's best entry for a platform; the first of equals wins.
///
/// An entry without a platform is taken only when no other entry fits and it
/// is an image manifest: hand-made layouts have such entries.
///
/// # Errors
/// When nothing fits: the error lists the platforms there are.
pub fn choose<'i>(index: &'i Index, wanted: &Platform) -> Result<&'i Descriptor, Error> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for entry in &index.manifests {
        if !media_type::is_manifest(&entry.media_type) && !media_type::is_index(&entry.media_type) {
            continue;
        }
        let rank = match &entry.platform {
            Some(platform) => platform.matches(wanted),
            None => Some(0),
        };
        if let Some(rank) = rank
            && best.is_none_or(|(best_rank, _)| rank > best_rank)
        {
            best = Some((rank, entry));
        }
    }
    best.map(|(_, entry)| entry)
        .ok_or_else(|| Error::NoPlatform {
            wanted: wanted.to_string(),
            available: available(index),
        })
}

fn available(index: &Index) -> String {
    let names: Vec<String> = index
        .manifests
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // Attestations of BuildKit carry this placeholder.
        .filter(|platform| platform.os != "unknown")
        .take(40)
        .map(Platform::to_string)
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn index(platforms: &[&str]) -> Index {
        let entries = platforms.iter().map(|text| {
            let digest = Digest::sha256_of(text.as_bytes());
            let mut entry = Descriptor::new(media_type::MANIFEST, digest, 1);
            let parts: Vec<&str> = text.split('/').collect();
            entry.platform = Some(Platform {
                os: parts[0].to_owned(),
                architecture: parts[1].to_owned(),
                variant: parts.get(2).map(|&text| text.to_owned()),
                ..Platform::default()
            });
            entry
        });
        Index {
            manifests: entries.collect(),
            ..Index::default()
        }
    }

    #[test]
    fn the_best_entry_is_chosen() {
        let many = index(&[
            "unknown/unknown",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/amd64/v3",
            "linux/amd64",
            "linux/arm64/v8",
            "windows/amd64",
        ]);
        let cases = [
            ("linux/amd64", 4),
            ("amd64", 4),
            ("linux/x86_64", 4),
            ("linux/amd64/v3", 3),
            ("linux/amd64/v2", 4),
            ("linux/arm64", 5),
            ("linux/aarch64", 5),
            ("linux/arm64/v8", 5),
            ("linux/arm64/v9", 5),
            ("linux/arm/v6", 1),
            ("linux/arm", 2),
            ("linux/armhf", 2),
            ("linux/arm/v8", 2),
        ];
        for (wanted, position) in cases {
            let chosen = choose(&many, &wanted.parse().unwrap()).unwrap();
            assert_eq!(chosen, &many.manifests[position], "{wanted}");
        }
    }

    #[test]
    fn a_missing_platform_lists_what_there_is() {
        let index = index(&["linux/arm64/v8", "unknown/unknown"]);
        let error = choose(&index, &"linux/s390x".parse().unwrap());
        let message = error.unwrap_err().to_string();
        assert_eq!(
            message,
            "no image for platform linux/s390x; there is: linux/arm64/v8"
        );
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in [
            "",
            "/",
            "linux/",
            "linux/amd64/v1/x",
            "linux/am d64",
            "../x",
        ] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
