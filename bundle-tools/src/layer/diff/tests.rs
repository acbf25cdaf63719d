//! Archives made, and applied again.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::*;
use crate::layer::apply::{self, Whiteouts};

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn options() -> apply::Options {
    apply::Options {
        ownership: is_root(),
        ..apply::Options::default()
    }
}

fn whiteout(path: &Path) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

#[test]
fn a_tree_survives_the_round_trip() {
    let from = tempfile::tempdir().unwrap();
    let long = "d".repeat(90) + "/" + &"e".repeat(90) + "/" + &"f".repeat(150);
    let parent = from.path().join(&long);
    fs::create_dir_all(parent.parent().unwrap()).unwrap();
    fs::write(&parent, "long name").unwrap();
    fs::write(from.path().join("x".repeat(250)), "longer component").unwrap();
    fs::write(from.path().join("a"), vec![7; 1000]).unwrap();
    fs::hard_link(from.path().join("a"), from.path().join("b")).unwrap();
    symlink("t".repeat(300), from.path().join("link")).unwrap();
    mknodat(CWD, from.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    let value = b"line\n13 size=99\n\0binary";
    let has_xattrs = setxattr(
        from.path().join("a"),
        "user.test",
        value,
        XattrFlags::empty(),
    )
    .is_ok();

    let mut archive = Vec::new();
    let summary = write_tree(from.path(), &mut archive, &Options::default()).unwrap();
    assert_eq!(summary.skipped_sockets, 1);
    let mut again = Vec::new();
    write_tree(from.path(), &mut again, &Options::default()).unwrap();
    assert!(archive == again, "not reproducible");

    let to = tempfile::tempdir().unwrap();
    apply::apply(&archive[..], File::open(to.path()).unwrap(), &options()).unwrap();
    let mut copy = Vec::new();
    fs::remove_file(from.path().join("socket")).unwrap();
    let from_time = fs::metadata(from.path()).unwrap();
    write_tree(to.path(), &mut copy, &Options::default()).unwrap();
    let first = fs::symlink_metadata(to.path().join("a")).unwrap();
    let second = fs::symlink_metadata(to.path().join("b")).unwrap();
    assert_eq!(first.ino(), second.ino());
    assert_eq!(
        fs::read_to_string(to.path().join(&long)).unwrap(),
        "long name"
    );
    if has_xattrs {
        let mut buffer = [0; 64];
        let length =
            rustix::fs::getxattr(to.path().join("a"), "user.test", &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length], value);
    }
    let _ = from_time;
    // Removing the socket touched the root alone.
    assert!(archive[BLOCK_AFTER_ROOT..] == copy[BLOCK_AFTER_ROOT..]);
}

/// The root's own entry: extended header, its data, header.
const BLOCK_AFTER_ROOT: usize = 3 * 512;

#[test]
fn an_upper_directory_becomes_a_layer() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().unwrap();
    let path = |name: &str| upper.path().join(name);
    for directory in ["etc", "opaque", "run"] {
        fs::create_dir(path(directory)).unwrap();
    }
    fs::write(path("etc/new"), "x").unwrap();
    fs::write(path("etc/hosts"), "left out").unwrap();
    fs::write(path("run/secret"), "left out with its directory").unwrap();
    whiteout(&path("etc/gone"));
    let set = |name: &str, attribute: &str| {
        setxattr(path(name), attribute, b"y", XattrFlags::empty()).unwrap();
    };
    set("opaque", "trusted.overlay.opaque");
    set("etc/new", "trusted.overlay.origin");
    let options = Options {
        exclude: vec!["etc/hosts".into(), "/run".into()],
        ..Options::default()
    };
    let mut archive = Vec::new();
    write_upper(upper.path(), &mut archive, &options).unwrap();
    let expected = [
        "./",
        "etc/",
        "etc/.wh.gone",
        "etc/new",
        "opaque/",
        "opaque/.wh..wh..opq",
    ];
    assert_eq!(names(&archive), expected);
    assert!(!String::from_utf8_lossy(&archive).contains("overlay"));

    // Applied as an overlay layer, it is the upper directory again.
    let to = tempfile::tempdir().unwrap();
    let as_layer = apply::Options {
        whiteouts: Whiteouts::Overlay,
        ..apply::Options::default()
    };
    apply::apply(&archive[..], File::open(to.path()).unwrap(), &as_layer).unwrap();
    let mut copy = Vec::new();
    write_upper(to.path(), &mut copy, &options).unwrap();
    assert!(archive == copy);

    set("etc", "trusted.overlay.redirect");
    let error = write_upper(upper.path(), Vec::new(), &options).unwrap_err();
    assert!(error.to_string().contains("redirect_dir"), "{error}");
}

#[test]
fn an_unchanged_upper_directory_is_an_empty_layer() {
    let upper = tempfile::tempdir().unwrap();
    let mut archive = Vec::new();
    let summary = write_upper(upper.path(), &mut archive, &Options::default()).unwrap();
    assert_eq!(summary.entries, 0);
    assert_eq!(archive, [0; 1024]);
}

#[test]
fn changes_between_trees_lead_from_one_to_the_other() {
    let lower = tempfile::tempdir().unwrap();
    let make = |root: &Path, name: &str, content: &str| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for name in [
        "same",
        "a/b/same",
        "a/b/changed",
        "a/gone",
        "gone/x",
        "kind",
        "dir/x",
    ] {
        make(lower.path(), name, "1");
    }
    let mut archive = Vec::new();
    write_tree(lower.path(), &mut archive, &Options::default()).unwrap();
    let copy = || {
        let to = tempfile::tempdir().unwrap();
        apply::apply(&archive[..], File::open(to.path()).unwrap(), &options()).unwrap();
        to
    };
    let upper = copy();
    let mut nothing = Vec::new();
    let summary = write_changes(
        lower.path(),
        upper.path(),
        &mut nothing,
        &Options::default(),
    );
    assert_eq!(summary.unwrap().entries, 0);

    let times = fs::metadata(upper.path().join("a/b/changed"))
        .unwrap()
        .modified()
        .unwrap();
    // The same size and time: only the content tells.
    fs::write(upper.path().join("a/b/changed"), "2").unwrap();
    File::open(upper.path().join("a/b/changed"))
        .unwrap()
        .set_modified(times)
        .unwrap();
    fs::remove_file(upper.path().join("a/gone")).unwrap();
    fs::remove_dir_all(upper.path().join("gone")).unwrap();
    fs::remove_file(upper.path().join("kind")).unwrap();
    make(upper.path(), "kind/now", "directory");
    fs::remove_dir_all(upper.path().join("dir")).unwrap();
    make(upper.path(), "dir", "file");

    let mut changes = Vec::new();
    write_changes(
        lower.path(),
        upper.path(),
        &mut changes,
        &Options::default(),
    )
    .unwrap();
    let expected = [
        "./",
        "a/",
        "a/b/",
        "a/b/changed",
        "a/.wh.gone",
        "dir",
        ".wh.gone",
        "kind/",
        "kind/now",
    ];
    assert_eq!(names(&changes), expected);

    let result = copy();
    apply::apply(&changes[..], File::open(result.path()).unwrap(), &options()).unwrap();
    let mut nothing = Vec::new();
    let summary = write_changes(
        upper.path(),
        result.path(),
        &mut nothing,
        &Options::default(),
    );
    assert_eq!(summary.unwrap().entries, 0, "{:?}", names(&nothing));
}

#[test]
fn names_that_read_as_whiteouts_are_refused() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join(".wh.x"), "").unwrap();
    let error = write_tree(tree.path(), Vec::new(), &Options::default()).unwrap_err();
    assert!(matches!(error, Error::Whiteout(_)));
}

#[test]
fn times_are_clamped() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("x"), "").unwrap();
    let options = Options {
        clamp_mtime: Some(1_000_000_000),
        ..Options::default()
    };
    let mut archive = Vec::new();
    write_tree(tree.path(), &mut archive, &options).unwrap();
    let mut archive = tar::Archive::new(&archive[..]);
    for entry in archive.entries().unwrap() {
        assert_eq!(entry.unwrap().header().mtime().unwrap(), 1_000_000_000);
    }
}
