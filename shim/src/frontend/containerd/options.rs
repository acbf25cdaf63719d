//! Options of a runtime, in each of the forms that containerd gives them in.
//!
//! For `io.containerd.runc.v2` containerd sends runc's own message. For a runtime type that it does not know, as ours, it
//! sends `runtimeoptions.v1.Options`: the path of a file (`ConfigPath`, `ctr run --runtime-config-path`), or since 1.7 the
//! text of the table `options` in its configuration. Either is TOML here, with the keys of runc's options.

use std::path::Path;

use prost::Message;

use super::message::{Any, RUNC_OPTIONS, RuncOptions};
use crate::error::Error;

/// Full names of [`Generic`], the present one and that of containerd's older CRI plugin.
const GENERIC: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];

/// `runtimeoptions.v1.Options`.
#[derive(Clone, PartialEq, Eq, Message)]
struct Generic {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    config_path: String,
    #[prost(bytes = "vec", tag = "3")]
    config_body: Vec<u8>,
}

/// Reads options; none are the defaults.
pub(super) fn read(any: Option<&Any>) -> Result<RuncOptions, Error> {
    let Some(any) = any.filter(|any| !any.value.is_empty()) else {
        return Ok(RuncOptions::default());
    };
    if let Some(options) = any.unpack(RUNC_OPTIONS) {
        return Ok(options);
    }
    let generic = GENERIC.iter().find_map(|name| any.unpack::<Generic>(name));
    let Some(generic) = generic else {
        let name = &any.type_url;
        return Err(Error::Usage(format!("unsupported runtime options {name}")));
    };
    if !generic.config_path.is_empty() {
        let path = Path::new(&generic.config_path);
        let text = std::fs::read_to_string(path).map_err(Error::path("read options", path))?;
        return parse(&text).map_err(|why| Error::Usage(format!("{}: {why}", path.display())));
    }
    let text = String::from_utf8_lossy(&generic.config_body);
    parse(&text).map_err(|why| Error::Usage(format!("runtime options: {why}")))
}

/// Takes TOML. Case does not count in keys, as it does not for containerd.
fn parse(text: &str) -> Result<RuncOptions, String> {
    let table: toml::Table = text.parse().map_err(|error| format!("{error}"))?;
    let mut options = RuncOptions::default();
    for (key, value) in &table {
        take(&mut options, key, value)?;
    }
    Ok(options)
}

fn take(options: &mut RuncOptions, key: &str, value: &toml::Value) -> Result<(), String> {
    let word = || {
        let word = value.as_str().map(str::to_owned);
        word.ok_or_else(|| format!("{key} must be a string"))
    };
    let switch = || {
        let switch = value.as_bool();
        switch.ok_or_else(|| format!("{key} must be true or false"))
    };
    let id = || {
        let id = value.as_integer().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{key} must be a user or group id"))
    };
    match key.to_ascii_lowercase().as_str() {
        "binaryname" => options.binary_name = word()?,
        "root" => options.root = word()?,
        "systemdcgroup" => options.systemd_cgroup = switch()?,
        "nopivotroot" => options.no_pivot_root = switch()?,
        "nonewkeyring" => options.no_new_keyring = switch()?,
        "shimcgroup" => options.shim_cgroup = word()?,
        "iouid" => options.io_uid = id()?,
        "iogid" => options.io_gid = id()?,
        "criuworkpath" => options.criu_work_path = word()?,
        // What containerd uses itself, and what runc's shim passes over too or makes no use of.
        "typeurl" | "configpath" | "configbody" | "criupath" | "criuimagepath" => {}
        _ => return Err(format!("unknown option {key}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(name: &str, path: &str, body: &str) -> Any {
        let message = Generic {
            config_path: path.into(),
            config_body: body.into(),
            ..Generic::default()
        };
        Any::pack(name, &message)
    }

    #[test]
    fn forms() {
        let wanted = RuncOptions {
            binary_name: "/usr/sbin/runc".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..RuncOptions::default()
        };
        let text = "BinaryName = \"/usr/sbin/runc\"\nsystemdCgroup = true\nIoUid = 7\nTypeUrl = \"x\"\nCriuImagePath = \"x\"\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        for any in [
            Any::pack(RUNC_OPTIONS, &wanted),
            generic(GENERIC[0], "", text),
            generic(GENERIC[1], path, ""),
        ] {
            assert_eq!(read(Some(&any)).unwrap(), wanted, "{any:?}");
        }
        assert_eq!(read(None).unwrap(), RuncOptions::default());
    }

    #[test]
    fn refusals() {
        for (text, why) in [
            ("BinaryName = 1", "BinaryName must be a string"),
            ("SystemdCgroup = \"yes\"", "must be true or false"),
            ("IoGid = -1", "must be a user or group id"),
            ("BinaryNome = \"x\"", "unknown option BinaryNome"),
            ("= 1", "TOML parse error"),
        ] {
            let error = read(Some(&generic(GENERIC[0], "", text))).unwrap_err();
            assert!(error.chain().contains(why), "{text}: {}", error.chain());
        }
        let error = read(Some(&generic("a.b.C", "", "x"))).unwrap_err();
        assert!(error.chain().contains("unsupported runtime options a.b.C"));
        let error = read(Some(&generic(GENERIC[0], "/no/such", ""))).unwrap_err();
        assert!(error.chain().contains("/no/such"), "{}", error.chain());
    }
}
