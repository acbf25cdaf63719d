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

use std::os::fd::OwnedFd;

use rustix::mount::{OpenTreeFlags, open_tree};

use crate::failure::During;
use crate::plan::RootPlan;
use crate::plan::mount::Kind;
use crate::setup::fault::{At, Fault, Step};
use crate::sys;
use path::Root;

/// Sources of bind mounts that were opened early, by the index of their step.
pub(crate) type Sources = Vec<Option<OwnedFd>>;

/// Opens the sources of all bind mounts as detached copies.
///
/// For containers with a user namespace, before its mappings are there: until then the process still has the caller's
/// user id, and may walk through directories that the container's root may not.
pub(crate) fn open_sources(plan: &RootPlan) -> Result<Sources, Fault> {
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
pub(crate) fn prepare(plan: &RootPlan) -> Result<Root, Fault> {
    use std::os::unix::ffi::OsStrExt;
    let subject = plan.path.to_string_lossy();
    let failed =
        |result: Result<(), rustix::io::Errno>, call| result.at(Step::PrepareRoot, call, &subject);
    failed(
        sys::mount::mount(None, c"/", None, plan.propagation, None),
        "mount",
    )?;
    let path = std::ffi::CString::new(plan.path.as_os_str().as_bytes())
        .map_err(|_| rustix::io::Errno::INVAL)
        .at(Step::PrepareRoot, "mount", &subject)?;
    if !plan.cuts_off_the_tree() {
        make_parent_private(plan)?;
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
        let fd =
            open_tree(rustix::fs::CWD, path, flags).at(Step::PrepareRoot, "open_tree", &subject)?;
        match sys::mount::mount_setattr(&fd, false, &attr) {
            Err(rustix::io::Errno::INVAL) => directory = path.parent(),
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
