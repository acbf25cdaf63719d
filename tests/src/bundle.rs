//! Runtime bundles made by hand: a busybox root file system and a `config.json` the tests can change.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A bundle directory; gone when dropped.
#[derive(Debug)]
pub struct Bundle {
    directory: tempfile::TempDir,
    /// What [`Bundle::save`] writes as `config.json`.
    pub config: Value,
}

impl Bundle {
    /// Makes a bundle that runs `args`, in namespaces of its own, without a terminal.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn new(args: &[&str]) -> Self {
        let bundle = Self::with_config(config(args));
        bundle.save();
        bundle
    }

    /// Makes a bundle that sleeps until it is killed.
    #[must_use]
    pub fn sleeper() -> Self {
        Self::new(&["sleep", "1000"])
    }

    /// Makes a bundle with a root file system, and a `config.json` not yet written.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn with_config(config: Value) -> Self {
        let directory = match tempfile::Builder::new().prefix("qbundle").tempdir() {
            Ok(directory) => directory,
            Err(error) => panic!("make a directory for a bundle: {error}"),
        };
        let bundle = Self { directory, config };
        if let Err(error) = unpack_busybox(&bundle.rootfs()) {
            panic!("unpack busybox: {error:#}");
        }
        bundle
    }

    /// Makes it one for [`crate::user::USER`], who is root in a user namespace of its own and has no other ids there.
    ///
    /// # Panics
    /// When files cannot be given away.
    #[must_use]
    pub fn of_user(self) -> Self {
        use crate::user::{USER, give};
        let own = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        let mut bundle = self
            .with("/linux/namespaces/-", json!({"type": "user"}))
            .with("/linux/uidMappings", own.clone())
            .with("/linux/gidMappings", own);
        if let Some(linux) = bundle.config["linux"].as_object_mut() {
            linux.remove("resources");
        }
        bundle.save();
        give(bundle.path());
        bundle
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Its root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// Writes `config.json`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn save(&self) {
        if let Err(error) = std::fs::write(self.path().join("config.json"), self.config.to_string())
        {
            panic!("write config.json: {error}");
        }
    }

    /// Sets the value at a JSON pointer, whose parent must be there, and saves.
    ///
    /// # Panics
    /// When the parent is not there.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        self.set(pointer, value);
        self.save();
        self
    }

    /// Sets the value at a JSON pointer, whose parent must be there; `-` appends to a list.
    ///
    /// # Panics
    /// When the parent is not there.
    pub fn set(&mut self, pointer: &str, value: Value) {
        set(&mut self.config, pointer, value);
    }
}

/// Sets the value at a JSON pointer of a configuration, whose parent must be there; `-` appends to a list.
///
/// # Panics
/// When the parent is not there.
#[track_caller]
pub fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    match config.pointer_mut(parent) {
        Some(Value::Array(list)) if key == "-" => list.push(value),
        Some(parent) => parent[key] = value,
        None => panic!("no {parent} in the configuration"),
    }
}

/// Unpacks busybox under `rootfs`.
///
/// # Errors
/// When the disk is full, or there is no static busybox.
pub fn unpack_busybox(rootfs: &Path) -> anyhow::Result<()> {
    let mut archive = Vec::new();
    crate::image::busybox_tar(&mut archive)?;
    std::fs::create_dir_all(rootfs)?;
    crate::executable::unpack(&archive, rootfs);
    Ok(())
}

/// A configuration with all namespaces but the user and time ones, the usual mounts, and docker's
/// default capabilities.
#[must_use]
pub fn config(args: &[&str]) -> Value {
    let capabilities: Vec<_> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"))
    .into();
    let namespaces =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|it| json!({"type": it}));
    let mount = |to: &str, kind: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "nest",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
