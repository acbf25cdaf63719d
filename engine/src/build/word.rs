//! Words of a Dockerfile: quotes, escapes, and `$variables`.
//!
//! The rules are those of docker's own little shell: `'…'` is literal, `"…"` is not, the escape character takes the
//! meaning of the next character away, and `$NAME`, `${NAME}` and `${NAME…}` with one of the shell's modifiers stand
//! for values. A variable that is not set is empty.
//!
//! Governing text: Dockerfile reference, "Environment replacement".

use std::iter::Peekable;
use std::str::Chars;

use super::pattern;

/// What can be wrong with a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// A quote that is not closed.
    #[error("{0} is not closed")]
    Unclosed(char),
    /// `${` without `}`.
    #[error("`${{` is not closed")]
    Brace,
    /// `${NAME` followed by something that is no modifier.
    #[error("unsupported modifier {0:?} in a substitution")]
    Modifier(String),
    /// `${NAME:?message}` of a variable without a value.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// What the Dockerfile says about it.
        message: String,
    },
}

/// What happens to quotes and escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// They do their work and vanish.
    Remove,
    /// They are text like any other (the body of a heredoc).
    Keep,
}

/// Where values come from.
pub(super) type Lookup<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Replaces the variables of a word, and removes its quotes.
///
/// # Errors
/// Something that is opened and not closed, an unknown modifier, a variable that must be set and is not.
pub(super) fn expand(word: &str, escape: char, lookup: &Lookup<'_>) -> Result<String, Error> {
    expand_with(word, escape, Quotes::Remove, lookup)
}

/// [`expand`] with a choice of what happens to quotes.
///
/// # Errors
/// As [`expand`].
pub(super) fn expand_with(
    word: &str,
    escape: char,
    quotes: Quotes,
    lookup: &Lookup<'_>,
) -> Result<String, Error> {
    let mut reader = Reader {
        input: word.chars().peekable(),
        escape,
        quotes,
        lookup,
    };
    reader.until(None)
}

struct Reader<'a> {
    input: Peekable<Chars<'a>>,
    escape: char,
    quotes: Quotes,
    lookup: &'a Lookup<'a>,
}

impl Reader<'_> {
    /// Reads up to `end`, which is taken; up to the end of the word without one.
    fn until(&mut self, end: Option<char>) -> Result<String, Error> {
        let mut out = String::new();
        while let Some(letter) = self.input.next() {
            if Some(letter) == end {
                return Ok(out);
            }
            match letter {
                '$' => out.push_str(&self.variable()?),
                '\'' if self.quotes == Quotes::Remove => self.single_quoted(&mut out)?,
                '"' if self.quotes == Quotes::Remove => self.double_quoted(&mut out)?,
                _ if letter == self.escape => self.escaped(&mut out),
                _ => out.push(letter),
            }
        }
        if end.is_some() {
            return Err(Error::Brace);
        }
        Ok(out)
    }

    fn escaped(&mut self, out: &mut String) {
        match (self.quotes, self.input.peek()) {
            (_, None) => out.push(self.escape),
            (Quotes::Remove, Some(_)) => out.extend(self.input.next()),
            (Quotes::Keep, Some('$')) => out.extend(self.input.next()),
            (Quotes::Keep, Some(_)) => out.push(self.escape),
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), Error> {
        loop {
            match self.input.next().ok_or(Error::Unclosed('\''))? {
                '\'' => return Ok(()),
                letter => out.push(letter),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), Error> {
        loop {
            match self.input.next().ok_or(Error::Unclosed('"'))? {
                '"' => return Ok(()),
                '$' => out.push_str(&self.variable()?),
                letter if letter == self.escape => match self.input.peek().copied() {
                    Some(next @ ('"' | '$')) => {
                        out.push(next);
                        self.input.next();
                    }
                    Some(next) if next == self.escape => {
                        out.push(next);
                        self.input.next();
                    }
                    _ => out.push(letter),
                },
                letter => out.push(letter),
            }
        }
    }

    /// After a `$`.
    fn variable(&mut self) -> Result<String, Error> {
        if self.input.peek() != Some(&'{') {
            let name = self.name();
            return Ok(match name.as_str() {
                "" => "$".to_owned(),
                name => (self.lookup)(name).unwrap_or_default(),
            });
        }
        self.input.next();
        let name = self.name();
        if name.is_empty() {
            let rest: String = self.input.clone().take(10).collect();
            return Err(Error::Modifier(rest));
        }
        let value = (self.lookup)(&name);
        let Some(mut modifier) = self.input.next() else {
            return Err(Error::Brace);
        };
        if modifier == '}' {
            return Ok(value.unwrap_or_default());
        }
        let is_set = if modifier == ':' {
            modifier = self.input.next().ok_or(Error::Brace)?;
            value.as_ref().is_some_and(|value| !value.is_empty())
        } else {
            value.is_some()
        };
        match modifier {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'))?;
                self.conditional(modifier, &name, value, is_set, word)
            }
            '#' | '%' | '/' => self.trimmed(modifier, &value.unwrap_or_default()),
            other => Err(Error::Modifier(other.to_string())),
        }
    }

    fn conditional(
        &self,
        modifier: char,
        name: &str,
        value: Option<String>,
        is_set: bool,
        word: String,
    ) -> Result<String, Error> {
        match (modifier, is_set) {
            ('+', true) | ('-', false) => Ok(word),
            ('+', false) => Ok(String::new()),
            ('?', false) => Err(Error::Required {
                name: name.to_owned(),
                message: if word.is_empty() {
                    "has no value".to_owned()
                } else {
                    word
                },
            }),
            _ => Ok(value.unwrap_or_default()),
        }
    }

    /// `#`, `##`, `%`, `%%` cut a pattern off the start or the end; `/` and `//` replace.
    fn trimmed(&mut self, modifier: char, value: &str) -> Result<String, Error> {
        let doubled = self.input.next_if_eq(&modifier).is_some();
        if modifier == '/' {
            let pattern = self.until(Some('/'))?;
            let replacement = self.until(Some('}'))?;
            return Ok(replaced(value, &pattern, &replacement, doubled));
        }
        let pattern = self.until(Some('}'))?;
        let mut cuts: Vec<usize> = value.char_indices().map(|(at, _)| at).collect();
        cuts.push(value.len());
        // The shortest match first for the single form, the longest for the doubled one.
        let from_start = (modifier == '#') != doubled;
        if !from_start {
            cuts.reverse();
        }
        for at in cuts {
            let (head, tail) = value.split_at(at);
            let (cut, kept) = if modifier == '#' {
                (head, tail)
            } else {
                (tail, head)
            };
            if pattern::matches_text(&pattern, cut) {
                return Ok(kept.to_owned());
            }
        }
        Ok(value.to_owned())
    }

    /// A variable's name, or one of the shell's special ones, which are never set here.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&letter) = self.input.peek() {
            let fits = letter == '_'
                || letter.is_ascii_alphabetic()
                || !name.is_empty() && letter.is_ascii_digit();
            if !fits {
                break;
            }
            name.push(letter);
            self.input.next();
        }
        if name.is_empty() {
            let special = |letter: &char| letter.is_ascii_digit() || "@*#?-!".contains(*letter);
            name.extend(self.input.next_if(special));
        }
        name
    }
}

fn replaced(value: &str, pattern: &str, replacement: &str, all: bool) -> String {
    let mut out = String::new();
    let mut rest = value;
    while !rest.is_empty() {
        let ends = rest.char_indices().map(|(at, _)| at).skip(1);
        let mut ends: Vec<usize> = ends.chain([rest.len()]).collect();
        ends.reverse();
        let found = ends
            .into_iter()
            .find(|&end| pattern::matches_text(pattern, &rest[..end]));
        match found {
            Some(end) => {
                out.push_str(replacement);
                rest = &rest[end..];
                if !all {
                    break;
                }
            }
            None => {
                let next = rest.chars().next().map_or(rest.len(), char::len_utf8);
                out.push_str(&rest[..next]);
                rest = &rest[next..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Splits a line into words at white space outside of quotes. Quotes and escapes stay in the words.
pub(super) fn split(line: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match quote {
            None if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(letter, '"' | '\'') => quote = Some(letter),
            Some(open) if letter == open => quote = None,
            _ => {}
        }
        word.push(letter);
        if letter == escape && quote != Some('\'') {
            word.extend(letters.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".to_owned()),
            "EMPTY" => Some(String::new()),
            "FILE" => Some("a/b/c.tar.gz".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn words_expand_as_docker_has_it() {
        let cases: [(&str, &str); 36] = [
            ("plain", "plain"),
            ("$A", "one"),
            ("${A}x", "onex"),
            ("$Ax", ""),
            ("x$A.y", "xone.y"),
            (r"\$A", "$A"),
            (r"\\$A", r"\one"),
            ("'$A'", "$A"),
            ("\"$A b\"", "one b"),
            (r#""\"$A\" \n""#, r#""one" \n"#),
            (r"a\ b", "a b"),
            (r"end\", r"end\"),
            ("$", "$"),
            ("$$A", "$one"),
            ("100$ and", "100$ and"),
            ("${NONE}", ""),
            ("${NONE:-d}", "d"),
            ("${NONE-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${A:-d}", "one"),
            ("${A:+yes}", "yes"),
            ("${EMPTY:+yes}", ""),
            ("${EMPTY+yes}", "yes"),
            ("${NONE:-${A}2}", "one2"),
            ("${NONE:-\"a }b\"}", "a }b"),
            ("${A:?must}", "one"),
            ("${FILE#*/}", "b/c.tar.gz"),
            ("${FILE##*/}", "c.tar.gz"),
            ("${FILE%.*}", "a/b/c.tar"),
            ("${FILE%%.*}", "a/b/c"),
            ("${FILE/b/X}", "a/X/c.tar.gz"),
            ("${FILE//a/X}", "X/b/c.tXr.gz"),
            ("${A%z}", "one"),
            ("$1$@", ""),
            ("ä$A€", "äone€"),
        ];
        for (word, expected) in cases {
            assert_eq!(
                expand(word, '\\', &lookup).as_deref(),
                Ok(expected),
                "{word}"
            );
        }
        assert_eq!(expand(r"C:\dir`$A", '`', &lookup).unwrap(), r"C:\dir$A");
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for word in ["'a", "\"a", "${A", "${A:-x", "${A^^}", "${}", "${NONE:?x}"] {
            assert!(expand(word, '\\', &lookup).is_err(), "{word}");
        }
        let error = expand("${NONE:?give it}", '\\', &lookup).unwrap_err();
        assert_eq!(error.to_string(), "NONE: give it");
    }

    #[test]
    fn heredocs_keep_their_quotes() {
        let text = "'$A' \"b\" \\$A \\n";
        let expanded = expand_with(text, '\\', Quotes::Keep, &lookup).unwrap();
        assert_eq!(expanded, "'one' \"b\" $A \\n");
    }

    #[test]
    fn lines_split_outside_of_quotes() {
        assert_eq!(
            split(r#"a=1  b="x y" c=x\ y 'd e'f"#, '\\'),
            ["a=1", r#"b="x y""#, r"c=x\ y", "'d e'f"]
        );
        assert!(split("  ", '\\').is_empty());
    }
}
