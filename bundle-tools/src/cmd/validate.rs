//! `qbundle validate`: what is wrong with a bundle, one finding a line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bundle_tools::validate::{Severity, validate};

#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// The bundle's directory
    #[arg(value_name = "BUNDLE", default_value = ".")]
    bundle: PathBuf,
}

/// Exit code 1 when a runtime would refuse the bundle; warnings alone are 0.
pub(crate) fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let problems = validate(&flags.bundle);
    let mut out = std::io::stdout().lock();
    for problem in &problems {
        writeln!(out, "{problem}")?;
    }
    let errors = problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    Ok(if errors {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
