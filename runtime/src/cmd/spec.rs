//! `spec`: a config.json to start from, to the letter that of runc 1.5.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, bail};

use super::{Request, launch};
use crate::cgroup::Hierarchies;
use crate::failure::During;

/// For root.
const DEFAULT: &str = include_str!("spec/default.json");
/// For a user without privileges; the ids mapped are put in below.
const ROOTLESS: &str = include_str!("spec/rootless.json");

/// Runs the command.
pub(super) fn spec(request: &Request<'_>) -> Result<u8> {
    const NAME: &str = "config.json";
    launch::enter_bundle(request.parsed.path("bundle").as_deref())?;
    let text = match request.parsed.is_on("rootless") {
        true => rootless(
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        ),
        false => DEFAULT.to_owned(),
    };
    let v2 = Hierarchies::detect().is_ok_and(|hierarchies| hierarchies.is_pure_v2());
    let text = if v2 {
        with_cgroup_namespace(&text)
    } else {
        text
    };
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o666)
        .open(NAME);
    match made {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("File {NAME} exists. Remove it first");
        }
        other => other
            .during("open", NAME)?
            .write_all(text.as_bytes())
            .during("write", NAME)?,
    }
    Ok(0)
}

/// Maps the user alone, to root.
fn rootless(uid: u32, gid: u32) -> String {
    ROOTLESS
        .replace("\"hostID\": 4711", &format!("\"hostID\": {uid}"))
        .replace("\"hostID\": 4712", &format!("\"hostID\": {gid}"))
}

/// On cgroup v2 containers get a cgroup namespace.
fn with_cgroup_namespace(text: &str) -> String {
    let mount = "{\n\t\t\t\t\"type\": \"mount\"\n\t\t\t}";
    text.replacen(
        mount,
        &format!("{mount},\n\t\t\t{{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t}}"),
        1,
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::{Extra, Plan};

    #[test]
    fn what_is_written_can_be_run() {
        for text in [
            DEFAULT.to_owned(),
            rootless(1000, 1001),
            with_cgroup_namespace(DEFAULT),
        ] {
            let version = format!("\t\"ociVersion\": \"{}\",\n", crate::spec::VERSION);
            assert!(text.contains(&version), "{text}");
            let spec = serde_json::from_str(&text).unwrap();
            Plan::new(&spec, Path::new("/bundle"), "c1", Extra::default()).unwrap();
        }
        assert!(rootless(1000, 1001).contains("\"hostID\": 1001"));
        assert!(with_cgroup_namespace(DEFAULT).contains("\"type\": \"cgroup\"\n\t\t\t}"));
    }
}
