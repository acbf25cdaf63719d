//! What the `prune` commands share: the question, the filters, and what is removed.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use jiff::Timestamp;
use qengine::container::prune::prune;
use qengine::container::volumes::users;
use qengine::store::Store;
use qengine::{network, volume};

use super::Context;
use super::images::human_size;
use crate::flags::time;
use crate::output::say;

/// Remove all containers that do not run
#[derive(Debug, Args)]
pub(crate) struct Containers {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only those that fit: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Containers {
    pub(crate) fn run(self, context: &Context) -> Result<ExitCode> {
        if !self.force && !confirm(&["all stopped containers"])? {
            return Ok(ExitCode::SUCCESS);
        }
        let freed = containers(context, &self.filter)?;
        say(format_args!("Total reclaimed space: {}", human_size(freed)))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks before things are removed. The answer comes from standard input, terminal or not; its end is a no.
pub(super) fn confirm(doomed: &[&str]) -> Result<bool> {
    let mut out = std::io::stdout();
    if let [one] = doomed {
        writeln!(out, "WARNING! This will remove {one}.")?;
    } else {
        writeln!(out, "WARNING! This will remove:")?;
        for line in doomed {
            writeln!(out, "  - {line}")?;
        }
        writeln!(out)?;
    }
    write!(out, "Are you sure you want to continue? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if !answer.ends_with('\n') {
        writeln!(out)?;
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Which of the unused things are meant.
#[derive(Debug, Default)]
pub(super) struct Filter {
    until: Option<Timestamp>,
    /// Key, value if one was given, and whether it has to be there.
    labels: Vec<(String, Option<String>, bool)>,
}

impl Filter {
    pub(super) fn parse(words: &[String]) -> Result<Filter> {
        let mut filter = Filter::default();
        for word in words {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key.trim(), value.trim()),
                None => bail!("invalid filter {word:?}: expected KEY=VALUE"),
            };
            match key {
                "until" => filter.until = Some(time::parse(value)?),
                "label" | "label!" => {
                    let (label, wanted) = match value.split_once('=') {
                        Some((label, wanted)) => (label, Some(wanted.to_owned())),
                        None => (value, None),
                    };
                    filter
                        .labels
                        .push((label.to_owned(), wanted, key == "label"));
                }
                _ => bail!("unknown filter {key:?}: there are until, label and label!"),
            }
        }
        Ok(filter)
    }

    /// Whether a thing of that age and with those labels is meant.
    pub(super) fn accepts(
        &self,
        created: Option<Timestamp>,
        labels: &BTreeMap<String, String>,
    ) -> bool {
        let old_enough = self
            .until
            .is_none_or(|until| created.is_some_and(|created| created < until));
        old_enough
            && self.labels.iter().all(|(key, value, wanted)| {
                let have = labels.get(key);
                let fits =
                    have.is_some_and(|have| value.as_ref().is_none_or(|value| value == have));
                fits == *wanted
            })
    }
}

/// Removes containers that do not run; returns the bytes they held.
pub(super) fn containers(context: &Context, filters: &[String]) -> Result<u64> {
    let mut heading = Some("Deleted Containers:");
    let mut freed = 0;
    for container in prune(&context.store, &context.programs, filters)? {
        headed(&mut heading, &container.id)?;
        freed += container.size;
    }
    end(&heading)?;
    Ok(freed)
}

/// Removes networks that no container is on.
pub(super) fn networks(store: &Store, filter: &Filter) -> Result<()> {
    network::collect(store)?;
    let mut heading = Some("Deleted Networks:");
    for network in network::list(store)? {
        if network.is_predefined() || !filter.accepts(Some(network.created), &network.labels) {
            continue;
        }
        match network::remove(store, &network.name) {
            Ok(network) => headed(&mut heading, &network.name)?,
            // In use, or gone in this very moment.
            Err(network::Error::InUse { .. } | network::Error::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    end(&heading)
}

/// Removes anonymous volumes that no container mentions; returns the bytes they held.
pub(super) fn volumes(store: &Store, filter: &Filter) -> Result<u64> {
    let chosen = |volume: &volume::Volume| {
        volume.anonymous && filter.accepts(Some(volume.created), &volume.shown_labels())
    };
    let mut freed = 0;
    let mut heading = Some("Deleted Volumes:");
    for (volume, bytes) in volume::prune(store, &chosen, &|name| users(store, name))? {
        headed(&mut heading, &volume.name)?;
        freed += bytes;
    }
    end(&heading)?;
    Ok(freed)
}

/// Prints a line, the first one below its heading.
pub(super) fn headed(heading: &mut Option<&str>, line: &str) -> Result<()> {
    if let Some(heading) = heading.take() {
        say(format_args!("{heading}"))?;
    }
    Ok(say(format_args!("{line}"))?)
}

/// An empty line, when there was a heading.
pub(super) fn end(heading: &Option<&str>) -> Result<()> {
    match heading {
        None => Ok(say(format_args!(""))?),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_by_age_and_label() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let created = Some(Timestamp::UNIX_EPOCH);
        for (filter, accepts) in [
            ("label=a", true),
            ("label=a=1", true),
            ("label=a=2", false),
            ("label!=a", false),
            ("label!=b", true),
            ("until=1h", true),
            ("until=1960-01-01T00:00:00Z", false),
            ("until=1h label=b", false),
        ] {
            let parsed = Filter::parse(&words(filter)).unwrap();
            assert_eq!(parsed.accepts(created, &labels), accepts, "{filter}");
        }
        for bad in ["colour=red", "until", "until=x"] {
            assert!(Filter::parse(&words(bad)).is_err(), "{bad}");
        }
    }
}
