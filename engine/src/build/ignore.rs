//! `.dockerignore`: which files of the context do not exist for the build.
//!
//! Docker's rules: one pattern a line, relative to the context's root whether it starts with a slash or not; `**`
//! stands for any number of directories; `!` takes files back; the last pattern that fits decides; what fits a
//! directory fits everything in it.

use super::pattern;

/// The patterns of an ignore file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// The pattern's components.
    parts: Vec<Vec<u8>>,
    /// `!`
    takes_back: bool,
}

impl Ignore {
    /// Reads an ignore file. There is no text that is wrong.
    #[must_use]
    pub fn parse(text: &str) -> Ignore {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // A comment starts in the first column.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Ignore::of(lines)
    }

    /// Patterns given one by one (`COPY --exclude`).
    pub fn of<'t>(patterns: impl IntoIterator<Item = &'t str>) -> Ignore {
        Ignore {
            rules: patterns.into_iter().filter_map(rule).collect(),
        }
    }

    /// Whether nothing is ignored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a path (relative, without `.` and `..`) is ignored.
    #[must_use]
    pub fn excludes(&self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        let mut excluded = false;
        for rule in &self.rules {
            // Most patterns say what is the case already.
            if excluded == rule.takes_back && rule.fits(&parts) {
                excluded = !rule.takes_back;
            }
        }
        excluded
    }

    /// Whether something below an ignored directory may have been taken back, so that one has to look inside.
    #[must_use]
    pub fn may_take_back(&self) -> bool {
        self.rules.iter().any(|rule| rule.takes_back)
    }
}

fn rule(line: &str) -> Option<Rule> {
    let line = line.trim();
    let (takes_back, text) = match line.strip_prefix('!') {
        Some(rest) => (true, rest.trim()),
        None => (false, line),
    };
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            // Above the root there is nothing.
            ".." => drop(parts.pop()),
            part => parts.push(part.as_bytes().to_vec()),
        }
    }
    (!parts.is_empty()).then_some(Rule { parts, takes_back })
}

impl Rule {
    /// Whether the pattern fits the path or one of the directories it is in.
    fn fits(&self, path: &[&[u8]]) -> bool {
        (1..=path.len()).any(|length| fits(&self.parts, &path[..length]))
    }
}

fn fits(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == b"**" => {
            // At the end it stands for something, not for nothing.
            if rest.is_empty() {
                !path.is_empty()
            } else {
                (0..=path.len()).any(|skipped| fits(rest, &path[skipped..]))
            }
        }
        (Some((first, rest)), Some((name, below))) => {
            pattern::matches_name(first, name) && fits(rest, below)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_rules() {
        let text = "# comment\n*/temp*\n*/*/temp*\ntemp?\n/logs/\n**/*.o\n*.md\n!README*.md\n\
                    README-secret.md\n./a/../b\nnode_modules\n!node_modules/keep\n";
        let ignore = Ignore::parse(text);
        for (path, excluded) in [
            ("somedir/temporary.txt", true),
            ("somedir/temp", true),
            ("somedir/subdir/temporary.txt", true),
            ("tempa", true),
            ("tempab", false),
            ("logs", true),
            ("logs/x/y", true),
            ("x.o", true),
            ("a/b/c/x.o", true),
            ("a/b/c/x.c", false),
            ("NOTES.md", true),
            ("sub/NOTES.md", false),
            ("README.md", false),
            ("README-secret.md", true),
            ("b", true),
            ("# comment", false),
            ("node_modules/x", true),
            ("node_modules/keep/x", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
        }
    }

    #[test]
    fn everything_but() {
        let ignore = Ignore::parse("**\n!src/**\n!Makefile\n");
        for (path, excluded) in [
            ("a", true),
            ("src", true),
            ("src/main.c", false),
            ("src/deep/er.c", false),
            ("Makefile", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
        }
        assert!(ignore.may_take_back());
        assert!(Ignore::parse("\n \n/\n.\n").is_empty());
    }
}
