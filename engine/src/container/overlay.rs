//! The root file system of a container: the image's layers below, its own changes on top.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use super::{Error, Result, SystemContext};
use crate::store::make_dir;

/// The directories of one overlay.
#[derive(Debug)]
pub(super) struct Overlay {
    /// Layers, highest first.
    pub(super) lower: Vec<PathBuf>,
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) merged: PathBuf,
}

impl Overlay {
    /// Mounts it at `merged`. An image without a layer (`scratch`) is its container's own directory alone.
    ///
    /// # Errors
    /// When a directory can't be made or the kernel refuses.
    pub(super) fn mount(&self) -> Result<()> {
        for directory in [&self.upper, &self.work, &self.merged] {
            make_dir(directory)?;
        }
        // The root of the merged tree is the upper directory's: it has to be open to the container's users.
        set_mode(&self.upper, 0o755)?;
        if self.lower.is_empty() {
            let source = &self.upper;
            return rustix::mount::mount_bind(source, &self.merged).system("bind-mount", source);
        }
        match self.mount_by_context() {
            Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => self.mount_by_options(),
            result => result.map_err(|errno| self.failed(errno)),
        }
    }

    /// The new mount interface: each layer is a parameter of its own (`lowerdir+`, Linux 6.5), so that their number is
    /// not limited by the one page of options that mount(2) takes.
    fn mount_by_context(&self) -> rustix::io::Result<()> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let context = context.as_fd();
        for layer in &self.lower {
            fsconfig_set_string(context, "lowerdir+", layer)?;
        }
        fsconfig_set_string(context, "upperdir", &self.upper)?;
        fsconfig_set_string(context, "workdir", &self.work)?;
        fsconfig_create(context)?;
        let mounted = fsmount(
            context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        move_mount(
            mounted,
            "",
            CWD,
            &self.merged,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    }

    fn mount_by_options(&self) -> Result<()> {
        let mut options = b"lowerdir=".to_vec();
        for (index, layer) in self.lower.iter().enumerate() {
            if index > 0 {
                options.push(b':');
            }
            escape(layer, &mut options);
        }
        options.extend_from_slice(b",upperdir=");
        escape(&self.upper, &mut options);
        options.extend_from_slice(b",workdir=");
        escape(&self.work, &mut options);
        let options = CString::new(options).map_err(|_| self.failed(Errno::INVAL))?;
        mount(
            "overlay",
            &self.merged,
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(|errno| self.failed(errno))
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::System {
            action: "mount the container's root file system (overlay) at",
            path: self.merged.clone(),
            source: errno.into(),
        }
    }
}

/// Several directories, highest first, as one that can only be read, mounted nowhere: it is gone with its descriptor.
/// Linux 6.5.
pub(super) fn detached(layers: &[PathBuf]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    for layer in layers {
        fsconfig_set_string(context, "lowerdir+", layer)?;
    }
    fsconfig_create(context)?;
    fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )
}

/// Takes the mount away; nothing mounted there is fine.
pub(super) fn unmount_all(merged: &Path) -> Result<()> {
    loop {
        match unmount(merged, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).system("unmount", merged),
        }
    }
}

/// Overlay splits its options at `,` and `:`.
fn escape(path: &Path, out: &mut Vec<u8>) {
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).system("chmod", path)
}
