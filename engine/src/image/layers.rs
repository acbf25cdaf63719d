//! Unpacked layers: `layers/<chain id>/diff`, each the lower directory of overlay mounts.
//!
//! A layer is unpacked into `layers/tmp-…` and renamed when it is complete, so a directory with a chain id for a name
//! always holds the whole layer. That holds across a power cut too: until the file system has been synced the
//! directory carries the file `fresh` with the boot's id in it, and one that is fresh from another boot counts for
//! nothing.
//!
//! Whoever unpacks holds a `flock` on the file `lock` in the temporary directory, whose name follows from the chain
//! id: a second pull of the same layer waits and then finds the work done; and a temporary directory whose lock is
//! free was left by somebody who was killed.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bundle_tools::Digest;
use bundle_tools::layer::apply;
use bundle_tools::layout::Layout;

use super::{Image, Result, WriterGuard, find, sync, unpack};
use crate::store::{self, Context, Lock, Store};

/// What the names of unfinished (and of doomed) layers start with.
pub(crate) const TEMPORARY: &str = "tmp-";
/// The directory that overlay gets.
pub(crate) const DIFF: &str = "diff";
/// Bytes of file content, in decimal.
const SIZE: &str = "size";
/// There until the layer has reached the disk.
const FRESH: &str = "fresh";
/// Directories that the layer has no entry for, a NUL behind each; there until they are as the layers below have them.
const IMPLIED: &str = "implied";
/// Held by whoever works in a temporary directory.
const LOCK: &str = "lock";

/// Where an unpacked layer is, or would be.
#[must_use]
pub fn directory(store: &Store, chain: &Digest) -> PathBuf {
    store.layers().join(chain.hex())
}

/// The image's layers as overlay's `lowerdir` wants them: highest first.
///
/// One that is missing is unpacked again from its blob.
///
/// # Errors
/// When a missing layer can't be unpacked.
pub fn lower_directories(store: &Store, image: &Image) -> Result<Vec<PathBuf>> {
    let paths = || -> Vec<PathBuf> {
        let diff = |chain| directory(store, chain).join(DIFF);
        image.layers.iter().rev().map(diff).collect()
    };
    let found = paths();
    if found.iter().all(|path| path.is_dir()) {
        return Ok(found);
    }
    restore(store, image)?;
    Ok(found)
}

/// Unpacks what is missing of an image.
fn restore(store: &Store, image: &Image) -> Result<()> {
    let _guard = WriterGuard::take(store)?;
    let layout = super::layout(store)?;
    let (_, manifest) = find::read_manifest(&layout, &image.manifest)?;
    let diff_ids = &image.config.rootfs.diff_ids;
    for ((chain, diff_id), layer) in image.layers.iter().zip(diff_ids).zip(&manifest.layers) {
        if let Claim::Ours(slot) = claim(store, chain)? {
            from_blob(&layout, &layer.digest, slot, diff_id)?;
        }
    }
    inherit(store, &image.layers)?;
    sync(store)?;
    settle(store, &image.layers)
}

/// Unpacks a layer out of the blob that is there.
pub(super) fn from_blob(
    layout: &Layout,
    blob: &Digest,
    slot: Slot,
    diff_id: &Digest,
) -> Result<()> {
    let file = layout.open_blob(blob)?;
    let reader = std::io::BufReader::with_capacity(1 << 17, file);
    let unpacked = unpack::unpack(reader, &slot.diff(), diff_id)?;
    slot.note_implied(&unpacked.implied)?;
    slot.finish(unpacked.bytes)
}

/// Gives directories that a layer only implies (it has something in them, but no entry for them) the owner, mode and
/// time they have in the layers below. To be called when all layers of an image are there, before the sync.
///
/// Layers are unpacked side by side and know nothing of each other until then. Doing it twice, or by two processes at
/// once, comes to the same.
pub(super) fn inherit(store: &Store, chains: &[Digest]) -> Result<()> {
    for (position, chain) in chains.iter().enumerate() {
        let list = directory(store, chain).join(IMPLIED);
        let names = match fs::read(&list) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other.context("read", &list)?,
        };
        let names = names
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty());
        let implied: Vec<PathBuf> = names
            .map(|name| PathBuf::from(OsStr::from_bytes(name)))
            .collect();
        let diff = |chain| directory(store, chain).join(DIFF);
        let lowers: Vec<PathBuf> = chains[..position].iter().rev().map(diff).collect();
        let path = diff(chain);
        let root = fs::File::open(&path).context("open", &path)?;
        apply::inherit(&root, &lowers, &implied)
            .map_err(|source| unpack::Error::Apply { path, source })?;
        remove_file(&list)?;
    }
    Ok(())
}

/// Bytes of file content in all unpacked layers.
///
/// # Errors
/// When the directory of layers can't be read.
pub fn total_size(store: &Store) -> Result<u64> {
    let layers = store.layers();
    let mut total = 0;
    for entry in fs::read_dir(&layers).context("list", &layers)? {
        let path = entry.context("list", &layers)?.path().join(SIZE);
        let text = fs::read_to_string(path).unwrap_or_default();
        total += text.trim().parse().unwrap_or(0);
    }
    Ok(total)
}

/// Bytes of a layer's file content; 0 when it is not unpacked.
#[must_use]
pub fn size(store: &Store, chain: &Digest) -> u64 {
    let text = fs::read_to_string(directory(store, chain).join(SIZE)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Whether a layer is there, whole, and will be after a power cut once the file system is synced.
pub(crate) fn is_ready(store: &Store, chain: &Digest) -> Result<bool> {
    let directory = directory(store, chain);
    if !directory.join(DIFF).is_dir() {
        return Ok(false);
    }
    match fs::read_to_string(directory.join(FRESH)) {
        Ok(boot) => Ok(boot == boot_id()?),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) => Ok(Err(error).context("read", &directory.join(FRESH))?),
    }
}

/// Marks layers as having reached the disk. To be called after the sync and before `index.json` mentions them.
pub(super) fn settle(store: &Store, chains: &[Digest]) -> Result<()> {
    for chain in chains {
        remove_file(&directory(store, chain).join(FRESH))?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Ok(Err(error).context("remove", path)?)
        }
        _ => Ok(()),
    }
}

/// What came of wanting to unpack a layer.
#[derive(Debug)]
pub(super) enum Claim {
    /// It is there already.
    Ready,
    /// It is ours to unpack.
    Ours(Slot),
}

/// A temporary directory that becomes a layer; removed when it is dropped before.
#[derive(Debug)]
pub(super) struct Slot {
    layers: PathBuf,
    temporary: PathBuf,
    /// `None` while the chain id is not known.
    chain: Option<Digest>,
    finished: bool,
    _lock: Lock,
}

/// Claims a layer, waiting for whoever is at it.
pub(super) fn claim(store: &Store, chain: &Digest) -> Result<Claim> {
    let temporary = store.layers().join(format!("{TEMPORARY}{}", chain.hex()));
    loop {
        if is_ready(store, chain)? {
            return Ok(Claim::Ready);
        }
        if let Some(slot) = Slot::open(store, temporary.clone(), Some(chain.clone()))? {
            // Whoever held the lock before may have finished while we waited.
            if is_ready(store, chain)? {
                return Ok(Claim::Ready);
            }
            discard(store, &directory(store, chain))?;
            return Ok(Claim::Ours(slot));
        }
    }
}

/// A place for a layer whose chain id will be known at its end.
pub(super) fn anonymous(store: &Store) -> Result<Slot> {
    for attempt in 0_u32.. {
        let name = format!("{TEMPORARY}new-{}-{attempt}", std::process::id());
        let path = store.layers().join(name);
        if path.exists() {
            continue;
        }
        if let Some(slot) = Slot::open(store, path, None)? {
            return Ok(slot);
        }
    }
    unreachable!("some number is free")
}

impl Slot {
    /// Takes the lock in the temporary directory and empties it. `None`: it was renamed or removed meanwhile.
    fn open(store: &Store, temporary: PathBuf, chain: Option<Digest>) -> Result<Option<Slot>> {
        store::make_dir(&temporary)?;
        let lock = match Lock::exclusive(&temporary.join(LOCK)) {
            Ok(lock) if lock.is_at(&temporary.join(LOCK)) => lock,
            Ok(_) => return Ok(None),
            Err(_) if !temporary.exists() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let slot = Slot {
            layers: store.layers(),
            temporary,
            chain,
            finished: false,
            _lock: lock,
        };
        remove_tree(&slot.diff())?;
        // 0755 as an image's root directory is unless the image says otherwise; `layers` above it is 0700.
        fs::create_dir(slot.diff()).context("make directory", &slot.diff())?;
        fs::set_permissions(slot.diff(), fs::Permissions::from_mode(0o755))
            .context("set the mode of", &slot.diff())?;
        Ok(Some(slot))
    }

    /// Where to unpack.
    pub(super) fn diff(&self) -> PathBuf {
        self.temporary.join(DIFF)
    }

    /// Writes down which directories are to be completed by [`inherit`].
    pub(super) fn note_implied(&self, implied: &[PathBuf]) -> Result<()> {
        if implied.is_empty() {
            return Ok(());
        }
        let mut names = Vec::new();
        for path in implied {
            names.extend_from_slice(path.as_os_str().as_bytes());
            names.push(0);
        }
        let list = self.temporary.join(IMPLIED);
        Ok(fs::write(&list, names).context("write", &list)?)
    }

    /// Makes the directory the layer of its chain id.
    pub(super) fn finish(self, bytes: u64) -> Result<()> {
        let chain = self.chain.clone();
        match chain {
            Some(chain) => self.finish_as(&chain, bytes),
            None => Ok(()),
        }
    }

    /// Makes the directory the layer `chain`. When that is there already, ours is the superfluous one.
    pub(super) fn finish_as(mut self, chain: &Digest, bytes: u64) -> Result<()> {
        let write = |name: &str, content: &str| {
            let path = self.temporary.join(name);
            fs::write(&path, content).context("write", &path)
        };
        write(SIZE, &bytes.to_string())?;
        write(FRESH, &boot_id()?)?;
        let target = self.layers.join(chain.hex());
        match fs::rename(&self.temporary, &target) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
                ) =>
            {
                return Ok(());
            }
            Err(error) => Err(error).context("rename", &self.temporary)?,
        }
        self.finished = true;
        // Those who wait for the lock see that it is not where they opened it. Left behind, it harms nobody.
        drop(fs::remove_file(target.join(LOCK)));
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.finished {
            drop(remove_temporary(&self.temporary));
        }
    }
}

/// Removes layers: those that `keep` does not want, and those that killed commands left unfinished.
///
/// Only for a caller that knows that nobody adds layers.
pub(super) fn remove_except(store: &Store, keep: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let layers = store.layers();
    for entry in fs::read_dir(&layers).context("list", &layers)? {
        let entry = entry.context("list", &layers)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) {
            if let Some(_lock) = Lock::try_exclusive(&entry.path().join(LOCK))? {
                remove_temporary(&entry.path())?;
            }
        } else if !keep(&name) {
            discard(store, &entry.path())?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Removes a layer so that nobody ever sees it in parts.
fn discard(store: &Store, layer: &Path) -> Result<()> {
    let name = layer.file_name().unwrap_or_default().to_string_lossy();
    let doomed = store
        .layers()
        .join(format!("{TEMPORARY}gone-{}-{name}", std::process::id()));
    match fs::rename(layer, &doomed) {
        Ok(()) => remove_tree(&doomed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Ok(Err(error).context("rename", layer)?),
    }
}

/// The lock goes last: while it is there, others know whether somebody is at work here.
fn remove_temporary(path: &Path) -> Result<()> {
    remove_tree(&path.join(DIFF))?;
    remove_tree(path)
}

fn remove_tree(path: &Path) -> Result<()> {
    Ok(bundle_tools::remove_tree(path).context("remove", path)?)
}

fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(path).context("read", path)?)
}
