//! What happened to containers, images, networks and volumes: a journal that anybody can follow.
//!
//! There is no daemon that could tell. Whoever does something appends one line of JSON to a file of the store with one
//! `write(2)` on `O_APPEND` ([`Store::emit`]): the kernel puts concurrent lines behind each other, so there is no lock;
//! and there is no fsync, since nothing depends on an event. A reader ([`follow`]) watches the directory with inotify.
//!
//! The files are numbered. Whoever finds the newest one full begins the next by creating it, which any number of
//! writers may do at once, and removes all but the one before; so the journal has a bound. A writer that was slow may
//! still append to the file before the newest, which is why readers look at both.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::{Context, Result, Store, make_dir};

/// Size at which a file is full: two of them hold some ten thousand events.
const FULL: u64 = 4 << 20;

/// The longest line. An event that would be longer, by its labels, goes without attributes.
const LONGEST: usize = 64 << 10;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container; the actor is its id.
    Container,
    /// An image; the actor is its id or name.
    Image,
    /// A network; the actor is its id.
    Network,
    /// A volume; the actor is its name.
    Volume,
}

impl Kind {
    /// Docker's word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Container => "container",
            Kind::Image => "image",
            Kind::Network => "network",
            Kind::Volume => "volume",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// To what kind of thing.
    #[serde(rename = "Type")]
    pub kind: Kind,
    /// What, in docker's words: `start`, `die`, `pull`, …
    #[serde(rename = "Action")]
    pub action: String,
    /// To which one, and what else is worth knowing.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// When, in nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub nanoseconds: i64,
}

/// Whom an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Its id or name.
    #[serde(rename = "ID")]
    pub id: String,
    /// Names, labels, exit codes.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// Something that happens now.
    #[must_use]
    pub fn new(kind: Kind, action: impl Into<String>, id: impl Into<String>) -> Event {
        Event {
            kind,
            action: action.into(),
            actor: Actor {
                id: id.into(),
                attributes: BTreeMap::new(),
            },
            nanoseconds: i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX),
        }
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Event {
        self.actor.attributes.insert(key.into(), value.into());
        self
    }

    /// When it happened.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.nanoseconds.into()).unwrap_or(Timestamp::MAX)
    }

    fn line(&self) -> Vec<u8> {
        let write = |event: &Event| serde_json::to_vec(event).unwrap_or_default();
        let mut line = write(self);
        if line.len() >= LONGEST {
            let mut short = self.clone();
            short.actor.attributes.clear();
            line = write(&short);
        }
        line.push(b'\n');
        line
    }
}

impl Store {
    /// Tells those who follow [`follow`] that something has happened. What was done is done whether or not it can be
    /// told, so a journal that can't be written is no error.
    pub fn emit(&self, event: &Event) {
        drop(append(&self.events(), &event.line()));
    }

    /// The journal's directory.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.root().join("events")
    }
}

fn append(directory: &Path, line: &[u8]) -> io::Result<()> {
    let newest = match newest(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(directory).map_err(io::Error::other)?;
            0
        }
        other => other?,
    };
    let mut file = open_to_append(directory, newest)?;
    let written = file.write(line)?;
    if written < line.len() {
        // The disk is full: at least the next one shall begin on a line of its own.
        drop(file.write(b"\n"));
    }
    if file.metadata()?.len() >= FULL {
        open_to_append(directory, newest + 1)?;
        for number in numbers(directory)? {
            if number < newest {
                drop(fs::remove_file(numbered(directory, number)));
            }
        }
    }
    Ok(())
}

fn open_to_append(directory: &Path, number: u64) -> io::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(numbered(directory, number))
}

fn numbered(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("journal.{number}"))
}

fn newest(directory: &Path) -> io::Result<u64> {
    Ok(numbers(directory)?.into_iter().max().unwrap_or(0))
}

fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("journal."));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Which events are wanted. Conditions of different fields must all hold, of one field any.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Kinds of things.
    pub kinds: Vec<String>,
    /// Actions.
    pub actions: Vec<String>,
    /// Ids, prefixes of ids, or names of containers.
    pub containers: Vec<String>,
    /// Names or ids of images: events of the image, and of containers made of it.
    pub images: Vec<String>,
    /// Names or ids of networks.
    pub networks: Vec<String>,
    /// Names of volumes.
    pub volumes: Vec<String>,
    /// `KEY` or `KEY=VALUE`.
    pub labels: Vec<String>,
}

impl Filter {
    /// Whether the event is one of them.
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        let any = |list: &[String], holds: &dyn Fn(&str) -> bool| {
            list.is_empty() || list.iter().any(|value| holds(value))
        };
        let attribute = |key: &str| event.actor.attributes.get(key).map(String::as_str);
        let is_called = |kind: Kind, value: &str| {
            event.kind == kind
                && (attribute("name") == Some(value)
                    || (!value.is_empty() && event.actor.id.starts_with(value)))
        };
        any(&self.kinds, &|kind| kind == event.kind.word())
            // `exec_create: sh -c true` is found as `exec_create`.
            && any(&self.actions, &|action| {
                event.action == action || event.action.split(':').next() == Some(action)
            })
            && any(&self.containers, &|value| {
                is_called(Kind::Container, value.strip_prefix('/').unwrap_or(value))
                    || attribute("container").is_some_and(|id| !value.is_empty() && id.starts_with(value))
            })
            && any(&self.images, &|value| {
                is_called(Kind::Image, value)
                    || attribute(if event.kind == Kind::Image { "name" } else { "image" })
                        .is_some_and(|name| name == value || without_tag(name) == value)
            })
            && any(&self.networks, &|value| is_called(Kind::Network, value))
            && any(&self.volumes, &|value| is_called(Kind::Volume, value))
            && self.labels.iter().all(|label| match label.split_once('=') {
                Some((key, value)) => attribute(key) == Some(value),
                None => attribute(label).is_some(),
            })
    }
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// From when to when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    /// Nothing older; without it, nothing that has happened already.
    pub since: Option<Timestamp>,
    /// Nothing newer; without it, it never ends.
    pub until: Option<Timestamp>,
}

/// Hands events to `sink` as they happen, those asked for of the past first.
///
/// # Errors
/// When the journal can't be read or watched, or `sink` fails, which is how to end it.
pub fn follow(
    store: &Store,
    span: Span,
    filter: &Filter,
    sink: &mut dyn FnMut(&Event) -> io::Result<()>,
) -> Result<()> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let directory = store.events();
    make_dir(&directory)?;
    // Before the first look, so that nothing comes between.
    let inotify =
        init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("watch", &directory)?;
    add_watch(
        &inotify,
        &directory,
        WatchFlags::MODIFY | WatchFlags::CREATE,
    )
    .context("watch", &directory)?;
    let mut journal = Journal::default();
    if span.since.is_none() {
        journal
            .skip_to_end(&directory)
            .context("read", &directory)?;
    }
    loop {
        // Asked before reading: what was written until then is certainly read.
        let now = Timestamp::now();
        let mut wanted = |event: &Event| {
            let time = event.time();
            let is_in_time = span.since.is_none_or(|since| time >= since)
                && span.until.is_none_or(|until| time <= until);
            if is_in_time && filter.wants(event) {
                sink(event)
            } else {
                Ok(())
            }
        };
        journal
            .read(&directory, &mut wanted)
            .context("read", &directory)?;
        let left = match span.until {
            Some(until) if now >= until => return Ok(()),
            Some(until) => Some(Duration::try_from(until.duration_since(now)).unwrap_or_default()),
            None => None,
        };
        wait(&inotify, left).context("watch", &directory)?;
    }
}

fn wait(inotify: &std::os::fd::OwnedFd, longest: Option<Duration>) -> io::Result<()> {
    let deadline = longest.and_then(|longest| Instant::now().checked_add(longest));
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut [PollFd::new(inotify, PollFlags::IN)], timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut buffer = [0u8; 4096];
    while rustix::io::read(inotify, &mut buffer).is_ok_and(|count| count > 0) {}
    Ok(())
}

/// The open files of the journal: the newest two at most.
#[derive(Debug, Default)]
struct Journal {
    files: BTreeMap<u64, (BufReader<File>, Vec<u8>)>,
}

impl Journal {
    fn open_new(&mut self, directory: &Path) -> io::Result<()> {
        let oldest_known = self.files.keys().next().copied().unwrap_or(0);
        for number in numbers(directory)? {
            if number >= oldest_known && !self.files.contains_key(&number) {
                match File::open(numbered(directory, number)) {
                    Ok(file) => {
                        let file = (BufReader::with_capacity(1 << 16, file), Vec::new());
                        self.files.insert(number, file);
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn skip_to_end(&mut self, directory: &Path) -> io::Result<()> {
        self.open_new(directory)?;
        for (file, _) in self.files.values_mut() {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(())
    }

    fn read(
        &mut self,
        directory: &Path,
        sink: &mut dyn FnMut(&Event) -> io::Result<()>,
    ) -> io::Result<()> {
        self.open_new(directory)?;
        for (file, line) in self.files.values_mut() {
            loop {
                file.read_until(b'\n', line)?;
                if !line.ends_with(b"\n") {
                    break; // Still being written: the next call has the rest.
                }
                // A line cut off by a full disk is passed over.
                if let Ok(event) = serde_json::from_slice::<Event>(line) {
                    sink(&event)?;
                }
                line.clear();
            }
        }
        while self.files.len() > 2 {
            self.files.pop_first();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(directory.path().join("root"), directory.path().join("run")).unwrap();
        (directory, store)
    }

    fn past(store: &Store, filter: &Filter) -> Vec<Event> {
        let span = Span {
            since: Some(Timestamp::UNIX_EPOCH),
            until: Some(Timestamp::now()),
        };
        let mut events = Vec::new();
        follow(store, span, filter, &mut |event| {
            events.push(event.clone());
            Ok(())
        })
        .unwrap();
        events
    }

    #[test]
    fn what_was_told_is_heard_in_order() {
        let (_directory, store) = store();
        store.emit(&Event::new(Kind::Container, "start", "aa").with("name", "web"));
        store.emit(&Event::new(Kind::Image, "pull", "base:latest"));
        let events = past(&store, &Filter::default());
        let seen: Vec<&str> = events.iter().map(|event| event.action.as_str()).collect();
        assert_eq!(seen, ["start", "pull"]);
        assert_eq!(events[0].actor.attributes["name"], "web");
    }

    #[test]
    fn filters_of_one_kind_are_alternatives_and_of_several_all_count() {
        let event = Event::new(Kind::Container, "exec_create: sh", "aabb")
            .with("name", "web")
            .with("image", "localhost:5000/base:1")
            .with("tier", "front");
        let list = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
        let filter = |kinds: &[&str], actions: &[&str], containers: &[&str]| Filter {
            kinds: list(kinds),
            actions: list(actions),
            containers: list(containers),
            ..Filter::default()
        };
        for (filter, wanted) in [
            (filter(&[], &[], &[]), true),
            (filter(&["image", "container"], &[], &[]), true),
            (filter(&["image"], &[], &[]), false),
            (filter(&[], &["exec_create"], &["web"]), true),
            (filter(&[], &["exec_create"], &["aab"]), true),
            (filter(&[], &["start"], &["web"]), false),
            (filter(&[], &[], &["we"]), false),
        ] {
            assert_eq!(filter.wants(&event), wanted, "{filter:?}");
        }
        for (label, wanted) in [("tier", true), ("tier=front", true), ("tier=back", false)] {
            let filter = Filter {
                labels: list(&[label]),
                ..Filter::default()
            };
            assert_eq!(filter.wants(&event), wanted, "{label}");
        }
        for (image, wanted) in [
            ("localhost:5000/base", true),
            ("localhost:5000/base:1", true),
            ("base", false),
        ] {
            let filter = Filter {
                images: list(&[image]),
                ..Filter::default()
            };
            assert_eq!(filter.wants(&event), wanted, "{image}");
        }
    }

    #[test]
    fn the_journal_has_a_bound_and_loses_nothing_recent() {
        let (_directory, store) = store();
        let text = "x".repeat(30_000);
        for number in 0..500 {
            let event = Event::new(Kind::Volume, "create", number.to_string());
            store.emit(&event.with("label", &text));
        }
        let size: u64 = fs::read_dir(store.events())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 2 * (FULL + LONGEST as u64), "{size}");
        let events = past(&store, &Filter::default());
        let seen: Vec<usize> = events
            .iter()
            .map(|it| it.actor.id.parse().unwrap())
            .collect();
        assert!(seen.len() > 100);
        assert!(seen.windows(2).all(|pair| pair[1] == pair[0] + 1));
        assert_eq!(seen.last(), Some(&499));
    }

    #[test]
    fn many_writers_disturb_each_other_nowhere() {
        let (_directory, store) = store();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..200 {
                        store.emit(&Event::new(
                            Kind::Network,
                            "connect",
                            format!("{writer}-{number}"),
                        ));
                    }
                });
            }
        });
        assert_eq!(past(&store, &Filter::default()).len(), 1600);
    }
}
