//! `order QRUN` traces what starts containers, and prints a linker script that puts the functions which were called next to
//! each other, in the order of their first call. `hack/order.sh` keeps it as `runtime/order.ld`.
//!
//! QRUN has its symbols. Each function gets a breakpoint, which goes when it is reached. Needs root and `nm`.

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
fn main() -> anyhow::Result<()> {
    use anyhow::Context as _;
    use std::io::Write as _;
    let program = std::env::args().nth(1).context("usage: order QRUN")?;
    let script = tracer::order(std::path::Path::new(&program))?;
    Ok(std::io::stdout().write_all(script.as_bytes())?)
}

#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("breakpoints are only known for x86-64")
}

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod tracer {
    use std::collections::{BTreeMap, HashMap, HashSet};
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    use anyhow::{Context as _, ensure};
    use nix::errno::Errno;
    use nix::libc;
    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use serde_json::json;
    use stack_tests::bundle::Bundle;

    /// What people wait for, the most frequent first. `$1` is qrun, `$2` the bundle, `$3` one with a filter.
    const SCENARIO: &str = r#"
        set -e
        cd "$2"
        rm config.json
        $1 spec
        sed -i 's/"terminal": true/"terminal": false/; s/"sh"/"true"/' config.json
        qrun=$1
        $qrun run order </dev/null
        $qrun run --bundle "$3" order </dev/null
        $qrun create order </dev/null
        $qrun start order
        while ! $qrun delete order 2>/dev/null; do sleep 0.1; done
        $qrun create --bundle "$3" order </dev/null
        $qrun exec order true </dev/null
        $qrun state order
        $qrun kill order KILL
        while ! $qrun delete order 2>/dev/null; do sleep 0.1; done
    "#;

    /// What every program starts with and is written in assembler, whose functions have no sections of their own.
    const ASSEMBLED: [&str; 7] = [
        "*rcrt1.o",
        "*memcpy.lo",
        "*memmove.lo",
        "*memset.lo",
        "*__set_thread_area.lo",
        "*syscall_cp.lo",
        "*restore.lo",
    ];

    /// The instruction that stops.
    const BREAKPOINT: u8 = 0xcc;

    /// Prints the script for a program.
    pub(crate) fn order(program: &Path) -> anyhow::Result<String> {
        let program = program.canonicalize().context("find the program")?;
        let plain = Bundle::new(&["/bin/true"]);
        let filter = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": CALLS, "action": "SCMP_ACT_ALLOW"},
            ],
        });
        let filtered = Bundle::new(&["/bin/true"]).with("/linux/seccomp", filter);
        let functions = functions(&program)?;
        let options = Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        let command = [
            Path::new("/bin/sh"),
            Path::new("-c"),
            Path::new(SCENARIO),
            Path::new("sh"),
            &program,
            plain.path(),
            filtered.path(),
        ];
        let main = stack_tests::trace::start(&command, Stdio::inherit(), options)?;
        let mut tracer = Tracer {
            code: std::fs::read(&program)?,
            name: program.file_name().context("a file")?.into(),
            functions,
            bases: HashMap::new(),
            called: Vec::new(),
        };
        let code = tracer.follow(main)?;
        ensure!(code == 0, "the containers could not be started ({code})");
        Ok(script(&tracer.called, &tracer.functions))
    }

    /// Enough for busybox.
    const CALLS: [&str; 26] = [
        "arch_prctl",
        "brk",
        "capget",
        "capset",
        "chdir",
        "close",
        "close_range",
        "execve",
        "exit",
        "exit_group",
        "fcntl",
        "fstat",
        "getcwd",
        "getpid",
        "getrandom",
        "mmap",
        "mprotect",
        "newfstatat",
        "prctl",
        "prlimit64",
        "read",
        "readlink",
        "set_robust_list",
        "set_tid_address",
        "setgroups",
        "write",
    ];

    /// The functions of a program by their place in the file; several names can have the same.
    fn functions(program: &Path) -> anyhow::Result<BTreeMap<u64, Vec<String>>> {
        let listed = Command::new("nm")
            .arg("--defined-only")
            .arg(program)
            .output();
        let listed = String::from_utf8(listed.context("run nm (package binutils)")?.stdout)?;
        let mut functions = BTreeMap::<_, Vec<_>>::new();
        for line in listed.lines() {
            if let [place, "t" | "T", name] = line.split(' ').collect::<Vec<_>>()[..] {
                let place = u64::from_str_radix(place, 16)?;
                functions.entry(place).or_default().push(name.to_owned());
            }
        }
        ensure!(
            !functions.is_empty(),
            "{} has no symbols",
            program.display()
        );
        Ok(functions)
    }

    struct Tracer {
        /// The file; its parts lie in memory as they lie in it.
        code: Vec<u8>,
        /// Its name, which it has in all its mounts.
        name: PathBuf,
        functions: BTreeMap<u64, Vec<String>>,
        /// Where a process has the program.
        bases: HashMap<Pid, u64>,
        /// What was called, in order.
        called: Vec<String>,
    }

    impl Tracer {
        /// Follows all processes until the first one ends; gives how it ended.
        fn follow(&mut self, main: Pid) -> anyhow::Result<i32> {
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
                    WaitStatus::PtraceEvent(pid, _, event) => {
                        if event == libc::PTRACE_EVENT_EXEC {
                            self.executed(pid)?;
                        }
                        (pid, None)
                    }
                    WaitStatus::Stopped(pid, Signal::SIGTRAP) => {
                        self.reached(pid)?;
                        (pid, None)
                    }
                    WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                    _ => continue,
                };
                match ptrace::cont(pid, signal) {
                    // Killed in the meantime.
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno).context("go on"),
                }
            }
        }

        /// Puts a breakpoint on each function of a process that has just become the program.
        fn executed(&mut self, pid: Pid) -> anyhow::Result<()> {
            self.bases.remove(&pid);
            let Some(base) = self.base(pid)? else {
                return Ok(());
            };
            let memory = memory(pid)?;
            for place in self.functions.keys() {
                memory.write_at(&[BREAKPOINT], base + place)?;
            }
            Ok(())
        }

        /// Takes a breakpoint that was reached away, and notes it.
        fn reached(&mut self, pid: Pid) -> anyhow::Result<()> {
            let base = self.base(pid)?.context("a trap elsewhere")?;
            let mut registers = ptrace::getregs(pid)?;
            registers.rip -= 1;
            let place = registers.rip - base;
            let names = self.functions.get(&place).context("a trap of another's")?;
            for name in names {
                if !self.called.contains(name) {
                    self.called.push(name.clone());
                }
            }
            let original = self.code[usize::try_from(place)?];
            memory(pid)?.write_at(&[original], registers.rip)?;
            Ok(ptrace::setregs(pid, registers)?)
        }

        /// Where a process has the program, if it has.
        fn base(&mut self, pid: Pid) -> anyhow::Result<Option<u64>> {
            if let Some(base) = self.bases.get(&pid) {
                return Ok(Some(*base));
            }
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
            let first = maps
                .lines()
                .find(|line| Path::new(line).file_name() == Some(self.name.as_os_str()));
            let Some((base, _)) = first.and_then(|line| line.split_once('-')) else {
                return Ok(None);
            };
            let base = u64::from_str_radix(base, 16)?;
            self.bases.insert(pid, base);
            Ok(Some(base))
        }
    }

    fn memory(pid: Pid) -> anyhow::Result<std::fs::File> {
        let path = format!("/proc/{pid}/mem");
        OpenOptions::new().write(true).open(&path).context(path)
    }

    /// The linker script. Each function has a section of its own; those that share a pattern with others that were not
    /// called come last.
    fn script(called: &[String], all: &BTreeMap<u64, Vec<String>>) -> String {
        let mut uncalled: HashSet<_> = all.values().flatten().collect();
        uncalled.retain(|name| !called.contains(name));
        let mixed: HashSet<_> = uncalled.into_iter().map(|name| pattern(name)).collect();
        let mut seen = HashSet::new();
        let patterns = called.iter().map(|name| pattern(name));
        let (last, first): (Vec<_>, Vec<_>) = patterns
            .filter(|pattern| seen.insert(pattern.clone()))
            .partition(|pattern| mixed.contains(pattern));
        let mut text = "/* What the start of a container calls, in the order of the first call; made by hack/order.sh. */\n\
            SECTIONS { .text.hot : {\n"
            .to_owned();
        for file in ASSEMBLED {
            text += &format!("{file}(.text)\n");
        }
        for pattern in first.iter().chain(&last) {
            // Those that the compiler takes to be cold, such as the growth of a vector, have sections called otherwise.
            text += &format!("*(.text.{pattern} .text.unlikely.{pattern})\n");
        }
        text + "} }\nINSERT BEFORE .text;\n"
    }

    /// A symbol without what the next build changes of it: the hash at the end of an older symbol, those of the crates in a
    /// newer one (`Cs…_`), and what the optimizer adds.
    fn pattern(name: &str) -> String {
        let name = name.split(".llvm.").next().unwrap_or(name);
        // The number of one that was there twice.
        if let Some((name, number)) = name.rsplit_once('.')
            && number.bytes().all(|byte| byte.is_ascii_digit())
        {
            return format!("{}.*", pattern(name));
        }
        if let Some(hash) = name.rfind("17h").filter(|_| name.starts_with("_ZN")) {
            return format!("{}17h*", &name[..hash]);
        }
        if !name.starts_with("_R") {
            return name.to_owned();
        }
        let mut parts = name.split("Cs");
        let mut pattern = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (hash, rest) = part.split_once('_').unwrap_or(("", part));
            let is_hash = (8..=13).contains(&hash.len())
                && hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
            pattern.push_str("Cs");
            pattern.push_str(if is_hash { "*_" } else { hash });
            if !is_hash && part.contains('_') {
                pattern.push('_');
            }
            pattern.push_str(rest);
        }
        pattern
    }
}
