//! The rarer flags of `run` and `create`: labels and variables out of files, shared namespaces, annotations, and
//! docker's flags that mean nothing here and say so.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::model::{CgroupNamespace, Options, Sharing};
use qengine::network::PortMapping;
use qengine::store::Store;

use super::pairs;

/// As typed.
#[derive(Debug, Args)]
pub(crate) struct FurtherFlags {
    /// Read labels from a file, one KEY[=VALUE] a line
    #[arg(long, value_name = "FILE", help_heading = "Container")]
    label_file: Vec<String>,
    /// Add an annotation to the runtime's configuration
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Container")]
    annotation: Vec<String>,
    /// Mark a port as one that the container listens on
    #[arg(long, value_name = "PORT[/PROTOCOL]", help_heading = "Network")]
    expose: Vec<String>,
    /// Pid namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    pid: Option<String>,
    /// Ipc namespace: private, shareable, none, host or container:NAME
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    ipc: Option<String>,
    /// Uts namespace: private or host
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    uts: Option<String>,
    /// Cgroup namespace: private or host
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    cgroupns: Option<String>,
    /// User namespace: host, the only one there is
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    userns: Option<String>,
    /// Allow or forbid devices by number, such as 'c 10:229 rwm'
    #[arg(long, value_name = "RULE", help_heading = "Files")]
    device_cgroup_rule: Vec<String>,
    /// Driver of the volumes: local, the only one there is
    #[arg(long, value_name = "DRIVER", help_heading = "Files")]
    volume_driver: Option<String>,
    #[arg(long, hide = true)]
    link: Vec<String>,
    #[arg(long, hide = true)]
    gpus: Option<String>,
    #[arg(long, hide = true)]
    storage_opt: Vec<String>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_content_trust: Option<String>,
}

impl FurtherFlags {
    /// Adds what they say to the options.
    pub(crate) fn add_to(self, store: &Store, options: &mut Options) -> Result<()> {
        self.refuse()?;
        for file in &self.label_file {
            let lines = super::container::lines_of("label file", file)?;
            for (key, value) in pairs(&lines) {
                // What is typed goes before what is in a file.
                options.labels.entry(key).or_insert(value);
            }
        }
        options.annotations = annotations(&self.annotation)?;
        for text in &self.expose {
            options.expose.extend(exposed(text)?);
        }
        options.device_rules.clone_from(&self.device_cgroup_rule);
        self.namespaces(store, options)
    }
}

/// The namespaces.
impl FurtherFlags {
    fn namespaces(&self, store: &Store, options: &mut Options) -> Result<()> {
        fn word(value: &Option<String>) -> &str {
            value.as_deref().unwrap_or("")
        }
        let sharing = |flag: &str, text: &str, all: &str| -> Result<Sharing> {
            match (text, text.split_once(':')) {
                ("" | "private", _) => Ok(Sharing::Own),
                ("host", _) => Ok(Sharing::Host),
                ("shareable", _) if flag == "ipc" => Ok(Sharing::Shareable),
                ("none", _) if flag == "ipc" => Ok(Sharing::Closed),
                (_, Some(("container", name))) => {
                    Ok(Sharing::Container(Handle::find(store, name)?.config.id))
                }
                _ => bail!("invalid --{flag} {text:?}: it takes {all}"),
            }
        };
        options.pid = sharing("pid", word(&self.pid), "private, host or container:NAME")?;
        options.ipc = sharing(
            "ipc",
            word(&self.ipc),
            "private, shareable, none, host or container:NAME",
        )?;
        options.uts_host = match word(&self.uts) {
            "" | "private" => false,
            "host" => true,
            other => bail!("invalid --uts {other:?}: it takes private or host"),
        };
        if options.uts_host && (options.hostname.is_some() || options.domainname.is_some()) {
            bail!(
                "conflicting options: a name of its own does not go with the host's (--uts host)"
            );
        }
        options.cgroup_namespace = match word(&self.cgroupns) {
            "" => None,
            "private" => Some(CgroupNamespace::Private),
            "host" => Some(CgroupNamespace::Host),
            other => bail!("invalid --cgroupns {other:?}: it takes private or host"),
        };
        match word(&self.userns) {
            "" | "host" => Ok(()),
            other => bail!(
                "invalid --userns {other:?}: containers share the host's user namespace, so there is only `host`"
            ),
        }
    }

    /// What can't be had is refused by name, and not by "unexpected argument".
    fn refuse(&self) -> Result<()> {
        if !self.link.is_empty() {
            bail!(
                "--link is not supported: containers on a network of their own (`qengine network create`) find each other by name"
            );
        }
        if self.gpus.is_some() {
            bail!(
                "--gpus is not supported: it needs a vendor's hook; give the device files with --device"
            );
        }
        if !self.storage_opt.is_empty() {
            bail!(
                "--storage-opt is not supported: a container's own layer has no size limit on overlay"
            );
        }
        if let Some(driver) = &self.volume_driver
            && driver != "local"
        {
            bail!("unknown --volume-driver {driver:?}: there is `local` only");
        }
        if let Some(isolation) = &self.isolation
            && !["", "default"].contains(&isolation.as_str())
        {
            bail!("invalid --isolation {isolation:?}: on Linux there is `default` only");
        }
        if self.kernel_memory.is_some() {
            super::warn("--kernel-memory has no effect: the kernel has dropped that limit");
        }
        Ok(())
    }
}

fn annotations(entries: &[String]) -> Result<BTreeMap<String, String>> {
    for entry in entries {
        match entry.split_once('=') {
            Some((key, _)) if !key.is_empty() => {}
            _ => bail!("invalid --annotation {entry:?}: expected KEY=VALUE"),
        }
    }
    Ok(pairs(entries))
}

/// `80`, `80/udp`, `3000-3005/tcp` as single ports with their protocol.
fn exposed(text: &str) -> Result<Vec<String>> {
    let invalid = || format!("invalid --expose {text:?}: expected PORT[-PORT][/PROTOCOL]");
    if text.contains(':') {
        bail!(invalid());
    }
    let ports = PortMapping::parse(text).with_context(invalid)?;
    Ok(ports
        .iter()
        .map(|port| format!("{}/{}", port.container_port, port.protocol))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ports_have_a_protocol() {
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("80-81/udp").unwrap(), ["80/udp", "81/udp"]);
        for bad in ["", "x", "1:80", "80/icmp", "81-80"] {
            assert!(exposed(bad).is_err(), "{bad}");
        }
    }
}
