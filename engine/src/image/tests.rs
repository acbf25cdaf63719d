//! An image's life on one machine: made, found, named, removed.

use std::fs;

use bundle_tools::image::ImageConfig;
use bundle_tools::layer::diff;

use super::*;

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let store = Store::open(path.join("root"), path.join("run")).unwrap();
        Fixture { directory, store }
    }

    /// An image with one more layer, which has one file of this name.
    fn add(&self, base: Option<&Image>, file: &str, name: Option<&str>) -> Image {
        let tree = self.directory.path().join(format!("tree-{file}"));
        fs::create_dir_all(&tree).unwrap();
        fs::write(tree.join(file), file).unwrap();
        let layer: Box<LayerSource<'_>> = Box::new(move |out| {
            diff::write_tree(&tree, out, &diff::Options::default())?;
            Ok(())
        });
        let config = base.map_or_else(ImageConfig::default, |base| base.config.clone());
        let name: Option<Reference> = name.map(|name| name.parse().unwrap());
        add_layer_image(&self.store, base, layer, config, name.as_ref()).unwrap()
    }

    fn found(&self, text: &str) -> Option<String> {
        let image = find(&self.store, text).unwrap()?;
        Some(image.id.short().to_owned())
    }

    fn remove(&self, text: &str, force: bool, users: &[&str]) -> Result<Vec<Removal>> {
        let in_use = |_: &Digest| users.iter().map(|user| (*user).to_owned()).collect();
        remove(&self.store, text, force, &in_use)
    }

    fn files(&self, directory: &str) -> usize {
        fs::read_dir(self.store.root().join(directory))
            .unwrap()
            .count()
    }
}

#[test]
fn images_are_found_by_name_and_by_id() {
    let fixture = Fixture::new();
    let one = fixture.add(None, "one", Some("one:1"));
    let two = fixture.add(Some(&one), "two", None);
    let id = |image: &Image| Some(image.id.short().to_owned());
    assert_eq!(fixture.found("one:1"), id(&one));
    assert_eq!(fixture.found("docker.io/library/one:1"), id(&one));
    assert_eq!(fixture.found("one"), None);
    assert_eq!(
        fixture.found(&format!("one@{}", one.manifest.digest)),
        id(&one)
    );
    assert_eq!(
        fixture.found(&format!("other@{}", one.manifest.digest)),
        None
    );
    assert_eq!(fixture.found(two.id.as_str()), id(&two));
    assert_eq!(fixture.found(two.id.short()), id(&two));
    assert_eq!(fixture.found(&two.id.hex()[..2]), None);
    assert_eq!(fixture.found("../etc"), None);

    // A name goes before an id.
    let prefix = &two.id.hex()[..4];
    tag(&fixture.store, "one:1", &prefix.parse().unwrap()).unwrap();
    assert_eq!(fixture.found(prefix), id(&one));
    assert_eq!(list(&fixture.store).unwrap().len(), 2);

    let lower = lower_directories(&fixture.store, &two).unwrap();
    assert!(lower[0].join("two").exists() && lower[1].join("one").exists());
    assert_eq!(two.config.rootfs.diff_ids.len(), 2);
}

#[test]
fn a_lost_layer_is_unpacked_again() {
    let fixture = Fixture::new();
    let image = fixture.add(None, "one", Some("one"));
    let directory = layers::directory(&fixture.store, &image.layers[0]);
    fs::remove_dir_all(&directory).unwrap();
    let lower = lower_directories(&fixture.store, &image).unwrap();
    assert_eq!(fs::read_to_string(lower[0].join("one")).unwrap(), "one");
    assert!(!directory.join("fresh").exists());
}

#[test]
fn what_nothing_needs_goes_with_the_last_name() {
    let fixture = Fixture::new();
    let one = fixture.add(None, "one", Some("one"));
    fixture.add(Some(&one), "two", Some("two"));
    tag(&fixture.store, "two", &"three".parse().unwrap()).unwrap();
    assert_eq!(
        (fixture.files("layers"), fixture.files("blobs/sha256")),
        (2, 6)
    );

    let removed = fixture.remove("two", false, &["c1"]).unwrap();
    assert_eq!(removed, [Removal::Untagged("two:latest".into())]);
    let removed = fixture.remove("three", false, &[]).unwrap();
    assert_eq!(removed.len(), 3, "{removed:?}");
    assert_eq!(
        (fixture.files("layers"), fixture.files("blobs/sha256")),
        (1, 3)
    );
    assert!(matches!(
        fixture.remove("three", false, &[]),
        Err(Error::NotFound(_))
    ));

    fixture.remove(one.id.short(), false, &[]).unwrap();
    assert_eq!(
        (fixture.files("layers"), fixture.files("blobs/sha256")),
        (0, 0)
    );
}

#[test]
fn an_image_in_use_stays() {
    let fixture = Fixture::new();
    let image = fixture.add(None, "one", Some("one"));
    assert!(matches!(
        fixture.remove("one", false, &["c1"]),
        Err(Error::Conflict { .. })
    ));
    assert_eq!(
        fixture.remove("one", true, &["c1"]).unwrap(),
        [Removal::Untagged("one:latest".into())]
    );
    assert_eq!(fixture.found("one"), None);
    assert!(fixture.found(image.id.as_str()).is_some());
    assert_eq!(collect(&fixture.store).unwrap().layers.len(), 0);
    assert!(fixture.remove(image.id.short(), false, &["c1"]).is_err());
    fixture.remove(image.id.short(), false, &[]).unwrap();
    assert_eq!(fixture.files("layers"), 0);
}

#[test]
fn an_id_of_several_repositories_takes_force() {
    let fixture = Fixture::new();
    let image = fixture.add(None, "one", Some("one"));
    tag(&fixture.store, "one", &"two".parse().unwrap()).unwrap();
    assert!(matches!(
        fixture.remove(image.id.short(), false, &[]),
        Err(Error::Conflict { .. })
    ));
    fixture.remove(image.id.short(), true, &[]).unwrap();
    assert!(list(&fixture.store).unwrap().is_empty());
}

#[test]
fn a_layer_that_fails_half_way_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.add(None, "one", Some("one"));
    let before = (fixture.files("layers"), fixture.files("blobs/sha256"));
    let layer: Box<LayerSource<'_>> = Box::new(|out| {
        out.write_all(&[0; 4096])?;
        Err("the disk is on fire".into())
    });
    let result = add_layer_image(&fixture.store, None, layer, ImageConfig::default(), None);
    assert!(matches!(result, Err(Error::NewLayer(_))), "{result:?}");
    let layer: Box<LayerSource<'_>> = Box::new(|out| Ok(out.write_all(&[1; 4096])?));
    let result = add_layer_image(&fixture.store, None, layer, ImageConfig::default(), None);
    assert!(matches!(result, Err(Error::Unpack(_))), "{result:?}");
    assert_eq!(
        (fixture.files("layers"), fixture.files("blobs/sha256")),
        before
    );
    assert_eq!(fixture.files(".tmp"), 0);
}

#[test]
fn what_killed_commands_left_is_collected() {
    let fixture = Fixture::new();
    fixture.add(None, "one", Some("one"));
    let leftover = fixture.store.layers().join("tmp-0123");
    fs::create_dir_all(leftover.join("diff/etc")).unwrap();
    fs::write(fixture.store.root().join(".tmp/blob-1"), "x").unwrap();
    {
        let _writer = WriterGuard::take(&fixture.store).unwrap();
        collect(&fixture.store).unwrap();
        assert!(leftover.exists());
    }
    collect(&fixture.store).unwrap();
    assert_eq!((fixture.files("layers"), fixture.files(".tmp")), (1, 0));
}
