//! The table of known differences, and what is new or gone against it.
//!
//! The table is in `docs/libcontainer.md`, for people: every row there whose first cell is code.
//! Its first three cells are a pattern for the key and one for each side's value, in which `*` stands
//! for any text; the last says why. So there is one list, and it cannot fall behind the tests.

use std::collections::BTreeSet;

use super::Difference;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    key: String,
    ours: String,
    theirs: String,
}

/// The rows of a document.
#[must_use]
pub fn rows(document: &str) -> Vec<Row> {
    document.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row> {
    let line = line.strip_prefix("| `")?.replace("\\|", "\u{0}");
    let mut cells = line.split('|').map(|cell| {
        let cell = cell.trim().trim_matches('`');
        cell.replace('\u{0}', "|")
    });
    Some(Row {
        key: cells.next()?,
        ours: cells.next()?,
        theirs: cells.next()?,
    })
}

impl Row {
    /// Says whether this row is about `difference`.
    #[must_use]
    pub fn explains(&self, difference: &Difference) -> bool {
        matches(&self.key, &difference.key)
            && matches(&self.ours, &difference.ours)
            && matches(&self.theirs, &difference.theirs)
    }
}

/// What is wrong: differences that no row explains, and rows that explain none. Of differences that
/// are the same but for the case, the first is named, with the number of the others.
#[must_use]
pub fn check(rows: &[Row], found: &[Difference]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut told = BTreeSet::new();
    let new: Vec<_> = found
        .iter()
        .filter(|it| !rows.iter().any(|row| row.explains(it)))
        .collect();
    for it in &new {
        let what = |it: &Difference| (it.key.clone(), it.ours.clone(), it.theirs.clone());
        if told.insert(what(it)) {
            let more = new.iter().filter(|other| what(other) == what(it)).count() - 1;
            let [key, ours, theirs] =
                [&it.key, &it.ours, &it.theirs].map(|text| text.replace('|', "\\|"));
            let case = &it.case;
            wrong.push(format!(
                "not explained: | `{key}` | `{ours}` | `{theirs}` | ({case} and {more} more)"
            ));
        }
    }
    for row in rows {
        if !found.iter().any(|it| row.explains(it)) {
            let Row { key, ours, theirs } = row;
            wrong.push(format!(
                "explained, but gone: | `{key}` | `{ours}` | `{theirs}` |"
            ));
        }
    }
    wrong
}

/// Says whether `text` is `pattern`, in which `*` stands for any text, also none.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(place) => rest = &rest[place + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(key: &str, ours: &str, theirs: &str) -> Difference {
        Difference {
            key: key.into(),
            ours: ours.into(),
            theirs: theirs.into(),
            case: "it".into(),
        }
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("ab*b", "ab", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn rows_come_out_of_a_table() {
        let text = "# Title\n| key | qrun |\n|---|---|\n| `a.*` | `1\\|2` | `—` | because |\n";
        let rows = rows(text);
        assert_eq!(rows.len(), 1);
        assert!(rows[0].explains(&difference("a.b", "1|2", "—")));
        assert!(!rows[0].explains(&difference("a.b", "1|2", "3")));
    }

    #[test]
    fn new_and_gone_differences_are_told() {
        let rows = rows("| `a` | `1` | `2` | because |\n| `b` | `1` | `2` | because |\n");
        let found = [difference("a", "1", "2"), difference("c", "1", "2")];
        assert_eq!(
            check(&rows, &found),
            [
                "not explained: | `c` | `1` | `2` | (it and 0 more)",
                "explained, but gone: | `b` | `1` | `2` |",
            ]
        );
    }
}
