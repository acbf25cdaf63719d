//! The state of a container as it is first written.

use super::parent::{Prepared, Request};
use crate::cgroup;
use crate::checkpoint;
use crate::clock;
use crate::plan::inherited::Inherited;
use crate::seccomp_agent;
use crate::spec::Hooks;
use crate::state::Record;

/// The state as it is before there is a process.
pub(crate) fn first(request: &Request<'_>, prepared: &Prepared) -> Record {
    let hooks = &prepared.hooks;
    let later = Hooks {
        poststart: hooks.poststart.clone(),
        poststop: hooks.poststop.clone(),
        ..Hooks::default()
    };
    Record {
        oci_version: request.spec.oci_version.clone(),
        id: request.plan.id.clone(),
        pid: 0,
        start_time: 0,
        bundle: request.plan.bundle.clone(),
        rootfs: request.plan.root.path.clone(),
        created: clock::now_with_nanoseconds(),
        annotations: request.spec.annotations.clone(),
        cgroup: prepared
            .cgroup
            .as_ref()
            .map(cgroup::Plan::record)
            .unwrap_or_default(),
        namespaces: request.plan.namespaces.all_flags(),
        joined_namespaces: request
            .plan
            .namespaces
            .joined()
            .fold(0, |flags, (kind, _)| flags | kind.flag()),
        hooks: Some(later).filter(|hooks| *hooks != Hooks::default()),
        has_filter: prepared.seccomp.is_some(),
        agent: request
            .spec
            .linux
            .as_ref()
            .and_then(|linux| linux.seccomp.as_ref())
            .and_then(seccomp_agent::of),
        resctrl: None,
        inherited: Inherited::new(request.spec, request.plan),
        external_descriptors: checkpoint::standard_streams(request.plan.process.terminal),
        owner: rustix::process::getuid().as_raw(),
        rootless: request.rootless,
    }
}

/// A cgroup's directories by controller, as messages carry them.
pub(super) fn paths_of(record: &cgroup::Record) -> Vec<(String, String)> {
    let pairs = record.paths.iter();
    pairs
        .map(|(name, path)| (name.clone(), path.to_string_lossy().into_owned()))
        .collect()
}
