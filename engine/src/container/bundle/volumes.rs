//! `-v` and `--mount` as mounts of the bundle.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bundle_tools::rooted;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};

use super::{bind, chown};
use crate::container::find::Handle;
use crate::container::model::{MountDetails, MountedImage, Recursion, Volume, VolumeSource};
use crate::container::{Error, Result, SystemContext, overlay, volumes};
use crate::image::layers;
use crate::store::{Store, make_dir};
use crate::volume::{self, Content, bind_downstream};

/// Places under which parts of volumes are found until the runtime has created the container.
///
/// A path within a volume can be turned into a link elsewhere by whoever else has the volume, after it was looked up
/// and before the runtime binds it. So what was found is bound to a place of the engine's own first, by its descriptor.
#[derive(Debug, Default)]
pub(in crate::container) struct Pins {
    places: Vec<PathBuf>,
}

/// How their names in a container's runtime directory begin.
const PIN: &str = "pin-";

impl Pins {
    fn add(&mut self, place: PathBuf, found: &OwnedFd) -> Result<PathBuf> {
        let kind = FileType::from_raw_mode(fstat(found).system("stat", &place)?.st_mode);
        if kind == FileType::Directory {
            make_dir(&place)?;
        } else {
            fs::write(&place, "").system("make", &place)?;
        }
        let source = format!("/proc/self/fd/{}", found.as_raw_fd());
        bind_downstream(Path::new(&source), &place).system("bind", &place)?;
        self.places.push(place.clone());
        Ok(place)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for place in &self.places {
            // What resists is taken away at the container's end.
            drop(overlay::unmount_all(place));
        }
    }
}

/// Takes away the pins of a start that was killed.
pub(in crate::container) fn remove_pins(run: &Path) -> Result<()> {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(PIN.as_bytes()) {
            overlay::unmount_all(&entry.path())?;
        }
    }
    Ok(())
}

/// The mounts of a container's volumes, in the order given.
pub(super) fn mounts(
    store: &Store,
    handle: &Handle,
    spec: &mut Spec,
    pins: &mut Pins,
) -> Result<Vec<Mount>> {
    let list = &handle.config.options.volumes;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    propagate(list, spec);
    // The image's files go into an empty volume when a container gets it, not each time it is started.
    let is_first_start = handle.state()?.started.is_none();
    let mut mounts = Vec::new();
    for (index, volume) in list.iter().enumerate() {
        let mut place = Place {
            store,
            handle,
            volume,
            index,
            is_first_start,
        };
        mounts.push(place.mount(spec, pins)?);
    }
    Ok(mounts)
}

/// With a mount that is to reach the host, or to be reached from there, the container's own tree can't be cut off.
fn propagate(list: &[Volume], spec: &mut Spec) {
    let asked = |word: &str| {
        list.iter().any(|volume| {
            volume
                .propagation()
                .is_some_and(|given| given.trim_start_matches('r') == word)
        })
    };
    let root = if asked("shared") {
        "shared"
    } else if asked("slave") {
        "rslave"
    } else {
        return;
    };
    if let Some(linux) = spec.linux_mut() {
        linux.set_rootfs_propagation(Some(root.to_owned()));
    }
}

/// One volume of a container that is being started.
struct Place<'a> {
    store: &'a Store,
    handle: &'a Handle,
    volume: &'a Volume,
    index: usize,
    is_first_start: bool,
}

impl Place<'_> {
    fn mount(&mut self, spec: &Spec, pins: &mut Pins) -> Result<Mount> {
        let source = match &self.volume.source {
            VolumeSource::Tmpfs => return super::mounts::tmpfs_mount(self.volume),
            VolumeSource::Image(image) => return self.image(image),
            VolumeSource::Path(path) => self.host_path(path)?,
            VolumeSource::Named(name) | VolumeSource::Anonymous(name) => {
                self.directory(name, pins)?
            }
        };
        if self.volume.has("U") {
            chown::to_user_of(spec, &source)?;
        }
        if self.volume.has("O") {
            return self.overlay(vec![source], Changes::Dropped);
        }
        Ok(bind(
            &source,
            &self.volume.destination,
            &self.bind_options(),
        ))
    }

    /// A directory of the host that is not there is made for `-v`, as docker does; `--mount` wants it to be there.
    fn host_path(&self, path: &str) -> Result<PathBuf> {
        match fs::metadata(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && self.volume.mount.is_none() => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(path)
                    .system("make the volume's source", path)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(volumes::missing_source(path));
            }
            Err(error) => return Err(error).system("use as a volume", path),
        }
        Ok(path.into())
    }

    /// The directory of a volume of the store, or one in it.
    fn directory(&self, name: &str, pins: &mut Pins) -> Result<PathBuf> {
        volumes::make_missing(self.store, self.volume, name)?;
        let merged = self.handle.merged();
        let subpath = self.details().and_then(|mount| mount.subpath.as_deref());
        let wants_content = self.is_first_start && !self.volume.has("nocopy") && subpath.is_none();
        let content = Content {
            root: &merged,
            destination: &self.volume.destination,
        };
        let data = volume::prepare(self.store, name, wants_content.then_some(content))?;
        match subpath {
            None => Ok(data),
            Some(subpath) => {
                let pinned = below(&data, subpath).map_err(|source| volume::Error::Subpath {
                    name: name.to_owned(),
                    subpath: subpath.to_owned(),
                    source,
                })?;
                let run = self.store.container_run(self.handle.id());
                pins.add(run.join(format!("{PIN}{}", self.index)), &pinned)
            }
        }
    }

    fn details(&self) -> Option<&MountDetails> {
        self.volume.mount.as_ref()
    }

    fn bind_options(&self) -> Vec<&str> {
        let recursion = self.details().map(|mount| mount.recursion);
        let recursion = recursion.unwrap_or_default();
        let mut list = vec![match recursion {
            Recursion::Disabled => "bind",
            _ if self.volume.has("bind") => "bind",
            _ => "rbind",
        }];
        if self.volume.read_only {
            list.push("ro");
            let is_recursive = match recursion {
                Recursion::Readonly => true,
                Recursion::Enabled => can_be_read_only_recursively(),
                Recursion::Disabled | Recursion::Writable => false,
            };
            if is_recursive {
                list.push("rro");
            }
        }
        list.push(self.volume.propagation().unwrap_or("rprivate"));
        let attributes = ["noexec", "exec", "nosuid", "suid", "nodev", "dev"];
        let given = self.volume.options.iter().map(String::as_str);
        list.extend(given.filter(|option| attributes.contains(option)));
        list
    }

    /// An image's files, read-only unless asked otherwise; changes are not kept.
    fn image(&self, image: &MountedImage) -> Result<Mount> {
        let directory = |chain| layers::directory(self.store, chain).join(layers::DIFF);
        let mut lower: Vec<PathBuf> = image.layers.iter().rev().map(directory).collect();
        if lower.is_empty() {
            return Err(Error::Invalid(format!(
                "image {} has no files to mount",
                image.reference
            )));
        }
        if let Some(subpath) = self.details().and_then(|mount| mount.subpath.as_deref()) {
            // Only where every layer agrees on what is there could layers be cut down to it.
            let [only] = &lower[..] else {
                return Err(Error::Invalid(format!(
                    "a part of image {} can't be mounted: it has several layers",
                    image.reference
                )));
            };
            let root = open_directory(only).system("open", only)?;
            let found =
                rooted::walk(root, subpath.as_bytes()).system("open in the image", subpath)?;
            lower = vec![only.join(OsStr::from_bytes(&found.path))];
        }
        if self.volume.read_only && lower.len() == 1 {
            return Ok(bind(
                &lower[0],
                &self.volume.destination,
                &["rbind", "ro", "rprivate"],
            ));
        }
        let changes = if self.volume.read_only {
            Changes::Refused
        } else {
            Changes::Dropped
        };
        self.overlay(lower, changes)
    }

    /// An overlay that the runtime mounts: it is the container's alone, and goes with it.
    fn overlay(&self, lower: Vec<PathBuf>, changes: Changes) -> Result<Mount> {
        let joined: Vec<String> = lower.iter().map(|path| escaped(path)).collect();
        let mut list = vec![format!("lowerdir={}", joined.join(":"))];
        match changes {
            Changes::Refused => list.push("ro".to_owned()),
            Changes::Dropped => {
                // Beside the bundle, and gone with it.
                let home = self
                    .store
                    .container_run(self.handle.id())
                    .join(format!("overlay-{}", self.index));
                for (option, name) in [("upperdir", "diff"), ("workdir", "work")] {
                    let directory = home.join(name);
                    make_dir(&directory)?;
                    list.push(format!("{option}={}", escaped(&directory)));
                }
                let mode = fs::metadata(&lower[0])
                    .system("stat", &lower[0])?
                    .permissions();
                let upper = home.join("diff");
                fs::set_permissions(&upper, mode).system("chmod", upper)?;
            }
        }
        let mut mount = Mount::default();
        mount
            .set_destination(self.volume.destination.clone().into())
            .set_typ(Some("overlay".to_owned()))
            .set_source(Some("overlay".into()))
            .set_options(Some(list));
        Ok(mount)
    }
}

/// What becomes of what a container writes into an overlay of ours.
enum Changes {
    Refused,
    Dropped,
}

/// Overlay splits its options at `,` and `:`.
fn escaped(path: &Path) -> String {
    let mut out = String::new();
    for letter in String::from_utf8_lossy(path.as_os_str().as_bytes()).chars() {
        if matches!(letter, ',' | ':' | '\\') {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

/// Opens something below a directory, never above it, whatever links lie on the way.
fn below(directory: &Path, path: &str) -> std::io::Result<OwnedFd> {
    rooted::open(open_directory(directory)?, path.as_bytes(), OFlags::PATH)
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

/// Since Linux 5.12, `mount_setattr(2)`.
fn can_be_read_only_recursively() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|letter: char| !letter.is_ascii_digit())
        .map(|digits| digits.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(12))
}
