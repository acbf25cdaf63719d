//! What `exec` takes from the container where its own process says nothing, as kept in the container's state.
//!
//! A file given to `exec --process` describes a process in full or in part; what it leaves out is what the container was
//! created with, whatever has become of the bundle since. As in runc: arguments, environment, working directory, user and
//! `noNewPrivileges` come from the file alone; personality and memory policy from the container alone.

use serde::{Deserialize, Serialize};

use super::process::ProcessPlan;
use super::{Error, validate};
use crate::capability;
use crate::spec::Spec;
use crate::spec::linux::{Linux, MemoryPolicy, Personality};
use crate::spec::process::{CpuAffinity, IoPriority, Process, Rlimit, Scheduler};

/// What further processes of a container get from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Inherited {
    /// Capability sets.
    pub(crate) capabilities: capability::Sets,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rlimits: Vec<Rlimit>,
    /// AppArmor profile.
    #[serde(skip_serializing_if = "String::is_empty")]
    apparmor_profile: String,
    /// SELinux label.
    #[serde(skip_serializing_if = "String::is_empty")]
    selinux_label: String,
    /// Adjustment for the OOM killer.
    #[serde(skip_serializing_if = "Option::is_none")]
    oom_score_adj: Option<i32>,
    /// Mask of permissions that new files do not get.
    #[serde(skip_serializing_if = "Option::is_none")]
    umask: Option<u32>,
    /// Scheduling policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler: Option<Scheduler>,
    /// I/O priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    io_priority: Option<IoPriority>,
    /// CPUs of exec'd processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_cpu_affinity: Option<CpuAffinity>,
    /// Execution domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    personality: Option<Personality>,
    /// NUMA memory policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_policy: Option<MemoryPolicy>,
    /// Whether the container's cgroup allows some CPUs only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    confined: bool,
    /// Whether processes keep the session keyring of whoever starts them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) no_new_keyring: bool,
}

impl Inherited {
    /// What a container hands on.
    pub(crate) fn new(spec: &Spec, plan: &super::Plan) -> Self {
        let no_process = Process::default();
        let no_linux = Linux::default();
        let process = spec.process.as_ref().unwrap_or(&no_process);
        let linux = spec.linux.as_deref().unwrap_or(&no_linux);
        Self {
            capabilities: plan.process.capabilities,
            rlimits: process.rlimits.clone(),
            apparmor_profile: process.apparmor_profile.clone(),
            selinux_label: process.selinux_label.clone(),
            oom_score_adj: process.oom_score_adj,
            umask: process.user.umask,
            scheduler: process.scheduler.clone(),
            io_priority: process.io_priority.clone(),
            exec_cpu_affinity: process.exec_cpu_affinity.clone(),
            personality: linux.personality.clone(),
            memory_policy: linux.memory_policy.clone(),
            confined: plan.process.scheduling.confined,
            no_new_keyring: plan.extra.no_new_keyring,
        }
    }

    /// Checks a process that joins the container, and turns it into a plan.
    pub(crate) fn plan(&self, mut process: Process) -> Result<ProcessPlan, Error> {
        /// Takes the container's value where the process has none.
        fn or<T: Clone>(own: &mut Option<T>, inherited: Option<&T>) {
            if own.is_none() {
                *own = inherited.cloned();
            }
        }
        or(&mut process.scheduler, self.scheduler.as_ref());
        or(&mut process.io_priority, self.io_priority.as_ref());
        or(
            &mut process.exec_cpu_affinity,
            self.exec_cpu_affinity.as_ref(),
        );
        or(&mut process.oom_score_adj, self.oom_score_adj.as_ref());
        or(&mut process.user.umask, self.umask.as_ref());
        if process.rlimits.is_empty() {
            process.rlimits.clone_from(&self.rlimits);
        }
        if process.apparmor_profile.is_empty() {
            process.apparmor_profile.clone_from(&self.apparmor_profile);
        }
        if process.selinux_label.is_empty() {
            process.selinux_label.clone_from(&self.selinux_label);
        }
        let mut plan = ProcessPlan::new(validate::process(Some(&process))?)?;
        if process.capabilities.is_none() {
            plan.capabilities = self.capabilities;
        }
        let (personality, policy) = (self.personality.as_ref(), self.memory_policy.as_ref());
        plan.scheduling
            .add_container(personality, policy, self.confined)?;
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Extra, Plan};

    fn inherited() -> Inherited {
        let spec: Spec = serde_json::from_str(
            r#"{"root":{"path":"r"},"process":{"args":["init"],"cwd":"/","user":{"umask":63},"oomScoreAdj":5,
                "capabilities":{"bounding":["CAP_KILL"]},"rlimits":[{"type":"RLIMIT_CPU","soft":1,"hard":2}],
                "ioPriority":{"class":"IOPRIO_CLASS_BE","priority":4},"scheduler":{"policy":"SCHED_BATCH","nice":19},
                "execCPUAffinity":{"final":"0"},"apparmorProfile":"p"},
                "linux":{"namespaces":[{"type":"mount"}],"personality":{"domain":"LINUX32"},
                "memoryPolicy":{"mode":"MPOL_LOCAL"},"resources":{"cpu":{"cpus":"0"}}}}"#,
        )
        .unwrap();
        let plan = Plan::new(&spec, std::path::Path::new("/b"), "c", Extra::default()).unwrap();
        let made = Inherited::new(&spec, &plan);
        // As it comes back from the state file.
        serde_json::from_str(&serde_json::to_string(&made).unwrap()).unwrap()
    }

    #[test]
    fn what_a_process_leaves_out_is_the_containers() {
        let process = serde_json::from_str(r#"{"args":["sh"],"cwd":"/"}"#).unwrap();
        let plan = inherited().plan(process).unwrap();
        assert_eq!(plan.capabilities.bounding, 1 << 5);
        assert_eq!((plan.user.umask, plan.oom_score_adj), (Some(63), Some(5)));
        assert_eq!((plan.rlimits[0].soft, plan.rlimits[0].hard), (1, 2));
        assert_eq!(plan.apparmor_profile.as_deref(), Some("p"));
        let scheduling = plan.scheduling;
        assert_eq!(scheduling.scheduler.unwrap().policy, 3);
        assert_eq!(scheduling.io_priority, Some((2, 4)));
        assert_eq!(scheduling.final_cpus.unwrap().words(), [1]);
        assert_eq!(scheduling.personality, Some(8));
        assert_eq!(scheduling.memory_policy.unwrap().0, 4);
        assert!(scheduling.confined);
    }

    #[test]
    fn what_a_process_says_counts() {
        let process = serde_json::from_str(
            r#"{"args":["sh"],"cwd":"/","user":{"umask":18},"oomScoreAdj":6,"capabilities":{},
                "rlimits":[{"type":"RLIMIT_AS","soft":3,"hard":3}],"ioPriority":{"class":"IOPRIO_CLASS_IDLE"},
                "scheduler":{"policy":"SCHED_OTHER"},"execCPUAffinity":{"initial":"1"},"apparmorProfile":"q"}"#,
        )
        .unwrap();
        let plan = inherited().plan(process).unwrap();
        assert_eq!(plan.capabilities, capability::Sets::default());
        assert_eq!((plan.user.umask, plan.oom_score_adj), (Some(18), Some(6)));
        assert_eq!((plan.rlimits.len(), plan.rlimits[0].soft), (1, 3));
        assert_eq!(plan.apparmor_profile.as_deref(), Some("q"));
        let scheduling = plan.scheduling;
        assert_eq!(scheduling.scheduler.unwrap().policy, 0);
        assert_eq!(scheduling.io_priority, Some((3, 0)));
        assert_eq!(scheduling.final_cpus, None);
        assert_eq!(scheduling.initial_cpus.unwrap().words(), [2]);
    }
}
