//! `pause` and `unpause`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use qengine::container::find::Handle;
use qengine::container::pause::{pause, unpause};
use qengine::container::{self, Live, Programs};
use qengine::store::Store;

use super::{Context, all_that_are, for_each};

/// Freeze all processes of one or more containers
#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    which: Which,
}

/// Let frozen containers go on
#[derive(Debug, Args)]
pub(crate) struct Unpause {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
struct Which {
    /// All containers for which it makes sense
    #[arg(short, long)]
    all: bool,
    /// Names or ids
    #[arg(
        required_unless_present = "all",
        conflicts_with = "all",
        value_name = "CONTAINER"
    )]
    containers: Vec<String>,
}

impl Which {
    fn each(
        &self,
        context: &Context,
        kind: Live,
        change: fn(&Store, &Programs, &Handle) -> container::Result<()>,
    ) -> Result<ExitCode> {
        let all = if self.all {
            all_that_are(context, |live| live == kind)?
        } else {
            Vec::new()
        };
        for_each(if self.all { &all } else { &self.containers }, |name| {
            let handle = Handle::find(&context.store, name)?;
            change(&context.store, &context.programs, &handle)?;
            Ok(name.to_owned())
        })
    }
}

impl Pause {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        self.which.each(context, Live::Running, pause)
    }
}

impl Unpause {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        self.which.each(context, Live::Paused, unpause)
    }
}
