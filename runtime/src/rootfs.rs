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
pub(crate) mod restore;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::failure::{CallFailed, During, errno_of};
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::sys;
use crate::sys::mount::MountAttr;
use path::Root;

/// Opens where the root is, in this mount namespace.
///
/// In a container with a mount and a user namespace of its own that is done before the mappings are there: until then the
/// process has the caller's rights on paths, and may walk through directories that the container's root may not.
pub(crate) fn open_place(plan: &RootPlan) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &plan.path, flags, Mode::empty()).at(
        Step::PrepareRoot,
        "open",
        &plan.path.to_string_lossy(),
    )
}

/// Cuts the tree off from the host's propagation, binds the root on itself and opens it.
///
/// A container in the caller's mount namespace leaves that as it is, but for its own root: it is cut off once it is there.
/// `place` is where the root is, if that has been opened.
pub(crate) fn prepare(plan: &RootPlan, place: Option<OwnedFd>) -> Result<Root, Fault> {
    let subject = plan.path.to_string_lossy();
    if plan.own_mount_namespace {
        sys::mount::mount(None, c"/", None, plan.first_propagation(), None).at(
            Step::PrepareRoot,
            "mount",
            &subject,
        )?;
        if !plan.cuts_off_the_tree() {
            cut_parent_off(plan).at(Step::PrepareRoot, "mount", &subject)?;
        }
    }
    let place = match place {
        Some(place) => place,
        None => open_place(plan)?,
    };
    let root = bind_on_itself(&place, &plan.path).at(Step::PrepareRoot, "mount", &subject)?;
    if !plan.own_mount_namespace {
        set_private(&root).at(Step::PrepareRoot, "mount_setattr", &subject)?;
    }
    Ok(root)
}

/// Binds a directory with all below on itself, and opens what is there then.
fn bind_on_itself(place: &OwnedFd, path: &Path) -> Result<Root, Errno> {
    let copy = OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let made = open_tree(place, c"", copy).and_then(|tree| mount::put(&tree, place).map(|()| tree));
    match made {
        Ok(tree) => Root::new(tree),
        Err(errno) if mount::is_refused(errno) => {
            let flags = libc::MS_BIND | libc::MS_REC;
            let name = mount::c_path(path)?;
            sys::mount::mount(Some(&name), &name, None, flags, None)?;
            Root::open(path)
        }
        Err(errno) => Err(errno),
    }
}

/// Keeps what is mounted below the root from reaching other mount namespaces.
fn set_private(root: &Root) -> Result<(), Errno> {
    let attr = MountAttr {
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    match sys::mount::mount_setattr(root.fd(), true, &attr) {
        Err(errno) if mount::is_refused(errno) => {
            let path = mount::fd_path(root.fd());
            sys::mount::mount(None, &path, None, libc::MS_PRIVATE | libc::MS_REC, None)
        }
        other => other,
    }
}

/// The place of a root in the caller's mount namespace, as it is before the container covers it.
#[derive(Debug)]
pub(crate) struct Uncovered {
    path: PathBuf,
    mount: String,
}

impl Uncovered {
    /// Looks at the place; none for a container with a mount namespace of its own, which ends with it.
    pub(crate) fn look(plan: &RootPlan) -> Result<Option<Self>, CallFailed> {
        if plan.own_mount_namespace {
            return Ok(None);
        }
        let path = plan.path.clone();
        let mount = mount_at(&path).during("open", &path)?;
        Ok(Some(Self { path, mount }))
    }

    /// Takes away what has covered the place since then, with all that is mounted below.
    pub(crate) fn uncover(&self) -> Result<(), Errno> {
        if mount_at(&self.path)? == self.mount {
            return Ok(());
        }
        unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
    }
}

/// The id of the mount that a path leads to. By `/proc`, which tells it since Linux 3.15: `statx(2)` since 5.8 only.
fn mount_at(path: &Path) -> Result<String, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let there = openat(CWD, path, flags, Mode::empty())?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", there.as_raw_fd()));
    let text = text.map_err(|error| errno_of(&error))?;
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(|id| id.trim().to_owned())
        .ok_or(Errno::NOTSUP)
}

/// Cuts the mount that the root lies on off from the host: neither `pivot_root` nor a move works below a shared one, and
/// binding the root would reach the host.
fn cut_parent_off(plan: &RootPlan) -> Result<(), Errno> {
    let propagation = match plan.first_propagation() & libc::MS_SLAVE {
        0 => libc::MS_PRIVATE,
        slave => slave,
    };
    // Works on the root of a mount only: walk up until one is found, as "/" always is.
    let mut directory: Option<&Path> = Some(&plan.path);
    while let Some(path) = directory {
        match sys::mount::mount(None, &mount::c_path(path)?, None, propagation, None) {
            Err(Errno::INVAL) => directory = path.parent(),
            other => return other,
        }
    }
    Ok(())
}

/// Gives the container's root the propagation that the spec asks for, now that it is the root; what cuts it off was set
/// before.
pub(crate) fn set_propagation(plan: &RootPlan) -> Result<(), Fault> {
    match plan.propagation {
        Some(kind) if kind & (libc::MS_PRIVATE | libc::MS_SLAVE) == 0 => {
            sys::mount::mount(None, c"/", None, kind, None).at(
                Step::Pivot,
                "unable to apply root propagation flags: mount",
                "",
            )
        }
        _ => Ok(()),
    }
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
