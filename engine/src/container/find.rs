//! From a name, id or id prefix to a container, and the lock under which it may be changed.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::live::{Live, judge};
use super::model::{Changes, Config, State, Status};
use super::{Error, Result};
use crate::store::{self, Context, Durability, Event, Kind, Lock, Store, reserve};

/// What was changed after the container was created.
const CHANGES: &str = "changes.json";

/// A container that was there when it was looked up.
#[derive(Debug, Clone)]
pub struct Handle {
    /// What was asked for when it was created.
    pub config: Config,
    directory: PathBuf,
}

impl Handle {
    /// Looks a container up: a whole name first, then a whole id, then an id prefix that only one container has.
    ///
    /// # Errors
    /// [`Error::NotFound`] and [`Error::Ambiguous`]; or the store can't be read.
    pub fn find(store: &Store, text: &str) -> Result<Handle> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let not_found = || Error::NotFound(text.to_owned());
        if text.is_empty() || text.contains('/') || text.starts_with('.') {
            return Err(not_found());
        }
        if let Some(id) = reserve::owner(&store.names().join(text))?
            && let Some(handle) = Handle::open(store, &id)?
            // A `rename` that was killed half way may have left its second name behind.
            && handle.name() == text
        {
            return Ok(handle);
        }
        if let Some(handle) = Handle::open(store, text)? {
            return Ok(handle);
        }
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_found());
        }
        let mut matches = ids(store)?.into_iter().filter(|id| id.starts_with(text));
        let id = matches.next().ok_or_else(not_found)?;
        if matches.next().is_some() {
            return Err(Error::Ambiguous(text.to_owned()));
        }
        Handle::open(store, &id)?.ok_or_else(not_found)
    }

    /// Opens a container by its whole id; `None` when there is none, or it is not made yet.
    ///
    /// # Errors
    /// When its files can't be read.
    pub fn open(store: &Store, id: &str) -> Result<Option<Handle>> {
        let directory = store.container(id);
        let Some(mut config) = store::read_json(&directory.join("container.json"))? else {
            return Ok(None);
        };
        if let Some(changes) = store::read_json::<Changes>(&directory.join(CHANGES))? {
            changes.apply(&mut config);
        }
        Ok(Some(Handle { config, directory }))
    }

    /// A container that was just made.
    pub(super) fn made(store: &Store, config: Config) -> Handle {
        Handle {
            directory: store.container(&config.id),
            config,
        }
    }

    /// The whole id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// Its durable directory.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// The directory of its own changes (overlay's upper).
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.directory.join("diff")
    }

    /// The mounted root file system, while it runs.
    #[must_use]
    pub fn merged(&self) -> PathBuf {
        self.directory.join("merged")
    }

    /// Overlay's work directory.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// Its bundle: `config.json` and the monitor's sockets. Made anew at each start, gone at its end.
    #[must_use]
    pub fn bundle(&self, store: &Store) -> PathBuf {
        store.container_run(self.id())
    }

    /// The fifo that takes window sizes, while it runs.
    #[must_use]
    pub fn control(&self, store: &Store) -> PathBuf {
        self.bundle(store).join("ctl")
    }

    /// The log that its monitor writes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.join(format!("{}-json.log", self.config.id))
    }

    /// The present name: the one reserved for it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// How far it has come, as recorded. A container without a record is still being made.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn state(&self) -> Result<State> {
        match store::read_json(&self.directory.join("state.json")) {
            Ok(state) => Ok(state.unwrap_or_default()),
            // A power cut can leave an empty file. Whatever it said, the container does not run any more.
            Err(store::Error::Damaged { path, .. }) => Ok(State {
                status: Status::Exited,
                error: format!("{} was damaged", path.display()),
                ..State::default()
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Records how far it has come. Only under [`Handle::lock`].
    ///
    /// # Errors
    /// When the record can't be written.
    pub fn save(&self, state: &State) -> Result<()> {
        // Not durable: after a power cut the old status says "running" of a process that can't be alive, and that is
        // recognised.
        store::write_json(
            &self.directory.join("state.json"),
            state,
            Durability::Volatile,
        )
        .map_err(Error::from)
    }

    /// Records what is changed of what was asked for, and takes it over. Only under [`Handle::lock`].
    ///
    /// # Errors
    /// When the record can't be read or written; nothing is changed then.
    pub fn change(&mut self, change: impl FnOnce(&mut Changes)) -> Result<()> {
        let path = self.directory.join(CHANGES);
        let mut changes = store::read_json::<Changes>(&path)?.unwrap_or_default();
        change(&mut changes);
        store::write_json(&path, &changes, Durability::Durable)?;
        changes.apply(&mut self.config);
        Ok(())
    }

    /// The same container with what may have been changed since it was looked up. Under [`Handle::lock`] it stays so.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn latest(&self) -> Result<Handle> {
        let mut handle = self.clone();
        if let Some(changes) = store::read_json::<Changes>(&self.directory.join(CHANGES))? {
            changes.apply(&mut handle.config);
        }
        Ok(handle)
    }

    /// Something that happens to this container now, with what docker says beside it.
    #[must_use]
    pub fn event(&self, action: impl Into<String>) -> Event {
        let config = &self.config;
        let labels = config
            .image_config
            .config
            .labels
            .iter()
            .chain(&config.options.labels);
        let event = Event::new(Kind::Container, action, &config.id);
        labels
            .fold(event, |event, (key, value)| event.with(key, value))
            .with("image", &config.options.image)
            .with("name", &config.name)
    }

    /// What it is doing now.
    ///
    /// # Errors
    /// When the record can't be read.
    pub fn live(&self, store: &Store) -> Result<(State, Live)> {
        let state = self.state()?;
        let live = judge(store, self.id(), &state);
        Ok((state, live))
    }

    /// Waits for the right to change it. [`Error::NotFound`] when it was removed meanwhile.
    ///
    /// # Errors
    /// As said, or the lock file can't be opened.
    pub fn lock(&self) -> Result<Lock> {
        let gone = || Error::NotFound(self.config.name.clone());
        if !self.directory.exists() {
            return Err(gone());
        }
        let lock = match Lock::exclusive(&self.directory.join("lock")) {
            Err(_) if !self.directory.exists() => return Err(gone()),
            other => other?,
        };
        if self.directory.join("container.json").exists() {
            Ok(lock)
        } else {
            Err(gone())
        }
    }

    /// Takes the right to change it if nobody has it.
    ///
    /// # Errors
    /// When the lock file can't be opened.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        let lock = Lock::try_exclusive(&self.directory.join("lock"));
        if !self.directory.join("container.json").exists() {
            return Ok(None); // Removed meanwhile.
        }
        Ok(lock?)
    }
}

/// Ids of all containers, also of those still being made.
///
/// # Errors
/// When the directory can't be read.
pub fn ids(store: &Store) -> Result<Vec<String>> {
    let directory = store.containers();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("read", &directory)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.context("read", &directory)?.file_name();
        if let Some(name) = name.to_str()
            && !name.starts_with('.')
        {
            ids.push(name.to_owned());
        }
    }
    Ok(ids)
}

/// All containers, newest first. One that vanishes while we look is left out, and so are the steps of builds.
///
/// # Errors
/// When the store can't be read.
pub fn all(store: &Store) -> Result<Vec<Handle>> {
    let mut handles = Vec::new();
    for id in ids(store)? {
        // One with a damaged record must not hide all the others.
        if let Ok(Some(handle)) = Handle::open(store, &id)
            && !handle.config.options.build_step
        {
            handles.push(handle);
        }
    }
    handles.sort_by_key(|handle| std::cmp::Reverse(handle.config.created));
    Ok(handles)
}
