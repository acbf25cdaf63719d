//! A container's whole file system as one archive.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bundle_tools::layer::diff;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::find::Handle;
use super::overlay::{self, Overlay};
use super::{Error, Result, SystemContext};
use crate::image;
use crate::store::Store;

/// Writes the container's files as a tar archive: what its image has and what it has changed, without what is mounted
/// over that. One that runs goes on running.
///
/// # Errors
/// When the files can't be read, or the archive can't be written.
pub fn export(store: &Store, handle: &Handle, out: impl Write) -> Result<()> {
    let tree = Tree::open(store, handle)?;
    // A copy of what may be at work, and no layer.
    let options = diff::Options {
        plain: true,
        ..diff::Options::default()
    };
    diff::write_tree_at(&tree.root, out, &options).map_err(|source| Error::Export {
        container: handle.name().to_owned(),
        source,
    })?;
    Ok(())
}

/// A container's merged file system, open for reading.
struct Tree {
    root: OwnedFd,
    /// Mounted for us alone, there, until we are done.
    mounted: Option<PathBuf>,
    _lock: Option<crate::store::Lock>,
}

impl Tree {
    fn open(store: &Store, handle: &Handle) -> Result<Tree> {
        // While it runs its own mount is there; nobody but its init sees what is mounted inside of that.
        let (_, live) = handle.live(store)?;
        if live.is_running() {
            return Ok(Tree {
                root: directory(handle.merged())?,
                mounted: None,
                _lock: None,
            });
        }
        let lock = handle.lock()?;
        let mut layers = Vec::new();
        if handle.upper().is_dir() {
            layers.push(handle.upper());
        }
        let id = handle.config.image_id.to_string();
        let image = image::find(store, &id)?.ok_or_else(|| {
            Error::Invalid(format!(
                "the image of container {} has been removed",
                handle.name()
            ))
        })?;
        layers.extend(image::lower_directories(store, &image)?);
        let (root, mounted) = match &layers[..] {
            // A container of an empty image that was never started has no file at all.
            [] => {
                crate::store::make_dir(&handle.upper())?;
                (directory(handle.upper())?, None)
            }
            [only] => (directory(only.clone())?, None),
            _ => match overlay::detached(&layers) {
                Ok(root) => (root, None),
                Err(_) => {
                    // A kernel before 6.5. The container's own tear-down takes the mount away if we are killed.
                    let overlay = Overlay {
                        lower: layers.split_off(1),
                        upper: handle.upper(),
                        work: handle.work(),
                        merged: handle.merged(),
                    };
                    overlay.mount()?;
                    (directory(handle.merged())?, Some(handle.merged()))
                }
            },
        };
        Ok(Tree {
            root,
            mounted,
            _lock: Some(lock),
        })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some(path) = &self.mounted {
            // What stays mounted is the next start's or removal's business, which know how.
            let _ = overlay::unmount_all(path);
        }
    }
}

fn directory(path: PathBuf) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).system("open", &path)
}
