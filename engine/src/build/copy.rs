//! Writes files into the root of a stage.
//!
//! The root is an image's, so it is hostile: directories are found and made one component at a time inside of it, and
//! what is written has a name that was not there the moment before (`O_EXCL`, `mkdirat`, `symlinkat`). A link in the
//! image never leads out of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bundle_tools::rooted;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_OMIT, Uid,
    XattrFlags, chownat, fchmod, fchown, fstat, ftruncate, futimens, getxattr, linkat, listxattr,
    mkdirat, mknodat, openat, readlinkat, seek, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::ignore::Ignore;
use super::tree::{Entry, Found, Tree, is_directory, join};
use super::{Error, FileContext, Result};

/// One `read` where the kernel can't copy by itself.
const BUFFER: usize = 128 << 10;
/// The longest extended attribute the kernel has.
const MAX_XATTR: usize = 64 << 10;

/// Whose the copies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Whoever owns the source.
    Source,
    /// This user and group.
    Ids(u32, u32),
}

/// What all copies of one instruction have in common.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    pub(super) owner: Owner,
    /// The mode of files and directories alike, instead of the source's.
    pub(super) mode: Option<u32>,
    /// Paths below each source that are left out.
    pub(super) exclude: Ignore,
    /// Whether device nodes are copied: out of images they are, out of contexts not.
    pub(super) devices: bool,
}

impl Manner {
    /// Owner of directories that have to be made on the way.
    fn ids(&self) -> (u32, u32) {
        match self.owner {
            Owner::Ids(uid, gid) => (uid, gid),
            Owner::Source => (0, 0),
        }
    }
}

/// The root that is written to.
#[derive(Debug)]
pub(super) struct Target {
    root: OwnedFd,
    shown: PathBuf,
    /// Directories whose time is set at the end.
    late: Vec<(Vec<u8>, Timespec)>,
    /// First copies of files with several names, by the source's device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Target {
    pub(super) fn open(root: &Path) -> Result<Target> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(rustix::fs::CWD, root, flags, Mode::empty()).doing("open", root)?;
        Ok(Target {
            root: fd,
            shown: root.to_owned(),
            late: Vec::new(),
            linked: HashMap::new(),
        })
    }

    /// Whether there is a directory at `path`, links followed inside the root.
    pub(super) fn is_directory(&self, path: &[u8]) -> bool {
        rooted::walk(&self.root, path)
            .and_then(|found| Ok(fstat(&found.fd)?))
            .is_ok_and(|stat| is_directory(&stat))
    }

    /// Opens the directory at `path`, making what is missing of it with mode 0755.
    pub(super) fn directory(&self, path: &[u8], (uid, gid): (u32, u32)) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match rooted::open(&self.root, path, flags) {
            Ok(fd) => return Ok(fd),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing("open directory", &self.name(path)),
        }
        let (parent, name) = split(path);
        let parent = self.directory(parent, (uid, gid))?;
        let shown = self.name(path);
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            // There, and not to be opened: a link that leads nowhere in this image.
            Err(Errno::EXIST) => {
                return Err(Error::Destination {
                    path: String::from_utf8_lossy(path).into_owned(),
                    reason: "is a symbolic link that leads to nothing in the image",
                });
            }
            other => other.doing("make directory", &shown)?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&parent, name, flags, Mode::empty()).doing("open", &shown)?;
        // Whatever umask and default attributes have made of it.
        fchmod(&fd, Mode::from_raw_mode(0o755)).doing("set the mode of", &shown)?;
        own(&fd, uid, gid).doing("set the owner of", &shown)?;
        Ok(fd)
    }

    /// Copies a source to `path`: a file to this name, a directory's content into this directory.
    pub(super) fn copy(
        &mut self,
        tree: &Tree,
        found: &Found,
        path: &[u8],
        manner: &Manner,
    ) -> Result<()> {
        tree.walk(found, &manner.exclude, &mut |entry| {
            let target = if entry.path.is_empty() {
                path.to_vec()
            } else {
                join(path, &entry.path)
            };
            self.place(entry, &target, manner)
        })
    }

    /// Writes a file of this content and, unless `manner` has another, this mode.
    pub(super) fn write(
        &mut self,
        content: &mut dyn Read,
        mode: u32,
        modified: Option<i64>,
        path: &[u8],
        manner: &Manner,
    ) -> Result<()> {
        let (parent, name) = self.parent(path, manner)?;
        let shown = self.name(path);
        self.clear(&parent, &name, path)?;
        let file = create(&parent, &name).doing("create", &shown)?;
        let mut file = File::from(file);
        std::io::copy(content, &mut file).doing("write", &shown)?;
        let (uid, gid) = manner.ids();
        own(&file, uid, gid).doing("set the owner of", &shown)?;
        let mode = manner.mode.unwrap_or(mode);
        fchmod(&file, Mode::from_raw_mode(mode)).doing("set the mode of", &shown)?;
        if let Some(seconds) = modified {
            let time = Timespec {
                tv_sec: seconds,
                tv_nsec: 0,
            };
            futimens(&file, &times(time)).doing("set the time of", &shown)?;
        }
        Ok(())
    }

    /// Opens (and makes) the directory that an archive is unpacked into.
    pub(super) fn unpack_into(&self, path: &[u8], manner: &Manner) -> Result<OwnedFd> {
        self.directory(path, manner.ids())
    }

    /// Sets what had to wait: the times of directories.
    pub(super) fn finish(self) -> Result<()> {
        for (path, time) in self.late.iter().rev() {
            let shown = self.name(path);
            let fd = rooted::open(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
                .doing("open", &shown)?;
            futimens(&fd, &times(*time)).doing("set the time of", &shown)?;
        }
        Ok(())
    }

    fn name(&self, path: &[u8]) -> PathBuf {
        self.shown.join(OsStr::from_bytes(path))
    }

    fn parent(&self, path: &[u8], manner: &Manner) -> Result<(OwnedFd, Vec<u8>)> {
        let (parent, name) = split(path);
        Ok((self.directory(parent, manner.ids())?, name.to_vec()))
    }

    fn place(&mut self, entry: &Entry, path: &[u8], manner: &Manner) -> Result<()> {
        let kind = entry.kind();
        match kind {
            FileType::Socket => return Ok(()),
            FileType::CharacterDevice | FileType::BlockDevice if !manner.devices => return Ok(()),
            FileType::Directory => return self.place_directory(entry, path, manner),
            _ => {}
        }
        let (parent, name) = self.parent(path, manner)?;
        let shown = self.name(path);
        self.clear(&parent, &name, path)?;
        if entry.stat.st_nlink > 1 && self.link(entry, path, &parent, &name)? {
            return Ok(());
        }
        match kind {
            FileType::RegularFile => {
                let file = create(&parent, &name).doing("create", &shown)?;
                copy_content(entry, &file).doing("copy", &shown)?;
            }
            FileType::Symlink => {
                let target = readlinkat(&entry.fd, c"", Vec::new()).doing("read link", &shown)?;
                symlinkat(&target, &parent, &name[..]).doing("make symbolic link", &shown)?;
            }
            _ => mknodat(
                &parent,
                &name[..],
                kind,
                Mode::from_raw_mode(0o600),
                entry.stat.st_rdev,
            )
            .doing("make special file", &shown)?,
        }
        self.dress(entry, &parent, &name, manner)
            .doing("set owner, mode and times of", &shown)
    }

    fn place_directory(&mut self, entry: &Entry, path: &[u8], manner: &Manner) -> Result<()> {
        let is_top = entry.path.is_empty();
        let existed = self.is_directory(path);
        let shown = self.name(path);
        if !existed && rooted::walk(&self.root, path).is_ok() {
            return Err(Error::Destination {
                path: String::from_utf8_lossy(path).into_owned(),
                reason: "is no directory, and a directory is copied to it",
            });
        }
        let fd = self.directory(path, manner.ids())?;
        // The directory that content is copied into stays as it is; those below become like their sources.
        if is_top && existed {
            return Ok(());
        }
        let (uid, gid) = owner_of(&entry.stat, manner);
        own(&fd, uid, gid).doing("set the owner of", &shown)?;
        let mode = manner.mode.unwrap_or(entry.stat.st_mode & 0o7777);
        fchmod(&fd, Mode::from_raw_mode(mode)).doing("set the mode of", &shown)?;
        for (name, value) in kept_attributes(entry.fd.as_fd(), FileType::Directory) {
            set_attribute(&proc_path(fd.as_fd()), &name, &value)
                .doing("set attributes of", &shown)?;
        }
        self.late.push((path.to_vec(), modified(&entry.stat)));
        Ok(())
    }

    /// A further name of a file that was copied before.
    fn link(&mut self, entry: &Entry, path: &[u8], parent: &OwnedFd, name: &[u8]) -> Result<bool> {
        let key = (entry.stat.st_dev, entry.stat.st_ino);
        let Some(first) = self.linked.get(&key) else {
            self.linked.insert(key, path.to_vec());
            return Ok(false);
        };
        let (directory, first_name) = split(first);
        let shown = self.name(path);
        let directory = rooted::open(&self.root, directory, OFlags::PATH | OFlags::DIRECTORY)
            .doing("open", &shown)?;
        linkat(&directory, first_name, parent, name, AtFlags::empty()).doing("link", &shown)?;
        Ok(true)
    }

    /// Removes what is in the way of a file. A directory is not.
    fn clear(&self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<()> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => Err(Error::Destination {
                path: String::from_utf8_lossy(path).into_owned(),
                reason: "is a directory, and a file is copied to it; end it with / to copy into it",
            }),
            Err(errno) => Err(errno).doing("replace", &self.name(path)),
        }
    }

    /// Owner, mode, attributes and time of a new file, which nobody else can have touched.
    fn dress(
        &self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        manner: &Manner,
    ) -> std::io::Result<()> {
        let (uid, gid) = owner_of(&entry.stat, manner);
        chownat(
            parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        let pinned = openat(
            parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if entry.kind() != FileType::Symlink {
            // After the owner, whose change takes set-user-id bits away.
            let mode = manner.mode.unwrap_or(entry.stat.st_mode & 0o7777);
            rustix::fs::chmod(proc_path(pinned.as_fd()), Mode::from_raw_mode(mode))?;
            for (key, value) in kept_attributes(entry.fd.as_fd(), entry.kind()) {
                set_attribute(&proc_path(pinned.as_fd()), &key, &value)?;
            }
        }
        let time = times(modified(&entry.stat));
        Ok(utimensat(parent, name, &time, AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// Where content goes: the copy's own owner, or the source's.
fn owner_of(stat: &Stat, manner: &Manner) -> (u32, u32) {
    match manner.owner {
        Owner::Source => (stat.st_uid, stat.st_gid),
        Owner::Ids(uid, gid) => (uid, gid),
    }
}

fn own(fd: impl AsFd, uid: u32, gid: u32) -> rustix::io::Result<()> {
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn create(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::from_raw_mode(0o600))
}

/// Copies a file's content, holes as holes.
fn copy_content(entry: &Entry, target: &OwnedFd) -> std::io::Result<()> {
    let source = rooted::reopen(entry.fd.as_fd(), OFlags::RDONLY)?;
    let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
    let mut position = 0;
    while position < size {
        let start = match seek(&source, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))
            .unwrap_or(size)
            .min(size);
        copy_range(&source, target, start, end)?;
        position = end.max(start + 1);
    }
    Ok(ftruncate(target, size)?)
}

fn copy_range(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> std::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(
            source,
            Some(&mut from),
            target,
            Some(&mut to),
            length.min(1 << 30),
        ) {
            // It became shorter meanwhile.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &OwnedFd, target: &OwnedFd, start: u64, end: u64) -> std::io::Result<()> {
    seek(source, SeekFrom::Start(start))?;
    seek(target, SeekFrom::Start(start))?;
    let mut reader = File::from(source.try_clone()?).take(end - start);
    let mut writer = File::from(target.try_clone()?);
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(()),
            length => writer.write_all(&buffer[..length])?,
        }
    }
}

/// The extended attributes that are copied: what belongs to the content. Labels and lists of access rights belong to
/// the place.
pub(super) fn kept_attributes(fd: BorrowedFd<'_>, kind: FileType) -> Vec<(Vec<u8>, Vec<u8>)> {
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        return Vec::new();
    }
    let path = proc_path(fd);
    let mut names = vec![0; 4096];
    let length = match listxattr(&path, &mut names[..]) {
        Err(Errno::RANGE) => {
            names.resize(MAX_XATTR, 0);
            listxattr(&path, &mut names[..])
        }
        other => other,
    };
    let Ok(length) = length else {
        return Vec::new();
    };
    let mut attributes = Vec::new();
    for name in names[..length].split(|&byte| byte == 0) {
        let is_kept = name == b"security.capability"
            || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !is_kept {
            continue;
        }
        let mut value = vec![0; MAX_XATTR];
        if let Ok(length) = getxattr(&path, name, &mut value[..]) {
            value.truncate(length);
            attributes.push((name.to_vec(), value));
        }
    }
    attributes.sort_unstable();
    attributes
}

fn set_attribute(path: &str, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    // The path is a link of /proc, which is meant to be followed.
    match rustix::fs::setxattr(path, name, value, XattrFlags::empty()) {
        Err(Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn modified(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    }
}

fn times(modified: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: modified,
    }
}
