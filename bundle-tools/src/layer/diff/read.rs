//! Nodes of a tree being read, each held by a descriptor.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    Dir, FileType, Mode, OFlags, Stat, fstat, getxattr, listxattr, openat, readlinkat,
};
use rustix::io::Errno;

use super::Error;
use crate::rooted::proc_path;

/// The longest list of attribute names, and the longest value, that the kernel has.
const MAX_XATTR: usize = 64 << 10;

/// Extended attributes: names and values.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// A file of any kind, pinned: it can be renamed meanwhile, but not exchanged.
pub(super) struct Node {
    fd: OwnedFd,
    pub(super) stat: Stat,
    /// Path relative to the root; empty for the root itself.
    pub(super) path: Vec<u8>,
    /// Read when first asked for.
    xattrs: OnceCell<Xattrs>,
}

/// Opens the root of a tree.
pub(super) fn open_root(path: &Path) -> Result<Node, Error> {
    root(rustix::fs::CWD, path)
}

/// Opens the root of a tree by a descriptor of it.
pub(super) fn reopen_root(fd: BorrowedFd<'_>) -> Result<Node, Error> {
    root(fd, Path::new("."))
}

fn root(at: BorrowedFd<'_>, path: &Path) -> Result<Node, Error> {
    let failed = |error: Errno| Error::read("open", path.as_os_str().as_bytes())(error);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(at, path, flags, Mode::empty()).map_err(failed)?;
    let stat = fstat(&fd).map_err(failed)?;
    Ok(Node {
        fd,
        stat,
        path: Vec::new(),
        xattrs: OnceCell::new(),
    })
}

impl Node {
    /// What a descriptor pins, under a path of the caller's.
    pub(super) fn pinned(fd: OwnedFd, path: &[u8]) -> Result<Node, Error> {
        let stat = fstat(&fd).map_err(Error::read("stat", path))?;
        Ok(Node {
            fd,
            stat,
            path: path.to_vec(),
            xattrs: OnceCell::new(),
        })
    }

    /// Opens what a directory has under a name.
    pub(super) fn child(&self, name: &[u8]) -> Result<Node, Error> {
        let path = self.join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            openat(&self.fd, name, flags, Mode::empty()).map_err(Error::read("open", &path))?;
        let stat = fstat(&fd).map_err(Error::read("stat", &path))?;
        Ok(Node {
            fd,
            stat,
            path,
            xattrs: OnceCell::new(),
        })
    }

    /// As [`Node::child`]; `None` when there is nothing of that name.
    pub(super) fn find_child(&self, name: &[u8]) -> Result<Option<Node>, Error> {
        match self.child(name) {
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    pub(super) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() {
            name.to_vec()
        } else {
            [&self.path, &b"/"[..], name].concat()
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// A whiteout in overlayfs's form.
    pub(super) fn is_whiteout(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.stat.st_rdev == 0
    }

    /// The names in a directory, sorted.
    pub(super) fn names(&self) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |error: Errno| Error::read("list", &self.path)(error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, c".", flags, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens a regular file's content.
    pub(super) fn content(&self) -> Result<File, Error> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let path = proc_path(self.fd.as_fd());
        openat(rustix::fs::CWD, path, flags, Mode::empty())
            .map(File::from)
            .map_err(Error::read("open", &self.path))
    }

    /// A symbolic link's target.
    pub(super) fn target(&self) -> Result<Vec<u8>, Error> {
        readlinkat(&self.fd, c"", Vec::new())
            .map(std::ffi::CString::into_bytes)
            .map_err(Error::read("read link", &self.path))
    }

    /// All extended attributes, sorted by name.
    pub(super) fn xattrs(&self) -> Result<&Xattrs, Error> {
        if let Some(xattrs) = self.xattrs.get() {
            return Ok(xattrs);
        }
        let xattrs = self.read_xattrs()?;
        Ok(self.xattrs.get_or_init(|| xattrs))
    }

    /// One extended attribute.
    pub(super) fn xattr(&self, name: &str) -> Result<Option<&[u8]>, Error> {
        let mut xattrs = self.xattrs()?.iter();
        let found = xattrs.find(|(known, _)| known == name.as_bytes());
        Ok(found.map(|(_, value)| &value[..]))
    }

    fn read_xattrs(&self) -> Result<Xattrs, Error> {
        // A descriptor opened with O_PATH has no attributes of its own; the name in
        // /proc leads to what it pins, and no further, a symbolic link included.
        let path = proc_path(self.fd.as_fd());
        let failed = |error: Errno| Error::read("read attributes of", &self.path)(error);
        let mut names = Vec::new();
        match grow(&mut names, 256, |buffer| listxattr(&path, buffer)) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        }
        let mut xattrs = Vec::new();
        for name in names
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = Vec::new();
            match grow(&mut value, 256, |buffer| getxattr(&path, name, buffer)) {
                // Removed meanwhile.
                Err(Errno::NODATA) => continue,
                other => other.map_err(failed)?,
            }
            xattrs.push((name.to_vec(), value));
        }
        xattrs.sort_unstable();
        Ok(xattrs)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Fills a vector by a call that fails with ERANGE when the room is too small.
fn grow(
    bytes: &mut Vec<u8>,
    room: usize,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<()> {
    for room in [room, MAX_XATTR] {
        bytes.resize(room, 0);
        match call(bytes) {
            Ok(length) => {
                bytes.truncate(length);
                return Ok(());
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::RANGE)
}
