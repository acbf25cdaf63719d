//! A container's files as its processes see them, volumes and all, running or not.
//!
//! Of a running one it is the root of its init. Of any other the overlay is mounted once more, with its volumes on it, by
//! a thread with a mount namespace of its own: the mounts are nobody else's, and go with the thread however it ends. The
//! container's lock is held as long, since a second overlay on the same directories is nothing the kernel allows.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bundle_tools::rooted;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount_bind_recursive, mount_change, mount_remount,
};

use super::Error;
use crate::container::bundle::MADE_FILES;
use crate::container::find::Handle;
use crate::container::model::{Volume, VolumeSource};
use crate::container::{Programs, SystemContext, cleanup, recover, start};
use crate::store::{Lock, Store};
use crate::volume::{self, Content};

/// How often a container is looked at anew that starts or ends at this very moment.
const ATTEMPTS: u32 = 100;

/// Calls `work` with a descriptor of the container's root directory.
///
/// # Errors
/// Those of `work`, or the container's files can't be reached.
pub fn with_root<T: Send, E: From<Error> + Send>(
    store: &Store,
    programs: &Programs,
    handle: &Handle,
    work: impl FnOnce(BorrowedFd<'_>) -> Result<T, E> + Send,
) -> Result<T, E> {
    match reach(store, programs, handle)? {
        Reached::Running(root) => work(root.as_fd()),
        Reached::Stopped(_lock) => std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let root = assemble(store, handle).map_err(|error| E::from(error.into()))?;
                work(root.as_fd())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }),
    }
}

enum Reached {
    /// Its root directory.
    Running(OwnedFd),
    /// Nobody starts it while the lock is held.
    Stopped(Lock),
}

fn reach(store: &Store, programs: &Programs, handle: &Handle) -> Result<Reached, Error> {
    recover::collect(store, programs, handle.id())?;
    for _ in 0..ATTEMPTS {
        let (state, live) = handle.live(store)?;
        if live.is_running() {
            if let Some(process) = state.process
                && let Ok(root) = open(Path::new(&format!("/proc/{}/root", process.pid)))
                // Asked afterwards: until here the pid was its own.
                && process.is_alive()
            {
                return Ok(Reached::Running(root));
            }
        } else {
            let lock = handle.lock()?;
            cleanup::finish_locked(store, programs, handle)?;
            if !handle.live(store)?.1.is_running() {
                return Ok(Reached::Stopped(lock));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(crate::container::Error::WrongStatus {
        id: handle.name().to_owned(),
        status: "changing".to_owned(),
        action: "copy",
    }
    .into())
}

/// Mounts the container's files in a mount namespace that is this thread's alone.
fn assemble(store: &Store, handle: &Handle) -> crate::container::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(std::io::Error::from)
        .system("unshare the mount namespace of", "cp")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).system("make private", "/")?;
    start::overlay(store, handle)?.mount()?;
    let merged = handle.merged();
    let root = open(&merged).system("open", &merged)?;
    let mut points: Vec<Point> = Vec::new();
    for (file, destination) in MADE_FILES {
        let source = handle.directory().join(file);
        if source.exists() {
            points.push(Point::new(source, destination, false));
        }
    }
    let is_new = handle.state()?.started.is_none();
    for volume in &handle.config.options.volumes {
        let content = Content {
            root: &merged,
            destination: &volume.destination,
        };
        // As at the first start, which would find nothing to do afterwards.
        let content = (is_new && !volume.has("nocopy")).then_some(content);
        points.extend(point(store, volume, content)?);
    }
    // As at a start: a mount below another comes after it.
    points.sort_by_key(|point| point.destination.split('/').count());
    for point in &points {
        point.mount(&root)?;
    }
    if handle.config.options.read_only {
        mount_remount(&merged, MountFlags::BIND | MountFlags::RDONLY, "")
            .system("remount read-only", &merged)?;
    }
    Ok(root)
}

/// Something that is mounted on the container's files.
struct Point {
    source: PathBuf,
    destination: String,
    read_only: bool,
    /// What `source` names, where that is a descriptor.
    _pinned: Option<OwnedFd>,
}

/// What a volume is to a container that does not run. File systems in memory are gone, and sources that are missing
/// are for a start to complain of.
fn point(
    store: &Store,
    volume: &Volume,
    content: Option<Content<'_>>,
) -> crate::container::Result<Option<Point>> {
    let subpath = volume
        .mount
        .as_ref()
        .and_then(|mount| mount.subpath.as_deref());
    let source = match &volume.source {
        VolumeSource::Path(path) => PathBuf::from(path),
        VolumeSource::Named(name) | VolumeSource::Anonymous(name) => {
            let content = content.filter(|_| subpath.is_none());
            match volume::prepare(store, name, content) {
                Ok(data) => data,
                Err(volume::Error::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        VolumeSource::Tmpfs | VolumeSource::Image(_) => return Ok(None),
    };
    let source = match subpath {
        None => source,
        Some(subpath) => {
            let top = open(&source).system("open", &source)?;
            let found = rooted::walk(&top, subpath.as_bytes()).system("open", subpath)?;
            // Nobody changes the path in here: the descriptor is what is bound.
            let path = pinned_path(&found.fd);
            return Ok(Some(Point {
                _pinned: Some(found.fd),
                ..Point::new(path, &volume.destination, volume.read_only)
            }));
        }
    };
    let there = fs::metadata(&source).is_ok();
    Ok(there.then(|| Point::new(source, &volume.destination, volume.read_only)))
}

impl Point {
    fn new(source: PathBuf, destination: &str, read_only: bool) -> Point {
        Point {
            source,
            destination: destination.to_owned(),
            read_only,
            _pinned: None,
        }
    }

    /// Binds it, by descriptors only: another container that has a volume of this one's may exchange directories for
    /// links in it at any moment (CVE-2026-42306).
    fn mount(&self, root: &OwnedFd) -> crate::container::Result<()> {
        let is_directory = fs::metadata(&self.source)
            .system("stat", &self.source)?
            .is_dir();
        let target = ensure(root, &self.destination, is_directory)
            .system("make the mount point", &self.destination)?;
        mount_bind_recursive(&self.source, pinned_path(&target)).system("bind", &self.source)?;
        if self.read_only {
            let mounted = rooted::open(root, self.destination.as_bytes(), OFlags::PATH)
                .system("open", &self.destination)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(pinned_path(&mounted), flags, "")
                .system("remount read-only", &self.destination)?;
        }
        Ok(())
    }
}

fn pinned_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

/// Opens a mount point, making what a container that was never started has not got yet.
fn ensure(root: &OwnedFd, path: &str, is_directory: bool) -> std::io::Result<OwnedFd> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut done = String::new();
    let mut here = rooted::open(root, b"/", OFlags::PATH)?;
    for (index, name) in names.iter().enumerate() {
        done.push('/');
        done.push_str(name);
        let opened = match rooted::open(root, done.as_bytes(), OFlags::PATH) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make(&here, name, is_directory || index + 1 < names.len())?;
                rooted::open(root, done.as_bytes(), OFlags::PATH)?
            }
            other => other?,
        };
        here = opened;
    }
    let found = FileType::from_raw_mode(fstat(&here)?.st_mode) == FileType::Directory;
    if found == is_directory {
        Ok(here)
    } else {
        Err(Errno::NOTDIR.into())
    }
}

fn make(parent: &OwnedFd, name: &str, is_directory: bool) -> rustix::io::Result<()> {
    if is_directory {
        return mkdirat(parent, name, Mode::from_raw_mode(0o755));
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}
