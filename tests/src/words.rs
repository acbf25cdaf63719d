//! Command lines written as a user types them, split into words.

/// Splits `line` at spaces; `'…'` and `"…"` keep their content together, without escapes.
///
/// # Panics
/// On a quote that is not closed.
#[must_use]
pub fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    assert!(quote.is_none(), "a quote is not closed in: {line}");
    words.extend(word);
    words
}

/// Splits `line` at every `separator` outside quotes; the parts are trimmed, quotes stay.
#[must_use]
pub fn split_outside_quotes(line: &str, separator: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quote = None;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if quote.is_none() && rest.starts_with(separator) {
            parts.push(String::new());
            rest = &rest[separator.len()..];
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_what_is_quoted() {
        assert_eq!(
            split("run base sh -c 'echo \"a b\"' \"\""),
            ["run", "base", "sh", "-c", "echo \"a b\"", ""]
        );
    }

    #[test]
    fn separators_in_quotes_do_not_split() {
        assert_eq!(
            split_outside_quotes("a 'b | c' | d", " | "),
            ["a 'b | c'", "d"]
        );
    }
}
