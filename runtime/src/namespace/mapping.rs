//! Giving a new user namespace its id mappings, from outside, and looking at those of one that is joined.
//!
//! Who has the right to (root, or the user mapping nobody but itself) writes them; for others `newuidmap` and `newgidmap` of
//! the shadow suite do, within what `/etc/subuid` and `/etc/subgid` grant. See user_namespaces(7).

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Kind, Namespaces};
use crate::failure::{CallFailed, During};
use crate::program;
use crate::sys::process::{clone_process, setns};

/// Why mappings could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The kernel refused them.
    #[error(transparent)]
    Call(#[from] CallFailed),
    /// The kernel refused them, and the privileged helper cannot be executed.
    #[error("mapping tool not present (mapping other ids than one's own takes {helper})")]
    NoHelper {
        /// Its name.
        helper: &'static str,
        /// What came of executing it.
        source: CallFailed,
    },
    /// The privileged helper refused them, too, and has said why on standard error.
    #[error("failed to use {helper} on {pid} (are the ids among those of the user in {grants}?)")]
    Helper {
        /// Its name.
        helper: &'static str,
        /// For whom.
        pid: i32,
        /// The file that says what it may do.
        grants: &'static str,
    },
    /// Mappings are given beside a namespace to join, which has others.
    #[error(
        "user namespaces enabled, but both namespace path and non-matching mapping specified -- you may only provide one"
    )]
    OtherThanJoined,
}

/// Writes the mappings for the namespace that process `pid` has been born in.
pub(crate) fn write(pid: Pid, namespaces: &Namespaces) -> Result<(), Error> {
    if crate::rootless::is_other_user() && maps_own_group_alone(&namespaces.gid_map) {
        // Before the group mapping, because nobody may write one without help and keep this right.
        write_file(pid, "setgroups", "deny").or_else(|failed| match failed.errno {
            // Before Linux 3.19.
            Errno::NOENT => Ok(()),
            _ => Err(failed),
        })?;
    }
    write_map(
        pid,
        "uid_map",
        &namespaces.uid_map,
        "newuidmap",
        "/etc/subuid",
    )?;
    write_map(
        pid,
        "gid_map",
        &namespaces.gid_map,
        "newgidmap",
        "/etc/subgid",
    )
}

/// Checks mappings that are given beside a user namespace to join, as containerd does: they have to be what that has.
pub(crate) fn check_joined(joined: &OwnedFd, namespaces: &Namespaces) -> Result<(), Error> {
    if namespaces.uid_map.is_empty() && namespaces.gid_map.is_empty() {
        return Ok(());
    }
    let (uids, gids) = read(joined).during("read", "mappings of user namespace")?;
    if !is_same(&uids, &namespaces.uid_map) || !is_same(&gids, &namespaces.gid_map) {
        return Err(Error::OtherThanJoined);
    }
    log::warn!(
        "config.json has both a userns path to join and a matching userns mapping specified -- you may only provide one"
    );
    Ok(())
}

/// Whether two mappings are the same; the kernel aligns its numbers with spaces.
fn is_same(kernels: &str, given: &str) -> bool {
    kernels.split_whitespace().eq(given.split_whitespace())
}

/// The mappings of a user namespace as they are seen from here. The kernel tells those of a process only, so one goes in.
fn read(namespace: &OwnedFd) -> std::io::Result<(String, String)> {
    let flags = SocketFlags::CLOEXEC;
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (child, visitor) = clone_process(0, None, ends, |end| {
        let joined = setns(namespace, Kind::User.flag());
        let code = joined.map_or_else(Errno::raw_os_error, |()| 0);
        // Until the other end is closed, this process is looked at.
        let _ = rustix::io::write(&end, &code.to_ne_bytes())
            .and_then(|_| retry_on_intr(|| rustix::io::read(&end, &mut [0])));
        0
    })?;
    let mut code = [0; size_of::<i32>()];
    let told = retry_on_intr(|| rustix::io::read(&visitor, &mut code));
    let of = |name: &str| {
        std::fs::read_to_string(format!("/proc/{}/{name}", child.pid.as_raw_nonzero()))
    };
    let found = match (told, i32::from_ne_bytes(code)) {
        (Err(errno), _) => Err(errno.into()),
        (Ok(_), 0) => of("uid_map").and_then(|uids| Ok((uids, of("gid_map")?))),
        (Ok(_), errno) => Err(std::io::Error::from_raw_os_error(errno)),
    };
    drop(visitor);
    // ECHILD would mean that it has been waited for already.
    let _ = retry_on_intr(|| waitpid(Some(child.pid), WaitOptions::empty()));
    found
}

/// Whether a mapping is of the caller's group to root and of nothing else.
fn maps_own_group_alone(map: &str) -> bool {
    let own = rustix::process::getegid().as_raw();
    map.trim_end() == format!("0 {own} 1")
}

/// Writes one mapping; by the helper if the kernel forbids it.
fn write_map(
    pid: Pid,
    name: &str,
    map: &str,
    helper: &'static str,
    grants: &'static str,
) -> Result<(), Error> {
    match write_file(pid, name, map) {
        Err(failed) if failed.errno == Errno::PERM => by_helper(helper, grants, pid, map),
        other => Ok(other?),
    }
}

/// Writes a file of a process, in one call as these files want it.
fn write_file(pid: Pid, name: &str, text: &str) -> Result<(), CallFailed> {
    let path = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero())).join(name);
    std::fs::write(&path, text).during("write", &path)
}

/// Runs `newuidmap` or `newgidmap`, without an environment: it has other rights than we.
fn by_helper(helper: &'static str, grants: &'static str, pid: Pid, map: &str) -> Result<(), Error> {
    let number = pid.as_raw_nonzero().get();
    log::debug!("{helper} {number} {}", map.trim_end().replace('\n', " "));
    let status = program::find(helper)
        .ok_or(Errno::NOENT)
        .during("exec", helper)
        .and_then(|path| {
            Command::new(path)
                .arg0(helper)
                .arg(number.to_string())
                .args(map.split_whitespace())
                .env_clear()
                .status()
                .during("exec", helper)
        })
        .map_err(|source| Error::NoHelper { helper, source })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Helper {
        helper,
        pid: number,
        grants,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_spelling() {
        assert!(is_same(
            "         0     100000      65536\n",
            "0 100000 65536\n"
        ));
        assert!(!is_same("0 100000 65536\n1 2 3\n", "0 100000 65536\n"));
        assert!(!is_same("0 100000 65536\n", ""));
    }

    #[test]
    fn whose_group() {
        let own = rustix::process::getegid().as_raw();
        assert!(maps_own_group_alone(&format!("0 {own} 1\n")));
        assert!(!maps_own_group_alone(&format!("1 {own} 1\n")));
        assert!(!maps_own_group_alone(&format!("0 {own} 2\n")));
        assert!(!maps_own_group_alone(&format!("0 {own} 1\n1 100000 9\n")));
    }
}
