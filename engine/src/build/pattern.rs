//! Patterns with `*`, `?` and `[…]`, as Dockerfiles and ignore files use them.

/// Whether a pattern matches one component of a path. `*` and `?` match no slash, and `\` takes the meaning of the
/// next character away.
pub(crate) fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    matches(pattern, name, false)
}

/// Whether a pattern matches a whole text; here `*` matches everything.
pub(crate) fn matches_text(pattern: &str, text: &str) -> bool {
    matches(pattern.as_bytes(), text.as_bytes(), true)
}

/// Whether a text has a character that means something in a pattern.
pub(crate) fn is_pattern(text: &[u8]) -> bool {
    text.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Goes back to the last `*` only: linear times the number of stars, whatever a hostile pattern looks like.
fn matches(pattern: &[u8], text: &[u8], slashes: bool) -> bool {
    let (mut at, mut position) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        if at < pattern.len() && pattern[at] == b'*' {
            star = Some((at + 1, position));
            at += 1;
            continue;
        }
        if position == text.len() {
            if at == pattern.len() {
                return true;
            }
        } else if at < pattern.len()
            && let Some(length) = one(&pattern[at..], text[position], slashes)
        {
            at += length;
            position += 1;
            continue;
        }
        match star {
            Some((after, taken)) if taken < text.len() && (slashes || text[taken] != b'/') => {
                star = Some((after, taken + 1));
                at = after;
                position = taken + 1;
            }
            _ => return false,
        }
    }
}

/// Matches one byte against the start of a pattern; the length of that start if it fits.
fn one(pattern: &[u8], byte: u8, slashes: bool) -> Option<usize> {
    match pattern[0] {
        b'?' => (slashes || byte != b'/').then_some(1),
        b'[' => class(pattern, byte).filter(|_| slashes || byte != b'/'),
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        literal => (literal == byte).then_some(1),
    }
}

/// `[abc]`, `[a-z]`, `[^…]`, `[!…]`. One that is not closed matches nothing.
fn class(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let negated = matches!(pattern.get(at), Some(b'^' | b'!'));
    at += usize::from(negated);
    let first = at;
    let mut found = false;
    loop {
        let mut low = *pattern.get(at)?;
        if low == b']' && at > first {
            break;
        }
        if low == b'\\' {
            at += 1;
            low = *pattern.get(at)?;
        }
        at += 1;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1).is_some_and(|&next| next != b']') {
            high = pattern[at + 1];
            at += 2;
        }
        found |= (low..=high).contains(&byte);
    }
    (found != negated).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match() {
        for (pattern, name, expected) in [
            ("*.go", "main.go", true),
            ("*.go", "main.gox", false),
            ("*", "a/b", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcdf", false),
            ("?at", "cat", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a", "a", false),
            (r"\*", "*", true),
            (r"\*", "a", false),
            ("", "", true),
            ("*", "", true),
            ("a", "", false),
        ] {
            assert_eq!(
                matches_name(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        assert!(matches_text("*/c*", "a/b/c.tar"));
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        let pattern = "*a".repeat(200) + "b";
        assert!(!matches_name(
            pattern.as_bytes(),
            "a".repeat(20_000).as_bytes()
        ));
    }
}
