//! `-v`: `[SOURCE:]DESTINATION[:OPTIONS]`.

use anyhow::{Result, bail};
use qengine::container::create::{clean_path, new_volume_name};
use qengine::container::model::{Volume, VolumeSource};

/// Options that are understood; `z` and `Z` ask for labels that a machine without SELinux has not.
const KNOWN: [&str; 17] = [
    "ro",
    "rw",
    "z",
    "Z",
    "nocopy",
    "cached",
    "delegated",
    "consistent",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "bind",
    "rbind",
    "U",
];

pub(super) fn parse(text: &str) -> Result<Volume> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts.as_slice() {
        [destination] => (None, *destination, ""),
        [first, second] if first.starts_with('/') && !second.starts_with('/') => {
            (None, *first, *second)
        }
        [source, destination] => (Some(*source), *destination, ""),
        [source, destination, options] => (Some(*source), *destination, *options),
        _ => bail!("invalid volume {text:?}: expected [SOURCE:]DESTINATION[:OPTIONS]"),
    };
    let Some(destination) = clean_path(destination) else {
        bail!("invalid volume {text:?}: destination {destination:?} is not an absolute path");
    };
    if destination == "/" {
        bail!("invalid volume {text:?}: the destination can't be `/`");
    }
    let options: Vec<String> = options
        .split(',')
        .filter(|option| !option.is_empty())
        .map(str::to_owned)
        .collect();
    for option in &options {
        if !KNOWN.contains(&option.as_str()) {
            bail!("invalid volume {text:?}: unknown option {option:?}");
        }
    }
    Ok(Volume {
        source: match source {
            None => VolumeSource::Anonymous(new_volume_name()?),
            Some(source) => source_of(text, source)?,
        },
        destination,
        read_only: options.iter().any(|option| option == "ro"),
        options,
    })
}

fn source_of(text: &str, source: &str) -> Result<VolumeSource> {
    if source.starts_with('/') {
        return Ok(VolumeSource::Path(source.to_owned()));
    }
    if source.starts_with('.') || source.starts_with('~') {
        let path = std::path::absolute(source)?;
        return Ok(VolumeSource::Path(path.to_string_lossy().into_owned()));
    }
    let mut bytes = source.bytes();
    let starts_well = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !starts_well
        || !bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
    {
        bail!(
            "invalid volume {text:?}: {source:?} is neither an absolute path nor a volume name ([a-zA-Z0-9][a-zA-Z0-9_.-]*)"
        );
    }
    Ok(VolumeSource::Named(source.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        let volume = parse("/a:/b:ro").unwrap();
        assert_eq!(volume.source, VolumeSource::Path("/a".into()));
        assert_eq!(
            (volume.destination.as_str(), volume.read_only),
            ("/b", true)
        );
        assert_eq!(
            parse("data:/b").unwrap().source,
            VolumeSource::Named("data".into())
        );
        assert!(matches!(
            parse("/b").unwrap().source,
            VolumeSource::Anonymous(_)
        ));
        assert!(parse("/b:ro").unwrap().read_only);
        for bad in [
            "",
            "a:b",
            "/a:/b:nosuch",
            "/a:/",
            "/a:/b:ro:x",
            "a/b:/c",
            ":/b",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
