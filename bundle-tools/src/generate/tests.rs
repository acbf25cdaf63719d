//! Image configurations to runtime configurations, as tables.

use super::*;
use crate::image::{ContainerConfig, parse_config};

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

fn image(config: ContainerConfig) -> ImageConfig {
    ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config,
        ..ImageConfig::default()
    }
}

/// A tree with a passwd and a group file.
fn rootfs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let etc = directory.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(
        etc.join("passwd"),
        "root:x:0:0::/root:\nweb:x:33:33::/srv:\n",
    )
    .unwrap();
    std::fs::write(etc.join("group"), "root:x:0:\nlog:x:44:web\nmail:x:8:\n").unwrap();
    directory
}

fn convert(config: ContainerConfig, overrides: &Overrides) -> Result<Spec, Error> {
    from_image(&image(config), rootfs().path(), overrides)
}

#[test]
fn entrypoint_and_command_combine_as_in_docker() {
    // image entry point, image command, given entry point, given command → arguments
    type Words = Option<&'static str>;
    let cases: [(Words, Words, Words, Words, &str); 10] = [
        (None, Some("sh"), None, None, "sh"),
        (Some("/init"), Some("a b"), None, None, "/init a b"),
        (Some("/init"), Some("a b"), None, Some("c"), "/init c"),
        (Some("/init"), Some("a b"), Some("other"), None, "other"),
        (
            Some("/init"),
            Some("a b"),
            Some("other"),
            Some("c"),
            "other c",
        ),
        (Some("/init"), Some("a b"), Some(""), Some("c"), "c"),
        (Some("/init"), Some("a b"), Some(""), None, ""),
        (None, None, None, Some("c d"), "c d"),
        (None, None, None, None, ""),
        (Some(""), Some("sh"), None, None, "sh"),
    ];
    for (image_entrypoint, image_cmd, entrypoint, cmd, expected) in cases {
        let config = ContainerConfig {
            entrypoint: image_entrypoint.map(words),
            cmd: image_cmd.map(words),
            ..ContainerConfig::default()
        };
        let overrides = Overrides {
            entrypoint: entrypoint.map(words),
            cmd: cmd.map(words),
            ..Overrides::default()
        };
        match convert(config, &overrides) {
            Ok(spec) => {
                let process = spec.process().clone().unwrap();
                assert_eq!(process.args().clone().unwrap(), words(expected));
            }
            Err(Error::NoCommand) => assert_eq!(expected, ""),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn nothing_of_the_hosts_environment_gets_in() {
    let config = ContainerConfig {
        cmd: Some(words("sh")),
        env: words("A=1 HOME PATH * A* CARGO=x =x B=2 A=3 PATH=/bin E="),
        ..ContainerConfig::default()
    };
    let overrides = Overrides {
        env: words("B=9 C=4 CARGO NOSUCH"),
        terminal: true,
        hostname: Some("box".to_owned()),
        ..Overrides::default()
    };
    let spec = convert(config, &overrides).unwrap();
    let env = spec.process().clone().unwrap().env().clone().unwrap();
    let expected = "PATH=/bin HOSTNAME=box TERM=xterm A=3 B=9 E= C=4 HOME=/root";
    assert_eq!(env, words(expected));
}

#[test]
fn users_bring_home_groups_and_capabilities() {
    let config = ContainerConfig {
        cmd: Some(words("sh")),
        user: "web".to_owned(),
        ..ContainerConfig::default()
    };
    let overrides = Overrides {
        groups: words("mail 7"),
        ..Overrides::default()
    };
    let spec = convert(config.clone(), &overrides).unwrap();
    let process = spec.process().clone().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (33, 33));
    assert_eq!(process.user().additional_gids(), &Some(vec![7, 8, 33, 44]));
    assert!(
        process
            .env()
            .clone()
            .unwrap()
            .contains(&"HOME=/srv".to_owned())
    );
    let sets = process.capabilities().clone().unwrap();
    assert_eq!(sets.bounding().clone().unwrap().len(), 14);
    assert!(sets.effective().clone().unwrap().is_empty());
    assert!(sets.inheritable().is_none() && sets.ambient().is_none());

    let overrides = Overrides {
        user: Some("0".to_owned()),
        ..Overrides::default()
    };
    let process = convert(config, &overrides)
        .unwrap()
        .process()
        .clone()
        .unwrap();
    let sets = process.capabilities().clone().unwrap();
    assert_eq!(sets.effective().clone().unwrap(), default_capabilities());
    assert_eq!(sets.permitted(), sets.bounding());
}

#[test]
fn unknown_users_and_relative_directories_are_errors() {
    let config = |user: &str, working_dir: &str| ContainerConfig {
        cmd: Some(words("sh")),
        user: user.to_owned(),
        working_dir: working_dir.to_owned(),
        ..ContainerConfig::default()
    };
    for user in ["nobody", "web:none", "4294967296", "-1"] {
        let error = convert(config(user, ""), &Overrides::default()).unwrap_err();
        assert!(matches!(error, Error::User { .. }), "{user}");
    }
    fn cwd(config: ContainerConfig, overrides: &Overrides) -> Result<PathBuf, Error> {
        let spec = convert(config, overrides)?;
        Ok(spec.process().clone().unwrap().cwd().clone())
    }
    assert_eq!(
        cwd(config("", ""), &Overrides::default()).unwrap(),
        Path::new("/")
    );
    assert_eq!(
        cwd(config("", "/srv"), &Overrides::default()).unwrap(),
        Path::new("/srv")
    );
    assert_eq!(
        cwd(config("", "srv"), &Overrides::default()).unwrap(),
        Path::new("/srv")
    );
    let given = Overrides {
        cwd: Some("tmp".to_owned()),
        ..Overrides::default()
    };
    assert!(matches!(cwd(config("", ""), &given), Err(Error::Cwd(_))));
}

#[test]
fn labels_become_annotations_but_for_instructions() {
    let text = r#"{"architecture":"arm64","variant":"v8","os":"linux","author":"me",
        "os.features":["a","b"],"created":"2026-01-01T00:00:00Z",
        "config":{"Cmd":["sh"],"StopSignal":"SIGINT","ExposedPorts":{"443/tcp":{},"80/tcp":{}},
        "Labels":{"org.opencontainers.image.author":"you","x":"y",
        "org.systemd.property.ExecStart":"[]","run.oci.hooks":"1","io.katacontainers.x":"1"}},
        "rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config = parse_config(text.as_bytes()).unwrap();
    let spec = from_image(&config, rootfs().path(), &Overrides::default()).unwrap();
    let annotations: BTreeMap<String, String> =
        spec.annotations().clone().unwrap().into_iter().collect();
    let listed: Vec<String> = annotations
        .iter()
        .map(|(key, value)| {
            let key = key.strip_prefix("org.opencontainers.image.").unwrap_or(key);
            format!("{key}={value}")
        })
        .collect();
    let expected = "architecture=arm64 author=you created=2026-01-01T00:00:00Z \
        exposedPorts=443/tcp,80/tcp os=linux os.features=a,b stopSignal=SIGINT variant=v8 x=y";
    assert_eq!(listed, words(expected));
}

#[test]
fn the_sandbox_is_dockers() {
    let config = ContainerConfig {
        cmd: Some(words("sh")),
        volumes: ["/data", "rel", "/", "/../etc", "/a/../../b"]
            .map(|path| (path.to_owned(), serde_json::json!({})))
            .into(),
        ..ContainerConfig::default()
    };
    let overrides = Overrides {
        seccomp: true,
        volumes: true,
        readonly: true,
        ..Overrides::default()
    };
    let spec = convert(config, &overrides).unwrap();
    let linux = spec.linux().clone().unwrap();
    let masked = linux.masked_paths().clone().unwrap();
    for path in [
        "/proc/interrupts",
        "/proc/kcore",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ] {
        assert!(masked.contains(&path.to_owned()), "{path}");
    }
    assert_eq!(linux.namespaces().clone().unwrap().len(), 6);
    assert!(linux.seccomp().is_some());
    assert_eq!(spec.root().clone().unwrap().readonly(), Some(true));
    let process = spec.process().clone().unwrap();
    assert_eq!(process.no_new_privileges(), Some(false));
    assert!(process.rlimits().is_none());
    let mounts = spec.mounts().clone().unwrap();
    let places: Vec<String> = mounts
        .iter()
        .map(|mount| mount.destination().to_string_lossy().into_owned())
        .collect();
    let expected = "/proc /dev /dev/pts /dev/shm /dev/mqueue /sys /sys/fs/cgroup /data /rel";
    assert_eq!(places, words(expected));
}

#[test]
fn the_same_configuration_is_the_same_bytes() {
    let first = to_json(&default_spec()).unwrap();
    for _ in 0..8 {
        assert_eq!(to_json(&default_spec()).unwrap(), first);
    }
    let value: serde_json::Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(value["process"]["terminal"], true);
    assert_eq!(value["root"]["readonly"], true);
    assert!(value["process"]["capabilities"].get("ambient").is_none());
}

#[test]
fn rootless_needs_nothing_that_root_has() {
    let config = ContainerConfig {
        cmd: Some(words("sh")),
        user: "web".to_owned(),
        ..ContainerConfig::default()
    };
    let overrides = Overrides {
        rootless: true,
        ..Overrides::default()
    };
    let process = convert(config, &overrides)
        .unwrap()
        .process()
        .clone()
        .unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    assert!(process.user().additional_gids().is_none());

    let spec = default_rootless_spec();
    let linux = spec.linux().clone().unwrap();
    assert!(linux.resources().is_none());
    assert_eq!(linux.uid_mappings().clone().unwrap()[0].size(), 1);
    let kinds: Vec<String> = linux
        .namespaces()
        .clone()
        .unwrap()
        .iter()
        .map(|namespace| namespace.typ().to_string())
        .collect();
    assert!(
        kinds.contains(&"user".to_owned()) && !kinds.contains(&"net".to_owned()),
        "{kinds:?}"
    );
    let text = String::from_utf8(to_json(&spec).unwrap()).unwrap();
    assert!(!text.contains("gid=5") && text.contains("rbind"));
}
