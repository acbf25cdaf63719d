//! A log file: buffering, rotation, and what happens when the disk is full.
//!
//! A write that fails loses lines, never blocks and never leaves half a line:
//! the file is cut back to its last whole one. The number of lines lost is
//! written into the log as a line of its own as soon as writing works again.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

use memchr::memchr;
use rustix::fs::{Mode, OFlags, ftruncate, open};
use rustix::io::Errno;

use super::json_file::{self, Pending, Trailer};
use super::k8s_file::{self, Header};
use super::{Format, Limits, Stream};
use crate::diag;
use crate::error::Error;

/// Bytes gathered before they are written.
const FLUSH: usize = 128 * 1024;

/// An open log file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    format: Format,
    limits: Limits,
    file: Option<File>,
    /// Whole records not yet written.
    out: Vec<u8>,
    /// Length of the file; it always ends with a whole record.
    size: u64,
    /// Length at which the next rotation is due.
    rotate_at: Option<u64>,
    /// Bytes written since the monitor started, over all rotations.
    total: u64,
    /// What each record says of the container besides (json-file only).
    attributes: Rc<[u8]>,
    /// Unfinished lines, a stream each (json-file only).
    pending: [Pending; 2],
    /// Lines that could not be written since the last one that could.
    lost: u64,
    /// Streams in the middle of a line of which a piece was lost (k8s-file only).
    severed: [bool; 2],
    /// Why.
    lost_to: Option<Errno>,
}

impl LogFile {
    /// Opens or creates the log at `path` and goes on at its end.
    pub(crate) fn open(path: &Path, format: Format, limits: Limits) -> Result<Self, Error> {
        let (file, size) = open_log(path).map_err(Error::path("open log file", path))?;
        // Nobody wants /dev/null moved aside.
        let file_size = limits.file_size.filter(|_| is_regular(&file));
        let limits = Limits {
            file_size,
            ..limits
        };
        Ok(Self {
            path: path.to_owned(),
            format,
            limits,
            file: Some(file),
            out: Vec::new(),
            size,
            rotate_at: limits.file_size,
            total: size,
            attributes: Rc::new([]),
            pending: Default::default(),
            lost: 0,
            severed: [false; 2],
            lost_to: None,
        })
    }

    /// Says this of the container in each record, of `NAME=VALUE` each, where the format has room for it.
    pub(crate) fn with_labels(mut self, labels: &[String]) -> Self {
        self.attributes = json_file::attributes(labels);
        self
    }

    /// Writes a chunk of output that arrived at `now`.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8], now: SystemTime) {
        let mut rest = data;
        match self.format {
            Format::K8s => {
                let severed = &mut self.severed[stream.index()];
                if *severed {
                    let end = memchr(b'\n', rest);
                    rest = &rest[end.map_or(rest.len(), |index| index + 1)..];
                    *severed = end.is_none();
                    self.lost += u64::from(end.is_some());
                }
                let header = Header::new(stream, now);
                while !rest.is_empty() {
                    let start = self.out.len();
                    rest = header.record(rest, &mut self.out);
                    self.accept(start, now);
                }
            }
            Format::Json => {
                let trailer = Trailer::new(stream, &self.attributes, now);
                while !rest.is_empty() {
                    let start = self.out.len();
                    let (pending, out) = (&mut self.pending[stream.index()], &mut self.out);
                    rest = pending.next(rest, |text| trailer.record(text, out));
                    self.accept(start, now);
                }
            }
        }
        self.flush(now);
    }

    /// Writes what is held back, and the count of lost lines if there is one.
    pub(crate) fn finish(&mut self, now: SystemTime) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let start = self.out.len();
            let (pending, out) = (&mut self.pending[stream.index()], &mut self.out);
            let trailer = Trailer::new(stream, &self.attributes, now);
            pending.finish(|text| trailer.record(text, out));
            self.accept(start, now);
        }
        self.flush(now);
        if self.lost > 0 {
            self.write_loss(now);
        }
    }

    /// Gives back the buffer, which is empty between two writes.
    pub(crate) fn settle(&mut self) {
        self.out = Vec::new();
    }

    /// Takes the record that begins at `start` of the buffer into the file, into
    /// the next file if this one is full, or drops it if nothing more may come.
    fn accept(&mut self, start: usize, now: SystemTime) {
        let length = (self.out.len() - start) as u64;
        if length == 0 {
            return;
        }
        if self
            .limits
            .total
            .is_some_and(|total| self.total + length > total)
        {
            self.out.truncate(start);
            return;
        }
        self.total += length;
        let full = self
            .rotate_at
            .is_some_and(|limit| self.size + self.out.len() as u64 > limit);
        // A record longer than the limit gets a file of its own, not an endless
        // row of empty ones.
        if full && self.size + start as u64 > 0 {
            let record = self.out.split_off(start);
            self.flush(now);
            self.rotate();
            self.out.extend_from_slice(&record);
        }
        if self.out.len() >= FLUSH {
            self.flush(now);
        }
    }

    /// Writes the buffer out.
    fn flush(&mut self, now: SystemTime) {
        if self.out.is_empty() {
            return;
        }
        let out = std::mem::take(&mut self.out);
        if self.lost > 0 && !self.write_loss(now) {
            self.lose(&out);
        } else if let Err((written, errno)) = self.append(&out) {
            self.lose(&out[written..]);
            self.note_loss(errno);
        }
        self.out = out;
        self.out.clear();
    }

    /// Counts the lines that end in these records: of one that came in pieces, none but the last. If the last here goes
    /// on, the rest of its line is lost as well.
    fn lose(&mut self, records: &[u8]) {
        for record in records.split_inclusive(|&byte| byte == b'\n') {
            match self.format {
                Format::K8s => match k8s_file::goes_on(record) {
                    Some(stream) => self.severed[stream.index()] = true,
                    None => self.lost += 1,
                },
                Format::Json => self.lost += 1,
            }
        }
    }

    /// Writes the line that tells how many lines are missing.
    fn write_loss(&mut self, now: SystemTime) -> bool {
        let reason = self
            .lost_to
            .map_or_else(String::new, |errno| format!(": {errno}"));
        let mut text = String::new();
        let _ = writeln!(text, "qshim: {} log lines lost{reason}", self.lost);
        let mut record = Vec::new();
        match self.format {
            Format::K8s => {
                Header::new(Stream::Stderr, now).record(text.as_bytes(), &mut record);
            }
            Format::Json => {
                let trailer = Trailer::new(Stream::Stderr, &self.attributes, now);
                trailer.record(text.as_bytes(), &mut record);
            }
        }
        match self.append(&record) {
            Ok(()) => {
                diag::warning!("log {}: {}", self.path.display(), text.trim_end());
                self.lost = 0;
                self.lost_to = None;
                true
            }
            Err(_) => false,
        }
    }

    fn note_loss(&mut self, errno: Errno) {
        if self.lost_to.is_none() {
            diag::error!("log {}: lines are being lost: {errno}", self.path.display());
        }
        self.lost_to = Some(errno);
    }

    /// Appends whole records. On failure the file is cut back to its last whole
    /// one, and the answer is how many bytes of `records` it has kept.
    fn append(&mut self, records: &[u8]) -> Result<(), (usize, Errno)> {
        let Some(file) = &self.file else {
            return Err((0, Errno::NOENT));
        };
        let mut written = 0;
        let failure = loop {
            match rustix::io::write(file, &records[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(errno) => break Some(errno),
            }
            if written == records.len() {
                break None;
            }
        };
        let kept = match failure {
            None => written,
            Some(_) => records[..written]
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |index| index + 1),
        };
        self.size += kept as u64;
        if kept < written {
            // Can fail only where the write failed for a reason that lasts; the
            // half line then stays, and readers see one odd line.
            let _ = ftruncate(file, self.size);
        }
        failure.map_or(Ok(()), |errno| Err((kept, errno)))
    }

    /// Moves the full file aside and begins a new one.
    fn rotate(&mut self) {
        match self.shift() {
            Ok(file) => {
                self.file = Some(file);
                self.size = 0;
                self.rotate_at = self.limits.file_size;
            }
            Err(error) => {
                diag::warning!("rotate log {}: {error}", self.path.display());
                if self.is_nameless()
                    && let Some(file) = &self.file
                    && ftruncate(file, 0).is_ok()
                {
                    self.size = 0;
                }
                // Try again after as much output as a file may hold.
                self.rotate_at = self.limits.file_size.map(|limit| self.size + limit);
            }
        }
    }

    /// Whether the file was removed: it still takes room, and nobody can read it.
    fn is_nameless(&self) -> bool {
        let stat = self.file.as_ref().map(rustix::fs::fstat);
        stat.is_some_and(|stat| stat.is_ok_and(|stat| stat.st_nlink == 0))
    }

    fn shift(&self) -> io::Result<File> {
        if self.limits.backups == 0 {
            // A new file under the old name, so that a reader of the old one
            // finds its end and not a hole.
            let fresh = numbered(&self.path, "tmp");
            let _ = std::fs::remove_file(&fresh);
            let (file, _) = open_log(&fresh)?;
            std::fs::rename(&fresh, &self.path)?;
            return Ok(file);
        }
        for number in (1..self.limits.backups).rev() {
            rename_if_there(
                &numbered(&self.path, &number.to_string()),
                &numbered(&self.path, &(number + 1).to_string()),
            )?;
        }
        rename_if_there(&self.path, &numbered(&self.path, "1"))?;
        open_log(&self.path).map(|(file, _)| file)
    }

    /// Opens the file again by its path. The old one is kept when that fails.
    pub(crate) fn reopen(&mut self) {
        match open_log(&self.path) {
            Ok((file, size)) => {
                self.file = Some(file);
                self.size = size;
                self.rotate_at = self.limits.file_size;
            }
            Err(error) => diag::warning!("reopen log {}: {error}", self.path.display()),
        }
    }

    /// Brings what is written to the disk.
    pub(crate) fn sync(&self) {
        if let Some(file) = &self.file
            && let Err(errno) = rustix::fs::fdatasync(file.as_fd())
        {
            diag::warning!("sync log {}: {errno}", self.path.display());
        }
    }
}

/// Opens a log for appending and tells its length. A symbolic link is refused:
/// what a restored or foreign directory brought must not send the log elsewhere.
fn open_log(path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NOFOLLOW;
    let file = File::from(open(path, flags, Mode::from_raw_mode(0o640))?);
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}

fn numbered(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn limits(file_size: u64, backups: u32) -> Limits {
        Limits {
            file_size: Some(file_size),
            backups,
            total: None,
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn rotation_keeps_the_newest_and_whole_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // A record of "line NN\n" has 45 + 8 bytes: three fit.
        let mut log = LogFile::open(&path, Format::K8s, limits(170, 2)).unwrap();
        let mut chunk = String::new();
        for number in 10..20 {
            let _ = writeln!(chunk, "line {number}");
        }
        log.write(Stream::Stdout, chunk.as_bytes(), UNIX_EPOCH);
        assert_eq!(names(directory.path()), ["log", "log.1", "log.2"]);
        let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(text("log").ends_with("F line 19\n"));
        assert_eq!(text("log").lines().count(), 1);
        assert!(text("log.1").ends_with("F line 18\n"));
        assert_eq!(text("log.1").lines().count(), 3);
        assert!(text("log.2").ends_with("F line 15\n"));
    }

    #[test]
    fn without_backups_the_file_starts_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, Format::K8s, limits(100, 0)).unwrap();
        for line in ["first\n", "second\n", "third\n"] {
            log.write(Stream::Stdout, line.as_bytes(), UNIX_EPOCH);
        }
        assert_eq!(names(directory.path()), ["log"]);
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .ends_with("F third\n")
        );
    }

    #[test]
    fn a_record_above_the_limit_does_not_rotate_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, Format::Json, limits(10, 3)).unwrap();
        log.write(Stream::Stdout, b"one\n", UNIX_EPOCH);
        log.write(Stream::Stdout, b"two\n", UNIX_EPOCH);
        assert_eq!(names(directory.path()), ["log", "log.1"]);
    }

    #[test]
    fn nothing_beyond_the_total() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let limits = Limits {
            total: Some(120),
            ..Limits::default()
        };
        let mut log = LogFile::open(&path, Format::K8s, limits).unwrap();
        for _ in 0..5 {
            log.write(Stream::Stdout, b"line\n", UNIX_EPOCH);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_full_disk_costs_lines_and_tells_how_many() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, Format::Json, Limits::default()).unwrap();
        log.write(Stream::Stdout, b"before\n", UNIX_EPOCH);
        // Every write to /dev/full fails with ENOSPC.
        let disk = log
            .file
            .replace(File::options().write(true).open("/dev/full").unwrap());
        log.write(Stream::Stdout, b"lost\nlost too\n", UNIX_EPOCH);
        log.write(Stream::Stdout, b"lost as well\n", UNIX_EPOCH);
        log.file = disk;
        log.write(Stream::Stdout, b"after\n", UNIX_EPOCH);
        log.finish(UNIX_EPOCH);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["log"], "before\n");
        let note = lines[1]["log"].as_str().unwrap();
        assert!(note.starts_with("qshim: 3 log lines lost: "), "{note}");
        assert_eq!(lines[1]["stream"], "stderr");
        assert_eq!(lines[2]["log"], "after\n");
    }

    #[test]
    fn a_line_of_which_a_piece_is_lost_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, Format::K8s, Limits::default()).unwrap();
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let disk = log.file.replace(full());
        log.write(Stream::Stdout, b"lost\nbegin", UNIX_EPOCH);
        log.file = disk;
        log.write(Stream::Stdout, b"middle", UNIX_EPOCH);
        log.write(Stream::Stderr, b"other\n", UNIX_EPOCH);
        log.write(Stream::Stdout, b"end\nafter\n", UNIX_EPOCH);
        let text = std::fs::read_to_string(&path).unwrap();
        let ends: Vec<_> = text.lines().map(|line| &line[36..]).collect();
        assert_eq!(ends.len(), 4, "{text}");
        assert!(ends[0].contains("qshim: 1 log lines lost: "), "{text}");
        assert_eq!(ends[1], "stderr F other");
        assert!(ends[2].contains("qshim: 1 log lines lost"), "{text}");
        assert_eq!(ends[3], "stdout F after");
    }

    #[test]
    fn reopening_follows_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = LogFile::open(&path, Format::K8s, Limits::default()).unwrap();
        log.write(Stream::Stdout, b"old\n", UNIX_EPOCH);
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        log.reopen();
        log.write(Stream::Stdout, b"new\n", UNIX_EPOCH);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("F new\n"));
    }

    #[test]
    fn what_is_no_file_is_not_rotated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mode = Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
        let _reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let mut log = LogFile::open(&path, Format::K8s, limits(100, 2)).unwrap();
        for _ in 0..5 {
            log.write(Stream::Stdout, b"line\n", UNIX_EPOCH);
        }
        assert_eq!(names(directory.path()), ["log"]);
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        assert!(LogFile::open(&path, Format::K8s, Limits::default()).is_err());
    }
}
