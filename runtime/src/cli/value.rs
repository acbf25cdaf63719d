//! Numbers and durations as callers of runc write them, and what it says of those that are none: the texts are those of
//! Go's `strconv`, which engines and test suites read.

use std::time::Duration;

/// Text that is no number, or not one of the size that is wanted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("strconv.{function}: parsing {text:?}: {why}")]
pub(crate) struct NotNumber {
    function: &'static str,
    text: String,
    why: &'static str,
}

/// A number in any of Go's notations: `-5`, `0x10`, `0o17`, `017`, `0b1`.
pub(crate) fn integer(text: &str) -> Result<i64, NotNumber> {
    let (_, digits) = sign(text);
    let lower = digits.to_ascii_lowercase();
    let (radix, skipped) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, 2),
        [b'0', b'o', ..] => (8, 2),
        [b'0', b'b', ..] => (2, 2),
        [b'0', _, ..] => (8, 1),
        _ => (10, 0),
    };
    parse("ParseInt", text, radix, skipped)
}

/// A decimal number; `function` is what runc reads it with.
pub(crate) fn decimal<T: TryFrom<i128>>(
    function: &'static str,
    text: &str,
) -> Result<T, NotNumber> {
    parse(function, text, 10, 0)
}

/// The sign, and what follows it.
fn sign(text: &str) -> (&str, &str) {
    let length = usize::from(text.starts_with(['+', '-']));
    text.split_at(length)
}

/// A number whose digits begin `skipped` bytes after its sign.
fn parse<T: TryFrom<i128>>(
    function: &'static str,
    text: &str,
    radix: u32,
    skipped: usize,
) -> Result<T, NotNumber> {
    let wrong = |why| NotNumber {
        function,
        text: text.to_owned(),
        why,
    };
    let (sign, digits) = sign(text);
    let digits = &digits[skipped..];
    let is_unsigned = function == "ParseUint" && !sign.is_empty();
    if is_unsigned || digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(wrong("invalid syntax"));
    }
    let out_of_range = || wrong("value out of range");
    let value = i128::from_str_radix(digits, radix).map_err(|_| out_of_range())?;
    T::try_from(if sign == "-" { -value } else { value }).map_err(|_| out_of_range())
}

/// A duration as Go spells it: `500ms`, `5s`, `1h15m30.5s`; a negative one counts as none.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut first = true;
    while first || !rest.is_empty() {
        first = false;
        let digits =
            rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after
            .find(|character: char| character.is_ascii_digit() || character == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let seconds = number.parse::<f64>().ok()? * unit;
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = after;
    }
    Some(if negative { Duration::ZERO } else { total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notation() {
        for (text, value) in [
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            ("0x1F", 31),
            ("-0b11", -3),
            ("017", 15),
            ("0o17", 15),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(integer(text), Ok(value), "{text}");
        }
        for text in ["", "-", "x", "0x", "08", "1 ", "--1", "1e3"] {
            let expected = format!("strconv.ParseInt: parsing {text:?}: invalid syntax");
            assert_eq!(integer(text).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn sizes_and_signs() {
        assert_eq!(decimal::<u32>("Atoi", "+5"), Ok(5));
        for (function, text, why) in [
            ("Atoi", "4294967296", "value out of range"),
            ("Atoi", "-1", "value out of range"),
            ("Atoi", "0x1", "invalid syntax"),
            ("Atoi", "", "invalid syntax"),
            ("ParseUint", "+5", "invalid syntax"),
        ] {
            let expected = format!("strconv.{function}: parsing {text:?}: {why}");
            let found = decimal::<u32>(function, text).unwrap_err();
            assert_eq!(found.to_string(), expected);
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("500ms", Some(Duration::from_millis(500))),
            ("1s", Some(Duration::from_secs(1))),
            ("1h15m30.5s", Some(Duration::from_millis(4_530_500))),
            (".5s", Some(Duration::from_millis(500))),
            ("0", Some(Duration::ZERO)),
            ("-5s", Some(Duration::ZERO)),
            ("5", None),
            ("soon", None),
            ("5x", None),
            ("", None),
        ] {
            assert_eq!(duration(text), expected, "{text}");
        }
    }
}
