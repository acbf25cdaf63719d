//! The plan: everything a create, run or exec will do, worked out and checked before anything is done.
//!
//! Made from a [`Spec`] and what the command line adds. Pure data: no descriptor, no process; of the host nothing is looked
//! up but whether it has SELinux. [`crate::setup`] carries it out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::failure::{CallFailed, During};
use crate::namespace::{Kind, Namespaces};
use crate::spec::Spec;
use crate::spec::linux::{Device, Linux};

pub(crate) mod inherited;
#[cfg(test)]
mod mangled;
pub(crate) mod mount;
pub(crate) mod network_device;
pub(crate) mod number_list;
pub(crate) mod process;
pub(crate) mod rootless;
pub(crate) mod scheduling;
mod validate;

use mount::MountStep;
use network_device::NetworkDevice;
use process::ProcessPlan;

/// What is wrong with a bundle. The texts are runc's where runc has one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The bundle cannot be entered or read.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// No config.json.
    #[error("JSON specification file {0} not found")]
    ConfigMissing(String),
    /// config.json is not JSON, or a member has the wrong type.
    #[error("cannot parse {path}")]
    Json {
        /// The file.
        path: String,
        /// What serde has to say.
        source: serde_json::Error,
    },
    /// A rule of the specification is broken.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// A broken rule.
    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }
}

/// What the command line adds to the bundle.
#[derive(Debug, Default, Clone)]
pub(crate) struct Extra {
    /// Whether the root is moved instead of pivoted.
    pub(crate) no_pivot: bool,
    /// Whether the caller's session keyring is kept.
    pub(crate) no_new_keyring: bool,
    /// Descriptors after stdio that the process inherits.
    pub(crate) preserve_fds: u32,
    /// Sockets of systemd's socket activation, which it inherits besides; they come first.
    pub(crate) listen_fds: u32,
    /// Whether the caller is not root, and so may do with ids and mounts what the kernel lets everybody do.
    pub(crate) rootless: bool,
    /// Host directory of the readiness socket to bind into the container.
    pub(crate) notify_directory: Option<PathBuf>,
}

/// What a create does.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Container id.
    pub(crate) id: String,
    /// The bundle, absolute.
    pub(crate) bundle: PathBuf,
    /// Namespaces to make and join.
    pub(crate) namespaces: Namespaces,
    /// The file system tree.
    pub(crate) root: RootPlan,
    /// The process.
    pub(crate) process: ProcessPlan,
    /// Host name to set.
    pub(crate) hostname: Option<String>,
    /// NIS domain name to set.
    pub(crate) domainname: Option<String>,
    /// Network devices to move in.
    pub(crate) network_devices: Vec<NetworkDevice>,
    /// Kernel parameters to set: path below `/proc/sys`, value.
    pub(crate) sysctl: Vec<(String, String)>,
    /// What the command line adds.
    pub(crate) extra: Extra,
}

/// The file system tree of a container.
#[derive(Debug)]
pub(crate) struct RootPlan {
    /// The root file system, absolute.
    pub(crate) path: PathBuf,
    /// Whether the container has a mount namespace that is not the caller's.
    pub(crate) own_mount_namespace: bool,
    /// `MS_*` flags of the propagation that the spec asks for.
    pub(crate) propagation: Option<u64>,
    /// SELinux label of file systems made for the container.
    pub(crate) label: Option<String>,
    /// Whether the root is read-only in the end.
    pub(crate) readonly: bool,
    /// Whether the root is moved instead of pivoted.
    pub(crate) no_pivot: bool,
    /// Mounts in order.
    pub(crate) mounts: Vec<MountStep>,
    /// Whether `/dev` gets device files and links; not when it is a bind mount.
    pub(crate) populate_dev: bool,
    /// Device files beyond the default ones.
    pub(crate) devices: Vec<Device>,
    /// Whether device files are bound from the host, for lack of the right to make them.
    pub(crate) bind_devices: bool,
    /// Paths hidden from the container.
    pub(crate) masked: Vec<String>,
    /// Paths the container may only read.
    pub(crate) readonly_paths: Vec<String>,
}

impl RootPlan {
    /// Whether the propagation given to the tree at first keeps every mount in it from reaching the host. Without
    /// `MS_REC` only "/" gets it.
    pub(crate) fn cuts_off_the_tree(&self) -> bool {
        let propagation = self.first_propagation();
        propagation & libc::MS_REC != 0 && propagation & (libc::MS_SLAVE | libc::MS_PRIVATE) != 0
    }

    /// `MS_*` flags of the propagation given to the tree at first; without one in the spec, it becomes a slave of the
    /// host's, as in runc.
    pub(crate) fn first_propagation(&self) -> u64 {
        self.propagation.unwrap_or(libc::MS_SLAVE | libc::MS_REC)
    }
}

/// Reads `config.json` of the bundle that is the current directory.
pub(crate) fn load_spec() -> Result<Spec, Error> {
    const NAME: &str = "config.json";
    let text = match std::fs::read(NAME) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::ConfigMissing(NAME.into()));
        }
        other => other.during("open", NAME)?,
    };
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: NAME.into(),
        source,
    })
}

impl Plan {
    /// Checks a spec and turns it into a plan. `bundle` is absolute.
    pub(crate) fn new(spec: &Spec, bundle: &Path, id: &str, extra: Extra) -> Result<Self, Error> {
        let process = validate::process(spec.process.as_ref())?;
        let root = spec
            .root
            .as_ref()
            .ok_or_else(|| Error::invalid("root must be specified"))?;
        let no_linux = Linux::default();
        let linux = spec.linux.as_deref().unwrap_or(&no_linux);
        validate::spec(spec)?;
        let namespaces = Namespaces::new(linux)?;
        validate::namespaces(spec, linux, &namespaces)?;
        if extra.rootless {
            rootless::check(spec, linux, &namespaces)?;
        }
        let root_path = bundle.join(&root.path);
        let mut process_plan = ProcessPlan::new(process)?;
        process_plan.keep_groups = crate::rootless::keeps_groups(&spec.annotations);
        let (personality, policy) = (linux.personality.as_ref(), linux.memory_policy.as_ref());
        let confined = scheduling::is_confined(linux);
        process_plan
            .scheduling
            .add_container(personality, policy, confined)?;
        // What runc gives the first process; further ones keep that of whoever starts them.
        process_plan.user.umask.get_or_insert(0o022);
        add_notify_and_listen(&mut process_plan, &extra)?;
        let around = mount::Surroundings {
            bundle,
            root: &root_path,
            label: &linux.mount_label,
            has_user_namespace: namespaces.has_user(),
        };
        let mut mounts = mount::steps(&spec.mounts, &around)?;
        let propagation = mount::root_propagation(&linux.rootfs_propagation)?;
        if extra.no_pivot && propagation.is_some_and(|kind| kind & libc::MS_PRIVATE != 0) {
            return Err(Error::invalid(
                "rootfsPropagation of [r]private is not safe without pivot_root",
            ));
        }
        if let Some(directory) = &extra.notify_directory {
            let mut step = MountStep::bind(directory, process::NOTIFY_DIRECTORY);
            // Sending to the socket in it takes no write permission on the mount.
            step.restrict();
            mounts.push(step);
        }
        let populate_dev = !mounts
            .iter()
            .any(|step| step.is_bind() && step.destination.trim_end_matches('/') == "/dev");
        Ok(Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            root: RootPlan {
                path: root_path,
                own_mount_namespace: namespaces.contains(Kind::Mount),
                propagation,
                label: Some(linux.mount_label.clone()).filter(|label| !label.is_empty()),
                readonly: root.readonly,
                no_pivot: extra.no_pivot,
                mounts,
                populate_dev,
                devices: linux.devices.clone(),
                bind_devices: namespaces.has_user(),
                masked: without_duplicates(&linux.masked_paths),
                readonly_paths: linux.readonly_paths.clone(),
            },
            network_devices: network_device::plan(&linux.net_devices, &namespaces)?,
            namespaces,
            process: process_plan,
            hostname: Some(spec.hostname.clone()).filter(|name| !name.is_empty()),
            domainname: Some(spec.domainname.clone()).filter(|name| !name.is_empty()),
            sysctl: linux
                .sysctl
                .iter()
                .map(|(name, value)| (validate::sysctl_path(name), value.clone()))
                .collect(),
            extra,
        })
    }
}

/// Paths, each once: what is masked twice would have to be unmasked twice.
fn without_duplicates(paths: &[String]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    paths
        .iter()
        .filter(|path| seen.insert(Path::new(path.as_str())))
        .cloned()
        .collect()
}

/// Tells the process about sockets it inherits and about where to report that it is ready.
fn add_notify_and_listen(process: &mut ProcessPlan, extra: &Extra) -> Result<(), Error> {
    if extra.listen_fds > 0 {
        process.set_variable(&format!("LISTEN_FDS={}", extra.listen_fds))?;
        process.set_variable("LISTEN_PID=1")?;
    }
    if extra.notify_directory.is_some() {
        process.set_variable(&format!(
            "NOTIFY_SOCKET={}/notify.sock",
            process::NOTIFY_DIRECTORY
        ))?;
    }
    Ok(())
}
