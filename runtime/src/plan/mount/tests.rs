use super::*;
use crate::spec::linux::IdMapping;

fn around(has_user_namespace: bool) -> Surroundings<'static> {
    Surroundings {
        bundle: Path::new("/bundle"),
        root: Path::new("/bundle/rootfs"),
        label: "",
        has_user_namespace,
    }
}

fn spec(kind: &str, options: &[&str]) -> Mount {
    Mount {
        destination: "/d".into(),
        kind: kind.into(),
        source: "src".into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

fn parse(kind: &str, options: &[&str]) -> MountStep {
    step(&spec(kind, options), &around(false)).unwrap()
}

#[test]
fn options_are_found_by_their_order() {
    assert!(OPTIONS.is_sorted_by_key(|(name, _)| *name));
}

/// What each word makes of the flags, after one that says the opposite where there is one.
#[test]
fn words_and_flags() {
    let table: &[(&[&str], u64, u64)] = &[
        (&["ro"], libc::MS_RDONLY, 0),
        (&["ro", "rw"], 0, libc::MS_RDONLY),
        (&["suid", "nosuid"], MS_NOSUID, 0),
        (&["nosuid", "suid"], 0, MS_NOSUID),
        (&["dev", "nodev"], MS_NODEV, 0),
        (&["nodev", "dev"], 0, MS_NODEV),
        (&["exec", "noexec"], MS_NOEXEC, 0),
        (&["noexec", "exec"], 0, MS_NOEXEC),
        (&["symfollow", "nosymfollow"], MS_NOSYMFOLLOW, 0),
        (&["nosymfollow", "symfollow"], 0, MS_NOSYMFOLLOW),
        (&["diratime", "nodiratime"], libc::MS_NODIRATIME, 0),
        (&["nodiratime", "diratime"], 0, libc::MS_NODIRATIME),
        (&["atime", "noatime"], libc::MS_NOATIME, 0),
        (&["noatime", "atime"], 0, libc::MS_NOATIME),
        (&["relatime"], libc::MS_RELATIME, 0),
        (&["relatime", "norelatime"], 0, libc::MS_RELATIME),
        (&["strictatime"], libc::MS_STRICTATIME, 0),
        (&["strictatime", "nostrictatime"], 0, libc::MS_STRICTATIME),
        // Access times are no alternatives at this point: the kernel chooses.
        (
            &["noatime", "relatime"],
            libc::MS_NOATIME | libc::MS_RELATIME,
            0,
        ),
        (&["sync"], libc::MS_SYNCHRONOUS, 0),
        (&["sync", "async"], 0, libc::MS_SYNCHRONOUS),
        (&["dirsync"], libc::MS_DIRSYNC, 0),
        (&["mand"], libc::MS_MANDLOCK, 0),
        (&["mand", "nomand"], 0, libc::MS_MANDLOCK),
        (&["silent"], libc::MS_SILENT, 0),
        (&["silent", "loud"], 0, libc::MS_SILENT),
        (&["iversion"], libc::MS_I_VERSION, 0),
        (&["iversion", "noiversion"], 0, libc::MS_I_VERSION),
        (&["lazytime"], libc::MS_LAZYTIME, 0),
        (&["lazytime", "nolazytime"], 0, libc::MS_LAZYTIME),
        (&["remount"], libc::MS_REMOUNT, 0),
        (&["defaults"], 0, 0),
    ];
    for (words, flags, cleared) in table {
        let step = parse("tmpfs", words);
        assert_eq!((step.flags, step.cleared), (*flags, *cleared), "{words:?}");
        assert_eq!(step.data, "", "{words:?}");
    }
}

/// What each word with an `r` makes of the attributes of the tree: switched on, switched off.
#[test]
fn words_for_trees() {
    let atime = ATTR_ATIME_MASK;
    let table: &[(&[&str], u64, u64)] = &[
        (&["rro"], ATTR_RDONLY, 0),
        (&["rro", "rrw"], 0, ATTR_RDONLY),
        (&["rnosuid", "rnodev"], ATTR_NOSUID | ATTR_NODEV, 0),
        (&["rsuid", "rdev"], 0, ATTR_NOSUID | ATTR_NODEV),
        (&["rexec", "rnoexec"], ATTR_NOEXEC, 0),
        (&["rnodiratime"], ATTR_NODIRATIME, 0),
        (&["rdiratime"], 0, ATTR_NODIRATIME),
        (&["rnosymfollow"], ATTR_NOSYMFOLLOW, 0),
        (&["rsymfollow"], 0, ATTR_NOSYMFOLLOW),
        (&["rnoatime"], ATTR_NOATIME, atime),
        (&["rnoatime", "rstrictatime"], ATTR_STRICTATIME, atime),
        (&["rnoatime", "ratime"], 0, atime),
        (&["rrelatime"], 0, atime),
        (&["rnorelatime"], 0, atime),
        (&["rstrictatime", "rnostrictatime"], 0, atime),
    ];
    for (words, set, cleared) in table {
        let step = parse("bind", words);
        let tree = step.recursive_attr;
        assert_eq!(
            (tree.attr_set, tree.attr_clr),
            (*set, *cleared),
            "{words:?}"
        );
        assert_eq!((step.flags, step.cleared), (0, 0), "{words:?}");
    }
}

#[test]
fn words_of_propagation() {
    for (name, kind) in [
        ("private", libc::MS_PRIVATE),
        ("shared", libc::MS_SHARED),
        ("slave", libc::MS_SLAVE),
        ("unbindable", libc::MS_UNBINDABLE),
    ] {
        assert_eq!(parse("tmpfs", &[name]).propagation, [(kind, false)]);
        let recursive = format!("r{name}");
        assert_eq!(parse("tmpfs", &[&recursive]).propagation, [(kind, true)]);
    }
    // In the order given: a shared slave is made that way.
    assert_eq!(
        parse("bind", &["rslave", "shared"]).propagation,
        [(libc::MS_SLAVE, true), (libc::MS_SHARED, false)]
    );
}

#[test]
fn file_system_flags_and_data() {
    let step = parse(
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    );
    assert_eq!(step.kind, Kind::FileSystem("tmpfs".into()));
    assert_eq!(step.flags, MS_NOSUID | libc::MS_STRICTATIME);
    assert_eq!(step.data, "mode=755,size=65536k");
    assert_eq!(step.source, Path::new("src"));
    assert_eq!(parse("cgroup", &["ro"]).kind, Kind::Cgroup);
    assert_eq!(parse("ext4", &["acl"]).data, "acl");
}

#[test]
fn what_is_read_only_in_the_end() {
    assert!(parse("tmpfs", &["ro"]).is_read_only_later());
    assert!(!parse("sysfs", &["ro"]).is_read_only_later());
    assert!(!parse("bind", &["ro"]).is_read_only_later());
    let mut dev = parse("devtmpfs", &["ro"]);
    dev.destination = "/dev/".into();
    assert!(dev.is_read_only_later());
}

#[test]
fn bind_mounts() {
    let step = parse("bind", &["rbind", "ro", "rprivate", "nodev"]);
    assert_eq!(step.kind, Kind::Bind { recursive: true });
    assert_eq!(step.source, Path::new("/bundle/src"));
    assert_eq!(step.flags, libc::MS_RDONLY | MS_NODEV);
    assert_eq!(parse("", &["bind"]).kind, Kind::Bind { recursive: false });
    assert_eq!(
        parse("none", &["rbind"]).kind,
        Kind::Bind { recursive: true }
    );
    let error = super::step(&spec("bind", &["size=1"]), &around(false)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid mount /d: bind mounts cannot have any filesystem-specific options applied (size=1)"
    );
}

#[test]
fn destinations() {
    let root = Path::new("/bundle/rootfs");
    for (given, expected) in [
        ("/a", "/a"),
        ("a/b", "/a/b"),
        ("/bundle/rootfs/mnt", "/mnt"),
        ("/bundle/rootfsx", "/bundle/rootfsx"),
    ] {
        assert_eq!(inside(given, root), expected, "{given}");
    }
    assert_eq!(inside("/a", Path::new("/")), "/a");
}

#[test]
fn root_propagation_names() {
    assert_eq!(root_propagation("").unwrap(), None);
    assert_eq!(root_propagation("shared").unwrap(), Some(libc::MS_SHARED));
    assert_eq!(
        root_propagation("rprivate").unwrap(),
        Some(libc::MS_PRIVATE | libc::MS_REC)
    );
    assert!(root_propagation("ro").is_err());
}

#[test]
fn proc_is_not_replaced() {
    assert!(is_proc("/proc", "proc").is_ok());
    assert!(is_proc("/proc", "tmpfs").is_err());
    assert!(is_proc("/proc/meminfo", "bind").is_ok());
    assert!(is_proc("/proc/sys/crypto/fips_enabled", "bind").is_ok());
    assert!(is_proc("/x/../proc/./sys", "bind").is_err());
    assert!(is_proc("/proc/self/attr", "tmpfs").is_err());
    assert!(is_proc("/procession", "tmpfs").is_ok());
}

#[test]
fn id_mappings() {
    let own = |uids: bool, gids: bool, kind: &str, options: &[&str]| {
        let mapping = |wanted: bool| {
            let mapping = IdMapping {
                container_id: 1,
                host_id: 2,
                size: 3,
            };
            if wanted { vec![mapping] } else { Vec::new() }
        };
        Mount {
            uid_mappings: mapping(uids),
            gid_mappings: mapping(gids),
            ..spec(kind, options)
        }
    };
    let idmap = |mount: &Mount, user: bool| step(mount, &around(user)).map(|step| step.idmap);
    let lines = Mapping::Own {
        uids: "1 2 3\n".into(),
        gids: "1 2 3\n".into(),
    };
    for (options, recursive) in [
        (&["rbind"][..], false),
        (&["rbind", "idmap"], false),
        (&["rbind", "ridmap"], true),
    ] {
        for user in [false, true] {
            let expected = Some(Idmap {
                recursive,
                mapping: lines.clone(),
            });
            let given = idmap(&own(true, true, "", options), user).unwrap();
            assert_eq!(given, expected, "{options:?}");
        }
    }
    let implied = Some(Idmap {
        recursive: true,
        mapping: Mapping::Container,
    });
    assert_eq!(
        idmap(&spec("", &["bind", "ridmap"]), true).unwrap(),
        implied
    );
    assert_eq!(idmap(&spec("bind", &[]), true).unwrap(), None);
    for (mount, user, text) in [
        (
            spec("", &["bind", "idmap"]),
            false,
            "must have both uid and gid mappings specified",
        ),
        (
            own(true, false, "bind", &[]),
            true,
            "must have both uid and gid mappings specified",
        ),
        (
            own(true, true, "tmpfs", &[]),
            false,
            "are only supported for bind-mounts",
        ),
    ] {
        let error = idmap(&mount, user).unwrap_err().to_string();
        assert_eq!(error, format!("invalid mount /d: id-mapped mounts {text}"));
    }
}
