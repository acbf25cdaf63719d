//! Paths that are resolved inside a directory, as if it were `/`.
//!
//! What an image holds is hostile: `/etc/passwd` may be a symbolic link to the
//! host's, a parent directory a chain of links that leaves the tree. Here every
//! component is looked up relative to a descriptor; absolute links and `..` end
//! at the root given. `openat2(2)` does it in one call where the kernel has it (5.6);
//! elsewhere, and where a link is in the way and the real path is wanted, a walk
//! component by component does.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// The kernel's own limit on links in one path.
const MAX_LINKS: u32 = 40;

/// Something found inside a root.
#[derive(Debug)]
pub struct Found {
    /// A descriptor, opened with `O_PATH`.
    pub fd: OwnedFd,
    /// Its path relative to the root, free of links; empty for the root itself.
    pub path: Vec<u8>,
}

/// Walks `path` inside `root`, following links within it, the last one too.
///
/// # Errors
/// As `open(2)`: missing, not a directory, too many links.
pub fn walk(root: impl AsFd, path: &[u8]) -> io::Result<Found> {
    let root = root.as_fd();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut stack: Vec<(OwnedFd, Vec<u8>)> = Vec::new();
    let mut left: VecDeque<Vec<u8>> = components(path);
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == b".." {
            // Our own stack says what is above, so a directory moved meanwhile changes nothing.
            stack.pop();
            continue;
        }
        let here = stack.last().map_or(root, |(fd, _)| fd.as_fd());
        let fd = openat(here, &name[..], flags, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&fd, c"", Vec::new())?.into_bytes();
                if target.starts_with(b"/") {
                    stack.clear();
                }
                for part in components(&target).into_iter().rev() {
                    left.push_front(part);
                }
            }
            FileType::Directory => stack.push((fd, name)),
            _ if left.is_empty() => stack.push((fd, name)),
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    let names: Vec<&[u8]> = stack.iter().map(|(_, name)| &name[..]).collect();
    let path = names.join(&b'/');
    let fd = match stack.pop() {
        Some((fd, _)) => fd,
        None => openat(root, c".", flags, Mode::empty())?,
    };
    Ok(Found { fd, path })
}

/// Opens what `path` leads to inside `root`, following links within it.
///
/// `flags` must not create anything.
///
/// # Errors
/// As `open(2)`.
pub fn open(root: impl AsFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let flags = flags | OFlags::CLOEXEC;
    let relative = components(path);
    let parts: Vec<&[u8]> = relative.iter().map(Vec::as_slice).collect();
    let joined = if parts.is_empty() {
        b".".to_vec()
    } else {
        parts.join(&b'/')
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, &joined[..], flags, Mode::empty(), resolve) {
        // No openat2(2), one that a filter forbids, or a rename got in its way.
        Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN) => {}
        other => return Ok(other?),
    }
    let found = walk(root, path)?;
    reopen(found.fd.as_fd(), flags)
}

/// Opens a regular file for reading; anything else, a FIFO or a device, is refused unopened.
///
/// # Errors
/// As `open(2)`; `InvalidInput` for what is no regular file.
pub fn open_file(root: impl AsFd, path: &[u8]) -> io::Result<File> {
    let pinned = open(root, path, OFlags::PATH)?;
    let kind = FileType::from_raw_mode(fstat(&pinned)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    reopen(pinned.as_fd(), OFlags::RDONLY).map(File::from)
}

/// Opens once more, with other flags, what a descriptor pins.
///
/// # Errors
/// As `open(2)`.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    if flags.contains(OFlags::PATH) {
        return fd.try_clone_to_owned();
    }
    let path = proc_path(fd);
    // The link in /proc is the one link that is meant to be followed.
    let flags = (flags | OFlags::CLOEXEC) - OFlags::NOFOLLOW;
    Ok(openat(rustix::fs::CWD, path, flags, Mode::empty())?)
}

/// The name under which a descriptor can be opened or changed again.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The parts of a path that name something, `..` included.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// A root beside a secret, and a handle on the root.
    fn tree() -> (tempfile::TempDir, File) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/x"), "inside").unwrap();
        fs::write(directory.path().join("secret"), "outside").unwrap();
        for (target, name) in [
            ("usr/lib", "lib"),
            ("/usr/lib", "abs"),
            ("../../../../usr", "up"),
            ("up/lib/x", "chain"),
            ("loop", "loop"),
            ("../secret", "leak"),
            ("/proc/self/root/etc/passwd", "magic"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let handle = File::open(&root).unwrap();
        (directory, handle)
    }

    #[test]
    fn links_stay_inside() {
        let (_directory, root) = tree();
        let cases: [(&str, Option<&str>); 14] = [
            ("usr/lib/x", Some("usr/lib/x")),
            ("/usr//lib/./x", Some("usr/lib/x")),
            ("lib/x", Some("usr/lib/x")),
            ("abs/x", Some("usr/lib/x")),
            ("up/lib/x", Some("usr/lib/x")),
            ("chain", Some("usr/lib/x")),
            ("../../usr", Some("usr")),
            ("", Some("")),
            ("/", Some("")),
            ("loop", None),
            ("leak", None),
            ("../secret", None),
            ("magic", None),
            ("usr/lib/x/y", None),
        ];
        for (path, expected) in cases {
            let found = walk(&root, path.as_bytes()).ok();
            let found = found.map(|found| String::from_utf8(found.path).unwrap());
            assert_eq!(found.as_deref(), expected, "{path}");
            let opened = open(&root, path.as_bytes(), OFlags::PATH);
            assert_eq!(opened.is_ok(), expected.is_some(), "{path}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let (directory, root) = tree();
        let fifo = directory.path().join("root/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        symlink("/dev/zero", directory.path().join("root/zero")).unwrap();
        for path in ["fifo", "usr", "zero", "leak"] {
            assert!(open_file(&root, path.as_bytes()).is_err(), "{path}");
        }
        assert!(open_file(&root, b"chain").is_ok());
    }
}
