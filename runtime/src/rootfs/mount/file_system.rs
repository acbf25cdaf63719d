//! New file systems.
//!
//! What is to be filled or changed is made and prepared detached (`fsopen`, `fsconfig`, `fsmount`), then put in place. What
//! is ready as it is made goes through one `mount(2)` onto the opened target; so does what the newer interface cannot take,
//! and everything on kernels or under filters without it.

use std::borrow::Cow;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{XattrFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::process::fchdir;

use super::target::{self, Target};
use super::{Outside, attribute, copy_up, fd_path, is_refused, put, reopen, subject};
use crate::plan::mount::MountStep;
use crate::rootfs::path::{Missing, Root};
use crate::setup::fault::{At, Fault, Step};
use crate::sys::mount::mount;

/// Longest value that `fsconfig(2)` takes, without its end.
const LONGEST_VALUE: usize = 255;

/// Flags of file systems, by the names that `fsconfig(2)` has for them.
const OF_FILE_SYSTEM: [(u64, &str); 5] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_MANDLOCK, "mand"),
    (libc::MS_LAZYTIME, "lazytime"),
];

/// A file system to be made.
#[derive(Debug)]
pub(in crate::rootfs) struct New<'a> {
    /// Its type.
    pub(in crate::rootfs) kind: &'a str,
    /// What it is made of, or just a name.
    pub(in crate::rootfs) source: &'a str,
    /// `MS_*` flags.
    pub(in crate::rootfs) flags: u64,
    /// Its own options, comma separated.
    pub(in crate::rootfs) data: &'a str,
    /// SELinux label of what is in it.
    pub(in crate::rootfs) label: Option<&'a str>,
}

/// Why a file system could not be made: what was attempted, the kernel's answer.
#[derive(Debug)]
pub(in crate::rootfs) struct Refusal {
    call: String,
    /// The kernel's answer.
    pub(in crate::rootfs) errno: Errno,
}

impl Refusal {
    fn new(call: &str, errno: Errno) -> Self {
        Self {
            call: call.into(),
            errno,
        }
    }

    /// As a fault about something.
    pub(in crate::rootfs) fn fault(self, subject: &str) -> Fault {
        Fault {
            step: Step::Mount,
            call: self.call,
            subject: subject.into(),
            errno: self.errno.raw_os_error(),
        }
    }
}

impl New<'_> {
    /// Makes it, mounted nowhere yet.
    fn detached(&self) -> Result<OwnedFd, Refusal> {
        let refusal = |call: &'static str| move |errno| Refusal::new(call, errno);
        let context = fsopen(self.kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(refusal("fsopen"))?;
        let explained = |errno| Refusal {
            call: explain(&context),
            errno,
        };
        if !self.source.is_empty() {
            fsconfig_set_string(&context, c"source", self.source).map_err(explained)?;
        }
        for (flag, name) in OF_FILE_SYSTEM {
            if self.flags & flag != 0 {
                fsconfig_set_flag(&context, name).map_err(explained)?;
            }
        }
        for option in self.data.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, option),
            }
            .map_err(explained)?;
        }
        if let Some(label) = self.label {
            fsconfig_set_string(&context, c"context", label).map_err(explained)?;
        }
        fsconfig_create(&context).map_err(explained)?;
        // The attributes of mounts are numbers below 2^32.
        let attributes = u32::try_from(attribute::of_new(self.flags)).unwrap_or(0);
        fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::from_bits_retain(attributes),
        )
        .map_err(refusal("fsmount"))
    }

    /// Whether [`Self::detached`] can say all that is to be said.
    fn is_simple(&self) -> bool {
        let beyond = libc::MS_REMOUNT | libc::MS_I_VERSION;
        self.flags & beyond == 0
            && self.source.len() <= LONGEST_VALUE
            && self.data.split(',').all(|part| part.len() <= LONGEST_VALUE)
            // Escaped and quoted commas are for the file system to read.
            && !self.data.contains(['\\', '"'])
    }

    /// Mounts it on the current directory, which is the target itself however its path may have changed since it was
    /// opened.
    fn by_mount(&self) -> Result<(), Refusal> {
        let text = |text: &str| CString::new(text).map_err(|_| Refusal::new("mount", Errno::INVAL));
        let label = self.label.map(|label| format!("context=\"{label}\""));
        let parts = [Some(self.data), label.as_deref()];
        let data: Vec<&str> = parts
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        let (source, kind, data) = (text(self.source)?, text(self.kind)?, text(&data.join(","))?);
        let data = Some(data.as_c_str()).filter(|data| !data.is_empty());
        mount(Some(&source), c".", Some(&kind), self.flags, data)
            .map_err(|errno| Refusal::new("mount", errno))
    }

    /// Mounts it on `target` by one call. For what is ready as it is made: it is as safe as the other way, because nothing
    /// has to be opened again, and takes an eighth of the calls.
    pub(in crate::rootfs) fn put_at_once(&self, target: &OwnedFd) -> Result<(), Refusal> {
        fchdir(target).map_err(|errno| Refusal::new("fchdir", errno))?;
        let made = self.by_mount();
        // The other way the kernel says why, where there is one.
        if matches!(&made, Err(refusal) if refusal.errno == Errno::INVAL)
            && self.is_simple()
            && let Err(refusal) = self.detached()
            && !is_refused(refusal.errno)
        {
            return Err(refusal);
        }
        made
    }

    /// Makes it, prepares it and puts it on `target`. Gives what it was prepared by, which still refers to it; nothing where
    /// it had to be mounted by the old call, unprepared.
    pub(in crate::rootfs) fn put_prepared(
        &self,
        target: &OwnedFd,
        prepare: impl FnOnce(&OwnedFd) -> Result<(), Refusal>,
    ) -> Result<Option<OwnedFd>, Refusal> {
        if self.is_simple() {
            match self.detached() {
                Ok(made) => {
                    prepare(&made)?;
                    match put(&made, target) {
                        Err(errno) if is_refused(errno) => {}
                        Err(errno) => return Err(Refusal::new("move_mount", errno)),
                        Ok(()) => return Ok(Some(made)),
                    }
                }
                Err(refusal) if is_refused(refusal.errno) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        self.put_at_once(target).map(|()| None)
    }
}

/// What the kernel has to say of a file system that cannot be made as it is asked for.
fn explain(context: &OwnedFd) -> String {
    let mut text = [0; 256];
    // Messages come one a read: a letter for how bad it is, a blank, the text.
    match rustix::io::read(context, &mut text) {
        Ok(length) if length > 2 => {
            let message = String::from_utf8_lossy(&text[2..length]);
            format!("fsconfig: {}", message.trim_end())
        }
        _ => "fsconfig".into(),
    }
}

/// Mounts a new file system; gives it when it is to be made read-only later.
pub(super) fn mount_new(
    root: &Root,
    step: &MountStep,
    kind: &str,
    outside: &Outside<'_>,
) -> Result<Option<OwnedFd>, Fault> {
    let subject = subject(step);
    let target = match kind {
        "proc" | "sysfs" => target::open_ordinary_directory(root, step, kind)?,
        _ => target::open(root, outside.host_proc, step, Missing::Directory)?,
    };
    let is_new = step.flags & libc::MS_REMOUNT == 0;
    let later = is_new && step.is_read_only_later();
    let has_label = !matches!(kind, "proc" | "sysfs" | "mqueue");
    let source = step.source.to_string_lossy();
    let data = data(step, &target).at(Step::Mount, "fstat", &subject)?;
    let new = New {
        kind,
        source: &source,
        flags: if later {
            step.flags & !libc::MS_RDONLY
        } else {
            step.flags
        },
        data: &data,
        label: step.label.as_deref().filter(|_| has_label),
    };
    let original = match step.copy_up && step.is_tmpfs() {
        true => Some(copy_up::open_directory(&target.fd).at(Step::Mount, "open", &subject)?),
        false => None,
    };
    let needs_more = original.is_some()
        || !step.propagation.is_empty()
        || !step.recursive_attr.is_empty()
        || later
        || kind == "mqueue" && step.label.is_some();
    if !needs_more || !is_new {
        return new
            .put_at_once(&target.fd)
            .map(|()| None)
            .map_err(|refusal| refusal.fault(&subject));
    }
    let prepare = |mounted: &OwnedFd| prepare(mounted, step, kind, original.as_ref());
    let made = new
        .put_prepared(&target.fd, prepare)
        .map_err(|refusal| refusal.fault(&subject))?;
    let mounted = match made {
        Some(mounted) => mounted,
        None => {
            let mounted = reopen(root, step, &target.fd)?;
            prepare(&mounted).map_err(|refusal| refusal.fault(&subject))?;
            mounted
        }
    };
    Ok(Some(mounted).filter(|_| later))
}

/// Fills a file system and gives its mount what concerns the whole tree.
fn prepare(
    mounted: &OwnedFd,
    step: &MountStep,
    kind: &str,
    original: Option<&OwnedFd>,
) -> Result<(), Refusal> {
    if let Some(original) = original {
        copy_up::copy(original, mounted).map_err(|errno| Refusal::new("tmpcopyup", errno))?;
    }
    if let Some(label) = step.label.as_deref().filter(|_| kind == "mqueue") {
        // It has no option for it.
        let path = fd_path(mounted);
        rustix::fs::setxattr(
            &path,
            c"security.selinux",
            label.as_bytes(),
            XattrFlags::empty(),
        )
        .map_err(|errno| Refusal::new("setxattr", errno))?;
    }
    match super::set_tree(mounted, step) {
        Err(Errno::NOSYS) if step.recursive_attr.is_empty() => {
            super::set_propagation_by_mount(mounted, step)
                .map_err(|errno| Refusal::new("mount", errno))
        }
        other => other.map_err(|errno| Refusal::new("mount_setattr", errno)),
    }
}

/// The data of a step. A tmpfs gets the permissions of the directory it covers, unless it says otherwise.
fn data<'a>(step: &'a MountStep, target: &Target) -> Result<Cow<'a, str>, Errno> {
    if !step.is_tmpfs() || target.is_new {
        return Ok(Cow::Borrowed(&step.data));
    }
    let mode = fstat(&target.fd)?.st_mode & 0o7777;
    let comma = if step.data.is_empty() { "" } else { "," };
    Ok(Cow::Owned(format!("mode={mode:04o}{comma}{}", step.data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_old_call_is_for() {
        let new = |flags, data: &'static str| New {
            kind: "overlay",
            source: "overlay",
            flags,
            data,
            label: None,
        };
        assert!(new(libc::MS_RDONLY, "size=1,mode=755").is_simple());
        assert!(!new(libc::MS_REMOUNT, "").is_simple());
        assert!(!new(0, r"lowerdir=/a\:b,upperdir=/c").is_simple());
        assert!(!new(0, "context=\"a,b\"").is_simple());
        let long: &'static str = format!("a,lowerdir={}", "/x".repeat(140)).leak();
        assert!(!new(0, long).is_simple());
    }
}
