//! `system check`: whether the store is consistent.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::system::check::{self, Finding};

use super::super::images::human_size;
use super::super::{Context, report};
use crate::output::say;

/// Prove that the store, and what the kernel has of it, is consistent
///
/// Looks at every reservation, container, image, layer and blob, and for mounts, cgroups, interfaces, sockets and
/// files that belong to nobody. What a command is at work on is passed over. Exit code 1 when something is wrong.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  qengine system check --quick     without reading the blobs in full
  qengine system check --repair    and put right what can be put right without losing anything")]
pub(super) struct Check {
    /// Put right what can be put right safely
    #[arg(long)]
    repair: bool,
    /// Do not hash the blobs
    #[arg(long)]
    quick: bool,
}

impl Check {
    pub(super) fn run(self, context: &Context) -> Result<ExitCode> {
        let found = check::check(&context.store, !self.quick)?;
        let mut left = 0;
        for finding in &found.findings {
            left += usize::from(!self.settle(context, finding)?);
        }
        let hashed = match self.quick {
            true => "not hashed".to_owned(),
            false => format!("{} hashed", human_size(found.hashed)),
        };
        let looked = format!(
            "{} containers, {} images, {} blobs ({hashed})",
            found.containers, found.images, found.blobs
        );
        match (found.findings.len(), left) {
            (0, _) => say(format_args!("No problems: {looked}"))?,
            (all, 0) => say(format_args!("{all} repaired: {looked}"))?,
            (all, left) => say(format_args!("{left} of {all} problems left: {looked}"))?,
        }
        Ok(match left {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }

    /// Prints a finding, repaired when that was asked for. Returns whether it is settled.
    fn settle(&self, context: &Context, finding: &Finding) -> Result<bool> {
        let Finding {
            subject,
            problem,
            remedy,
        } = finding;
        let (true, Some(remedy)) = (self.repair, remedy) else {
            let note = match remedy {
                Some(_) => " (--repair helps)",
                None => "",
            };
            say(format_args!("{subject}: {problem}{note}"))?;
            return Ok(false);
        };
        match check::repair(&context.store, &context.programs, remedy) {
            Ok(()) => {
                say(format_args!("{subject}: {problem}: repaired"))?;
                Ok(true)
            }
            Err(error) => {
                say(format_args!("{subject}: {problem}"))?;
                report(&error.into());
                Ok(false)
            }
        }
    }
}
