//! Runs a program as on a kernel that lacks some system calls: `without-calls NAME,… PROGRAM ARG…`.
//!
//! A seccomp filter answers ENOSYS to each of them, for the program and for whatever it starts. To install one without
//! privileges takes `no_new_privs`, which the program has, too.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use stack_tests::calls::NUMBERS;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(names), Some(program)) = (arguments.next(), arguments.next()) else {
        bail!("usage: without-calls NAME,… PROGRAM ARG…");
    };
    let mut rules = BTreeMap::new();
    for name in names.to_string_lossy().split(',') {
        let known = NUMBERS.iter().find(|(known, _)| *known == name);
        let (_, number) = known.with_context(|| format!("no such system call here: {name}"))?;
        rules.insert(*number, Vec::new());
    }
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, architecture)?;
    let filter: BpfProgram = filter.try_into()?;
    apply_filter(&filter).context("install the filter")?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("execute {}", program.display()))
}
