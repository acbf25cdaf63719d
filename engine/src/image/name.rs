//! Names in `index.json`: given, moved, taken away.

use bundle_tools::Digest;
use bundle_tools::image::{Descriptor, Index, REF_NAME};

use super::{Reference, Result, SOURCE_DIGEST, guard, layout, require};
use crate::store::{Event, Kind, Store};

/// Gives the image that `source` finds another name.
///
/// # Errors
/// When there is no such image, `target` carries a digest, or the index can't be written.
pub fn tag(store: &Store, source: &str, target: &Reference) -> Result<()> {
    // Between finding the image and naming it, nobody may remove it.
    let _guard = guard(store)?;
    let image = require(store, source)?;
    layout(store)?.update_index(|index| -> Result<()> {
        let mut manifest = image.manifest.clone();
        // Only the registry it came from, or went to, knows it by a digest.
        manifest.annotations.remove(SOURCE_DIGEST);
        let of_target = |(name, _): &(&String, &Digest)| {
            name.parse::<Reference>()
                .is_ok_and(|name| name.name() == target.name())
        };
        if let Some((_, digest)) = image.digests.iter().find(of_target) {
            let annotations = &mut manifest.annotations;
            annotations.insert(SOURCE_DIGEST.to_owned(), digest.to_string());
        }
        set(index, manifest, Some(target));
        Ok(())
    })?;
    let event = Event::new(Kind::Image, "tag", image.id.to_string());
    store.emit(&event.with("name", target.to_string()));
    Ok(())
}

/// Puts `manifest` into the index under `name`; an image that had the name keeps its place without one.
pub(super) fn set(index: &mut Index, mut manifest: Descriptor, name: Option<&Reference>) {
    if let Some(name) = name {
        take_away(index, &name.to_string());
        manifest
            .annotations
            .insert(REF_NAME.to_owned(), name.to_string());
    } else {
        manifest.annotations.remove(REF_NAME);
        if index
            .manifests
            .iter()
            .any(|entry| entry.digest == manifest.digest)
        {
            return;
        }
    }
    // The image is not untagged any more.
    index
        .manifests
        .retain(|entry| entry.digest != manifest.digest || entry.ref_name().is_some());
    index.manifests.push(manifest);
}

/// Takes a name away; the image stays, without a name if this was its last. Says whether there was such a name.
pub(super) fn take_away(index: &mut Index, name: &str) -> bool {
    let Some(position) = index
        .manifests
        .iter()
        .position(|entry| entry.ref_name() == Some(name))
    else {
        return false;
    };
    let mut entry = index.manifests.remove(position);
    entry.annotations.remove(REF_NAME);
    entry.annotations.remove(SOURCE_DIGEST);
    if !index
        .manifests
        .iter()
        .any(|other| other.digest == entry.digest)
    {
        index.manifests.push(entry);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(index: &Index) -> Vec<(Option<&str>, &str)> {
        let short = |entry: &Descriptor| {
            if entry.digest == digest(1) {
                "one"
            } else {
                "two"
            }
        };
        index
            .manifests
            .iter()
            .map(|entry| (entry.ref_name(), short(entry)))
            .collect()
    }

    fn digest(seed: u8) -> Digest {
        Digest::sha256_of(&[seed])
    }

    #[test]
    fn a_moved_name_leaves_an_untagged_image() {
        let descriptor = |seed| Descriptor::new("m", digest(seed), 1);
        let name: Reference = "a:1".parse().unwrap();
        let full = "docker.io/library/a:1";
        let mut index = Index::default();
        set(&mut index, descriptor(1), Some(&name));
        set(&mut index, descriptor(1), Some(&name));
        assert_eq!(names(&index), [(Some(full), "one")]);
        set(&mut index, descriptor(2), Some(&name));
        assert_eq!(names(&index), [(None, "one"), (Some(full), "two")]);
        set(&mut index, descriptor(1), Some(&name));
        assert_eq!(names(&index), [(None, "two"), (Some(full), "one")]);
        set(&mut index, descriptor(2), None);
        assert_eq!(names(&index), [(None, "two"), (Some(full), "one")]);
        assert!(take_away(&mut index, full));
        assert!(!take_away(&mut index, full));
        assert_eq!(names(&index), [(None, "two"), (None, "one")]);
    }
}
