//! The same bundles run by `qrun` and by another runtime, and what differs in what the process and
//! the host see of them.
//!
//! The other one is youki's `libcontainer` (`src/bin/libcontainer_run.rs`), or any program with
//! runc's command line: `QSTACK_ORACLE=runc`. A difference has to be explained by a row of the table
//! in `docs/libcontainer.md`, and a row has to explain one: see [`explained`].
//!
//! Error texts are not compared beyond what a row says of them, nor is what differs from one run to the
//! next: ids, device numbers of mounts, times, counters.

pub mod contestant;
pub mod explained;
pub mod generate;
pub mod host_view;
pub mod sight;

use std::path::PathBuf;

use serde_json::Value;

use crate::bundle;
use crate::programs::{built, target};
pub use contestant::Contestant;
pub use sight::Sight;

/// One bundle.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is called in reports; a part of the container's id.
    pub name: String,
    /// Its `config.json`, in whose strings `@bundle@` stands for the bundle's directory and `@pid@` for a
    /// process with namespaces of its own.
    pub config: Value,
}

impl Case {
    /// Makes a case.
    #[must_use]
    pub fn new(name: &str, config: Value) -> Self {
        Self {
            name: name.to_owned(),
            config,
        }
    }

    /// Sets the value at a JSON pointer, whose parent must be there; `-` appends to a list.
    ///
    /// # Panics
    /// When the parent is not there.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        bundle::set(&mut self.config, pointer, value);
        self
    }
}

/// Keys of what became of the container, whether it ran or not.
const OUTCOME: [&str; 3] = ["create", "start", "probe"];

/// Something that is not the same under both runtimes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// What: a key of [`Sight`].
    pub key: String,
    /// Under `qrun`; `—` when it is not there.
    pub ours: String,
    /// Under the other one.
    pub theirs: String,
    /// The case it was seen in.
    pub case: String,
}

/// Says whether the probe came to tell what it saw.
#[must_use]
pub fn ran(sight: &Sight) -> bool {
    sight.contains_key("status.Umask")
}

/// What is not the same in two views of one case. Where only one of them has a container, that is all
/// there is to compare.
#[must_use]
pub fn differences(case: &str, ours: &Sight, theirs: &Sight) -> Vec<Difference> {
    let comparable = ran(ours) && ran(theirs);
    let mut keys: Vec<_> = ours.keys().chain(theirs.keys()).collect();
    keys.sort();
    keys.dedup();
    // Each is responsible for what it leaves itself.
    keys.retain(|key| !key.starts_with("left "));
    keys.retain(|key| comparable || OUTCOME.contains(&key.as_str()));
    let of = |sight: &Sight, key: &str| sight.get(key).map_or("—".to_owned(), Clone::clone);
    keys.into_iter()
        .map(|key| Difference {
            key: key.clone(),
            ours: of(ours, key),
            theirs: of(theirs, key),
            case: case.to_owned(),
        })
        .filter(|it| it.ours != it.theirs)
        // Each in its own words.
        .filter(|it| !(it.ours.starts_with("refused") && it.theirs.starts_with("refused")))
        .collect()
}

/// The other runtime.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn oracle() -> PathBuf {
    if let Some(program) = std::env::var_os("QSTACK_ORACLE") {
        return program.into();
    }
    let program = target().join("debug/libcontainer-run");
    assert!(
        program.is_file(),
        "{} is not built: cargo build -p stack-tests --features libcontainer --bin libcontainer-run",
        program.display()
    );
    program
}

/// The runtime under test.
#[must_use]
pub fn subject() -> PathBuf {
    built("qrun")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_on_one_side_differs() {
        let sight = |members: &[(&str, &str)]| -> Sight {
            let members = members.iter().chain(&[("status.Umask", "0022")]);
            let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            members.map(text).collect()
        };
        let (ours, theirs) = (sight(&[("a", "1"), ("b", "2")]), sight(&[("b", "3")]));
        let found = differences("it", &ours, &theirs);
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.key.as_str(), it.ours.as_str(), it.theirs.as_str()))
            .collect();
        assert_eq!(found, [("a", "1", "—"), ("b", "2", "3")]);
    }

    #[test]
    fn a_refusal_is_the_only_difference() {
        let ours = Sight::from([("create".to_owned(), "works".to_owned())]);
        let no = Sight::from([("create".to_owned(), "refused: no".to_owned())]);
        let never = Sight::from([("create".to_owned(), "refused: never".to_owned())]);
        assert_eq!(differences("it", &ours, &no).len(), 1);
        assert_eq!(differences("it", &never, &no), []);
    }
}
