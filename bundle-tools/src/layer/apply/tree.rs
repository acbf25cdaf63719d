//! Directories of the tree being unpacked, by descriptor.
//!
//! Entries of an archive come in directory order, so the parent of one is nearly
//! always the parent of the one before, or was just made: the descriptors
//! are kept, under the path the archive used. What a kept path means changes only
//! when a link or directory on it goes; whoever removes one calls [`Tree::forget`].

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    Mode, OFlags, ResolveFlags, Stat, Timespec, fgetxattr_query, fstat, openat, openat2,
};
use rustix::io::Errno;

use crate::rooted;

/// Descriptors kept at most; far below the usual limit of 1024, several layers at once included.
const MAX_KEPT: usize = 64;

/// A directory inside the root.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Path relative to the root, free of links; empty for the root.
    pub(super) path: Vec<u8>,
    /// Whether new files get exactly the mode asked for and our group: no
    /// default ACL, no group to inherit by a set-group-id bit or mount option.
    pub(super) plain: bool,
}

impl Directory {
    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path, &b"/"[..], name].concat()
        }
    }
}

/// A directory found on disk, not made by this application.
pub(super) struct Opened {
    pub(super) directory: Rc<Directory>,
    /// Its modification time if it was not kept already.
    pub(super) mtime: Option<Timespec>,
}

/// The root and the kept descriptors.
pub(super) struct Tree {
    root: Rc<Directory>,
    kept: HashMap<Vec<u8>, Rc<Directory>>,
    /// Cleared when the kernel has no `openat2(2)`.
    fast: bool,
}

impl Tree {
    pub(super) fn new(root: BorrowedFd<'_>) -> io::Result<Tree> {
        let fd = openat(root, c".", directory_flags(), Mode::empty())?;
        let plain = is_plain(fd.as_fd(), &fstat(&fd)?);
        Ok(Tree {
            root: Rc::new(Directory {
                fd,
                path: Vec::new(),
                plain,
            }),
            kept: HashMap::new(),
            fast: true,
        })
    }

    pub(super) fn root(&self) -> Rc<Directory> {
        Rc::clone(&self.root)
    }

    /// Opens the directory at a clean path, following links inside the root.
    pub(super) fn open(&mut self, path: &[u8]) -> io::Result<Opened> {
        if path.is_empty() {
            return Ok(Opened {
                directory: self.root(),
                mtime: None,
            });
        }
        if let Some(directory) = self.kept.get(path) {
            return Ok(Opened {
                directory: Rc::clone(directory),
                mtime: None,
            });
        }
        let (fd, real_path) = self.find(path)?;
        let stat = fstat(&fd)?;
        let directory = Rc::new(Directory {
            plain: is_plain(fd.as_fd(), &stat),
            fd,
            path: real_path,
        });
        self.keep(path, Rc::clone(&directory));
        Ok(Opened {
            directory,
            mtime: Some(modified(&stat)),
        })
    }

    /// Keeps a directory under the path by which the archive calls it.
    pub(super) fn keep(&mut self, path: &[u8], directory: Rc<Directory>) {
        if self.kept.len() >= MAX_KEPT {
            self.kept.clear();
        }
        self.kept.insert(path.to_vec(), directory);
    }

    /// Drops all kept descriptors: a link or directory was removed.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
    }

    fn find(&mut self, path: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        if self.fast {
            // Without links on the way, the path is the real one.
            let resolve =
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            // With O_NOFOLLOW a last link would be "no directory" instead of a link.
            let flags = directory_flags() - OFlags::NOFOLLOW;
            match openat2(&self.root.fd, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok((fd, path.to_vec())),
                Err(Errno::LOOP | Errno::AGAIN | Errno::ACCESS) => {}
                Err(Errno::NOSYS | Errno::PERM) => self.fast = false,
                Err(error) => return Err(error.into()),
            }
        }
        let found = rooted::walk(&self.root.fd, path)?;
        let fd = match openat(&found.fd, c".", directory_flags(), Mode::empty()) {
            // Not readable for us, but enough to make entries in.
            Err(Errno::ACCESS) => found.fd,
            other => other?,
        };
        Ok((fd, found.path))
    }
}

pub(super) fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

pub(super) fn modified(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn is_plain(fd: BorrowedFd<'_>, stat: &Stat) -> bool {
    let set_gid = Mode::from_raw_mode(stat.st_mode).contains(Mode::SGID);
    let same_group = stat.st_gid == rustix::process::getegid().as_raw();
    !set_gid && same_group && fgetxattr_query(fd, c"system.posix_acl_default").is_err()
}
