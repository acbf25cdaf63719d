//! Makes what entries describe, in place of whatever is there.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ftruncate, linkat, makedev, mkdirat, mknodat, openat, statat,
    symlinkat, unlinkat,
};
use rustix::io::{Errno, pwrite};

use super::metadata::Late;
use super::tree::{Directory, directory_flags};
use super::{Applier, Entry, Error, Kind, Place, Reader, Whiteouts, clean, remove, split};

/// What had to go to make room.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Cleared {
    Nothing,
    Something,
    /// A whiteout of this layer: what comes in its place hides the lower layers' too.
    Whiteout,
}

impl Applier<'_> {
    /// Applies the archive's entry for the root itself.
    pub(super) fn root(&mut self, entry: &Entry) -> Result<(), Error> {
        let root = self.tree.root();
        self.finish_directory(&root, entry, None)
    }

    /// Opens the directory an entry goes to, making what is missing of its path.
    pub(super) fn parent(&mut self, path: &[u8], entry: &[u8]) -> Result<Rc<Directory>, Error> {
        match self.open(path) {
            Ok(directory) => Ok(directory),
            Err(error) if is_absent(&error) => self.make_parents(path, entry),
            Err(error) => Err(Error::entry("find the directory of", entry)(error)),
        }
    }

    /// Opens a directory, and remembers its time if the layer says nothing about it.
    fn open(&mut self, path: &[u8]) -> io::Result<Rc<Directory>> {
        let opened = self.tree.open(path)?;
        if opened.mtime.is_some() && self.options.whiteouts != Whiteouts::Plain {
            self.late
                .entry(opened.directory.path.clone())
                .or_insert(Late {
                    mtime: opened.mtime,
                    mode: None,
                });
        }
        Ok(opened.directory)
    }

    fn make_parents(&mut self, path: &[u8], entry: &[u8]) -> Result<Rc<Directory>, Error> {
        let mut here = self.tree.root();
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        let ends: Vec<usize> = ends.map(|(at, _)| at).chain([path.len()]).collect();
        for end in ends {
            let prefix = &path[..end];
            here = match self.open(prefix) {
                Ok(directory) => directory,
                Err(error) if is_absent(&error) => self.make_parent(&here, prefix, entry)?,
                Err(error) => return Err(Error::entry("find the directory of", entry)(error)),
            };
        }
        Ok(here)
    }

    /// Makes one directory that the archive has no entry for: root's, mode 0755.
    fn make_parent(
        &mut self,
        parent: &Rc<Directory>,
        path: &[u8],
        entry: &[u8],
    ) -> Result<Rc<Directory>, Error> {
        let (_, name) = split(path);
        let failed = |error: Errno| Error::entry("make the directory of", entry)(error);
        let mode = Mode::from_raw_mode(0o755);
        let place = Place {
            parent: Rc::clone(parent),
            name,
            path,
        };
        let mut opaque = false;
        match mkdirat(&parent.fd, name, mode) {
            // A link that leads nowhere, or a file.
            Err(Errno::EXIST) => {
                if !self.is_whiteout(&place) {
                    return Err(Error::refused(entry, "its parent is no directory"));
                }
                unlinkat(&parent.fd, name, AtFlags::empty()).map_err(failed)?;
                mkdirat(&parent.fd, name, mode).map_err(failed)?;
                opaque = true;
            }
            other => other.map_err(failed)?,
        }
        let directory = self
            .tree
            .open(path)
            .map_err(Error::entry("open the directory of", entry))?
            .directory;
        rustix::fs::fchmod(&directory.fd, mode).map_err(failed)?;
        if opaque {
            self.set_opaque(&directory, path)?;
        }
        if self.options.whiteouts == Whiteouts::Apply {
            self.ours.insert(directory.path.clone());
        } else if !opaque {
            let path = OsStr::from_bytes(&directory.path);
            self.summary.implied.push(path.into());
        }
        Ok(directory)
    }

    pub(super) fn directory(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), Error> {
        let mut mode = entry.mode & 0o777;
        if !self.options.ownership {
            // We must get in ourselves until the end.
            mode |= 0o700;
        }
        let mut cleared = Cleared::Nothing;
        let fresh = loop {
            match mkdirat(&place.parent.fd, place.name, Mode::from_raw_mode(mode)) {
                Ok(()) => break true,
                Err(Errno::EXIST) => {
                    if self.kind_of(place)? == Some(FileType::Directory) {
                        break false;
                    }
                    if self.options.merge {
                        let why = "cannot overwrite non-directory with directory";
                        return Err(Error::refused(place.path, why));
                    }
                    cleared = self.clear(place)?;
                }
                Err(error) => return Err(Error::entry("make directory", place.path)(error)),
            }
        };
        let fd = openat(
            &place.parent.fd,
            place.name,
            directory_flags(),
            Mode::empty(),
        )
        .map_err(Error::entry("open directory", place.path))?;
        let sets_default_acl = entry
            .xattrs
            .iter()
            .any(|(name, _)| name == b"system.posix_acl_default");
        let directory = Rc::new(Directory {
            fd,
            path: place.real_path(),
            plain: fresh
                && place.parent.plain
                && entry.mode & 0o2000 == 0
                && !sets_default_acl
                && self.process.gives_group(entry.gid),
        });
        if fresh || !self.options.merge {
            self.finish_directory(&directory, entry, fresh.then_some(&*place.parent))?;
        }
        if cleared == Cleared::Whiteout {
            self.set_opaque(&directory, place.path)?;
        }
        self.tree.keep(place.path, directory);
        Ok(())
    }

    pub(super) fn file<R: Read>(
        &mut self,
        entry: &Entry,
        place: &Place<'_>,
        reader: &mut Reader<R>,
    ) -> Result<(), Error> {
        // Exclusive: what is there before is never written to, whatever it is.
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let fd = self.make(place, "create", || {
            openat(&place.parent.fd, place.name, flags, mode)
        })?;
        let mut end = 0;
        reader.copy(entry, |offset, bytes| -> Result<(), Error> {
            // What is a hole in the end is one from the start: a whole read of zeros is not written.
            if self.options.whiteouts == Whiteouts::Plain && bytes.iter().all(|&byte| byte == 0) {
                return Ok(());
            }
            end = offset + bytes.len() as u64;
            write_at(&fd, offset, bytes).map_err(Error::entry("write", place.path))
        })?;
        if end < entry.size {
            ftruncate(&fd, entry.size).map_err(Error::entry("size", place.path))?;
        }
        self.finish_file(fd.as_fd(), entry, place)
    }

    pub(super) fn symlink(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), Error> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(Error::refused(
                place.path,
                "a symbolic link to an impossible name",
            ));
        }
        self.make(place, "make symbolic link", || {
            symlinkat(&entry.link[..], &place.parent.fd, place.name)
        })?;
        self.finish_by_name(entry, place, None)
    }

    /// Links to something of the tree. Owner and mode are the target's: setting them
    /// here is how a link to a link reached the host's files (CVE-2021-32760).
    pub(super) fn hard_link(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), Error> {
        let target = clean(&entry.link).map_err(|why| Error::refused(place.path, why))?;
        if target.is_empty() {
            return Err(Error::refused(place.path, "a hard link to the root"));
        }
        let (directory, name) = split(&target);
        let directory = self
            .open(directory)
            .map_err(Error::entry("find the target of hard link", place.path))?;
        if self.same_file(&directory, name, place) {
            return Ok(());
        }
        self.make(place, "make hard link", || {
            // Without AT_SYMLINK_FOLLOW: of a symbolic link, the link itself.
            linkat(
                &directory.fd,
                name,
                &place.parent.fd,
                place.name,
                AtFlags::empty(),
            )
        })
    }

    pub(super) fn special(&mut self, entry: &Entry, place: &Place<'_>) -> Result<(), Error> {
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if kind != FileType::Fifo && !self.options.ownership {
            self.summary.skipped_devices += 1;
            return Ok(());
        }
        let device = match kind {
            FileType::Fifo => 0,
            _ => makedev(entry.device.0, entry.device.1),
        };
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        self.make(place, "make special file", || {
            mknodat(&place.parent.fd, place.name, kind, mode, device)
        })?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let pinned = openat(&place.parent.fd, place.name, flags, Mode::empty())
            .map_err(Error::entry("open", place.path))?;
        self.finish_by_name(entry, place, Some(pinned.as_fd()))
    }

    /// Makes a node, after removing what is in its way.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        action: &'static str,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Error> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(place)?;
                make().map_err(Error::entry(action, place.path))
            }
            other => other.map_err(Error::entry(action, place.path)),
        }
    }

    /// Removes what is at a place, with everything in it.
    fn clear(&mut self, place: &Place<'_>) -> Result<Cleared, Error> {
        if self.is_whiteout(place) {
            unlinkat(&place.parent.fd, place.name, AtFlags::empty())
                .map_err(Error::entry("replace", place.path))?;
            return Ok(Cleared::Whiteout);
        }
        match self.kind_of(place)? {
            None => return Ok(Cleared::Nothing),
            Some(FileType::Directory) if self.options.merge => {
                let why = "cannot overwrite directory with non-directory";
                return Err(Error::refused(place.path, why));
            }
            Some(FileType::Directory | FileType::Symlink) => self.tree.forget(),
            Some(_) => {}
        }
        let path = place.real_path();
        remove::remove(place.parent.fd.as_fd(), place.name, self.locked())
            .map_err(Error::entry("replace", place.path))?;
        self.ours.remove(&path);
        self.drop_notes(&path);
        Ok(Cleared::Something)
    }

    /// Drops what was noted about a path and everything below it, but for what this layer made.
    pub(super) fn drop_notes(&mut self, path: &[u8]) {
        let below = [path, b"/"].concat();
        let gone: Vec<Vec<u8>> = self
            .late
            .range(path.to_vec()..)
            .map(|(noted, _)| noted)
            // Names such as "a-b" sort between "a" and "a/".
            .take_while(|noted| noted.starts_with(path))
            .filter(|noted| *noted == path || path.is_empty() || noted.starts_with(&below))
            .filter(|noted| !self.ours.contains(*noted))
            .cloned()
            .collect();
        for path in gone {
            self.late.remove(&path);
        }
    }

    pub(super) fn locked(&self) -> remove::Locked {
        if self.options.ownership {
            remove::Locked::Ignore
        } else {
            remove::Locked::Open
        }
    }

    fn kind_of(&self, place: &Place<'_>) -> Result<Option<FileType>, Error> {
        match statat(&place.parent.fd, place.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Error::entry("stat", place.path)(error)),
        }
    }

    fn same_file(&self, directory: &Directory, name: &[u8], place: &Place<'_>) -> bool {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let target = statat(&directory.fd, name, flags);
        let existing = statat(&place.parent.fd, place.name, flags);
        match (target, existing) {
            (Ok(target), Ok(existing)) => {
                (target.st_dev, target.st_ino) == (existing.st_dev, existing.st_ino)
            }
            _ => false,
        }
    }
}

fn write_at(fd: impl AsFd, mut offset: u64, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(&fd, bytes, offset) {
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a path is not there as a directory.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
