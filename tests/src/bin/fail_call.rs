//! `fail-call PROCESS:CALL ERRNO SECONDS FILE COMMAND…` runs a command and makes one system call of one of its processes fail
//! without being made. What it says on standard error goes to FILE.
//!
//! Processes are counted in the order in which they come into being, from 0, calls of each from 1; 0 makes none fail.
//! The last line on standard output is a JSON object: how the command ended (`code`, 128 + the signal for one; -1 when it
//! took longer than it may, and was killed), which call failed (`call`, a number), and how many calls each process made
//! (`made`). What the command leaves running goes on, untraced, when this program ends.

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
fn main() -> anyhow::Result<()> {
    use anyhow::Context as _;
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [place, errno, seconds, file, command @ ..] = &arguments[..] else {
        anyhow::bail!("usage: fail-call PROCESS:CALL ERRNO SECONDS FILE COMMAND…");
    };
    let (process, call) = place.split_once(':').context("PROCESS:CALL")?;
    let fault = tracer::Fault {
        process: process.parse()?,
        call: call.parse()?,
        errno: errno.parse()?,
    };
    let errors = std::fs::File::create(file).with_context(|| format!("create {file}"))?;
    let limit = std::time::Duration::from_secs(seconds.parse()?);
    let told = tracer::run(command, &fault, errors, limit)?;
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{told}")?)
}

#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("registers are only known for x86-64")
}

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod tracer {
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use anyhow::Context as _;
    use nix::errno::Errno;
    use nix::libc;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::{Signal, kill};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    /// Which call fails, and how.
    pub(crate) struct Fault {
        pub(crate) process: usize,
        pub(crate) call: usize,
        pub(crate) errno: i64,
    }

    /// A traced process.
    struct Process {
        pid: Pid,
        /// Calls so far.
        made: usize,
        /// What the call that it is in will give, if that is the one that fails.
        answer: Option<i64>,
    }

    /// Calls that cannot fail, or do what they are for even when they do.
    const SPARED: [i64; 14] = [
        libc::SYS_getpid,
        libc::SYS_getppid,
        libc::SYS_gettid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_umask,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_munmap,
        libc::SYS_rt_sigreturn,
        libc::SYS_close_range,
    ];

    /// Runs the command.
    pub(crate) fn run(
        command: &[String],
        fault: &Fault,
        errors: File,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC;
        let main = stack_tests::trace::start(command, errors.into(), options)?;
        let mut tracer = Tracer {
            processes: Vec::new(),
            fault,
            failed: None,
        };
        let ended = Arc::new(AtomicBool::new(false));
        let in_time = Arc::clone(&ended);
        // What it kills lets the wait below end.
        let watch = std::thread::spawn(move || {
            std::thread::park_timeout(limit);
            let late = !in_time.load(Ordering::SeqCst);
            if late {
                let _ = kill(main, Signal::SIGKILL);
            }
            late
        });
        let code = tracer.follow(main);
        ended.store(true, Ordering::SeqCst);
        watch.thread().unpark();
        let late = watch.join().unwrap_or(true);
        let code = if late { -1 } else { code? };
        let made: Vec<_> = tracer.processes.iter().map(|it| it.made).collect();
        Ok(json!({"code": code, "call": tracer.failed, "made": made}))
    }

    struct Tracer<'a> {
        processes: Vec<Process>,
        fault: &'a Fault,
        failed: Option<i64>,
    }

    impl Tracer<'_> {
        /// Follows all processes until the first one ends; gives how it ended.
        fn follow(&mut self, main: Pid) -> anyhow::Result<i32> {
            let mut begun = false;
            loop {
                let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                    Err(Errno::EINTR) => continue,
                    other => other?,
                };
                let (pid, signal) = match status {
                    WaitStatus::Exited(pid, code) if pid == main => return Ok(code),
                    WaitStatus::Signaled(pid, signal, _) if pid == main => {
                        return Ok(128 + signal as i32);
                    }
                    WaitStatus::PtraceSyscall(pid) => {
                        if begun {
                            self.at_call(pid)?;
                        }
                        (pid, None)
                    }
                    WaitStatus::PtraceEvent(pid, signal, event) => {
                        // The shell has become the command.
                        begun |= event == libc::PTRACE_EVENT_EXEC;
                        let stop = event == libc::PTRACE_EVENT_STOP;
                        // A stop by a signal, or the first one of a new process.
                        let stopped = stop && signal != Signal::SIGTRAP;
                        (pid, Some(signal).filter(|_| stopped && begun))
                    }
                    WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                    _ => continue,
                };
                let answered = self.processes.iter().all(|it| it.answer.is_none());
                let gone_on = match self.failed {
                    // No more is wanted.
                    Some(_) if answered => ptrace::cont(pid, signal),
                    _ => ptrace::syscall(pid, signal),
                };
                match gone_on {
                    // Killed in the meantime.
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno).context("go on"),
                }
            }
        }

        /// At the beginning or the end of a call.
        fn at_call(&mut self, pid: Pid) -> anyhow::Result<()> {
            let info = match ptrace::syscall_info(pid) {
                Err(Errno::ESRCH) => return Ok(()),
                other => other?,
            };
            let index = match self.processes.iter().position(|it| it.pid == pid) {
                Some(index) => index,
                None => {
                    self.processes.push(Process {
                        pid,
                        made: 0,
                        answer: None,
                    });
                    self.processes.len() - 1
                }
            };
            let process = &mut self.processes[index];
            let mut registers = match ptrace::getregs(pid) {
                Err(Errno::ESRCH) => return Ok(()),
                other => other?,
            };
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                let call = registers.orig_rax.cast_signed();
                if SPARED.contains(&call) {
                    return Ok(());
                }
                process.made += 1;
                if index == self.fault.process && process.made == self.fault.call {
                    // No such call: the kernel does nothing.
                    registers.orig_rax = u64::MAX;
                    process.answer = Some(-self.fault.errno);
                    self.failed = Some(call);
                    ptrace::setregs(pid, registers)?;
                }
            } else if let Some(answer) = process.answer.take() {
                registers.rax = answer.cast_unsigned();
                ptrace::setregs(pid, registers)?;
            }
            Ok(())
        }
    }
}
