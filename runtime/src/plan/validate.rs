//! Rules a spec must keep, checked before anything is done. The texts are runc's, for programs that look for them.

use std::path::Path;

use super::Error;
use crate::namespace::{Kind, Namespaces};
use crate::spec::Spec;
use crate::spec::linux::Linux;
use crate::spec::process::Process;

/// The process of a spec, or of a file given to `exec`.
pub(super) fn process(process: Option<&Process>) -> Result<&Process, Error> {
    let process = process.ok_or_else(|| Error::invalid("process property must not be empty"))?;
    if process.cwd.is_empty() {
        return Err(Error::invalid("Cwd property must not be empty"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Error::invalid("Cwd must be an absolute path"));
    }
    let user = &process.user;
    // -1 means "leave it as it is" to the system calls that change ids: the process would stay root.
    if [user.uid, user.gid]
        .iter()
        .chain(&user.additional_gids)
        .any(|id| *id == u32::MAX)
    {
        return Err(Error::Invalid(format!(
            "{} is not a valid user or group id",
            u32::MAX
        )));
    }
    if process.args.is_empty() {
        return Err(Error::invalid("args must not be empty"));
    }
    if !process.selinux_label.is_empty() && !Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(Error::invalid(
            "selinux label is specified in config, but selinux is disabled or not supported",
        ));
    }
    Ok(process)
}

/// What concerns the spec as a whole.
pub(super) fn spec(spec: &Spec) -> Result<(), Error> {
    if !spec.oci_version.is_empty() && !spec.oci_version.starts_with("1.") {
        return Err(Error::Invalid(format!(
            "unsupported ociVersion {:?}: this runtime implements 1.x",
            spec.oci_version
        )));
    }
    let hooks = spec.hooks.iter();
    for hook in hooks.flat_map(|hooks| {
        let lists = [
            &hooks.prestart,
            &hooks.create_runtime,
            &hooks.create_container,
            &hooks.start_container,
        ];
        lists
            .into_iter()
            .chain([&hooks.poststart, &hooks.poststop])
            .flatten()
    }) {
        if !hook.path.starts_with('/') {
            return Err(Error::Invalid(format!(
                "hook path {:?} is not absolute",
                hook.path
            )));
        }
        if hook.timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(Error::Invalid(format!(
                "timeout of hook {:?} is not positive",
                hook.path
            )));
        }
    }
    Ok(())
}

/// What needs a namespace of its own.
pub(super) fn namespaces(spec: &Spec, linux: &Linux, namespaces: &Namespaces) -> Result<(), Error> {
    if !namespaces.contains(Kind::Mount)
        && !(linux.masked_paths.is_empty() && linux.readonly_paths.is_empty())
    {
        return Err(Error::invalid(
            "unable to restrict sys entries without a private MNT namespace",
        ));
    }
    if !namespaces.contains(Kind::Uts) {
        if !spec.hostname.is_empty() {
            return Err(Error::invalid(
                "unable to set hostname without a private UTS namespace",
            ));
        }
        if !spec.domainname.is_empty() {
            return Err(Error::invalid(
                "unable to set domainname without a private UTS namespace",
            ));
        }
    }
    for name in linux.sysctl.keys() {
        sysctl(name, spec, namespaces)?;
    }
    Ok(())
}

/// The path of a kernel parameter below `/proc/sys`: dots and slashes change places, as in sysctl(8), when the first
/// separator is a dot.
pub(super) fn sysctl_path(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'.' => name
            .chars()
            .map(|character| match character {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Allows kernel parameters that belong to a namespace of the container, and no others.
fn sysctl(name: &str, spec: &Spec, namespaces: &Namespaces) -> Result<(), Error> {
    const IPC: [&str; 8] = [
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    ];
    let path = sysctl_path(name);
    let components: Vec<&str> = path.split('/').collect();
    if components
        .iter()
        .any(|component| component.is_empty() || *component == "." || *component == "..")
    {
        return Err(Error::Invalid(format!("invalid sysctl name {name:?}")));
    }
    let own = match components.as_slice() {
        ["kernel", ipc] if IPC.contains(ipc) => namespaces.contains(Kind::Ipc),
        ["fs", "mqueue", ..] => namespaces.contains(Kind::Ipc),
        ["net", ..] => {
            if namespaces.is_joined(Kind::Network) || namespaces.makes(Kind::Network) {
                true
            } else {
                return Err(Error::Invalid(format!(
                    "sysctl {name:?} not allowed in host network namespace"
                )));
            }
        }
        ["kernel", "domainname"] => namespaces.contains(Kind::Uts) && spec.domainname.is_empty(),
        ["kernel", "hostname"] if namespaces.contains(Kind::Uts) => {
            return Err(Error::Invalid(format!(
                "sysctl {name:?} is not allowed as it conflicts with the OCI \"hostname\" field"
            )));
        }
        ["user", ..] => namespaces.has_user(),
        _ => false,
    };
    if own {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "sysctl {name:?} is not in a separate kernel namespace"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), Error> {
        let full: Spec = serde_json::from_str(json).unwrap();
        let linux = full.linux.clone().unwrap_or_default();
        spec(&full)?;
        namespaces(&full, &linux, &Namespaces::new(&linux)?)
    }

    #[test]
    fn kernel_parameters_need_their_namespace() {
        let with = |namespaces: &str, name: &str| {
            check(&format!(
                r#"{{"linux":{{"namespaces":[{{"type":"mount"}}{namespaces}],"sysctl":{{"{name}":"1"}}}}}}"#
            ))
        };
        assert!(with(r#",{"type":"ipc"}"#, "kernel.shmmax").is_ok());
        assert!(with("", "kernel.shmmax").is_err());
        assert!(with(r#",{"type":"network"}"#, "net.ipv4.ping_group_range").is_ok());
        assert!(with(r#",{"type":"network"}"#, "net/ipv4/conf/eth0.1/x").is_ok());
        assert!(with(r#",{"type":"ipc"}"#, "net.ipv4.ip_forward").is_err());
        for name in [
            "kernel.core_pattern",
            "vm.swappiness",
            "net/../kernel/core_pattern",
            "net..x",
        ] {
            assert!(
                with(r#",{"type":"network"},{"type":"ipc"}"#, name).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn sysctl_names_become_paths() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/x"),
            "net/ipv4/conf/eth0.1/x"
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.x"),
            "net/ipv4/conf/eth0.1/x"
        );
    }

    #[test]
    fn names_need_a_uts_namespace() {
        let error =
            check(r#"{"hostname":"h","linux":{"namespaces":[{"type":"mount"}]}}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to set hostname without a private UTS namespace"
        );
        assert!(check(r#"{"linux":{"namespaces":[]}}"#).is_ok());
        let error = check(r#"{"linux":{"namespaces":[],"maskedPaths":["/x"]}}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unable to restrict sys entries without a private MNT namespace"
        );
    }

    #[test]
    fn versions_and_hooks() {
        assert!(
            check(r#"{"ociVersion":"2.0.0","linux":{"namespaces":[{"type":"mount"}]}}"#).is_err()
        );
        let hook =
            r#"{"hooks":{"poststop":[{"path":"true"}]},"linux":{"namespaces":[{"type":"mount"}]}}"#;
        assert!(check(hook).is_err());
    }

    #[test]
    fn processes() {
        let parse = |json: &str| serde_json::from_str::<Process>(json).unwrap();
        assert!(process(None).is_err());
        assert!(process(Some(&parse(r#"{"args":["sh"],"cwd":"/"}"#))).is_ok());
        assert!(process(Some(&parse(r#"{"args":["sh"],"cwd":"x"}"#))).is_err());
        assert!(process(Some(&parse(r#"{"args":[],"cwd":"/"}"#))).is_err());
        for user in [
            r#""uid":4294967295"#,
            r#""gid":4294967295"#,
            r#""additionalGids":[1,4294967295]"#,
        ] {
            let json = format!(r#"{{"args":["sh"],"cwd":"/","user":{{{user}}}}}"#);
            assert!(process(Some(&parse(&json))).is_err(), "{user}");
        }
    }
}
