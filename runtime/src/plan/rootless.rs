//! What a caller who is not root cannot have, found before anything is made. The rules and the texts are runc's.

use super::Error;
use crate::namespace::{Kind, Namespaces};
use crate::spec::Spec;
use crate::spec::linux::{IdMapping, Linux};
use crate::spec::process::Process;

/// Checks a spec.
pub(super) fn check(spec: &Spec, linux: &Linux, namespaces: &Namespaces) -> Result<(), Error> {
    if !linux.net_devices.is_empty() {
        return Err(Error::invalid(
            "network devices are not supported for rootless containers",
        ));
    }
    if !namespaces.has_user() {
        return Err(Error::invalid(
            "rootless container requires user namespaces",
        ));
    }
    if namespaces.makes(Kind::User) {
        check_mount_owners(spec, linux)?;
    }
    for mount in &spec.mounts {
        let words = mount.options.iter().map(String::as_str);
        let mapped = !(mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty());
        if mapped || words.into_iter().any(|it| matches!(it, "idmap" | "ridmap")) {
            return Err(Error::invalid(
                "id-mapped mounts are not supported for rootless containers",
            ));
        }
    }
    spec.process.as_ref().map_or(Ok(()), check_groups)
}

/// Checks that a process wants no other groups than its first: nobody without privileges may drop any, which `setgroups`
/// would be a way to.
pub(crate) fn check_groups(process: &Process) -> Result<(), Error> {
    if process.user.additional_gids.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(
        "cannot set any additional groups in a rootless container",
    ))
}

/// Checks that owners given to file systems by mount options are mapped.
fn check_mount_owners(spec: &Spec, linux: &Linux) -> Result<(), Error> {
    for option in spec.mounts.iter().flat_map(|mount| &mount.options) {
        for (name, kind, mappings) in [
            ("uid=", "uid", &linux.uid_mappings),
            ("gid=", "gid", &linux.gid_mappings),
        ] {
            // Whatever is no number may mean something to the file system.
            let id = option
                .strip_prefix(name)
                .and_then(|id| id.parse::<u32>().ok());
            if let Some(id) = id.filter(|id| !is_mapped(mappings, *id)) {
                return Err(Error::Invalid(format!(
                    "cannot specify {} mount option for rootless container: user namespaces enabled, but no mapping found \
                     for {kind} {id}",
                    option.escape_debug()
                )));
            }
        }
    }
    Ok(())
}

/// Whether an id inside has one outside.
fn is_mapped(mappings: &[IdMapping], id: u32) -> bool {
    mappings.iter().any(|mapping| {
        id.checked_sub(mapping.container_id)
            .is_some_and(|offset| offset < mapping.size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: &str) -> String {
        let spec: Spec = serde_json::from_str(json).unwrap();
        let linux = spec.linux.clone().unwrap_or_default();
        let namespaces = Namespaces::new(&linux).unwrap();
        check(&spec, &linux, &namespaces).map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn with_mount(mount: &str) -> String {
        problem(&format!(
            r#"{{"mounts":[{mount}],"linux":{{"namespaces":[{{"type":"user"}}],
                "uidMappings":[{{"containerID":0,"hostID":1000,"size":1}}],
                "gidMappings":[{{"containerID":0,"hostID":1000,"size":1}},{{"containerID":1,"hostID":100000,"size":9}}]}}}}"#
        ))
    }

    #[test]
    fn a_user_namespace_is_needed() {
        let json = r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#;
        assert_eq!(problem(json), "rootless container requires user namespaces");
        let json = r#"{"linux":{"namespaces":[{"type":"user","path":"/proc/1/ns/user"}]}}"#;
        assert_eq!(problem(json), "");
    }

    #[test]
    fn owners_of_mounts_are_mapped() {
        let mount = |option: &str| {
            with_mount(&format!(
                r#"{{"destination":"/d","type":"tmpfs","source":"t","options":["nosuid","{option}"]}}"#
            ))
        };
        assert_eq!(mount("gid=5"), "");
        assert_eq!(mount("uid=0"), "");
        assert_eq!(mount("uid=root"), "");
        assert_eq!(
            mount("gid=10"),
            "cannot specify gid=10 mount option for rootless container: user namespaces enabled, but no mapping found for gid 10"
        );
        assert!(mount("uid=1").contains("uid 1"));
        assert!(mount("idmap").starts_with("id-mapped mounts are not supported"));
    }

    #[test]
    fn groups_stay_as_they_are() {
        let process = |json: &str| serde_json::from_str::<Process>(json).unwrap();
        assert!(check_groups(&process(r#"{"user":{"uid":0,"gid":0}}"#)).is_ok());
        assert!(check_groups(&process(r#"{"user":{"additionalGids":[7]}}"#)).is_err());
    }
}
