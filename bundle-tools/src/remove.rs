//! Removing a directory tree that somebody else has made, however deep it is.
//!
//! [`std::fs::remove_dir_all`] holds one descriptor a level. A container can nest directories deeper than a process may
//! have descriptors, and an image's layer as well; such a tree is made flat first.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, statat};
use rustix::io::Errno;

/// Levels that are removed as they are; what is below is moved to the top.
const LEVELS: usize = 64;

/// Removes a directory and all that is in it, following no links. One that is not there is fine.
///
/// # Errors
/// When something can't be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error)
            if [Errno::MFILE, Errno::NFILE, Errno::NAMETOOLONG]
                .iter()
                .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            flatten(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// Moves every directory at the lowest level that is allowed to the top, again and again until none is left there.
fn flatten(path: &Path) -> io::Result<()> {
    let top = open(CWD, path.as_os_str().as_encoded_bytes())?;
    let mut moved = 0_u64;
    loop {
        let before = moved;
        lift(&top, &top, LEVELS, &mut moved)?;
        if moved == before {
            return Ok(());
        }
    }
}

fn open(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn lift(top: &OwnedFd, directory: &OwnedFd, levels: usize, moved: &mut u64) -> io::Result<()> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && is_directory(directory, &entry)? {
            names.push(name.to_vec());
        }
    }
    for name in names {
        if levels > 0 {
            lift(top, &open(directory, &name)?, levels - 1, moved)?;
            continue;
        }
        loop {
            *moved += 1;
            match renameat(directory, name.as_slice(), top, format!(".deep-{moved}")) {
                // A name of the tree's own.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                other => break other?,
            }
        }
    }
    Ok(())
}

fn is_directory(parent: &OwnedFd, entry: &rustix::fs::DirEntry) -> rustix::io::Result<bool> {
    Ok(match entry.file_type() {
        FileType::Unknown => {
            let stat = statat(parent, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory
        }
        kind => kind == FileType::Directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes `depth` directories, each in the one before.
    fn nest(top: &Path, depth: usize) {
        let mut at = open(CWD, top.as_os_str().as_encoded_bytes()).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o755)).unwrap();
            at = open(&at, b"d").unwrap();
        }
        rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_descriptors_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path().join("top");
        fs::create_dir(&top).unwrap();
        nest(&top, 3000);
        fs::create_dir_all(top.join("beside/it")).unwrap();
        fs::write(top.join(".deep-1"), "a name of the tree's own").unwrap();
        flatten(&top).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        remove_tree(&top).unwrap();
    }
}
