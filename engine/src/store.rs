//! Where everything lies on disk, and the few ways in which it may be changed.
//!
//! ```text
//! <root>  oci-layout, index.json, blobs/sha256/…   the image store, an OCI image layout
//!         layers/<chain id>/diff                   one unpacked directory per chain id, shared by images
//!         containers/<id>/…                        one directory a container
//!         networks/<name>.json  volumes/<name>/…
//!         names/<name> -> <id>                     reservations: symbolic links, see [`reserve`]
//!         addresses/<network>/<address> -> <id>
//!         ports/<protocol>-<address>-<port> -> <id>
//!         events/journal.<number>                  what happened, see [`event`]
//! <run>   <id>/…                                   sockets, pid files: gone after a reboot, rightly
//!         exits/<id>                               exit codes as the monitor writes them
//!         runtime/                                 qrun's own state
//! ```
//!
//! There is no global lock and no database. A durable file is replaced as a whole ([`write_atomic`]); a name, address
//! or port is taken by creating a link that only one can create ([`reserve`]); work on one object is serialised by a
//! `flock` on that object ([`Lock`]).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub mod event;
mod lock;
pub mod reserve;
pub mod size;
pub mod time;

pub use event::{Event, Kind};
pub use lock::Lock;

/// What can go wrong while the store itself is read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the store could not be handled.
    #[error("cannot {action} {path}")]
    File {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the store does not hold what it should.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the parser gave up.
        source: serde_json::Error,
    },
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds what was attempted, and on what, to an [`io::Error`].
pub trait Context<T> {
    /// Turns the error into [`Error::File`].
    ///
    /// # Errors
    /// The error itself, with `action` and `path` added.
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|error| Error::File {
            action,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}

/// Whether a user may give that name to an object, and a file of the store be called by it: podman's rule,
/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*` (docker wants a second character).
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// The two directories that hold everything the engine knows.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    run: PathBuf,
}

impl Store {
    /// Opens the store, making its directories on first use (mode 0700: what is below belongs to containers and may
    /// hold set-uid files that the host's users must not reach, CVE-2021-41091).
    ///
    /// # Errors
    /// When a directory can be neither found nor made.
    pub fn open(root: impl Into<PathBuf>, run: impl Into<PathBuf>) -> Result<Store> {
        let store = Store {
            root: root.into(),
            run: run.into(),
        };
        // One look-up is enough when the store is there; the directories are made in this order, the last one last.
        if store.exits().is_dir() && store.names().is_dir() {
            return Ok(store);
        }
        for directory in [
            store.root.clone(),
            store.layers(),
            store.containers(),
            store.networks(),
            store.volumes(),
            store.addresses(),
            store.ports(),
            store.names(),
            store.run.clone(),
            store.runtime_root(),
            store.exits(),
        ] {
            make_dir(&directory)?;
        }
        Ok(store)
    }

    /// The durable directory; also the root of the OCI image layout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory that does not outlive a reboot.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Unpacked layers, one directory per chain id.
    #[must_use]
    pub fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Containers, one directory per id.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// One container's directory.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// One container's directory of sockets and pid files.
    #[must_use]
    pub fn container_run(&self, id: &str) -> PathBuf {
        self.run.join(id)
    }

    /// Networks, one file per name.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// Named volumes.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Reserved container names.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.root.join("names")
    }

    /// Reserved addresses, one directory per network.
    #[must_use]
    pub fn addresses(&self) -> PathBuf {
        self.root.join("addresses")
    }

    /// Reserved host ports.
    #[must_use]
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    /// Exit codes, one file per container, written by `qshim`.
    #[must_use]
    pub fn exits(&self) -> PathBuf {
        self.run.join("exits")
    }

    /// The `--root` that `qrun` is given.
    #[must_use]
    pub fn runtime_root(&self) -> PathBuf {
        self.run.join("runtime")
    }
}

/// Makes a directory of mode 0700 and its parents; one that is there already is fine.
///
/// # Errors
/// When it is not there afterwards.
pub fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context("make directory", path)
}

/// Whether a write has to survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `fsync` before the rename: after a crash the file is the old one or the new one.
    Durable,
    /// Atomic for readers only. For what is worth nothing after a reboot.
    Volatile,
}

/// Replaces a file as a whole: readers see the old content or the new, never a part. Mode 0600.
///
/// # Errors
/// When the temporary file beside it can't be written or renamed; the old file then stands.
pub fn write_atomic(path: &Path, content: &[u8], durability: Durability) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        match durability {
            Durability::Durable => {
                file.sync_all()?;
                fs::rename(&temporary, path)
            }
            Durability::Volatile => replace_without_flush(&temporary, path),
        }
    };
    write()
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .context("write", path)
}

/// Puts `fresh` in the place of `path`. By an exchange where there is something to replace: a plain rename over a file
/// makes ext4 write the new one's blocks at once (`auto_da_alloc`, 1 to 4 ms), for a promise that nobody asked for here.
fn replace_without_flush(fresh: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, fresh, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => fs::remove_file(fresh),
        // Nothing to replace, or a file system that can't exchange.
        Err(_) => fs::rename(fresh, path),
    }
}

/// Replaces a JSON file as a whole; see [`write_atomic`].
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: serde::Serialize>(
    path: &Path,
    value: &T,
    durability: Durability,
) -> Result<()> {
    let content = serde_json::to_vec(value).map_err(|source| Error::Damaged {
        path: path.to_owned(),
        source,
    })?;
    write_atomic(path, &content, durability)
}

/// Reads a JSON file; `None` when there is no such file.
///
/// # Errors
/// When it can't be read, or is not the JSON it should be.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.context("read", path)?,
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|source| Error::Damaged {
            path: path.to_owned(),
            source,
        })
}
