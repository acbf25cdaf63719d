//! Member files: `<run>/network/<bridge>/<container id>`.
//!
//! One says that the container is, or is about to be, a port of that bridge, and with which ports published. It is
//! written before the kernel is changed and removed afterwards, so whatever is in the kernel can be found and undone
//! whoever was killed when. The bridge's directory is there before the bridge, and goes after it.

use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names::Identity;
use super::{Attachment, PublishedPort, Result};
use crate::store::{self, Context, Durability, Store};

/// What a member file holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Member {
    /// The container's place on the bridge.
    pub(super) attachment: Attachment,
    /// The ports that lead there.
    #[serde(default)]
    pub(super) ports: Vec<PublishedPort>,
    /// What the network's resolver has to know of it.
    #[serde(default)]
    pub(super) identity: Identity,
}

/// Where all of them are.
pub(super) fn directory(store: &Store) -> PathBuf {
    store.run().join("network")
}

/// The lock on all of them: shared while a single member comes or goes, exclusive while they are judged.
pub(super) fn lock_path(store: &Store) -> PathBuf {
    directory(store).join(".lock")
}

/// Where a bridge's members are.
pub(super) fn of_bridge(store: &Store, bridge: &str) -> PathBuf {
    directory(store).join(bridge)
}

/// One directory a bridge that is, or may be, there.
pub(super) fn bridges(store: &Store) -> Result<Vec<PathBuf>> {
    let entries = entries(&directory(store))?.into_iter();
    let paths = entries.map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}

/// Writes a container's member file.
pub(super) fn write(store: &Store, id: &str, member: &Member) -> Result<()> {
    let path = of_bridge(store, &member.attachment.bridge).join(id);
    Ok(store::write_json(&path, member, Durability::Volatile)?)
}

/// Removes a member file; fine when it is not there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Ok(Err(error).context("remove", path)?)
        }
        _ => Ok(()),
    }
}

/// All members in a bridge's directory, dead or alive, by container id. One that can't be read was never written in
/// full, hence never plugged in.
pub(super) fn read_all(directory: &Path) -> Result<Vec<(String, Member)>> {
    let mut members = Vec::new();
    for entry in entries(directory)? {
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        // A file that was being written when its writer was killed is named `<id>.tmp-…`, and is nobody.
        if id.contains('.') {
            continue;
        }
        if let Ok(Some(member)) = store::read_json(&entry.path()) {
            members.push((id, member));
        }
    }
    Ok(members)
}

fn entries(directory: &Path) -> Result<Vec<DirEntry>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => Ok(other
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .context("list", directory)?),
    }
}
