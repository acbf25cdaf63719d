//! Mounts: the made files, tmpfs, the size of `/dev/shm`, and the volumes among them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::bind;
use super::volumes::{self, Pins};
use crate::container::find::Handle;
use crate::container::model::{Options, Volume};
use crate::container::{Error, Result};
use crate::network::Mode;
use crate::store::Store;

/// The files that [`crate::container::files`] makes, and where they go.
pub(crate) const MADE_FILES: [(&str, &str); 3] = [
    ("resolv.conf", "/etc/resolv.conf"),
    ("hostname", "/etc/hostname"),
    ("hosts", "/etc/hosts"),
];

pub(super) fn apply(store: &Store, handle: &Handle, spec: &mut Spec) -> Result<Pins> {
    let options = &handle.config.options;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    shm_size(options, &mut mounts);
    if options.ipc_host {
        replace(
            &mut mounts,
            bind(Path::new("/dev/shm"), "/dev/shm", &["rbind", "rprivate"]),
        );
        replace(
            &mut mounts,
            bind(
                Path::new("/dev/mqueue"),
                "/dev/mqueue",
                &["rbind", "rprivate"],
            ),
        );
    }
    if options.privileged {
        writable_system_mounts(&mut mounts);
    }
    for (file, destination) in MADE_FILES {
        replace(
            &mut mounts,
            bind(
                &made_file(store, handle, file)?,
                destination,
                &["rbind", "rprivate"],
            ),
        );
    }
    for entry in &options.tmpfs {
        replace(&mut mounts, tmpfs(entry)?);
    }
    let mut pins = Pins::default();
    for mount in volumes::mounts(store, handle, spec, &mut pins)? {
        replace(&mut mounts, mount);
    }
    // A mount below another has to come after it; the given order is kept otherwise.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
    Ok(pins)
}

/// With another container's network come that container's files about it.
fn made_file(store: &Store, handle: &Handle, file: &str) -> Result<PathBuf> {
    let owner = match &handle.config.options.network {
        Mode::Container(id) if file != "hostname" => {
            Handle::find(store, id)?.directory().to_owned()
        }
        _ => handle.directory().to_owned(),
    };
    Ok(owner.join(file))
}

fn replace(mounts: &mut Vec<Mount>, mount: Mount) {
    mounts.retain(|other| other.destination() != mount.destination());
    mounts.push(mount);
}

fn shm_size(options: &Options, mounts: &mut [Mount]) {
    let Some(size) = options.shm_size else { return };
    for mount in mounts {
        if mount.destination() == Path::new("/dev/shm") {
            let mut list: Vec<String> = mount.options().clone().unwrap_or_default();
            list.retain(|option| !option.starts_with("size="));
            list.push(format!("size={size}"));
            mount.set_options(Some(list));
        }
    }
}

fn writable_system_mounts(mounts: &mut [Mount]) {
    for mount in mounts {
        if mount.destination() == Path::new("/sys")
            || mount.destination() == Path::new("/sys/fs/cgroup")
        {
            let mut list: Vec<String> = mount.options().clone().unwrap_or_default();
            list.retain(|option| option != "ro");
            mount.set_options(Some(list));
        }
    }
}

/// A tmpfs of `--mount`.
pub(super) fn tmpfs_mount(volume: &Volume) -> Result<Mount> {
    let mut options = volume.options.join(",");
    if volume.read_only {
        options.push_str(",ro");
    }
    tmpfs(&format!("{}:{options}", volume.destination))
}

/// `DEST[:OPTIONS]`, with docker's defaults.
fn tmpfs(entry: &str) -> Result<Mount> {
    let (destination, extra) = entry.split_once(':').unwrap_or((entry, ""));
    if !destination.starts_with('/') {
        return Err(Error::Invalid(format!(
            "bad --tmpfs {entry:?}: {destination:?} is not an absolute path"
        )));
    }
    if let Some(unknown) = extra.split(',').find(|option| !is_of_tmpfs(option)) {
        return Err(Error::Invalid(format!(
            "invalid tmpfs option [{unknown:?}]"
        )));
    }
    let mut list: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
    list.extend(
        extra
            .split(',')
            .filter(|option| !option.is_empty())
            .map(str::to_owned),
    );
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some("tmpfs".to_owned()))
        .set_source(Some("tmpfs".into()))
        .set_options(Some(list));
    Ok(mount)
}

/// Flags of mount(8) and options of tmpfs(5).
fn is_of_tmpfs(option: &str) -> bool {
    const FLAGS: [&str; 26] = [
        "",
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "sync",
        "async",
        "dirsync",
        "private",
        "rprivate",
        "shared",
        "slave",
        "tmpcopyup",
        "defaults",
    ];
    const KEYS: [&str; 9] = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "nr_blocks",
        "mpol",
        "huge",
        "noswap",
    ];
    match option.split_once('=') {
        Some((key, value)) => KEYS.contains(&key) && !value.is_empty(),
        None => FLAGS.contains(&option) || option == "noswap",
    }
}
