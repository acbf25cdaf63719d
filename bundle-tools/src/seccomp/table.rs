//! The rows of the default profile: names, and when they are allowed.
//!
//! The facts, which calls docker allows and when, are those of the profile that
//! the Moby project publishes (moby/profiles, seccomp), of August 2026. Names within a row
//! are sorted by byte, so that a difference to another list is easy to see.

use oci_spec::runtime::{Capability, LinuxSeccompOperator};

/// The namespace flags of `clone(2)`: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// `AF_ALG`: the kernel's crypto sockets.
const AF_ALG: u64 = 38;
/// `AF_VSOCK`: sockets to the hypervisor and other machines, past any network namespace.
const AF_VSOCK: u64 = 40;

/// One row: system calls, and the conditions under which the row counts.
pub(super) struct Row {
    /// Names, separated by blanks.
    pub(super) names: &'static str,
    pub(super) verdict: Verdict,
    pub(super) args: Args,
    /// Only with this capability.
    pub(super) with: Option<Capability>,
    /// Only without this capability.
    pub(super) without: Option<Capability>,
    /// Only on these architectures; empty means all.
    pub(super) on: &'static [&'static str],
    /// Not on these architectures.
    pub(super) not_on: &'static [&'static str],
    /// Only since this kernel.
    pub(super) since: Option<(u32, u32)>,
}

pub(super) enum Verdict {
    Allow,
    /// Answer ENOSYS.
    NoSuchCall,
}

pub(super) enum Args {
    Any,
    /// Argument, operator, value.
    Compare(usize, LinuxSeccompOperator, u64),
    /// None of these bits set in the argument.
    NoneOf(usize, u64),
}

/// Allowed for everybody, whatever the arguments: what the other rows start from.
const fn allow(names: &'static str) -> Row {
    Row {
        names,
        verdict: Verdict::Allow,
        args: Args::Any,
        with: None,
        without: None,
        on: &[],
        not_on: &[],
        since: None,
    }
}

/// Allowed with a capability.
const fn with(capability: Capability, names: &'static str) -> Row {
    Row {
        with: Some(capability),
        ..allow(names)
    }
}

/// Allowed on some architectures, which have these calls beyond the common ones.
const fn on(architectures: &'static [&'static str], names: &'static str) -> Row {
    Row {
        on: architectures,
        ..allow(names)
    }
}

/// Allowed if the first argument compares.
const fn first(names: &'static str, operator: LinuxSeccompOperator, value: u64) -> Row {
    Row {
        args: Args::Compare(0, operator, value),
        ..allow(names)
    }
}

/// The table. Rows of one name add up.
pub(super) const ROWS: &[Row] = &[
    allow(COMMON),
    // Before 4.8, ptrace(2) could change a call after the filter had passed it.
    Row {
        since: Some((4, 8)),
        ..allow("process_vm_readv process_vm_writev ptrace")
    },
    first("socket", LinuxSeccompOperator::ScmpCmpLt, AF_ALG),
    first("socket", LinuxSeccompOperator::ScmpCmpEq, AF_ALG + 1),
    first("socket", LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK),
    // PER_LINUX, PER_LINUX32, both with UNAME26, and "only tell me".
    first("personality", LinuxSeccompOperator::ScmpCmpEq, 0),
    first("personality", LinuxSeccompOperator::ScmpCmpEq, 0x8),
    first("personality", LinuxSeccompOperator::ScmpCmpEq, 0x2_0000),
    first("personality", LinuxSeccompOperator::ScmpCmpEq, 0x2_0008),
    first("personality", LinuxSeccompOperator::ScmpCmpEq, 0xffff_ffff),
    on(&["ppc64le"], "swapcontext sync_file_range2"),
    on(
        &["arm", "arm64"],
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
    on(&["amd64"], "arch_prctl"),
    on(&["386", "amd64"], "modify_ldt"),
    on(
        &["s390x"],
        "s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",
    ),
    on(&["riscv64"], "riscv_flush_icache"),
    with(Capability::DacReadSearch, "open_by_handle_at"),
    with(Capability::SysAdmin, ADMIN),
    // No new namespaces without CAP_SYS_ADMIN. On s390 the flags come second.
    Row {
        args: Args::NoneOf(0, NAMESPACE_FLAGS),
        without: Some(Capability::SysAdmin),
        not_on: &["s390x"],
        ..allow("clone")
    },
    Row {
        args: Args::NoneOf(1, NAMESPACE_FLAGS),
        without: Some(Capability::SysAdmin),
        on: &["s390x"],
        ..allow("clone")
    },
    // Its flags are in memory, where no filter sees them.
    Row {
        verdict: Verdict::NoSuchCall,
        without: Some(Capability::SysAdmin),
        ..allow("clone3")
    },
    with(Capability::SysBoot, "reboot"),
    with(Capability::SysChroot, "chroot"),
    with(
        Capability::SysModule,
        "delete_module finit_module init_module",
    ),
    with(Capability::SysPacct, "acct"),
    with(
        Capability::SysPtrace,
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    with(Capability::SysRawio, "ioperm iopl"),
    with(
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    with(Capability::SysTtyConfig, "vhangup"),
    with(
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    with(Capability::Syslog, "syslog"),
    with(Capability::Bpf, "bpf"),
    with(Capability::Perfmon, "perf_event_open"),
];

/// What goes with CAP_SYS_ADMIN.
const ADMIN: &str = "\
    bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
    open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns \
    syslog umount umount2 unshare";

/// What every process may call.
const COMMON: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget \
    capset chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres \
    clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 \
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 \
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat \
    fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr \
    flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync \
    ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv \
    futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents \
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid \
    getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt \
    gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch \
    inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents \
    io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get ioprio_set \
    ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown \
    lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr \
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall \
    mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal \
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at \
    nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe \
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 \
    preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev \
    pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam \
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield \
    seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile \
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address \
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 \
    setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid \
    setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr \
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 \
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill \
    time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 \
    timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask \
    uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork \
    vmsplice wait4 waitid waitpid write writev";
