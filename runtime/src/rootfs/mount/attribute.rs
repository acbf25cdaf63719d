//! From `MS_*` flags, as options have them, to the attributes that `mount_setattr(2)` and `fsmount(2)` take. Pure.
//!
//! A bind mount asked for with any flag has exactly the flags asked for, whatever its source has; only the access time
//! setting stays when none is asked for. That is what runc's remount does, and what `mount(2)` makes of `MS_REMOUNT |
//! MS_BIND`. In a user namespace flags of the source may be locked: then they are added, but a flag that was asked not to
//! be set is an error.

use libc::{
    MS_NOATIME, MS_NODEV, MS_NODIRATIME, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_RELATIME,
    MS_STRICTATIME,
};

use crate::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID,
    ATTR_NOSYMFOLLOW, ATTR_RDONLY, ATTR_STRICTATIME, MS_NOSYMFOLLOW, MountAttr,
};

/// Flags and attributes that mean the same and stand alone.
const PAIRS: [(u64, u64); 5] = [
    (MS_RDONLY, ATTR_RDONLY),
    (MS_NOSUID, ATTR_NOSUID),
    (MS_NODEV, ATTR_NODEV),
    (MS_NOEXEC, ATTR_NOEXEC),
    (MS_NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
];

/// Everything about access times.
const ACCESS_TIME: u64 = MS_NOATIME | MS_NODIRATIME | MS_RELATIME | MS_STRICTATIME;

/// Flags that the kernel locks on mounts that come from another user namespace.
const LOCKABLE: u64 = MS_RDONLY | MS_NODEV | MS_NOEXEC | MS_NOSUID | ACCESS_TIME;

/// Flags that concern a mount, not its file system.
const PER_MOUNT: u64 = LOCKABLE | MS_NOSYMFOLLOW;

/// The attributes of a new mount, for `fsmount`.
pub(super) fn of_new(flags: u64) -> u64 {
    let alone = PAIRS
        .into_iter()
        .filter(|(flag, _)| flags & flag != 0)
        .fold(0, |attributes, (_, attribute)| attributes | attribute);
    alone | access_time(flags)
}

/// What is to be done to a bind mount; `None` when no flag is asked for, and none asked not to be set.
pub(super) fn of_bind(flags: u64, cleared: u64) -> Option<MountAttr> {
    if flags & PER_MOUNT == 0 && cleared == 0 {
        return None;
    }
    let attr_set = of_new(flags);
    let mut attr_clr = PAIRS.into_iter().fold(0, |all, (_, bit)| all | bit) & !attr_set;
    if flags & ACCESS_TIME != 0 {
        attr_clr |= ATTR_ATIME_MASK | ATTR_NODIRATIME & !attr_set;
    }
    Some(MountAttr {
        attr_set,
        attr_clr,
        ..MountAttr::default()
    })
}

/// The flags to try when the kernel refuses what is asked for, given those that the source has: with its locked ones. An
/// error says what is asked for and cannot be had.
pub(super) fn with_locked(flags: u64, cleared: u64, present: u64) -> Result<u64, String> {
    let refused = present & cleared & LOCKABLE;
    if refused != 0 {
        return Err(format!("cannot clear locked flags {}", names(refused)));
    }
    if flags & ACCESS_TIME != 0 && flags & ACCESS_TIME != present & ACCESS_TIME {
        let kept = names(present & ACCESS_TIME);
        return Err(format!("cannot change locked atime flags {kept}"));
    }
    Ok(flags & PER_MOUNT | present & LOCKABLE)
}

/// The access time attributes of flags; one of the three settings wins, as in `mount(2)`.
fn access_time(flags: u64) -> u64 {
    let setting = if flags & MS_STRICTATIME != 0 {
        ATTR_STRICTATIME
    } else if flags & MS_NOATIME != 0 {
        ATTR_NOATIME
    } else {
        0
    };
    let directories = if flags & MS_NODIRATIME != 0 {
        ATTR_NODIRATIME
    } else {
        0
    };
    setting | directories
}

/// The flags of a mount as `statfs(2)` tells them. Their numbers are those of `MS_*` but for two; a mount with no setting of
/// access times is one with strict ones.
pub(super) fn from_statfs(bits: u64) -> u64 {
    const ST_RELATIME: u64 = 0x1000;
    const ST_NOSYMFOLLOW: u64 = 0x2000;
    let same = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME;
    let mut flags = bits & same;
    if bits & ST_RELATIME != 0 {
        flags |= MS_RELATIME;
    }
    if bits & ST_NOSYMFOLLOW != 0 {
        flags |= MS_NOSYMFOLLOW;
    }
    if flags & (MS_NOATIME | MS_RELATIME) == 0 {
        flags |= MS_STRICTATIME;
    }
    flags
}

/// Flags that concern a mount among others.
pub(super) fn per_mount(flags: u64) -> u64 {
    flags & PER_MOUNT
}

/// Flags by their names, for errors.
fn names(flags: u64) -> String {
    let all = [
        (MS_RDONLY, "MS_RDONLY"),
        (MS_NOSUID, "MS_NOSUID"),
        (MS_NODEV, "MS_NODEV"),
        (MS_NOEXEC, "MS_NOEXEC"),
        (MS_NOATIME, "MS_NOATIME"),
        (MS_NODIRATIME, "MS_NODIRATIME"),
        (MS_RELATIME, "MS_RELATIME"),
        (MS_STRICTATIME, "MS_STRICTATIME"),
    ];
    let set = all.into_iter().filter(|(flag, _)| flags & flag != 0);
    set.map(|(_, name)| name).collect::<Vec<_>>().join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_mounts() {
        for (flags, attributes) in [
            (0, 0),
            (MS_RDONLY | MS_NODEV, ATTR_RDONLY | ATTR_NODEV),
            (MS_NOSYMFOLLOW, ATTR_NOSYMFOLLOW),
            (MS_STRICTATIME | MS_NOATIME, ATTR_STRICTATIME),
            (MS_NOATIME | MS_RELATIME, ATTR_NOATIME),
            (MS_RELATIME | MS_NODIRATIME, ATTR_NODIRATIME),
            (libc::MS_SYNCHRONOUS, 0),
        ] {
            assert_eq!(of_new(flags), attributes, "{flags:#x}");
        }
    }

    #[test]
    fn bind_mounts() {
        assert_eq!(of_bind(0, 0), None);
        assert_eq!(of_bind(libc::MS_REMOUNT, 0), None);
        let every = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_NOSYMFOLLOW;
        for (flags, cleared, set, clear) in [
            (MS_RDONLY, 0, ATTR_RDONLY, every & !ATTR_RDONLY),
            // Asked not to be set: so is all else that is not asked for.
            (0, MS_NODEV, 0, every),
            // The access time stays, whatever is asked not to be set.
            (0, MS_NOATIME | MS_NODIRATIME, 0, every),
            (MS_NODIRATIME, 0, ATTR_NODIRATIME, every | ATTR_ATIME_MASK),
            (MS_RELATIME, 0, 0, every | ATTR_ATIME_MASK | ATTR_NODIRATIME),
        ] {
            let attr = of_bind(flags, cleared).unwrap();
            assert_eq!((attr.attr_set, attr.attr_clr), (set, clear), "{flags:#x}");
        }
    }

    #[test]
    fn locked_flags_are_kept_or_refused() {
        let present = MS_NOSUID | MS_NODEV | MS_RELATIME | MS_NOSYMFOLLOW;
        assert_eq!(
            with_locked(MS_RDONLY, 0, present),
            Ok(MS_RDONLY | MS_NOSUID | MS_NODEV | MS_RELATIME)
        );
        assert_eq!(
            with_locked(0, MS_NODEV | MS_NOEXEC, present).unwrap_err(),
            "cannot clear locked flags MS_NODEV"
        );
        assert_eq!(
            with_locked(MS_NOATIME, 0, present).unwrap_err(),
            "cannot change locked atime flags MS_RELATIME"
        );
        assert!(with_locked(MS_RELATIME, 0, present).is_ok());
    }

    #[test]
    fn what_statfs_tells() {
        assert_eq!(from_statfs(0x20), MS_STRICTATIME);
        assert_eq!(from_statfs(0x1001), MS_RDONLY | MS_RELATIME);
        assert_eq!(
            from_statfs(0x2c00),
            MS_NOATIME | MS_NODIRATIME | MS_NOSYMFOLLOW
        );
    }
}
