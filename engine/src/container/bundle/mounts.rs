//! Mounts: the made files, tmpfs, the size of `/dev/shm`, and the volumes among them.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::bind;
use super::volumes::{self, Pins};
use crate::container::find::Handle;
use crate::container::model::{Options, Sharing, Volume};
use crate::container::{Error, Result, SystemContext};
use crate::network::Mode;
use crate::store::{Store, make_dir};

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
    match &options.ipc {
        Sharing::Own => {}
        Sharing::Closed => mounts.retain(|mount| mount.destination() != Path::new("/dev/shm")),
        // Not the runtime's own mount, which nobody else could get at.
        Sharing::Shareable => {
            let source = shareable_shm(store, handle)?;
            replace(&mut mounts, bind(&source, "/dev/shm", &SHM));
        }
        Sharing::Container(id) => {
            let other = Handle::find(store, id)?;
            let source = match &other.config.options.ipc {
                Sharing::Host => PathBuf::from("/dev/shm"),
                _ => shm(store, &other),
            };
            replace(&mut mounts, bind(&source, "/dev/shm", &SHM));
        }
        Sharing::Host => {
            replace(
                &mut mounts,
                bind(Path::new("/dev/shm"), "/dev/shm", &["rbind", "rprivate"]),
            );
            // Where the host has none mounted, the runtime's own mount shows the same queues.
            let queues = Path::new("/dev/mqueue");
            if queues.exists() {
                replace(
                    &mut mounts,
                    bind(queues, "/dev/mqueue", &["rbind", "rprivate"]),
                );
            }
        }
    }
    if options.privileged {
        make_writable(&mut mounts, &["/sys", "/sys/fs/cgroup"]);
    }
    let option = |wanted: &str| options.security_opt.iter().any(|it| it == wanted);
    if option("writable-cgroups=true") {
        make_writable(&mut mounts, &["/sys/fs/cgroup"]);
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
        let mut mount = tmpfs(entry)?;
        if !exists(&handle.merged(), mount.destination()) {
            // The runtime gives it the mode of the directory below, which is made for the occasion.
            let list = mount.options_mut().get_or_insert_default();
            if !list.iter().any(|option| option.starts_with("mode=")) {
                list.push("mode=1777".to_owned());
            }
        }
        replace(&mut mounts, mount);
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

/// Options of a `/dev/shm` that several containers have.
const SHM: [&str; 5] = ["bind", "rprivate", "nosuid", "nodev", "noexec"];

/// Where the host has the `/dev/shm` of a container that shares it.
pub(crate) fn shm(store: &Store, handle: &Handle) -> PathBuf {
    handle.bundle(store).join("shm")
}

/// Mounts it; [`super::super::cleanup`] takes it away.
fn shareable_shm(store: &Store, handle: &Handle) -> Result<PathBuf> {
    let path = shm(store, handle);
    make_dir(&path)?;
    let size = handle.config.options.shm_size.unwrap_or(64 << 20);
    let options = std::ffi::CString::new(format!("mode=1777,size={size}"))
        .map_err(|_| Error::Invalid("invalid --shm-size".to_owned()))?;
    rustix::mount::mount(
        "shm",
        &path,
        "tmpfs",
        rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC,
        Some(options.as_c_str()),
    )
    .system("mount a shared /dev/shm at", &path)?;
    Ok(path)
}

pub(super) fn check(options: &Options) -> Result<()> {
    for entry in &options.tmpfs {
        tmpfs(entry)?;
    }
    Ok(())
}

fn make_writable(mounts: &mut [Mount], destinations: &[&str]) {
    for mount in mounts {
        let destination = mount.destination().to_str();
        if destination.is_some_and(|path| destinations.contains(&path)) {
            let mut list: Vec<String> = mount.options().clone().unwrap_or_default();
            list.retain(|option| option != "ro");
            mount.set_options(Some(list));
        }
    }
}

/// Whether the image has something there, by the rules of its own tree.
fn exists(root: &Path, path: &Path) -> bool {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = path.strip_prefix("/").unwrap_or(path);
    rustix::fs::openat(CWD, root, flags, Mode::empty()).is_ok_and(|root| {
        openat2(root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_ok()
    })
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
