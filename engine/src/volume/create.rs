//! Making a volume, and keeping it from being removed while somebody starts to use it.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;

use jiff::Timestamp;

use super::{
    DATA, DRIVER, Error, LOCK, RECORD, Result, Volume, check_name, device, home, load, tell,
};
use crate::store::{self, Context, Durability, Lock, Store, make_dir};

/// How the directories of volumes in the making begin; no volume's name does.
pub(super) const UNBORN: &str = ".new-";

/// What the user said of a new volume.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Its name.
    pub name: String,
    /// Its driver; `local` when absent.
    pub driver: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
    /// Named by the engine.
    pub anonymous: bool,
}

/// Makes a volume; one of that name that is there already is left as it is, as docker does.
///
/// # Errors
/// A bad name, driver or option, or a store that can't be written.
pub fn create(store: &Store, options: &CreateOptions) -> Result<Volume> {
    make(store, options).map(|(volume, _)| volume)
}

/// As [`create`]; also tells whether the volume was made now.
///
/// # Errors
/// As [`create`].
pub fn make(store: &Store, options: &CreateOptions) -> Result<(Volume, bool)> {
    check_name(&options.name)?;
    let driver = options.driver.as_deref().unwrap_or(DRIVER);
    if !driver.is_empty() && driver != DRIVER {
        return Err(Error::NoDriver {
            name: options.name.clone(),
            driver: driver.to_owned(),
        });
    }
    device::check(&options.name, &options.options)?;
    loop {
        if let Some(there) = load(store, &options.name)? {
            return Ok((there, false));
        }
        if let Some(made) = publish(store, options)? {
            tell(store, &made.name, "create");
            return Ok((made, true));
        }
        discard_remains(store, &options.name)?;
    }
}

/// Takes away a directory that has a volume's name and neither a record nor data.
fn discard_remains(store: &Store, name: &str) -> Result<()> {
    if let Some(_lock) = super::lock(store, name, Lock::exclusive)?
        && load(store, name)?.is_none()
    {
        let home = home(store, name);
        fs::remove_dir_all(&home).context("remove", &home)?;
    }
    Ok(())
}

/// Builds the volume aside and gives it its name; `None` when somebody else was faster.
fn publish(store: &Store, options: &CreateOptions) -> Result<Option<Volume>> {
    let volume = Volume {
        name: options.name.clone(),
        created: Timestamp::now(),
        labels: options.labels.clone(),
        options: options.options.clone(),
        anonymous: options.anonymous,
    };
    // An anonymous one is worth as much as its container's record, which a power cut may take as well.
    let durability = if options.anonymous {
        Durability::Volatile
    } else {
        Durability::Durable
    };
    let fresh = store
        .volumes()
        .join(format!("{UNBORN}{}-{}", std::process::id(), options.name));
    make_dir(&fresh)?;
    // Held until the name is given: whoever finds it free takes the directory for abandoned.
    let _lock = Lock::exclusive(&fresh.join(LOCK))?;
    let build = || -> store::Result<bool> {
        let data = fresh.join(DATA);
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&data)
            .context("make volume", &data)?;
        store::write_json(&fresh.join(RECORD), &volume, durability)?;
        let home = home(store, &options.name);
        match fs::rename(&fresh, &home) {
            Ok(()) => Ok(true),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).context("make volume", &home),
        }
    };
    let built = build();
    if !matches!(built, Ok(true)) {
        drop(fs::remove_dir_all(&fresh));
    }
    Ok(built?.then_some(volume))
}

/// Takes away a directory whose maker was killed before it had its name.
pub(super) fn collect_unborn(store: &Store, name: &str) {
    let directory = store.volumes().join(name);
    if let Ok(Some(_lock)) = Lock::try_exclusive(&directory.join(LOCK)) {
        drop(fs::remove_dir_all(&directory));
    }
}

/// Makes a volume if it is not there, and keeps it from being removed as long as the lock is held: until it is on
/// disk that a container mentions it.
///
/// # Errors
/// As [`create`].
pub fn hold(store: &Store, options: &CreateOptions) -> Result<Lock> {
    check_name(&options.name)?;
    loop {
        if let Some(lock) = super::lock(store, &options.name, Lock::shared)? {
            return Ok(lock);
        }
        create(store, options)?;
    }
}
