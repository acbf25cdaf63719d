//! The flags that `run` and `create` share, and what they mean.

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::container::log::Driver;
use qengine::container::model::{Options, Resources};
use qengine::container::restart::Policy;
use qengine::network::{Mode, PortMapping};
use qengine::store::Store;

use super::endpoint::{self, Place};
use super::further::FurtherFlags;
use super::limits::{LimitFlags, bytes};
use super::pairs;
use super::volume::VolumeFlags;

/// Flags of `run` and `create`, as typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Container")]
pub(crate) struct ContainerFlags {
    /// Name of the container (made up when not given)
    #[arg(long)]
    name: Option<String>,
    /// Allocate a pseudo-terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Remove the container, and its anonymous volumes, when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Start it again when it has ended: no, on-failure[:COUNT], always, unless-stopped
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        hide_default_value = true
    )]
    restart: String,
    /// Put a small init before the command, which passes signals on and collects orphans
    #[arg(long)]
    init: bool,
    /// Set a variable; a name alone takes the value of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, one NAME[=VALUE] a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User (and group) inside, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Further groups of the user
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Host name inside (the short id when not given)
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// Domain name inside
    #[arg(long)]
    domainname: Option<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Set a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Signal that asks the container to end (default: the image's, else SIGTERM)
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL (default 10; -1 waits for ever)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Log driver: json-file (also local), k8s-file, journald, none, passthrough
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log driver option: max-size=BYTES, max-file=COUNT, labels=LIST, env=LIST, tag=TEXT
    #[arg(long, value_name = "KEY=VALUE")]
    log_opt: Vec<String>,
    /// Runtime to use instead of qrun
    #[arg(long, value_name = "PATH")]
    runtime: Option<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    fixed_limits: FixedLimitFlags,
    #[command(flatten)]
    security: SecurityFlags,
    #[command(flatten)]
    further: FurtherFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
struct FileFlags {
    #[command(flatten)]
    volumes: VolumeFlags,
    /// Mount an empty file system in memory
    #[arg(long, value_name = "DEST[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Mount the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Size of /dev/shm (default 64m)
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Give the container a device of the host
    #[arg(long, value_name = "HOST[:DEST[:rwm]]")]
    device: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
struct NetworkFlags {
    /// Network to connect to, several times for several: NAME, NAME:ip=ADDRESS,alias=NAME, or name=NAME,ip=…,ip6=…,alias=…;
    /// or one of host, none, container:ID
    #[arg(short = 'n', long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Kind of network: bridge, host, none, container (with --container)
    #[arg(long, value_name = "KIND")]
    netdriver: Option<String>,
    /// Container whose network to join
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Further name of the container on its first network
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Address on its first network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address on its first network
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Hardware address on its network
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<String>,
    /// Publish a port: [IP:]HOST:CONTAINER[/udp], ranges too
    #[arg(short, long, value_name = "HOST:CONTAINER")]
    publish: Vec<String>,
    /// Publish every port the image exposes, on random host ports
    #[arg(short = 'P', long)]
    pub(crate) publish_all: bool,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "HOST:ADDRESS")]
    add_host: Vec<String>,
    /// Name server instead of the host's
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain instead of the host's
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option instead of the host's
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// File to use as /etc/resolv.conf
    #[arg(long, value_name = "FILE")]
    resolv: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct FixedLimitFlags {
    /// How readily memory is swapped, 0 to 100
    #[arg(long, value_name = "PERCENT")]
    memory_swappiness: Option<u64>,
    /// Let processes wait for memory instead of killing one (cgroup v1 only)
    #[arg(long, alias = "oom_kill_disable", value_name = "0|1", num_args = 0..=1, require_equals = true,
          default_missing_value = "1")]
    oom_kill_disable: Option<String>,
    /// Preference of the out-of-memory killer, -1000 to 1000
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    oom_score_adj: Option<i32>,
    /// Resource limit of the process
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<String>,
    /// Cgroup below which the container's is made
    #[arg(long, value_name = "CGROUP")]
    cgroup_parent: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
struct SecurityFlags {
    /// Give the container every right there is
    #[arg(long)]
    privileged: bool,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined|FILE, no-new-privileges, apparmor=PROFILE
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "KEY=VALUE")]
    sysctl: Vec<String>,
}

impl ContainerFlags {
    /// Checks what was typed, and says what it means.
    pub(crate) fn into_options(
        self,
        store: &Store,
        image: String,
        command: Vec<String>,
    ) -> Result<Options> {
        let mut resources = self.limits.over(&Resources::default())?;
        self.fixed_limits.add_to(&mut resources)?;
        let network = self.network.mode(store)?;
        let ports = self.network.ports()?;
        if matches!(network, Mode::Container(_)) && !ports.is_empty() {
            bail!(
                "conflicting options: -p does not go with the network of another container; publish the port there"
            );
        }
        if let Some(signal) = &self.stop_signal {
            qengine::container::stop::parse_signal(signal)?;
        }
        let log_opts = pairs(&self.log_opt);
        let driver: Driver = match &self.log_driver {
            Some(name) => name.parse()?,
            None => Driver::default(),
        };
        driver.check(&log_opts)?;
        if driver == Driver::Passthrough && self.tty {
            bail!(
                "--log-driver passthrough does not go with --tty: the container gets our own streams"
            );
        }
        let restart: Policy = self.restart.parse()?;
        if self.rm && restart != Policy::No {
            bail!("conflicting options: cannot specify both --restart and --rm");
        }
        let mut options = Options {
            image,
            command,
            name: self.name,
            tty: self.tty,
            interactive: self.interactive,
            stdin_once: false,
            auto_remove: self.rm,
            restart,
            init: self.init,
            env: environment(&self.env, &self.env_file)?,
            workdir: absolute("--workdir", self.workdir)?,
            user: self.user,
            group_add: self.group_add,
            hostname: self.hostname,
            domainname: self.domainname,
            entrypoint: self.entrypoint.map(|text| {
                if text.is_empty() {
                    Vec::new()
                } else {
                    vec![text]
                }
            }),
            labels: pairs(&self.label),
            volumes: self.files.volumes.volumes(store)?,
            tmpfs: self.files.tmpfs,
            network,
            ports,
            add_hosts: self.network.add_host,
            dns: self.network.dns,
            dns_search: self.network.dns_search,
            dns_options: self.network.dns_option,
            resolv_file: self.network.resolv,
            resources,
            read_only: self.files.read_only,
            privileged: self.security.privileged,
            cap_add: self.security.cap_add,
            cap_drop: self.security.cap_drop,
            ulimits: self.fixed_limits.ulimit,
            sysctls: self.security.sysctl,
            devices: self.files.device,
            shm_size: self
                .files
                .shm_size
                .as_deref()
                .map(|text| bytes("--shm-size", text))
                .transpose()?,
            stop_signal: self.stop_signal,
            stop_timeout: self.stop_timeout,
            log_driver: self.log_driver,
            log_opts,
            security_opt: self
                .security
                .security_opt
                .into_iter()
                .map(with_profile)
                .collect::<Result<_>>()?,
            cgroup_parent: self.fixed_limits.cgroup_parent,
            runtime: self.runtime,
            ..Options::default()
        };
        self.further.add_to(store, &mut options)?;
        qengine::container::check(&options)?;
        Ok(options)
    }

    /// Whether `-P` was given.
    pub(crate) fn publishes_all(&self) -> bool {
        self.network.publish_all
    }
}

impl NetworkFlags {
    fn mode(&self, store: &Store) -> Result<Mode> {
        match (self.netdriver.as_deref(), &self.container) {
            (Some("container") | None, Some(container)) => endpoint::join(store, container),
            (Some("container"), None) => bail!("--netdriver container needs --container ID"),
            (Some("host"), _) => Ok(Mode::Host),
            (Some("none"), _) => Ok(Mode::None),
            (Some("bridge") | None, None) => {
                let place = Place {
                    aliases: &self.network_alias,
                    ip: self.ip.as_deref(),
                    ip6: self.ip6.as_deref(),
                    mac: self.mac_address.as_deref(),
                };
                endpoint::mode(store, &self.network, &place)
            }
            (Some(kind), _) => {
                bail!("unknown --netdriver {kind:?}: it takes bridge, host, none or container")
            }
        }
    }

    fn ports(&self) -> Result<Vec<PortMapping>> {
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(PortMapping::parse(text)?);
        }
        Ok(ports)
    }
}

impl FixedLimitFlags {
    fn add_to(&self, limits: &mut Resources) -> Result<()> {
        limits.memory_swappiness = self.memory_swappiness;
        limits.oom_kill_disable = match self.oom_kill_disable.as_deref() {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(other) => bail!("invalid --oom-kill-disable {other:?}: it takes 0 or 1"),
        };
        limits.oom_score_adj = self.oom_score_adj;
        Ok(())
    }
}

fn absolute(flag: &str, path: Option<String>) -> Result<Option<String>> {
    match path {
        Some(path) if !path.starts_with('/') => {
            bail!("invalid {flag} {path:?}: it has to be an absolute path")
        }
        path => Ok(path),
    }
}

/// `seccomp=FILE` becomes `seccomp={…}`: the container does not depend on the file afterwards.
fn with_profile(option: String) -> Result<String> {
    let Some(file) = option
        .strip_prefix("seccomp=")
        .or_else(|| option.strip_prefix("seccomp:"))
        .filter(|file| !["unconfined", "default", "builtin"].contains(file))
        .filter(|file| !file.starts_with('{'))
    else {
        return Ok(option);
    };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read seccomp profile {file}"))?;
    let profile: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{file} is no seccomp profile"))?;
    Ok(format!("seccomp={profile}"))
}

/// What a file says, one entry a line: blank lines and those that begin with `#` say nothing.
pub(super) fn lines_of(kind: &str, file: &str) -> Result<Vec<String>> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {kind} {file}"))?;
    let text = String::from_utf8(text)
        .ok()
        .with_context(|| format!("{kind} {file} is not UTF-8 text"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect())
}

/// Variables of `--env-file` first, then those of `-e`. A name alone takes this process's value, or is left out.
pub(crate) fn environment(entries: &[String], files: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let lines = lines_of("env file", file)?;
        for line in &lines {
            let name = line.split('=').next().unwrap_or_default();
            // As docker: blanks are for values.
            if name.contains(char::is_whitespace) {
                bail!("{file}: variable {name:?} contains whitespace");
            }
        }
        all.extend(lines);
    }
    all.extend(entries.iter().cloned());
    let mut env = Vec::new();
    for entry in all {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() {
            bail!("invalid variable {entry:?}: expected NAME[=VALUE]");
        }
        if entry.contains('=') {
            env.push(entry);
        } else if let Ok(value) = std::env::var(&entry) {
            env.push(format!("{entry}={value}"));
        }
    }
    Ok(env)
}
