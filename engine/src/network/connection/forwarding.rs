//! Forwarding: whether the kernel passes packets on at all.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::super::{KernelContext, Result, member};
use crate::store::{self, Context, Durability, Store};

/// Lets the kernel pass packets on between interfaces. It stays on, as others may rely on it by the time we could
/// switch it off; `<run>/network/.forwarding` tells that it was us.
pub(super) fn switch_on(store: &Store) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv4/ip_forward");
    if !write_one(path, "IP forwarding")? {
        return Ok(());
    }
    let record = member::directory(store).join(".forwarding");
    Ok(store::write_atomic(
        &record,
        b"switched on\n",
        Durability::Volatile,
    )?)
}

/// The same for IPv6. A kernel that forwards ceases to listen to router advertisements, by which the host may have its
/// own addresses and routes; interfaces that do so now are told to go on.
pub(super) fn switch_ipv6_on() -> Result<()> {
    let directory = Path::new("/proc/sys/net/ipv6/conf");
    let forwarding = directory.join("all/forwarding");
    if !is_off(&forwarding)? {
        return Ok(());
    }
    for entry in fs::read_dir(directory)
        .context("list", directory)?
        .flatten()
    {
        let path = entry.path().join("accept_ra");
        let is_model = ["all", "default"]
            .iter()
            .any(|name| entry.file_name() == *name);
        // One that vanishes meanwhile needs nothing.
        if !is_model && fs::read(&path).is_ok_and(|value| value.starts_with(b"1")) {
            drop(fs::write(&path, b"2"));
        }
    }
    write_one(&forwarding, "IPv6 forwarding").map(drop)
}

fn is_off(path: &Path) -> Result<bool> {
    Ok(fs::read(path).context("read", path)?.starts_with(b"0"))
}

/// Returns whether it was off.
fn write_one(path: &Path, what: &str) -> Result<bool> {
    if !is_off(path)? {
        return Ok(false);
    }
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(b"1"))
        .kernel("switch on", what)?;
    Ok(true)
}
