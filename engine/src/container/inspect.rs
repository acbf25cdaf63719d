//! Everything about a container as JSON, under docker's key names.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::bundle;
use super::find::Handle;
use super::live::{Live, published_exit};
use super::model::{CgroupNamespace, Options, Process, Resources, Sharing, State};
use super::{Result, filter, stop};
use crate::image;
use crate::network::Mode;
use crate::store::Store;

mod mounts;
mod network;

/// Docker's zero time, for what has not happened yet.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Describes a container as it is now.
///
/// # Errors
/// When its state can't be read.
pub fn inspect(store: &Store, handle: &Handle) -> Result<Value> {
    let config = &handle.config;
    let options = &config.options;
    let (state, live) = handle.live(store)?;
    let lower: Vec<String> = config
        .layers
        .iter()
        .rev()
        .map(|chain| {
            image::layers::directory(store, chain)
                .join(image::layers::DIFF)
                .display()
                .to_string()
        })
        .collect();
    Ok(json!({
        "Id": config.id,
        "Created": config.created.to_string(),
        "Path": config.args.first(),
        "Args": config.args.get(1..).unwrap_or_default(),
        "State": state_of(store, handle, &state, live),
        "Image": config.image_id.to_string(),
        "ResolvConfPath": handle.directory().join("resolv.conf"),
        "HostnamePath": handle.directory().join("hostname"),
        "HostsPath": handle.directory().join("hosts"),
        "LogPath": handle.log(),
        "Name": format!("/{}", config.name),
        "RestartCount": state.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "ProcessLabel": "",
        "MountLabel": "",
        "AppArmorProfile": "",
        "CgroupPath": bundle::cgroup_path(&config.id, options.cgroup_parent.as_deref()),
        "HostConfig": host_config(options),
        "GraphDriver": {
            "Name": "overlay2",
            "Data": {
                "LowerDir": lower.join(":"),
                "MergedDir": handle.merged(),
                "UpperDir": handle.upper(),
                "WorkDir": handle.work(),
            }
        },
        "Mounts": mounts::points(store, handle),
        "Config": container_config(handle),
        "NetworkSettings": network::settings(handle, state.network.as_ref(), live),
    }))
}

fn state_of(store: &Store, handle: &Handle, state: &State, live: Live) -> Value {
    let time =
        |time: Option<Timestamp>| time.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
    // Ended, but nobody has tidied up yet: the monitor's word counts already.
    let published = (live == Live::Exited)
        .then(|| published_exit(store, handle.id()))
        .flatten();
    let pid = |process: Option<Process>| {
        process
            .filter(|_| live.is_running())
            .map_or(0, |process| process.pid)
    };
    let last_code = state.exit_code.filter(|_| !live.is_running());
    json!({
        "Status": live.word(),
        "Running": live.is_running() || live == Live::Restarting,
        "Paused": live == Live::Paused,
        "Restarting": live == Live::Restarting,
        "OOMKilled": state.oom_killed || (published.is_some() && store.container_run(handle.id()).join("oom").exists()),
        "Dead": live == Live::Removing,
        "Pid": pid(state.process),
        "ConmonPid": pid(state.monitor),
        "ExitCode": published.map(|exit| exit.code).or(last_code).unwrap_or(0),
        "Error": state.error,
        "StartedAt": time(state.started),
        "FinishedAt": time(published.map(|exit| exit.time).or(state.finished)),
    })
}

fn host_config(options: &Options) -> Value {
    let mut ports = Map::new();
    for port in &options.ports {
        let entry = json!({
            "HostIp": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            "HostPort": port.host_port.map(|port| port.to_string()).unwrap_or_default(),
        });
        let key = format!("{}/{}", port.container_port, port.protocol);
        if let Some(list) = ports.entry(key).or_insert_with(|| json!([])).as_array_mut() {
            list.push(entry);
        }
    }
    let mut config = json!({
        "Binds": mounts::binds(options),
        "Mounts": mounts::asked(options),
        "NetworkMode": network_mode(&options.network),
        "PortBindings": ports,
        "RestartPolicy": {"Name": options.restart.name(), "MaximumRetryCount": options.restart.most()},
        "AutoRemove": options.auto_remove,
        "Init": options.init,
        "LogConfig": {
            "Type": options.log_driver.as_deref().unwrap_or("json-file"),
            "Config": options.log_opts,
        },
        "CapAdd": options.cap_add,
        "CapDrop": options.cap_drop,
        "Dns": options.dns,
        "DnsOptions": options.dns_options,
        "DnsSearch": options.dns_search,
        "ExtraHosts": options.add_hosts,
        "GroupAdd": options.group_add,
        "Privileged": options.privileged,
        "ReadonlyRootfs": options.read_only,
        "SecurityOpt": options.security_opt,
        "PidMode": sharing(&options.pid, ""),
        "IpcMode": sharing(&options.ipc, "private"),
        "UTSMode": if options.uts_host { "host" } else { "" },
        "ShmSize": options.shm_size.unwrap_or(64 << 20),
        "Runtime": options.runtime.as_deref().unwrap_or("qrun"),
        "CgroupParent": options.cgroup_parent.as_deref().unwrap_or(""),
        "Tmpfs": mounts::tmpfs(options),
        "Annotations": options.annotations,
        "CgroupnsMode": match options.cgroup_namespace {
            Some(CgroupNamespace::Host) => "host",
            _ => "private",
        },
        "DeviceCgroupRules": options.device_rules,
    });
    if let Some(config) = config.as_object_mut() {
        for part in [limits(&options.resources), rights(options), constant()] {
            config.extend(part.as_object().cloned().unwrap_or_default());
        }
    }
    config
}

/// Devices, resource limits and kernel parameters, in docker's forms.
fn rights(options: &Options) -> Value {
    let devices: Vec<Value> = options
        .devices
        .iter()
        .map(|entry| {
            let parts: Vec<&str> = entry.split(':').collect();
            let (source, destination, access) = match parts[..] {
                [source, access] if !access.starts_with('/') => (source, source, access),
                [source, destination] => (source, destination, "rwm"),
                [source, destination, access] => (source, destination, access),
                _ => (entry.as_str(), entry.as_str(), "rwm"),
            };
            json!({
                "PathOnHost": source,
                "PathInContainer": destination,
                "CgroupPermissions": access,
            })
        })
        .collect();
    let ulimits: Vec<Value> = options
        .ulimits
        .iter()
        .filter_map(|entry| {
            let (name, values) = entry.split_once('=')?;
            let (soft, hard) = values.split_once(':').unwrap_or((values, values));
            let number = |text: &str| text.parse::<i64>().unwrap_or(-1);
            Some(json!({"Name": name, "Soft": number(soft), "Hard": number(hard)}))
        })
        .collect();
    let sysctls: Map<String, Value> = options
        .sysctls
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    let is_open = |option: &str| options.security_opt.iter().any(|it| it == option);
    let unmasked = options.privileged || is_open("systempaths=unconfined");
    let paths = |paths: Vec<String>| if unmasked { Vec::new() } else { paths };
    json!({
        "Devices": devices,
        "Ulimits": ulimits,
        "Sysctls": sysctls,
        "MaskedPaths": paths(bundle_tools::generate::masked_paths()),
        "ReadonlyPaths": paths(bundle_tools::generate::readonly_paths()),
    })
}

/// Docker's keys for what there is only one way of, so that readers that insist on them find them.
fn constant() -> Value {
    json!({
        "Cgroup": "",
        "ConsoleSize": [0, 0],
        "ContainerIDFile": "",
        "DeviceRequests": null,
        "Isolation": "",
        "Links": null,
        "PublishAllPorts": false,
        "UsernsMode": "",
        "VolumeDriver": "",
        "BlkioWeightDevice": [],
        "BlkioDeviceReadBps": [],
        "BlkioDeviceWriteBps": [],
        "BlkioDeviceReadIOps": [],
        "BlkioDeviceWriteIOps": [],
        "CpuCount": 0,
        "CpuPercent": 0,
        "CpuRealtimePeriod": 0,
        "CpuRealtimeRuntime": 0,
        "IOMaximumBandwidth": 0,
        "IOMaximumIOps": 0,
    })
}

fn limits(limits: &Resources) -> Value {
    json!({
        "CpuShares": limits.cpu_shares.unwrap_or(0),
        "NanoCpus": nano_cpus(limits),
        "CpuPeriod": limits.cpu_period.unwrap_or(0),
        "CpuQuota": limits.cpu_quota.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.as_deref().unwrap_or(""),
        "CpusetMems": limits.cpuset_mems.as_deref().unwrap_or(""),
        "Memory": limits.memory.unwrap_or(0),
        "MemorySwap": limits.memory_swap.or(limits.memory.map(|memory| memory * 2)).unwrap_or(0),
        "MemoryReservation": limits.memory_reservation.unwrap_or(0),
        "MemorySwappiness": limits.memory_swappiness,
        "BlkioWeight": limits.blkio_weight.unwrap_or(0),
        "OomKillDisable": limits.oom_kill_disable,
        "OomScoreAdj": limits.oom_score_adj.unwrap_or(0),
        "PidsLimit": limits.pids,
    })
}

/// Docker's word for whose namespace it is.
fn sharing(sharing: &Sharing, own: &str) -> String {
    match sharing {
        Sharing::Own => own.to_owned(),
        Sharing::Shareable => "shareable".to_owned(),
        Sharing::Closed => "none".to_owned(),
        Sharing::Host => "host".to_owned(),
        Sharing::Container(id) => format!("container:{id}"),
    }
}

/// What `--cpus` has set, in billionths of a CPU.
fn nano_cpus(limits: &super::model::Resources) -> i64 {
    match (limits.cpu_quota, limits.cpu_period.unwrap_or(100_000)) {
        (Some(quota), period @ 1..) if quota > 0 => {
            let period = i64::try_from(period).unwrap_or(i64::MAX);
            quota.saturating_mul(1_000_000_000) / period
        }
        _ => 0,
    }
}

fn network_mode(mode: &Mode) -> String {
    match mode {
        Mode::None => "none".to_owned(),
        Mode::Host => "host".to_owned(),
        Mode::Container(id) => format!("container:{id}"),
        Mode::Networks(endpoints) => endpoints
            .first()
            .map_or_else(|| "bridge".to_owned(), |endpoint| endpoint.network.clone()),
    }
}

fn container_config(handle: &Handle) -> Value {
    let config = &handle.config;
    let options = &config.options;
    let image = &config.image_config.config;
    let mut env = image.env.clone();
    for entry in &options.env {
        if let Some((name, _)) = entry.split_once('=') {
            let prefix = format!("{name}=");
            env.retain(|old| !old.starts_with(&prefix));
        }
        env.push(entry.clone());
    }
    let mut exposed = image.exposed_ports.clone();
    let published = options
        .ports
        .iter()
        .map(|port| format!("{}/{}", port.container_port, port.protocol));
    for port in options.expose.iter().cloned().chain(published) {
        exposed.entry(port).or_insert_with(|| json!({}));
    }
    json!({
        "Hostname": options.hostname.as_deref().unwrap_or_else(|| config.short_id()),
        "Domainname": options.domainname.as_deref().unwrap_or(""),
        "User": options.user.as_deref().unwrap_or(&image.user),
        "AttachStdin": options.interactive && options.stdin_once,
        "AttachStdout": options.stdin_once,
        "AttachStderr": options.stdin_once,
        "StdinOnce": options.interactive && options.stdin_once,
        "OnBuild": null,
        "OpenStdin": options.interactive,
        "Tty": options.tty,
        "Env": env,
        "Cmd": if options.command.is_empty() { image.cmd.clone() } else { Some(options.command.clone()) },
        "Image": options.image,
        "Volumes": image.volumes,
        "WorkingDir": options.workdir.as_deref().unwrap_or(&image.working_dir),
        "Entrypoint": options.entrypoint.clone().or_else(|| image.entrypoint.clone()),
        "ExposedPorts": exposed,
        "Labels": filter::labels(handle),
        "StopSignal": stop::stop_signal(handle).map_or("SIGTERM", |signal| signal.as_str()),
        "StopTimeout": options.stop_timeout,
    })
}
