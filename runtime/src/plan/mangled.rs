//! Configurations broken by chance: whatever is in the file, reading and checking it ends, without a panic, in a
//! plan or in an error of one line.

use std::path::Path;

use serde_json::{Value, json};

use super::{Extra, Plan};
use crate::spec::Spec;

/// So many of each kind.
const ROUNDS: u64 = 300;

/// splitmix64: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        it ^= it >> 31;
        usize::try_from(it % end as u64).unwrap()
    }
}

/// A configuration with something in every part.
fn whole() -> Value {
    json!({
        "ociVersion": "1.2.0", "hostname": "nest", "domainname": "tree", "annotations": {"a": "b"},
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "terminal": false, "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true, "oomScoreAdj": 5,
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]}, "consoleSize": {"height": 24, "width": 80},
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
            "scheduler": {"policy": "SCHED_BATCH", "nice": 5}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        },
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "rro", "rslave", "size=1m"]},
            {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro"]}],
        "hooks": {"prestart": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 3}]},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "user"}, {"type": "time"}, {"type": "network", "path": "/proc/1/ns/net"}],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}], "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "timeOffsets": {"boottime": {"secs": 5, "nanosecs": 6}}, "sysctl": {}, "cgroupsPath": "/a/b",
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
            "resources": {
                "devices": [{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}], "memory": {"limit": 1_000_000, "swap": -1},
                "cpu": {"shares": 2, "quota": 5000, "period": 10000, "cpus": "0-1"}, "pids": {"limit": 7},
                "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "unified": {"memory.high": "5"},
            },
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [{"names": ["mkdir"],
                "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]},
            "rootfsPropagation": "rslave", "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
            "personality": {"domain": "LINUX32"},
        },
    })
}

/// Something that does not belong where it is put.
fn stranger(random: &mut Random) -> Value {
    match random.below(16) {
        0 => Value::Null,
        1 => true.into(),
        2 => json!([]),
        3 => json!({}),
        4 => (-1).into(),
        5 => u64::MAX.into(),
        6 => i64::MIN.into(),
        7 => 1e300.into(),
        8 => (1_u64 << 32).into(),
        9 => "".into(),
        10 => "\u{0}".into(),
        11 => "a\nb\u{0}c".into(),
        12 => "../../..//".into(),
        13 => "ü".repeat(5_000).into(),
        14 => json!([null, [[[]]], {"": ""}]),
        _ => (0..500)
            .fold(json!(1), |it, _| json!([it]))
            .to_string()
            .into(),
    }
}

/// Puts a stranger somewhere into `value`, or takes a member away.
fn mangle(value: &mut Value, random: &mut Random) {
    let stays = random.below(5) == 0;
    match value {
        Value::Object(members) if !members.is_empty() && !stays => {
            let key = members
                .keys()
                .nth(random.below(members.len()))
                .cloned()
                .unwrap();
            match random.below(12) {
                0 => drop(members.remove(&key)),
                1 => drop(members.insert(key.to_uppercase(), stranger(random))),
                _ => mangle(&mut members[&key], random),
            }
        }
        Value::Array(items) if !items.is_empty() && !stays => {
            let place = random.below(items.len());
            match random.below(8) {
                0 => drop(items.remove(place)),
                1 => items.push(items[place].clone()),
                _ => mangle(&mut items[place], random),
            }
        }
        _ => *value = stranger(random),
    }
}

/// Reads and checks `text`, as from root and as from others; says whether there is a plan for root.
fn survives(text: &[u8], what: &str) -> bool {
    let spec = match serde_json::from_slice::<Spec>(text) {
        Ok(spec) => spec,
        Err(error) => {
            assert_is_one_line(&error.to_string(), what);
            return false;
        }
    };
    let [root, _] = [false, true].map(|rootless| {
        let extra = Extra {
            rootless,
            ..Extra::default()
        };
        let plan = Plan::new(&spec, Path::new("/bundle"), "id", extra);
        if let Err(error) = &plan {
            assert_is_one_line(&crate::failure::chain(error), what);
        }
        plan.is_ok()
    });
    root
}

fn assert_is_one_line(error: &str, what: &str) {
    assert!(
        !error.is_empty() && !error.contains('\n'),
        "{what}: {error:?}"
    );
}

#[test]
fn the_whole_configuration_is_good() {
    let spec: Spec = serde_json::from_str(&whole().to_string()).unwrap();
    let plan = Plan::new(&spec, Path::new("/bundle"), "id", Extra::default());
    assert_eq!(plan.err().map(|it| crate::failure::chain(&it)), None);
}

#[test]
fn strangers_are_told_or_borne() {
    let mut plans = 0;
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let mut value = whole();
        for _ in 0..=random.below(3) {
            mangle(&mut value, &mut random);
        }
        let good = survives(value.to_string().as_bytes(), &format!("seed {seed}"));
        plans += u64::from(good);
    }
    // Both happen, or the test tries nothing.
    assert!(plans > 0 && plans < ROUNDS, "{plans} plans");
}

/// The paths of all texts below `value`, as [`Value::pointer`] takes them.
fn texts(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                texts(member, &format!("{path}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                texts(item, &format!("{path}/{index}"), found);
            }
        }
        Value::String(_) => found.push(path.to_owned()),
        _ => {}
    }
}

#[test]
fn no_text_breaks_the_line_of_an_error() {
    let whole = whole();
    let mut paths = Vec::new();
    texts(&whole, "", &mut paths);
    let mut refused = 0;
    for path in &paths {
        let mut value = whole.clone();
        *value.pointer_mut(path).unwrap() = "a\nb".into();
        refused += usize::from(!survives(value.to_string().as_bytes(), path));
    }
    assert!(refused > 0 && refused < paths.len(), "{refused} refused");
}

#[test]
fn broken_text_is_told_or_borne() {
    let whole = whole().to_string().into_bytes();
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let mut text = whole.clone();
        let place = random.below(text.len());
        match random.below(4) {
            0 => text.truncate(place),
            1 => text[place] = u8::try_from(random.below(256)).unwrap(),
            2 => drop(text.splice(place..place, [b'['; 3000])),
            _ => {
                // Every member from here on a second time.
                let end = text.len() - 1;
                let tail = text[place..end].to_vec();
                text.splice(end..end, tail);
            }
        }
        survives(&text, &format!("seed {seed}"));
    }
}
