//! What of a container is not part of its checkpoint: mounts from the host, and namespaces that existed before it.
//!
//! Both halves work it out from the bundle, with the same names: the dump tells criu to leave these out, the restore what
//! to put in their place.

use rustix::fs::statat;

use crate::cgroup::{self, Hierarchies};
use crate::namespace::Kind;
use crate::plan::Plan;
use crate::plan::mount::Kind as MountKind;
use crate::rootfs::device;
use crate::rootfs::path::Root;

/// A mount that is not part of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is in the container, links resolved; its name in the checkpoint too.
    pub(super) destination: String,
    /// What of the host is there.
    pub(super) source: String,
}

/// The external mounts of a container: bind mounts, on cgroup v1 its cgroups, and device files, which are bound where they
/// could not be made. `record` is where its cgroups are.
///
/// criu ignores the ones that turn out not to be mounts.
pub(super) fn mounts(
    root: &Root,
    plan: &Plan,
    hierarchies: &Hierarchies,
    record: &cgroup::Record,
) -> Vec<Mount> {
    let mut found = Vec::new();
    let mut add = |destination: &str, source: &str| {
        found.push(Mount {
            destination: root.canonical(destination),
            source: source.to_owned(),
        });
    };
    for step in &plan.root.mounts {
        match step.kind {
            MountKind::Bind { .. } => add(&step.destination, &step.source.to_string_lossy()),
            MountKind::Cgroup => {
                if hierarchies.is_pure_v2() || plan.namespaces.contains(Kind::Cgroup) {
                    // A real mount, which is saved.
                    continue;
                }
                for hierarchy in hierarchies.list() {
                    let own = record
                        .paths
                        .values()
                        .find(|path| path.starts_with(&hierarchy.mount_point));
                    if let Some(own) = own {
                        let destination = format!("{}/{}", step.destination, hierarchy.name);
                        add(&destination, &own.to_string_lossy());
                    }
                }
            }
            MountKind::FileSystem(_) => {}
        }
    }
    if plan.root.populate_dev {
        for path in device::paths(&plan.root) {
            add(&path, &path);
        }
    }
    found
}

/// The name under which all masked files are known in a checkpoint, and what covers them.
pub(super) const NULL: &str = "/dev/null";

/// The masked paths that are files in a container whose root is `root`: covered by [`NULL`].
pub(super) fn masked_files(root: &Root, plan: &Plan) -> Vec<String> {
    let is_file = |path: &&String| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let Ok(fd) = root.resolve_with(path, flags) else {
            return false;
        };
        statat(&fd, c"", rustix::fs::AtFlags::EMPTY_PATH).is_ok_and(|stat| {
            rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Directory
        })
    };
    plan.root.masked.iter().filter(is_file).cloned().collect()
}

/// The name under which a namespace that existed before the container is known in a checkpoint, for the two kinds that
/// criu treats as external; the others are joined before anything is restored. runc's names.
pub(super) fn namespace_key(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Network => Some("extRootNetNS"),
        Kind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}
