//! Configurations that nobody would write, but everybody might: each property is drawn from what the
//! specification allows, mostly from what the kernel will do.

use serde_json::{Map, Value, json};

use super::Case;
use crate::random::Random;

/// Capabilities of every kind: common, rare, and the newest.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SYS_ADMIN",
    "CAP_MKNOD",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Limits that can be lowered without hurting the probe, and a value that is.
const RLIMITS: [(&str, u64); 14] = [
    ("AS", 1 << 32),
    ("CORE", 0),
    ("CPU", 1000),
    ("DATA", 1 << 31),
    ("FSIZE", 1 << 30),
    ("LOCKS", 100),
    ("MEMLOCK", 65536),
    ("MSGQUEUE", 4096),
    ("NICE", 0),
    ("NOFILE", 512),
    ("NPROC", 20000),
    ("RSS", 1 << 30),
    ("SIGPENDING", 100),
    ("STACK", 1 << 22),
];

/// System calls the probe tries, that nothing else needs.
const CALLS: [&str; 19] = [
    "acct",
    "add_key",
    "bpf",
    "clock_settime",
    "getrandom",
    "io_uring_setup",
    "memfd_create",
    "mkdirat",
    "mknodat",
    "mount",
    "open_by_handle_at",
    "perf_event_open",
    "pidfd_open",
    "ptrace",
    "setns",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// Makes the configuration of one seed.
#[must_use]
pub fn case(seed: u64) -> Case {
    let mut random = Random::new(seed);
    let it = &mut random;
    let mut config = crate::bundle::config(&[]);
    config["process"] = process(it);
    config["root"]["readonly"] = it.chance(30).into();
    namespaces(it, &mut config);
    mounts(it, &mut config);
    paths(it, &mut config);
    if it.chance(40) {
        config["linux"]["devices"] = devices(it);
    }
    config["linux"]["resources"] = resources(it);
    if it.chance(40) {
        config["linux"]["seccomp"] = seccomp(it);
    }
    if it.chance(30) {
        let kinds = [
            "private", "rprivate", "slave", "rslave", "shared", "rshared",
        ];
        config["linux"]["rootfsPropagation"] = it.one(&kinds).into();
    }
    config["linux"]["cgroupsPath"] = format!("/qdiff-{}-seed{seed}", std::process::id()).into();
    Case::new(&format!("seed{seed}"), config)
}

fn process(it: &mut Random) -> Value {
    let user = it.one(&[0, 0, 0, 1000, 65534]);
    let mut process = json!({
        "terminal": it.chance(15),
        "args": null,
        "user": {"uid": user, "gid": it.one(&[0, user, 1000])},
        "cwd": it.one(&["/", "/tmp", "/var/lib", "/made/here", "/link"]),
        "env": ["PATH=/bin"],
        "noNewPrivileges": it.chance(50),
    });
    if it.chance(40) {
        process["user"]["umask"] = it.one(&[0o22, 0o77, 0o2, 0]).into();
    }
    if it.chance(40) {
        process["user"]["additionalGids"] = it.some(&[5, 10, 1000, 4_294_967_294_u32], 60).into();
    }
    let names = ["HOME=/x", "A=b=c", "EMPTY=", "TERM=dumb", "A=twice", "Ü=ü"];
    for word in it.some(&names, 30) {
        let env = process["env"].as_array_mut();
        env.into_iter().for_each(|env| env.push(word.into()));
    }
    if it.chance(85) {
        process["capabilities"] = capabilities(it);
    }
    if it.chance(60) {
        let limits = it.some(&RLIMITS, 25);
        let limits: Vec<_> = limits
            .into_iter()
            .map(|(name, value)| {
                let soft = if it.chance(50) { value } else { value / 2 };
                json!({"type": format!("RLIMIT_{name}"), "soft": soft, "hard": value})
            })
            .collect();
        process["rlimits"] = limits.into();
    }
    if it.chance(40) {
        process["oomScoreAdj"] = it.one(&[0, 1, 500, 1000]).into();
    }
    if it.chance(20) {
        process["ioPriority"] = json!({
            "class": "IOPRIO_CLASS_BE", "priority": it.below(8),
        });
    }
    if it.chance(20) {
        // Nothing slower: the probe has to come to its turn on a busy machine.
        process["scheduler"] = json!({
            "policy": it.one(&["SCHED_OTHER", "SCHED_BATCH"]), "nice": it.below(4),
        });
    }
    if process["terminal"] == true && it.chance(60) {
        process["consoleSize"] = json!({"height": 20 + it.below(40), "width": 60 + it.below(90)});
    }
    process
}

/// Sets that the kernel can have at once.
fn capabilities(it: &mut Random) -> Value {
    let bounding = it.some(&CAPABILITIES, 60);
    let permitted = it.some(&bounding, 80);
    let inheritable = it.some(&permitted, 50);
    let mut sets = json!({
        "bounding": bounding, "permitted": permitted, "inheritable": inheritable,
        "effective": it.some(&permitted, 90),
    });
    if it.chance(40) {
        sets["ambient"] = it.some(&inheritable, 50).into();
    }
    sets
}

fn namespaces(it: &mut Random, config: &mut Value) {
    let mut list = vec![json!({"type": "mount"})];
    for (kind, file) in [
        ("network", "net"),
        ("uts", "uts"),
        ("ipc", "ipc"),
        ("cgroup", "cgroup"),
        ("pid", ""),
        ("time", ""),
    ] {
        match it.below(10) {
            // Without a network namespace of its own the container cannot mount sysfs: not tried.
            0 if kind != "network" => {}
            1 if !file.is_empty() => {
                list.push(json!({"type": kind, "path": format!("/proc/@pid@/ns/{file}")}));
            }
            2..8 if kind == "time" => {}
            _ => list.push(json!({"type": kind})),
        }
    }
    let made = |kind: &str| {
        list.iter()
            .any(|it| it["type"] == kind && it["path"].is_null())
    };
    let mut sysctl = Map::new();
    if made("uts") {
        config["hostname"] = it.one(&["nest", "a.b.c", "x"]).into();
        if it.chance(30) {
            config["domainname"] = "tree".into();
        }
    } else {
        config.as_object_mut().map(|it| it.remove("hostname"));
    }
    if made("network") && it.chance(40) {
        sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
        sysctl.insert("net.ipv4.ping_group_range".into(), "0 100".into());
    }
    if made("ipc") && it.chance(40) {
        sysctl.insert("kernel.msgmax".into(), "4096".into());
        sysctl.insert("fs.mqueue.msg_max".into(), "20".into());
    }
    if made("time") {
        config["linux"]["timeOffsets"] =
            json!({"monotonic": {"secs": 1000, "nanosecs": 5}, "boottime": {"secs": 77}});
    }
    config["linux"]["sysctl"] = sysctl.into();
    config["linux"]["namespaces"] = list.into();
}

fn mounts(it: &mut Random, config: &mut Value) {
    let flags = [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "relatime",
        "strictatime",
        "nodiratime",
        "sync",
        "dirsync",
        "rro",
        "rnosuid",
        "rnodev",
        "rnoatime",
        "private",
        "rslave",
        "shared",
        "unbindable",
        "rprivate",
        "nosymfollow",
    ];
    let targets = [
        "/mnt",
        "/a/b/c",
        "/tmp/x",
        "/var/lib",
        "/link/in",
        "/mnt/deeper",
    ];
    let Some(list) = config["mounts"].as_array_mut() else {
        return;
    };
    list.retain(|mount| {
        let needed = ["/proc", "/dev", "/sys"]
            .iter()
            .any(|it| mount["destination"] == *it);
        needed || it.chance(80)
    });
    for target in targets {
        if !it.chance(30) {
            continue;
        }
        let mut options: Vec<String> = it.some(&flags, 15).into_iter().map(str::to_owned).collect();
        list.push(match it.below(4) {
            0 => {
                options.extend(it.some(&["size=1m", "mode=0711"], 50).into_iter().map(str::to_owned));
                json!({"destination": target, "type": "tmpfs", "source": "it", "options": options})
            }
            1 => {
                options.insert(0, "bind".into());
                json!({"destination": target, "type": "bind", "source": "@bundle@/data/file", "options": options})
            }
            2 => {
                options.insert(0, "rbind".into());
                json!({"destination": target, "source": "@bundle@/data", "options": options})
            }
            _ => {
                options.insert(0, "bind".into());
                json!({"destination": target, "type": "none", "source": "@bundle@/data/inner", "options": options})
            }
        });
    }
}

fn paths(it: &mut Random, config: &mut Value) {
    let masked = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/acpi",
        "/sys/firmware",
        "/no/such",
        "/etc/passwd",
        "/tmp",
    ];
    let readonly = [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/tmp",
        "/etc/group",
        "/no/where",
    ];
    config["linux"]["maskedPaths"] = it.some(&masked, 40).into();
    config["linux"]["readonlyPaths"] = it.some(&readonly, 40).into();
}

fn devices(it: &mut Random) -> Value {
    let all = [
        json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 0, "gid": 0}),
        json!({"path": "/dev/deep/er", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8}),
        json!({"path": "/dev/disk", "type": "b", "major": 7, "minor": 0, "fileMode": 0o660}),
        json!({"path": "/dev/pipe", "type": "p", "fileMode": 0o600}),
    ];
    it.some(&all, 50).into()
}

fn resources(it: &mut Random) -> Value {
    let mut all = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let rules = [
        json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}),
        json!({"allow": true, "type": "c", "major": 1, "access": "m"}),
        json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "w"}),
        json!({"allow": true, "type": "b", "access": "r"}),
    ];
    let rules = it.some(&rules, 40);
    let list = all["devices"].as_array_mut();
    list.into_iter().for_each(|list| list.extend(rules.clone()));
    if it.chance(40) {
        all["memory"] = json!({"limit": 64 << 20});
        if it.chance(50) {
            all["memory"]["reservation"] = (32 << 20).into();
        }
        if it.chance(30) {
            all["memory"]["swappiness"] = 10.into();
        }
        if it.chance(30) {
            all["memory"]["disableOOMKiller"] = true.into();
        }
    }
    if it.chance(40) {
        all["cpu"] = json!({"shares": it.one(&[300, 512, 262_144])});
        if it.chance(50) {
            all["cpu"]["period"] = 50_000.into();
            all["cpu"]["quota"] = it.one(&[10_000, 100_000, -1]).into();
        }
        if it.chance(40) {
            all["cpu"]["cpus"] = it.one(&["0", "0-1", "1"]).into();
            all["cpu"]["mems"] = "0".into();
        }
    }
    if it.chance(40) {
        all["pids"] = json!({"limit": it.one(&[50, 1000, -1])});
    }
    if it.chance(20) {
        all["blockIO"] = json!({"weight": it.one(&[10, 500, 1000])});
    }
    all
}

fn seccomp(it: &mut Random) -> Value {
    let actions = [
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_LOG",
        "SCMP_ACT_ALLOW",
    ];
    let mut rules = Vec::new();
    for _ in 0..=it.below(4) {
        let names = it.some(&CALLS, 20);
        let mut rule = json!({"names": names, "action": it.one(&actions)});
        if rule["action"] == "SCMP_ACT_ERRNO" && it.chance(60) {
            rule["errnoRet"] = it.one(&[1, 13, 38, 95]).into();
        }
        rules.push(rule);
    }
    if it.chance(50) {
        rules.push(json!({
            "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
            "args": [{"index": 0, "value": it.one(&[1, 2, 16]), "op": it.one(&["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_NE"])}],
        }));
    }
    rules.retain(|rule| rule["names"] != json!([]));
    let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    if it.chance(70) {
        let all = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
        profile["architectures"] = all[..=it.below(3)].to_vec().into();
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_seed_gives_the_same_configuration() {
        assert_eq!(case(5).config, case(5).config);
        assert_ne!(case(5).config, case(6).config);
    }
}
