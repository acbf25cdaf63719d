//! The root file system that containerd asks for: mounts, one upon the other, at `rootfs` in the bundle.

use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};

use super::message::Mount;
use crate::error::Error;

/// Most bytes of options that `mount(2)` takes: a page with its final zero.
const LONGEST_DATA: usize = 4095;

/// Mounts everything at `rootfs`; undoes it when one fails.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), Error> {
    for entry in mounts {
        let target = rootfs.join(entry.target.trim_start_matches('/'));
        if let Err(error) = mount_one(entry, &target) {
            unmount_all(rootfs);
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount, target: &Path) -> Result<(), Error> {
    let parsed = Options::parse(&entry.options);
    let failed = Error::path("mount root file system at", target);
    if entry.kind == "bind" || entry.kind == "rbind" || parsed.bind {
        let work = || {
            if parsed.recursive || entry.kind == "rbind" {
                mount_bind_recursive(entry.source.as_str(), target)?;
            } else {
                rustix::mount::mount_bind(entry.source.as_str(), target)?;
            }
            if !parsed.flags.is_empty() {
                mount_remount(target, MountFlags::BIND | parsed.flags, "")?;
            }
            Ok::<(), rustix::io::Errno>(())
        };
        work().map_err(failed)?;
    } else if parsed.data.len() > LONGEST_DATA {
        return overlay_in_place(entry, target, &parsed);
    } else {
        let data = std::ffi::CString::new(parsed.data.as_str()).unwrap_or_default();
        mount(
            entry.source.as_str(),
            target,
            entry.kind.as_str(),
            parsed.flags,
            Some(&*data),
        )
        .map_err(failed)?;
    }
    if let Some(propagation) = parsed.propagation {
        mount_change(target, propagation).map_err(Error::path("set propagation of", target))?;
    }
    Ok(())
}

/// Mounts with more options than a page holds, one by one: an overlay of many layers. fsopen(2), Linux 5.2; lower
/// directories one at a time, Linux 6.5.
fn overlay_in_place(entry: &Mount, target: &Path, parsed: &Options) -> Result<(), Error> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    };
    let work = || {
        let context = fsopen(entry.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", entry.source.as_str())?;
        for option in parsed.data.split(',') {
            match option.split_once('=') {
                Some(("lowerdir", layers)) => {
                    for layer in layers.split(':') {
                        fsconfig_set_string(&context, "lowerdir+", layer)?;
                    }
                }
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, option)?,
            }
        }
        fsconfig_create(&context)?;
        let attributes = if parsed.flags.contains(MountFlags::RDONLY) {
            MountAttrFlags::MOUNT_ATTR_RDONLY
        } else {
            MountAttrFlags::empty()
        };
        let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(
            &mounted,
            "",
            CWD,
            target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    work().map_err(Error::path("mount root file system at", target))
}

/// Takes away everything mounted at or below `rootfs`.
pub(crate) fn unmount_all(rootfs: &Path) {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    let mut found: Vec<std::path::PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|path| path.starts_with(rootfs))
        .collect();
    // Later ones lie on earlier ones.
    found.reverse();
    for path in found {
        if let Err(errno) = unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            crate::diag::warning!("unmount {}: {errno}", path.display());
        }
    }
}

/// A path of mountinfo: blanks and the like are written as three octal digits.
fn unescape(text: &str) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

/// Options of a mount, sorted.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    bind: bool,
    recursive: bool,
    /// What is for the file system.
    data: String,
}

impl Options {
    fn parse(words: &[String]) -> Self {
        let mut options = Self {
            flags: MountFlags::empty(),
            propagation: None,
            bind: false,
            recursive: false,
            data: String::new(),
        };
        let mut data: Vec<&str> = Vec::new();
        for word in words {
            let flag = match word.as_str() {
                "" | "defaults" | "rw" | "exec" | "suid" | "dev" | "async" => continue,
                "bind" => {
                    options.bind = true;
                    continue;
                }
                "rbind" => {
                    options.bind = true;
                    options.recursive = true;
                    continue;
                }
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
                | "unbindable" | "runbindable" => {
                    options.propagation = propagation(word);
                    continue;
                }
                "ro" => MountFlags::RDONLY,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "nosuid" => MountFlags::NOSUID,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "relatime" => MountFlags::RELATIME,
                "strictatime" => MountFlags::STRICTATIME,
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                // A loop device is containerd's to set up; and X-… is for others' eyes.
                word if word.starts_with("X-") || word.starts_with("x-") => continue,
                word => {
                    data.push(word);
                    continue;
                }
            };
            options.flags |= flag;
        }
        options.data = data.join(",");
        options
    }
}

fn propagation(word: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match word {
        "rprivate" | "rshared" | "rslave" | "runbindable" => (&word[1..], true),
        word => (word, false),
    };
    let flag = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    let depth = if recursive {
        MountPropagationFlags::REC
    } else {
        MountPropagationFlags::empty()
    };
    Some(flag | depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted() {
        let parse = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            Options::parse(&words)
        };
        let overlay = parse("index=off workdir=/w upperdir=/u lowerdir=/a:/b ro");
        assert_eq!(
            overlay.data,
            "index=off,workdir=/w,upperdir=/u,lowerdir=/a:/b"
        );
        assert_eq!(overlay.flags, MountFlags::RDONLY);
        let bind = parse("rbind ro rprivate");
        assert!(bind.bind && bind.recursive);
        assert!(bind.propagation.is_some());
        assert_eq!(bind.data, "");
    }

    #[test]
    fn blanks_in_paths() {
        assert_eq!(unescape("/a\\040b"), Path::new("/a b"));
        assert_eq!(unescape("/a\\b"), Path::new("/a\\b"));
    }
}
