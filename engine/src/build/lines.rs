//! The text of a Dockerfile as logical lines: directives, comments, continuations, heredocs.
//!
//! What the words of a line mean is for `parse` to say.

use super::ParseError;

/// One instruction, which may cover several lines of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// The number of its first line; the file starts with 1.
    pub(crate) number: usize,
    /// Its text, continuations joined.
    pub(crate) text: String,
    /// Its heredocs, in the order of their markers.
    pub(crate) heredocs: Vec<Heredoc>,
}

/// The lines between a marker `<<NAME` and `NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The marker's name.
    pub name: String,
    /// The lines, each with its end.
    pub content: String,
    /// Whether variables are replaced: not when the marker was quoted.
    pub expand: bool,
    /// The word as it stands in the line, such as `<<-"EOF"`.
    pub marker: String,
    /// Whether leading tabs go (`<<-`).
    pub chomp: bool,
}

/// A file's lines, and the character that joins and escapes.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) escape: char,
    pub(crate) lines: Vec<Line>,
}

/// Splits a file.
///
/// # Errors
/// A bad `escape` directive, a heredoc without an end.
pub(crate) fn read(text: &str) -> Result<Lines, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = escape_directive(text)?;
    let mut input = text.lines().enumerate();
    let mut lines = Vec::new();
    while let Some((index, first)) = input.next() {
        let first = first.trim_start();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut joined = String::new();
        let mut part = first;
        while let Some(head) = continued(part, escape) {
            joined.push_str(head);
            // Comments between continued lines vanish, and so do empty lines (which docker warns of).
            let next = input.by_ref().map(|(_, line)| line).find(|line| {
                let line = line.trim_start();
                !line.is_empty() && !line.starts_with('#')
            });
            part = next.unwrap_or_default();
        }
        joined.push_str(part);
        let text = joined.trim_end().to_owned();
        let mut heredocs = markers(&text, escape);
        for heredoc in &mut heredocs {
            fill(heredoc, &mut input).ok_or_else(|| ParseError {
                line: index + 1,
                message: format!(
                    "heredoc {} has no end: a line that says {} alone",
                    heredoc.marker, heredoc.name
                ),
            })?;
        }
        lines.push(Line {
            number: index + 1,
            text,
            heredocs,
        });
    }
    Ok(Lines { escape, lines })
}

/// `# name=value` lines at the very top. `syntax` names a program to fetch and run as a parser: that is never done
/// here (CVE-2026-33747 is about one that was fetched), every Dockerfile is read by this parser.
fn escape_directive(text: &str) -> Result<char, ParseError> {
    for (index, line) in text.lines().enumerate() {
        let Some((name, value)) = line
            .trim()
            .strip_prefix('#')
            .and_then(|rest| rest.split_once('='))
        else {
            break;
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "escape" => {
                return match value.trim() {
                    "\\" => Ok('\\'),
                    "`" => Ok('`'),
                    other => Err(ParseError {
                        line: index + 1,
                        message: format!("invalid escape directive {other:?}: it takes \\ or `"),
                    }),
                };
            }
            "syntax" | "check" => {}
            _ => break,
        }
    }
    Ok('\\')
}

/// The line without the escape character that continues it; `None` for a line that ends here.
fn continued(line: &str, escape: char) -> Option<&str> {
    let head = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    // Doubled, it stands for itself.
    (!head.ends_with(escape)).then_some(head)
}

/// The heredoc markers of an instruction that can have them.
fn markers(text: &str, escape: char) -> Vec<Heredoc> {
    let mut words = text.split_whitespace();
    let mut first = words.next().unwrap_or_default();
    if first.eq_ignore_ascii_case("onbuild") {
        first = words.next().unwrap_or_default();
    }
    if !["run", "copy", "add"]
        .iter()
        .any(|it| first.eq_ignore_ascii_case(it))
    {
        return Vec::new();
    }
    let words = super::word::split(text, escape);
    words.iter().filter_map(|word| marker(word)).collect()
}

/// `<<NAME`, `<<-NAME`, `<<"NAME"`, `3<<NAME`. `1<<2` is arithmetic and `<<<` another thing.
fn marker(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| rest.strip_prefix(quote)?.strip_suffix(quote));
    let name = unquoted.unwrap_or(rest);
    let starts_well = name.starts_with(|letter: char| letter.is_alphabetic() || letter == '_');
    let is_name = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.');
    (starts_well && name.chars().all(is_name)).then(|| Heredoc {
        name: name.to_owned(),
        content: String::new(),
        expand: unquoted.is_none(),
        marker: word.to_owned(),
        chomp,
    })
}

fn fill<'t>(
    heredoc: &mut Heredoc,
    input: &mut impl Iterator<Item = (usize, &'t str)>,
) -> Option<()> {
    for (_, line) in input {
        let line = if heredoc.chomp {
            line.trim_start_matches('\t')
        } else {
            line
        };
        if line == heredoc.name {
            return Some(());
        }
        heredoc.content.push_str(line);
        heredoc.content.push('\n');
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(usize, String)> {
        let lines = read(text).unwrap().lines;
        lines
            .into_iter()
            .map(|line| (line.number, line.text))
            .collect()
    }

    #[test]
    fn lines_are_joined_and_comments_dropped() {
        let text = "# comment\n\nFROM a\n  RUN one \\\n  # inside\n\n   two \\  \n three\nCMD x\\\\\nENV y\\";
        let expected = [
            (3, "FROM a"),
            (4, "RUN one    two  three"),
            (9, "CMD x\\\\"),
            (10, "ENV y"),
        ];
        assert_eq!(texts(text), expected.map(|(at, it)| (at, it.to_owned())));
        assert_eq!(texts("\u{feff}FROM a\r\nRUN b\r\n").len(), 2);
    }

    #[test]
    fn directives_stand_at_the_top() {
        let escape = |text| read(text).map(|lines| lines.escape);
        assert_eq!(escape("# escape=`\nFROM a").unwrap(), '`');
        assert_eq!(
            escape("# syntax=docker/dockerfile:1\n# escape = `\nFROM a").unwrap(),
            '`'
        );
        assert_eq!(escape("# hello\n# escape=`\nFROM a").unwrap(), '\\');
        assert_eq!(escape("FROM a\n# escape=`").unwrap(), '\\');
        assert!(escape("# escape=x\nFROM a").is_err());
        assert_eq!(
            texts("# escape=`\nRUN a `\n b\\"),
            [(2, "RUN a  b\\".to_owned())]
        );
    }

    #[test]
    fn heredocs_are_taken_out() {
        let text = "RUN <<EOF\n# no comment \\\n  a $b\nEOF\nCOPY <<\"A\" <<-B /x/\none\nA\n\t\ttwo\n\tB\nRUN echo $((1<<2)) <<<x\n";
        let lines = read(text).unwrap().lines;
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].heredocs[0].content, "# no comment \\\n  a $b\n");
        assert!(lines[0].heredocs[0].expand);
        let [one, two] = &lines[1].heredocs[..] else {
            panic!("{lines:?}")
        };
        assert_eq!((one.content.as_str(), one.expand), ("one\n", false));
        assert_eq!((two.content.as_str(), two.expand), ("two\n", true));
        assert!(lines[2].heredocs.is_empty());
        let error = read("FROM a\nRUN <<EOF\nx\n").unwrap_err();
        assert_eq!(error.line, 2);
    }
}
