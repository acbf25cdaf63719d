//! Paths inside a root that is not ours yet: opened so that no link leads out, and made where they are missing.
//!
//! Everything goes through one descriptor of the root and `openat2(RESOLVE_IN_ROOT)`, so a rootfs that is malicious, or
//! is being changed by another container while we work, cannot point us at the host (CVE-2021-30465, CVE-2024-45310).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fstat,
    mkdirat, openat, openat2, readlinkat, statx,
};
use rustix::io::Errno;

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// The root of a container.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    place: Place,
}

/// What tells a place in the tree of mounts from others: the mount and the file in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Id of the mount; 0 before Linux 5.8, which does not tell it.
    mount: u64,
    /// Device and inode.
    file: (u32, u32, u64),
    /// Whether it is where something is mounted; not told before Linux 5.8.
    pub(crate) is_mount_root: Option<bool>,
}

impl Place {
    /// That of an open file.
    pub(crate) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?;
        let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        let known = stat
            .stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT);
        Ok(Self {
            mount: if told { stat.stx_mnt_id } else { 0 },
            file: (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino),
            is_mount_root: known.then(|| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        })
    }

    /// Whether two places are on the same mount, as far as the kernel tells.
    pub(crate) fn is_on_mount_of(&self, other: &Self) -> bool {
        self.mount == other.mount
    }
}

/// What is made where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

impl Missing {
    /// What takes a mount of something that is open.
    pub(crate) fn like(fd: &OwnedFd) -> Result<Self, Errno> {
        Ok(match FileType::from_raw_mode(fstat(fd)?.st_mode) {
            FileType::Directory => Self::Directory,
            _ => Self::File,
        })
    }
}

impl Root {
    /// Opens a directory as the root.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::new(openat(CWD, path, flags, Mode::empty())?)
    }

    /// Takes an open directory for the root.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let place = Place::of(&fd)?;
        Ok(Self { fd, place })
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The number of its descriptor.
    pub(crate) fn fd_number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Opens what is at a path, following links within the root.
    pub(crate) fn resolve(&self, path: &str) -> Result<OwnedFd, Errno> {
        self.resolve_with(path, OFlags::PATH | OFlags::CLOEXEC)
    }

    /// The same with other flags.
    pub(crate) fn resolve_with(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = relative(path);
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..128 {
            match openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                // Something was renamed while the kernel walked; it may be an attack, so not for ever.
                Err(Errno::AGAIN) => {}
                // Before Linux 5.6.
                Err(Errno::NOSYS) => return self.walk(path, flags),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// What [`Root::resolve_with`] does on kernels without `openat2`: one component after the other, each opened without
    /// following a link and then looked at, so that nobody can exchange it in between; links are followed here. `..` goes
    /// back along the descriptors that were opened, so it cannot leave the root.
    fn walk(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let mut open: Vec<OwnedFd> = Vec::new();
        let mut left: Vec<String> = components(path).rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                open.pop();
                continue;
            }
            let here = open.last().map_or(self.fd(), |fd| fd.as_fd());
            let next = openat(here, &name, STEP, Mode::empty())?;
            let is_link = FileType::from_raw_mode(fstat(&next)?.st_mode) == FileType::Symlink;
            if !is_link || left.is_empty() && flags.contains(OFlags::NOFOLLOW) {
                open.push(next);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = readlinkat(&next, c"", Vec::new())?
                .into_string()
                .map_err(|_| Errno::ILSEQ)?;
            if target.starts_with('/') {
                open.clear();
            }
            left.extend(components(&target).rev().map(str::to_owned));
        }
        let Some(fd) = open.pop() else {
            return openat(&self.fd, c".", flags, Mode::empty());
        };
        let is_directory = FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory;
        if flags.contains(OFlags::DIRECTORY) && !is_directory {
            return Err(Errno::NOTDIR);
        }
        match flags.contains(OFlags::PATH) {
            true => Ok(fd),
            // Only directories are opened for more than their place.
            false => openat(&fd, c".", flags | OFlags::DIRECTORY, Mode::empty()),
        }
    }

    /// The path without links: where `path` leads, as far as it exists; the rest is taken as it is.
    ///
    /// A name only: by the time it is used, somebody may have put links there again.
    pub(crate) fn canonical(&self, path: &str) -> String {
        let mut known: Vec<String> = Vec::new();
        let mut left: Vec<String> = components(path).rev().map(str::to_owned).collect();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                known.pop();
                continue;
            }
            known.push(name);
            // Nothing before the last component is a link, so this does not leave the root.
            let Ok(target) = readlinkat(&self.fd, known.join("/"), Vec::new()) else {
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                continue;
            }
            let target = target.to_string_lossy();
            known.pop();
            if target.starts_with('/') {
                known.clear();
            }
            left.extend(components(&target).rev().map(str::to_owned));
        }
        format!("/{}", known.join("/"))
    }

    /// Opens what is at a path; makes it, and the directories on the way, where they are missing.
    pub(crate) fn ensure(&self, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
        self.ensure_within(path, missing, 0)
    }

    /// The same, counting links.
    fn ensure_within(&self, path: &str, missing: Missing, links: usize) -> Result<OwnedFd, Errno> {
        match self.resolve(path) {
            Err(Errno::NOENT) if links < MAX_LINKS => {}
            other => return other,
        }
        let path = relative(path).trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            // The path above did not exist; once it does, this one does too.
            self.ensure_within(parent, Missing::Directory, links + 1)?;
            return self.resolve(path);
        }
        let directory = self.ensure_within(parent, Missing::Directory, links + 1)?;
        let made = match missing {
            Missing::Directory => mkdirat(&directory, name, Mode::from_raw_mode(0o755)),
            Missing::File => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                openat(&directory, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => openat(
                &directory,
                name,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ),
            // A link that points nowhere, or somebody was faster.
            Err(Errno::EXIST) => match readlinkat(&directory, name, Vec::new()) {
                Ok(target) => {
                    let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
                    let joined = if target.starts_with('/') {
                        target
                    } else {
                        format!("{parent}/{target}")
                    };
                    self.ensure_within(&joined, missing, links + 1)
                }
                Err(Errno::INVAL) => self.resolve(path),
                Err(errno) => Err(errno),
            },
            Err(errno) => Err(errno),
        }
    }
}

/// A path relative to the root; the root itself is `.`.
fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

/// The components of a path that mean something.
fn components(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("qrun-path-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(path.join("root")).unwrap();
            std::fs::create_dir_all(path.join("outside")).unwrap();
            Self(path)
        }

        fn root(&self) -> Root {
            Root::open(&self.0.join("root")).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn makes_what_is_missing_inside() {
        let scratch = Scratch::new("make");
        let root = scratch.root();
        root.ensure("/a/b/c", Missing::Directory).unwrap();
        root.ensure("a/b/f", Missing::File).unwrap();
        root.ensure("/", Missing::Directory).unwrap();
        assert!(scratch.0.join("root/a/b/c").is_dir());
        assert!(scratch.0.join("root/a/b/f").is_file());
    }

    #[test]
    fn links_stay_inside() {
        let scratch = Scratch::new("links");
        let inside = scratch.0.join("root");
        symlink("../../outside", inside.join("up")).unwrap();
        symlink(scratch.0.join("outside"), inside.join("absolute")).unwrap();
        symlink("/run", inside.join("var")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = scratch.root();
        for path in ["up/x", "absolute/y", "var/z"] {
            root.ensure(path, Missing::Directory).unwrap();
        }
        assert!(
            std::fs::read_dir(scratch.0.join("outside"))
                .unwrap()
                .next()
                .is_none()
        );
        assert!(inside.join("outside/x").is_dir());
        assert!(inside.join("run/z").is_dir());
        assert_eq!(
            root.ensure("loop/x", Missing::Directory).err(),
            Some(Errno::LOOP)
        );
    }

    #[test]
    fn canonical_paths() {
        let scratch = Scratch::new("canonical");
        let inside = scratch.0.join("root");
        std::fs::create_dir_all(inside.join("real/conf")).unwrap();
        symlink("/real/conf", inside.join("conf")).unwrap();
        symlink("../../../real", inside.join("up")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = scratch.root();
        for (path, expected) in [
            ("/conf", "/real/conf"),
            ("/conf/missing/../x", "/real/conf/x"),
            ("up//conf/.", "/real/conf"),
            ("../../a", "/a"),
            ("/", "/"),
            ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory"),
            ("/loop/a", "/loop/a"),
        ] {
            assert_eq!(root.canonical(path), expected, "{path}");
        }
    }

    #[test]
    fn walking_by_hand_finds_the_same() {
        let scratch = Scratch::new("walk");
        let inside = scratch.0.join("root");
        std::fs::create_dir_all(inside.join("a/b")).unwrap();
        symlink("/a", inside.join("link")).unwrap();
        symlink("../../..", inside.join("up")).unwrap();
        let root = scratch.root();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let inode = |fd: OwnedFd| rustix::fs::fstat(&fd).unwrap().st_ino;
        for path in [
            "a/b",
            "link/b",
            "link/../link/b",
            "../../a/b",
            ".",
            "up",
            "up/a/b/..",
        ] {
            let walked = inode(root.walk(path, flags).unwrap());
            assert_eq!(walked, inode(root.resolve(path).unwrap()), "{path}");
        }
        assert_eq!(root.walk("a/c", flags).err(), Some(Errno::NOENT));
    }
}
