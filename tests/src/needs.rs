//! What a test needs of the machine, and the harness that skips it, visibly, where that is missing.

use std::path::Path;
use std::sync::OnceLock;

use libtest_mimic::{Arguments, Trial};

use crate::programs::on_path;

/// One thing a test cannot run without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The right to do what a container runtime does.
    Root,
    /// A host with controllers on cgroup v1.
    Cgroup1,
    /// A host with all controllers on cgroup v2.
    Cgroup2,
    /// AppArmor, switched on in the kernel.
    AppArmor,
    /// systemd as process 1, which makes cgroups for others.
    Systemd,
    /// The machine itself, not the virtual machine: disk space, time, or a server.
    Host,
    /// A program of the machine.
    Program(&'static str),
    /// Tests built for a target on which `fail-call` can change what a traced process is told.
    Tracer,
    /// criu 4 or newer, on a kernel that it can work on.
    Criu,
}

impl Need {
    /// Why the need is not met here; `None` when it is.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        match self {
            Self::Root if !nix::unistd::Uid::effective().is_root() => Some("not root".into()),
            Self::Cgroup1 if v2 => Some("no controllers on cgroup v1".into()),
            Self::Cgroup2 if !v2 => Some("no controllers on cgroup v2".into()),
            Self::AppArmor if !is_apparmor_on() => Some("no AppArmor in the kernel".into()),
            Self::Systemd if !Path::new("/run/systemd/system").is_dir() => {
                Some("process 1 is not systemd".into())
            }
            Self::Host if in_vm() => Some("not in the virtual machine".into()),
            Self::Tracer if !cfg!(all(target_arch = "x86_64", target_env = "gnu")) => {
                Some("registers are only known for x86-64 with glibc".into())
            }
            Self::Criu => CRIU.get_or_init(criu_missing).clone(),
            Self::Program(name) if on_path(name).is_none() => Some(format!("no program {name}")),
            _ => None,
        }
    }
}

fn is_apparmor_on() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|answer| answer.starts_with('Y'))
}

/// What [`criu_missing`] found: `criu check` takes a while.
static CRIU: OnceLock<Option<String>> = OnceLock::new();

/// Why there is no criu that works here.
fn criu_missing() -> Option<String> {
    let ask = |argument: &str| std::process::Command::new("criu").arg(argument).output();
    let Ok(answer) = ask("--version") else {
        return Some("no program criu".into());
    };
    let text = String::from_utf8_lossy(&answer.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    match major {
        Some(4..) => {}
        Some(_) => return Some(format!("criu {} is older than 4", version.unwrap_or("?"))),
        None => return Some("criu does not tell its version".into()),
    }
    match ask("check") {
        Ok(checked) if checked.status.success() => None,
        _ => Some("criu check fails".into()),
    }
}

/// Says whether this is the virtual machine of `hack/vm-systemd.sh`.
#[must_use]
pub fn in_systemd_vm() -> bool {
    std::env::var_os("QSTACK_VM").is_some_and(|machine| machine == "systemd")
}

/// Says whether this is the virtual machine of `hack/vm.sh` or `hack/vm-systemd.sh`.
#[must_use]
pub fn in_vm() -> bool {
    std::env::var_os("QSTACK_VM").is_some()
}

/// A test: a name, what it needs, and what it does.
#[derive(Debug)]
pub struct Test {
    /// `module::what_holds`.
    pub name: String,
    /// All of these, or it is skipped.
    pub needs: &'static [Need],
    /// Panics when what it tests does not hold.
    pub body: Body,
}

/// What a test does.
pub enum Body {
    /// A function of its own.
    Function(fn()),
    /// One line of a table; see [`crate::case`].
    Case(crate::case::Case),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Body")
    }
}

impl Test {
    /// Why this test is skipped here; `None` when it is not.
    fn skipped(&self) -> Option<String> {
        self.needs.iter().find_map(|need| need.missing())
    }
}

/// Makes the tests of one module: `tests!("module", [needs], function, …)`.
#[macro_export]
macro_rules! tests {
    ($module:literal, $needs:expr, [$($function:ident),* $(,)?]) => {
        vec![$($crate::needs::Test {
            name: concat!($module, "::", stringify!($function)).to_owned(),
            needs: $needs,
            body: $crate::needs::Body::Function($function),
        }),*]
    };
}

/// Runs `tests` as the command line (cargo's, nextest's) says, and in the virtual machine only those
/// that `in_machine` chooses by name. `--skips` as the only argument prints what would be
/// skipped, with the reason.
///
/// A skipped test shows as ignored, so that nextest counts it.
#[must_use]
pub fn main(mut tests: Vec<Test>, in_machine: fn(&str) -> bool) -> std::process::ExitCode {
    if in_vm() {
        tests.retain(|test| in_machine(&test.name));
    }
    if std::env::args().nth(1).as_deref() == Some("--skips") {
        return print_skips(&tests);
    }
    let arguments = Arguments::from_args();
    // Before it is found out what is missing, which takes long for some: nextest starts a process for each test.
    tests.retain(|test| match &arguments.filter {
        Some(name) if arguments.exact => test.name == *name,
        Some(part) => test.name.contains(part),
        None => true,
    });
    let trials = tests.into_iter().map(|test| {
        let skipped = test.skipped().is_some();
        let body = test.body;
        Trial::test(test.name, move || on_own_thread(body)).with_ignored_flag(skipped)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Runs a test on a thread that ends with it: a test may move its thread into another namespace.
fn on_own_thread(body: Body) -> Result<(), libtest_mimic::Failed> {
    let thread = std::thread::spawn(move || match body {
        Body::Function(function) => function(),
        Body::Case(case) => case.run(),
    });
    match thread.join() {
        Ok(()) => Ok(()),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[expect(clippy::print_stdout, reason = "the answer to --skips")]
fn print_skips(tests: &[Test]) -> std::process::ExitCode {
    for test in tests {
        if let Some(reason) = test.skipped() {
            println!("{}: {reason}", test.name);
        }
    }
    std::process::ExitCode::SUCCESS
}
