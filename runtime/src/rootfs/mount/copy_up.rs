//! `tmpcopyup`: a tmpfs that starts with what lay at its place before.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, mkdirat,
    mknodat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use crate::failure::errno_of;

/// Opens a directory for reading that is open as a path.
pub(super) fn open_directory(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    openat(
        directory,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Copies what is in a directory, without following links.
pub(super) fn copy(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        copy_entry(from, to, name, &stat)?;
    }
    Ok(())
}

/// Copies one entry with owner and permissions. Permissions are set on what was opened, never by name: a name could have
/// become a link in between.
fn copy_entry(from: impl AsFd, to: impl AsFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let (user, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // The owner first, because a change of owner takes the set-user-id bit away.
    let own = |made: &OwnedFd| {
        fchown(made, Some(user), Some(group))?;
        fchmod(made, mode)
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let target = openat(to, name, flags, Mode::empty())?;
            copy(openat(from, name, flags, Mode::empty())?, &target)?;
            own(&target)
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = openat(
                from,
                name,
                flags | OFlags::RDONLY | OFlags::NONBLOCK,
                Mode::empty(),
            )?;
            let target = openat(
                to,
                name,
                flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL,
                Mode::RUSR,
            )?;
            let mut target = File::from(target);
            let copied = std::io::copy(&mut File::from(source), &mut target);
            copied.map_err(|error| errno_of(&error))?;
            own(&target.into())
        }
        kind => {
            // The umask is empty, so these have their permissions from the beginning.
            match kind {
                FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
                _ => mknodat(to, name, kind, mode, stat.st_rdev)?,
            }
            chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_directories_and_links_are_copied() {
        let base = std::env::temp_dir().join(format!("qrun-copy-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        let (from, to) = (base.join("from"), base.join("to"));
        std::fs::create_dir_all(from.join("d/e")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/f"), "text").unwrap();
        std::fs::set_permissions(from.join("d/f"), std::fs::Permissions::from_mode(0o4751))
            .unwrap();
        symlink("/nowhere", from.join("l")).unwrap();
        copy(File::open(&from).unwrap(), File::open(&to).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("d/f")).unwrap(), "text");
        assert_eq!(
            std::fs::metadata(to.join("d/f"))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777,
            0o4751
        );
        assert!(to.join("d/e").is_dir());
        assert_eq!(
            std::fs::read_link(to.join("l")).unwrap().to_str(),
            Some("/nowhere")
        );
        std::fs::remove_dir_all(&base).unwrap();
    }
}
