//! `diff`: what a container has changed of its image's files.
//!
//! Everything changed lies in overlay's upper directory: new and altered files, whiteouts for removed ones, and every
//! directory above them. What was there before is looked up in the layers below, as overlay itself does it. All of it by
//! descriptors, so that a container that is at work meanwhile leads nowhere else.
//!
//! Governing text: the kernel's Documentation/filesystems/overlayfs.rst.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, fstat, getxattr, openat};
use rustix::io::Errno;

use super::bundle::MADE_FILES;
use super::find::Handle;
use super::{Result, SystemContext, start};
use crate::store::Store;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It was there before, and is another now.
    Changed,
    /// It was not there before.
    Added,
    /// It is there no more.
    Deleted,
}

/// One path that is not as in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, as the container sees it.
    pub path: String,
    /// What happened to it.
    pub kind: Kind,
}

/// Directories that the runtime makes where an image lacks them.
const MADE_DIRECTORIES: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Lists what a container has changed, sorted by path. Mount points of the engine's own making are none of it.
///
/// # Errors
/// When the container's directories can't be read.
pub fn changes(store: &Store, handle: &Handle) -> Result<Vec<Change>> {
    let overlay = start::overlay(store, handle)?;
    let upper = match open(CWD, overlay.upper.as_os_str().as_encoded_bytes()) {
        // Never started.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other.system("open", &overlay.upper)?,
    };
    let mut layers = Vec::new();
    for layer in &overlay.lower {
        let opened = open(CWD, layer.as_os_str().as_encoded_bytes());
        layers.push(opened.system("open", layer)?);
    }
    let mut walk = Walk {
        found: Vec::new(),
        below: Lower { layers },
    };
    let root = walk.below.again().system("open", &overlay.upper)?;
    walk.directory(&upper, Some(&root), b"")
        .system("read the changes in", &overlay.upper)?;
    let mut changes: Vec<Change> = walk
        .found
        .into_iter()
        .map(|(path, kind)| Change {
            path: String::from_utf8_lossy(&path).into_owned(),
            kind,
        })
        .collect();
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(changes)
}

/// A directory of the layers below: those that have a part in it, the highest first.
struct Lower {
    layers: Vec<OwnedFd>,
}

/// What the layers below have under a name.
struct Before {
    stat: Stat,
    /// Of a directory, what is in it.
    directory: Option<Lower>,
}

impl Lower {
    fn again(&self) -> rustix::io::Result<Lower> {
        let layers = self.layers.iter().map(|layer| open(layer.as_fd(), b"."));
        Ok(Lower {
            layers: layers.collect::<rustix::io::Result<_>>()?,
        })
    }

    fn child(&self, name: &[u8]) -> rustix::io::Result<Option<Before>> {
        let mut first = None;
        let mut layers = Vec::new();
        for layer in &self.layers {
            let fd = match open(layer.as_fd(), name) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let stat = fstat(&fd)?;
            if is_whiteout(&stat) {
                break;
            }
            let is_directory = kind(&stat) == FileType::Directory;
            if !is_directory && first.is_some() {
                break;
            }
            first.get_or_insert(stat);
            if !is_directory {
                break;
            }
            let is_last = is_opaque(&fd);
            layers.push(fd);
            if is_last {
                break;
            }
        }
        Ok(first.map(|stat| Before {
            directory: (kind(&stat) == FileType::Directory).then_some(Lower { layers }),
            stat,
        }))
    }

    fn names(&self) -> rustix::io::Result<BTreeSet<Vec<u8>>> {
        let mut all = BTreeSet::new();
        for layer in &self.layers {
            all.extend(names(layer)?);
        }
        Ok(all)
    }

    /// The directory at a path; `None` when there is none.
    fn directory_at(&self, path: &[u8]) -> rustix::io::Result<Option<Lower>> {
        let mut here = self.again()?;
        for name in path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if name == b".." {
                return Ok(None);
            }
            match here.child(name)?.and_then(|before| before.directory) {
                Some(directory) => here = directory,
                None => return Ok(None),
            }
        }
        Ok(Some(here))
    }
}

struct Walk {
    found: Vec<(Vec<u8>, Kind)>,
    /// The root of what is below.
    below: Lower,
}

/// What a directory's own entry has to know of what is in it.
#[derive(Default)]
struct Inside {
    /// Something was found.
    any: bool,
    /// Something was passed over, whose making has left its mark on the directory's time.
    passed_over: bool,
}

impl Walk {
    /// Goes through a directory of the upper tree; `lower` is what was there before.
    fn directory(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&Lower>,
        path: &[u8],
    ) -> rustix::io::Result<Inside> {
        let before = self.found.len();
        let mut inside = Inside::default();
        for name in names(upper)? {
            let fd = match open(upper.as_fd(), &name) {
                // Gone meanwhile.
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            let path = [path, b"/", &name].concat();
            let was = match lower {
                Some(lower) => lower.child(&name)?,
                None => None,
            };
            if is_ours(&path, was.is_some()) {
                inside.passed_over = true;
                continue;
            }
            self.node(&fd, was, lower, path)?;
        }
        inside.any = self.found.len() > before;
        Ok(inside)
    }

    fn node(
        &mut self,
        fd: &OwnedFd,
        was: Option<Before>,
        parent: Option<&Lower>,
        path: Vec<u8>,
    ) -> rustix::io::Result<()> {
        let stat = fstat(fd)?;
        if is_whiteout(&stat) || is_empty_whiteout(fd, &stat) {
            if was.is_some() {
                self.found.push((path, Kind::Deleted));
            }
            return Ok(());
        }
        let changed = match was {
            Some(_) => Kind::Changed,
            None => Kind::Added,
        };
        if kind(&stat) != FileType::Directory {
            self.found.push((path, changed));
            return Ok(());
        }
        if let Some(origin) = overlay_attribute(fd, "redirect") {
            self.found.push((path.clone(), changed));
            return self.moved(fd, parent, &origin, &path);
        }
        let lower = was.as_ref().and_then(|was| was.directory.as_ref());
        if is_opaque(fd) {
            self.replaced(fd, lower, &path)?;
        }
        let visible = lower.filter(|_| !is_opaque(fd));
        let inside = self.directory(fd, visible, &path)?;
        let is_same = was.as_ref().is_some_and(|was| {
            let times = (was.stat.st_mtime, was.stat.st_mtime_nsec);
            let same_time = times == (stat.st_mtime, stat.st_mtime_nsec) || inside.passed_over;
            same_time
                && was.stat.st_mode == stat.st_mode
                && (was.stat.st_uid, was.stat.st_gid) == (stat.st_uid, stat.st_gid)
        });
        if inside.any || !is_same || is_opaque(fd) {
            self.found.push((path, changed));
        }
        Ok(())
    }

    /// A directory that hides the one below: what that had and this one has not is gone.
    fn replaced(
        &mut self,
        upper: &OwnedFd,
        lower: Option<&Lower>,
        path: &[u8],
    ) -> rustix::io::Result<()> {
        let Some(lower) = lower else { return Ok(()) };
        let there: BTreeSet<Vec<u8>> = names(upper)?.into_iter().collect();
        for name in lower.names()?.difference(&there) {
            if lower.child(name)?.is_some() {
                self.found
                    .push(([path, b"/", name].concat(), Kind::Deleted));
            }
        }
        Ok(())
    }

    /// A directory that was moved (`redirect_dir`): under its new name all of it is new, what is still below too.
    fn moved(
        &mut self,
        upper: &OwnedFd,
        parent: Option<&Lower>,
        origin: &[u8],
        path: &[u8],
    ) -> rustix::io::Result<()> {
        self.directory(upper, None, path)?;
        let from = match (origin.starts_with(b"/"), parent) {
            (true, _) => self.below.directory_at(origin)?,
            (false, Some(parent)) => parent.directory_at(origin)?,
            (false, None) => None,
        };
        let there: BTreeSet<Vec<u8>> = names(upper)?.into_iter().collect();
        match from {
            Some(from) => self.all_of(&from, &there, path),
            None => Ok(()),
        }
    }

    fn all_of(
        &mut self,
        lower: &Lower,
        except: &BTreeSet<Vec<u8>>,
        path: &[u8],
    ) -> rustix::io::Result<()> {
        for name in lower.names()?.difference(except) {
            let Some(before) = lower.child(name)? else {
                continue;
            };
            let path = [path, b"/", name].concat();
            self.found.push((path.clone(), Kind::Added));
            if let Some(directory) = before.directory {
                self.all_of(&directory, &BTreeSet::new(), &path)?;
            }
        }
        Ok(())
    }
}

/// Whether the engine or the runtime made it, to mount something there.
fn is_ours(path: &[u8], was_there: bool) -> bool {
    MADE_FILES.iter().any(|(_, made)| made.as_bytes() == path)
        || (!was_there && MADE_DIRECTORIES.iter().any(|made| made.as_bytes() == path))
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_whiteout(stat: &Stat) -> bool {
    kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The form of a whiteout that nested overlays use (Linux 6.7): an empty file with an attribute.
fn is_empty_whiteout(fd: &OwnedFd, stat: &Stat) -> bool {
    kind(stat) == FileType::RegularFile
        && stat.st_size == 0
        && overlay_attribute(fd, "whiteout").is_some()
}

fn is_opaque(fd: &OwnedFd) -> bool {
    overlay_attribute(fd, "opaque").is_some_and(|value| value == b"y")
}

/// One of overlay's own attributes; of those that only the kernel and root can set.
fn overlay_attribute(fd: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut value = vec![0; 4096];
    let name = format!("trusted.overlay.{name}");
    let length = getxattr(&path, &name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// Pins what a directory has under a name.
fn open(directory: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = match openat(directory, Path::new("."), flags, Mode::empty()) {
        // Removed meanwhile.
        Err(Errno::NOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in Dir::new(opened)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{XattrFlags, makedev, mknodat, setxattr};
    use std::fs;

    fn lower(directories: &[&Path]) -> Lower {
        let layers = directories
            .iter()
            .map(|path| open(CWD, path.as_os_str().as_encoded_bytes()).unwrap());
        Lower {
            layers: layers.collect(),
        }
    }

    fn whiteout(path: &Path) {
        let device = makedev(0, 0);
        mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), device).unwrap();
    }

    fn mark(path: &Path, name: &str, value: &[u8]) {
        let name = format!("trusted.overlay.{name}");
        setxattr(path, name, value, XattrFlags::empty()).unwrap();
    }

    #[test]
    fn every_form_the_kernel_makes() {
        if !rustix::process::geteuid().is_root() {
            return; // Whiteouts are devices, their attributes the kernel's own.
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in [
            "low/a/sub",
            "low/gone",
            "high/a",
            "up/a",
            "up/moved",
            "up/fresh",
        ] {
            fs::create_dir_all(at(path)).unwrap();
        }
        for path in [
            "low/a/x",
            "low/a/sub/y",
            "low/gone/z",
            "low/file",
            "low/dead",
            "up/file",
            "up/new",
            "up/fresh/n",
            "up/moved/own",
        ] {
            fs::write(at(path), path).unwrap();
        }
        // Removed by the layer above: not there before, so no deletion.
        whiteout(&at("high/dead"));
        whiteout(&at("up/dead"));
        whiteout(&at("up/gone"));
        mark(&at("up/a"), "opaque", b"y");
        mark(&at("up/moved"), "redirect", b"a");
        let (high, low) = (at("high"), at("low"));
        let mut walk = Walk {
            found: Vec::new(),
            below: lower(&[&high, &low]),
        };
        let upper = open(CWD, at("up").as_os_str().as_encoded_bytes()).unwrap();
        walk.directory(&upper, Some(&lower(&[&high, &low])), b"")
            .unwrap();
        let mut found: Vec<String> = walk
            .found
            .iter()
            .map(|(path, kind)| {
                let letter = match kind {
                    Kind::Changed => 'C',
                    Kind::Added => 'A',
                    Kind::Deleted => 'D',
                };
                format!("{letter} {}", String::from_utf8_lossy(path))
            })
            .collect();
        found.sort_by(|one, other| one[2..].cmp(&other[2..]));
        assert_eq!(
            found,
            [
                "C /a",
                "D /a/sub",
                "D /a/x",
                "C /file",
                "A /fresh",
                "A /fresh/n",
                "D /gone",
                "A /moved",
                "A /moved/own",
                "A /moved/sub",
                "A /moved/sub/y",
                "A /moved/x",
                "A /new",
            ]
        );
    }
}
