//! The file system tree of a container, seen from inside while it is put together.
//!
//! Runs in the container's init, in its own mount namespace, before the root is changed. Order as in runtime-spec
//! config.md: propagation, root, mounts in the order of the spec, device files; after the change of root
//! ([`pivot`]) the masked and read-only paths ([`mask`]) and the read-only root.

pub(crate) mod cgroup;
pub(crate) mod device;
pub(crate) mod mask;
pub(crate) mod mount;
pub(crate) mod path;
pub(crate) mod pivot;

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::failure::During;
use crate::plan::RootPlan;
use crate::plan::mount::Kind;
use crate::setup::fault::{At, Fault, Step};
use crate::sys;
use path::Root;

/// Sources of bind mounts that were opened early, by the index of their step.
pub(crate) type Sources = Vec<Option<OwnedFd>>;

/// What was opened while the process still had the caller's user id.
///
/// For containers with a user namespace, before its mappings are there: until then the process may walk through directories
/// that the container's root may not.
#[derive(Debug, Default)]
pub(crate) struct Early {
    /// Sources of bind mounts.
    pub(crate) sources: Sources,
    /// The root.
    pub(crate) root: Option<EarlyRoot>,
}

/// The root, opened early.
#[derive(Debug)]
pub(crate) struct EarlyRoot {
    /// Where it is.
    place: OwnedFd,
    /// A detached copy of it.
    tree: OwnedFd,
}

impl EarlyRoot {
    /// Puts the copy, which is of a time before the tree was cut off from the host, in place.
    fn attach(&self, plan: &RootPlan) -> Result<(), Errno> {
        let attr = sys::mount::MountAttr {
            propagation: plan.propagation & !libc::MS_REC,
            ..Default::default()
        };
        sys::mount::mount_setattr(&self.tree, true, &attr)?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.tree, c"", &self.place, c"", flags)
    }
}

impl Early {
    /// Opens everything. The root is left to [`prepare`] when the mount namespace is yet to be joined, not made: in another
    /// one its place would be of no use; and when the propagation is unusual.
    pub(crate) fn open(plan: &RootPlan, makes_mounts: bool) -> Result<Self, Fault> {
        Ok(Self {
            sources: open_sources(plan)?,
            root: match makes_mounts && plan.cuts_off_the_tree() {
                true => open_root(plan)?,
                false => None,
            },
        })
    }
}

/// Opens the root; nothing on kernels before 5.2.
fn open_root(plan: &RootPlan) -> Result<Option<EarlyRoot>, Fault> {
    let subject = plan.path.to_string_lossy();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place =
        openat(CWD, &plan.path, flags, Mode::empty()).at(Step::PrepareRoot, "open", &subject)?;
    let copy = OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(&place, c"", copy) {
        Err(Errno::NOSYS) => Ok(None),
        other => {
            let tree = other.at(Step::PrepareRoot, "open_tree", &subject)?;
            Ok(Some(EarlyRoot { place, tree }))
        }
    }
}

/// Opens the sources of all bind mounts as detached copies.
fn open_sources(plan: &RootPlan) -> Result<Sources, Fault> {
    let mut sources = Vec::with_capacity(plan.mounts.len());
    for step in &plan.mounts {
        sources.push(match step.kind {
            Kind::Bind { recursive } => Some(mount::open_source(step, recursive)?),
            _ => None,
        });
    }
    Ok(sources)
}

/// Cuts the tree off from the host's propagation, binds the root on itself and opens it.
pub(crate) fn prepare(plan: &RootPlan, early: Option<EarlyRoot>) -> Result<Root, Fault> {
    use std::os::unix::ffi::OsStrExt;
    let subject = plan.path.to_string_lossy();
    let failed = |result: Result<(), Errno>, call| result.at(Step::PrepareRoot, call, &subject);
    failed(
        sys::mount::mount(None, c"/", None, plan.propagation, None),
        "mount",
    )?;
    let path = std::ffi::CString::new(plan.path.as_os_str().as_bytes())
        .map_err(|_| Errno::INVAL)
        .at(Step::PrepareRoot, "mount", &subject)?;
    if !plan.cuts_off_the_tree() {
        make_parent_private(plan)?;
    }
    if let Some(early) = early {
        match early.attach(plan) {
            // Before Linux 5.12.
            Err(Errno::NOSYS) => {}
            other => {
                failed(other, "move_mount")?;
                return Ok(Root::of(early.tree));
            }
        }
    }
    failed(
        sys::mount::mount(Some(&path), &path, None, libc::MS_BIND | libc::MS_REC, None),
        "mount",
    )?;
    Root::open(&path).at(Step::PrepareRoot, "open", &subject)
}

/// Makes the mount that the root lies on private: neither `pivot_root` nor a move works below a shared one, and binding
/// the root would reach the host.
fn make_parent_private(plan: &RootPlan) -> Result<(), Fault> {
    let subject = plan.path.to_string_lossy();
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let attr = sys::mount::MountAttr {
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    // Works on the root of a mount only: walk up until one is found, as "/" always is.
    let mut directory = Some(plan.path.as_path());
    while let Some(path) = directory {
        let fd = open_tree(CWD, path, flags).at(Step::PrepareRoot, "open_tree", &subject)?;
        match sys::mount::mount_setattr(&fd, false, &attr) {
            Err(Errno::INVAL) => directory = path.parent(),
            other => return other.at(Step::PrepareRoot, "mount_setattr", &subject),
        }
    }
    Ok(())
}

/// Checks, before anything is made, that the root is a directory; the texts are runc's.
pub(crate) fn check_root(plan: &RootPlan) -> Result<(), crate::plan::Error> {
    let metadata = std::fs::metadata(&plan.path).during("stat", &plan.path);
    match metadata {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(crate::plan::Error::Invalid(format!(
            "invalid rootfs: {} is not a directory",
            plan.path.display()
        ))),
        Err(error) => Err(crate::plan::Error::Invalid(format!(
            "invalid rootfs: {error}"
        ))),
    }
}
