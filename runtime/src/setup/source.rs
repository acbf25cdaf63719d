//! Sources of bind mounts that take the caller's rights, and the user namespaces of id-mapped ones.
//!
//! The init of a container with a user namespace cannot walk through directories that are closed to its root, nor give a
//! mount an id mapping. Nor can the caller open such sources beforehand: what they are depends on the mounts that came
//! before them. So the parent goes into the child's mount namespace for the moment that takes. What it copies there keeps
//! the attributes that the kernel has locked in that namespace.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, chroot, fchdir};

use super::Error;
use super::fault::{At, Fault, MAP_IDS, Step};
use crate::failure::{CallFailed, During};
use crate::namespace::{Kind, mapping};
use crate::plan::RootPlan;
use crate::plan::mount::{Idmap, Mapping, MountStep};
use crate::rootfs::mount::source::{self, Form, Source};
use crate::sys::process::setns;

/// The user namespaces that say which ids files have in id-mapped mounts, by the index of their step.
#[derive(Debug)]
pub(crate) struct Users(Vec<Option<Rc<OwnedFd>>>);

impl Users {
    /// Makes a user namespace for each mapping that is not the container's own.
    pub(super) fn new(plan: &RootPlan) -> Result<Self, Error> {
        if plan.mounts.iter().all(|step| step.idmap.is_none()) {
            return Ok(Self(Vec::new()));
        }
        let mut made: BTreeMap<(&str, &str), Rc<OwnedFd>> = BTreeMap::new();
        let mut users = Vec::with_capacity(plan.mounts.len());
        for step in &plan.mounts {
            users.push(match &step.idmap {
                Some(Idmap {
                    mapping: Mapping::Own { uids, gids },
                    ..
                }) => Some(match made.get(&(uids.as_str(), gids.as_str())) {
                    Some(known) => Rc::clone(known),
                    None => {
                        let fd = Rc::new(mapping::make(uids, gids)?);
                        made.insert((uids, gids), Rc::clone(&fd));
                        fd
                    }
                }),
                _ => None,
            });
        }
        Ok(Self(users))
    }

    /// That of a step, if it has one of its own.
    pub(super) fn of(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.0.get(index)?.as_deref().map(AsFd::as_fd)
    }
}

/// Opens the source of a step as the container's init would, but with the caller's rights, and gives it its id mapping.
/// `joined` is the user namespace that the container joins.
pub(super) fn open_inside(
    pid: Pid,
    (step, form): (&MountStep, Form),
    own: Option<BorrowedFd<'_>>,
    joined: Option<BorrowedFd<'_>>,
) -> Result<Source, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let open = |path: &str| openat(CWD, path, flags, Mode::empty()).during("open", path);
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    let users = match (own, joined) {
        (Some(fd), _) | (None, Some(fd)) => fd.try_clone_to_owned().during("dup", "user")?,
        (None, None) => open(&format!("{process}/ns/user"))?,
    };
    let inside = open(&format!("{process}/ns/mnt"))?;
    let visit = Visit::begin(&inside)?;
    let opened = source::open_as(step, form);
    visit.end()?;
    let source = opened.during("open_tree", &step.source)?;
    if let Some(idmap) = &step.idmap {
        map_ids(&source, users, idmap, step).map_err(Error::Init)?;
    }
    Ok(source)
}

/// Gives a source its id mapping.
pub(crate) fn map_ids(
    source: &Source,
    users: impl AsFd,
    idmap: &Idmap,
    step: &MountStep,
) -> Result<(), Fault> {
    source::map_ids(source, users, idmap.recursive).at(
        Step::Mount,
        MAP_IDS,
        &step.source.to_string_lossy(),
    )
}

/// A visit to another mount namespace, which has to be ended: root and working directory are its own meanwhile.
#[must_use]
struct Visit {
    home: OwnedFd,
    root: OwnedFd,
    directory: OwnedFd,
}

impl Visit {
    fn begin(namespace: &OwnedFd) -> Result<Self, CallFailed> {
        let open = |path: &str, flags: OFlags| {
            openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty()).during("open", path)
        };
        let visit = Self {
            home: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", OFlags::PATH | OFlags::DIRECTORY)?,
            directory: open(".", OFlags::PATH | OFlags::DIRECTORY)?,
        };
        setns(namespace, Kind::Mount.flag()).during("setns", "mount")?;
        Ok(visit)
    }

    fn end(self) -> Result<(), CallFailed> {
        setns(&self.home, Kind::Mount.flag()).during("setns", "mount")?;
        fchdir(&self.root).during("fchdir", "/")?;
        chroot(c".").during("chroot", "/")?;
        fchdir(&self.directory).during("fchdir", ".")
    }
}
