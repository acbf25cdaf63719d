//! The flags that `run` and `create` share, and what they mean.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use qengine::container::create::parse_bytes;
use qengine::container::find::Handle;
use qengine::container::model::{Options, Resources};
use qengine::network::{Endpoint, Mode, PortMapping};
use qengine::store::Store;

use super::volume;

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
    #[arg(long)]
    hostname: Option<String>,
    /// Domain name inside
    #[arg(long)]
    domainname: Option<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Signal that asks the container to end (default: the image's, else SIGTERM)
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between that signal and SIGKILL (default 10; -1 waits for ever)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Log driver: json-file, k8s-file or none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Log driver option: max-size=BYTES, max-file=COUNT
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
    security: SecurityFlags,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
struct FileFlags {
    /// Mount a host path or a named volume
    #[arg(short, long, value_name = "[SOURCE:]DEST[:ro]")]
    volume: Vec<String>,
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
    /// Network to connect to: a name, bridge, host, none, container:ID
    #[arg(short = 'n', long, visible_alias = "net", value_name = "NETWORK")]
    network: Vec<String>,
    /// Kind of network: bridge, host, none, container (with --container)
    #[arg(long, value_name = "KIND")]
    netdriver: Option<String>,
    /// Container whose network to join
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Further name of the container on its network
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Address on its network
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
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
struct LimitFlags {
    /// Memory limit
    #[arg(short, long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Limit of memory and swap together (-1: without limit)
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Soft memory limit
    #[arg(long, value_name = "BYTES")]
    memory_reservation: Option<String>,
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
    /// Number of CPUs, such as 0.5
    #[arg(long, value_name = "COUNT")]
    cpus: Option<f64>,
    /// Relative share of the CPUs (1024 is usual)
    #[arg(short = 'c', long, visible_alias = "cpushare", value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Microseconds of CPU per period
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Length of that period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPUs the container may use, such as 0-2,4
    #[arg(long, visible_alias = "cpuset", value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes the container may use
    #[arg(long, visible_alias = "cpumem", value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Number of processes and threads (-1: without limit)
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Relative weight of block input and output, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
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
    /// Pid namespace: host
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// Ipc namespace: host
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Uts namespace: host
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
}

impl ContainerFlags {
    /// Checks what was typed, and says what it means.
    pub(crate) fn into_options(
        self,
        store: &Store,
        image: String,
        command: Vec<String>,
    ) -> Result<Options> {
        let resources = self.limits.resources()?;
        let network = self.network.mode(store)?;
        let ports = self.network.ports()?;
        if !matches!(network, Mode::Networks(_)) && !ports.is_empty() {
            bail!(
                "published ports need a network of the container's own: -p does not go with host, none or container networks"
            );
        }
        let namespaces = [
            ("pid", &self.security.pid),
            ("ipc", &self.security.ipc),
            ("uts", &self.security.uts),
        ];
        for (flag, value) in namespaces {
            if !matches!(value.as_deref(), None | Some("" | "host" | "private")) {
                bail!(
                    "invalid --{flag} {:?}: `host` and `private` are understood",
                    value.as_deref().unwrap_or("")
                );
            }
        }
        if let Some(signal) = &self.stop_signal {
            qengine::container::stop::parse_signal(signal)?;
        }
        if let Some(driver) = &self.log_driver
            && !["json-file", "k8s-file", "none"].contains(&driver.as_str())
        {
            bail!("unknown log driver {driver:?}: json-file, k8s-file and none are there");
        }
        let is_host = |value: &Option<String>| value.as_deref() == Some("host");
        Ok(Options {
            image,
            command,
            name: self.name,
            tty: self.tty,
            interactive: self.interactive,
            stdin_once: false,
            auto_remove: self.rm,
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
            volumes: self
                .files
                .volume
                .iter()
                .map(|text| volume::parse(text))
                .collect::<Result<_>>()?,
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
            ulimits: self.limits.ulimit,
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
            log_opts: log_options(&self.log_opt)?,
            pid_host: is_host(&self.security.pid),
            ipc_host: is_host(&self.security.ipc),
            uts_host: is_host(&self.security.uts),
            security_opt: self.security.security_opt,
            cgroup_parent: self.limits.cgroup_parent,
            runtime: self.runtime,
            build_step: false,
        })
    }

    /// Whether `-P` was given.
    pub(crate) fn publishes_all(&self) -> bool {
        self.network.publish_all
    }
}

impl NetworkFlags {
    fn mode(&self, store: &Store) -> Result<Mode> {
        let join = |text: &str| -> Result<Mode> {
            Ok(Mode::Container(Handle::find(store, text)?.config.id))
        };
        let named = match (self.netdriver.as_deref(), &self.container) {
            (Some("container") | None, Some(container)) => return join(container),
            (Some("container"), None) => bail!("--netdriver container needs --container ID"),
            (Some("host"), _) => return Ok(Mode::Host),
            (Some("none"), _) => return Ok(Mode::None),
            (Some("bridge") | None, None) => &self.network,
            (Some(kind), _) => {
                bail!("unknown --netdriver {kind:?}: it takes bridge, host, none or container")
            }
        };
        let mut endpoints = Vec::new();
        for network in named {
            match (network.as_str(), network.split_once(':')) {
                (_, Some(("container", id))) if named.len() == 1 => return join(id),
                ("host", _) if named.len() == 1 => return Ok(Mode::Host),
                ("none", _) if named.len() == 1 => return Ok(Mode::None),
                ("default" | "bridge", _) => {
                    endpoints.push(Endpoint::new(qengine::network::DEFAULT_NETWORK))
                }
                (name, None) if !matches!(name, "host" | "none" | "") => {
                    endpoints.push(Endpoint::new(name))
                }
                (name, _) => bail!("invalid --network {name:?}"),
            }
        }
        if endpoints.is_empty() {
            endpoints.push(Endpoint::new(qengine::network::DEFAULT_NETWORK));
        }
        endpoints[0].aliases.clone_from(&self.network_alias);
        if let Some(address) = &self.ip {
            endpoints[0].address = Some(
                address
                    .parse()
                    .with_context(|| format!("invalid --ip {address:?}"))?,
            );
        }
        Ok(Mode::Networks(endpoints))
    }

    fn ports(&self) -> Result<Vec<PortMapping>> {
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(PortMapping::parse(text)?);
        }
        Ok(ports)
    }
}

impl LimitFlags {
    fn resources(&self) -> Result<Resources> {
        let memory = self
            .memory
            .as_deref()
            .map(|text| bytes("--memory", text))
            .transpose()?;
        // Docker's floor: below it not even the runtime's own last steps fit.
        if memory.is_some_and(|memory| memory != 0 && memory < 512 << 10) {
            bail!(
                "invalid --memory {:?}: the smallest limit is 512k",
                self.memory.as_deref().unwrap_or("")
            );
        }
        let memory = memory.filter(|&memory| memory != 0);
        let memory_swap = match self.memory_swap.as_deref() {
            Some("-1") => Some(-1),
            other => other
                .map(|text| bytes("--memory-swap", text))
                .transpose()?
                .filter(|&swap| swap != 0),
        };
        if let (Some(memory), Some(swap)) = (memory, memory_swap)
            && swap != -1
            && swap < memory
        {
            bail!("--memory-swap must not be below --memory: it is the limit of both together");
        }
        if memory_swap.is_some_and(|swap| swap > 0) && memory.is_none() {
            bail!("--memory-swap needs --memory");
        }
        let (cpu_quota, cpu_period) = self.cpu_time()?;
        Ok(Resources {
            cpu_shares: self.cpu_shares.filter(|&shares| shares != 0),
            cpu_quota,
            cpu_period,
            cpuset_cpus: list(
                "--cpuset-cpus",
                self.cpuset_cpus.as_deref(),
                "/sys/devices/system/cpu/online",
            )?,
            cpuset_mems: list(
                "--cpuset-mems",
                self.cpuset_mems.as_deref(),
                "/sys/devices/system/node/online",
            )?,
            memory,
            memory_swap,
            memory_reservation: self
                .memory_reservation
                .as_deref()
                .map(|text| bytes("--memory-reservation", text))
                .transpose()?,
            memory_swappiness: self.memory_swappiness,
            pids: self.pids_limit,
            oom_kill_disable: match self.oom_kill_disable.as_deref() {
                None | Some("0" | "false") => false,
                Some("1" | "true") => true,
                Some(other) => bail!("invalid --oom-kill-disable {other:?}: it takes 0 or 1"),
            },
            oom_score_adj: self.oom_score_adj,
            blkio_weight: self.blkio_weight,
        })
    }

    fn cpu_time(&self) -> Result<(Option<i64>, Option<u64>)> {
        let Some(cpus) = self.cpus else {
            return Ok((self.cpu_quota, self.cpu_period));
        };
        if self.cpu_quota.is_some() || self.cpu_period.is_some() {
            bail!("--cpus does not go with --cpu-quota or --cpu-period: it sets both");
        }
        if !(0.01..=100_000.0).contains(&cpus) {
            bail!("invalid --cpus {cpus}: at least 0.01 of a CPU");
        }
        const PERIOD: u32 = 100_000;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the range was just checked"
        )]
        let quota = (cpus * f64::from(PERIOD)).round() as i64;
        Ok((Some(quota), Some(u64::from(PERIOD))))
    }
}

fn bytes(flag: &str, text: &str) -> Result<i64> {
    parse_bytes(text).with_context(|| {
        format!("invalid {flag} {text:?}: expected a number with an optional unit b, k, m or g")
    })
}

/// `0-2,4`, all of them among those that the file `online` lists in the same form.
fn list(flag: &str, text: Option<&str>, online: &str) -> Result<Option<String>> {
    let Some(text) = text else { return Ok(None) };
    let wanted = ranges(text)
        .with_context(|| format!("invalid {flag} {text:?}: expected a list such as 0-2,4"))?;
    let there = std::fs::read_to_string(online).unwrap_or_default();
    if let Some(there) = ranges(there.trim()) {
        let is_there = |number: u32| {
            there
                .iter()
                .any(|&(first, last)| (first..=last).contains(&number))
        };
        if !wanted
            .iter()
            .all(|&(first, last)| is_there(first) && is_there(last))
        {
            bail!("invalid {flag} {text:?}: this machine has {}", join(&there));
        }
    }
    Ok(Some(text.to_owned()))
}

fn ranges(text: &str) -> Option<Vec<(u32, u32)>> {
    text.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        })
        .collect()
}

fn join(ranges: &[(u32, u32)]) -> String {
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

fn absolute(flag: &str, path: Option<String>) -> Result<Option<String>> {
    match path {
        Some(path) if !path.starts_with('/') => {
            bail!("invalid {flag} {path:?}: it has to be an absolute path")
        }
        path => Ok(path),
    }
}

fn pairs(entries: &[String]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            (key.to_owned(), value.to_owned())
        })
        .collect()
}

fn log_options(entries: &[String]) -> Result<BTreeMap<String, String>> {
    let options = pairs(entries);
    for (key, value) in &options {
        let good = match key.as_str() {
            "max-size" => parse_bytes(value).is_some() || value == "-1",
            "max-file" => value.parse::<u32>().is_ok_and(|count| count > 0),
            _ => bail!("unknown log option {key:?}: max-size and max-file are there"),
        };
        if !good {
            bail!("invalid log option {key}={value}");
        }
    }
    Ok(options)
}

/// Variables of `--env-file` first, then those of `-e`. A name alone takes this process's value, or is left out.
pub(crate) fn environment(entries: &[String], files: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read env file {file}"))?;
        all.extend(
            text.lines()
                .map(str::trim_start)
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    all.extend(entries.iter().cloned());
    let mut env = Vec::new();
    for entry in all {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
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
