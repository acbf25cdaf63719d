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

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rustix::process::fchdir;

use crate::failure::During;
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::sys;
use crate::sys::mount::MountAttr;
use path::Root;

/// Cuts the tree off from the host's propagation, binds the root on itself and opens it.
///
/// A container in the caller's mount namespace leaves that as it is, but for its own root: it is cut off once it is there.
pub(crate) fn prepare(plan: &RootPlan) -> Result<Root, Fault> {
    let subject = plan.path.to_string_lossy();
    let path = CString::new(plan.path.as_os_str().as_bytes())
        .map_err(|_| Errno::INVAL)
        .at(Step::PrepareRoot, "mount", &subject)?;
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
    let root = bind_on_itself(&path).at(Step::PrepareRoot, "mount", &subject)?;
    if !plan.own_mount_namespace {
        let made = set_private(&root);
        if made.is_err() {
            // That it fails is what the user is told.
            let _ = detach(&root);
        }
        made.at(Step::PrepareRoot, "mount_setattr", &subject)?;
    }
    Ok(root)
}

/// Binds a directory with all below on itself, and opens what is there then.
fn bind_on_itself(path: &CString) -> Result<Root, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat(CWD, path, flags, Mode::empty())?;
    let copy = OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let made =
        open_tree(&place, c"", copy).and_then(|tree| mount::put(&tree, &place).map(|()| tree));
    match made {
        Ok(tree) => Root::new(tree),
        Err(errno) if mount::is_refused(errno) => {
            let flags = libc::MS_BIND | libc::MS_REC;
            sys::mount::mount(Some(path), path, None, flags, None)?;
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

/// Takes the root, and what is mounted below it, out of the caller's mount namespace.
pub(crate) fn detach(root: &Root) -> Result<(), Errno> {
    fchdir(root.fd())?;
    unmount(c".", UnmountFlags::DETACH)
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
        let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        match sys::mount::mount(None, &text, None, propagation, None) {
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
