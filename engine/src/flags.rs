//! What may be typed, and what it means.

use std::collections::BTreeMap;

pub(crate) mod container;
pub(crate) mod endpoint;
mod further;
pub(crate) mod images;
pub(crate) mod limits;
mod mount;
pub(crate) mod normalise;
pub(crate) mod time;
mod volume;
mod words;

pub(crate) use container::ContainerFlags;
pub(crate) use words::Words;

/// `KEY[=VALUE]`, typed any number of times. A key without a value has an empty one; of two with one key the last counts.
pub(crate) fn pairs(entries: &[String]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| entry.split_once('=').unwrap_or((entry, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Says that something typed has no effect, on standard error.
#[expect(clippy::print_stderr, reason = "a warning beside the answer")]
pub(crate) fn warn(text: &str) {
    eprintln!("qengine: warning: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_without_a_value_have_an_empty_one() {
        let found = pairs(&["a=1=2".into(), "b".into(), "a=3".into()]);
        let expected =
            [("a", "3"), ("b", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
    }
}
