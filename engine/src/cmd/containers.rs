//! The commands on containers, which stand for themselves and below `container`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Context, attach, commit, cp, create, diff, exec, export, inspect, kill, logs, pause, port,
    prune, ps, rename, rm, run, start, stats, stop, top, update, wait,
};

/// Everything that is done with a container. One definition serves `qengine X` and `qengine container X`.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    Run(Box<run::Run>),
    Create(Box<create::Create>),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(stop::Restart),
    Kill(kill::Kill),
    Rm(rm::Rm),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Attach(attach::Attach),
    Wait(wait::Wait),
    Commit(commit::Commit),
    Cp(cp::Cp),
    Diff(diff::Diff),
    Export(export::Export),
    Pause(pause::Pause),
    Unpause(pause::Unpause),
    Rename(rename::Rename),
    Update(update::Update),
    Stats(stats::Stats),
    Top(top::Top),
    Port(port::Port),
}

/// Manage containers
#[derive(Debug, Args)]
pub(crate) struct ContainerArgs {
    #[command(subcommand)]
    command: Below,
}

/// The same, and what is called otherwise on its own.
#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one of it in the life of the program"
)]
enum Below {
    #[command(flatten)]
    Same(ContainerCommand),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Inspect(inspect::OfContainers),
    Prune(prune::Containers),
}

impl ContainerCommand {
    /// Whether it is `run`, whose failures have an exit code of their own.
    pub(crate) fn is_run(&self) -> bool {
        matches!(self, ContainerCommand::Run(_))
    }

    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            ContainerCommand::Run(command) => command.run(context),
            ContainerCommand::Create(command) => command.run(context),
            ContainerCommand::Start(command) => command.run(context),
            ContainerCommand::Stop(command) => command.run(context),
            ContainerCommand::Restart(command) => command.run(context),
            ContainerCommand::Kill(command) => command.run(context),
            ContainerCommand::Rm(command) => command.run(context),
            ContainerCommand::Logs(command) => command.run(context),
            ContainerCommand::Exec(command) => command.run(context),
            ContainerCommand::Attach(command) => command.run(context),
            ContainerCommand::Wait(command) => command.run(context),
            ContainerCommand::Commit(command) => command.run(context),
            ContainerCommand::Cp(command) => command.run(context),
            ContainerCommand::Diff(command) => command.run(context),
            ContainerCommand::Export(command) => command.run(&context.store),
            ContainerCommand::Pause(command) => command.run(context),
            ContainerCommand::Unpause(command) => command.run(context),
            ContainerCommand::Rename(command) => command.run(context),
            ContainerCommand::Update(command) => command.run(context),
            ContainerCommand::Stats(command) => command.run(context),
            ContainerCommand::Top(command) => command.run(context),
            ContainerCommand::Port(command) => command.run(&context.store),
        }
    }
}

impl ContainerArgs {
    /// As [`ContainerCommand::is_run`].
    pub(crate) fn is_run(&self) -> bool {
        matches!(&self.command, Below::Same(command) if command.is_run())
    }

    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Below::Same(command) => command.run(context),
            Below::Ls(command) => command.run(context),
            Below::Inspect(command) => command.run(context),
            Below::Prune(command) => command.run(context),
        }
    }
}
