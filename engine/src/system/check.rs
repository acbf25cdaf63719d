//! Whether the store and what the kernel has of it fit together.
//!
//! Nothing here waits for anybody: what somebody is at work on (its lock is held) is passed over, since it may look
//! wrong and be right a moment later. A finding says what is wrong and, where that can be put right without losing
//! anything, how; [`repair`] does it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::container::{self, Handle, Live, Programs, find, recover};
use crate::image::{self, verify};
use crate::network;
use crate::store::{Lock, Store, reserve};

mod kernel;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about: a path, a name.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
    /// How it can be put right; `None` where only the user can.
    pub remedy: Option<Remedy>,
}

/// How a finding is put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Remove a link or file.
    RemoveFile(PathBuf),
    /// Give a reservation back, if it still is this container's and that does not run.
    Release {
        /// The reservation.
        link: PathBuf,
        /// The container's id.
        owner: String,
    },
    /// Remove a directory and all below it.
    RemoveTree(PathBuf),
    /// Remove a cgroup, which has to be empty.
    RemoveCgroup(PathBuf),
    /// Take a mount away.
    Unmount(PathBuf),
    /// Undo, or end, what a killed command left of this container.
    Recover(String),
    /// Take interfaces, bridges, rules and reservations without owner away.
    CollectNetworks,
    /// Unpack the layers of this image again.
    Unpack(String),
    /// Remove what killed commands left in the image store.
    CollectImages,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Everything that is wrong.
    pub findings: Vec<Finding>,
    /// Containers looked at.
    pub containers: usize,
    /// Images looked at.
    pub images: usize,
    /// Their blobs.
    pub blobs: usize,
    /// Bytes of blobs that were hashed.
    pub hashed: u64,
}

/// What can go wrong with the check itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// On the containers' side.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// On the images' side.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// On the networks' side.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// On the volumes' side.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The store itself.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// A repair did not succeed.
    #[error("cannot {action} {path}")]
    Repair {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Younger than that, a thing may be somebody's who is just about to say so.
const SETTLED: Duration = Duration::from_secs(60);

/// Looks at everything; with `hash` the blobs are read in full.
///
/// # Errors
/// When the store can't be read.
pub fn check(store: &Store, hash: bool) -> Result<Report> {
    let mut report = Report::default();
    containers(store, &mut report)?;
    reservations(store, &mut report)?;
    leftovers(store, &mut report);
    for text in network::stale(store)? {
        report.add("network", text, Some(Remedy::CollectNetworks));
    }
    kernel::mounts(store, &mut report);
    kernel::cgroups(store, &mut report);
    let verdict = verify::verify(store, hash)?;
    report.images = verdict.images;
    report.blobs = verdict.blobs;
    report.hashed = verdict.hashed;
    for fault in verdict.faults {
        let remedy = fault
            .can_unpack
            .then(|| Remedy::Unpack(fault.image.clone()));
        report.add(&format!("image {}", fault.image), fault.problem, remedy);
    }
    Ok(report)
}

/// Puts one finding right.
///
/// # Errors
/// When it could not be.
pub fn repair(store: &Store, programs: &Programs, remedy: &Remedy) -> Result<()> {
    let done = |action, path: &Path, result: std::io::Result<()>| match result {
        // Another finding's remedy, or another command, was faster.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| Error::Repair {
            action,
            path: path.to_owned(),
            source,
        }),
    };
    match remedy {
        Remedy::RemoveFile(path) => done("remove", path, fs::remove_file(path)),
        Remedy::Release { link, owner } => release(store, link, owner),
        Remedy::RemoveTree(path) => {
            // Never a walk into what may be a volume, or a host's directory.
            let result = match kernel::is_mounted_below(path) {
                true => Err(rustix::io::Errno::BUSY.into()),
                false => bundle_tools::remove_tree(path),
            };
            done("remove", path, result)
        }
        Remedy::RemoveCgroup(path) => done("remove cgroup", path, kernel::remove_cgroup(path)),
        Remedy::Unmount(path) => {
            let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::NOFOLLOW;
            match rustix::mount::unmount(path, flags) {
                // Not mounted any more.
                Err(rustix::io::Errno::INVAL) => Ok(()),
                other => done("unmount", path, other.map_err(Into::into)),
            }
        }
        Remedy::Recover(id) => {
            recover::collect(store, programs, id)?;
            Ok(())
        }
        Remedy::CollectNetworks => Ok(network::collect(store)?),
        Remedy::Unpack(name) => {
            let image = image::require(store, name)?;
            image::lower_directories(store, &image)?;
            Ok(())
        }
        Remedy::CollectImages => {
            image::sweep(store)?;
            Ok(())
        }
    }
}

/// The finding may be minutes old: it is looked at again, under the container's lock.
fn release(store: &Store, link: &Path, owner: &str) -> Result<()> {
    let home = store.container(owner);
    if home.exists() {
        let Some(_lock) = Lock::try_exclusive(&home.join("lock"))? else {
            return Ok(());
        };
        if !runs(store, owner) {
            reserve::release(store, link, owner)?;
        }
        return Ok(());
    }
    Ok(reserve::release(store, link, owner)?)
}

impl Report {
    fn add(&mut self, subject: &str, problem: impl Into<String>, remedy: Option<Remedy>) {
        self.findings.push(Finding {
            subject: subject.to_owned(),
            problem: problem.into(),
            remedy,
        });
    }
}

impl Report {
    /// Whether the container as a whole is to be put right, and with it all that it has.
    fn will_recover(&self, id: &str) -> bool {
        self.findings
            .iter()
            .any(|finding| matches!(&finding.remedy, Some(Remedy::Recover(it)) if it == id))
    }
}

/// Containers that are half made or half gone, that can't be read, or that lack their name.
fn containers(store: &Store, report: &mut Report) -> Result<()> {
    for id in find::ids(store)? {
        let directory = store.container(&id);
        report.containers += 1;
        let subject = format!("container {}", short(&id));
        let handle = match Handle::open(store, &id) {
            Ok(Some(handle)) => handle,
            Ok(None) => {
                if is_free(&directory) && directory.exists() {
                    let problem = "was never finished";
                    report.add(&subject, problem, Some(Remedy::Recover(id)));
                }
                continue;
            }
            Err(error) => {
                report.add(&subject, format!("can't be read: {error}"), None);
                continue;
            }
        };
        if !is_free(&directory) {
            continue;
        }
        if recover::is_unfinished(store, &handle)? {
            let problem = "was left unfinished by a command that was killed";
            report.add(&subject, problem, Some(Remedy::Recover(id)));
            continue;
        }
        let link = store.names().join(handle.name());
        if reserve::owner(&link)?.as_deref() != Some(handle.id()) {
            let problem = format!("does not own its name {}", handle.name());
            report.add(&subject, problem, None);
        }
    }
    Ok(())
}

/// Names, addresses and ports that belong to nobody, or to a container that does not run.
fn reservations(store: &Store, report: &mut Report) -> Result<()> {
    let addresses = entries(&store.addresses());
    let mut directories = vec![(store.names(), false), (store.ports(), true)];
    directories.extend(addresses.into_iter().map(|path| (path, true)));
    for (directory, while_running) in directories {
        for link in entries(&directory) {
            let Some(owner) = reserve::owner(&link).ok().flatten() else {
                continue;
            };
            let subject = relative(store, &link);
            let remedy = Some(Remedy::Release {
                link,
                owner: owner.clone(),
            });
            let home = store.container(&owner);
            if !home.exists() {
                let problem = format!("reserved for container {}, which is gone", short(&owner));
                report.add(&subject, problem, remedy);
            } else if while_running
                && is_free(&home)
                && !runs(store, &owner)
                && !report.will_recover(&owner)
            {
                let problem = format!(
                    "reserved for container {}, which does not run",
                    short(&owner)
                );
                report.add(&subject, problem, remedy);
            }
        }
    }
    Ok(())
}

/// Files and directories that killed commands, or a crash, left behind.
fn leftovers(store: &Store, report: &mut Report) {
    let known: HashSet<String> = find::ids(store).unwrap_or_default().into_iter().collect();
    for path in entries(&store.containers()) {
        if name_of(&path).starts_with(".new-") && is_settled(&path) {
            let subject = relative(store, &path);
            report.add(
                &subject,
                "a container that was never made",
                Some(Remedy::RemoveTree(path)),
            );
        }
    }
    for path in entries(&store.root().join("trash")) {
        let subject = relative(store, &path);
        let remedy = Some(Remedy::RemoveTree(path));
        report.add(&subject, "a removed container that is not all gone", remedy);
    }
    for path in entries(store.run()) {
        let id = name_of(&path);
        if !is_id(&id) || !is_settled(&path) || report.will_recover(&id) {
            continue;
        }
        let subject = path.display().to_string();
        let remedy = Some(Remedy::RemoveTree(path));
        if !known.contains(&id) {
            report.add(&subject, "sockets of a container that is gone", remedy);
        } else if is_free(&store.container(&id)) && !runs(store, &id) {
            report.add(&subject, "sockets of a container that does not run", remedy);
        }
    }
    for path in entries(&store.exits()) {
        if !known.contains(&name_of(&path)) && is_settled(&path) {
            let subject = path.display().to_string();
            let remedy = Some(Remedy::RemoveFile(path));
            report.add(&subject, "an exit code that nobody will ask for", remedy);
        }
    }
    let nobody_writes = image::nobody_writes(store);
    for path in entries(&store.layers()) {
        if name_of(&path).starts_with(image::layers::TEMPORARY)
            && nobody_writes
            && is_settled(&path)
        {
            let subject = relative(store, &path);
            report.add(
                &subject,
                "a layer that was never finished",
                Some(Remedy::CollectImages),
            );
        }
    }
    for directory in [store.root().to_owned(), store.networks()] {
        for path in entries(&directory) {
            let name = name_of(&path);
            let writer = name.rsplit_once(".tmp-").map(|(_, pid)| pid.to_owned());
            let is_dead = writer.is_some_and(|pid| !Path::new("/proc").join(pid).exists());
            if is_dead && is_settled(&path) {
                let subject = relative(store, &path);
                let remedy = Some(Remedy::RemoveFile(path));
                report.add(&subject, "a file that was never written to its end", remedy);
            }
        }
    }
}

fn runs(store: &Store, id: &str) -> bool {
    matches!(Handle::open(store, id), Ok(Some(handle)) if handle
        .live(store)
        .is_ok_and(|(_, live)| live.is_running() || live == Live::Removing))
}

/// Whether nobody is changing the container at this moment.
fn is_free(container: &Path) -> bool {
    let lock = container.join("lock");
    // Opening makes the file; a directory without one is nobody's.
    !lock.exists() || matches!(Lock::try_exclusive(&lock), Ok(Some(_)))
}

fn is_settled(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > SETTLED))
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn relative(store: &Store, path: &Path) -> String {
    path.strip_prefix(store.root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// What is in a directory, sorted; nothing when it is not there.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
