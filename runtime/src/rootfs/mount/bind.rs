//! Bind mounts.
//!
//! Made detached, given their attributes, and only then put in place, so no moment exists in which a read-only mount is
//! writable. On kernels that lack some of the calls, or where a filter around us refuses them, by `mount(2)`.

use std::os::fd::OwnedFd;

use rustix::fs::{PROC_SUPER_MAGIC, fstatfs, fstatvfs};
use rustix::io::Errno;

use super::source::Form;
use super::target::{self, Target};
use super::{Outside, attribute, bind_by_mount, fd_path, is_refused, put, reopen, subject};
use crate::plan::mount::MountStep;
use crate::rootfs::path::{Missing, Root};
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::{mount, mount_setattr};

/// Why attributes could not be set: what was attempted, the kernel's answer.
struct Refusal(String, Errno);

impl Refusal {
    fn fault(self, step: &MountStep) -> Fault {
        let Self(call, errno) = self;
        Fault {
            step: Step::Mount,
            call,
            subject: subject(step),
            errno: errno.raw_os_error(),
        }
    }
}

/// Makes the bind mount of a step, by its index.
pub(super) fn bind(
    root: &Root,
    step: &MountStep,
    index: usize,
    outside: &Outside<'_>,
) -> Result<(), Fault> {
    let subject = subject(step);
    let source = (outside.source)(index, Form::Detached)?;
    let missing = Missing::like(&source.fd).at(Step::Mount, "fstat", &subject)?;
    let target = target::open(root, outside.host_proc, step, missing)?;
    if step.destination == "/proc" {
        let kind = fstatfs(&source.fd)
            .at(Step::Mount, "fstatfs", &subject)?
            .f_type;
        if kind != PROC_SUPER_MAGIC {
            let why = "\"/proc\" cannot be mounted because it is not of type proc";
            return Err(target::refused(step, why.into()));
        }
    }
    if source.is_detached && put_in_place(&source.fd, step, &target)? {
        return Ok(());
    }
    let source = match source.is_detached {
        // The old call copies from a place only.
        true => (outside.source)(index, Form::InPlace)?,
        false => source,
    };
    by_mount(root, step, &source.fd, &target)
}

/// Dresses a detached mount and puts it in place; false where that cannot be had.
fn put_in_place(tree: &OwnedFd, step: &MountStep, target: &Target) -> Result<bool, Fault> {
    let dressed = match set_attributes(tree, step) {
        // Before Linux 5.12: once it is in place the old call can do it, to what the descriptor refers to.
        Err(Refusal(_, Errno::NOSYS)) => false,
        Err(refusal) => return Err(refusal.fault(step)),
        Ok(()) => true,
    };
    match put(tree, &target.fd) {
        Err(errno) if is_refused(errno) => return Ok(false),
        // The old call tells this apart from other reasons.
        Err(Errno::INVAL) if Missing::like(tree) != Missing::like(&target.fd) => {
            return Err(Errno::NOTDIR).at(Step::Mount, "move_mount", &subject(step));
        }
        other => other.at(Step::Mount, "move_mount", &subject(step))?,
    }
    if !dressed {
        remount(tree, step).map_err(|refusal| refusal.fault(step))?;
    }
    Ok(true)
}

/// Sets what a step says of attributes and propagation.
fn set_attributes(mounted: &OwnedFd, step: &MountStep) -> Result<(), Refusal> {
    let refusal = |errno| Refusal("mount_setattr".into(), errno);
    if let Some(attr) = attribute::of_bind(step.flags, step.cleared) {
        match mount_setattr(mounted, false, &attr) {
            Err(Errno::PERM) => {
                let flags = flags_with_locked(mounted, step)?;
                let attr = attribute::of_bind(flags, step.cleared).unwrap_or(attr);
                mount_setattr(mounted, false, &attr).map_err(refusal)?;
            }
            other => other.map_err(refusal)?,
        }
    }
    super::set_tree(mounted, step).map_err(refusal)
}

/// What may be asked for of a mount that has locked flags.
fn flags_with_locked(mounted: &OwnedFd, step: &MountStep) -> Result<u64, Refusal> {
    let present = fstatvfs(mounted).map_err(|errno| Refusal("fstatfs".into(), errno))?;
    let present = attribute::from_statfs(present.f_flag.bits());
    attribute::with_locked(step.flags, step.cleared, present)
        .map_err(|why| Refusal(why, Errno::PERM))
}

/// Makes a bind mount by `mount(2)` alone.
fn by_mount(root: &Root, step: &MountStep, from: &OwnedFd, target: &Target) -> Result<(), Fault> {
    let subject = subject(step);
    if step.idmap.is_some() {
        return Err(Errno::NOSYS).at(Step::Mount, "move_mount of an id-mapped mount", &subject);
    }
    bind_by_mount(from, &target.fd, &step.kind).at(Step::Mount, "mount", &subject)?;
    let mounted = reopen(root, step, &target.fd)?;
    match set_attributes(&mounted, step) {
        Err(Refusal(_, Errno::NOSYS)) => {
            remount(&mounted, step).map_err(|refusal| refusal.fault(step))
        }
        other => other.map_err(|refusal| refusal.fault(step)),
    }
}

/// What [`set_attributes`] does, by `mount(2)`, to a mount that is in place.
fn remount(mounted: &OwnedFd, step: &MountStep) -> Result<(), Refusal> {
    let refusal = |errno| Refusal("mount".into(), errno);
    if !step.recursive_attr.is_empty() {
        let why = "attributes of a whole tree take Linux 5.12: mount_setattr";
        return Err(Refusal(why.into(), Errno::NOSYS));
    }
    let path = fd_path(mounted);
    let set = |flags| {
        let flags = attribute::per_mount(flags) | libc::MS_BIND | libc::MS_REMOUNT;
        mount(None, &path, None, flags, None)
    };
    if attribute::of_bind(step.flags, step.cleared).is_some() {
        match set(step.flags) {
            Err(Errno::PERM) => {
                set(flags_with_locked(mounted, step)?).map_err(refusal)?;
            }
            other => other.map_err(refusal)?,
        }
    }
    super::set_propagation_by_mount(mounted, step).map_err(refusal)
}
