//! Reading what a container has written: json-file and k8s-file logs, rotated ones first, followed to the end. What the
//! journal has is read in [`journal`]; which drivers there are is in [`driver`].

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use memchr::{memchr, memchr2};
use serde::Deserialize;

use super::find::Handle;
use super::model::Status;
use super::{Error, Result, SystemContext};
use crate::store::Store;

mod backwards;
pub mod driver;
mod journal;

use backwards::Lines;

pub use driver::{Driver, details};

/// Which of the container's two streams a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stream {
    /// Standard output.
    #[default]
    Output,
    /// Standard error.
    Error,
}

/// One entry of the log; a long line of the container is several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    let mut files = after(&path, None);
    if let Some(tail) = query.tail {
        for entry in last(&mut files, query, tail).system("read", "log")? {
            emit(&entry)?;
        }
    } else {
        for file in &mut files {
            while let Some(entry) = file.next().system("read", "log")? {
                if query.wants(entry) {
                    emit(entry)?;
                }
            }
        }
    }
    if query.follow {
        follow(store, handle, &path, files.pop(), query, &mut emit)?;
    }
    Ok(())
}

/// The last `tail` lines of what is wanted, found from the end on. The files are left at their present ends.
fn last(files: &mut [Reader], query: &Query, tail: usize) -> io::Result<VecDeque<Entry>> {
    let mut kept = VecDeque::new();
    let mut lines_kept = 0;
    let mut entry = Entry::default();
    for reader in files.iter_mut().rev() {
        let mut lines = Lines::new(reader.file.get_ref())?;
        let end = lines.end();
        while lines_kept <= tail
            && let Some(line) = lines.next()?
        {
            if parse(line, &mut entry).is_none() || !query.wants(&entry) {
                continue;
            }
            lines_kept += usize::from(entry.text.ends_with(b"\n"));
            // The end of the line before them is the first that is too much.
            if lines_kept <= tail {
                kept.push_front(entry.clone());
            }
        }
        reader.file.seek(SeekFrom::Start(end))?;
    }
    Ok(kept)
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
                if query.wants(entry) {
                    emit(entry)?;
                }
            }
        }
        let present = std::fs::metadata(path).ok().map(|metadata| metadata.ino());
        if present.is_some() && present != reader.as_ref().map(|reader| reader.inode) {
            let newer = after(path, reader.as_ref().map(|reader| reader.inode));
            for mut file in reader.take().into_iter().chain(newer) {
                while let Some(entry) = file.next().system("read", path)? {
                    if query.wants(entry) {
                        emit(entry)?;
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
    /// The beginning of a line whose rest was not in the buffer.
    line: Vec<u8>,
    /// The latest, again and again: there are millions, and memory for each costs more than reading it.
    entry: Entry,
}

impl Reader {
    fn new(file: File) -> Reader {
        Reader {
            inode: file.metadata().map_or(0, |metadata| metadata.ino()),
            file: BufReader::with_capacity(1 << 16, file),
            line: Vec::new(),
            entry: Entry::default(),
        }
    }

    /// The next whole entry; `None` at the present end. A line that is still being written is kept for the next call.
    fn next(&mut self) -> io::Result<Option<&Entry>> {
        loop {
            let buffer = self.file.fill_buf()?;
            let Some(end) = memchr(b'\n', buffer) else {
                let length = buffer.len();
                if length == 0 {
                    return Ok(None);
                }
                self.line.extend_from_slice(buffer);
                self.file.consume(length);
                continue;
            };
            // Most lines lie in the buffer as a whole, and need not be copied.
            let parsed = if self.line.is_empty() {
                parse(&buffer[..=end], &mut self.entry)
            } else {
                self.line.extend_from_slice(&buffer[..=end]);
                let parsed = parse(&self.line, &mut self.entry);
                self.line.clear();
                parsed
            };
            self.file.consume(end + 1);
            // A line that is no entry (the tail of a disk that ran full) is passed over.
            if parsed.is_some() {
                return Ok(Some(&self.entry));
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

/// Reads a line into `entry`, whose memory is used again; `None` when it is no entry.
fn parse(line: &[u8], entry: &mut Entry) -> Option<()> {
    if line.first() == Some(&b'{') {
        if parse_plain_json(line, entry).is_some() {
            return Some(());
        }
        let json: JsonEntry = serde_json::from_slice(line).ok()?;
        *entry = Entry {
            stream: stream(&json.stream)?,
            time: json.time,
            text: json.log.into_bytes(),
        };
        return Some(());
    }
    // k8s-file: TIME STREAM F|P TEXT
    let (time, rest) = cut(line)?;
    let (name, rest) = cut(rest)?;
    let (tag, text) = cut(rest)?;
    let time = std::str::from_utf8(time).ok()?;
    let stream = stream(std::str::from_utf8(name).ok()?)?;
    let text = match tag {
        b"F" => text,
        _ => text.strip_suffix(b"\n")?,
    };
    entry.set(stream, time, text);
    Some(())
}

/// What is before and after the first space.
fn cut(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', line)?;
    Some((&line[..space], &line[space + 1..]))
}

/// A line of the monitor's own without an escape but that of the newline at the end, as most are.
fn parse_plain_json(line: &[u8], entry: &mut Entry) -> Option<()> {
    let rest = line.strip_prefix(b"{\"log\":\"")?;
    let rest = rest.strip_suffix(b"\"}\n")?;
    let quote = rest.iter().rposition(|&byte| byte == b'"')?;
    let time = std::str::from_utf8(&rest[quote + 1..]).ok()?;
    let rest = rest[..quote].strip_suffix(b"\",\"time\":")?;
    let (stream, text) = match rest.strip_suffix(b"\",\"stream\":\"stdout") {
        Some(text) => (Stream::Output, text),
        None => (Stream::Error, rest.strip_suffix(b"\",\"stream\":\"stderr")?),
    };
    let (text, whole) = match text.strip_suffix(b"\\n") {
        Some(text) => (text, true),
        None => (text, false),
    };
    if memchr2(b'\\', b'"', text).is_some() || time.contains('\\') {
        return None;
    }
    std::str::from_utf8(text).ok()?;
    entry.set(stream, time, text);
    if whole {
        entry.text.push(b'\n');
    }
    Some(())
}

impl Entry {
    fn set(&mut self, stream: Stream, time: &str, text: &[u8]) {
        self.stream = stream;
        self.time.clear();
        self.time.push_str(time);
        self.text.clear();
        self.text.extend_from_slice(text);
    }
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

    fn parsed(line: &[u8]) -> Option<Entry> {
        let mut entry = Entry {
            stream: Stream::Error,
            time: "before".into(),
            text: b"before".into(),
        };
        parse(line, &mut entry).map(|()| entry)
    }

    #[test]
    fn both_formats_are_read() {
        let json = parsed(
            b"{\"log\":\"a\\n\",\"stream\":\"stderr\",\"time\":\"2026-01-02T03:04:05.6Z\"}\n",
        )
        .unwrap();
        assert_eq!(
            (json.stream, json.text.as_slice()),
            (Stream::Error, b"a\n".as_slice())
        );
        let whole = parsed(b"2026-01-02T03:04:05.6+00:00 stdout F hello world\n").unwrap();
        assert_eq!(
            (whole.stream, whole.text.as_slice()),
            (Stream::Output, b"hello world\n".as_slice())
        );
        let part = parsed(b"2026-01-02T03:04:05.6+00:00 stdout P hello\n").unwrap();
        assert_eq!(part.text, b"hello");
        assert_eq!(parsed(b"garbage\n"), None);
        assert_eq!(parsed(b"{\"log\":\n"), None);
    }

    #[test]
    fn the_short_way_reads_what_the_long_one_does() {
        let texts = [
            r"plain\n",
            r"plain",
            r"",
            r"\n",
            r"\\n",
            r"\\\n",
            r#"a \"quoted\" one\n"#,
            r"tab\there\n",
            r"\u001b[0m\n",
            "gr\u{fc}n\\n",
            r#"\",\"stream\":\"stdout\n"#,
            r#"{\"log\":\"x\"}\n"#,
        ];
        for text in texts {
            for stream in ["stdout", "stderr"] {
                let line = format!(
                    "{{\"log\":\"{text}\",\"stream\":\"{stream}\",\"time\":\"2026-01-02T03:04:05.6Z\"}}\n"
                );
                let long: JsonEntry = serde_json::from_str(&line).unwrap();
                let short = parsed(line.as_bytes()).unwrap();
                assert_eq!(short.text, long.log.as_bytes(), "{line}");
                assert_eq!(short.time, long.time, "{line}");
                assert_eq!(Some(short.stream), super::stream(&long.stream), "{line}");
            }
        }
        // What is no text is refused on either way.
        let line = b"{\"log\":\"\xff\",\"stream\":\"stdout\",\"time\":\"x\"}\n";
        assert_eq!(parsed(line), None);
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let record =
            |tag: &str, text: &str| format!("2026-01-02T03:04:05.6+00:00 stdout {tag} {text}\n");
        let old = ["F 1", "P 2", "F a", "F 3"];
        let new = ["P 4", "P b", "F c", "F 5", "P 6"];
        for (path, records) in [
            (path.with_extension("1"), &old[..]),
            (path.clone(), &new[..]),
        ] {
            let pairs = records.iter().filter_map(|record| record.split_once(' '));
            let text: String = pairs.map(|(tag, text)| record(tag, text)).collect();
            std::fs::write(path, text).unwrap();
        }
        let mut log = File::options().append(true).open(&path).unwrap();
        let half = record("F", "7");
        log.write_all(&half.as_bytes()[..10]).unwrap();
        for (tail, expected) in [
            (0, "6"),
            (1, "5\n6"),
            (2, "4bc\n5\n6"),
            (3, "3\n4bc\n5\n6"),
            (4, "2a\n3\n4bc\n5\n6"),
            (5, "1\n2a\n3\n4bc\n5\n6"),
            (6, "1\n2a\n3\n4bc\n5\n6"),
        ] {
            let mut files = after(&path, None);
            let entries = last(&mut files, &Query::default(), tail).unwrap();
            let text: Vec<u8> = entries.into_iter().flat_map(|entry| entry.text).collect();
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{tail}");
            for file in &mut files {
                assert_eq!(file.next().unwrap(), None);
            }
        }
        // Whoever follows goes on behind them, with what was half there.
        let mut files = after(&path, None);
        last(&mut files, &Query::default(), 1).unwrap();
        let file = files.last_mut().unwrap();
        assert_eq!(file.next().unwrap(), None);
        log.write_all(&half.as_bytes()[10..]).unwrap();
        assert_eq!(file.next().unwrap().unwrap().text, b"7\n");
    }
}
