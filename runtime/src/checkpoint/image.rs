//! The directory that a checkpoint is in.
//!
//! It may have come from anybody, by way of an archive: at a restore nothing in it may lead out of it, least of all the
//! log that criu writes there, and of the one file that is ours nothing is believed that has another form than what
//! [`write_descriptors`] writes. Everything else a restore does is what the live request says, never the checkpoint.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::Error;
use crate::failure::{CallFailed, During};

/// Names of the pipes that were the process's standard streams, as runc writes them too.
const DESCRIPTORS: &str = "descriptors.json";
/// The link to the directory of an earlier dump that this one is based on, the only link criu makes.
const PARENT: &str = "parent";
/// What a restore writes in its work directory.
const WRITTEN: [&str; 2] = [super::restore::LOG, "stats-restore"];
/// Longest `descriptors.json` that is read: three names of at most some twenty characters.
const LONGEST: u64 = 4096;

/// A directory for criu, and where it is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Place {
    /// Opens a directory.
    pub(super) fn open(path: &Path) -> Result<Self, CallFailed> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).during("open", path)?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens a directory, which is made, private to its owner, if it is not there.
    pub(super) fn make(path: &Path) -> Result<Self, CallFailed> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .during("mkdir", path)?;
        Self::open(path)
    }

    /// The same directory as a process in another mount namespace would open it: criu mounts things in there, which it can
    /// only where it is in its own namespace.
    pub(super) fn as_seen_by(&self, pid: Pid) -> Result<Self, CallFailed> {
        let own = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        // Without links, which would lead back to our root.
        let path = rustix::fs::readlink(own, Vec::new()).during("readlink", &self.path)?;
        let root = format!("/proc/{}/root", pid.as_raw_nonzero());
        let path = [root.as_bytes(), path.as_bytes()].concat();
        let seen = Self::open(Path::new(OsStr::from_bytes(&path)))?;
        let identity = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let same = identity(&seen.fd)
            .and_then(|seen| Ok(seen == identity(&self.fd)?))
            .during("stat", &self.path)?;
        match same {
            true => Ok(seen),
            false => Err(Errno::STALE).during("open", &self.path),
        }
    }

    /// Refuses what has no business in a checkpoint: links, by which criu would read and write somewhere else, and what
    /// it would wait for or drive when it opens it.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.check_entries(|_| false)
    }

    /// Refuses the same in a work directory, where fifos may be that criu does not open: the work directory of podman's
    /// restores is the bundle, with the monitor's fifos in it.
    pub(super) fn check_work(&self) -> Result<(), Error> {
        self.check_entries(|name| !WRITTEN.contains(&name))
    }

    fn check_entries(&self, fifo_fits: fn(&str) -> bool) -> Result<(), Error> {
        for entry in Dir::read_from(&self.fd).during("readdir", &self.path)? {
            let entry = entry.during("readdir", &self.path)?;
            let name = entry.file_name().to_string_lossy();
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    let stat = rustix::fs::statat(&self.fd, entry.file_name(), flags)
                        .during("stat", self.path.join(&*name))?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                known => known,
            };
            let fits = match kind {
                // A socket is that of a lazy restore.
                FileType::RegularFile | FileType::Directory | FileType::Socket => true,
                FileType::Symlink => name == PARENT,
                FileType::Fifo => fifo_fits(&name),
                _ => false,
            };
            if !fits {
                return Err(Error::Hostile(self.path.join(&*name)));
            }
        }
        Ok(())
    }

    /// Writes the names of standard streams, for a restore to find out which of them to put its own in the place of.
    pub(super) fn write_descriptors(&self, names: &[String]) -> Result<(), CallFailed> {
        let path = self.path.join(DESCRIPTORS);
        let text = serde_json::Value::from(names.to_vec()).to_string();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.fd, DESCRIPTORS, flags, Mode::from_raw_mode(0o600))
            .during("open", &path)?;
        File::from(file)
            .write_all(text.as_bytes())
            .during("write", &path)
    }

    /// Reads them: which standard stream was which pipe.
    pub(super) fn read_descriptors(&self) -> Result<Vec<(u32, String)>, Error> {
        let path = self.path.join(DESCRIPTORS);
        let file = open_file(&self.fd, DESCRIPTORS).during("open", &path)?;
        let mut text = String::new();
        File::from(file)
            .take(LONGEST)
            .read_to_string(&mut text)
            .during("read", &path)?;
        parse_descriptors(&text).ok_or(Error::Descriptors(path))
    }
}

/// Opens a plain file, without following a link and without waiting.
fn open_file(directory: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::INVAL),
    }
}

/// The pipes of a list like `["pipe:[1]","/dev/null","pipe:[2]"]`; `None` when it is no list of texts.
fn parse_descriptors(text: &str) -> Option<Vec<(u32, String)>> {
    // runc writes null where it knows of none.
    let names: Option<Vec<String>> = serde_json::from_str(text).ok()?;
    let streams = (0..3).zip(names.unwrap_or_default());
    Some(streams.filter(|(_, name)| is_pipe(name)).collect())
}

/// Whether a name is that of a pipe in `/proc/PID/fd`.
pub(super) fn is_pipe(name: &str) -> bool {
    name.strip_prefix("pipe:[")
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inode| !inode.is_empty() && inode.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The errors in criu's log, each with the lines before it, as they are shown to the user; empty when there is no log.
///
/// A log is quoted only in part: the last errors are the ones that matter.
pub(super) fn errors_of(directory: &Place, name: &str) -> Vec<String> {
    /// Lines shown before an error, as `grep -B5` does.
    const BEFORE: usize = 5;
    /// Lines shown at all.
    const MOST: usize = 60;
    let Ok(file) = open_file(&directory.fd, name) else {
        return Vec::new();
    };
    let lines: Vec<String> = BufReader::new(File::from(file).take(16 << 20))
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .collect();
    let mut shown = Vec::new();
    let mut next = 0;
    for (index, _) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.contains("Error"))
    {
        let from = index.saturating_sub(BEFORE).max(next);
        if from > next && next > 0 {
            shown.push("...".to_owned());
        }
        for (index, line) in lines.iter().enumerate().take(index + 1).skip(from) {
            shown.push(format!("{}:{line}", index + 1));
        }
        next = index + 1;
    }
    let drop = shown.len().saturating_sub(MOST);
    shown.drain(..drop);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("qrun-image-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Place::make(&path).unwrap()
    }

    #[test]
    fn only_pipes_are_taken_over() {
        assert_eq!(
            parse_descriptors(r#"["pipe:[12]","/dev/null","pipe:[7]","pipe:[8]"]"#).unwrap(),
            [(0, "pipe:[12]".into()), (2, "pipe:[7]".into())]
        );
        for text in [
            r#"["pipe:[]","extRootNetNS","pipe:[1]x"]"#,
            r#"["/proc/1/pipe:[1]","pipe:[-1]"]"#,
            "[]",
            "null",
        ] {
            assert_eq!(parse_descriptors(text).unwrap(), [], "{text}");
        }
        assert_eq!(parse_descriptors("{}"), None);
    }

    #[test]
    fn nothing_leads_out_of_a_checkpoint() {
        let place = scratch("hostile");
        std::fs::write(place.path.join("core-1.img"), "").unwrap();
        std::os::unix::fs::symlink("../before", place.path.join("parent")).unwrap();
        place.check().unwrap();
        let log = place.path.join("restore.log");
        std::os::unix::fs::symlink("/etc/passwd", &log).unwrap();
        assert!(matches!(place.check(), Err(Error::Hostile(path)) if path == log));
        std::fs::remove_file(&log).unwrap();
        let fifo = |name: &str| {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(&place.fd, name, FileType::Fifo, mode, 0).unwrap();
        };
        fifo("ctl");
        place.check_work().unwrap();
        assert!(matches!(place.check(), Err(Error::Hostile(_))));
        fifo("stats-restore");
        assert!(matches!(place.check_work(), Err(Error::Hostile(_))));
        for name in ["ctl", "stats-restore"] {
            std::fs::remove_file(place.path.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/etc/passwd", place.path.join(DESCRIPTORS)).unwrap();
        assert!(place.read_descriptors().is_err());
        assert!(place.write_descriptors(&[]).is_err());
        std::fs::remove_dir_all(&place.path).unwrap();
    }

    #[test]
    fn is_found_again_by_way_of_a_process() {
        let place = scratch("seen");
        let seen = place.as_seen_by(rustix::process::getpid()).unwrap();
        std::fs::write(place.path.join("x"), "").unwrap();
        assert!(seen.path.join("x").exists());
        std::fs::remove_dir_all(&place.path).unwrap();
        assert!(place.as_seen_by(rustix::process::getpid()).is_err());
    }

    #[test]
    fn descriptors_come_back() {
        let place = scratch("descriptors");
        let names = ["pipe:[1]", "/dev/null", "pipe:[3]"].map(str::to_owned);
        place.write_descriptors(&names).unwrap();
        assert_eq!(
            place.read_descriptors().unwrap(),
            [(0, "pipe:[1]".into()), (2, "pipe:[3]".into())]
        );
        std::fs::remove_dir_all(&place.path).unwrap();
    }

    #[test]
    fn errors_are_quoted_with_what_was_before() {
        let place = scratch("log");
        let mut text: Vec<String> = (1..=30).map(|line| format!("line {line}")).collect();
        text[9] = "Error (a)".into();
        text[25] = "Error (b)".into();
        std::fs::write(place.path.join("dump.log"), text.join("\n")).unwrap();
        let shown = errors_of(&place, "dump.log");
        assert_eq!(shown.len(), 13, "{shown:?}");
        assert_eq!((&*shown[0], &*shown[5]), ("5:line 5", "10:Error (a)"));
        assert_eq!((&*shown[6], &*shown[12]), ("...", "26:Error (b)"));
        assert!(errors_of(&place, "other.log").is_empty());
        std::fs::remove_dir_all(&place.path).unwrap();
    }
}
