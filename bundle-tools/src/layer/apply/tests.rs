//! Hostile and odd archives, one by one. Each is applied beside a directory that must stay as it was.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::layer::archive::pax;

/// Builds archives entry by entry, without any check.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn raw(mut self, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        old.linkflag[0] = kind;
        header.set_mode(mode);
        header.set_uid(u64::from(rustix::process::geteuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getegid().as_raw()));
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: &str) -> Tar {
        self.raw(b'0', name, "", 0o644, data.as_bytes())
    }

    fn directory(self, name: &str) -> Tar {
        self.raw(b'5', name, "", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Tar {
        self.raw(b'2', name, target, 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Tar {
        self.raw(b'1', name, target, 0o777, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut builder = pax::Builder::default();
        for (key, value) in records {
            builder.push(key.as_bytes(), value);
        }
        self.raw(b'x', "PaxHeader", "", 0o644, &builder.into_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A root to unpack into, in a directory with something to protect.
struct Arena {
    directory: tempfile::TempDir,
    before: Vec<String>,
}

impl Arena {
    fn new() -> Arena {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::write(outside.join("file"), "secret").unwrap();
        fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        let before = listing(&outside);
        Arena { directory, before }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn outside(&self) -> String {
        self.directory
            .path()
            .join("outside")
            .to_string_lossy()
            .into_owned()
    }

    fn apply(&self, tar: Tar) -> Result<Summary, Error> {
        self.apply_with(&tar.end(), &options(Whiteouts::Apply))
    }

    /// Applies, and checks that nothing outside the root changed.
    fn apply_with(&self, tar: &[u8], options: &Options) -> Result<Summary, Error> {
        let result = apply(tar, File::open(self.root()).unwrap(), options);
        assert_eq!(listing(Path::new(&self.outside())), self.before);
        let entries = fs::read_dir(self.directory.path()).unwrap().count();
        assert_eq!(entries, 2, "something new beside the root");
        result
    }

    fn listing(&self) -> Vec<String> {
        listing(&self.root())
    }
}

fn options(whiteouts: Whiteouts) -> Options {
    Options {
        whiteouts,
        ownership: rustix::process::geteuid().is_root(),
        ..Options::default()
    }
}

/// Every path below a directory, with mode and content or target.
fn listing(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let what = if kind.is_dir() {
                left.push(path.clone());
                "/".to_owned()
            } else if kind.is_symlink() {
                format!("->{}", fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!("={}", fs::read_to_string(&path).unwrap())
            } else {
                "*".to_owned()
            };
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.push(format!("{name}{what} {:o}", metadata.mode() & 0o7777));
        }
    }
    found.sort();
    found
}

fn refused(result: Result<Summary, Error>) -> bool {
    matches!(result, Err(Error::Refused { .. }))
}

#[test]
fn names_that_leave_the_tree_are_refused() {
    for name in [
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "a/../b",
        "/../x",
        "./../outside/file",
    ] {
        let arena = Arena::new();
        assert!(
            refused(arena.apply(Tar::default().file(name, "x"))),
            "{name}"
        );
        assert!(arena.listing().is_empty(), "{name}");
    }
}

#[test]
fn absolute_and_odd_names_stay_in_the_tree() {
    let arena = Arena::new();
    let tar = Tar::default()
        .file("/etc/passwd", "1")
        .file("./a//b/./c", "2")
        .file("////d", "3")
        .directory("e/")
        .raw(b'0', "f/", "", 0o755, b"");
    arena.apply(tar).unwrap();
    let expected = [
        "a/ 755",
        "a/b/ 755",
        "a/b/c=2 644",
        "d=3 644",
        "e/ 755",
        "etc/ 755",
        "etc/passwd=1 644",
        "f/ 755",
    ];
    assert_eq!(arena.listing(), expected);
    assert!(refused(Arena::new().apply(Tar::default().file("", "x"))));
}

#[test]
fn the_root_can_not_be_replaced() {
    // CVE-2021-29136
    for name in [".", "./", "/", "//", "./."] {
        let arena = Arena::new();
        let tar = Tar::default()
            .symlink(name, &arena.outside())
            .file("file", "x");
        assert!(refused(arena.apply(tar)), "{name}");
        assert!(arena.root().is_dir());
    }
    let arena = Arena::new();
    arena
        .apply(Tar::default().raw(b'5', "./", "", 0o711, b""))
        .unwrap();
    assert_eq!(fs::metadata(arena.root()).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(fs::metadata(arena.root()).unwrap().mtime(), 1_700_000_000);
}

#[test]
fn links_are_stored_and_lead_nowhere_outside() {
    // CVE-2014-9356 and its like: write through a link that the archive made itself.
    let outside = Arena::new().outside();
    for target in [
        outside.as_str(),
        "../outside",
        "..",
        "/",
        "/proc/self/root",
        "a/../../outside",
    ] {
        let arena = Arena::new();
        let target = target.replace(&outside, &arena.outside());
        let tar = Tar::default()
            .symlink("link", &target)
            .file("link/file", "overwritten")
            .file("link/sub/new", "x")
            .raw(b'5', "link/sub", "", 0o777, b"");
        // Whether it fails or lands within the tree: the arena checks the outside.
        let _ = arena.apply(tar);
        let kept = fs::read_link(arena.root().join("link")).unwrap();
        assert_eq!(kept, Path::new(&target));
    }
}

#[test]
fn chains_of_links_are_resolved_by_the_kernels_rules() {
    // CVE-2026-85731: each link is harmless by its text, the chain is not.
    let arena = Arena::new();
    let tar = Tar::default()
        .directory("a/b/c")
        .symlink("a/b/c/up", "../../..")
        .symlink("one", "a/b/c/up")
        .symlink("two", "one/..")
        .symlink("three", "two/../outside")
        .file("three/file", "overwritten");
    let _ = arena.apply(tar);
}

#[test]
fn a_link_inside_the_tree_is_followed_for_parents() {
    let arena = Arena::new();
    let tar = Tar::default()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .file("lib/one", "1")
        .file("abs/two", "2");
    arena.apply(tar).unwrap();
    let listing = arena.listing();
    assert!(
        listing.contains(&"usr/lib/one=1 644".to_owned()),
        "{listing:?}"
    );
    assert!(
        listing.contains(&"usr/lib/two=2 644".to_owned()),
        "{listing:?}"
    );
}

#[test]
fn hard_links_reach_nothing_outside() {
    // CVE-2021-32760: a link to a link, whose mode is then "restored".
    let arena = Arena::new();
    let file = arena.outside() + "/file";
    let tar = Tar::default()
        .symlink("link", &file)
        .hard_link("hard", "link");
    arena.apply(tar).unwrap();
    let hard = fs::symlink_metadata(arena.root().join("hard")).unwrap();
    assert!(hard.file_type().is_symlink());

    for target in [
        file.as_str(),
        "../outside/file",
        "dir/file",
        "/",
        "",
        "nowhere",
        "up/file",
    ] {
        let arena = Arena::new();
        let tar = Tar::default()
            .symlink("dir", &arena.outside())
            .symlink("up", "../outside")
            .hard_link("hard", target);
        assert!(arena.apply(tar).is_err(), "{target}");
    }
}

#[test]
fn modes_are_never_set_through_links() {
    // CVE-2026-33056: the same name as link and as directory.
    let arena = Arena::new();
    let outside = arena.outside();
    let tar = Tar::default()
        .symlink("sub", &(outside.clone() + "/sub"))
        .raw(b'5', "sub/.", "", 0o777, b"")
        .symlink("file", &(outside + "/file"))
        .raw(b'0', "file", "", 0o4777, b"new");
    arena.apply(tar).unwrap();
    assert_eq!(arena.listing(), ["file=new 4777", "sub/ 777"]);
}

#[test]
fn a_record_hidden_in_a_value_moves_nothing() {
    // CVE-2025-62518 and its like: readers that disagree about where an entry ends.
    let arena = Arena::new();
    let smuggled = Tar::default().file("smuggled", "x").0;
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.a", b"x\n12 size=512\n"),
            ("size", b"1024"),
        ])
        .raw(b'0', "outer", "", 0o644, &smuggled)
        .file("after", "y");
    arena.apply(tar).unwrap();
    let names: Vec<String> = fs::read_dir(arena.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        !names.contains(&"smuggled".to_owned()) && names.contains(&"after".to_owned()),
        "{names:?}"
    );

    // A size record counts for the entry, not for the long name between them.
    let arena = Arena::new();
    let long = "n".repeat(150);
    let mut bytes = long.clone().into_bytes();
    bytes.push(0);
    let tar = Tar::default()
        .pax(&[("size", b"3")])
        .raw(b'L', "././@LongLink", "", 0o644, &bytes)
        .raw(b'0', "short", "", 0o644, b"abc");
    arena.apply(tar).unwrap();
    assert_eq!(arena.listing(), [format!("{long}=abc 644")]);
}

#[test]
fn malformed_archives_end_in_an_error() {
    let good = Tar::default().file("a", &"x".repeat(2000)).end();
    let arena = Arena::new();
    for length in [1, 511, 513, 1000, 2511, 2559] {
        let result = arena.apply_with(&good[..length], &options(Whiteouts::Apply));
        assert!(matches!(result, Err(Error::Archive(_))), "{length}");
    }
    let mut checksum = good.clone();
    checksum[0] ^= 1;
    let lone_block = [&[0; 512][..], &good].concat();
    let cases = [
        checksum,
        lone_block,
        b"not an archive at all".repeat(100),
        Tar::default().pax(&[("path", b"x")]).end(),
        Tar::default()
            .pax(&[("path", b"x")])
            .pax(&[("path", b"y")])
            .file("z", "")
            .end(),
        Tar::default()
            .raw(b'L', "l", "", 0, &vec![b'x'; (1 << 20) + 1])
            .file("z", "")
            .end(),
        Tar::default()
            .raw(b'g', "g", "", 0, b"11 size=10\n")
            .file("z", "")
            .end(),
        Tar::default().raw(b'Z', "unknown", "", 0, b"").end(),
        Tar::default().raw(b'0', "dir/", "", 0, b"content").end(),
        Tar::default()
            .pax(&[("uid", b"4294967295")])
            .file("z", "")
            .end(),
        Tar::default().pax(&[("path", b"a\0b")]).file("z", "").end(),
    ];
    for (number, case) in cases.iter().enumerate() {
        assert!(
            arena.apply_with(case, &options(Whiteouts::Apply)).is_err(),
            "{number}"
        );
    }
}

#[test]
fn ends_without_a_marker_and_trailing_bytes_are_read() {
    let arena = Arena::new();
    let good = Tar::default().file("a", "x").0;
    arena.apply_with(&good, &options(Whiteouts::Apply)).unwrap();
    let mut reader = &[&good[..], &[0; 1024], &[7; 100_000]].concat()[..];
    apply(
        &mut reader,
        File::open(arena.root()).unwrap(),
        &options(Whiteouts::Apply),
    )
    .unwrap();
    assert!(reader.is_empty(), "the digest would be wrong");
}

#[test]
fn limits_hold() {
    let arena = Arena::new();
    let mut limited = options(Whiteouts::Apply);
    limited.max_bytes = Some(10);
    let result = arena.apply_with(&Tar::default().file("a", "12345678901").end(), &limited);
    assert!(matches!(
        result,
        Err(Error::Limit {
            what: "bytes",
            limit: 10
        })
    ));
    // A hole takes no room here, but does in whatever is made of the tree.
    let huge = [
        ("GNU.sparse.size", &b"1099511627776"[..]),
        ("GNU.sparse.map", b"0,0"),
    ];
    let result = arena.apply_with(&Tar::default().pax(&huge).file("s", "").end(), &limited);
    assert!(matches!(result, Err(Error::Limit { .. })));
    let trailing = [Tar::default().file("b", "1").end(), vec![1; 4096]].concat();
    assert!(arena.apply_with(&trailing, &limited).is_err());

    limited.max_bytes = None;
    limited.max_entries = Some(2);
    let tar = Tar::default()
        .file("a", "")
        .file("b", "")
        .file("c", "")
        .end();
    let result = arena.apply_with(&tar, &limited);
    assert!(matches!(
        result,
        Err(Error::Limit {
            what: "entries",
            ..
        })
    ));
}

#[test]
fn entries_replace_what_is_of_another_kind() {
    let arena = Arena::new();
    let tar = Tar::default()
        .file("a", "file")
        .directory("a")
        .file("a/in", "1")
        .symlink("a", "b")
        .file("b/in", "2")
        .directory("a")
        .file("a/in", "3")
        .directory("c")
        .file("c/d/e", "4")
        .file("c", "5")
        .hard_link("b", "c")
        .hard_link("b", "c")
        .hard_link("c", "c");
    arena.apply(tar).unwrap();
    assert_eq!(
        arena.listing(),
        ["a/ 755", "a/in=3 644", "b=5 644", "c=5 644"]
    );
}

#[test]
fn a_file_in_the_way_of_a_parent_is_an_error() {
    let arena = Arena::new();
    let tar = Tar::default().file("a", "x").file("a/b", "y");
    assert!(refused(arena.apply(tar)));
    let tar = Tar::default()
        .symlink("dangling", "/nowhere")
        .file("dangling/b", "y");
    assert!(refused(arena.apply(tar)));
}

#[test]
fn existing_files_are_replaced_not_written_to() {
    let arena = Arena::new();
    fs::write(arena.root().join("a"), "old").unwrap();
    fs::hard_link(arena.root().join("a"), arena.root().join("other")).unwrap();
    arena.apply(Tar::default().file("a", "new")).unwrap();
    assert_eq!(arena.listing(), ["a=new 644", "other=old 644"]);
}

#[test]
fn times_survive_later_entries() {
    let arena = Arena::new();
    fs::create_dir(arena.root().join("lower")).unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    File::open(arena.root().join("lower"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    let tar = Tar::default()
        .directory("dir")
        .pax(&[("mtime", b"1234567890.123456789")])
        .file("dir/file", "x")
        .symlink("dir/link", "file")
        .file("lower/new", "y");
    arena.apply(tar).unwrap();
    let time = |name: &str| {
        let metadata = fs::symlink_metadata(arena.root().join(name)).unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    assert_eq!(time("dir"), (1_700_000_000, 0));
    assert_eq!(time("dir/file"), (1_234_567_890, 123_456_789));
    assert_eq!(time("dir/link"), (1_700_000_000, 0));
    // A directory of a lower layer that this layer does not mention.
    assert_eq!(time("lower"), (1000, 0));
}

#[test]
fn sparse_files_of_all_formats_unpack() {
    let expected = "A".repeat(512) + &"\0".repeat(7680) + "BBB" + &"\0".repeat(797);
    let data = ["A".repeat(512), "BBB".to_owned()].concat();
    let map = "0,512,8192,3";
    let text = "2\n0\n512\n8192\n3\n";
    let block = text.to_owned() + &"\0".repeat(512 - text.len());
    let version_1 = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"v10"),
        ("GNU.sparse.realsize", b"8992"),
    ];
    let version_00 = [
        ("GNU.sparse.size", &b"8992"[..]),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"512"),
        ("GNU.sparse.offset", b"8192"),
        ("GNU.sparse.numbytes", b"3"),
    ];
    let arena = Arena::new();
    let tar = Tar::default()
        .pax(&version_1)
        .file("GNUSparseFile.0/v10", &(block + &data))
        .pax(&[
            ("GNU.sparse.size", b"8992"),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("v01", &data)
        .pax(&version_00)
        .file("v00", &data)
        .file("after", "x");
    arena.apply(tar).unwrap();
    for name in ["v10", "v01", "v00"] {
        assert!(
            fs::read_to_string(arena.root().join(name)).unwrap() == expected,
            "{name}"
        );
    }
    assert!(arena.root().join("after").exists());

    for map in [
        "0,512,100,3",
        "0,512,8192,4",
        "0,512,8190",
        "8192,3,0,512",
        "0,515,9000,0",
    ] {
        let records = [
            ("GNU.sparse.size", &b"8992"[..]),
            ("GNU.sparse.map", map.as_bytes()),
        ];
        let tar = Tar::default().pax(&records).file("x", &data);
        assert!(arena.apply(tar).is_err(), "{map}");
    }
}

#[test]
fn whiteouts_remove_the_lower_and_keep_their_own() {
    let lower = || {
        let arena = Arena::new();
        for name in [
            "gone",
            "dir/a",
            "dir/sub/b",
            "opaque/x",
            "opaque/deep/y",
            "kept",
        ] {
            let path = arena.root().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "lower").unwrap();
        }
        symlink(arena.outside(), arena.root().join("link")).unwrap();
        arena
    };
    let own = |tar: Tar| tar.file("opaque/own", "1").file("opaque/deep/own", "2");
    let hide = |tar: Tar| {
        tar.file(".wh.gone", "")
            .file(".wh.dir", "")
            .file(".wh.link", "")
            .file(".wh.never", "")
            .file("opaque/.wh..wh..opq", "")
            .file(".wh.opaque", "")
            .file(".wh..wh.plnk", "")
            .file(".wh..wh.plnk/1.2", "")
    };
    // Wherever they stand, they concern the lower layers only.
    for tar in [hide(own(Tar::default())), own(hide(Tar::default()))] {
        let arena = lower();
        arena.apply(tar).unwrap();
        let expected = [
            "kept=lower 644",
            "opaque/ 755",
            "opaque/deep/ 755",
            "opaque/deep/own=2 644",
            "opaque/own=1 644",
        ];
        assert_eq!(arena.listing(), expected);
    }
    for name in [".wh.", ".wh..", ".wh...", "dir/.wh...", ".wh.dir/x"] {
        let arena = lower();
        assert!(
            refused(arena.apply(Tar::default().file(name, ""))),
            "{name}"
        );
        assert_eq!(
            arena.listing(),
            lower()
                .listing()
                .iter()
                .map(|line| { line.replace(&lower().outside(), &arena.outside()) })
                .map(|line| if line.starts_with("link->") {
                    format!("link->{} 777", arena.outside())
                } else {
                    line
                })
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn whiteouts_never_follow_links() {
    let arena = Arena::new();
    let tar = Tar::default()
        .symlink("link", &arena.outside())
        .file("link/.wh.file", "")
        .file("link/.wh..wh..opq", "");
    let _ = arena.apply(tar);
    let arena = Arena::new();
    symlink("../outside", arena.root().join("up")).unwrap();
    let _ = arena.apply(
        Tar::default()
            .file("up/.wh.file", "")
            .file("up/.wh..wh..opq", ""),
    );
}

#[test]
fn overlay_layers_get_devices_and_attributes() {
    let arena = Arena::new();
    let tar = Tar::default()
        .file("a/.wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.back", "")
        .directory("back")
        .file(".wh.file", "")
        .file("file", "new")
        .file("late/x", "")
        .file(".wh.late", "")
        .file(".wh.implied", "")
        .file("implied/x", "");
    let overlay = options(Whiteouts::OverlayUser);
    arena.apply_with(&tar.end(), &overlay).unwrap();
    let root = arena.root();
    let gone = fs::symlink_metadata(root.join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "new");
    for name in ["opaque", "back", "late", "implied"] {
        let mut value = [0; 4];
        let length = rustix::fs::getxattr(root.join(name), "user.overlay.opaque", &mut value[..]);
        assert_eq!(length, Ok(1), "{name}");
    }
}

#[test]
fn overlays_own_attributes_are_dropped() {
    let arena = Arena::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\n";
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.kept", b"1"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.security.selinux", b"x"),
            ("SCHILY.xattr.security.capability", &capability[..]),
        ])
        .file("a", "x");
    arena.apply(tar).unwrap();
    let mut names = [0; 256];
    let length = rustix::fs::listxattr(arena.root().join("a"), &mut names[..]).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    assert!(
        names.contains("user.kept") && !names.contains("overlay") && !names.contains("selinux"),
        "{names}"
    );
    if rustix::process::geteuid().is_root() {
        assert!(names.contains("security.capability"), "{names}");
    }
}

#[test]
fn without_root_modes_do_not_lock_us_out() {
    let arena = Arena::new();
    let mut rootless = options(Whiteouts::Apply);
    rootless.ownership = false;
    let tar = Tar::default()
        .raw(b'5', "locked", "", 0o555, b"")
        .raw(b'5', "locked/deeper", "", 0o000, b"")
        .file("locked/deeper/file", "x")
        .raw(b'3', "null", "", 0o666, b"")
        .raw(b'6', "fifo", "", 0o600, b"");
    let summary = arena.apply_with(&tar.end(), &rootless).unwrap();
    assert_eq!(summary.skipped_devices, 1);
    let mode = |name: &str| {
        fs::symlink_metadata(arena.root().join(name))
            .unwrap()
            .mode()
            & 0o7777
    };
    assert_eq!(mode("locked"), 0o555);
    fs::set_permissions(
        arena.root().join("locked/deeper"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    assert_eq!(mode("locked/deeper/file"), 0o644);
    assert!(
        fs::symlink_metadata(arena.root().join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn implied_directories_take_over_from_the_nearest_lower_layer() {
    let (near, far) = (Arena::new(), Arena::new());
    let overlay = options(Whiteouts::OverlayUser);
    let tar = Tar::default()
        .raw(b'5', "tmp", "", 0o1777, b"")
        .raw(b'5', "root", "", 0o700, b"")
        .directory("gone");
    far.apply_with(&tar.end(), &overlay).unwrap();
    let tar = Tar::default()
        .raw(b'5', "root", "", 0o750, b"")
        .file(".wh.gone", "");
    near.apply_with(&tar.end(), &overlay).unwrap();

    let arena = Arena::new();
    let tar = Tar::default()
        .file("tmp/deep/x", "")
        .file("root/x", "")
        .file("gone/x", "")
        .directory("own")
        .file("own/x", "");
    let summary = arena.apply_with(&tar.end(), &overlay).unwrap();
    let implied: Vec<&str> = summary
        .implied
        .iter()
        .filter_map(|path| path.to_str())
        .collect();
    assert_eq!(implied, ["tmp", "tmp/deep", "root", "gone"]);
    let root = File::open(arena.root()).unwrap();
    inherit(&root, &[near.root(), far.root()], &summary.implied).unwrap();
    let mode = |name: &str| fs::metadata(arena.root().join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("tmp"), 0o1777);
    assert_eq!(mode("root"), 0o750);
    assert_eq!(
        (mode("tmp/deep"), mode("gone"), mode("own")),
        (0o755, 0o755, 0o755)
    );
    assert_eq!(
        fs::metadata(arena.root().join("tmp")).unwrap().mtime(),
        1_700_000_000
    );
}
