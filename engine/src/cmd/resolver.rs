//! `resolver`: the process that resolves the names of one network. Started by whoever connects the first container; not
//! for people.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use qengine::network::names;
use qengine::store::Store;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::output::say;

/// More than the questions and connections that are allowed at once need.
const FILES: u64 = 4096;

/// Resolve the names of a network for as long as containers are on it
#[derive(Debug, Args)]
pub(crate) struct Resolver {
    /// Whole id
    network: String,
}

impl Resolver {
    pub(crate) fn run(self, store: &Store) -> Result<ExitCode> {
        let resolver = detach().and_then(|()| Ok(names::Resolver::new(store, &self.network)?));
        match resolver {
            Ok(Some(resolver)) => {
                let served = resolver.run(|| drop(tell(names::READY)));
                // Before it served there was somebody to hear of it; afterwards nobody is.
                served
                    .map_err(anyhow::Error::from)
                    .inspect_err(|error| drop(tell(&super::describe(error))))?;
            }
            // Somebody was faster, and serves.
            Ok(None) => tell(names::READY)?,
            Err(error) => {
                tell(&super::describe(&error))?;
                return Err(error);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Leaves everything of whoever started us behind: session, cgroup, working directory, open files.
fn detach() -> Result<()> {
    super::background::leave_caller();
    std::env::set_current_dir("/").context("cannot go to /")?;
    let open = std::fs::read_dir("/proc/self/fd").context("cannot list open files")?;
    let numbers: Vec<i32> = open
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The one that listed them is among them, and is closed already.
        let _ = nix::unistd::close(number);
    }
    // Each question that is passed on has sockets of its own.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit
        .maximum
        .map_or(Some(FILES), |most| Some(most.min(FILES)));
    setrlimit(Resource::Nofile, limit).context("cannot raise the number of open files")
}

/// Says one word to whoever started us, and lets go of the pipe: the end of it is the end of the message.
fn tell(text: &str) -> Result<()> {
    say(format_args!("{}", text.trim_end()))?;
    let null = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(null)?;
    Ok(())
}
