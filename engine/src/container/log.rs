//! Reading what a container has written: json-file and k8s-file logs, rotated ones first, followed to the end. What the
//! journal has is read in [`journal`]; which drivers there are is in [`driver`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::find::Handle;
use super::model::Status;
use super::{Error, Result, SystemContext};
use crate::store::Store;

pub mod driver;
mod journal;

pub use driver::{Driver, details};

/// Which of the container's two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// One entry of the log; a long line of the container is several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it was written.
    pub stream: Stream,
    /// When the monitor read it.
    pub time: String,
    /// What was written, with the newline if it ended in one.
    pub text: Vec<u8>,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only the last so many lines.
    pub tail: Option<usize>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Nothing newer.
    pub until: Option<Timestamp>,
    /// Go on with what is written from now on, until the container ends.
    pub follow: bool,
}

impl Query {
    fn wants(&self, entry: &Entry) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let Ok(time) = entry.time.parse::<Timestamp>() else {
            return true;
        };
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }
}

/// Hands every wanted entry to `sink`, oldest first.
///
/// # Errors
/// When the container keeps no log, the log can't be read, or `sink` fails.
pub fn read(
    store: &Store,
    handle: &Handle,
    query: &Query,
    sink: &mut dyn FnMut(&Entry) -> io::Result<()>,
) -> Result<()> {
    let mut emit = |entry: &Entry| sink(entry).system("write", "log output");
    match Driver::of(handle) {
        Driver::None | Driver::Passthrough => {
            return Err(Error::Invalid(
                "configured logging driver does not support reading".to_owned(),
            ));
        }
        Driver::Journald => return journal::read(handle, query, &mut emit),
        Driver::JsonFile | Driver::K8sFile => {}
    }
    let path = handle.log();
    let mut kept = VecDeque::new();
    let mut lines_kept = 0usize;
    let mut reader = None;
    for mut file in after(&path, None) {
        collect(&mut file, query, &mut kept, &mut lines_kept, &mut emit)?;
        reader = Some(file);
    }
    for entry in kept {
        emit(&entry)?;
    }
    if query.follow {
        follow(store, handle, &path, reader, query, &mut emit)?;
    }
    Ok(())
}

/// Entries up to the present end: straight on, or the last ones held back for `tail`.
fn collect(
    reader: &mut Reader,
    query: &Query,
    kept: &mut VecDeque<Entry>,
    lines_kept: &mut usize,
    emit: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    while let Some(entry) = reader.next().system("read", "log")? {
        if !query.wants(&entry) {
            continue;
        }
        let Some(tail) = query.tail else {
            emit(&entry)?;
            continue;
        };
        *lines_kept += usize::from(entry.text.ends_with(b"\n"));
        kept.push_back(entry);
        while *lines_kept > tail {
            match kept.pop_front() {
                Some(first) => *lines_kept -= usize::from(first.text.ends_with(b"\n")),
                None => break,
            }
        }
    }
    Ok(())
}

/// Goes on until the container has ended and everything it wrote was read. A rotation is noticed by the new file's
/// inode; the old file is read to its end first.
fn follow(
    store: &Store,
    handle: &Handle,
    path: &Path,
    mut reader: Option<Reader>,
    query: &Query,
    emit: &mut dyn FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    let changes = Changes::of(handle.directory())?;
    loop {
        // Asked before reading: what was written before the end is then certainly read.
        let running = handle
            .live(store)
            .is_ok_and(|(state, live)| live.is_running() || state.status == Status::Starting);
        let over = query.until.is_some_and(|until| Timestamp::now() > until);
        if let Some(reader) = &mut reader {
            while let Some(entry) = reader.next().system("read", path)? {
                if query.wants(&entry) {
                    emit(&entry)?;
                }
            }
        }
        let present = std::fs::metadata(path).ok().map(|metadata| metadata.ino());
        if present.is_some() && present != reader.as_ref().map(|reader| reader.inode) {
            let newer = after(path, reader.as_ref().map(|reader| reader.inode));
            for mut file in reader.take().into_iter().chain(newer) {
                while let Some(entry) = file.next().system("read", path)? {
                    if query.wants(&entry) {
                        emit(&entry)?;
                    }
                }
                reader = Some(file);
            }
            continue;
        }
        if !running || over {
            return Ok(());
        }
        changes.wait();
    }
}

/// The files written since the one with this inode was rotated away, oldest first, the present one last. All of them
/// are open before anything is read, so that no rotation comes between.
fn after(path: &Path, inode: Option<u64>) -> Vec<Reader> {
    let mut files = vec![];
    for path in std::iter::once(path.to_owned()).chain(rotated(path).into_iter().rev()) {
        let Ok(file) = File::open(path) else { break };
        let reader = Reader::new(file);
        if Some(reader.inode) == inode {
            break;
        }
        files.push(reader);
    }
    files.reverse();
    files
}

/// `log.2`, `log.1`: oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let numbered = |number: usize| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let mut paths: Vec<PathBuf> = (1..100)
        .map(numbered)
        .take_while(|path| path.exists())
        .collect();
    paths.reverse();
    paths
}

/// Notices writes below a directory; falls back to looking every 100 ms where inotify has nothing to give.
struct Changes(Option<std::os::fd::OwnedFd>);

impl Changes {
    fn of(directory: &Path) -> Result<Changes> {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let watch = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|inotify| {
            let wanted = WatchFlags::MODIFY
                | WatchFlags::CREATE
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE_SELF;
            add_watch(&inotify, directory, wanted).map(|_| inotify)
        });
        Ok(Changes(watch.ok()))
    }

    /// Returns after a change, at the latest after a tenth of a second: the container's end writes nothing here.
    fn wait(&self) {
        use rustix::event::{PollFd, PollFlags};
        let Some(inotify) = &self.0 else {
            std::thread::sleep(Duration::from_millis(100));
            return;
        };
        let deadline = std::time::Instant::now() + Duration::from_millis(100);
        drop(super::wait::poll_until(
            &mut [PollFd::new(inotify, PollFlags::IN)],
            Some(deadline),
        ));
        let mut buffer = [0u8; 4096];
        while rustix::io::read(inotify, &mut buffer).is_ok_and(|count| count > 0) {}
    }
}

struct Reader {
    file: BufReader<File>,
    inode: u64,
    line: Vec<u8>,
}

impl Reader {
    fn new(file: File) -> Reader {
        Reader {
            inode: file.metadata().map_or(0, |metadata| metadata.ino()),
            file: BufReader::with_capacity(1 << 16, file),
            line: Vec::new(),
        }
    }

    /// The next whole entry; `None` at the present end. A line that is still being written is kept for the next call.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        loop {
            self.file.read_until(b'\n', &mut self.line)?;
            if !self.line.ends_with(b"\n") {
                return Ok(None);
            }
            let entry = parse(&self.line);
            self.line.clear();
            // A line that is no entry (the tail of a disk that ran full) is passed over.
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}

#[derive(Deserialize)]
struct JsonEntry {
    log: String,
    stream: String,
    time: String,
}

fn parse(line: &[u8]) -> Option<Entry> {
    if line.first() == Some(&b'{') {
        let entry: JsonEntry = serde_json::from_slice(line).ok()?;
        return Some(Entry {
            stream: stream(&entry.stream)?,
            time: entry.time,
            text: entry.log.into_bytes(),
        });
    }
    // k8s-file: TIME STREAM F|P TEXT
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.to_owned();
    let name = std::str::from_utf8(parts.next()?).ok()?;
    let whole = parts.next()? == b"F";
    let text = parts.next()?;
    Some(Entry {
        stream: stream(name)?,
        time,
        text: if whole {
            text
        } else {
            text.strip_suffix(b"\n")?
        }
        .to_vec(),
    })
}

fn stream(name: &str) -> Option<Stream> {
    match name {
        "stdout" => Some(Stream::Output),
        "stderr" => Some(Stream::Error),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read() {
        let json = parse(
            b"{\"log\":\"a\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-02T03:04:05.6Z\"}\n",
        )
        .unwrap();
        assert_eq!(
            (json.stream, json.text.as_slice()),
            (Stream::Error, b"a\n".as_slice())
        );
        let whole = parse(b"2026-01-02T03:04:05.6+00:00 stdout F hello world\n").unwrap();
        assert_eq!(
            (whole.stream, whole.text.as_slice()),
            (Stream::Output, b"hello world\n".as_slice())
        );
        let part = parse(b"2026-01-02T03:04:05.6+00:00 stdout P hello\n").unwrap();
        assert_eq!(part.text, b"hello");
        assert_eq!(parse(b"garbage\n"), None);
        assert_eq!(parse(b"{\"log\":\n"), None);
    }
}
