//! Getting a volume ready for a container: mounted if it has to be, filled with the image's files if it is empty.
//!
//! Filling must neither put one file over another (CVE-2020-1726) nor leave a half behind when it is killed, and the
//! directory must stay the same one, since other containers may have it mounted already. So the copy is made beside it,
//! called `_ready` when it is complete, and its entries are then moved over one by one; the next user goes on where a
//! killed one stopped.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bundle_tools::rooted;
use rustix::fs::{CWD, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, openat};
use rustix::io::Errno;

use super::{DATA, Error, Result, Volume, device, home, load};
use crate::store::{self, Context, Lock, Store};

const FRESH: &str = "_fresh";
const READY: &str = "_ready";

/// What an empty volume is filled with.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    /// The container's root file system, mounted.
    pub root: &'a Path,
    /// Where in it the volume goes; resolved inside, so that no link of the image leads out (CVE-2022-23648).
    pub destination: &'a str,
}

/// Makes a volume's directory ready for use and gives its path.
///
/// # Errors
/// When there is no such volume, or it can't be mounted or filled.
pub fn prepare(store: &Store, name: &str, content: Option<Content<'_>>) -> Result<PathBuf> {
    let volume = load(store, name)?.ok_or_else(|| Error::NotFound(name.to_owned()))?;
    let data = volume.data(store);
    let ready = home(store, name).join(READY);
    let needs_mount = volume.is_mounted_on_use();
    let needs_content = content.is_some() && (is_empty(&data)? || ready.exists());
    if !needs_mount && !needs_content {
        return Ok(data);
    }
    // One at a time, and nobody removes it meanwhile.
    let _lock = super::lock(store, name, Lock::exclusive)?
        .ok_or_else(|| Error::NotFound(name.to_owned()))?;
    if needs_mount {
        device::mount(&volume, &data)?;
    }
    if let Some(content) = content {
        fill(store, &volume, content)?;
    }
    Ok(data)
}

fn is_empty(data: &Path) -> Result<bool> {
    Ok(fs::read_dir(data)
        .context("read volume", data)?
        .next()
        .is_none())
}

/// Under the volume's lock.
fn fill(store: &Store, volume: &Volume, content: Content<'_>) -> Result<()> {
    let home = home(store, &volume.name);
    let (data, fresh, ready) = (home.join(DATA), home.join(FRESH), home.join(READY));
    if !ready.exists() {
        if !is_empty(&data)? {
            return Ok(());
        }
        let Some(source) = directory_of(content)? else {
            return Ok(()); // The image has no directory there.
        };
        if volume.is_mounted_on_use() {
            // Another file system: nothing can be moved there from beside it.
            return copy(volume, &source, &data);
        }
        // What a killed one has left.
        remove(&fresh)?;
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&fresh)
            .context("make", &fresh)?;
        copy(volume, &source, &fresh).inspect_err(|_| drop(remove(&fresh)))?;
        fs::rename(&fresh, &ready).context("rename", &ready)?;
    }
    move_over(&ready, &data)?;
    remove(&ready)
}

fn copy(volume: &Volume, source: &OwnedFd, target: &Path) -> Result<()> {
    bundle_tools::layer::copy_tree(source, open(target)?).map_err(|source| Error::Fill {
        name: volume.name.clone(),
        source,
    })
}

/// Moves everything of `from` to `to`, and gives `to` the owner and mode of `from`. What is there already stays.
fn move_over(from: &Path, to: &Path) -> Result<()> {
    let (source, target) = (open(from)?, open(to)?);
    for entry in fs::read_dir(from).context("read", from)? {
        let name = entry.context("read", from)?.file_name();
        match rustix::fs::renameat_with(&source, &name, &target, &name, RenameFlags::NOREPLACE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).context("fill volume", to).map_err(Into::into),
        }
    }
    let stat = fstat(&source).context("stat", from)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(&target, Some(uid), Some(gid)).context("chown", to)?;
    fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777)).context("chmod", to)?;
    Ok(())
}

/// The image's directory at the volume's place, resolved inside its root.
fn directory_of(content: Content<'_>) -> Result<Option<OwnedFd>> {
    let root = open(content.root)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match rooted::open(&root, content.destination.as_bytes(), flags) {
        Ok(directory) => Ok(Some(directory)),
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error)
            .context("open", Path::new(content.destination))
            .map_err(Into::into),
    }
}

fn open(path: &Path) -> store::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).context("open", path)
}

fn remove(path: &Path) -> Result<()> {
    Ok(bundle_tools::remove_tree(path).context("remove", path)?)
}
