//! What the engine is, and what it finds on this machine, under docker's key names.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::container::{Live, Programs, find};
use crate::network::{self, PacketFilter};
use crate::store::Store;

/// The engine's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The API version whose key names and semantics are followed.
pub const API_VERSION: &str = "1.47";

/// One of the programs, and what it says of itself.
#[derive(Debug, Clone)]
pub struct Component {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub path: String,
    /// Its version; empty when it can't be run.
    pub version: String,
}

/// The four programs and their versions; each but our own is asked.
#[must_use]
pub fn components(programs: &Programs) -> Vec<Component> {
    let bundle = programs.engine.with_file_name("qbundle");
    let others = [
        ("qrun", &programs.runtime),
        ("qshim", &programs.shim),
        ("qbundle", &bundle),
    ];
    let mut components = vec![Component {
        name: "qengine",
        path: programs.engine.display().to_string(),
        version: VERSION.to_owned(),
    }];
    components.extend(others.map(|(name, path)| Component {
        name,
        path: path.display().to_string(),
        version: version_of(name, path).unwrap_or_default(),
    }));
    components
}

/// The last word of the line that begins with the program's name: `qrun version 0.1.0`.
fn version_of(name: &str, path: &Path) -> Option<String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().next_back().map(str::to_owned)
}

/// Everything, as docker's `info` has it.
///
/// # Errors
/// When the store can't be read.
pub fn info(store: &Store, programs: &Programs) -> Result<Value, super::check::Error> {
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for handle in find::all(store)? {
        match handle.live(store) {
            Ok((_, Live::Paused)) => paused += 1,
            Ok((_, live)) if live.is_running() => running += 1,
            _ => stopped += 1,
        }
    }
    let uname = rustix::system::uname();
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let controllers = controllers(v2);
    let has = |name: &str| controllers.iter().any(|it| it == name);
    let memory = Path::new("/sys/fs/cgroup/memory");
    let swap = v2 || memory.join("memory.memsw.limit_in_bytes").exists();
    let mut value = json!({
        "ID": machine_id(),
        "Name": uname.nodename().to_string_lossy(),
        "ServerVersion": VERSION,
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": crate::image::list(store)?.len(),
        "Driver": "overlay2",
        "DriverStatus": [
            ["Backing Filesystem", file_system(store.root())],
            ["Supports d_type", "true"],
        ],
        "FirewallBackend": {"Driver": firewall(store)},
        "DockerRootDir": store.root(),
        "RunRoot": store.run(),
        "LoggingDriver": "json-file",
        "KernelVersion": uname.release().to_string_lossy(),
        "OperatingSystem": operating_system(),
        "OSType": "linux",
        "Architecture": uname.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory_total(),
        "SecurityOptions": security(),
        "Warnings": warnings(v2, &controllers, swap),
    });
    let limits = json!({
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if v2 { "2" } else { "1" },
        "CgroupControllers": controllers,
        "MemoryLimit": has("memory"),
        "SwapLimit": has("memory") && swap,
        "CpuShares": has("cpu"),
        "CpuCfsQuota": has("cpu"),
        "CpuCfsPeriod": has("cpu"),
        "CPUSet": has("cpuset"),
        "PidsLimit": has("pids"),
        "OomKillDisable": !v2 && has("memory"),
        "IPv4Forwarding": switch("/proc/sys/net/ipv4/ip_forward"),
    });
    let fixed = json!({
        "DefaultRuntime": "qrun",
        "Runtimes": {"qrun": {"path": programs.runtime}},
        "InitBinary": "",
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"], "Log": ["json-file", "k8s-file", "none"]},
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": ["127.0.0.0/8", "::1/128"], "Mirrors": []},
        "HttpProxy": proxy("HTTP_PROXY"),
        "HttpsProxy": proxy("HTTPS_PROXY"),
        "NoProxy": proxy("NO_PROXY"),
        "Labels": [],
        "LiveRestoreEnabled": true,
    });
    if let Value::Object(value) = &mut value {
        for part in [limits, fixed] {
            value.extend(part.as_object().cloned().unwrap_or_default());
        }
    }
    Ok(value)
}

/// Names of the controllers that containers can be limited by.
fn controllers(v2: bool) -> Vec<String> {
    if v2 {
        let text = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        return text.split_whitespace().map(str::to_owned).collect();
    }
    let text = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.len() == 4 && words[3] == "1").then(|| words[0].to_owned())
        })
        .collect()
}

fn firewall(store: &Store) -> &'static str {
    match network::packet_filter(store) {
        Ok(PacketFilter::Nftables) => "nftables",
        Ok(PacketFilter::Iptables) => "iptables",
        Ok(PacketFilter::None) => "none",
        Err(_) => "unusable",
    }
}

fn security() -> Vec<String> {
    let mut options = Vec::new();
    if Path::new("/sys/kernel/security/apparmor").exists() {
        options.push("name=apparmor".to_owned());
    }
    if Path::new("/proc/sys/kernel/seccomp").exists() {
        options.push("name=seccomp,profile=builtin".to_owned());
    }
    if Path::new("/proc/self/ns/cgroup").exists() {
        options.push("name=cgroupns".to_owned());
    }
    options
}

fn warnings(v2: bool, controllers: &[String], swap: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in ["memory", "cpu", "cpuset", "pids"] {
        if !controllers.iter().any(|it| it == name) {
            warnings.push(format!(
                "no cgroup controller {name}: its limits can't be set"
            ));
        }
    }
    if !swap && !v2 {
        warnings.push("no swap limit: the kernel does not account for swap".to_owned());
    }
    if !switch("/proc/sys/net/ipv4/ip_forward") {
        warnings.push(
            "IPv4 forwarding is off; it is turned on when the first container is connected"
                .to_owned(),
        );
    }
    warnings
}

fn switch(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
}

fn machine_id() -> String {
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    text.trim().to_owned()
}

fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "Linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

fn memory_total() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn proxy(name: &str) -> String {
    std::env::var(name)
        .or_else(|_| std::env::var(name.to_lowercase()))
        .unwrap_or_default()
}

/// The type of the file system that `path` is on: the one of the longest mount point above it.
fn file_system(path: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut best = ("", "unknown");
    for line in table.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        if path.starts_with(target) && target.len() >= best.0.len() {
            best = (target, kind);
        }
    }
    best.1.to_owned()
}
