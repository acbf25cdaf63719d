//! The forwarders' register: `<run>/portmap/<kind or pid>.json`, one file a process.
//!
//! A file counts only while the very process that wrote it lives; so one that was killed leaves nothing that has to be
//! undone.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Error, Listen, Result};
use crate::container::model::Process;
use crate::store::{self, Context, Durability, Lock, Store, make_dir};

/// What a forwarder serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// All published ports.
    Published,
    /// One mapping by hand.
    Forward,
}

/// One socket of a forwarder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The socket.
    pub listen: Listen,
    /// Where it leads; nowhere while the container does not run.
    pub target: Option<SocketAddr>,
    /// The container's id.
    pub container: String,
    /// Why it is not open.
    pub problem: Option<String>,
}

/// One forwarder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Registration {
    /// Its process.
    pub process: Process,
    /// What it serves.
    pub kind: Kind,
    /// Since when.
    pub started: Timestamp,
    /// Its sockets.
    pub listeners: Vec<Listener>,
}

/// All forwarders that run; files of others are removed.
///
/// # Errors
/// When the directory can't be read.
pub fn list(store: &Store) -> Result<Vec<Registration>> {
    let directory = directory(store);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("list", &directory)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.context("list", &directory)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match store::read_json::<Registration>(&path) {
            Ok(Some(registration)) if registration.process.is_alive() => found.push(registration),
            // The file for all published ports has one name for ever, and may be a new one by now.
            Ok(Some(registration)) if registration.kind == Kind::Forward => {
                drop(fs::remove_file(&path));
            }
            _ => {}
        }
    }
    found.sort_by_key(|registration| (registration.kind == Kind::Forward, registration.started));
    Ok(found)
}

/// The forwarder of all published ports, if it runs.
#[must_use]
pub fn published(store: &Store) -> Option<Registration> {
    let path = directory(store).join("published.json");
    let registration: Registration = store::read_json(&path).ok()??;
    registration.process.is_alive().then_some(registration)
}

fn directory(store: &Store) -> PathBuf {
    store.run().join("portmap")
}

/// Our own entry; gone when dropped.
#[derive(Debug)]
pub(super) struct Entry {
    path: PathBuf,
    registration: Registration,
    _only: Option<Lock>,
}

impl Entry {
    /// Makes an entry without sockets; refused where there may be only one such and there is one.
    pub(super) fn new(store: &Store, kind: Kind) -> Result<Entry> {
        let directory = directory(store);
        make_dir(&directory)?;
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let (name, only) = match kind {
            Kind::Forward => (format!("{pid}.json"), None),
            Kind::Published => {
                let lock = Lock::try_exclusive(&directory.join("published.lock"))?;
                let other = || published(store).map_or(0, |other| other.process.pid);
                let lock = lock.ok_or_else(|| Error::Running(other()))?;
                ("published.json".to_owned(), Some(lock))
            }
        };
        let process = Process::remember(pid).ok_or(Error::Running(pid))?;
        let entry = Entry {
            path: directory.join(name),
            registration: Registration {
                process,
                kind,
                started: Timestamp::now(),
                listeners: Vec::new(),
            },
            _only: only,
        };
        entry.write()?;
        Ok(entry)
    }

    /// Tells what there is now, if that is news.
    pub(super) fn tell(&mut self, listeners: Vec<Listener>) -> Result<()> {
        if self.registration.listeners == listeners {
            return Ok(());
        }
        self.registration.listeners = listeners;
        self.write()
    }

    fn write(&self) -> Result<()> {
        Ok(store::write_json(
            &self.path,
            &self.registration,
            Durability::Volatile,
        )?)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}
