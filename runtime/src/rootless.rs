//! Running without the rights of the host's root: as another user, or as root of a user namespace.
//!
//! What the kernel refuses such a caller is known only when it does, so nothing here is asked before something failed, but
//! for the user id. The rules are runc's (`--rootless` in runc(8)).

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What `--rootless` says: whether a lack of rights on cgroups is passed over. `None` is "auto": as the caller's rights are.
pub(crate) type Choice = Option<bool>;

/// Whether a lack of rights on cgroups is passed over.
pub(crate) fn forgives(choice: Choice) -> bool {
    choice.unwrap_or_else(is_unprivileged)
}

/// Whether this process is not root. Root of a user namespace is.
pub(crate) fn is_other_user() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Whether this process lacks the rights of the host's root.
pub(crate) fn is_unprivileged() -> bool {
    is_other_user() || in_user_namespace()
}

/// Whether this process is in another user namespace than the initial one, which maps all ids onto themselves.
fn in_user_namespace() -> bool {
    let whole = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    // Without the file the kernel has no user namespaces.
    !std::fs::read_to_string("/proc/self/uid_map").map_or(true, whole)
}

/// Whether processes of a container keep the supplementary groups of whoever starts them, as its annotation
/// `run.oci.keep_original_groups` asks: crun's, with which podman asks for `--group-add keep-groups`. Those of the host's root
/// are not given away.
pub(crate) fn keeps_groups(annotations: &BTreeMap<String, String>) -> bool {
    let asked = annotations.get("run.oci.keep_original_groups");
    asked.is_some_and(|value| value == "1") && is_unprivileged()
}

/// The user's own directory for state, below `$XDG_RUNTIME_DIR`; `None` for the host's root, and where there is none.
///
/// Root of a user namespace has one unless its environment says that it is root, as after `su`: then it may be a whole
/// system of its own.
pub(crate) fn own_state_directory() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty())?;
    // The environment first, which is the host's root's nearly always and costs no file.
    let is_ours = is_other_user()
        || std::env::var_os("USER").is_none_or(|name| name != "root") && in_user_namespace();
    is_ours.then(|| PathBuf::from(runtime).join("qrun"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explicit_choice_is_taken() {
        assert!(forgives(Some(true)));
        assert!(!forgives(Some(false)));
        assert_eq!(forgives(None), is_unprivileged());
    }
}
