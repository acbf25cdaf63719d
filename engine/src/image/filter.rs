//! Which images a listing or a removal is about, by docker's `--filter`.

use jiff::Timestamp;

use super::{Image, Reference};

/// Conditions that all have to hold; of several of one kind one is enough, except for labels.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// With a name (`false`) or without (`true`).
    pub dangling: Option<bool>,
    /// Patterns of names, such as `busy*` or `*/web:1.*`.
    pub references: Vec<String>,
    /// Labels that are there, `NAME` or `NAME=VALUE`.
    pub labels: Vec<String>,
    /// Labels that are not there.
    pub missing_labels: Vec<String>,
    /// Made before that.
    pub before: Option<Timestamp>,
    /// Made after that.
    pub since: Option<Timestamp>,
}

impl Filter {
    /// Whether the image itself is meant, its names aside.
    #[must_use]
    pub fn fits(&self, image: &Image) -> bool {
        let labels = &image.config.config.labels;
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|it| it == value),
            None => labels.contains_key(wanted),
        };
        let created = image.created().unwrap_or(Timestamp::UNIX_EPOCH);
        self.dangling
            .is_none_or(|dangling| dangling == image.names.is_empty())
            && self.labels.iter().all(has)
            && !self.missing_labels.iter().any(has)
            && self.before.is_none_or(|time| created < time)
            && self.since.is_none_or(|time| created > time)
    }

    /// Whether a name of an image is meant.
    #[must_use]
    pub fn fits_name(&self, name: &Reference) -> bool {
        let texts = [
            name.familiar_name(),
            name.familiar(),
            name.name(),
            name.to_string(),
        ];
        let fits = |pattern: &String| texts.iter().any(|text| matches(pattern, text));
        self.references.is_empty() || self.references.iter().any(fits)
    }
}

/// Shell patterns as in Go's `path.Match`: `*` and `?` stop at a slash, `[a-c]`, `[^a]`, `\` takes the next character
/// as it is.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Where to go on after the last star: after it in the pattern, and one character later in the text.
    let mut retry: Option<(usize, usize)> = None;
    let (mut at, mut position) = (0, 0);
    loop {
        if pattern.get(at) == Some(&'*') {
            at += 1;
            retry = Some((at, position));
            continue;
        }
        if at == pattern.len() && position == text.len() {
            return true;
        }
        if let (Some(next), true) = (
            text.get(position)
                .and_then(|&letter| one(&pattern, at, letter)),
            at < pattern.len(),
        ) {
            at = next;
            position += 1;
            continue;
        }
        match retry {
            Some((after, from)) if text.get(from).is_some_and(|&letter| letter != '/') => {
                retry = Some((after, from + 1));
                (at, position) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Matches one character; where the pattern goes on.
fn one(pattern: &[char], at: usize, letter: char) -> Option<usize> {
    match *pattern.get(at)? {
        '?' => (letter != '/').then_some(at + 1),
        '\\' => (*pattern.get(at + 1)? == letter).then_some(at + 2),
        '[' => {
            let mut at = at + 1;
            let negated = pattern.get(at) == Some(&'^');
            at += usize::from(negated);
            let mut found = false;
            let start = at;
            while at == start || *pattern.get(at)? != ']' {
                let first = *pattern.get(at)?;
                let ranged = pattern.get(at + 1) == Some(&'-') && pattern.get(at + 2) != Some(&']');
                let last = if ranged { *pattern.get(at + 2)? } else { first };
                found |= (first..=last).contains(&letter);
                at += if ranged { 3 } else { 1 };
            }
            (found != negated && letter != '/').then_some(at + 1)
        }
        own => (own == letter).then_some(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stop_at_slashes() {
        let cases = [
            ("busy*", "busybox", true),
            ("busy*", "busybox:1", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("*box", "busybox", true),
            ("*b*x*", "busybox", true),
            ("b?sybox", "busybox", true),
            ("[a-c]usybox", "busybox", true),
            ("[^a-c]usybox", "busybox", false),
            ("[]", "a", false),
            ("a\\*", "a*", true),
            ("", "a", false),
            ("", "", true),
            ("a*b", "ac/b", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // No pattern takes for ever.
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39)));
    }

    #[test]
    fn names_are_matched_in_every_form() {
        let name: Reference = "localhost:5000/web:1".parse().unwrap();
        let fits = |pattern: &str| {
            Filter {
                references: vec![pattern.to_owned()],
                ..Filter::default()
            }
            .fits_name(&name)
        };
        assert!(fits("localhost:5000/web") && fits("localhost:5000/web:1") && fits("*/web:*"));
        assert!(!fits("web") && !fits("localhost:5000/web:2"));
        let hub: Reference = "busybox".parse().unwrap();
        let filter = Filter {
            references: vec!["docker.io/library/busy*".to_owned()],
            ..Filter::default()
        };
        assert!(filter.fits_name(&hub));
    }
}
