//! The definition of the command line: all of it, or the one command that was typed.
//!
//! All of it is some hundred commands and takes clap longer to build than most of them take to do their work; a `run`
//! would pay for it twice, since its end is `cleanup`. So the commands of daily life are defined alone when they are
//! typed. Whatever is not in the list below, help among it, gets the whole definition.

use std::ffi::OsString;

use clap::{Args, Command, CommandFactory};

use super::{
    Cli, Global, cleanup, create, exec, images, inspect, kill, logs, ps, resolver, rm, run, start,
    stop, wait,
};

/// The definition that these words need.
pub(crate) fn definition(words: &[OsString]) -> Command {
    first_command(words)
        .and_then(alone)
        .unwrap_or_else(Cli::command)
}

/// The first word that is neither a global flag nor the value of one; `None` if anything else comes before.
fn first_command(words: &[OsString]) -> Option<&str> {
    let mut words = words.iter().skip(1);
    loop {
        let word = words.next()?.to_str()?;
        match word {
            "--root" | "--run-root" => drop(words.next()),
            _ if word.starts_with("--root=") || word.starts_with("--run-root=") => {}
            _ => return Some(word),
        }
    }
}

/// Adds a command's flags and what is said about it.
type AddFlags = fn(Command) -> Command;

/// Commands that are worth it.
const DAILY: [(&str, AddFlags); 15] = [
    ("run", run::Run::augment_args),
    ("create", create::Create::augment_args),
    ("start", start::Start::augment_args),
    ("stop", stop::Stop::augment_args),
    ("restart", stop::Restart::augment_args),
    ("kill", kill::Kill::augment_args),
    ("rm", rm::Rm::augment_args),
    ("ps", ps::Ps::augment_args),
    ("logs", logs::Logs::augment_args),
    ("exec", exec::Exec::augment_args),
    ("wait", wait::Wait::augment_args),
    ("inspect", inspect::Inspect::augment_args),
    ("images", images::Images::augment_args),
    ("cleanup", cleanup::Cleanup::augment_args),
    ("resolver", resolver::Resolver::augment_args),
];

/// One command and the global flags, by the same parts as the whole definition.
fn alone(typed: &str) -> Option<Command> {
    let (name, add_flags) = *DAILY.iter().find(|(name, _)| *name == typed)?;
    let program = Command::new("qengine")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .max_term_width(120);
    let command = add_flags(Command::new(name));
    Some(Global::augment_args(program).subcommand(command))
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_command_alone_means_what_it_means_among_all() {
        for line in [
            "qengine run -d --name bird -p 80:80 -- base sleep 5",
            "qengine --root /x --run-root=/y ps -a --filter name=b",
            "qengine exec -it --workdir /tmp -- bird sh",
            "qengine cleanup abc",
            "qengine --root /x cleanup abc",
            "qengine inspect --type container bird",
        ] {
            let parsed = |definition: Command| {
                let matches = definition.try_get_matches_from(words(line)).unwrap();
                format!("{:?}", Cli::from_arg_matches(&matches).unwrap())
            };
            let alone = definition(&words(line));
            assert_eq!(alone.get_subcommands().count(), 1, "{line}");
            assert_eq!(parsed(alone), parsed(Cli::command()), "{line}");
        }
    }

    #[test]
    fn anything_else_gets_the_whole() {
        for line in [
            "qengine",
            "qengine --help",
            "qengine remove x",
            "qengine -x run",
        ] {
            assert!(
                definition(&words(line)).get_subcommands().count() > 1,
                "{line}"
            );
        }
    }
}
