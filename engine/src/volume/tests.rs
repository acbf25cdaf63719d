use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
    (directory, store)
}

fn named(name: &str) -> CreateOptions {
    CreateOptions {
        name: name.to_owned(),
        ..CreateOptions::default()
    }
}

fn nobody(_: &str) -> Vec<String> {
    Vec::new()
}

#[test]
fn names_lead_nowhere_else() {
    for good in ["a", "data", "a.b-c_1", "0"] {
        assert!(check_name(good).is_ok(), "{good}");
    }
    let long = "a".repeat(256);
    for bad in [
        "", ".", "..", "../x", "a/b", "-a", ".new-x", "a b", "ä", &long,
    ] {
        assert!(check_name(bad).is_err(), "{bad}");
        let (_directory, store) = store();
        assert!(create(&store, &named(bad)).is_err(), "{bad}");
        assert!(matches!(find(&store, bad), Err(Error::NotFound(_))));
        assert!(remove(&store, bad, &nobody).is_err());
    }
}

#[test]
fn made_once_listed_removed() {
    let (_directory, store) = store();
    assert!(make(&store, &named("data")).unwrap().1);
    fs::write(data(&store, "data").join("file"), "kept").unwrap();
    assert!(!make(&store, &named("data")).unwrap().1);
    assert_eq!(list(&store).unwrap().len(), 1);
    let used = |_: &str| vec!["abc".to_owned()];
    let refused = remove(&store, "data", &used).unwrap_err();
    assert_eq!(refused.to_string(), "remove data: volume is in use - [abc]");
    remove(&store, "data", &nobody).unwrap();
    assert!(list(&store).unwrap().is_empty());
    assert!(!data(&store, "data").exists());
}

#[test]
fn a_held_volume_is_not_removed() {
    let (_directory, store) = store();
    let held = hold(&store, &named("data")).unwrap();
    let seen = std::thread::scope(|scope| {
        let remover = scope.spawn(|| remove(&store, "data", &nobody));
        std::thread::sleep(std::time::Duration::from_millis(100));
        let seen = data(&store, "data").exists();
        drop(held);
        remover.join().unwrap().unwrap();
        seen
    });
    assert!(seen);
    assert!(!data(&store, "data").exists());
}

#[test]
fn what_killed_makers_leave_is_taken_away() {
    let (_directory, store) = store();
    let unborn = store.volumes().join(".new-1-data");
    fs::create_dir_all(unborn.join(DATA)).unwrap();
    assert!(list(&store).unwrap().is_empty());
    assert!(!unborn.exists());
    // A directory with neither a record nor data.
    fs::create_dir(home(&store, "data")).unwrap();
    fs::write(home(&store, "data").join(LOCK), "").unwrap();
    create(&store, &named("data")).unwrap();
}

#[test]
fn filling_goes_on_where_it_was_killed_and_overwrites_nothing() {
    let (directory, store) = store();
    let image = directory.path().join("image");
    fs::create_dir_all(image.join("srv/sub")).unwrap();
    fs::write(image.join("srv/a"), "image's").unwrap();
    fs::write(image.join("srv/sub/b"), "image's").unwrap();
    std::os::unix::fs::symlink("/etc", image.join("leak")).unwrap();
    let content = |destination| {
        Some(Content {
            root: &image,
            destination,
        })
    };
    create(&store, &named("data")).unwrap();
    let path = prepare(&store, "data", content("/srv")).unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "image's");

    // Full: nothing is put over it.
    fs::write(path.join("a"), "user's").unwrap();
    prepare(&store, "data", content("/srv")).unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "user's");

    // Killed in the middle of the move, and written to since.
    let ready = home(&store, "data").join("_ready");
    fs::create_dir(&ready).unwrap();
    fs::write(ready.join("a"), "late").unwrap();
    fs::write(ready.join("c"), "late").unwrap();
    prepare(&store, "data", content("/srv")).unwrap();
    assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "user's");
    assert_eq!(fs::read_to_string(path.join("c")).unwrap(), "late");
    assert!(!ready.exists());

    // A link of the image leads nowhere but inside it.
    create(&store, &named("other")).unwrap();
    let path = prepare(&store, "other", content("/leak")).unwrap();
    assert!(is_empty_directory(&path));
}

fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).unwrap().next().is_none()
}

#[test]
fn options_are_checked_when_the_volume_is_made() {
    let (_directory, store) = store();
    for (options, good) in [
        (
            vec![("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m")],
            true,
        ),
        (
            vec![("type", "none"), ("device", "/srv"), ("o", "bind")],
            true,
        ),
        (vec![("device", "/srv"), ("o", "bind,ro")], true),
        (
            vec![("type", "nfs"), ("device", ":/x"), ("o", "addr=::1")],
            true,
        ),
        (vec![("type", "tmpfs")], false),
        (vec![("o", "size=1m")], false),
        (vec![("size", "1m")], false),
        (vec![("colour", "red")], false),
    ] {
        let pairs = options.iter();
        let pairs = pairs.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let request = CreateOptions {
            options: pairs.collect(),
            ..named("data")
        };
        assert_eq!(create(&store, &request).is_ok(), good, "{options:?}");
        drop(remove(&store, "data", &nobody));
    }
    let other = CreateOptions {
        driver: Some("cloud".to_owned()),
        ..named("data")
    };
    assert!(matches!(
        create(&store, &other),
        Err(Error::NoDriver { .. })
    ));
}
