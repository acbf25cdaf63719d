//! `/dev`: the default device files and links, and the devices of the spec.
//!
//! Governing text: runtime-spec config-linux.md, "Devices" and "Default Devices", and runtime-linux.md, "Dev symbolic
//! links". Where device files cannot be made (in a user namespace) those of the host are bound.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, makedev, mknodat, openat,
    statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mount::{fd_path, is_refused, put};
use super::path::{Missing, Root};
use crate::plan::RootPlan;
use crate::setup::fault::{At, Fault, Step};
use crate::spec::linux::Device;
use crate::sys::mount::mount;

/// Device files every container has: name, major and minor number.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const PTMX: &str = "/dev/ptmx";

/// Links every container has: name and target.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills `/dev`.
pub(crate) fn populate(root: &Root, plan: &RootPlan) -> Result<(), Fault> {
    let dev = root
        .ensure("/dev", Missing::Directory)
        .at(Step::Device, "mkdir", "/dev")?;
    for (name, major, minor) in DEFAULT {
        let own = plan
            .devices
            .iter()
            .any(|device| device.path.strip_prefix("/dev/") == Some(name));
        if own {
            continue;
        }
        let number = makedev(major, minor);
        let made = if plan.bind_devices {
            Err(Errno::PERM)
        } else {
            let mode = Mode::from_raw_mode(0o666);
            make(&dev, name, FileType::CharacterDevice, mode, number)
        };
        match made {
            Ok(_) => {}
            Err(Errno::PERM) => bind(root, &format!("/dev/{name}"))?,
            Err(errno) => return Err(errno).at(Step::Device, "mknod", &format!("/dev/{name}")),
        }
    }
    // Whoever lists `ptmx` gets it of the container's own devpts, like everybody.
    let listed = plan.devices.iter().filter(|device| device.path != PTMX);
    for device in listed {
        make_listed(root, device, plan.bind_devices)?;
    }
    for (name, target) in LINKS {
        link(&dev, name, target)?;
    }
    if rustix::fs::access(c"/proc/kcore", rustix::fs::Access::EXISTS).is_ok() {
        link(&dev, "core", "/proc/kcore")?;
    }
    Ok(())
}

/// Where the device files are that every container has, and those of the spec.
pub(crate) fn paths(plan: &RootPlan) -> Vec<String> {
    let default = DEFAULT.iter().map(|(name, _, _)| format!("/dev/{name}"));
    let listed = plan.devices.iter().map(|device| device.path.clone());
    let mut paths: Vec<String> = default.chain(listed).collect();
    paths.sort_unstable();
    paths.dedup();
    paths
}

/// Makes a device file; one that is there already is taken as it is, and the answer then is false. The umask is empty, so
/// it has its permissions from the beginning.
fn make(
    directory: impl AsFd,
    name: &str,
    kind: FileType,
    mode: Mode,
    number: u64,
) -> Result<bool, Errno> {
    let directory = directory.as_fd();
    match mknodat(directory, name, kind, mode, number) {
        Err(Errno::EXIST) => {
            let there = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if is_device(&there, kind, number) {
                Ok(false)
            } else {
                Err(Errno::EXIST)
            }
        }
        other => other.map(|()| true),
    }
}

/// Whether a file is this device.
fn is_device(stat: &Stat, kind: FileType, number: u64) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number
}

/// Makes a device of the spec, with its owner and permissions.
fn make_listed(root: &Root, device: &Device, bind_devices: bool) -> Result<(), Fault> {
    let path = device.path.as_str();
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => return Err(Errno::INVAL).at(Step::Device, "mknod", path),
    };
    if bind_devices && kind != FileType::Fifo {
        return bind(root, path);
    }
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = root
        .ensure(parent, Missing::Directory)
        .at(Step::Device, "mkdir", parent)?;
    let part = |number: i64| u32::try_from(number).map_err(|_| Errno::INVAL);
    let number = part(device.major)
        .and_then(|major| Ok(makedev(major, part(device.minor)?)))
        .at(Step::Device, "mknod", path)?;
    let number = if kind == FileType::Fifo { 0 } else { number };
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match make(&directory, name, kind, mode, number) {
        Ok(true) => {}
        // It may be the host's own, in a directory bound from there.
        Ok(false) => return Ok(()),
        Err(Errno::PERM) => return bind(root, path),
        Err(errno) => return Err(errno).at(Step::Device, "mknod", path),
    }
    let owner = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if owner != (0, 0) {
        give_away(&directory, name, (kind, number), owner).at(Step::Device, "chown", path)?;
    }
    Ok(())
}

/// Gives a device file that has just been made to its owner, if it is still the one at its name.
fn give_away(
    directory: &OwnedFd,
    name: &str,
    (kind, number): (FileType, u64),
    (user, group): (u32, u32),
) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(directory, name, flags, Mode::empty())?;
    if !is_device(&fstat(&made)?, kind, number) {
        return Err(Errno::EXIST);
    }
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    chownat(&made, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)
}

/// Binds a device file of the host.
fn bind(root: &Root, path: &str) -> Result<(), Fault> {
    let target = root
        .ensure(path, Missing::File)
        .at(Step::Device, "create", path)?;
    bind_file(CWD, path, &target).at(Step::Device, "bind", path)
}

/// Binds the file at a path of the host on an opened file.
fn bind_file(from: impl AsFd, path: &str, target: &OwnedFd) -> Result<(), Errno> {
    let from = from.as_fd();
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::OPEN_TREE_CLONE;
    match open_tree(from, path, flags).and_then(|tree| put(&tree, target)) {
        Err(errno) if is_refused(errno) => {
            let source = openat(from, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            let (source, target) = (fd_path(&source), fd_path(target));
            mount(Some(&source), &target, None, libc::MS_BIND, None)
        }
        other => other,
    }
}

/// Makes a link in `/dev`; one that is there already is left alone, but `ptmx` must lead to the container's own devpts.
fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<(), Fault> {
    if name == "ptmx" {
        match unlinkat(dev, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).at(Step::Device, "unlink", PTMX),
        }
    }
    match symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).at(Step::Device, "symlink", name),
    }
}
