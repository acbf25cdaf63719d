//! The `U` option: what is mounted becomes the property of the container's user.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, openat};
use rustix::io::Errno;

use crate::container::{Result, SystemContext};

/// Gives a file, or a directory and everything below it, to the user of the process.
pub(super) fn to_user_of(spec: &Spec, path: &Path) -> Result<()> {
    let Some(process) = spec.process() else {
        return Ok(());
    };
    let owner = (
        Uid::from_raw(process.user().uid()),
        Gid::from_raw(process.user().gid()),
    );
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = openat(CWD, path, flags, Mode::empty()).system("open", path)?;
    give(top.as_fd(), owner).system("change the owner of", path)
}

/// By descriptors only: nothing that lies in the directory can lead out of it.
fn give(node: BorrowedFd<'_>, owner: (Uid, Gid)) -> rustix::io::Result<()> {
    let (uid, gid) = owner;
    chownat(node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    if FileType::from_raw_mode(fstat(node)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(node, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&directory, name, flags, Mode::empty()) {
            Ok(child) => give(child.as_fd(), owner)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
