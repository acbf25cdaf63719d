//! Volumes whose content is elsewhere: `-o type=…,device=…,o=…`.
//!
//! Such a volume is a mount on `_data`, made under the volume's lock for its first user and taken away under it after
//! its last. A mount that outlived a killed command is found by the next user, or taken away with that command's
//! container when it is put right.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::ToSocketAddrs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_system_call,
    mount_bind_recursive, mount_change,
};

use super::{Error, Result, Volume};

/// Refuses options that could not be followed when the volume is used.
pub(super) fn check(name: &str, options: &BTreeMap<String, String>) -> Result<()> {
    let bad = |why: String| {
        Err(Error::BadOption {
            name: name.to_owned(),
            why,
        })
    };
    for key in options.keys() {
        match key.as_str() {
            "type" | "device" | "o" => {}
            "size" => {
                return bad(
                    "quota size requested but no quota support; for a limit use type=tmpfs with o=size=…".to_owned(),
                );
            }
            _ => return bad(format!("invalid option: {key:?}")),
        }
    }
    if options.is_empty() {
        return Ok(());
    }
    for key in ["type", "device"] {
        let is_given = options.get(key).is_some_and(|value| !value.is_empty());
        // A bind needs no type.
        let may_lack = key == "type" && is_bind(options);
        if !is_given && !may_lack {
            return bad(format!("missing required option: {key:?}"));
        }
    }
    Ok(())
}

fn is_bind(options: &BTreeMap<String, String>) -> bool {
    options
        .get("o")
        .is_some_and(|o| o.split(',').any(|word| matches!(word, "bind" | "rbind")))
}

/// Whether something is mounted at `path` itself.
pub(super) fn is_mounted(path: &Path) -> bool {
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty()).is_ok_and(|stat| {
        stat.stx_attributes_mask
            .contains(StatxAttributes::MOUNT_ROOT)
            && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

/// Mounts what the volume's options say, unless it is there already. Under the volume's lock.
pub(super) fn mount(volume: &Volume, data: &Path) -> Result<()> {
    if is_mounted(data) {
        return Ok(());
    }
    let option = |key: &str| volume.options.get(key).map_or("", String::as_str);
    let (kind, device, words) = (option("type"), option("device"), option("o"));
    let failed = |source: std::io::Error| Error::Mount {
        name: volume.name.clone(),
        device: device.to_owned(),
        path: data.to_owned(),
        options: words.to_owned(),
        source,
    };
    let (flags, mut rest) = flags_and_data(words);
    if is_bind(&volume.options) {
        bind_downstream(Path::new(device), data).map_err(|errno| failed(errno.into()))?;
        if !flags.is_empty() {
            let remounted = rustix::mount::mount_remount(data, flags | MountFlags::BIND, "");
            if let Err(errno) = remounted {
                unmount(data);
                return Err(failed(errno.into()));
            }
        }
        return Ok(());
    }
    if kind.starts_with("nfs") || kind == "cifs" {
        resolve_address(&mut rest).map_err(failed)?;
    }
    let text = CString::new(rest.join(",")).map_err(|_| failed(Errno::INVAL.into()))?;
    mount_system_call(device, data, kind, flags, Some(text.as_c_str()))
        .map_err(|errno| failed(errno.into()))
}

/// Binds a directory with all that is mounted below it, such that nothing which is unmounted here is unmounted there:
/// where mounts are shared, as systemd has them, a plain recursive bind passes its own end on to the original's
/// submounts.
pub(crate) fn bind_downstream(source: &Path, target: &Path) -> rustix::io::Result<()> {
    mount_bind_recursive(source, target)?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change(target, flags)
}

/// Takes away whatever is mounted at `data`.
pub(super) fn unmount(data: &Path) {
    while is_mounted(data) {
        if rustix::mount::unmount(data, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err() {
            return;
        }
    }
}

/// Splits mount options into the kernel's flags and what the file system is told.
fn flags_and_data(words: &str) -> (MountFlags, Vec<String>) {
    let mut flags = MountFlags::empty();
    let mut rest = Vec::new();
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "rw" | "bind" | "rbind" | "defaults" | "suid" | "dev" | "exec" | "async" | "atime" => {}
            word => rest.push(word.to_owned()),
        }
    }
    (flags, rest)
}

/// The kernel wants an address where people write a name.
fn resolve_address(words: &mut [String]) -> std::io::Result<()> {
    for word in words {
        if let Some(host) = word.strip_prefix("addr=") {
            let address = (host, 0).to_socket_addrs()?.next();
            if let Some(address) = address {
                *word = format!("addr={}", address.ip());
            }
        }
    }
    Ok(())
}
