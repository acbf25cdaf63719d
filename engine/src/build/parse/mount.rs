//! `RUN --mount=type=…,…`.

use super::Parsed;
use crate::build::instruction::{Mount, MountKind, Sharing};

/// Reads the value of one `--mount`.
pub(super) fn mount(text: &str) -> Parsed<Mount> {
    let mut mount = Mount::default();
    let mut kind = "bind";
    let mut env = None;
    for field in text.split(',').filter(|field| !field.is_empty()) {
        let (name, value) = match field.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (field, None),
        };
        let text = || {
            value
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("RUN --mount: {name} takes a value"))
        };
        let flag = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!(
                "RUN --mount: {name}={other}: it takes true or false"
            )),
        };
        let number = |base| {
            u32::from_str_radix(text()?, base)
                .map_err(|_| format!("RUN --mount: {field} is not a number"))
        };
        match name {
            "type" => kind = text()?,
            "target" | "dst" | "destination" => mount.target = text()?.to_owned(),
            "source" | "src" => mount.source = text()?.to_owned(),
            "from" => mount.from = Some(text()?.to_owned()),
            "id" => mount.id = Some(text()?.to_owned()),
            "ro" | "readonly" => mount.read_only = Some(flag()?),
            "rw" | "readwrite" => mount.read_only = Some(!flag()?),
            "required" => mount.required = flag()?,
            "env" => env = Some(text()?.to_owned()),
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = number(10)?,
            "gid" => mount.gid = number(10)?,
            "size" => mount.size = Some(text()?.to_owned()),
            "sharing" => {
                mount.sharing = match text()? {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    other => {
                        return Err(format!(
                            "RUN --mount: sharing={other}: it takes shared, private or locked"
                        ));
                    }
                }
            }
            other => return Err(format!("RUN --mount has no field {other:?}")),
        }
    }
    mount.kind = match kind {
        "bind" => MountKind::Bind,
        "cache" => MountKind::Cache,
        "tmpfs" => MountKind::Tmpfs,
        "secret" => MountKind::Secret { env },
        "ssh" => return Err("RUN --mount=type=ssh is not supported".to_owned()),
        other => {
            return Err(format!(
                "RUN --mount: type={other}: it takes bind, cache, tmpfs or secret"
            ));
        }
    };
    complete(mount)
}

fn complete(mut mount: Mount) -> Parsed<Mount> {
    if let MountKind::Secret { env } = &mount.kind {
        let id = mount.id.clone().or_else(|| {
            let target = mount.target.rsplit('/').next().unwrap_or_default();
            Some(target.to_owned()).filter(|name| !name.is_empty())
        });
        let id = id.ok_or("RUN --mount=type=secret takes an id")?;
        if mount.target.is_empty() && env.is_none() {
            mount.target = format!("/run/secrets/{id}");
        }
        mount.id = Some(id);
        return Ok(mount);
    }
    if mount.target.is_empty() {
        return Err("RUN --mount takes a target".to_owned());
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let cache = mount("type=cache,target=/root/.cache,sharing=locked,mode=0700,uid=5").unwrap();
        assert_eq!(cache.kind, MountKind::Cache);
        assert_eq!(cache.sharing, Sharing::Locked);
        assert_eq!((cache.mode, cache.uid, cache.gid), (Some(0o700), 5, 0));
        let bind = mount("target=/x,from=build,src=/y,rw").unwrap();
        assert_eq!(bind.kind, MountKind::Bind);
        assert_eq!(bind.read_only, Some(false));
        let secret = mount("type=secret,id=key").unwrap();
        assert_eq!(secret.target, "/run/secrets/key");
        let named = mount("type=secret,target=/root/.netrc").unwrap();
        assert_eq!(named.id.as_deref(), Some(".netrc"));
        assert!(mount("type=secret,id=a,env=A").unwrap().target.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        // Among it options of mount(8) (CVE-2024-9407).
        for text in [
            "type=nope,target=/x",
            "type=cache",
            "type=secret",
            "type=ssh",
            "target=/x,bind-propagation=shared",
            "target=/x,z",
            "target=/x,ro=perhaps",
            "type=cache,target=/x,mode=9",
            "type=cache,target=/x,sharing=all",
            "target=",
        ] {
            assert!(mount(text).is_err(), "{text}");
        }
    }
}
