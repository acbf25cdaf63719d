//! Giving a new user namespace its id mappings, from outside, and looking at those of one that is joined; making one that
//! has mappings and no process.
//!
//! Who has the right to (root, or the user mapping nobody but itself) writes them; for others `newuidmap` and `newgidmap` of
//! the shadow suite do, within what `/etc/subuid` and `/etc/subgid` grant. See user_namespaces(7).

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{Kind, Namespaces};
use crate::failure::{CallFailed, During};
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
    let (uids, gids) = read(joined)?;
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

/// Makes a user namespace with these mappings, which no process is in.
pub(crate) fn make(uids: &str, gids: &str) -> Result<OwnedFd, CallFailed> {
    let nothing = || Ok(());
    hold(Kind::User.flag(), nothing, |pid| {
        write_file(pid, "uid_map", uids)?;
        write_file(pid, "gid_map", gids)?;
        let path = file_of(pid, "ns/user");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(CWD, &path, flags, Mode::empty()).during("open", &path)
    })
}

/// The mappings of a user namespace as they are seen from here. The kernel tells those of a process only, so one goes in.
fn read(namespace: &OwnedFd) -> Result<(String, String), CallFailed> {
    let join = || setns(namespace, Kind::User.flag());
    let read_file = |pid, name| {
        let path = file_of(pid, name);
        std::fs::read_to_string(&path).during("read", &path)
    };
    hold(0, join, |pid| {
        Ok((read_file(pid, "uid_map")?, read_file(pid, "gid_map")?))
    })
}

/// Makes a process with these flags that joins a user namespace, and is there until `look` has seen it.
fn hold<T>(
    flags: u64,
    join: impl FnOnce() -> Result<(), Errno>,
    look: impl FnOnce(Pid) -> Result<T, CallFailed>,
) -> Result<T, CallFailed> {
    const WHAT: &str = "user namespace";
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let ends = socketpair(family, kind, SocketFlags::CLOEXEC, None).during("socketpair", WHAT)?;
    let (child, visitor) = clone_process(flags, None, ends, |end| {
        let code = join().map_or_else(Errno::raw_os_error, |()| 0);
        // Until the other end is closed, this process is looked at.
        let _ = rustix::io::write(&end, &code.to_ne_bytes())
            .and_then(|_| retry_on_intr(|| rustix::io::read(&end, &mut [0])));
        0
    })
    .during("clone3", WHAT)?;
    let mut code = [0; size_of::<i32>()];
    let told = retry_on_intr(|| rustix::io::read(&visitor, &mut code));
    let joined = told.and_then(|_| match i32::from_ne_bytes(code) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    });
    let seen = joined.during("setns", WHAT).and_then(|()| look(child.pid));
    drop(visitor);
    // ECHILD would mean that it has been waited for already.
    let _ = retry_on_intr(|| waitpid(Some(child.pid), WaitOptions::empty()));
    seen
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
    let path = file_of(pid, name);
    std::fs::write(&path, text).during("write", &path)
}

/// A file of a process.
fn file_of(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_nonzero()))
}

/// Runs `newuidmap` or `newgidmap`, without an environment: it has other rights than we.
fn by_helper(helper: &'static str, grants: &'static str, pid: Pid, map: &str) -> Result<(), Error> {
    let number = pid.as_raw_nonzero().get();
    log::debug!("{helper} {number} {}", map.trim_end().replace('\n', " "));
    let status = find(helper)
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

/// Where a program is according to the search path.
fn find(program: &str) -> Result<PathBuf, CallFailed> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or(Errno::NOENT)
        .during("exec", program)
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
