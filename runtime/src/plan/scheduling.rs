//! When and where a process runs: scheduling policy, I/O priority, CPUs, memory nodes, execution domain.
//!
//! Texts of refusals are runc's. Governing texts: runtime-spec config.md "Linux Process", config-linux.md "Memory policy" and
//! "Personality".

use super::Error;
use super::number_list::Mask;
use crate::spec::linux::{Linux, MemoryPolicy, Personality};
use crate::spec::process::{IoPriority, Process, Scheduler};
use crate::sys::sched::SchedAttr;

/// Everything about when and where a process runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scheduling {
    /// Scheduling policy.
    pub(crate) scheduler: Option<SchedAttr>,
    /// I/O priority: class and level.
    pub(crate) io_priority: Option<(u32, u32)>,
    /// Execution domain.
    pub(crate) personality: Option<libc::c_ulong>,
    /// NUMA memory policy: mode with flags, nodes.
    pub(crate) memory_policy: Option<(libc::c_int, Mask)>,
    /// CPUs of an exec'd process until it enters the container's cgroup.
    pub(crate) initial_cpus: Option<Mask>,
    /// CPUs of an exec'd process from then on.
    pub(crate) final_cpus: Option<Mask>,
    /// Whether the container's cgroup allows some CPUs only.
    pub(crate) confined: bool,
}

/// Memory policies and their numbers (linux/mempolicy.h), in the order of their names.
pub(crate) const MEMORY_MODES: [(&str, libc::c_int); 7] = [
    ("MPOL_BIND", 2),
    ("MPOL_DEFAULT", 0),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED", 1),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

/// Flags of memory policies (linux/mempolicy.h), in the order of their names.
pub(crate) const MEMORY_FLAGS: [(&str, libc::c_int); 3] = [
    ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ("MPOL_F_RELATIVE_NODES", 1 << 14),
    ("MPOL_F_STATIC_NODES", 1 << 15),
];

impl Scheduling {
    /// What a process asks for itself.
    pub(super) fn of_process(process: &Process) -> Result<Self, Error> {
        let affinity = process.exec_cpu_affinity.as_ref();
        let cpus = |list: Option<&String>, which: &str| {
            let parsed = Mask::parse(list.map_or("", String::as_str));
            parsed.map_err(|error| Error::Invalid(format!("bad CPUAffinity.{which}: {error}")))
        };
        Ok(Self {
            scheduler: process.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: process.io_priority.as_ref().map(io_priority).transpose()?,
            initial_cpus: cpus(affinity.map(|it| &it.initial), "Initial")?,
            final_cpus: cpus(affinity.map(|it| &it.r#final), "Final")?,
            ..Self::default()
        })
    }

    /// Adds what every process of a container gets.
    pub(super) fn add_container(
        &mut self,
        asked_personality: Option<&Personality>,
        policy: Option<&MemoryPolicy>,
        confined: bool,
    ) -> Result<(), Error> {
        self.personality = asked_personality.map(personality).transpose()?;
        self.memory_policy = policy.map(memory_policy).transpose()?;
        self.confined = confined;
        Ok(())
    }

    /// Whether the process has to be in its cgroup, whose CPUs and memory nodes count, when this is put in force.
    pub(crate) fn needs_cgroup(&self) -> bool {
        self.scheduler.is_some() || self.memory_policy.is_some()
    }
}

/// Whether a container's cgroup allows some CPUs only.
pub(super) fn is_confined(linux: &Linux) -> bool {
    let cpu = linux.resources.as_ref().and_then(|it| it.cpu.as_ref());
    let cpus = cpu.and_then(|it| it.cpus.as_ref());
    cpus.is_some_and(|cpus| !cpus.is_empty())
}

/// Settings that do not go together, which the kernel would pass over or refuse without saying why.
fn check_scheduler(scheduler: &Scheduler) -> Result<(), Error> {
    let policy = scheduler.policy.as_str();
    if policy.is_empty() {
        return Err(Error::invalid("scheduler policy is required"));
    }
    if matches!(policy, "SCHED_OTHER" | "SCHED_BATCH") && !(-20..=19).contains(&scheduler.nice) {
        return Err(Error::Invalid(format!(
            "invalid scheduler.nice: {} when scheduler.policy is {policy}",
            scheduler.nice
        )));
    }
    if scheduler.priority != 0 && !matches!(policy, "SCHED_FIFO" | "SCHED_RR") {
        return Err(Error::invalid(
            "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
        ));
    }
    let times = [scheduler.runtime, scheduler.deadline, scheduler.period];
    if policy != "SCHED_DEADLINE" && times != [0; 3] {
        return Err(Error::invalid(
            "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
        ));
    }
    Ok(())
}

/// Scheduling policy as `sched_setattr(2)` takes it.
fn scheduler(scheduler: &Scheduler) -> Result<SchedAttr, Error> {
    check_scheduler(scheduler)?;
    let policy = match scheduler.policy.as_str() {
        "SCHED_OTHER" => libc::SCHED_OTHER,
        "SCHED_FIFO" => libc::SCHED_FIFO,
        "SCHED_RR" => libc::SCHED_RR,
        "SCHED_BATCH" => libc::SCHED_BATCH,
        "SCHED_ISO" => 4,
        "SCHED_IDLE" => libc::SCHED_IDLE,
        "SCHED_DEADLINE" => libc::SCHED_DEADLINE,
        other => {
            return Err(Error::Invalid(format!(
                "invalid scheduler policy: {}",
                other.escape_debug()
            )));
        }
    };
    let mut flags = 0;
    for flag in &scheduler.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x01,
            "SCHED_FLAG_RECLAIM" => 0x02,
            "SCHED_FLAG_DL_OVERRUN" => 0x04,
            "SCHED_FLAG_KEEP_POLICY" => 0x08,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => {
                return Err(Error::Invalid(format!(
                    "invalid scheduler flag: {}",
                    other.escape_debug()
                )));
            }
        };
    }
    let size = u32::try_from(size_of::<SchedAttr>()).unwrap_or(0);
    let priority = u32::try_from(scheduler.priority).map_err(|_| {
        Error::Invalid(format!(
            "invalid scheduler priority: {}",
            scheduler.priority
        ))
    })?;
    Ok(SchedAttr {
        size,
        policy: policy.unsigned_abs(),
        flags,
        nice: scheduler.nice,
        priority,
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        utilization: [0; 2],
    })
}

/// I/O priority as `ioprio_set(2)` takes it.
fn io_priority(priority: &IoPriority) -> Result<(u32, u32), Error> {
    let class = match priority.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => {
            return Err(Error::Invalid(format!(
                "invalid ioPriority.Class: {other:?}"
            )));
        }
    };
    match u32::try_from(priority.priority) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(Error::Invalid(format!(
            "invalid ioPriority.Priority: {}",
            priority.priority
        ))),
    }
}

/// Execution domain as `personality(2)` takes it.
fn personality(personality: &Personality) -> Result<libc::c_ulong, Error> {
    if !personality.flags.is_empty() {
        log::warn!(
            "ignoring unsupported personality flags: [{}]",
            personality.flags.join(" ")
        );
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::Invalid(format!(
            "invalid personality domain {}",
            other.escape_debug()
        ))),
    }
}

/// Memory policy as `set_mempolicy(2)` takes it.
fn memory_policy(policy: &MemoryPolicy) -> Result<(libc::c_int, Mask), Error> {
    let number = |table: &[(&str, libc::c_int)], name: &str| {
        let found = table.iter().find(|(known, _)| *known == name);
        found.map(|(_, number)| *number)
    };
    let mode = policy.mode.as_str();
    let mut bits = number(&MEMORY_MODES, mode)
        .ok_or_else(|| Error::Invalid(format!("invalid memory policy mode {mode:?}")))?;
    let nodes = Mask::parse(&policy.nodes).map_err(|error| {
        Error::Invalid(format!(
            "invalid memory policy nodes {:?}: {error}",
            policy.nodes
        ))
    })?;
    let nodes = nodes.unwrap_or_default();
    for flag in &policy.flags {
        bits |= number(&MEMORY_FLAGS, flag)
            .ok_or_else(|| Error::Invalid(format!("invalid memory policy flag {flag:?}")))?;
    }
    match (mode, nodes.count()) {
        ("MPOL_DEFAULT" | "MPOL_LOCAL", count @ 1..) => Err(Error::Invalid(format!(
            "memory policy mode requires 0 nodes but got {count}"
        ))),
        ("MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED", _) | (_, 1..) => Ok((bits, nodes)),
        (_, 0) => Err(Error::invalid(
            "memory policy mode requires at least one node but got 0",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(process: &str) -> Result<Scheduling, String> {
        let process: Process = serde_json::from_str(process).unwrap();
        Scheduling::of_process(&process).map_err(|error| error.to_string())
    }

    fn scheduled(scheduler: &str) -> Result<SchedAttr, String> {
        Ok(planned(&format!(r#"{{"scheduler":{{{scheduler}}}}}"#))?
            .scheduler
            .unwrap())
    }

    #[test]
    fn policies_and_flags() {
        for (name, number) in [
            ("OTHER", 0),
            ("FIFO", 1),
            ("RR", 2),
            ("BATCH", 3),
            ("ISO", 4),
            ("IDLE", 5),
            ("DEADLINE", 6),
        ] {
            let attr = scheduled(&format!(r#""policy":"SCHED_{name}""#)).unwrap();
            assert_eq!(attr.policy, number, "{name}");
        }
        for (name, bit) in [
            ("RESET_ON_FORK", 0x01),
            ("RECLAIM", 0x02),
            ("DL_OVERRUN", 0x04),
            ("KEEP_POLICY", 0x08),
            ("KEEP_PARAMS", 0x10),
            ("UTIL_CLAMP_MIN", 0x20),
            ("UTIL_CLAMP_MAX", 0x40),
        ] {
            let text = format!(r#""policy":"SCHED_OTHER","flags":["SCHED_FLAG_{name}"]"#);
            assert_eq!(scheduled(&text).unwrap().flags, bit, "{name}");
        }
        let attr = scheduled(
            r#""policy":"SCHED_DEADLINE","nice":19,"runtime":42000,"deadline":100000,"period":1000000"#,
        )
        .unwrap();
        assert_eq!(
            (attr.runtime, attr.deadline, attr.period),
            (42_000, 100_000, 1_000_000)
        );
        assert_eq!(
            scheduled(r#""policy":"SCHED_FIFO","priority":7"#)
                .unwrap()
                .priority,
            7
        );
    }

    #[test]
    fn scheduler_settings_that_do_not_go_together() {
        for (text, error) in [
            (r#""nice":1"#, "scheduler policy is required"),
            (r#""policy":"FIFO""#, "invalid scheduler policy: FIFO"),
            (
                r#""policy":"SCHED_BATCH","nice":20"#,
                "invalid scheduler.nice: 20 when scheduler.policy is SCHED_BATCH",
            ),
            (
                r#""policy":"SCHED_OTHER","priority":1"#,
                "scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
            ),
            (
                r#""policy":"SCHED_RR","priority":-1"#,
                "invalid scheduler priority: -1",
            ),
            (
                r#""policy":"SCHED_FIFO","period":1"#,
                "scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
            ),
            (
                r#""policy":"SCHED_IDLE","flags":["X"]"#,
                "invalid scheduler flag: X",
            ),
        ] {
            assert_eq!(scheduled(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn io_priorities() {
        let planned = |class: &str, priority: i32| {
            planned(&format!(
                r#"{{"ioPriority":{{"class":"{class}","priority":{priority}}}}}"#
            ))
        };
        for (class, number) in [("RT", 1), ("BE", 2), ("IDLE", 3)] {
            let plan = planned(&format!("IOPRIO_CLASS_{class}"), 4).unwrap();
            assert_eq!(plan.io_priority, Some((number, 4)));
        }
        let error = |class, priority| planned(class, priority).unwrap_err();
        assert_eq!(
            error("IOPRIO_CLASS_BE", 8),
            "invalid ioPriority.Priority: 8"
        );
        assert_eq!(
            error("IOPRIO_CLASS_BE", -1),
            "invalid ioPriority.Priority: -1"
        );
        assert_eq!(error("BE", 1), r#"invalid ioPriority.Class: "BE""#);
    }

    #[test]
    fn cpus_of_exec() {
        let plan = planned(r#"{"execCPUAffinity":{"initial":"0-1","final":""}}"#).unwrap();
        assert_eq!(plan.initial_cpus.unwrap().words(), [3]);
        assert_eq!(plan.final_cpus, None);
        let error = planned(r#"{"execCPUAffinity":{"final":"1-0"}}"#).unwrap_err();
        assert_eq!(error, "bad CPUAffinity.Final: invalid range: 1-0");
    }

    #[test]
    fn memory_policies() {
        let planned = |text: &str| {
            memory_policy(&serde_json::from_str(text).unwrap()).map_err(|error| error.to_string())
        };
        for (text, bits, nodes) in [
            (r#"{"mode":"MPOL_INTERLEAVE","nodes":"0"}"#, 3, 1),
            (
                r#"{"mode":"MPOL_BIND","nodes":"0-2","flags":["MPOL_F_STATIC_NODES"]}"#,
                2 | 0x8000,
                3,
            ),
            (
                r#"{"mode":"MPOL_PREFERRED","flags":["MPOL_F_RELATIVE_NODES"]}"#,
                1 | 0x4000,
                0,
            ),
            (r#"{"mode":"MPOL_DEFAULT"}"#, 0, 0),
            (r#"{"mode":"MPOL_LOCAL"}"#, 4, 0),
        ] {
            let (mode, mask) = planned(text).unwrap();
            assert_eq!((mode, mask.count()), (bits, nodes), "{text}");
        }
        for (text, error) in [
            ("{}", r#"invalid memory policy mode """#),
            (
                r#"{"mode":"INTERLEAVE","nodes":"0"}"#,
                r#"invalid memory policy mode "INTERLEAVE""#,
            ),
            (
                r#"{"mode":"MPOL_BIND","nodes":"0","flags":["x"]}"#,
                r#"invalid memory policy flag "x""#,
            ),
            (
                r#"{"mode":"MPOL_DEFAULT","nodes":"0-7"}"#,
                "memory policy mode requires 0 nodes but got 8",
            ),
            (
                r#"{"mode":"MPOL_BIND"}"#,
                "memory policy mode requires at least one node but got 0",
            ),
            (
                r#"{"mode":"MPOL_BIND","nodes":"0-9876543210"}"#,
                r#"invalid memory policy nodes "0-9876543210": values larger than 65536 are not supported"#,
            ),
        ] {
            assert_eq!(planned(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn personalities() {
        let domain = |domain: &str| {
            let flags = vec!["X".into()];
            personality(&Personality {
                domain: domain.into(),
                flags,
            })
        };
        assert_eq!(domain("LINUX").unwrap(), 0);
        assert_eq!(domain("LINUX32").unwrap(), 8);
        assert!(domain("").is_err());
    }
}
