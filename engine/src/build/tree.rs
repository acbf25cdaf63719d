//! A directory that files are copied from: the context, or the root of a stage or image.
//!
//! Every path is resolved inside of it, and nothing outside is ever read: a symbolic link in the context, or in an
//! image, that points to the host's files finds nothing (CVE-2022-4122, CVE-2024-1753). A source that is a link is
//! followed within the tree; links below a source are copied as links.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bundle_tools::rooted;
use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;

use super::ignore::Ignore;
use super::{Error, FileContext, Result, pattern};

/// The tree, and what of it does not exist for the build.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    path: PathBuf,
    ignore: Ignore,
}

/// A source that was asked for and is there.
#[derive(Debug)]
pub(super) struct Found {
    /// Opened with `O_PATH`.
    pub(super) fd: OwnedFd,
    /// Where it really is, relative to the root.
    pub(super) path: Vec<u8>,
    /// By which path it was asked for (a pattern's matches by theirs).
    pub(super) asked: Vec<u8>,
    pub(super) stat: Stat,
}

/// Something below a source, or the source itself.
#[derive(Debug)]
pub(super) struct Entry {
    /// Opened with `O_PATH`, never following.
    pub(super) fd: OwnedFd,
    /// Its path relative to the source; empty for the source itself.
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
}

impl Found {
    pub(super) fn is_directory(&self) -> bool {
        is_directory(&self.stat)
    }

    /// The name under which it is copied into a directory.
    pub(super) fn name(&self) -> &[u8] {
        self.asked
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or_default()
    }
}

impl Entry {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

impl Tree {
    /// Opens a tree.
    pub(super) fn open(path: &Path, ignore: Ignore) -> Result<Tree> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(rustix::fs::CWD, path, flags, Mode::empty()).doing("open", path)?;
        Ok(Tree {
            root,
            path: path.to_owned(),
            ignore,
        })
    }

    /// The directory itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a text file of the tree whole; `None` when there is none.
    pub(super) fn read_text(&self, name: &str) -> Result<Option<String>> {
        let path = self.path.join(name);
        let mut file = match rooted::open_file(&self.root, name.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.doing("open", &path)?,
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).doing("read", &path)?;
        Ok(Some(text))
    }

    /// Finds what a path or pattern means, sorted.
    pub(super) fn find(&self, source: &str) -> Result<Vec<Found>> {
        let mut parts: Vec<&str> = Vec::new();
        for part in source.split('/') {
            match part {
                "" | "." => {}
                // The root's parent is the root.
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let parts: Vec<&[u8]> = parts.into_iter().map(str::as_bytes).collect();
        let mut found = Vec::new();
        self.expand(&parts, Vec::new(), &mut found)?;
        if !found.is_empty() {
            return Ok(found);
        }
        let ignored = parts.iter().all(|part| !pattern::is_pattern(part))
            && rooted::walk(&self.root, &parts.join(&b'/')).is_ok();
        Err(Error::NoSource {
            source_path: source.to_owned(),
            tree: self.path.clone(),
            reason: if ignored {
                ": the ignore file excludes it"
            } else {
                ""
            },
        })
    }

    fn expand(&self, parts: &[&[u8]], so_far: Vec<u8>, found: &mut Vec<Found>) -> Result<()> {
        let plain = parts.iter().take_while(|part| !pattern::is_pattern(part));
        let plain = plain.count();
        let mut path = so_far;
        for part in &parts[..plain] {
            path = join(&path, part);
        }
        let Some(wanted) = parts.get(plain) else {
            found.extend(self.look_up(path)?);
            return Ok(());
        };
        let Some(directory) = self.look_up(path.clone())?.filter(Found::is_directory) else {
            return Ok(());
        };
        for name in names(&directory.fd).doing("list", &self.shown(&path))? {
            if pattern::matches_name(wanted, &name) {
                self.expand(&parts[plain + 1..], join(&path, &name), found)?;
            }
        }
        Ok(())
    }

    fn look_up(&self, asked: Vec<u8>) -> Result<Option<Found>> {
        let found = match rooted::walk(&self.root, &asked) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            other => other.doing("look up", &self.shown(&asked))?,
        };
        let stat = fstat(&found.fd).doing("stat", &self.shown(&asked))?;
        let open_to_doubt = is_directory(&stat) && self.ignore.may_take_back();
        if (self.excludes(&found.path) || self.excludes(&asked)) && !open_to_doubt {
            return Ok(None);
        }
        Ok(Some(Found {
            fd: found.fd,
            path: found.path,
            asked,
            stat,
        }))
    }

    fn excludes(&self, path: &[u8]) -> bool {
        !path.is_empty() && self.ignore.excludes(path)
    }

    /// Visits a source and everything in it, a directory before its content, names in byte order. Paths for which
    /// `skip` holds are left out.
    pub(super) fn walk(
        &self,
        found: &Found,
        skip: &Ignore,
        visit: &mut dyn FnMut(&Entry) -> Result<()>,
    ) -> Result<()> {
        let fd = found.fd.try_clone().doing("open", &self.path)?;
        let top = Entry {
            fd,
            path: Vec::new(),
            stat: found.stat,
        };
        if !found.is_directory() {
            return visit(&top);
        }
        let mut walk = Walk {
            tree: self,
            base: &found.path,
            skip,
            visit,
        };
        walk.directory(top, true, &mut Vec::new())
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        self.path.join(std::ffi::OsStr::from_bytes(path))
    }
}

struct Walk<'w> {
    tree: &'w Tree,
    /// The source's path in the tree.
    base: &'w [u8],
    skip: &'w Ignore,
    visit: &'w mut dyn FnMut(&Entry) -> Result<()>,
}

impl Walk<'_> {
    /// `pending` are directories above that are ignored themselves, and exist only if something in them does.
    fn directory(&mut self, entry: Entry, wanted: bool, pending: &mut Vec<Entry>) -> Result<()> {
        let fd = entry.fd.try_clone().doing("open", &self.tree.path)?;
        let path = entry.path.clone();
        let depth = pending.len();
        if wanted {
            self.visit_all(pending)?;
            (self.visit)(&entry)?;
        } else {
            pending.push(entry);
        }
        let shown = self.tree.shown(&join(self.base, &path));
        for name in names(&fd).doing("list", &shown)? {
            let path = join(&path, &name);
            let whole = join(self.base, &path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let shown = self.tree.shown(&whole);
            let child = match openat(&fd, &name[..], flags, Mode::empty()) {
                // It went while we looked.
                Err(Errno::NOENT) => continue,
                other => other.doing("open", &shown)?,
            };
            let stat = fstat(&child).doing("stat", &shown)?;
            let wanted = !self.tree.excludes(&whole) && !self.skip.excludes(&path);
            let child = Entry {
                fd: child,
                path,
                stat,
            };
            if is_directory(&stat) {
                if wanted || self.tree.ignore.may_take_back() || self.skip.may_take_back() {
                    self.directory(child, wanted, pending)?;
                }
            } else if wanted {
                self.visit_all(pending)?;
                (self.visit)(&child)?;
            }
        }
        pending.truncate(depth);
        Ok(())
    }

    fn visit_all(&mut self, pending: &mut Vec<Entry>) -> Result<()> {
        pending.drain(..).try_for_each(|entry| (self.visit)(&entry))
    }
}

/// The names in a directory, sorted.
fn names(directory: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(directory, c".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, &b"/"[..], name].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn context(ignore: &str) -> (tempfile::TempDir, Tree) {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("context");
        for directory in ["src/deep", "docs", "keep/me"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in [
            "a.c",
            "b.c",
            "src/x.c",
            "src/deep/y.c",
            "docs/z",
            "keep/me/k",
        ] {
            fs::write(root.join(file), file).unwrap();
        }
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink("../secret", root.join("leak")).unwrap();
        symlink("/", root.join("rootlink")).unwrap();
        symlink("src", root.join("s")).unwrap();
        let tree = Tree::open(&root, Ignore::parse(ignore)).unwrap();
        (outside, tree)
    }

    fn listed(tree: &Tree, source: &str) -> Result<Vec<String>> {
        let mut all = Vec::new();
        for found in tree.find(source)? {
            let name = String::from_utf8(found.asked.clone()).unwrap();
            tree.walk(&found, &Ignore::default(), &mut |entry| {
                let path = std::str::from_utf8(&entry.path).unwrap();
                all.push(format!("{name}:{path}"));
                Ok(())
            })?;
        }
        Ok(all)
    }

    #[test]
    fn sources_are_found_inside() {
        let (_outside, tree) = context("");
        for (source, expected) in [
            ("a.c", &["a.c:"][..]),
            ("/./a.c", &["a.c:"]),
            ("../../a.c", &["a.c:"]),
            ("*.c", &["a.c:", "b.c:"]),
            ("s*/x.c", &["s/x.c:", "src/x.c:"]),
            ("src", &["src:", "src:deep", "src:deep/y.c", "src:x.c"]),
            ("s", &["s:", "s:deep", "s:deep/y.c", "s:x.c"]),
            ("rootlink/a.c", &["rootlink/a.c:"]),
        ] {
            assert_eq!(listed(&tree, source).unwrap(), expected, "{source}");
        }
        for source in ["leak", "nope", "*.z", "a.c/x", "rootlink/etc/passwd"] {
            assert!(
                matches!(listed(&tree, source), Err(Error::NoSource { .. })),
                "{source}"
            );
        }
    }

    #[test]
    fn ignored_files_do_not_exist() {
        let (_outside, tree) = context("docs\nkeep\n!keep/me/k\n**/y.c\nb.c\n");
        assert_eq!(listed(&tree, "*.c").unwrap(), ["a.c:"]);
        assert_eq!(
            listed(&tree, "keep").unwrap(),
            ["keep:", "keep:me", "keep:me/k"]
        );
        assert_eq!(
            listed(&tree, "src").unwrap(),
            ["src:", "src:deep", "src:x.c"]
        );
        let error = listed(&tree, "b.c").unwrap_err();
        assert!(error.to_string().contains("ignore file"), "{error}");
        let all = listed(&tree, ".").unwrap();
        assert!(!all.iter().any(|path| path.contains("docs")), "{all:?}");
        // By the real path too: a link does not bring an ignored file back.
        assert!(listed(&tree, "s/deep/y.c").is_err());
    }
}
