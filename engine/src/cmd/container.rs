//! `container`: docker's longer names for the commands on containers, and `container prune`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use qengine::container::prune::prune;

use super::images::human_size;
use super::{
    Context, attach, commit, confirm, create, exec, inspect, kill, logs, pause, ps, rename, rm,
    run, start, stats, stop, top, update, wait,
};
use crate::output::say;

/// Manage containers
#[derive(Debug, Args)]
pub(crate) struct Container {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Run>),
    Create(Box<create::Create>),
    Start(start::Start),
    Stop(stop::Stop),
    Restart(stop::Restart),
    Kill(kill::Kill),
    Rm(rm::Rm),
    #[command(visible_aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Logs(logs::Logs),
    Exec(exec::Exec),
    Attach(attach::Attach),
    Inspect(inspect::Inspect),
    Wait(wait::Wait),
    Commit(commit::Commit),
    Pause(pause::Pause),
    Unpause(pause::Unpause),
    Rename(rename::Rename),
    Update(update::Update),
    Stats(stats::Stats),
    Top(top::Top),
    Prune(Prune),
}

impl Container {
    /// Whether it is `container run`, whose own failures have an exit code of their own.
    pub(crate) fn is_run(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }

    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Run(command) => command.run(context),
            Command::Create(command) => command.run(context),
            Command::Start(command) => command.run(context),
            Command::Stop(command) => command.run(context),
            Command::Restart(command) => command.run(context),
            Command::Kill(command) => command.run(context),
            Command::Rm(command) => command.run(context),
            Command::Ls(command) => command.run(context),
            Command::Logs(command) => command.run(context),
            Command::Exec(command) => command.run(context),
            Command::Attach(command) => command.run(context),
            Command::Inspect(command) => command.run(context),
            Command::Wait(command) => command.run(context),
            Command::Commit(command) => command.run(context),
            Command::Pause(command) => command.run(context),
            Command::Unpause(command) => command.run(context),
            Command::Rename(command) => command.run(context),
            Command::Update(command) => command.run(context),
            Command::Stats(command) => command.run(context),
            Command::Top(command) => command.run(context),
            Command::Prune(command) => command.run(context),
        }
    }
}

/// Remove all containers that do not run
#[derive(Debug, Args)]
struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those: until=TIME (made before), label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Prune {
    fn run(self, context: &Context) -> Result<ExitCode> {
        if !self.force && !confirm("This will remove all stopped containers.")? {
            return Ok(ExitCode::SUCCESS);
        }
        let pruned = prune(&context.store, &context.programs, &self.filter)?;
        if !pruned.is_empty() {
            say(format_args!("Deleted Containers:"))?;
            for container in &pruned {
                say(format_args!("{}", container.id))?;
            }
            say(format_args!(""))?;
        }
        let size = pruned.iter().map(|container| container.size).sum();
        say(format_args!("Total reclaimed space: {}", human_size(size)))?;
        Ok(ExitCode::SUCCESS)
    }
}
