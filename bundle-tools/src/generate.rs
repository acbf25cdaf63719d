//! Image configuration → runtime configuration.
//!
//! What the image says is converted as the image specification rules; where it is
//! silent, the defaults are docker's. Two groups of things are kept out on purpose:
//! entries of `Env` without a value (taking the host's value for them is how an image
//! read the caller's environment, CVE-2026-57231), and labels that some runtime takes
//! for instructions (see [`is_unsafe_label`]).
//!
//! Left to the caller: mounts of volumes, resources, cgroup and network.
//!
//! Governing text: image-spec, conversion.md; runtime-spec, config.md.

mod defaults;
mod environment;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxCapabilities, Mount, Process, Spec, User as ProcessUser};

pub use defaults::{
    PATH, default_capabilities, default_rootless_spec, default_spec, masked_paths, readonly_paths,
};

use crate::image::ImageConfig;
use crate::{seccomp, user};

/// What the caller wants otherwise than the image says.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Replaces the image's entry point, and drops its command with it. An
    /// empty one means: none.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// `NAME=VALUE`, replacing the image's of that name. An entry without `=`
    /// removes the image's: taking the host's value is the caller's to do.
    pub env: Vec<String>,
    /// Replaces the image's working directory.
    pub cwd: Option<String>,
    /// Replaces the image's user.
    pub user: Option<String>,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// Whether the process gets a terminal; also sets `TERM`.
    pub terminal: bool,
    /// The host name inside; `None` leaves it to the runtime.
    pub hostname: Option<String>,
    /// What `root.path` says; `rootfs` when `None`.
    pub root_path: Option<PathBuf>,
    /// Whether the root file system is read-only.
    pub readonly: bool,
    /// The capabilities, instead of docker's fourteen.
    pub capabilities: Option<HashSet<Capability>>,
    /// Whether to add the default seccomp profile.
    pub seccomp: bool,
    /// Whether the image's volumes become temporary file systems.
    pub volumes: bool,
    /// For a user without root rights: a user namespace in which the caller is root
    /// and nobody else exists, so that the process runs as root whatever the image
    /// says; and none of what needs more.
    pub rootless: bool,
}

/// A runtime configuration can not be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to run.
    #[error("no command given, and the image sets none")]
    NoCommand,
    /// The user can not be resolved.
    #[error("find the user {spec:?}")]
    User {
        /// What was asked for.
        spec: String,
        /// Why not.
        source: user::Error,
    },
    /// A working directory that is not absolute.
    #[error("working directory {0:?} is not an absolute path")]
    Cwd(String),
}

/// Converts an image configuration.
///
/// `rootfs` is the unpacked tree: its passwd and group files are looked at, within it.
///
/// # Errors
/// No command, an unknown user, a relative working directory.
pub fn from_image(
    config: &ImageConfig,
    rootfs: &Path,
    overrides: &Overrides,
) -> Result<Spec, Error> {
    let spec = overrides.user.as_deref().unwrap_or(&config.config.user);
    let failed = |source| Error::User {
        spec: spec.to_owned(),
        source,
    };
    let mut user = user::resolve_in(rootfs, spec).map_err(failed)?;
    let groups = user::resolve_groups_in(rootfs, &overrides.groups).map_err(failed)?;
    user.additional_gids.extend(groups);
    if overrides.rootless {
        (user.uid, user.gid) = (0, 0);
    }
    user.additional_gids.sort_unstable();
    user.additional_gids.dedup();

    let capabilities = overrides.capabilities.clone();
    let capabilities = capabilities.unwrap_or_else(default_capabilities);
    let mut spec = defaults::docker_spec();
    spec.set_process(Some(process(config, overrides, &user, &capabilities)?))
        .set_root(Some(root(overrides)))
        .set_hostname(overrides.hostname.clone())
        .set_annotations(Some(annotations(config)));
    if overrides.seccomp
        && let Some(linux) = spec.linux_mut()
    {
        let architecture = std::env::consts::ARCH;
        linux.set_seccomp(Some(seccomp::default_profile(&capabilities, architecture)));
    }
    if overrides.volumes
        && let Some(mounts) = spec.mounts_mut()
    {
        mounts.extend(config.config.volumes.keys().filter_map(|path| volume(path)));
    }
    if overrides.rootless {
        defaults::make_rootless(&mut spec);
    }
    Ok(spec)
}

/// Writes a configuration as `config.json` has it: indented, and the same bytes for
/// the same configuration, sets of capabilities included.
///
/// # Errors
/// Never for a configuration made here.
pub fn to_json(spec: &Spec) -> serde_json::Result<Vec<u8>> {
    let mut value = serde_json::to_value(spec)?;
    if let Some(sets) = value.pointer_mut("/process/capabilities")
        && let Some(sets) = sets.as_object_mut()
    {
        for set in sets
            .values_mut()
            .filter_map(serde_json::Value::as_array_mut)
        {
            set.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
        }
    }
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    serde::Serialize::serialize(&value, &mut serializer)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Whether a label must not become an annotation: systemd unit properties
/// (CVE-2024-3154) and crun's, kata's and CDI's instructions to the runtime.
#[must_use]
pub fn is_unsafe_label(key: &str) -> bool {
    const PREFIXES: [&str; 5] = [
        "org.systemd.property.",
        "run.oci.",
        "io.katacontainers.",
        "cdi.k8s.io/",
        "io.kubernetes.cri",
    ];
    PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

fn process(
    config: &ImageConfig,
    overrides: &Overrides,
    user: &user::User,
    capabilities: &HashSet<Capability>,
) -> Result<Process, Error> {
    let mut ids = ProcessUser::default();
    ids.set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids(Some(user.additional_gids.clone()));
    let mut process = Process::default();
    process
        .set_terminal(Some(overrides.terminal))
        .set_user(ids)
        .set_args(Some(args(config, overrides)?))
        .set_env(Some(environment::of(config, overrides, &user.home)))
        .set_cwd(cwd(config, overrides)?)
        .set_capabilities(Some(capability_sets(capabilities, user.uid)))
        .set_rlimits(None)
        .set_no_new_privileges(Some(false));
    Ok(process)
}

/// Entry point and command, the way docker combines them.
fn args(config: &ImageConfig, overrides: &Overrides) -> Result<Vec<String>, Error> {
    let image = &config.config;
    let entrypoint = overrides.entrypoint.as_ref().or(image.entrypoint.as_ref());
    let image_cmd = match overrides.entrypoint {
        // The image's arguments were meant for the image's entry point.
        Some(_) => None,
        None => image.cmd.as_ref(),
    };
    let cmd = overrides.cmd.as_ref().or(image_cmd);
    let mut args: Vec<String> = Vec::new();
    // `--entrypoint ""` takes the entry point away.
    let entrypoint = entrypoint.filter(|words| words.first().is_some_and(|word| !word.is_empty()));
    args.extend(entrypoint.into_iter().flatten().cloned());
    args.extend(cmd.into_iter().flatten().cloned());
    match args.first() {
        Some(first) if !first.is_empty() => Ok(args),
        _ => Err(Error::NoCommand),
    }
}

fn cwd(config: &ImageConfig, overrides: &Overrides) -> Result<PathBuf, Error> {
    if let Some(cwd) = &overrides.cwd {
        return if cwd.starts_with('/') {
            Ok(PathBuf::from(cwd))
        } else {
            Err(Error::Cwd(cwd.clone()))
        };
    }
    // Old builders stored relative directories; they were relative to the root.
    Ok(Path::new("/").join(&config.config.working_dir))
}

/// The sets for a process of that user; inheritable and ambient stay empty (CVE-2022-24769).
///
/// As docker does: only root gets them as effective; anybody else can still gain them
/// by a file's capabilities or set-user-id bit.
fn capability_sets(capabilities: &HashSet<Capability>, uid: u32) -> LinuxCapabilities {
    let held = if uid == 0 {
        capabilities.clone()
    } else {
        HashSet::new()
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_effective(Some(held.clone()))
        .set_permitted(Some(held))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

fn root(overrides: &Overrides) -> oci_spec::runtime::Root {
    let mut root = oci_spec::runtime::Root::default();
    let path = overrides.root_path.clone();
    root.set_path(path.unwrap_or_else(|| PathBuf::from("rootfs")))
        .set_readonly(Some(overrides.readonly));
    root
}

/// The image's implicit annotations, and its labels over them.
fn annotations(config: &ImageConfig) -> HashMap<String, String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let other = |key: &str| match config.other.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Array(items)) => {
            let items: Vec<&str> = items.iter().filter_map(serde_json::Value::as_str).collect();
            items.join(",")
        }
        _ => String::new(),
    };
    let ports: Vec<&str> = config
        .config
        .exposed_ports
        .keys()
        .map(String::as_str)
        .collect();
    let implicit: BTreeMap<&str, String> = BTreeMap::from([
        ("os", config.os.clone()),
        ("architecture", config.architecture.clone()),
        ("variant", text(&config.variant)),
        ("os.version", other("os.version")),
        ("os.features", other("os.features")),
        ("author", text(&config.author)),
        ("created", text(&config.created)),
        ("stopSignal", text(&config.config.stop_signal)),
        ("exposedPorts", ports.join(",")),
    ]);
    let mut annotations: HashMap<String, String> = implicit
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
        .collect();
    let labels = config.config.labels.iter();
    annotations.extend(
        labels
            .filter(|(key, _)| !key.is_empty() && !is_unsafe_label(key))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    annotations
}

/// A temporary file system for a volume that starts as a copy of what the image has there.
fn volume(path: &str) -> Option<Mount> {
    let inside = Path::new("/").join(path);
    let plain = inside
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    // A volume over everything, or out of the tree, is no volume (CVE-2022-23648).
    if !plain || inside == Path::new("/") {
        return None;
    }
    Some(defaults::mount(
        &inside.to_string_lossy(),
        "tmpfs",
        "tmpfs",
        "nosuid nodev tmpcopyup",
    ))
}

#[cfg(test)]
mod tests;
